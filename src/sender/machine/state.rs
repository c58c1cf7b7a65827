//! The state of a sender: plain data, and what it says.

use std::{
    ops::AddAssign,
    time::{Duration, Instant},
};

use super::{
    super::{
        budget::MemlockBudget,
        config::{Config, OnRelease},
        report::{Capabilities, Fate, Returned, SenderStats},
        transport::{CallLimits, Transport},
    },
    call::{Failed, Out, Refused, Retry, Stop},
    cold::{Cold, HandedBack, Progress},
    in_flight::InFlight,
    outbox::{Outbox, Way},
    question::Known,
    quota::KnownPools,
    window::Window,
};
use crate::{
    error::{CopyReason, OsError},
    id::{NotificationId, SenderId, Ticket},
    sync::Arc,
    sys::errno,
};

/// Option memory that the kernel takes for one call until its notification is read, in bytes: on
/// 6.1 and 6.18. On Debian's 6.12 it is 896. Only estimates and a statistic rest on the number.
pub(super) const OPTMEM_PER_CALL: u32 = 832;

/// Zero-copy calls after which the error queue is read at the latest.
const MAX_UNREAD_CALLS: usize = 32;

/// The age of the oldest call in flight at which an empty error queue raises the question whether a
/// notification was lost.
pub(crate) const OVERDUE: Duration = Duration::from_secs(1);

/// The result of one reading of the error queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct Read {
    /// Messages, foreign ones included.
    pub messages: usize,
    /// Ids released.
    pub ids: u64,
    /// The error that forbids reading a notification that is still to come.
    pub refused: Option<OsError>,
    /// The error of a reading that may pass.
    pub(crate) error: Option<OsError>,
}

impl AddAssign for Read {
    fn add_assign(&mut self, more: Self) {
        self.messages += more.messages;
        self.ids += more.ids;
        self.refused = more.refused.or(self.refused);
        self.error = more.error.or(self.error);
    }
}

/// A send of which a part is unsent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    pub(super) ticket: Ticket,
    pub(super) accepted: usize,
}

/// Calls of lone buffers that need not ask, all going the same way.
///
/// A grant is the answer to one question of admission, extended to the calls behind it. A change of
/// anything behind the answer revokes the grant. A release does not, because a release only makes
/// more room.
#[derive(Debug, Default)]
pub(super) struct Grant {
    pub(super) calls: usize,
    /// Largest call, in bytes.
    pub(super) max_bytes: usize,
    /// Number of the only pool with granted buffers; 0 for memory outside pools.
    pub(super) pool: u64,
    pub(super) way: Way,
}

impl Grant {
    /// From here on every call asks.
    #[inline]
    pub(crate) fn revoke(&mut self) {
        self.calls = 0;
    }
}

/// Progress of the end.
///
/// ```text
///   Flushing --all accepted, shutdown--> Draining --all released--> Over
///       |                                |      ^                    ^
///       |                                |      | refused: try again |
///       `------no progress: abort--------`--> Unproven --------------'
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Flushing,
    Draining,
    Unproven { since: Instant, quarantined: bool },
    Over,
}

/// The end of a sender, once begun.
///
/// After the descriptor is closed no proof of release can come, so the descriptor stays open until
/// `Over`.
pub(super) struct Closing {
    pub(super) phase: Phase,
    /// An end without progress is aborted.
    pub(super) lingers: bool,
    /// The last time that a look found more acknowledged than the look before.
    pub(super) progress: Instant,
    pub(super) acknowledged: Progress,
    /// The stream was shut down behind all sent bytes.
    pub(super) orderly: bool,
    /// A second shutdown has asked if the connection is over.
    pub(super) is_confirmed: bool,
    pub(super) aborted: bool,
    /// The reason for an abort that the kernel has refused. A stream's is tried again.
    pub(super) refused: Option<OsError>,
    /// Bytes unacknowledged before the abort.
    pub(super) unacked: Option<usize>,
    /// The reason of an end out of order, without an abort and without an error of the connection.
    pub(super) error: Option<OsError>,
}

