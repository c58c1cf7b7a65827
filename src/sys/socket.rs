//! System calls on one socket: its kind, its options, sending, ending, waiting.

use std::{
    ffi::c_int,
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

#[cfg(not(target_os = "linux"))]
pub(crate) use super::fallback::{abort, enable_zerocopy, optmem, unsent};
use super::message::Header;
pub(super) use super::option::{check, get_option, option, set_option};
pub use super::ready::{News, Ready};

/// The kind of a socket, as far as a sender treats kinds differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// TCP over IPv4 or IPv6, not listening.
    Tcp,
    /// Listening, of any family.
    Listener,
    /// UDP over IPv4 or IPv6.
    Udp,
    /// Datagrams other than UDP: Unix, UDP-Lite, raw, seqpacket.
    OtherDatagram,
    /// A byte stream other than TCP: Unix, vsock, MPTCP, SCTP.
    OtherStream,
}

/// Returns the kind of a socket; `ENOTSOCK` for any other descriptor.
pub(crate) fn kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    let stream = option(fd, libc::SO_TYPE)? == libc::SOCK_STREAM;
    if option(fd, libc::SO_ACCEPTCONN)? != 0 {
        Ok(Kind::Listener)
    } else {
        Ok(match (stream, is_internet(fd, stream)?) {
            (true, true) => Kind::Tcp,
            (true, false) => Kind::OtherStream,
            (false, true) => Kind::Udp,
            (false, false) => Kind::OtherDatagram,
        })
    }
}

/// Returns `true` for TCP among stream sockets, and for UDP among datagram sockets. MPTCP answers
/// `SO_PROTOCOL` with a number of its own.
#[cfg(target_os = "linux")]
fn is_internet(fd: BorrowedFd<'_>, stream: bool) -> io::Result<bool> {
    let domain = option(fd, libc::SO_DOMAIN)?;
    let protocol = if stream { libc::IPPROTO_TCP } else { libc::IPPROTO_UDP };
    Ok(matches!(domain, libc::AF_INET | libc::AF_INET6)
        && option(fd, libc::SO_PROTOCOL)? == protocol)
}

/// Returns `true` for a socket over IP: not every Unix tells the protocol, and without zero copy
/// nothing depends on it.
#[cfg(not(target_os = "linux"))]
fn is_internet(fd: BorrowedFd<'_>, _stream: bool) -> io::Result<bool> {
    let family = address_family(fd, libc::getsockname)?;
    Ok(matches!(family, libc::AF_INET | libc::AF_INET6))
}

/// Returns `true` if the socket has a peer. After a reset a connection has none.
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
    // SAFETY: mem::zeroed needs a type with an all-zero value: `sockaddr_storage` has only
    // integers.
    let mut address: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: getsockname(2) and getpeername(2) write at most `len` bytes to the address, which is
    // as long, and then `len`. Both live through the call. The fd is open while borrowed.
    check(unsafe { address_of(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut len) })?;
    Ok(c_int::from(address.ss_family))
}

/// Prepares the socket for [`send`]: no SIGPIPE, on systems where a flag of the call cannot prevent
/// it.
pub(crate) fn prepare(fd: BorrowedFd<'_>) -> io::Result<()> {
    #[cfg(target_vendor = "apple")]
    set_option(fd, libc::SO_NOSIGPIPE, &1)?;
    let _ = fd;
    Ok(())
}

/// Sets `SO_ZEROCOPY` and reads it back: a kernel that ignored the option would copy silently.
#[cfg(target_os = "linux")]
pub(crate) fn enable_zerocopy(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SO_ZEROCOPY, &1)?;
    match option(fd, libc::SO_ZEROCOPY)? {
        0 => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        _ => Ok(()),
    }
}

