//! The time for which the peer acknowledges nothing while something is held, and its limit.
//!
//! Three things are held: calls in flight, bytes that the socket has accepted and the peer has not
//! acknowledged, and the unsent part of a send. Any acknowledgement of the peer starts the time
//! anew. Only a look reads the clock and asks the socket: with a limit every run of the driver
//! looks, and without one only a question of the owner does.

use std::time::{Duration, Instant};

use super::{
    super::telemetry::Event,
    cold::{Cold, GivenUp, look_after},
    question::Question,
    state::Machine,
};
use crate::{error::OsError, sys::errno};

/// The hold on a sender at a look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// The time since the peer last acknowledged something.
    pub(crate) age: Duration,
    /// The same, if the peer has something left to acknowledge.
    silence: Option<Duration>,
}

/// The limit of the peer's silence, and the end of a connection that no call has reported.
impl Machine {
    /// Breaks the connection if something is held and the peer has acknowledged nothing for longer
    /// than the limit.
    ///
    /// The look comes after the error queue is read and the unsent part offered again. The opposite
    /// order would break a healthy connection after the process was stopped for that long.
    pub(super) fn holding(&mut self) -> Result<(), Question> {
        let Some(limit) = self.config.max_hold else { return Ok(()) };
        if self.is_calling() || self.known.has_looked_at_hold {
            return Ok(());
        }
        let now = self.known.time()?;
        if self.transport.has_end() && !self.is_dead() {
            self.known.unacked()?;
        }
        if let Some(Held { age, silence }) = self.held(now, self.known.unacked.flatten()) {
            let is_half_aborted = self.given_up().is_some_and(|given_up| !given_up.aborted);
            if silence > Some(limit) || is_half_aborted {
                if self.may_notice_end() && self.known.is_over.is_none() {
                    return Err(Question::IsOver);
                }
                if self.known.is_over != Some(true) {
                    self.known.has_looked_at_hold = true;
                    return self.give_up();
                }
            }
            if age > limit {
                // No notification comes for an id if another user of the socket has read its
                // notification.
                let optmem = self.known.optmem()?;
                self.prove(optmem);
            }
        }
        self.known.has_looked_at_hold = true;
        Ok(())
    }

    /// Looks at what the sender holds, if anything. For datagrams, the age of the oldest call in
    /// flight. No call is out, because its bytes would seem acknowledged.
    pub(crate) fn held(&mut self, now: Instant, unacked: Option<usize>) -> Option<Held> {
        let oldest = self.in_flight.oldest(now);
        if !self.transport.has_end() {
            return oldest.map(|age| Held { age, silence: None });
        }
        // The socket goes on telling the number from the end of the connection.
        let unacked = if self.is_dead() { Some(0) } else { unacked };
        let is_held = self.is_unsent()
            || unacked.unwrap_or(0) > 0
            || self.in_flight.tracker.outstanding() > 0;
        let accepted = self.in_flight.done.counts.accepted_bytes();
        let hold = &mut self.cold_mut().hold;
        hold.was_busy = accepted != hold.accepted;
        hold.accepted = accepted;
        let has_progress = hold.progress.look(accepted, unacked);
        // Anything held and not found by the last look began since, and the peer has acknowledged
        // nothing since.
        let oldest = oldest.and_then(|age| now.checked_sub(age));
        let is_new = hold.since.is_none() && !has_progress;
        let began = oldest.filter(|_| is_new).unwrap_or(now);
        if has_progress || !is_held {
            (hold.since, hold.awaited_since) = (None, None);
        }
        if !is_held {
            return None;
        }
        let age_of = |since| now.saturating_duration_since(since);
        let age = age_of(*hold.since.get_or_insert(began));
        // An unsent part alone waits for this host: for room in the window.
        let silence =
            (unacked != Some(0)).then(|| age_of(*hold.awaited_since.get_or_insert(began)));
        Some(Held { age, silence })
    }

    fn given_up(&self) -> Option<GivenUp> {
        self.cold()?.hold.given_up
    }

    /// Returns `true` if the kernel sends nothing more. A sender that gave a send up in the middle
    /// is over too, but its socket still sends accepted bytes.
    fn is_dead(&self) -> bool {
        let is_aborted = self.closing.as_ref().is_some_and(|closing| closing.aborted)
            || self.given_up().is_some_and(|given_up| given_up.aborted);
        let has_failed = self.error.is_some_and(|error| errno::ends_connection(error.raw()));
        is_aborted || has_failed || self.is_over
    }

    /// The peer has been silent for too long.
    #[cold]
    fn give_up(&mut self) -> Result<(), Question> {
        let is_under_way = match (&self.closing, self.given_up()) {
            (Some(closing), _) => closing.is_under_way(),
            // A failed abort is tried again.
            (None, Some(given_up)) => !given_up.aborted,
            (None, None) => !self.is_dead(),
        };
        if !is_under_way {
            return Ok(());
        }
        let timed_out = OsError::from_raw(errno::ETIMEDOUT);
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

    /// Time until the next look at the hold, if there is a limit and something may be held: the last
    /// look found something, or bytes were accepted since the look before that. The second condition
    /// keeps a sender of many short messages from being watched anew for each.
    pub(super) fn look_at_hold(&self) -> Option<Duration> {
        let limit = self.config.max_hold?;
        let accepted = self.in_flight.done.counts.accepted_bytes();
        // Without the state no look was ever taken.
        let needs_look = self.cold().is_none_or(|Cold { hold, .. }| {
            hold.since.is_some() || hold.was_busy || accepted != hold.accepted
        });
        let may_hold =
            self.in_flight.tracker.outstanding() > 0 || self.transport.has_end() && needs_look;
        may_hold.then(|| look_after(limit))
    }

    /// Returns `true` if the end of the connection is worth looking for. Once the sender's own end
    /// has begun it is not, because an orderly end ends the connection too. A call that is out
    /// would also tell.
    pub(crate) fn may_notice_end(&self) -> bool {
        self.closing.is_none()
            && self.transport.has_end()
            && !self.is_calling()
            && self.connection_error().is_none()
    }

    /// Returns `true` if news told of a hangup, and the state of the connection was not asked since.
    pub(super) fn hung_up(&self) -> bool {
        self.cold().is_some_and(|cold| cold.hung_up)
    }

    /// Asks whether the connection is over after a hangup. No more news would ask: a call that is out leaves the
    /// question to its own thread, behind the call.
    pub(super) fn hanging_up(&self) -> Result<(), Question> {
        if self.hung_up() && self.may_notice_end() { Err(Question::IsOver) } else { Ok(()) }
    }

    /// The state of the connection: over, or not.
    pub(crate) fn connection_is(&mut self, over: bool) {
        self.known.is_over = Some(over);
        if let Some(cold) = self.changed_cold() {
            cold.hung_up = false;
        }
        if !over {
            return;
        }
        if let Some(failed) = &self.failed {
            return self.ended_by(failed.error);
        }
        self.is_over = true;
        self.in_flight.done.tell(Event::Failed(OsError::from_raw(errno::ENOTCONN)));
    }
}
