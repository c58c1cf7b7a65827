//! System calls on one socket: what it is, its options, sending, ending it, waiting for it.

use std::{
    ffi::c_int,
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

#[cfg(not(target_os = "linux"))]
pub(crate) use super::fallback::{abort, enable_zerocopy, optmem, unsent};

/// What a socket is, as far as a sender treats it differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// TCP over IPv4 or IPv6, not listening.
    Tcp,
    /// Listening, of whatever family.
    Listener,
    /// Keeps message boundaries: UDP, UDP-Lite, raw, seqpacket.
    Datagram,
    /// A byte stream that is not TCP: Unix, vsock, MPTCP, SCTP.
    OtherStream,
}

/// Says what kind of socket this is; `ENOTSOCK` when it is none.
pub(crate) fn kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    let stream = option(fd, libc::SO_TYPE)? == libc::SOCK_STREAM;
    if option(fd, libc::SO_ACCEPTCONN)? != 0 {
        Ok(Kind::Listener)
    } else if !stream {
        Ok(Kind::Datagram)
    } else if is_tcp(fd)? {
        Ok(Kind::Tcp)
    } else {
        Ok(Kind::OtherStream)
    }
}

/// Whether a stream socket is TCP. MPTCP answers `SO_PROTOCOL` with a number of its own.
#[cfg(target_os = "linux")]
fn is_tcp(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let domain = option(fd, libc::SO_DOMAIN)?;
    let protocol = option(fd, libc::SO_PROTOCOL)?;
    Ok(matches!(domain, libc::AF_INET | libc::AF_INET6) && protocol == libc::IPPROTO_TCP)
}

/// Whether a stream socket is TCP, taking every stream over IP for it: not every Unix tells the
/// protocol, and without zero copy nothing rests on it.
#[cfg(not(target_os = "linux"))]
fn is_tcp(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let family = address_family(fd, libc::getsockname)?;
    Ok(matches!(family, libc::AF_INET | libc::AF_INET6))
}

