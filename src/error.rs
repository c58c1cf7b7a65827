//! The error types.
//!
//! | from | error |
//! |---|---|
//! | [`Pool::new`](crate::Pool::new), [`PoolBuilder::build`](crate::pool::PoolBuilder::build) | [`BuildError`] |
//! | [`Pool::alloc`](crate::Pool::alloc) and its like | [`AllocError`] |
//! | [`MappedSlice::new`](crate::MappedSlice::new) | [`RangeError`] |
//! | [`Sender::new`](crate::Sender::new), [`SenderBuilder::adopt`](crate::sender::SenderBuilder::adopt) | [`AdoptError`], with the socket |
//! | [`Sender::send`](crate::Sender::send) and its like | [`SendError`], with the buffer if nothing of it was accepted |
//! | [`Sender::wait`](crate::Sender::wait), [`drain`](crate::Sender::drain) and the questions for a fate | [`WaitError`] |
//! | the system | [`OsError`]: an error number that can be copied |
//!
//! A sender has three of them, because each carries back what the call took: the socket, the buffer,
//! or nothing.
//!
//! Each converts into [`io::Error`], so that `?` works in a function that returns [`io::Result`]. An
//! error number of the system is kept. A buffer in the error is dropped, and so recycled; a socket is
//! closed.
//!
//! ```
//! use std::{io, net::TcpStream, time::Duration};
//! use pinbuf::{Pool, Sender};
//!
//! fn greet(socket: TcpStream) -> io::Result<()> {
//!     let pool = Pool::new(4096, 4)?;
//!     let mut sender = Sender::new(socket)?;
//!     let mut buf = pool.alloc(4096)?;
//!     buf.extend_from_slice(b"hello");
//!     let ticket = sender.send(buf)?;
//!     assert!(sender.wait(ticket, Some(Duration::from_secs(10)))?.is_released());
//!     Ok(())
//! }
//! ```
//!
//! The library reports and counts; it never logs or prints.
//!
//! ```
//! use pinbuf::{AllocError, Pool};
//!
//! let pool = Pool::new(4096, 1)?;
//! let _buf = pool.try_alloc(4096)?;
//! assert_eq!(pool.try_alloc(4096).unwrap_err(), AllocError::Exhausted);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{error::Error, fmt, io, ops::Range};

use crate::{backing::Pages, id::Ticket};

/// An error number of the operating system (`errno`), kept as it was.
///
/// Unlike [`io::Error`] it can be copied, so that one connection error can be the fate of many
/// sends. Converts into [`io::Error`].
///
/// ```
/// let error = pinbuf::error::OsError::from_raw(104);
/// assert_eq!(std::io::Error::from(error).raw_os_error(), Some(104));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OsError(i32);

impl OsError {
    /// Wraps an error number as found in `errno`.
    pub const fn from_raw(errno: i32) -> Self {
        Self(errno)
    }

    /// The error number.
    pub fn raw(self) -> i32 {
        self.0
    }

    /// The kind [`io::Error`] gives to this error number.
    pub fn kind(self) -> io::ErrorKind {
        io::Error::from(self).kind()
    }
}

impl From<OsError> for io::Error {
    fn from(error: OsError) -> Self {
        io::Error::from_raw_os_error(error.0)
    }
}

impl From<&io::Error> for OsError {
    /// Keeps the error number; an error without one becomes `EIO`.
    fn from(error: &io::Error) -> Self {
        const EIO: i32 = 5;
        Self(error.raw_os_error().unwrap_or(EIO))
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&io::Error::from(*self), f)
    }
}

impl Error for OsError {}

/// Why no buffer was handed out.
///
/// ```
/// let pool = pinbuf::Pool::new(4096, 1)?;
/// let _buf = pool.try_alloc(4096)?;
/// let error = pool.try_alloc(4096).unwrap_err();
/// assert!(error.is_backpressure(), "later there may be one");
/// assert!(!pool.try_alloc(4097).unwrap_err().is_backpressure(), "never");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AllocError {
    /// No slot of the size class is free; drop or reap buffers, wait with `alloc`, or build a
    /// larger pool.
    Exhausted,
    /// The requested capacity is larger than the pool's largest size class; split the buffer or
    /// add a class.
    TooLarge {
        /// Requested capacity in bytes.
        requested: usize,
        /// Capacity of the largest size class in bytes.
        largest: usize,
    },
    /// No slot became free before the time was up.
    TimedOut,
    /// The pool belongs to the process that this one was forked from; build another one here.
    Forked,
}

