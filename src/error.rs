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
//! | [`pacing`](crate::pacing) | [`PacingError`] |
//! | the system | [`OsError`]: an error number that can be copied |
//!
//! A sender has three error types: an error returns the socket or the buffer of the call, if any.
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
//! The library reports and counts, without logs or output.
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

/// Writes the sentence of each variant once: the literal is the doc and the `Display`.
macro_rules! sentences {
    ($(#[$meta:meta])* pub enum $name:ident $(<$item:ident>)? { $(
        $sentence:literal $(#[$more:meta])* $variant:ident
            $(($value:ident: $kind:ty))?
            $({ $($(#[$about:meta])* $field:ident: $ty:ty),+ $(,)? })?,
    )+ }) => {
        $(#[$meta])*
        pub enum $name $(<$item>)? { $(
            #[doc = concat!("“", $sentence, "”.\n")]
            $(#[$more])*
            $variant $(($kind))? $({ $($(#[$about])* $field: $ty),+ })?,
        )+ }

        impl $(<$item>)? fmt::Display for $name $(<$item>)? {
            #[allow(unused_variables, reason = "a sentence need not name all fields")]
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant $(($value))? $({ $($field),+ })? => write!(f, $sentence),)+
                }
            }
        }
    };
}

#[cfg(feature = "rustls")]
pub(crate) use sentences;

/// An error number of the operating system (`errno`), unchanged.
///
/// Unlike [`io::Error`] the number is `Copy`, so one connection error can be the fate of many sends.
/// Converts into [`io::Error`].
///
/// ```
/// let error = pinbuf::error::OsError::from_raw(104);
/// assert_eq!(std::io::Error::from(error).raw_os_error(), Some(104));
/// ```
///
/// With the feature `serde` the number alone is serialized.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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

impl fmt::Debug for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OsError({})", io::Error::from(*self))
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&io::Error::from(*self), f)
    }
}

impl Error for OsError {}

sentences! {
    /// The reason of a failed allocation.
    ///
    /// ```
    /// let pool = pinbuf::Pool::new(4096, 1)?;
    /// let _buf = pool.try_alloc(4096)?;
    /// let error = pool.try_alloc(4096).unwrap_err();
    /// assert!(error.is_backpressure(), "a later try can succeed");
    /// assert!(!pool.try_alloc(4097).unwrap_err().is_backpressure(), "never");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[non_exhaustive]
    pub enum AllocError {
        "no slot of the size class is free; drop or reap buffers, wait with `alloc`, or build a larger pool"
        Exhausted,
        "the requested capacity of {requested} bytes is larger than the pool's largest size class of {largest} bytes; split the buffer or add a class"
        TooLarge {
            /// Requested capacity in bytes.
            requested: usize,
            /// Capacity of the largest size class in bytes.
            largest: usize,
        },
        "no slot became free before the timeout"
        TimedOut,
        "the pool belongs to the parent of this forked process; build a new one here"
        Forked,
    }
}

impl AllocError {
    /// Returns `true` if a later try can succeed.
    pub fn is_backpressure(self) -> bool {
        matches!(self, Self::Exhausted | Self::TimedOut)
    }
}

impl Error for AllocError {}

sentences! {
    /// The reason against a kind of pages for a pool.
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
    #[cfg_attr(feature = "serde", derive(serde::Serialize))]
    #[non_exhaustive]
    pub enum Refusal {
        "the system refused: {error}"
        /// For hugetlb pages ENOMEM means a small reserve: raise `vm.nr_hugepages`.
        Os(error: OsError),
        "the platform does not have such pages"
        Unsupported,
        "the pool is smaller than half a page of this kind"
        /// Require the kind to have it anyway.
        TooSmall,
        "rounded up to whole pages, the pool does not fit the address space"
        AddressSpace,
        "such pages are only taken populated, since a lack would end the process with SIGBUS"
        /// Leave `populate` on to have them.
        Unpopulated,
    }
}

sentences! {
    /// The reason against building a pool.
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
        "the pool has no size class; add one with `class`"
        NoClass,
        "a class of {count} slots of {capacity} bytes has no capacity or no slots; give both at least 1"
        EmptyClass {
            /// Capacity of each slot in bytes.
            capacity: usize,
            /// Number of slots.
            count: usize,
        },
        "two classes have slots of {capacity} bytes; make them one with the sum of their slots"
        DuplicateClass {
            /// The capacity in bytes.
            capacity: usize,
        },
        "a class of {count} slots of {capacity} bytes has more than {most} slots; use larger or fewer slots"
        TooManySlots {
            /// Capacity of each slot in bytes.
            capacity: usize,
            /// Number of slots.
            count: usize,
            /// The largest number of slots in a class.
            most: usize,
        },
        "with {count} slots of {capacity} bytes the pool does not fit the address space; use smaller or fewer slots"
        TooLarge {
            /// Capacity of each slot in bytes.
            capacity: usize,
            /// Number of slots.
            count: usize,
        },
        "{page_bytes} bytes is no huge page size; use a power of two listed in /sys/kernel/mm/hugepages"
        PageSize {
            /// The requested size in bytes.
            page_bytes: usize,
        },
        "the required {pages} are unavailable ({refusal}); provide them, or let the pool choose with `Backing::Prefer`"
        Unavailable {
            /// The required kind.
            pages: Pages,
            /// The reason.
            refusal: Refusal,
        },
        "{bytes} bytes of memory are unavailable ({refusal}); build a smaller pool"
        OutOfMemory {
            /// Length of the pool's memory in bytes.
            bytes: usize,
            /// The reason against base pages, the last resort.
            refusal: Refusal,
        },
        "NUMA node {node} has no memory for the pool ({refusal}); use one listed in /sys/devices/system/node/has_memory"
        NumaNode {
            /// The requested node.
            node: usize,
            /// The reason. EINVAL: no such node, a node without memory, or one forbidden to the
            /// process.
            refusal: Refusal,
        },
        "a quota of no slots would let no sender send; give it at least 1, or none"
        NoQuota,
        "{bytes} bytes cannot be locked ({error}); raise RLIMIT_MEMLOCK, build a smaller pool, or turn `mlock` off"
        Lock {
            /// Length of the memory in bytes.
            bytes: usize,
            /// The error of `mlock`.
            error: OsError,
        },
        "the memory cannot be kept out of core dumps ({error}); turn `dont_dump` off"
        DontDump(error: OsError),
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
    /// The requested range.
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

sentences! {
    /// The reason of a failed send. The buffer comes back unless a part of it was accepted.
    ///
    /// ```
    /// use pinbuf::SendError;
    ///
    /// let error = SendError::WouldBlock("the buffer");
    /// assert!(error.is_backpressure());
    /// assert_eq!(error.into_buf(), Some("the buffer"));
    /// ```
    ///
    /// `Debug` shows the length of the buffer, and not the bytes.
    #[non_exhaustive]
    pub enum SendError<B> {
        "the socket buffer, the window of sends in flight or the pool's quota for a sender is full; wait for room, then send the buffer again"
        /// Waits for room: [`event_fd`](crate::Sender::event_fd) and
        /// [`poll_ready`](crate::Sender::poll_ready).
        WouldBlock(buf: B),
        "no byte of the buffer was accepted before the timeout"
        /// Send the buffer again, or give up the connection. From
        /// [`send_timeout`](crate::Sender::send_timeout).
        TimedOut(buf: B),
        "a part of the buffer was accepted before the timeout; the unsent part stays queued"
        /// [`reap`](crate::Sender::reap) sends the unsent part, and so does every later call. From
        /// [`send_timeout`](crate::Sender::send_timeout).
        Unfinished {
            /// The ticket of the send.
            ticket: Ticket,
        },
        "the connection failed before any byte of the buffer was accepted: {error}"
        /// Open a new connection and send the buffer there.
        Connection {
            /// The first error of the connection.
            error: OsError,
            /// The buffer, untouched.
            buf: B,
        },
        "the kernel cannot read the memory: the mapped file was truncated, or the range is not mapped"
        /// The error number is `EFAULT`. No byte was sent, and the connection is usable.
        BadAddress(buf: B),
        "the connection failed after a part of the buffer was accepted"
        /// The buffer stays with the sender until its release; the ticket's fate tells the accepted
        /// bytes. A blocking send that cannot wait for the unsent part also ends the connection so.
        Truncated {
            /// The ticket of the send.
            ticket: Ticket,
            /// The first error of the connection.
            error: OsError,
        },
        "a queue or a filter of this host dropped the datagram"
        /// The error number is `ENOBUFS` or `EPERM`. The protocol decides about a repetition, as for
        /// a datagram lost on the way.
        Dropped {
            /// The error of the system call.
            error: OsError,
            /// The buffer, untouched.
            buf: B,
        },
        "the system call failed, without consequences for the connection"
        /// On a datagram socket also the error of an earlier datagram, such as `ECONNREFUSED`.
        Os {
            /// The error of the system call.
            error: OsError,
            /// The buffer, untouched.
            buf: B,
        },
        "the datagram breaks a limit: {reason}"
        /// From [`send_to`](crate::Sender::send_to). Nothing was sent, and the sender goes on.
        Invalid {
            /// The limit, and the remedy.
            reason: InvalidDatagram,
            /// The buffer, untouched.
            buf: B,
        },
        "the sender belongs to the parent of this forked process; open a connection here"
        Forked(buf: B),
    }
}

sentences! {
    /// The limit that a [`Datagram`](crate::sender::Datagram) breaks.
    ///
    /// ```
    /// # use std::net::UdpSocket;
    /// use pinbuf::{SendError, Sender, error::InvalidDatagram, sender::Datagram};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut sender = Sender::new(UdpSocket::bind("127.0.0.1:0")?)?;
    /// let train = Datagram::to("127.0.0.1:9".parse()?).segment_size(100);
    /// match sender.send_to(vec![7; 20_000], train) {
    ///     Err(SendError::Invalid { reason, buf }) => {
    ///         assert_eq!(reason, InvalidDatagram::TooManySegments { segments: 200, most: 128 });
    ///         assert_eq!(buf.len(), 20_000);
    ///     }
    ///     other => panic!("{other:?}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[non_exhaustive]
    pub enum InvalidDatagram {
        "the socket is a stream; send with `send`"
        Stream,
        "{len} bytes are more than the {most} that one call can carry; send fewer at once"
        TooLong {
            /// Length of the buffer in bytes.
            len: usize,
            /// The longest payload in bytes.
            most: usize,
        },
        "{segments} segments are more than the {most} that the kernel makes of one call; send fewer bytes at once, or larger segments"
        TooManySegments {
            /// Segments of the train.
            segments: usize,
            /// The kernel's limit.
            most: usize,
        },
        "a segment of {bytes} bytes and its headers are longer than the MTU of the route; with 1,500 bytes, use 1,472 over IPv4 and 1,452 over IPv6"
        SegmentTooLong {
            /// Length of a segment in bytes.
            bytes: usize,
        },
        "a segment of 0 bytes makes no train; name the length of each datagram"
        EmptySegments,
        "destination and source are addresses of different families; give both of one"
        Families,
        "an interface needs a destination or a source address beside it"
        InterfaceAlone,
        "the port of the destination is 0; name the port"
        NoPort,
        "the socket does not allow transmit times; call `pacing::allow_transmit_times` first"
        NoTransmitTimes,
    }
}

impl Error for InvalidDatagram {}

sentences! {
    /// The reason against [pacing](crate::pacing).
    ///
    /// ```
    /// use pinbuf::{error::PacingError, pacing};
    ///
    /// # if cfg!(target_os = "linux") {
    /// let error = pacing::check("127.0.0.1:9".parse().unwrap()).unwrap_err();
    /// assert!(matches!(error, PacingError::Queue { interface, .. } if interface == "lo"));
    /// # }
    /// ```
    #[derive(Clone, PartialEq, Eq, Debug)]
    #[non_exhaustive]
    pub enum PacingError {
        "the queue of {interface} is {queue}, which heeds neither times nor rates; `tc qdisc replace dev {interface} root fq`"
        Queue {
            /// The interface on the route.
            interface: String,
            /// The discipline of its queue.
            queue: String,
        },
        "no interface of this host has a queue that heeds times or rates; `tc qdisc replace dev INTERFACE root fq`"
        NoQueue,
        "the rate of a datagram socket can only be lowered, and is {limit} bytes a second; use a new socket"
        OnlyLower {
            /// The present limit, in bytes a second.
            limit: u64,
        },
        "the system refused: {error}"
        /// `EOPNOTSUPP` off Linux, and for transmit times of a TCP socket.
        Os(error: OsError),
    }
}

impl Error for PacingError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Os(error) => Some(error),
            Self::Queue { .. } | Self::NoQueue | Self::OnlyLower { .. } => None,
        }
    }
}

impl From<PacingError> for io::Error {
    fn from(error: PacingError) -> Self {
        match error {
            PacingError::Os(error) => error.into(),
            _ => Self::new(io::ErrorKind::Unsupported, error),
        }
    }
}

impl<B> SendError<B> {
    /// Returns `true` if a try after a wait can succeed.
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
            Self::Connection { buf, .. }
            | Self::Dropped { buf, .. }
            | Self::Os { buf, .. }
            | Self::Invalid { buf, .. } => Some(buf),
            Self::Truncated { .. } | Self::Unfinished { .. } => None,
        }
    }

    /// Converts the buffer.
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
            Self::Invalid { reason, buf } => SendError::Invalid { reason, buf: form(buf) },
            Self::Forked(buf) => SendError::Forked(form(buf)),
        }
    }
}

