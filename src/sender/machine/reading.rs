//! Conclusions about the calls in flight from the error queue and the option memory.

use super::{
    in_flight::InFlight,
    question::Question,
    state::{Machine, OVERDUE},
};
use crate::{
    error::{CopyReason, OsError, Poison},
    sys::{Record, errno},
    tracker::Released,
};

impl Machine {
    /// The next question of a reading: the queue, then, after a long time without releases, the
    /// option memory.
    pub(super) fn reading(&mut self) -> Result<(), Question> {
        if !self.known.has_read {
            return Err(Question::Queue);
        }
        if self.in_flight.tracker.outstanding() == 0 || self.known.read_failed {
            return Ok(());
        }
        let age = self.in_flight.oldest(self.known.time()?);
        let is_overdue = self.known.freed == 0 && age >= Some(OVERDUE);
        let asks = is_overdue || self.known.wants_proof || self.in_flight.poisoned().is_some();
        if asks && !self.is_calling() {
            let optmem = self.known.optmem()?;
            self.prove(optmem);
        }
        Ok(())
    }

    /// Handles one record of the error queue.
    pub(crate) fn record(&mut self, record: Record) {
        let (lo, hi, copied) = match record {
            Record::Released { lo, hi, copied } => (lo, hi, copied),
            Record::Foreign(event) => return self.cold_mut().keep_event(event),
        };
        self.in_flight.done.counts.notifications += 1;
        if self.in_flight.poisoned().is_some() {
            return;
        }
        let InFlight { tracker, done, route, .. } = &mut self.in_flight;
        let Ok(Released { ids, bytes }) = tracker.release(lo, hi, done.on_released(copied)) else {
            return self.poison(Poison::UnknownIds { lo, hi });
        };
        let has_changed = route.notified(ids, copied);
        let freed = done.released(ids, bytes, copied);
        self.known.freed += freed;
        self.read.ids += freed;
        if self.is_timed() {
            self.in_flight.timer.released(ids, self.known.time);
        }
        if has_changed {
            self.in_flight.mode_changed();
        }
        if self.in_flight.route.is_exclusive() {
            self.grant.revoke();
        }
    }

    /// So many messages of a batch were read; `truncated`: the kernel cut one.
    pub(crate) fn batch(&mut self, messages: usize, truncated: bool) {
        self.read.messages += messages;
        if truncated {
            self.poison(Poison::Truncated);
        }
    }

    /// The error queue was read, to its end or to an error.
    pub(crate) fn queue_read(&mut self, question: Question, error: Option<OsError>) {
        self.known.has_read = true;
        self.known.is_at_end = question == Question::QueueToEnd;
        let Some(error) = error else { return };
        if !errno::may_pass(error.raw()) {
            return self.cannot_read(error);
        }
        self.read.error = Some(error);
        self.known.read_failed = true;
        if self.known.is_at_end {
            // A remaining notification could be about a different call than its id says.
            self.poison(Poison::Unread);
        }
    }

    /// The error queue cannot be read, and no notification ever will be.
    #[cold]
    fn cannot_read(&mut self, error: OsError) {
        if self.in_flight.tracker.outstanding() == 0 {
            if self.in_flight.copy_reason.is_none() {
                self.in_flight.copy_because(CopyReason::Unprovable(error));
            }
            self.grant.revoke();
        } else {
            self.read.refused = Some(error);
            self.poison(Poison::Unread);
        }
    }

    fn poison(&mut self, poison: Poison) {
        self.grant.revoke();
        self.in_flight.poison(poison);
    }

    /// The option memory of the socket. Reading 0, while no call is out, means that every id is
    /// released. If notifications were still trusted, another user of the socket must have read a
    /// notification of ours: the sender is poisoned.
    pub(super) fn prove(&mut self, optmem: Option<u32>) {
        if optmem == Some(0) && !self.is_calling() && self.in_flight.tracker.outstanding() > 0 {
            self.read.ids += self.in_flight.release_all();
            self.poison(Poison::NotificationStolen);
        }
    }

    /// After the first zero-copy call: option memory reading 0 with the id outstanding means that
    /// the kernel took the option and ignored the flag, so nothing is in flight.
    pub(super) fn verify(&mut self) -> Result<(), Question> {
        let is_out = self.in_flight.tracker.outstanding() > 0;
        if is_out && self.known.optmem()? == Some(0) {
            self.in_flight.release_all();
            self.in_flight.copy_because(CopyReason::Ignored);
            self.grant.revoke();
        }
        self.verifies = false;
        Ok(())
    }
}
