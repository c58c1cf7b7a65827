//! The time for which the peer acknowledges nothing while something is held, and its limit.
//!
//! Three things are held: calls in flight, bytes that the socket has accepted and the peer has not
//! acknowledged, and the unsent part of a send. Any acknowledgement of the peer starts the time
//! anew. Only a look reads the clock and asks the socket: with a limit every run of the driver
//! looks, and without one only a question of the owner does.

use std::time::{Duration, Instant};

/// Most time between looks.
const MAX_LOOK: Duration = Duration::from_secs(1);

/// Least time between looks at a sender with a limit, however small that is.
pub(super) const MIN_LOOK: Duration = Duration::from_millis(1);

/// The progress of the peer's acknowledgements, as looks at the socket show it.
///
/// The number compared is the bytes accepted less the bytes unacknowledged. The unacknowledged
/// bytes alone do not tell: they stay the same if the socket takes as much as the peer
/// acknowledges. Bytes that the user writes past the sender shift the number once, and the next
/// look is compared with the shifted one.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Progress {
    acknowledged: i64,
}

impl Progress {
    /// Records a look. Returns `true` if the peer has acknowledged something since the last one.
    pub(super) fn look(&mut self, accepted: u64, unacked: Option<usize>) -> bool {
        let before = self.acknowledged;
        self.acknowledged = accepted as i64 - unacked.unwrap_or(0) as i64;
        self.acknowledged > before
    }
}

/// What the looks at a sender have found.
#[derive(Default, Debug)]
pub(in crate::sender) struct Hold {
    progress: Progress,
    /// The time of the last acknowledgement, or of the beginning of what is held; `None` if nothing
    /// is held.
    since: Option<Instant>,
    /// The same for what the peer has to acknowledge, which is less: an id in flight may be that of
    /// a packet in a queue of this host, which the peer has acknowledged long since.
    awaited_since: Option<Instant>,
    /// Bytes accepted by the last look, and whether they were more than by the one before it.
    accepted: u64,
    was_busy: bool,
    /// How the connection was given up, if it was.
    pub(super) given_up: Option<GivenUp>,
}

/// How a connection was given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct GivenUp {
    /// Bytes unacknowledged before.
    pub(super) unacked: Option<usize>,
    /// The kernel has aborted the connection.
    pub(super) aborted: bool,
}

/// What a look at a sender has to know of it.
#[derive(Clone, Copy)]
pub(super) struct View {
    /// A part of a send is not accepted, and may yet be.
    pub(super) is_unsent: bool,
    /// Calls are in flight, and when the oldest was made at the latest.
    pub(super) is_in_flight: bool,
    pub(super) oldest: Option<Instant>,
    /// Bytes accepted so far, and bytes unacknowledged where that can be told.
    pub(super) accepted: u64,
    pub(super) unacked: Option<usize>,
}

/// What is held.
#[derive(Clone, Copy, Debug)]
pub(in crate::sender) struct Held {
    /// The time since the peer last acknowledged something.
    pub(in crate::sender) age: Duration,
    /// The same, if the peer has something left to acknowledge.
    pub(super) silence: Option<Duration>,
}

impl Hold {
    /// Returns `true` if the kernel has refused the abort of a connection that is given up.
    pub(super) fn is_half_aborted(&self) -> bool {
        self.given_up.is_some_and(|given_up| !given_up.aborted)
    }

    /// Returns `true` if the reaper has to look again though no news may come: the last look found
    /// something held, or bytes were accepted since the look before that. The second condition
    /// keeps a sender of many short messages from being watched anew for each.
    pub(super) fn needs_look(&self, accepted: u64) -> bool {
        self.since.is_some() || self.was_busy || accepted != self.accepted
    }

    /// Looks at what a stream holds, if it holds anything. No call is out, whose bytes would seem to
    /// be acknowledged.
    pub(super) fn look(&mut self, view: View, now: Instant) -> Option<Held> {
        self.was_busy = view.accepted != self.accepted;
        self.accepted = view.accepted;
        let has_progress = self.progress.look(view.accepted, view.unacked);
        if !view.is_unsent && view.unacked.unwrap_or(0) == 0 && !view.is_in_flight {
            (self.since, self.awaited_since) = (None, None);
            return None;
        }
        // What the last look did not find began since, and the peer has acknowledged nothing since.
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
        let silence = if view.unacked != Some(0) {
            Some(age_of(*self.awaited_since.get_or_insert(began)))
        } else {
            self.awaited_since = None;
            None
        };
        Some(Held { age, silence })
    }
}

/// Time until the next look at a sender with this limit.
pub(in crate::sender) fn look_after(limit: Duration) -> Duration {
    (limit / 4).clamp(MIN_LOOK, MAX_LOOK)
}