/// The buffer of a [`SendError`].
#[doc(hidden)]
pub trait ErrorBuf {
    /// The length in bytes; `None` if the caller has kept the buffers.
    fn len_of(&self) -> Option<usize>;
}

impl ErrorBuf for () {
    fn len_of(&self) -> Option<usize> {
        None
    }
}

impl<B: ErrorBuf> fmt::Debug for SendError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Invalid { reason, buf } = self {
            let mut shown = f.debug_struct("Invalid");
            shown.field("reason", reason);
            buf.len_of().map(|len| shown.field("len", &len));
            return shown.finish();
        }
        let (name, ticket, error, buf) = match self {
            Self::WouldBlock(buf) => ("WouldBlock", None, None, Some(buf)),
            Self::TimedOut(buf) => ("TimedOut", None, None, Some(buf)),
            Self::Unfinished { ticket } => ("Unfinished", Some(ticket), None, None),
            Self::Connection { error, buf } => ("Connection", None, Some(error), Some(buf)),
            Self::BadAddress(buf) => ("BadAddress", None, None, Some(buf)),
            Self::Truncated { ticket, error } => ("Truncated", Some(ticket), Some(error), None),
            Self::Dropped { error, buf } => ("Dropped", None, Some(error), Some(buf)),
            Self::Os { error, buf } => ("Os", None, Some(error), Some(buf)),
            Self::Invalid { buf, .. } => ("Invalid", None, None, Some(buf)),
            Self::Forked(buf) => ("Forked", None, None, Some(buf)),
        };
        let mut shown = f.debug_struct(name);
        ticket.map(|ticket| shown.field("ticket", ticket));
        error.map(|error| shown.field("error", error));
        buf.and_then(B::len_of).map(|len| shown.field("len", &len));
        shown.finish()
    }
}

