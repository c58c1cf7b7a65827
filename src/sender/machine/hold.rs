//! The time for which the peer acknowledges nothing while something is held, and its limit.
//!
//! Three things are held: calls in flight, bytes that the socket has accepted and the peer has not
//! acknowledged, and the unsent part of a send. Any acknowledgement of the peer starts the time
//! anew. Only a look reads the clock and asks the socket: with a limit every run of the driver
//! looks, and without one only a question of the owner does.

use std::time::{Duration, Instant};

/// Most time between looks.
const MAX_LOOK: Duration = Duration::from_secs(1);

/// Least time between looks at a sender with a limit, even a small one.
pub(super) const MIN_LOOK: Duration = Duration::from_millis(1);

/// The progress of the peer's acknowledgements, according to looks at the socket.
///
/// The compared number is the bytes accepted less the bytes unacknowledged. Unacknowledged bytes
/// alone do not tell: the number stands still if the socket takes as much as the peer acknowledges.
/// Bytes that the user writes past the sender shift the number once, and the next look compares
/// with the shifted number.
#[derive(Clone, Copy, Default, Debug)]
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
pub(in crate::sender) struct Hold {
    progress: Progress,
    /// The time of the last acknowledgement, or of the beginning of the hold; `None` if nothing is
    /// held.
    since: Option<Instant>,
    /// The same for bytes that the peer has to acknowledge. An id in flight may belong to a packet
    /// in a queue of this host, long since acknowledged by the peer.
    awaited_since: Option<Instant>,
    /// Bytes accepted by the last look, and `true` if they were more than by the look before.
    accepted: u64,
    was_busy: bool,
    /// How the connection was given up, if it was.
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

/// The sender's state as a look needs it.
#[derive(Clone, Copy)]
pub(super) struct View {
    /// A part of a send is not accepted, and may yet be.
    pub(super) is_unsent: bool,
    /// Calls are in flight, and when the oldest was made at the latest.
    pub(super) is_in_flight: bool,
    pub(super) oldest: Option<Instant>,
    /// Bytes accepted so far, and bytes unacknowledged where the system can tell.
    pub(super) accepted: u64,
    pub(super) unacked: Option<usize>,
}

/// The hold on a sender at a look.
#[derive(Clone, Copy, Debug)]
pub(in crate::sender) struct Held {
    /// The time since the peer last acknowledged something.
    pub(in crate::sender) age: Duration,
    /// The same, if the peer has something left to acknowledge.
    pub(super) silence: Option<Duration>,
}

impl Hold {
    /// Returns `true` if the kernel has refused the abort of a given-up connection.
    pub(super) fn is_half_aborted(&self) -> bool {
        self.given_up.is_some_and(|given_up| !given_up.aborted)
    }

    /// Returns `true` if the reaper has to look again though no news may come: the last look found
    /// something held, or bytes were accepted since the look before that. The second condition
    /// keeps a sender of many short messages from being watched anew for each.
    pub(super) fn needs_look(&self, accepted: u64) -> bool {
        self.since.is_some() || self.was_busy || accepted != self.accepted
    }

    /// Looks at what a stream holds, if anything. No call is out, because its bytes would seem
    /// acknowledged.
    pub(super) fn look(&mut self, view: View, now: Instant) -> Option<Held> {
        self.was_busy = view.accepted != self.accepted;
        self.accepted = view.accepted;
        let has_progress = self.progress.look(view.accepted, view.unacked);
        if !view.is_unsent && view.unacked.unwrap_or(0) == 0 && !view.is_in_flight {
            (self.since, self.awaited_since) = (None, None);
            return None;
        }
        // Anything held and not found by the last look began since, and the peer has acknowledged
        // nothing since.
        let began = match self.since {
            None if !has_progress => view.oldest.unwrap_or(now),
            _ => now,
        };
        if has_progress {
            (self.since, self.awaited_since) = (None, None);
        }
        let age_of = |since| now.saturating_duration_since(since);
        let age = age_of(*self.since.get_or_insert(began));
        // An unsent part alone waits for this host: for room in the window.
        let silence =
            (view.unacked != Some(0)).then(|| age_of(*self.awaited_since.get_or_insert(began)));
        Some(Held { age, silence })
    }
}

/// Time until the next look at a sender with this limit.
pub(in crate::sender) fn look_after(limit: Duration) -> Duration {
    (limit / 4).clamp(MIN_LOOK, MAX_LOOK)
}
