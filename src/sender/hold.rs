//! The time for which the peer acknowledges nothing while something is held, and its limit.
//!
//! Three things are held: calls in flight, bytes that the socket has accepted and the peer has not
//! acknowledged, and the unsent part of a send. Any acknowledgement of the peer starts the time
//! anew. The clock is read and the socket asked only by a look: with a limit every step looks, and
//! without one only [`Core::oldest`] does.

use std::time::{Duration, Instant};

use super::{
    core::Core,
    in_flight::{InFlight, OVERDUE},
    kernel::Kernel,
};
use crate::{error::OsError, lock::lock, sync::Arc, sys::errno};

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
#[derive(Debug)]
pub(super) struct Hold {
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

/// What is held.
struct Held {
    /// The time since the peer last acknowledged something.
    age: Duration,
    /// The same, if the peer has something left to acknowledge.
    silence: Option<Duration>,
}

impl Hold {
    pub(super) const NONE: Self = Self {
        progress: Progress { acknowledged: 0 },
        since: None,
        awaited_since: None,
        accepted: 0,
        was_busy: false,
        given_up: None,
    };

    /// Returns `true` if the kernel has refused the abort of a connection that is given up.
    fn is_half_aborted(&self) -> bool {
        self.given_up.is_some_and(|given_up| !given_up.aborted)
    }

    /// Returns `true` if the reaper has to look again though no news may come: the last look found
    /// something held, or bytes were accepted since the look before that. The second condition
    /// keeps a sender of many short messages from being watched anew for each.
    pub(super) fn needs_look(&self, accepted: u64) -> bool {
        self.since.is_some() || self.was_busy || accepted != self.accepted
    }
}

impl Default for Hold {
    fn default() -> Self {
        Self::NONE
    }
}

/// Time until the next look at a sender with this limit.
pub(super) fn look_after(limit: Duration) -> Duration {
    (limit / 4).clamp(MIN_LOOK, OVERDUE)
}

impl<K: Kernel> Core<K> {
    /// How long the peer has acknowledged nothing while something is held. Of datagrams, the age of
    /// the oldest call in flight.
    pub fn oldest(&self) -> Option<Duration> {
        if self.is_forked() {
            return None;
        }
        match self.kernel.transport().has_end() {
            true => self.look().map(|held| held.age),
            false => self.in_flight().oldest(self.kernel.now()),
        }
    }

    /// Looks at what a stream holds, if it holds anything.
    fn look(&self) -> Option<Held> {
        // With this lock no call is out, whose bytes would seem to be acknowledged.
        let send = lock(&self.send);
        let is_over = send.calls.connection_error().is_some();
        let is_unsent = !is_over && !send.outbox.is_empty();
        // The socket goes on telling what it had when the connection ended.
        let unacked = if is_over { Some(0) } else { self.kernel.unacked().ok() };
        let now = self.kernel.now();
        let mut in_flight = self.in_flight();
        let InFlight { tracker, done, .. } = &mut *in_flight;
        let accepted = done.stats.accepted_bytes();
        let hold = &mut done.extras.hold;
        hold.was_busy = accepted != hold.accepted;
        hold.accepted = accepted;
        let has_progress = hold.progress.look(accepted, unacked);
        if !is_unsent && unacked.unwrap_or(0) == 0 && tracker.outstanding() == 0 {
            (hold.since, hold.awaited_since) = (None, None);
            return None;
        }
        // What the last look did not find began since, and the peer has acknowledged nothing since.
        let began = match hold.since {
            None if !has_progress => in_flight.oldest_issued().unwrap_or(now),
            _ => now,
        };
        let hold = &mut in_flight.done.extras.hold;
        if has_progress {
            (hold.since, hold.awaited_since) = (None, None);
        }
        let since = *hold.since.get_or_insert(began);
        let age_of = |since| now.saturating_duration_since(since);
        let silence = match is_unsent || unacked != Some(0) {
            true => Some(age_of(*hold.awaited_since.get_or_insert(began))),
            false => {
                hold.awaited_since = None;
                None
            }
        };
        Some(Held { age: age_of(since), silence })
    }

    /// Aborts the connection if something is held and the peer has acknowledged nothing for longer
    /// than the limit.
    ///
    /// Called after the error queue is read and the unsent part offered again. The opposite order
    /// would abort a healthy connection after the process was stopped for that long.
    pub(super) fn check_hold(&self) {
        let Some(limit) = self.config.max_hold else { return };
        if self.is_forked() {
            return;
        }
        let held = match self.kernel.transport().has_end() {
            true => self.look(),
            false => self.oldest().map(|age| Held { age, silence: None }),
        };
        let Some(Held { age, silence }) = held else { return };
        let is_half_aborted = self.in_flight().done.extras.hold.is_half_aborted();
        if (silence > Some(limit) || is_half_aborted) && !self.notice_end(true) {
            self.abort_held();
        }
        if age > limit {
            // No notification comes for an id whose notification another user of the socket has
            // read.
            self.in_flight().prove(&self.kernel);
        }
    }

    /// Aborts the connection: the peer has been silent for too long.
    #[cold]
    fn abort_held(&self) {
        let mut ending = lock(&self.ending);
        let timed_out = OsError::from_raw(errno::ETIMEDOUT);
        if let Some(ending) = &mut *ending {
            if ending.is_under_way() {
                self.cut_short(timed_out);
                self.abort_now(ending, errno::ETIMEDOUT);
            }
            return;
        }
        let before = self.in_flight().done.extras.hold.given_up;
        let unacked = match before {
            // An abort that failed is tried again.
            Some(GivenUp { unacked, aborted: false }) => unacked,
            None if self.connection_error().is_none() => self.kernel.unacked().ok(),
            _ => return,
        };
        self.cut_short(timed_out);
        let aborted = self.kernel.abort().is_ok();
        self.in_flight().done.extras.hold.given_up = Some(GivenUp { unacked, aborted });
    }

    /// Has the sender watched if what it has sent may be held for a limited time.
    #[inline]
    pub(super) fn watch_hold(self: &Arc<Self>) {
        if self.config.max_hold.is_some() && self.kernel.transport().has_end() {
            self.look_after(false);
        }
    }
}