/// Bytes of option memory held by the socket.
///
/// Every zero-copy send holds some 832 bytes until it is released and its notification is read. So
/// 0 proves that no send is left; other users of option memory can only make the sum larger.
#[cfg(target_os = "linux")]
pub(crate) fn optmem(fd: BorrowedFd<'_>) -> io::Result<u32> {
    const OPTMEM: usize = libc::SK_MEMINFO_OPTMEM as usize;
    let mut info = [u32::MAX; OPTMEM + 1];
    let len = get_option(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut info)?;
    if len < size_of_val(&info) {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Ok(info[OPTMEM])
}

/// Bytes accepted by the socket and not acknowledged yet by the peer (`SIOCOUTQ`).
#[cfg(target_os = "linux")]
pub(crate) fn unsent(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: c_int = 0;
    // SAFETY: tcp(7): SIOCOUTQ, which is TIOCOUTQ, writes one int through the pointer; `bytes` is
    // an int that lives through the call. The fd is open while borrowed.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Returns `true` if the connection of a stream socket is over: reset, timed out, or ended in order
/// from both sides. Reads neither the socket nor its error.
///
/// A TCP socket then has the state `CLOSE` (`TCP_INFO`). Other kinds offer no such state (MPTCP
/// would report the state of one of its subflows), but hang up.
#[cfg(target_os = "linux")]
pub(crate) fn is_over(fd: BorrowedFd<'_>, kind: Kind) -> io::Result<bool> {
    /// From `include/net/tcp_states.h`.
    const TCP_CLOSE: u8 = 7;
    if kind != Kind::Tcp {
        return Ok(poll(fd, false, Some(Duration::ZERO))?.hangup);
    }
    // The first byte of `tcp_info`.
    let mut state = [0_u8];
    get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state)?;
    Ok(state == [TCP_CLOSE])
}

/// A range of memory to send.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct IoVec(libc::iovec);

// SAFETY: Send needs a value that may move to another thread: an address and a length. Only the
// kernel ever reads through the address, under the contract of `send`.
unsafe impl Send for IoVec {}

impl IoVec {
    /// Names `len` bytes from `start`.
    pub(crate) fn new(start: *const u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len })
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "no caller needs it")]
    #[inline]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Address of the first byte.
    pub fn start(&self) -> *const u8 {
        self.0.iov_base.cast_const().cast()
    }

    /// The `len` bytes from `offset` on, limited to the range.
    #[inline]
    pub(crate) fn part(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len());
        let start: *mut u8 = self.0.iov_base.cast();
        Self::new(start.wrapping_add(offset), len.min(self.len() - offset))
    }
}

/// The flags of [`send`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SendFlags {
    /// `MSG_ZEROCOPY`; nothing without [`enable_zerocopy`], and off Linux.
    pub zerocopy: bool,
    /// `MSG_MORE`: more of the same follows at once. A hint; nothing off Linux.
    pub more: bool,
}

impl SendFlags {
    #[inline(always)]
    fn bits(self) -> c_int {
        #[cfg(target_vendor = "apple")]
        let bits = libc::MSG_DONTWAIT;
        #[cfg(not(target_vendor = "apple"))]
        let bits = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        #[cfg(target_os = "linux")]
        let bits = bits
            | if self.zerocopy { libc::MSG_ZEROCOPY } else { 0 }
            | if self.more { libc::MSG_MORE } else { 0 };
        bits
    }
}

/// Sends the ranges in order and returns the number of accepted bytes, possibly fewer than given.
///
/// Never blocks, in either mode of the socket (`WouldBlock`). Never raises SIGPIPE on a socket that
/// was [prepared](prepare). Retries when interrupted. More than 1024 ranges are `EMSGSIZE`,
/// unreadable ranges `EFAULT` or a short count.
///
/// # Safety
///
/// The kernel reads the ranges during the call, and with `zerocopy` until the socket has released
/// the id of the call. Until then each range must be one of three: readable memory that stays
/// unwritten; memory whose torn contents on the wire are the caller's responsibility; no memory at
/// all.
#[inline(always)]
pub(crate) unsafe fn send(
    fd: BorrowedFd<'_>,
    ranges: &[IoVec],
    flags: SendFlags,
) -> io::Result<usize> {
    // The kernel has less to do for `send` than for `sendmsg`, by a twentieth of a send of 4 KiB.
    if let [range] = ranges {
        return retry(|| {
            // SAFETY: send(2) reads `len` bytes of memory, and checks the memory first (EFAULT).
            // The caller's contract excludes writers. The fd is open while borrowed.
            unsafe { libc::send(fd.as_raw_fd(), range.0.iov_base, range.len(), flags.bits()) }
        });
    }
    // SAFETY: `send_with` has the contract of `send`, which the caller keeps.
    unsafe { send_with(fd, ranges, flags, None) }
}

