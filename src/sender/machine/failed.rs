//! Calls that failed: what can be done for one, and what it means for the send.

use std::mem;

use super::{
    super::{
        telemetry::{Cause, Event},
        transport::Transport,
    },
    call::{Failed, Retry, Stop},
    outbox::Cut,
    question::Question,
    state::{Machine, OPTMEM_PER_CALL},
};
use crate::{
    error::{CopyReason, OsError},
    id::NotificationId,
    sys::errno,
};

/// A call that failed.
impl Machine {
    /// Does for a call that failed what can be done for it, in one hold of the lock.
    pub(super) fn recover(&mut self, mut failed: Failed) -> Result<(), Question> {
        if let Some(id) = failed.id {
            if self.transport.failures_take_ids() && !self.known.is_at_end {
                // The id must not be taken back while its notification is on the queue, or the
                // next call would be released by it.
                self.failed = Some(failed);
                return Err(Question::QueueToEnd);
            }
            failed.id = None;
            failed.took_id = self.take_back(id, failed.cut);
        }
        let errno = failed.error.raw();
        if !failed.was_zero_copy || failed.took_id {
            return self.stop(failed);
        }
        match errno {
            errno::ENOBUFS => return self.recover_no_bufs(failed),
            // More parts of pages than a packet can have: 17.
            errno::EMSGSIZE => self.retry = Retry::ByCopy,
            // The socket has come to need a copy, as one with kernel TLS does.
            errno::EOPNOTSUPP => {
                if self.in_flight.copy_reason.is_none() {
                    self.in_flight.copy_because(CopyReason::Refused(failed.error));
                }
                self.retry = Retry::ByCopy;
            }
            _ => return self.stop(failed),
        }
        Ok(())
    }

    /// The kernel refuses memory: reads the error queue and tries once more if that released
    /// anything, else sends by copy and shrinks the window.
    fn recover_no_bufs(&mut self, mut failed: Failed) -> Result<(), Question> {
        if !failed.is_counted {
            let Some(optmem) = self.known.optmem else {
                self.failed = Some(failed);
                return Err(Question::Optmem);
            };
            failed.is_counted = true;
            let used = optmem.unwrap_or(0);
            let done = &mut self.in_flight.done;
            if used.saturating_add(OPTMEM_PER_CALL) > self.optmem_max {
                done.cold.make().counts.no_bufs_optmem += 1;
                done.held_back(Cause::Optmem);
            } else {
                done.cold.make().counts.no_bufs_memlock += 1;
                done.held_back(Cause::Memlock);
            }
        }
        if !failed.has_read {
            failed.has_read = true;
            self.failed = Some(failed);
            return Err(self.read_first());
        }
        if self.known.freed > 0 && self.retry == Retry::No {
            self.retry = Retry::Once;
        } else {
            let in_flight_bytes = self.in_flight.done.counts.in_flight_bytes;
            self.window.shrink(self.in_flight.tracker.outstanding(), in_flight_bytes);
            self.retry = Retry::ByCopy;
        }
        Ok(())
    }

    /// Takes the id of a failed call back. Returns `true` if the kernel used it.
    fn take_back(&mut self, id: NotificationId, cut: Cut) -> bool {
        let may_be_taken = self.transport.failures_take_ids();
        let is_probe = self.in_flight.route.cancelled(id);
        self.in_flight.ages.cancelled(id);
        self.in_flight.not_accepted(cut.bytes);
        let is_taken = !self.in_flight.tracker.cancel(id);
        let counts = &mut self.in_flight.done.counts;
        counts.zero_copy_calls -= u64::from(!(is_taken && may_be_taken));
        if is_taken {
            return may_be_taken;
        }
        if is_probe {
            self.in_flight.route.retract_probe();
        }
        let Self { outbox, in_flight, .. } = self;
        for key in outbox.as_ref().expect("no call is out").keys(cut) {
            in_flight.tracker.get_mut(*key).offers -= 1;
        }
        self.in_flight.done.refund(1, cut.bytes);
        false
    }

    /// A call for what is unsent failed, and nothing can be done for it.
    fn stop(&mut self, failed: Failed) -> Result<(), Question> {
        let error = failed.error;
        if self.may_be_the_end(error) && self.known.is_over.is_none() {
            self.failed = Some(failed);
            return Err(Question::IsOver);
        }
        self.retry = Retry::No;
        if error.raw() == errno::EAGAIN && self.is_part_accepted() && mem::take(&mut self.again) {
            // A visitor came with news of the socket since the call began, and only this thread can
            // act on it. A buffer of which nothing is accepted is its owner's to send again.
            return Ok(());
        }
        let mut stop = self.classify(error);
        if self.is_part_accepted() {
            if let Stop::Refused(error) = stop
                && error.raw() == errno::EFAULT
            {
                stop = Stop::Failed(error);
            }
            if let Stop::Failed(error) = stop {
                self.cut_short(error);
            }
        }
        self.blocked = Some(stop);
        Ok(())
    }

    fn is_part_accepted(&self) -> bool {
        self.sending.is_some_and(|sending| sending.accepted > 0)
    }

    /// The connection is over. Returns the first error that said so.
    pub(super) fn fail(&mut self, error: OsError) -> OsError {
        // The report of the end tells of an abort.
        if self.connection_error().is_none() && error.raw() != errno::ECANCELED {
            self.in_flight.done.tell(Event::Failed(error));
        }
        *self.error.get_or_insert(error)
    }

    /// Returns `true` if the error of a call may be the reason for the end of the connection, which only the
    /// socket can tell.
    pub(crate) fn may_be_the_end(&self, error: OsError) -> bool {
        self.transport.has_end()
            && errno::may_end_connection(error.raw())
            && self.connection_error().is_none()
    }

    /// The connection is over, and a call has told the reason.
    pub(crate) fn ended_by(&mut self, error: OsError) {
        self.fail(error);
        self.is_over = true;
    }

    /// The meaning of a call's error.
    pub(super) fn classify(&mut self, error: OsError) -> Stop {
        if error.raw() == errno::EAGAIN {
            self.in_flight.done.held_back(Cause::SendBuffer);
            return Stop::Blocked;
        }
        if self.transport == Transport::Datagram {
            self.in_flight.done.cold.make().counts.drops.count(error);
        }
        if error.raw() == errno::EPIPE && self.closing.as_ref().is_some_and(|c| c.orderly) {
            // The owner sends behind the end of its own stream.
            Stop::Failed(error)
        } else if errno::ends_connection(error.raw()) || self.is_over {
            Stop::Failed(self.fail(error))
        } else if self.transport.is_drop(error.raw()) {
            self.in_flight.done.cold.make().counts.dropped_sends += 1;
            Stop::Dropped(error)
        } else {
            Stop::Refused(error)
        }
    }
}