impl AllocError {
    /// Whether trying again later can succeed.
    pub fn is_backpressure(self) -> bool {
        matches!(self, Self::Exhausted | Self::TimedOut)
    }
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exhausted => f.write_str(
                "no slot of the size class is free; drop or reap buffers, wait with `alloc`, or \
                 build a larger pool",
            ),
            Self::TooLarge { requested, largest } => write!(
                f,
                "the requested capacity of {requested} bytes is larger than the pool's largest \
                 size class of {largest} bytes; split the buffer or add a class",
            ),
            Self::TimedOut => f.write_str("no slot became free before the time was up"),
            Self::Forked => f.write_str(
                "the pool belongs to the process that this one was forked from; build another one \
                 here",
            ),
        }
    }
}

impl Error for AllocError {}

/// Why a kind of pages was not used for a pool.
///
/// ```
/// use pinbuf::{pool::{Pages, Refusal}, Pool};
///
/// // Far smaller than a huge page.
/// let pool = Pool::new(4096, 1)?;
/// assert!(pool.region().refused.contains(&(Pages::Thp, Refusal::TooSmall)));
/// # Ok::<(), pinbuf::BuildError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// The system refused. For hugetlb pages ENOMEM means that too few are set aside: raise
    /// `vm.nr_hugepages`.
    Os(OsError),
    /// The platform does not have such pages.
    Unsupported,
    /// The pool is smaller than half a page of this kind; require the kind to have it anyway.
    TooSmall,
    /// Rounded up to whole pages, the pool does not fit into the address space.
    AddressSpace,
    /// Such pages are only taken populated, since a lack would end the process with SIGBUS; leave
    /// `populate` on to have them.
    Unpopulated,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Os(error) => fmt::Display::fmt(error, f),
            Self::Unsupported => f.write_str("the platform does not have such pages"),
            Self::TooSmall => f.write_str("the pool is smaller than half a page of this kind"),
            Self::AddressSpace => {
                f.write_str("rounded up to whole pages, the pool does not fit the address space")
            }
            Self::Unpopulated => f.write_str(
                "such pages are only taken populated, since a lack would end the process with \
                 SIGBUS",
            ),
        }
    }
}