/// Sends the ranges in order as one message with this header, if any; otherwise as [`send`].
///
/// # Safety
///
/// The contract of [`send`].
pub(crate) unsafe fn send_with(
    fd: BorrowedFd<'_>,
    ranges: &[IoVec],
    flags: SendFlags,
    header: Option<&Header>,
) -> io::Result<usize> {
    // SAFETY: mem::zeroed needs a type with an all-zero value: `msghdr` has only integers and raw
    // pointers.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    // `sendmsg` does not write there. An IoVec is an iovec (repr(transparent)).
    message.msg_iov = ranges.as_ptr().cast_mut().cast();
    message.msg_iovlen = ranges.len() as _;
    if let Some(header) = header {
        header.put_into(&mut message);
    }
    retry(|| {
        // SAFETY: sendmsg(2) reads the `msghdr`, its `msg_iovlen` iovecs, its name and its control
        // data: `message`, `ranges` and `header` live through the call, and the lengths are theirs.
        // The call reads the memory of the iovecs, and checks it first (EFAULT). The caller's
        // contract excludes writers. The fd is open while borrowed.
        unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags.bits()) }
    })
}

/// [`send`] of memory without writers, so that no caller has to wait for its release.
pub(crate) fn send_static(
    fd: BorrowedFd<'_>,
    bytes: &'static [u8],
    flags: SendFlags,
) -> io::Result<usize> {
    // SAFETY: `send` needs a range that stays readable and unwritten until the release of its id.
    // The range is an immutable static, without interior mutability (`u8`).
    unsafe { send(fd, &[IoVec::new(bytes.as_ptr(), bytes.len())], flags) }
}

/// Ends the stream in this direction, behind the accepted bytes; in-flight sends stay in flight.
pub(crate) fn shutdown_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: shutdown(2) takes no pointers. The fd is open while borrowed.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) })?;
    Ok(())
}

/// Breaks a TCP connection for every handle of it. The peer sees a reset, unsent and unread data
/// are lost, and every id is released at once, except those of packets queued below TCP.
///
/// `EBUSY` on kernels that refuse while another thread blocks on the socket. Releases nothing on a
/// datagram socket.
#[cfg(target_os = "linux")]
pub(crate) fn abort(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: mem::zeroed needs a type with an all-zero value: `sockaddr` has only integers.
    let mut address: libc::sockaddr = unsafe { mem::zeroed() };
    address.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: connect(2) reads `len` bytes of the address, which is as long and lives through the
    // call. The fd is open while borrowed.
    check(unsafe { libc::connect(fd.as_raw_fd(), &raw const address, len) })?;
    Ok(())
}

/// Turns the close of the last handle of a TCP socket into a reset (`SO_LINGER` on, 0 seconds): a
/// truncated stream must not end as if it were whole.
pub(crate) fn reset_on_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })
}

/// Makes a close return at once and continue in the background (`SO_LINGER` off). With a linger
/// time the close would block, even on a non-blocking socket.
pub(crate) fn linger_off(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SO_LINGER, &libc::linger { l_onoff: 0, l_linger: 0 })
}

/// Ends reading and wakes every thread blocked in a read of the socket. The peer sees nothing.
pub(crate) fn shutdown_read(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: shutdown(2) takes no pointers. The fd is open while borrowed.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RD) })?;
    Ok(())
}

/// Returns `true` if the socket no longer has a peer.
#[cfg(not(target_os = "linux"))]
pub(crate) fn is_over(fd: BorrowedFd<'_>, _kind: Kind) -> io::Result<bool> {
    is_connected(fd).map(|is_connected| !is_connected)
}

/// Waits until the socket is writable (if wanted), has an error or hung up, or the timeout passes;
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
    let timeout = timeout.map(timespec);
    let spec = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: ppoll(2) reads and writes `nfds` entries, one here, and reads the timeout unless
    // null. Both live through the call. A null mask leaves the signals unchanged.
    unsafe { libc::ppoll(entry, 1, spec, std::ptr::null()) }
}

#[cfg(target_os = "linux")]
fn timespec(time: Duration) -> libc::timespec {
    // SAFETY: mem::zeroed needs a type with an all-zero value: `timespec` has only integers.
    let mut spec: libc::timespec = unsafe { mem::zeroed() };
    // With seconds of 32 bits, 68 years are as good as more.
    spec.tv_sec = time.as_secs().min(i32::MAX as u64) as _;
    spec.tv_nsec = time.subsec_nanos() as usize as _;
    spec
}

