//! The limit of the peer's silence, and the end of a connection that no call has reported.

use std::time::{Duration, Instant};

use super::{
    Machine,
    hold::{self, GivenUp, Held, View},
    question::Question,
};
use crate::{error::OsError, sys::errno};

impl Machine {
    /// Breaks the connection if something is held and the peer has acknowledged nothing for longer
    /// than the limit. Returns what has to be asked first.
    ///
    /// The look comes after the error queue is read and the unsent part offered again. The opposite
    /// order would break a healthy connection after the process was stopped for that long.
    pub(super) fn holding(&mut self) -> Option<Question> {
        let limit = self.config.max_hold?;
        if self.is_calling() || self.known.has_looked_at_hold {
            return None;
        }
        let Some(now) = self.known.time else { return Some(Question::Time) };
        let acknowledges = self.transport.has_end();
        if acknowledges && !self.is_dead() && self.known.unacked.is_none() {
            return Some(Question::Unacked);
        }
        let held = self.held(now, self.known.unacked.flatten());
        let Some(Held { age, silence }) = held else {
            self.known.has_looked_at_hold = true;
            return None;
        };
        let is_half_aborted = self.cold().is_some_and(|cold| cold.hold.is_half_aborted());
        if silence > Some(limit) || is_half_aborted {
            if self.may_notice_end() && self.known.is_over.is_none() {
                return Some(Question::IsOver);
            }
            if self.known.is_over != Some(true) {
                self.known.has_looked_at_hold = true;
                return self.give_up();
            }
        }
        if age > limit {
            // No notification comes for an id if another user of the socket has read its
            // notification.
            let Some(optmem) = self.known.optmem else { return Some(Question::Optmem) };
            self.prove(optmem);
        }
        self.known.has_looked_at_hold = true;
        None
    }

    /// The hold of the sender, if anything is held. For datagrams, the age of the oldest call in
    /// flight. No call is out.
    pub(in crate::sender) fn held(&mut self, now: Instant, unacked: Option<usize>) -> Option<Held> {
        let oldest = self.in_flight.oldest(now);
        if !self.transport.has_end() {
            return oldest.map(|age| Held { age, silence: None });
        }
        let view = View {
            is_unsent: self.is_unsent(),
            is_in_flight: self.in_flight.tracker.outstanding() > 0,
            oldest: oldest.and_then(|age| now.checked_sub(age)),
            accepted: self.in_flight.done.counts.accepted_bytes(),
            // The socket goes on telling the number from the end of the connection.
            unacked: if self.is_dead() { Some(0) } else { unacked },
        };
        self.cold_mut().hold.look(view, now)
    }

    /// Returns `true` if the kernel sends nothing more. A sender that gave a send up in the middle
    /// is over too, but its socket still sends accepted bytes.
    fn is_dead(&self) -> bool {
        let is_aborted = self.closing.as_ref().is_some_and(|closing| closing.aborted)
            || self.cold().and_then(|cold| cold.hold.given_up).is_some_and(|by| by.aborted);
        let has_failed = self.error.is_some_and(|error| errno::ends_connection(error.raw()));
        is_aborted || has_failed || self.is_over
    }

    /// The peer has been silent for too long.
    #[cold]
    fn give_up(&mut self) -> Option<Question> {
        let timed_out = OsError::from_raw(errno::ETIMEDOUT);
        let given_up = self.cold().and_then(|cold| cold.hold.given_up);
        let is_under_way = match (&self.closing, given_up) {
            (Some(closing), _) => closing.is_under_way(),
            // A failed abort is tried again.
            (None, Some(given_up)) => !given_up.aborted,
            (None, None) => !self.is_dead(),
        };
        if !is_under_way {
            return None;
        }
        self.cut_short(timed_out);
        self.abort = Some(timed_out);
        self.aborting()
    }

    /// The result of an abort before the sender's end has begun.
    pub(super) fn gave_up(&mut self, aborted: bool) {
        let unacked = self.known.unacked.flatten();
        let hold = &mut self.cold_mut().hold;
        let unacked = hold.given_up.map_or(unacked, |before| before.unacked);
        hold.given_up = Some(GivenUp { unacked, aborted });
    }

    /// Time until the next look at the hold, if there is a limit and something may be held.
    pub(super) fn look_at_hold(&self) -> Option<Duration> {
        let limit = self.config.max_hold?;
        let accepted = self.in_flight.done.counts.accepted_bytes();
        let needs_look = match self.cold() {
            Some(cold) => cold.hold.needs_look(accepted),
            None => accepted > 0,
        };
        let may_hold = self.is_unsent()
            || self.in_flight.tracker.outstanding() > 0
            || self.transport.has_end() && needs_look;
        may_hold.then(|| hold::look_after(limit))
    }

    /// Returns `true` if the end of the connection is worth looking for. Once the sender's own end
    /// has begun it is not, because an orderly end ends the connection too. A call that is out
    /// would also tell.
    pub(in crate::sender) fn may_notice_end(&self) -> bool {
        self.closing.is_none()
            && self.transport.has_end()
            && !self.is_calling()
            && self.connection_error().is_none()
    }

    /// The state of the connection: over, or not.
    pub(in crate::sender) fn connection_is(&mut self, over: bool) {
        self.known.is_over = Some(over);
        self.is_over |= over;
        if over {
            self.grant.revoke();
        }
    }
}