/// Why a pool was not built.
///
/// ```
/// use pinbuf::{BuildError, Pool};
///
/// let error = Pool::new(1 << 20, usize::MAX).unwrap_err();
/// assert!(matches!(error, BuildError::TooManySlots { .. }));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// The pool has no size class; add one with `class`.
    NoClass,
    /// A class has no capacity or no slots; give both at least 1.
    EmptyClass {
        /// Capacity of each slot in bytes.
        capacity: usize,
        /// Number of slots.
        count: usize,
    },
    /// Two classes have the same capacity; make them one with the sum of their slots.
    DuplicateClass {
        /// The capacity in bytes.
        capacity: usize,
    },
    /// A class has more slots than an index can name; use larger or fewer slots.
    TooManySlots {
        /// Capacity of each slot in bytes.
        capacity: usize,
        /// Number of slots.
        count: usize,
        /// The most slots a class can have.
        most: usize,
    },
    /// The classes up to this one do not fit the address space; use smaller or fewer slots.
    TooLarge {
        /// Capacity of each slot in bytes.
        capacity: usize,
        /// Number of slots.
        count: usize,
    },
    /// A huge page size has to be a power of two larger than a base page; use a size listed in
    /// `/sys/kernel/mm/hugepages`.
    PageSize {
        /// The size asked for, in bytes.
        page_bytes: usize,
    },
    /// The required kind of pages cannot be had; provide it, or let the pool take what there is
    /// with `Backing::Prefer`.
    Unavailable {
        /// The kind that was required.
        pages: Pages,
        /// Why it cannot be had.
        refusal: Refusal,
    },
    /// The memory cannot be had on any pages; build a smaller pool.
    OutOfMemory {
        /// Length of the pool's memory in bytes.
        bytes: usize,
        /// What base pages, the last resort, were refused for.
        refusal: Refusal,
    },
    /// The NUMA node has no memory for the pool; use one listed in
    /// `/sys/devices/system/node/has_memory`.
    NumaNode {
        /// The node asked for.
        node: usize,
        /// Why it cannot be used. EINVAL: there is no such node, or it has no memory, or the
        /// process may not use it.
        refusal: Refusal,
    },
    /// A quota of no slots would let no sender send; give it at least 1, or none.
    NoQuota,
    /// The memory cannot be locked; raise RLIMIT_MEMLOCK, build a smaller pool, or turn `mlock`
    /// off.
    Lock {
        /// Length of the memory in bytes.
        bytes: usize,
        /// What `mlock` reported.
        error: OsError,
    },
    /// The memory cannot be kept out of core dumps; turn `dont_dump` off.
    DontDump(OsError),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoClass => f.write_str("the pool has no size class; add one with `class`"),
            Self::EmptyClass { capacity, count } => write!(
                f,
                "a class of {count} slots of {capacity} bytes has no capacity or no slots; give \
                 both at least 1",
            ),
            Self::DuplicateClass { capacity } => write!(
                f,
                "two classes have slots of {capacity} bytes; make them one with the sum of their \
                 slots",
            ),
            Self::TooManySlots { capacity, count, most } => write!(
                f,
                "a class of {count} slots of {capacity} bytes has more than {most} slots; use \
                 larger or fewer slots",
            ),
            Self::TooLarge { capacity, count } => write!(
                f,
                "with {count} slots of {capacity} bytes the pool does not fit the address space; \
                 use smaller or fewer slots",
            ),
            Self::PageSize { page_bytes } => write!(
                f,
                "{page_bytes} bytes is no huge page size; use one listed in \
                 /sys/kernel/mm/hugepages",
            ),
            Self::Unavailable { pages, refusal } => write!(
                f,
                "the pool requires {pages}, which cannot be had ({refusal}); provide them, or let \
                 the pool take what there is with `Backing::Prefer`",
            ),
            Self::OutOfMemory { bytes, refusal } => {
                write!(f, "{bytes} bytes of memory cannot be had ({refusal}); build a smaller pool")
            }
            Self::NumaNode { node, refusal } => write!(
                f,
                "NUMA node {node} has no memory for the pool ({refusal}); use one listed in \
                 /sys/devices/system/node/has_memory",
            ),
            Self::NoQuota => f.write_str(
                "a quota of no slots would let no sender send; give it at least 1, or none",
            ),
            Self::Lock { bytes, error } => write!(
                f,
                "{bytes} bytes cannot be locked ({error}); raise RLIMIT_MEMLOCK, build a smaller \
                 pool, or turn `mlock` off",
            ),
            Self::DontDump(error) => write!(
                f,
                "the memory cannot be kept out of core dumps ({error}); turn `dont_dump` off",
            ),
        }
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unavailable { refusal: Refusal::Os(error), .. }
            | Self::OutOfMemory { refusal: Refusal::Os(error), .. }
            | Self::NumaNode { refusal: Refusal::Os(error), .. }
            | Self::Lock { error, .. }
            | Self::DontDump(error) => Some(error),
            _ => None,
        }
    }
}

/// A range does not lie inside its mapping; from [`MappedSlice::new`](crate::MappedSlice::new).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeError {
    /// The range asked for.
    pub range: Range<usize>,
    /// Length of the mapping in bytes.
    pub len: usize,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, len } = self;
        write!(f, "the range {range:?} does not lie inside a mapping of {len} bytes")
    }
}

impl Error for RangeError {}