/// Whether the socket has a peer. A connection that was reset has none any more.
pub(crate) fn is_connected(fd: BorrowedFd<'_>) -> io::Result<bool> {
    match address_family(fd, libc::getpeername) {
        Ok(_) => Ok(true),
        // Apple's systems answer EINVAL once the socket is shut down.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::EINVAL)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// `getsockname` or `getpeername`.
type AddressOf = unsafe extern "C" fn(c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> c_int;

fn address_family(fd: BorrowedFd<'_>, address_of: AddressOf) -> io::Result<c_int> {
    // SAFETY: mem::zeroed needs a type for which all zero bytes are a value: `sockaddr_storage`
    // has only integers.
    let mut address: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: getsockname(2) and getpeername(2) write at most `len` bytes to the address, which
    // has that many, and then `len`; both outlive the call. The fd is open while borrowed.
    check(unsafe { address_of(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut len) })?;
    Ok(c_int::from(address.ss_family))
}

/// Makes the socket ready for [`send`]: keeps it from raising SIGPIPE where no flag of the call
/// does that.
pub(crate) fn prepare(fd: BorrowedFd<'_>) -> io::Result<()> {
    #[cfg(target_vendor = "apple")]
    set_option(fd, libc::SO_NOSIGPIPE, &1)?;
    let _ = fd;
    Ok(())
}

/// Sets `SO_ZEROCOPY` and reads it back: a kernel that ignored it would copy without a word.
#[cfg(target_os = "linux")]
pub(crate) fn enable_zerocopy(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SO_ZEROCOPY, &1)?;
    match option(fd, libc::SO_ZEROCOPY)? {
        0 => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        _ => Ok(()),
    }
}

/// Bytes of option memory the socket holds.
///
/// Every zero-copy send holds 832 until it is released and its note is read, so 0 proves that
/// none is left; other users of option memory can only make it larger.
#[cfg(target_os = "linux")]
pub(crate) fn optmem(fd: BorrowedFd<'_>) -> io::Result<u32> {
    const OPTMEM: usize = libc::SK_MEMINFO_OPTMEM as usize;
    let mut info = [u32::MAX; OPTMEM + 1];
    let len = get_option(fd, libc::SO_MEMINFO, &mut info)?;
    if len < size_of_val(&info) {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Ok(info[OPTMEM])
}

/// Bytes the socket accepted and the peer has not acknowledged yet (`SIOCOUTQ`).
#[cfg(target_os = "linux")]
pub(crate) fn unsent(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: c_int = 0;
    // SAFETY: tcp(7): SIOCOUTQ, which is TIOCOUTQ, writes one int through the pointer; `bytes` is
    // one and outlives the call. The fd is open while borrowed.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// A range of memory to send.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct IoVec(libc::iovec);

// SAFETY: Send needs that moving the value to another thread is sound: it is an address and a
// length, and nothing but the kernel ever reads through it, under the contract of `send`.
unsafe impl Send for IoVec {}

impl IoVec {
    /// Names `len` bytes from `start`.
    pub(crate) fn new(start: *const u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len })
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// The `len` bytes from `offset` on, cut to what there is.
    pub(crate) fn part(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len());
        let start: *mut u8 = self.0.iov_base.cast();
        Self::new(start.wrapping_add(offset), len.min(self.len() - offset))
    }
}

/// How [`send`] sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SendFlags {
    /// `MSG_ZEROCOPY`; nothing without [`enable_zerocopy`], and off Linux.
    pub zerocopy: bool,
    /// `MSG_MORE`: more of the same follows at once. A hint; nothing off Linux.
    pub more: bool,
}

/// Sends the ranges in order and says how many bytes the kernel accepted, which may be fewer.
///
/// Never blocks, whatever the socket's mode (`WouldBlock`), never raises SIGPIPE on a socket that
/// was [prepared](prepare), and retries when interrupted. More than 1024 ranges are `EMSGSIZE`,
/// unreadable ones `EFAULT` or a short count.
///
/// # Safety
///
/// The kernel reads the ranges: during the call, and with `zerocopy` until the socket released
/// the id the call took. Until then each range must stay readable memory that nobody writes, or
/// memory whose torn contents on the wire the caller answers for, or be no memory at all.
pub(crate) unsafe fn send(
    fd: BorrowedFd<'_>,
    ranges: &[IoVec],
    flags: SendFlags,
) -> io::Result<usize> {
    #[cfg(target_vendor = "apple")]
    let mut bits = libc::MSG_DONTWAIT;
    #[cfg(not(target_vendor = "apple"))]
    let mut bits = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    #[cfg(target_os = "linux")]
    {
        bits |= if flags.zerocopy { libc::MSG_ZEROCOPY } else { 0 };
        bits |= if flags.more { libc::MSG_MORE } else { 0 };
    }
    // SAFETY: mem::zeroed needs a type for which all zero bytes are a value: `msghdr` has only
    // integers and raw pointers.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    // `sendmsg` does not write to it. An IoVec is an iovec (repr(transparent)).
    message.msg_iov = ranges.as_ptr().cast_mut().cast();
    message.msg_iovlen = ranges.len() as _;
    retry(|| {
        // SAFETY: sendmsg(2) reads the header and its `msg_iovlen` iovecs: `message` and `ranges`
        // outlive the call; name and control are null with length 0. It reads the memory they
        // name, and checks it first (EFAULT); that nobody else minds is the caller's contract.
        // The fd is open while borrowed.
        unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, bits) }
    })
}

/// Ends the stream in this direction, behind what was accepted; in-flight sends stay in flight.
pub(crate) fn shutdown_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: shutdown(2) takes no pointers. The fd is open while borrowed.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) })?;
    Ok(())
}

/// Breaks a TCP connection for every handle of it: the peer sees a reset, unsent and unread data
/// are lost, and every id is released at once except those of packets queued below TCP.
///
/// `EBUSY` on kernels that refuse while another thread blocks on the socket. Releases nothing on
/// a datagram socket.
#[expect(dead_code, reason = "closing does not abort yet")]
#[cfg(target_os = "linux")]
pub(crate) fn abort(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: mem::zeroed needs a type for which all zero bytes are a value: `sockaddr` has only
    // integers.
    let mut address: libc::sockaddr = unsafe { mem::zeroed() };
    address.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: connect(2) reads `len` bytes of the address, which has that many and outlives the
    // call. The fd is open while borrowed.
    check(unsafe { libc::connect(fd.as_raw_fd(), &raw const address, len) })?;
    Ok(())
}

/// Makes closing the last handle of a TCP socket a reset (`SO_LINGER` on, 0 seconds), so that a
/// stream that lost its rest cannot end as if it were whole.
pub(crate) fn reset_on_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })
}

