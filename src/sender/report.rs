//! What a sender tells of itself: plain public data.

use crate::{
    error::{CopyReason, OsError},
    lease::Payload,
    sys::errno,
};

/// What became of a send.
///
/// *Accepted* means that the kernel took the bytes into the socket; *released*, that it will
/// never read the memory again. Neither says that the peer received anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fate {
    /// All bytes were accepted, and the kernel has released the memory.
    Released {
        /// Bytes accepted: the length of the send.
        accepted: usize,
        /// Whether a part of it went by copy, by the sender's choice or as the kernel's deferred
        /// copy. The kernel flags whole groups of sends by their first member, so this is a
        /// statistic. `None` for a send that resolved more than 4000 sends ago.
        copied: Option<bool>,
    },
    /// The connection failed, or was ended, after a part of the bytes was accepted; the kernel has
    /// released the memory.
    Truncated {
        /// Bytes accepted.
        accepted: usize,
        /// Bytes that were to be sent.
        len: usize,
        /// What ended it.
        error: OsError,
    },
    /// The kernel may still read the memory, and no note can prove otherwise any more. The memory
    /// stays untouched. Becomes one of the other fates if proof comes late.
    Quarantined,
}

/// Whether sends can go without copy, and if not, why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Capabilities {
    /// Whether large sends can go without copy: `false` if something stands in the way for good.
    /// Stays `true` while [`Policy::Auto`](crate::Policy::Auto) copies because of the route.
    pub zero_copy: bool,
    /// Why large sends go by copy now: for good, or because of the route
    /// ([`CopyReason::Route`]). `None` while they go without, or `Auto` is still trying.
    pub reason: Option<CopyReason>,
}

/// Counters of one sender since it was made, and its state now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct SenderStats {
    /// Calls that the kernel accepted with `MSG_ZEROCOPY`.
    pub zero_copy_calls: u64,
    /// Bytes of these.
    pub zero_copy_bytes: u64,
    /// Calls by copy.
    pub copied_calls: u64,
    /// Bytes of these.
    pub copied_bytes: u64,
    /// Notes read from the error queue.
    pub notes: u64,
    /// Zero-copy calls released.
    pub released_calls: u64,
    /// Those of them whose note said that the kernel copied after all. The kernel flags a group
    /// of calls by its first member, so this is a statistic.
    pub deferred_copies: u64,
    /// Times the kernel refused a zero-copy call for option memory (`net.core.optmem_max`).
    pub no_bufs_optmem: u64,
    /// Times the kernel refused a zero-copy call for locked memory (`RLIMIT_MEMLOCK`).
    pub no_bufs_memlock: u64,
    /// Datagrams dropped on this host ([`SendError::Dropped`](crate::SendError::Dropped)).
    pub dropped_sends: u64,
    /// Sends cut short by the end of the connection.
    pub truncated_sends: u64,
    /// Foreign messages of the error queue that nobody fetched with
    /// [`next_event`](crate::Sender::next_event) in time.
    pub events_dropped: u64,
    /// Zero-copy calls now in flight.
    pub in_flight_calls: usize,
    /// Bytes offered to these calls.
    pub in_flight_bytes: usize,
    /// Payloads now in the sender's custody.
    pub leases: usize,
    /// What the route does, and what the sender made of it.
    pub route: RouteStats,
    /// Zero-copy calls that may now be in flight at once.
    pub window_sends: usize,
    /// Bytes that may now be in flight at once.
    pub window_bytes: usize,
}

/// What one [`reap`](crate::Sender::reap) read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Reaped {
    /// Messages read from the error queue, foreign ones included.
    pub messages: usize,
    /// Zero-copy calls released.
    pub calls: u64,
}

/// A payload handed back.
#[derive(Debug)]
#[non_exhaustive]
pub struct Returned {
    /// [`Ticket::sequence`](crate::Ticket::sequence) of the send it was part of. The send's fate is known once all its
    /// payloads are back.
    pub sequence: u64,
    /// The payload; nobody reads it any more.
    pub payload: Payload,
}

/// How large sends go on the present route.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum RouteMode {
    /// Without copy wherever the kernel accepts it: the policy is not `Auto`.
    #[default]
    Ignored,
    /// By copy, but for single calls that find out what the route does. The mode of a sender that
    /// has not sent much.
    Trying,
    /// Without copy: the kernel does not copy on this route.
    ZeroCopy,
    /// By copy: the kernel copies on this route anyway. Single calls see whether that has changed,
    /// at ever longer intervals.
    Copied,
}

/// What [`Policy::Auto`](crate::Policy::Auto) found out about the route, and what it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct RouteStats {
    /// How large sends go now.
    pub mode: RouteMode,
    /// Zero-copy calls made to find out what the route does.
    pub probes: u64,
    /// Times that zero copy was given up because the kernel copied.
    pub leaves: u64,
    /// Times that it was taken up again.
    pub returns: u64,
}

/// How a sender ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct CloseReport {
    /// Whether everything was accepted, the stream ended in order (datagrams have no end), and
    /// every buffer released.
    ///
    /// What went by copy may still be on its way then: `unacked_bytes` tells. The kernel goes on
    /// sending it, unless received data was not read: then the close of the descriptor resets the
    /// peer, as with any TCP socket. So read what the peer sends up to its end before the close.
    pub drained: bool,
    /// Whether the connection was aborted: the peer saw a reset.
    pub aborted: bool,
    /// Bytes that the kernel had accepted and the peer had not acknowledged, at the end or before
    /// an abort; where that can be told.
    pub unacked_bytes: Option<usize>,
    /// Payloads whose release is not proven: packets that carry them wait in a queue below TCP.
    /// They stay untouched in the reaper's care until the proof comes.
    pub quarantined: usize,
    /// Why the end was not in order, if no abort was the cause. Either this or `aborted` is set
    /// wherever `drained` is `false`.
    ///
    /// | error | meaning |
    /// |---|---|
    /// | `ENOTCONN` | the connection was over before the end was: reset by the peer, or given up |
    /// | `ETIMEDOUT`, `ECANCELED` | `close` came to its deadline, or `abort` was called, on a socket that cannot be aborted, such as one for datagrams |
    /// | `EPERM` | the sender is that of a parent process |
    /// | another | the error of the system call that failed |
    pub error: Option<OsError>,
}

impl CloseReport {
    /// In a forked child nothing is ended.
    pub(super) fn of_forked() -> Self {
        Self {
            drained: false,
            aborted: false,
            unacked_bytes: None,
            quarantined: 0,
            error: Some(OsError::from_raw(errno::EPERM)),
        }
    }
}
