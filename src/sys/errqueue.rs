//! The error queue of a socket: decoding its messages and reading them.
//!
//! Decoding is a pure function over bytes; reading is one `recvmmsg`. They are kept apart so that
//! every form a message can take is tested without a kernel.

use std::{
    cell::Cell,
    fmt, io, mem,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
    time::Duration,
};

use super::{Batch, Foreign, Record, Timestamps};
use crate::error::OsError;

/// `linux/socket.h`; libc lacks all of these.
const SOL_VSOCK: libc::c_int = 287;
/// `linux/vm_sockets.h`
const VSOCK_RECVERR: libc::c_int = 1;
/// `asm-generic/socket.h`: stamps of the word size of the program.
const SCM_TIMESTAMPING_OLD: libc::c_int = 37;
/// `asm-generic/socket.h`: stamps of 64 bits everywhere.
const SCM_TIMESTAMPING_NEW: libc::c_int = 65;
/// `linux/errqueue.h`
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;
/// `linux/errqueue.h`: a flag of `ee_code`.
const SO_EE_CODE_ZEROCOPY_COPIED: u8 = 1;

/// Calls `on_record` for each record in the control data of one message of the error queue.
///
/// Level and type of every control message are checked; unknown ones are passed over, whatever
/// their order. Time stamps belong to the record behind them, which is the order the kernel
/// writes. The walk ends at a header that cannot be right: what lies behind it has no known place.
pub(crate) fn decode(control: &[u8], on_record: &mut dyn FnMut(Record)) {
    let mut timestamps = None;
    let mut rest = control;
    while let Some((message, behind)) = ControlMessage::split(rest) {
        rest = behind;
        match (message.level, message.kind) {
            (libc::SOL_IP, libc::IP_RECVERR)
            | (libc::SOL_IPV6, libc::IPV6_RECVERR)
            | (SOL_VSOCK, VSOCK_RECVERR) => {
                if let Some(record) = parse_record(message.data, timestamps.take()) {
                    on_record(record);
                }
            }
            (libc::SOL_SOCKET, SCM_TIMESTAMPING_OLD | SCM_TIMESTAMPING_NEW) => {
                timestamps = parse_timestamps(message.data);
            }
            _ => {}
        }
    }
}

/// One `struct cmsghdr` and its data. The bytes need no alignment.
struct ControlMessage<'a> {
    level: i32,
    kind: i32,
    data: &'a [u8],
}

impl<'a> ControlMessage<'a> {
    /// `cmsg_len` (a word), `cmsg_level` and `cmsg_type`; a whole number of words, so the data
    /// follow without padding. A test compares this with libc's `CMSG_LEN`.
    const HEADER: usize = size_of::<usize>() + 2 * size_of::<i32>();

    /// Takes one control message off the front of `bytes`, with the padding behind it.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (len, fields) = bytes.split_first_chunk()?;
        let (level, fields) = fields.split_first_chunk()?;
        let (kind, _) = fields.split_first_chunk()?;
        let len = usize::from_ne_bytes(*len);
        let message = Self {
            level: i32::from_ne_bytes(*level),
            kind: i32::from_ne_bytes(*kind),
            data: bytes.get(Self::HEADER..len)?,
        };
        // No overflow: `len` is at most the length of a slice. The padding of the last message
        // may be missing.
        let padded = len.next_multiple_of(size_of::<usize>());
        Some((message, bytes.get(padded..).unwrap_or_default()))
    }
}

/// Reads a `struct sock_extended_err`; the offender's address behind it is of no interest.
fn parse_record(data: &[u8], timestamps: Option<Timestamps>) -> Option<Record> {
    let &[e0, e1, e2, e3, origin, kind, code, _pad, i0, i1, i2, i3, d0, d1, d2, d3] =
        data.first_chunk()?;
    let errno = i32::from_ne_bytes([e0, e1, e2, e3]);
    let info = u32::from_ne_bytes([i0, i1, i2, i3]);
    let data = u32::from_ne_bytes([d0, d1, d2, d3]);
    Some(if origin == SO_EE_ORIGIN_ZEROCOPY && errno == 0 {
        let copied = code & SO_EE_CODE_ZEROCOPY_COPIED != 0;
        Record::Released { lo: info, hi: data, copied }
    } else {
        let error = OsError::from_raw(errno);
        Record::Foreign(Foreign { origin, error, kind, code, info, data, timestamps })
    })
}