/// A sender without its socket.
#[repr(C)]
pub(crate) struct Machine {
    pub(super) out: Out,
    /// A visitor came while a call was out: what it came for is the caller's to do.
    pub(super) again: bool,
    /// Ends of calls may be left.
    pub(crate) leaves: bool,
    /// Every call without copy is timed, for the histogram.
    timed: bool,
    /// So many calls more are told of, because other threads use the sender too.
    pub(super) tells: u16,
    /// The kernel was seen to honour the flag, or is about to be asked.
    pub(super) verified: bool,
    pub(crate) verifies: bool,
    /// Handles of the sender: 1, or 2 while split.
    pub(crate) owners: u8,
    /// The reaper watches the sender. Changed under the lock of `watch` too.
    pub(crate) watched: bool,
    pub(crate) wants_watch: bool,
    pub(super) retry: Retry,
    pub(super) grant: Grant,
    /// Zero-copy calls since the error queue was last read, and after how many it is.
    pub(super) unread: usize,
    pub(super) max_unread: usize,
    /// The reason for an unsent part. Every run tries again.
    pub(crate) blocked: Option<Stop>,
    /// Only calls of the owner forget that its last buffer was refused for room.
    pub(super) refused: Refused,
    /// The first error of a failed or ended connection.
    pub(super) error: Option<OsError>,
    /// The connection was seen to be over, and no call has told why.
    pub(super) is_over: bool,
    pub(super) sending: Option<Sending>,
    pub(crate) known: Known,
    pub(crate) in_flight: InFlight,
    pub(super) window: Window,
    pub(super) limits: CallLimits,
    pub(super) transport: Transport,
    pub(super) id: SenderId,
    pub(super) optmem_max: u32,
    /// The pools that this sender has made itself known to.
    pub(crate) pools: KnownPools,
    /// Threads that wait until a call is over.
    pub(crate) awaiting: u32,
    pub(super) config: Config,
    /// The elements of the send; `None` while a call has them, or before the first.
    pub(super) outbox: Option<Box<Outbox>>,
    pub(super) failed: Option<Failed>,
    pub(super) read: Read,
    pub(super) closing: Option<Box<Closing>>,
    /// An abort that was asked for, and why.
    pub(super) abort: Option<OsError>,
}

impl Machine {
    /// `copy_reason` tells why nothing can go without copy, if so; `first` is the id that the
    /// socket's next zero-copy call takes.
    pub(crate) fn new(
        id: SenderId,
        config: Config,
        transport: Transport,
        copy_reason: Option<CopyReason>,
        budget: Arc<MemlockBudget>,
        optmem_max: u32,
        first: NotificationId,
    ) -> Self {
        let max_unread = ((optmem_max / OPTMEM_PER_CALL / 2) as usize).clamp(1, MAX_UNREAD_CALLS);
        Self {
            out: Out::No,
            again: false,
            leaves: config.max_hold.is_none() && config.on_release == OnRelease::Recycle,
            timed: config.release_times,
            tells: 0,
            verified: false,
            verifies: false,
            owners: 1,
            watched: false,
            wants_watch: false,
            retry: Retry::No,
            grant: Grant::default(),
            unread: 0,
            max_unread,
            blocked: None,
            refused: Refused::No,
            error: None,
            is_over: false,
            sending: None,
            known: Known::default(),
            limits: transport.call_limits(&budget),
            in_flight: InFlight::new(&config, first, copy_reason, budget),
            window: Window::new(config.max_in_flight_bytes, config.max_in_flight_sends),
            transport,
            id,
            optmem_max,
            pools: KnownPools::default(),
            awaiting: 0,
            config,
            outbox: None,
            failed: None,
            read: Read::default(),
            closing: None,
            abort: None,
        }
    }
}

/// The state and results that the sender tells.
impl Machine {
    #[inline(always)]
    pub(crate) fn is_calling(&self) -> bool {
        !matches!(self.out, Out::No)
    }

    /// Returns `true` if every call without copy reads the clock.
    #[inline(always)]
    pub(crate) fn is_timed(&self) -> bool {
        cfg!(feature = "histogram") && self.timed
    }

    /// A thread is about to wait for the end of the call that is out, if there is one.
    pub(crate) fn note_call(&mut self) {
        self.again |= self.is_calling();
    }

    /// Returns `true` if a part of a send is not accepted.
    pub(crate) fn is_unsent(&self) -> bool {
        self.sending.is_some()
    }