/// Why a buffer, or the rest of one, was not sent. The buffer comes back where nothing of it was
/// accepted.
///
/// ```
/// use pinbuf::SendError;
///
/// let error = SendError::WouldBlock("the buffer");
/// assert!(error.is_backpressure());
/// assert_eq!(error.into_buf(), Some("the buffer"));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum SendError<B> {
    /// The sender cannot take more now: the socket buffer or the window of sends in flight is
    /// full. Wait for [`interest`](crate::Sender::interest) and send the buffer again.
    WouldBlock(B),
    /// The time was up before anything of the buffer was accepted; send it again, or give the
    /// connection up. From [`send_timeout`](crate::Sender::send_timeout).
    TimedOut(B),
    /// The time was up after a part of the buffer was accepted. The unsent part stays queued in
    /// the sender: [`reap`](crate::Sender::reap) sends it, and so does every later call. From
    /// [`send_timeout`](crate::Sender::send_timeout).
    Unfinished {
        /// The ticket of the send.
        ticket: Ticket,
    },
    /// The connection failed before anything of the buffer was accepted; open a new connection
    /// and send it there.
    Connection {
        /// The first error the connection reported.
        error: OsError,
        /// The buffer, untouched.
        buf: B,
    },
    /// The memory cannot be read by the kernel (`EFAULT`): the file behind the mapping was
    /// truncated, or the range is not mapped. Nothing was sent; the connection is usable.
    BadAddress(B),
    /// The connection failed after a part of the buffer was accepted. The buffer stays with the
    /// sender until the kernel has let go of it; its ticket's fate tells how much was accepted.
    /// A blocking send that cannot wait for the rest to be accepted ends the connection so too.
    Truncated {
        /// The ticket of the send.
        ticket: Ticket,
        /// The first error the connection reported.
        error: OsError,
    },
    /// A queue or a filter of this host dropped the datagram (`ENOBUFS`, `EPERM`); the buffer is
    /// untouched. Whether to send it again is up to the protocol, as with one lost on the way.
    Dropped {
        /// What the system call reported.
        error: OsError,
        /// The buffer, untouched.
        buf: B,
    },
    /// The system call failed in a way that says nothing about the connection; the buffer is
    /// untouched. On a datagram socket also what became of an earlier one, such as `ECONNREFUSED`.
    Os {
        /// What the system call reported.
        error: OsError,
        /// The buffer, untouched.
        buf: B,
    },
    /// The sender belongs to the process that this one was forked from; open a connection here.
    Forked(B),
}

impl<B> SendError<B> {
    /// Whether waiting and trying again can succeed.
    pub fn is_backpressure(&self) -> bool {
        matches!(self, Self::WouldBlock(_) | Self::TimedOut(_))
    }

    /// The buffer, unless a part of it was accepted.
    pub fn into_buf(self) -> Option<B> {
        match self {
            Self::WouldBlock(buf)
            | Self::TimedOut(buf)
            | Self::BadAddress(buf)
            | Self::Forked(buf) => Some(buf),
            Self::Connection { buf, .. } | Self::Dropped { buf, .. } | Self::Os { buf, .. } => {
                Some(buf)
            }
            Self::Truncated { .. } | Self::Unfinished { .. } => None,
        }
    }

    /// The same error around another form of the buffer.
    pub(crate) fn map<C>(self, form: impl FnOnce(B) -> C) -> SendError<C> {
        match self {
            Self::WouldBlock(buf) => SendError::WouldBlock(form(buf)),
            Self::TimedOut(buf) => SendError::TimedOut(form(buf)),
            Self::Unfinished { ticket } => SendError::Unfinished { ticket },
            Self::Connection { error, buf } => SendError::Connection { error, buf: form(buf) },
            Self::BadAddress(buf) => SendError::BadAddress(form(buf)),
            Self::Truncated { ticket, error } => SendError::Truncated { ticket, error },
            Self::Dropped { error, buf } => SendError::Dropped { error, buf: form(buf) },
            Self::Os { error, buf } => SendError::Os { error, buf: form(buf) },
            Self::Forked(buf) => SendError::Forked(form(buf)),
        }
    }
}