/// Makes closing return at once and go on in the background (`SO_LINGER` off): with a linger time
/// the close would block, even on a non-blocking socket.
#[expect(dead_code, reason = "closing does not abort yet")]
pub(crate) fn linger_off(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SO_LINGER, &libc::linger { l_onoff: 0, l_linger: 0 })
}

/// What a socket is ready for; nothing set when the time was up or a signal came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ready {
    /// The socket takes bytes; not asked for unless wanted.
    pub writable: bool,
    /// The error queue is not empty, or the socket has an error.
    pub error: bool,
    /// The connection is gone in both directions. Stays set for good.
    pub hangup: bool,
}

/// Waits until the socket is writable (if wanted), has an error or hung up, or the time is up;
/// without `timeout`, for ever.
///
/// Level-triggered: an unread error queue or a hangup ends every later call at once.
pub(crate) fn poll(
    fd: BorrowedFd<'_>,
    writable: bool,
    timeout: Option<Duration>,
) -> io::Result<Ready> {
    let events = if writable { libc::POLLOUT } else { 0 };
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    match check(poll_one(&mut entry, timeout)) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Ready::default()),
        result => result?,
    };
    if entry.revents & libc::POLLNVAL != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    Ok(Ready {
        writable: entry.revents & libc::POLLOUT != 0,
        error: entry.revents & libc::POLLERR != 0,
        hangup: entry.revents & libc::POLLHUP != 0,
    })
}

#[cfg(target_os = "linux")]
fn poll_one(entry: &mut libc::pollfd, timeout: Option<Duration>) -> c_int {
    let timeout = timeout.map(|timeout| {
        // SAFETY: mem::zeroed needs a type for which all zero bytes are a value: `timespec` has
        // only integers.
        let mut spec: libc::timespec = unsafe { mem::zeroed() };
        // Where seconds are of 32 bits, 68 years are as good as more.
        spec.tv_sec = timeout.as_secs().min(i32::MAX as u64) as _;
        spec.tv_nsec = timeout.subsec_nanos() as usize as _;
        spec
    });
    let spec = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: ppoll(2) reads and writes `nfds` entries, one here, and reads the timeout unless it
    // is null; both outlive the call. A null mask leaves the signals as they are.
    unsafe { libc::ppoll(entry, 1, spec, std::ptr::null()) }
}

#[cfg(not(target_os = "linux"))]
fn poll_one(entry: &mut libc::pollfd, timeout: Option<Duration>) -> c_int {
    // SAFETY: poll(2) reads and writes `nfds` entries, one here, which outlives the call.
    unsafe { libc::poll(entry, 1, timeout_ms(timeout)) }
}

/// A time in whole milliseconds, rounded up so that waiting is never shorter; -1 for ever.
pub(super) fn timeout_ms(timeout: Option<Duration>) -> c_int {
    timeout.map_or(-1, |timeout| {
        let ms = timeout.as_nanos().div_ceil(1_000_000);
        c_int::try_from(ms).unwrap_or(c_int::MAX)
    })
}

/// Reads an option that is one int.
pub(super) fn option(fd: BorrowedFd<'_>, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    get_option(fd, name, std::slice::from_mut(&mut value))?;
    Ok(value)
}

/// Integers of which every bit pattern is a value.
pub(super) trait Plain: Copy {}
impl Plain for c_int {}
impl Plain for u32 {}

/// Reads an option into `value` and says how many bytes of it were filled.
fn get_option<T: Plain>(fd: BorrowedFd<'_>, name: c_int, value: &mut [T]) -> io::Result<usize> {
    let mut len = size_of_val(value) as libc::socklen_t;
    let start = value.as_mut_ptr().cast();
    // SAFETY: getsockopt(2) writes at most `len` bytes to the value, which has that many of a
    // type for which every bit pattern is valid (Plain), and then `len`; both outlive the call.
    // The fd is open while borrowed.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, start, &raw mut len)
    })?;
    Ok(len as usize)
}

/// Sets an option.
pub(super) fn set_option<T>(fd: BorrowedFd<'_>, name: c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: setsockopt(2) reads `len` bytes of the value, which is that long and outlives the
    // call. The fd is open while borrowed.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, value, len) })?;
    Ok(())
}

/// Turns the -1 of a system call into its error.
pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes a system call until no signal interrupts it.
pub(super) fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