#[cfg(not(target_os = "linux"))]
fn poll_one(entry: &mut libc::pollfd, timeout: Option<Duration>) -> c_int {
    // SAFETY: poll(2) reads and writes `nfds` entries, one here, which lives through the call.
    unsafe { libc::poll(entry, 1, timeout_ms(timeout)) }
}

/// A time in whole milliseconds, rounded up so that no wait is shorter; -1 for ever.
pub(super) fn timeout_ms(timeout: Option<Duration>) -> c_int {
    timeout.map_or(-1, |timeout| {
        let ms = timeout.as_nanos().div_ceil(1_000_000);
        c_int::try_from(ms).unwrap_or(c_int::MAX)
    })
}

/// Repeats a system call until no signal interrupts it.
#[inline]
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        net::{TcpStream, UdpSocket},
        os::{
            fd::{AsFd, FromRawFd, OwnedFd},
            unix::net::{UnixDatagram, UnixListener, UnixStream},
        },
        time::Instant,
    };

    use super::*;
    use crate::{
        sync::{AtomicU32, Ordering},
        sys::{
            Record,
            testing::{self, SOON, records_until},
        },
    };

    const SHORT: Option<Duration> = Some(Duration::from_millis(20));

    fn fill(sender: &TcpStream, zerocopy: bool) -> u32 {
        let mut sends = 0;
        loop {
            match testing::send(sender, 64 << 10, zerocopy) {
                Ok(_) => sends += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return sends,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn each_kind_of_socket_is_recognised() {
        let (tcp, _peer) = testing::zerocopy_pair();
        let listener = testing::listen("127.0.0.1:0");
        let (tcp6, _peer6) = testing::connect(testing::listen("[::1]:0"), "::1");
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (unix, _other) = UnixStream::pair().unwrap();
        let unix_datagram = UnixDatagram::unbound().unwrap();
        let path = std::env::temp_dir().join(format!("pinbuf-kinds-{}", std::process::id()));
        let unix_listener = UnixListener::bind(&path);
        std::fs::remove_file(&path).unwrap();
        for (fd, expected) in [
            (tcp.as_fd(), Kind::Tcp),
            (tcp6.as_fd(), Kind::Tcp),
            (listener.as_fd(), Kind::Listener),
            (unix_listener.unwrap().as_fd(), Kind::Listener),
            (udp.as_fd(), Kind::Udp),
            (unix_datagram.as_fd(), Kind::OtherDatagram),
            (unix.as_fd(), Kind::OtherStream),
        ] {
            assert_eq!(kind(fd).unwrap(), expected);
        }
        let error = kind(File::open("/dev/null").unwrap().as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }

    #[test]
    fn mptcp_is_not_tcp() {
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            let absent = [libc::EPROTONOSUPPORT, libc::ENOPROTOOPT, libc::EINVAL];
            assert!(absent.contains(&error.raw_os_error().unwrap()), "{error}");
            testing::skipped("mptcp_is_not_tcp", "the kernel has no MPTCP");
            return;
        }
        // SAFETY: from_raw_fd needs an open, unowned fd: the call above made this one.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        assert_eq!(kind(socket.as_fd()).unwrap(), Kind::OtherStream);
    }

    #[test]
    fn a_connected_socket_has_a_peer() {
        let (sender, _peer) = testing::zerocopy_pair();
        assert!(is_connected(sender.as_fd()).unwrap());
        abort(sender.as_fd()).unwrap();
        assert!(!is_connected(sender.as_fd()).unwrap());
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(!is_connected(udp.as_fd()).unwrap());
        assert!(is_connected(File::open("/dev/null").unwrap().as_fd()).is_err());
    }

    #[test]
    fn a_kind_without_zero_copy_refuses_it() {
        let (unix, _other) = UnixStream::pair().unwrap();
        let error = enable_zerocopy(unix.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn a_zero_copy_send_needs_the_socket_option() {
        let (sender, _peer) = testing::connect(testing::listen("127.0.0.1:0"), "127.0.0.1");
        assert_eq!(testing::send(&sender, 100, true).unwrap(), 100);
        assert_eq!(
            poll(sender.as_fd(), false, SHORT).unwrap(),
            Ready::default(),
            "no notification"
        );
    }

    #[test]
    fn optmem_is_held_until_the_notification_is_read() {
        let (sender, _peer) = testing::zerocopy_pair();
        assert_eq!(optmem(sender.as_fd()).unwrap(), 0);
        testing::send(&sender, 100, false).unwrap();
        assert_eq!(optmem(sender.as_fd()).unwrap(), 0, "a copied send holds no option memory");
        testing::send(&sender, 100, true).unwrap();
        assert!(poll(sender.as_fd(), false, Some(SOON)).unwrap().error);
        assert!(optmem(sender.as_fd()).unwrap() > 0, "the notification is unread");
        records_until(&sender, |records| !records.is_empty());
        assert_eq!(optmem(sender.as_fd()).unwrap(), 0);
    }

    #[test]
    fn unsent_counts_down_as_the_peer_acknowledges() {
        let (sender, mut peer) = testing::stalled_pair();
        fill(&sender, false);
        let stalled = unsent(sender.as_fd()).unwrap();
        assert!(stalled > 0);
        peer.read_exact(&mut vec![0; 100_000]).unwrap();
        let end = Instant::now() + SOON;
        while unsent(sender.as_fd()).unwrap() >= stalled {
            assert!(Instant::now() < end, "nothing was acknowledged");
        }
    }

    #[test]
    fn ranges_arrive_in_order() {
        let (sender, mut peer) = testing::zerocopy_pair();
        for zerocopy in [false, true] {
            let ranges: Vec<_> = [b"one ".as_slice(), b"", b"two ", b"three"]
                .iter()
                .map(|bytes| IoVec::new(bytes.as_ptr(), bytes.len()))
                .collect();
            let flags = SendFlags { zerocopy, more: false };
            // SAFETY: the ranges must be readable and unwritten until released: they are static.
            let sent = unsafe { send(sender.as_fd(), &ranges, flags) };
            assert_eq!(sent.unwrap(), 13);
            let mut bytes = [0; 13];
            peer.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"one two three");
        }
    }

    #[test]
    fn msg_more_holds_back_a_small_segment() {
        let (sender, mut peer) = testing::zerocopy_pair();
        sender.set_nodelay(true).unwrap();
        let range = IoVec::new(testing::BYTES.as_ptr(), 10);
        let flags = SendFlags { zerocopy: false, more: true };
        // SAFETY: the range must be readable and unwritten during the call: it is static.
        assert_eq!(unsafe { send(sender.as_fd(), &[range], flags) }.unwrap(), 10);
        peer.set_read_timeout(SHORT).unwrap();
        assert_eq!(peer.read(&mut [0; 10]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        testing::send(&sender, 10, false).unwrap();
        peer.set_read_timeout(Some(SOON)).unwrap();
        peer.read_exact(&mut [0; 20]).unwrap();
    }

    #[test]
    fn a_send_to_a_full_blocking_socket_does_not_block() {
        let (sender, _peer) = testing::stalled_pair();
        assert!(fill(&sender, true) > 0);
        assert!(!poll(sender.as_fd(), true, Some(Duration::ZERO)).unwrap().writable);
    }

    #[test]
    fn unmapped_memory_is_refused() {
        let (sender, _peer) = testing::zerocopy_pair();
        for zerocopy in [false, true] {
            let range = IoVec::new(std::ptr::without_provenance(4096), 100);
            // SAFETY: a range may be no memory at all: nothing is mapped below 64 KiB.
            let sent =
                unsafe { send(sender.as_fd(), &[range], SendFlags { zerocopy, more: false }) };
            assert_eq!(sent.unwrap_err().raw_os_error(), Some(libc::EFAULT));
        }
        assert_eq!(optmem(sender.as_fd()).unwrap(), 0, "no id was taken");
    }

    #[test]
    fn a_send_to_a_lost_peer_raises_no_signal() {
        static SIGNALS: AtomicU32 = AtomicU32::new(0);
        extern "C" fn count(_signal: c_int) {
            // Ordering::Relaxed: the same thread reads the counter.
            SIGNALS.fetch_add(1, Ordering::Relaxed);
        }
        let handler: extern "C" fn(c_int) = count;
        // SAFETY: signal(2) needs a handler that is safe in a signal: `count` adds to an atomic.
        // The runtime ignored SIGPIPE before; no test needs that state back.
        unsafe { libc::signal(libc::SIGPIPE, handler as libc::sighandler_t) };
        let (sender, peer) = testing::zerocopy_pair();
        prepare(sender.as_fd()).unwrap();
        drop(peer);
        let end = Instant::now() + SOON;
        let error = loop {
            match testing::send(&sender, 100, true) {
                Ok(_) => assert!(Instant::now() < end, "the peer's reset never came"),
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => break error,
                Err(_) => {}
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        // Ordering::Relaxed: a signal of this thread would have come before the call returned.
        assert_eq!(SIGNALS.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn shutdown_ends_the_stream_behind_the_sent_bytes() {
        let (sender, mut peer) = testing::zerocopy_pair();
        testing::send(&sender, 1000, true).unwrap();
        shutdown_write(sender.as_fd()).unwrap();
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, testing::BYTES[..1000]);
        records_until(&sender, |records| !records.is_empty());
    }

    #[test]
    fn abort_releases_the_sends_to_a_stalled_peer() {
        let (sender, mut peer) = testing::stalled_pair();
        let sends = fill(&sender, true);
        let ids = |records: &[Record]| -> u32 {
            let count = |record: &Record| match record {
                Record::Released { lo, hi, .. } => hi - lo + 1,
                Record::Foreign(_) => 0,
            };
            records.iter().map(count).sum()
        };
        assert!(optmem(sender.as_fd()).unwrap() > 0);
        abort(sender.as_fd()).unwrap();
        records_until(&sender, |records| ids(records) == sends);
        assert_eq!(optmem(sender.as_fd()).unwrap(), 0);
        let error = peer.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn only_reset_on_close_makes_a_close_a_reset() {
        for (reset, ended) in [(true, Err(io::ErrorKind::ConnectionReset)), (false, Ok(100))] {
            let (sender, mut peer) = testing::zerocopy_pair();
            reset_on_close(sender.as_fd()).unwrap();
            if !reset {
                linger_off(sender.as_fd()).unwrap();
            }
            testing::send(&sender, 100, false).unwrap();
            drop(sender);
            let end = peer.read_to_end(&mut Vec::new());
            assert_eq!(end.map_err(|error| error.kind()), ended);
        }
    }

    #[test]
    fn poll_tells_the_state_of_the_socket() {
        let (sender, peer) = testing::zerocopy_pair();
        let at_once = Some(Duration::ZERO);
        let writable = Ready { writable: true, ..Ready::default() };
        assert_eq!(poll(sender.as_fd(), true, None).unwrap(), writable);
        assert_eq!(poll(sender.as_fd(), false, at_once).unwrap(), Ready::default());
        testing::send(&sender, 100, true).unwrap();
        let notification = Ready { error: true, ..Ready::default() };
        assert_eq!(poll(sender.as_fd(), false, Some(SOON)).unwrap(), notification);
        reset_on_close(peer.as_fd()).unwrap();
        drop(peer);
        let end = Instant::now() + SOON;
        while !poll(sender.as_fd(), false, at_once).unwrap().hangup {
            assert!(Instant::now() < end, "the peer's reset never came");
        }
    }

    #[test]
    fn poll_times_out_below_a_millisecond() {
        let spec = timespec(Duration::from_micros(3_000_200));
        assert_eq!((spec.tv_sec, spec.tv_nsec), (3, 200_000));
        let (mut sender, _peer) = testing::zerocopy_pair();
        sender.write_all(b"plain writes cause no notification").unwrap();
        let timeout = Duration::from_micros(200);
        let end = Instant::now() + timeout;
        assert_eq!(poll(sender.as_fd(), false, Some(timeout)).unwrap(), Ready::default());
        assert!(Instant::now() >= end);
    }

    #[test]
    fn milliseconds_round_up() {
        for (nanos, ms) in [(0, 0), (1, 1), (1_000_000, 1), (1_000_001, 2)] {
            assert_eq!(timeout_ms(Some(Duration::from_nanos(nanos))), ms);
        }
        assert_eq!(timeout_ms(Some(Duration::MAX)), c_int::MAX);
        assert_eq!(timeout_ms(None), -1);
    }
}