impl<B> fmt::Display for SendError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldBlock(_) => f.write_str(
                "the sender cannot take more now: the socket buffer or the window of sends in \
                 flight is full",
            ),
            Self::TimedOut(_) => {
                f.write_str("the time was up before anything of the buffer was accepted")
            }
            Self::Unfinished { ticket } => write!(
                f,
                "the time was up after a part of send {} was accepted; its unsent part stays \
                 queued",
                ticket.sequence()
            ),
            Self::Connection { .. } => {
                f.write_str("the connection failed before anything of the buffer was accepted")
            }
            Self::BadAddress(_) => f.write_str(
                "the memory cannot be read by the kernel: the file behind the mapping was \
                 truncated, or the range is not mapped",
            ),
            Self::Truncated { ticket, .. } => write!(
                f,
                "the connection failed after a part of send {} was accepted",
                ticket.sequence()
            ),
            Self::Dropped { .. } => {
                f.write_str("a queue or a filter of this host dropped the datagram")
            }
            Self::Os { .. } => f.write_str("the system call failed"),
            Self::Forked(_) => f.write_str(
                "the sender belongs to the process that this one was forked from; open a \
                 connection here",
            ),
        }
    }
}

impl<B: fmt::Debug> Error for SendError<B> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Connection { error, .. }
            | Self::Truncated { error, .. }
            | Self::Dropped { error, .. }
            | Self::Os { error, .. } => Some(error),
            Self::WouldBlock(_)
            | Self::TimedOut(_)
            | Self::Unfinished { .. }
            | Self::BadAddress(_)
            | Self::Forked(_) => None,
        }
    }
}

impl<B> From<SendError<B>> for io::Error {
    /// Keeps the error number where there is one; the buffer is dropped.
    fn from(error: SendError<B>) -> Self {
        match error {
            SendError::WouldBlock(_) => io::ErrorKind::WouldBlock.into(),
            SendError::TimedOut(_) | SendError::Unfinished { .. } => io::ErrorKind::TimedOut.into(),
            SendError::BadAddress(_) => io::Error::from_raw_os_error(libc_efault()),
            SendError::Forked(_) => io::ErrorKind::PermissionDenied.into(),
            SendError::Connection { error, .. }
            | SendError::Truncated { error, .. }
            | SendError::Dropped { error, .. }
            | SendError::Os { error, .. } => error.into(),
        }
    }
}

/// `EFAULT` is 14 on every Unix.
const fn libc_efault() -> i32 {
    14
}

/// Why the large sends of a sender go by copy.
///
/// All reasons but `Route` are for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CopyReason {
    /// The policy is `Never`.
    Policy,
    /// The kernel refused `SO_ZEROCOPY` on this socket: an old kernel, a kind of socket that has
    /// no zero copy, or a platform without it.
    Refused(OsError),
    /// The error queue or the option memory of the socket cannot be read (`recvmmsg(2)`,
    /// `SO_MEMINFO`), so that no release could ever be proven: a filter for system calls forbids
    /// it.
    Unprovable(OsError),
    /// The socket is of a kind whose completions cannot be told apart exactly.
    UnsupportedSocket,
    /// The kernel took the option and then ignored the flag.
    Ignored,
    /// The kernel copies on this route anyway (loopback, a virtual Ethernet pair, a network card
    /// without scatter-gather, a packet capture); the sender looks again from time to time. Only
    /// with policy `Auto`.
    Route,
    /// The error queue said something that cannot be about sends of ours; see
    /// [`Poison`].
    Poisoned(Poison),
}

impl fmt::Display for CopyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy => f.write_str("the policy is `Never`"),
            Self::Refused(error) => write!(
                f,
                "the kernel refused SO_ZEROCOPY on this socket ({error}); it needs Linux 4.14 or \
                 newer and a TCP or UDP socket",
            ),
            Self::Unprovable(error) => write!(
                f,
                "the error queue or the option memory of the socket cannot be read ({error}); \
                 allow recvmmsg and getsockopt in the filter for system calls",
            ),
            Self::UnsupportedSocket => f.write_str(
                "the socket is of a kind whose completions cannot be told apart exactly; use TCP or UDP",
            ),
            Self::Ignored => f.write_str("the kernel took the option and then ignored the flag"),
            Self::Route => f.write_str(
                "the kernel copies on this route anyway; the sender looks again from time to time",
            ),
            Self::Poisoned(poison) => fmt::Display::fmt(poison, f),
        }
    }
}