impl<B: ErrorBuf> Error for SendError<B> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Connection { error, .. }
            | Self::Truncated { error, .. }
            | Self::Dropped { error, .. }
            | Self::Os { error, .. } => Some(error),
            Self::Invalid { reason, .. } => Some(reason),
            Self::WouldBlock(_)
            | Self::TimedOut(_)
            | Self::Unfinished { .. }
            | Self::BadAddress(_)
            | Self::Forked(_) => None,
        }
    }
}

impl<B> From<SendError<B>> for io::Error {
    /// Keeps the error number, if any; drops the buffer. The errors of one kind,
    /// [`TimedOut`](SendError::TimedOut) and [`Unfinished`](SendError::Unfinished), have their
    /// sentences, but only the match of the `SendError` tells a program whether to send again.
    fn from(error: SendError<B>) -> Self {
        let kind = match error {
            SendError::WouldBlock(_) => io::ErrorKind::WouldBlock,
            SendError::TimedOut(_) | SendError::Unfinished { .. } => io::ErrorKind::TimedOut,
            SendError::Forked(_) => io::ErrorKind::PermissionDenied,
            SendError::Invalid { .. } => io::ErrorKind::InvalidInput,
            SendError::BadAddress(_) => return io::Error::from_raw_os_error(EFAULT),
            SendError::Connection { error, .. }
            | SendError::Truncated { error, .. }
            | SendError::Dropped { error, .. }
            | SendError::Os { error, .. } => return error.into(),
        };
        io::Error::new(kind, error.to_string())
    }
}

