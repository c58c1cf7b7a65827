//! State that most senders never need: its memory is allocated with its first change, so that an
//! idle sender stays small.

use std::{
    collections::VecDeque,
    task::Waker,
    time::{Duration, Instant},
};

use super::super::{kernel::Edges, report::SenderStats, telemetry::Untold};
use crate::{id::Ticket, lease::Payload, sync::Arc, sys::ErrorQueueEvent};

/// Most time between looks.
const MAX_LOOK: Duration = Duration::from_secs(1);

/// Least time between looks at a sender with a limit, even a small one.
pub(super) const MIN_LOOK: Duration = Duration::from_millis(1);

/// Foreign messages of the error queue kept for the caller.
const MAX_EVENTS: usize = 64;

/// A value in a box that the first change makes.
pub(super) struct Lazy<T>(Option<Box<T>>);

impl<T> Default for Lazy<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Default> Lazy<T> {
    /// The value, if it was ever changed.
    #[inline]
    pub(super) fn get(&self) -> Option<&T> {
        self.0.as_deref()
    }

    /// The value, to be changed, if it ever was.
    #[inline]
    pub(super) fn get_mut(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }

    /// The value, to be changed.
    #[inline]
    pub(super) fn make(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

/// The event that a task waits for. A sender keeps one waker for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Awaited {
    /// The owner's refused buffer may be let in now.
    Admission,
    /// Nothing is unsent.
    Acceptance,
    /// The send has its fate.
    Fate(Ticket),
    /// A read of the socket would not wait.
    Data,
    /// Everything is released, and dropped.
    Releases,
    /// The sender's end is over.
    End,
}

/// A payload for a caller with [`OnRelease::Return`](crate::sender::OnRelease::Return), and the
/// sequence number and length of its send.
pub(crate) struct HandedBack {
    pub(crate) sequence: u64,
    pub(crate) len: usize,
    pub(crate) payload: Payload,
}

/// State that few senders have.
#[derive(Default)]
pub(crate) struct Cold {
    /// Payloads for a caller with [`OnRelease::Return`](crate::sender::OnRelease::Return).
    pub(crate) returned: VecDeque<HandedBack>,
    /// The vectored sends among those, in order: sequence number and length.
    pub(super) vectored: VecDeque<(u64, usize)>,
    /// Tasks waiting for this sender.
    pub(super) wakers: Vec<(Awaited, Waker)>,
    /// Tasks waiting for a slot in vain, to be woken once no lock is held.
    pub(crate) hopeless: Vec<Waker>,
    /// Events to be told once no lock is held.
    pub(crate) untold: Untold,
    /// Data to read is asked for, and has come since a task was told last.
    pub(super) asks_for_data: bool,
    pub(super) has_data: bool,
    /// News told of a hangup, and the state of the connection was not asked since.
    pub(super) hung_up: bool,
    pub(crate) events: VecDeque<ErrorQueueEvent>,
    /// Changes for which a task or a thread may wait, since the first wait.
    pub(super) changes: u64,
    /// Threads that sleep until the next change, or are about to.
    pub(super) asleep: Vec<Arc<dyn Edges>>,
    /// The descriptors of a finished wait, for the next wait. A busy sender would spend the calls
    /// to make them on every buffer.
    pub(crate) spare_edges: Option<Arc<dyn Edges>>,
    pub(crate) hold: Hold,
    /// The counters that few senders have. Those of every sender are in `Counts`.
    pub(crate) counts: SenderStats,
}

impl Cold {
    /// Keeps a foreign message for the caller; drops the oldest one if there are too many.
    pub(super) fn keep_event(&mut self, event: ErrorQueueEvent) {
        self.counts.drops.count_message(&event);
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
            self.counts.events_dropped += 1;
        }
        self.events.push_back(event);
    }
}

/// The progress of the peer's acknowledgements, according to looks at the socket.
///
/// The compared number is the bytes accepted less the bytes unacknowledged. Unacknowledged bytes
/// alone do not tell: the number stands still if the socket takes as much as the peer acknowledges.
/// Bytes that the user writes past the sender shift the number once, and the next look compares
/// with the shifted number.
#[derive(Default, Debug)]
pub(super) struct Progress {
    acknowledged: i64,
}

impl Progress {
    /// Records a look. Returns `true` if the peer has acknowledged something since the last look.
    pub(super) fn look(&mut self, accepted: u64, unacked: Option<usize>) -> bool {
        let before = self.acknowledged;
        self.acknowledged = accepted as i64 - unacked.unwrap_or(0) as i64;
        self.acknowledged > before
    }
}

/// The findings of the looks at a sender.
#[derive(Default, Debug)]
pub(crate) struct Hold {
    pub(super) progress: Progress,
    /// The time of the last acknowledgement, or of the beginning of the hold; `None` if nothing is
    /// held.
    pub(super) since: Option<Instant>,
    /// The same for bytes that the peer has to acknowledge. An id in flight may belong to a packet
    /// in a queue of this host, long since acknowledged by the peer.
    pub(super) awaited_since: Option<Instant>,
    /// Bytes accepted by the last look, and `true` if they were more than by the look before.
    pub(super) accepted: u64,
    pub(super) was_busy: bool,
    /// The way in which the connection was given up, if it was.
    pub(super) given_up: Option<GivenUp>,
}

/// The circumstances in which a connection was given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct GivenUp {
    /// Bytes unacknowledged before.
    pub(super) unacked: Option<usize>,
    /// The kernel has aborted the connection.
    pub(super) aborted: bool,
}

/// Time until the next look at a sender with this limit.
pub(crate) fn look_after(limit: Duration) -> Duration {
    (limit / 4).clamp(MIN_LOOK, MAX_LOOK)
}