/// What made the error queue of a socket useless as proof.
///
/// From then on the stream goes on by copy and no note releases anything; what was in flight is
/// Quarantined until the socket's option memory reads 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Poison {
    /// A note named ids that are not in flight: somebody else sends with `MSG_ZEROCOPY` on this
    /// socket, or took a note of ours.
    UnknownIds {
        /// First id of the note, as the kernel gave it.
        lo: u32,
        /// Last id of the note, as the kernel gave it.
        hi: u32,
    },
    /// A message of the error queue did not fit into 512 bytes of control room and was cut
    /// (`MSG_CTRUNC`).
    Truncated,
    /// The error queue cannot be read: a note of ours may lie there for ever, or be about an id
    /// that was given out again.
    Unread,
    /// The socket's option memory reads 0 while ids are in flight and no note is unread: a note
    /// of ours was taken by somebody else.
    NoteStolen,
}

impl fmt::Display for Poison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownIds { lo, hi } => write!(
                f,
                "a note named the ids {lo} to {hi}, which are not in flight: somebody else sends \
                 with MSG_ZEROCOPY on this socket",
            ),
            Self::Truncated => f.write_str("a message of the error queue was cut"),
            Self::Unread => f.write_str("the error queue cannot be read"),
            Self::NoteStolen => f.write_str("a note of ours was read by somebody else"),
        }
    }
}

/// Why the fate of a send, or a release, is not told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum WaitError {
    /// The time was up; what is in flight stays in flight.
    TimedOut,
    /// The error queue no longer tells which sends are released (another user of `MSG_ZEROCOPY`
    /// on the socket, or a message that was cut); what was in flight is Quarantined and waiting
    /// longer proves nothing. See [`Poison`].
    Poisoned,
    /// The wait itself failed.
    Os(OsError),
    /// The sender belongs to the process that this one was forked from, and only that one learns of
    /// releases.
    Forked,
    /// The ticket is of another sender, which alone can tell; a sender made from the parts of
    /// another is another one.
    ForeignTicket,
    /// No thread or descriptor can be had to wake the task; raise RLIMIT_NPROC or RLIMIT_NOFILE, or
    /// wait with [`wait`](crate::Sender::wait).
    NoThread,
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("the time was up; what is in flight stays in flight"),
            Self::Poisoned => f.write_str(
                "the error queue no longer tells which sends are released; what was in flight is \
                 Quarantined",
            ),
            Self::Os(_) => f.write_str("the wait itself failed"),
            Self::Forked => f.write_str(
                "the sender belongs to the process that this one was forked from, and only that \
                 one learns of releases",
            ),
            Self::ForeignTicket => f.write_str(
                "the ticket is of another sender, which alone can tell; a sender made from the \
                 parts of another is another one",
            ),
            Self::NoThread => f.write_str(
                "no thread or descriptor can be had to wake the task; raise RLIMIT_NPROC or \
                 RLIMIT_NOFILE, or wait with `wait`",
            ),
        }
    }
}

impl Error for WaitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Os(error) => Some(error),
            Self::TimedOut
            | Self::Poisoned
            | Self::Forked
            | Self::ForeignTicket
            | Self::NoThread => None,
        }
    }
}

/// Why a socket was not taken over. The socket comes back.
#[derive(Debug)]
#[non_exhaustive]
pub enum AdoptError<S> {
    /// The socket has sends with `MSG_ZEROCOPY` in flight or unread; a sender must be its only
    /// such user. Use a fresh connection.
    SocketInUse(S),
    /// The socket is a listener; take over an accepted connection instead.
    Listener(S),
    /// The socket is not connected; connect it first.
    NotConnected(S),
    /// Zero copy was required and cannot be had; see `reason`, or use policy `Prefer`.
    ZeroCopyUnavailable {
        /// Why zero copy cannot be had.
        reason: CopyReason,
        /// The socket.
        socket: S,
    },
    /// A setting is out of its range.
    InvalidSetting {
        /// Which setting, and its range.
        setting: &'static str,
        /// The socket.
        socket: S,
    },
    /// A system call failed.
    Os {
        /// What the system call reported.
        error: OsError,
        /// The socket.
        socket: S,
    },
}