/// The same on every Unix.
const EFAULT: i32 = 14;

sentences! {
    /// The reason for copies of large sends.
    ///
    /// All reasons but `Route` are permanent.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize))]
    #[non_exhaustive]
    pub enum CopyReason {
        "the policy is `Never`"
        Policy,
        "the kernel refused SO_ZEROCOPY on this socket ({error}); zero copy is supported from Linux 6.1 on, over TCP and UDP"
        Refused(error: OsError),
        "the error queue or the option memory of the socket cannot be read ({error}); allow recvmmsg and getsockopt in the filter for system calls"
        /// Without them (`recvmmsg(2)`, `SO_MEMINFO`) no release can be proven.
        Unprovable(error: OsError),
        "notifications of this kind of socket cannot be told apart exactly; use TCP or UDP"
        UnsupportedSocket,
        "the kernel accepted SO_ZEROCOPY, but ignores MSG_ZEROCOPY"
        Ignored,
        "the kernel copies on this route anyway; the sender looks again from time to time"
        /// Loopback, a virtual Ethernet pair, a network card without scatter-gather, or a packet
        /// capture. Only with policy `Auto`.
        Route,
        "the error queue is no proof of releases: {poison}"
        /// See [`Poison`].
        Poisoned(poison: Poison),
    }
}