    /// Returns `true` if everything is accepted, and no call is out.
    pub(crate) fn is_flushed(&self) -> bool {
        self.sending.is_none() && !self.is_calling()
    }

    /// Returns `true` if everything is accepted and released.
    pub(crate) fn is_drained(&self) -> bool {
        self.is_flushed() && self.in_flight.tracker.outstanding() == 0
    }

    /// The reason for the end of the connection, if it is over.
    #[inline(always)]
    pub(crate) fn connection_error(&self) -> Option<OsError> {
        self.error.or_else(|| self.is_over.then(|| OsError::from_raw(errno::ENOTCONN)))
    }

    pub(crate) fn fate(&self, ticket: Ticket) -> Option<Fate> {
        self.in_flight.fate(ticket, self.sending.is_some())
    }

    /// Returns `true` if the unsent part, or the owner's refused buffer, waits for room in the
    /// socket.
    pub(crate) fn wants_room(&self) -> bool {
        let refused = matches!(self.refused, Refused::ForRoom | Refused::RoomFound);
        refused || self.blocked == Some(Stop::Blocked)
    }

    /// State that few senders have, to be looked at.
    pub(crate) fn cold(&self) -> Option<&Cold> {
        self.in_flight.done.cold.get()
    }

    /// State that few senders have, to be changed if it ever was.
    pub(crate) fn changed_cold(&mut self) -> Option<&mut Cold> {
        self.in_flight.done.cold.get_mut()
    }

    /// State that few senders have, to be changed.
    pub(crate) fn cold_mut(&mut self) -> &mut Cold {
        self.in_flight.done.cold.make()
    }

    /// The next payload handed back.
    pub(crate) fn next_returned(&mut self) -> Option<Returned> {
        let HandedBack { sequence, len, payload } = self.changed_cold()?.returned.pop_front()?;
        Some(Returned { ticket: Ticket::new(self.id, sequence, len), payload })
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let InFlight { route, copy_reason, .. } = &self.in_flight;
        let reason = copy_reason.or(route.is_copied().then_some(CopyReason::Route));
        Capabilities { supported: copy_reason.is_none(), reason }
    }

    pub(crate) fn stats(&self) -> SenderStats {
        let InFlight { tracker, done, route, .. } = &self.in_flight;
        let counts = &done.counts;
        SenderStats {
            zero_copy_calls: counts.zero_copy_calls,
            zero_copy_bytes: counts.zero_copy_bytes,
            copied_calls: counts.copied_calls,
            copied_bytes: counts.copied_bytes,
            notifications: counts.notifications,
            released_calls: counts.released_calls,
            deferred_copies: counts.deferred_copies,
            in_flight_bytes: counts.in_flight_bytes,
            in_flight_calls: tracker.outstanding(),
            leases: tracker.leases(),
            window_sends: self.window.calls(),
            window_bytes: self.window.bytes(),
            route: route.stats(),
            ..done.cold.get().map_or_else(SenderStats::default, |cold| cold.counts)
        }
    }
}

#[cfg(all(test, not(loom), target_pointer_width = "64"))]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// Bench row: `shuffled-32`.
    #[test]
    fn hot_fields_come_first() {
        macro_rules! ends {
            ($($field:ident: $type:ty),+) => {
                [$(offset_of!(Machine, $field) + size_of::<$type>()),+]
            };
        }
        let hot = ends!(
            out: Out, leaves: bool, tells: u16, wants_watch: bool, grant: Grant, unread: usize,
            error: Option<OsError>, sending: Option<Sending>, known: Known
        );
        let in_flight = offset_of!(Machine, in_flight);
        assert!(hot.iter().all(|end| *end <= in_flight && in_flight <= 192), "{hot:?} {in_flight}");
        assert_eq!(offset_of!(InFlight, route), 0);
        assert!(offset_of!(InFlight, tracker) <= 280, "{}", offset_of!(InFlight, tracker));
        let cold = [offset_of!(InFlight, copy_reason), offset_of!(InFlight, ages)];
        assert!(cold.iter().all(|start| *start > offset_of!(InFlight, tracker)), "{cold:?}");
        assert!(offset_of!(Machine, window) > in_flight && offset_of!(Machine, config) > in_flight);
    }
}