impl<S> AdoptError<S> {
    /// The socket, as it was.
    pub fn into_socket(self) -> S {
        match self {
            Self::SocketInUse(socket)
            | Self::Listener(socket)
            | Self::NotConnected(socket)
            | Self::ZeroCopyUnavailable { socket, .. }
            | Self::InvalidSetting { socket, .. }
            | Self::Os { socket, .. } => socket,
        }
    }
}

impl<S> fmt::Display for AdoptError<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SocketInUse(_) => f.write_str(
                "the socket has sends with MSG_ZEROCOPY in flight or unread; a sender must be its \
                 only such user, use a fresh connection",
            ),
            Self::Listener(_) => {
                f.write_str("the socket is a listener; take over an accepted connection instead")
            }
            Self::NotConnected(_) => f.write_str("the socket is not connected; connect it first"),
            Self::ZeroCopyUnavailable { reason, .. } => {
                write!(f, "zero copy was required and cannot be had: {reason}")
            }
            Self::InvalidSetting { setting, .. } => write!(f, "setting out of range: {setting}"),
            Self::Os { error, .. } => write!(f, "a system call failed: {error}"),
        }
    }
}

impl<S: fmt::Debug> Error for AdoptError<S> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Os { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// The socket is dropped, and so closed.
impl<S> From<AdoptError<S>> for io::Error {
    fn from(error: AdoptError<S>) -> Self {
        let kind = match &error {
            AdoptError::Os { error, .. } => return (*error).into(),
            AdoptError::SocketInUse(_) => io::ErrorKind::ResourceBusy,
            AdoptError::NotConnected(_) => io::ErrorKind::NotConnected,
            AdoptError::ZeroCopyUnavailable { .. } => io::ErrorKind::Unsupported,
            AdoptError::Listener(_) | AdoptError::InvalidSetting { .. } => {
                io::ErrorKind::InvalidInput
            }
        };
        Self::new(kind, error.to_string())
    }
}

impl From<AllocError> for io::Error {
    fn from(error: AllocError) -> Self {
        let kind = match error {
            AllocError::Exhausted => io::ErrorKind::WouldBlock,
            AllocError::TimedOut => io::ErrorKind::TimedOut,
            AllocError::TooLarge { .. } => io::ErrorKind::InvalidInput,
            AllocError::Forked => io::ErrorKind::PermissionDenied,
        };
        Self::new(kind, error)
    }
}

impl From<BuildError> for io::Error {
    fn from(error: BuildError) -> Self {
        let kind = match error {
            BuildError::OutOfMemory { .. } => io::ErrorKind::OutOfMemory,
            BuildError::Unavailable { .. } => io::ErrorKind::Unsupported,
            BuildError::Lock { error, .. } | BuildError::DontDump(error) => error.kind(),
            _ => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

impl From<RangeError> for io::Error {
    fn from(error: RangeError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

impl From<WaitError> for io::Error {
    fn from(error: WaitError) -> Self {
        let kind = match error {
            WaitError::Os(error) => return error.into(),
            WaitError::TimedOut => io::ErrorKind::TimedOut,
            WaitError::Forked => io::ErrorKind::PermissionDenied,
            WaitError::ForeignTicket => io::ErrorKind::InvalidInput,
            WaitError::Poisoned | WaitError::NoThread => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_one_of_io_with_its_number_and_its_words() {
        let exhausted = io::Error::from(AllocError::Exhausted);
        assert_eq!(exhausted.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(exhausted.to_string(), AllocError::Exhausted.to_string());
        assert_eq!(io::Error::from(BuildError::NoClass).kind(), io::ErrorKind::InvalidInput);
        let range = RangeError { range: 0..2, len: 1 };
        assert_eq!(io::Error::from(range).kind(), io::ErrorKind::InvalidInput);
        let number = |error: io::Error| error.raw_os_error();
        assert_eq!(number(WaitError::Os(OsError::from_raw(12)).into()), Some(12));
        assert_eq!(io::Error::from(WaitError::TimedOut).kind(), io::ErrorKind::TimedOut);
        let (error, socket) = (OsError::from_raw(9), ());
        assert_eq!(number(AdoptError::Os { error, socket }.into()), Some(9));
        let kind = io::Error::from(AdoptError::NotConnected(())).kind();
        assert_eq!(kind, io::ErrorKind::NotConnected);
    }
}