sentences! {
    /// The event that made a socket's error queue useless as proof.
    ///
    /// From then on the stream continues by copy and no notification releases a send. Sends in flight are
    /// Quarantined until the socket's option memory reads 0.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize))]
    #[non_exhaustive]
    pub enum Poison {
        "a notification named the ids {lo} to {hi}, which are not in flight: another user sends with MSG_ZEROCOPY on this socket, or has read a notification"
        UnknownIds {
            /// First id of the notification, as the kernel gave it.
            lo: u32,
            /// Last id of the notification, as the kernel gave it.
            hi: u32,
        },
        "a message of the error queue was truncated"
        /// The control data exceeded 512 bytes (`MSG_CTRUNC`).
        Truncated,
        "the error queue cannot be read"
        /// A notification may lie there for ever, or name an id that was issued again.
        Unread,
        "another user read a notification of this sender"
        /// The socket's option memory reads 0 while ids are in flight and no notification is unread.
        NotificationStolen,
    }
}

sentences! {
    /// The reason for a missing fate or release.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[non_exhaustive]
    pub enum WaitError {
        "the wait timed out; sends in flight stay in flight"
        TimedOut,
        "the error queue no longer shows which sends were released, and those in flight are Quarantined"
        /// A longer wait proves nothing. The cause is another user of `MSG_ZEROCOPY` on the socket, or
        /// a truncated message: see [`Poison`].
        Poisoned,
        "the wait itself failed: {error}"
        Os(error: OsError),
        "the sender belongs to the parent of this forked process, and only the parent learns of releases"
        Forked,
        "the ticket belongs to another sender; ask the sender that returned it"
        /// A sender made from the parts of another has new tickets.
        ForeignTicket,
        "no thread or descriptor is available to wake the task; raise RLIMIT_NPROC or RLIMIT_NOFILE, or wait with `wait`"
        NoThread,
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

sentences! {
    /// The reason of a refused socket. The socket comes back.
    #[derive(Debug)]
    #[non_exhaustive]
    pub enum AdoptError<S> {
        "the socket has sends with MSG_ZEROCOPY in flight or unread; use a fresh connection without such users"
        SocketInUse(socket: S),
        "the socket is a listener; take over an accepted connection instead"
        Listener(socket: S),
        "the socket is not connected; connect it first"
        NotConnected(socket: S),
        "zero copy was required and is unavailable: {reason}"
        /// Policy `Prefer` does without.
        ZeroCopyUnavailable {
            /// The reason.
            reason: CopyReason,
            /// The socket.
            socket: S,
        },
        "setting out of range: {setting}"
        InvalidSetting {
            /// The setting and its range.
            setting: &'static str,
            /// The socket.
            socket: S,
        },
        "a system call failed: {error}"
        Os {
            /// The error of the system call.
            error: OsError,
            /// The socket.
            socket: S,
        },
    }
}

impl AdoptError<()> {
    /// The same error, with the socket.
    pub(crate) fn with<S>(self, socket: S) -> AdoptError<S> {
        match self {
            Self::SocketInUse(()) => AdoptError::SocketInUse(socket),
            Self::Listener(()) => AdoptError::Listener(socket),
            Self::NotConnected(()) => AdoptError::NotConnected(socket),
            Self::ZeroCopyUnavailable { reason, .. } => {
                AdoptError::ZeroCopyUnavailable { reason, socket }
            }
            Self::InvalidSetting { setting, .. } => AdoptError::InvalidSetting { setting, socket },
            Self::Os { error, .. } => AdoptError::Os { error, socket },
        }
    }
}

impl<S> AdoptError<S> {
    /// The socket, unchanged.
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
    use crate::id::SenderId;

    #[test]
    fn an_error_shows_the_length_of_its_buffer_and_no_byte() {
        let (error, ticket) = (OsError::from_raw(32), Ticket::new(SenderId::new(1), 2, 3));
        let shown = |error: SendError<Vec<u8>>| format!("{error:?}");
        let buf = || vec![7; 100_000];
        assert_eq!(shown(SendError::WouldBlock(buf())), "WouldBlock { len: 100000 }");
        let connection = SendError::Connection { error, buf: buf() };
        assert_eq!(
            shown(connection),
            "Connection { error: OsError(Broken pipe (os error 32)), len: 100000 }"
        );
        let truncated = shown(SendError::Truncated { ticket, error });
        assert!(truncated.starts_with("Truncated { ticket: Ticket {"), "{truncated}");
        assert_eq!(format!("{:?}", SendError::WouldBlock(())), "WouldBlock");
        let payload = crate::Payload::from(buf());
        assert_eq!(format!("{payload:?}"), "Vec { len: 100000 }");
    }

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