/// Reads a `struct scm_timestamping`, whose three stamps are software, unused and hardware, each a
/// pair of seconds and nanoseconds. The size tells numbers of 64 bits from those of 32.
fn parse_timestamps(data: &[u8]) -> Option<Timestamps> {
    let width = match data.len() {
        48 => 8,
        24 => 4,
        _ => return None,
    };
    let stamp = |index: usize| {
        let mut numbers = data.chunks_exact(width).skip(2 * index).map(parse_signed);
        let seconds = u64::try_from(numbers.next()??).ok()?;
        let nanos = u32::try_from(numbers.next()??).ok().filter(|nanos| *nanos < 1_000_000_000)?;
        Some(Duration::new(seconds, nanos)).filter(|stamp| !stamp.is_zero())
    };
    Some(Timestamps { software: stamp(0), hardware: stamp(2) })
}

fn parse_signed(bytes: &[u8]) -> Option<i64> {
    match bytes.len() {
        8 => bytes.try_into().ok().map(i64::from_ne_bytes),
        _ => bytes.try_into().ok().map(i32::from_ne_bytes).map(i64::from),
    }
}

/// Messages asked for in one system call.
const MESSAGES: usize = 32;

/// Room for the control data of one message, in bytes. With every option of the kernel enabled
/// about 416 are used, and a note that does not fit is lost.
const CONTROL_BYTES: usize = 512;

/// Room for one read of an error queue, 18 KiB. It belongs to a thread, not to a socket.
pub(crate) struct Scratch {
    headers: [libc::mmsghdr; MESSAGES],
    control: [Control; MESSAGES],
}

/// Aligned as a `struct cmsghdr` wants to be.
#[repr(align(8))]
struct Control([u8; CONTROL_BYTES]);

impl Scratch {
    fn new() -> Box<Self> {
        // SAFETY: mem::zeroed needs a type for which all zero bytes are a value: `mmsghdr` has
        // only integers and raw pointers.
        let headers = unsafe { mem::zeroed() };
        Box::new(Self { headers, control: [const { Control([0; CONTROL_BYTES]) }; MESSAGES] })
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

/// Lends the calling thread's scratch to `body`.
///
/// A nested call, and a call while the thread's locals are being destroyed, get one of their own.
pub(crate) fn with_scratch<R>(body: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local! {
        static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
    }
    let kept = SCRATCH.try_with(Cell::take).ok().flatten();
    let mut scratch = kept.unwrap_or_else(Scratch::new);
    let result = body(&mut scratch);
    // An error means that the thread is ending, and the scratch with it.
    let _ = SCRATCH.try_with(|cell| cell.set(Some(scratch)));
    result
}

/// Reads up to 32 messages of the error queue in one system call, without blocking.
///
/// An empty queue is no error. Neither is a pending error of the socket, which stays where it is.
/// `on_record` must not panic: the rest of the batch would be lost.
pub(crate) fn recv(
    fd: BorrowedFd<'_>,
    scratch: &mut Scratch,
    on_record: &mut dyn FnMut(Record),
) -> io::Result<Batch> {
    let Scratch { headers, control } = scratch;
    for (header, control) in headers.iter_mut().zip(control.iter_mut()) {
        // The kernel overwrote these with what it used last time.
        header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = CONTROL_BYTES as _;
        header.msg_hdr.msg_flags = 0;
    }
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    let received = super::socket::retry(|| {
        // SAFETY: recvmmsg(2) needs `vlen` headers, each of whose name, iov and control pointers
        // is writable for its length: `headers` has MESSAGES of them, name and iov are null with
        // length 0, control is CONTROL_BYTES of `control`, borrowed mutably over the call and not
        // touched in between. A null timeout is allowed. The fd is open while borrowed.
        let received = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                headers.as_mut_ptr(),
                MESSAGES as libc::c_uint,
                flags as _,
                ptr::null_mut(),
            )
        };
        received as isize
    });
    let messages = match received {
        Ok(messages) => messages,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    let mut truncated = false;
    for (header, control) in headers.iter().zip(control.iter()).take(messages) {
        truncated |= header.msg_hdr.msg_flags & libc::MSG_CTRUNC != 0;
        let used: usize = header.msg_hdr.msg_controllen as _;
        decode(&control.0[..used.min(CONTROL_BYTES)], on_record);
    }
    // recvmmsg(2) ends early only when there is nothing more to read.
    Ok(Batch { messages, truncated, drained: messages < MESSAGES })
}
