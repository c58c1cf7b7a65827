//! Calls: what is entered before one, what its answer changes, and what can be done for one that
//! failed.

use std::{mem, time::Instant};

use super::{
    Act::Send,
    LoneCall, Machine, Next, OPTMEM_PER_CALL, Offered, Out, RunCall, Sending,
    call::{Blocked, Cut, Failed, Retry, Stop, Way},
    cold::Cold,
    in_flight::InFlight,
    outbox::Outbox,
    question::{Known, Question},
};
use crate::{
    error::{CopyReason, OsError, SendError},
    id::{NotificationId, Ticket},
    lease::{IntoPayload, Lease, Memory, Payload},
    sys::{errno, socket::IoVec},
    tracker::{ALONE, LeaseKey},
};

/// The calls of lone buffers: one call, as a rule, and no element in the outbox.
impl Machine {
    /// A call without copy for a lone buffer, for which the tracker has a place, is about to be
    /// made. `now` is asked if no other call is in flight.
    #[inline(always)]
    pub(in crate::sender) fn begin_zero_copy(
        &mut self,
        buf: impl IntoPayload,
        now: impl FnOnce() -> Instant,
    ) -> LoneCall {
        let memory = buf.io_vec();
        let bytes = memory.len().min(self.limits.bytes);
        let sequence = self.in_flight.done.ledger.open(1, false);
        if self.in_flight.tracker.is_idle() {
            let now = self.known.time.unwrap_or_else(now);
            self.in_flight.begins_anew(self.in_flight.tracker.next_id(), now);
        }
        self.in_flight.begins(bytes);
        let lease = || Lease::new(buf, sequence, 1);
        let id = self.in_flight.tracker.insert_issued(lease, call_bytes(bytes));
        self.begin_call();
        LoneCall { ticket: self.ticket(sequence, memory.len()), memory, bytes, id: Some(id) }
    }

    /// The answer to a call without copy for a lone buffer. What the socket did not take of it is
    /// unsent. Returns `true` if it took all.
    #[inline]
    pub(in crate::sender) fn zero_copy_returned(
        &mut self,
        call: LoneCall,
        sent: Result<usize, OsError>,
    ) -> bool {
        self.end_call();
        let accepted = match sent {
            Ok(accepted) if accepted > 0 => {
                self.accepted_zero_copy(call.bytes, accepted);
                accepted
            }
            _ => 0,
        };
        if accepted == call.memory.len() {
            self.in_flight.settle(ALONE);
            return true;
        }
        self.put_lone(call.ticket, ALONE, call.memory, Way::ZeroCopy, accepted);
        if accepted == 0 {
            let limits = self.limits;
            let cut = self.outbox().cut(limits).expect("all of it is unsent");
            self.failed = Some(Failed::new(cut, call.id, sent));
        }
        false
    }

    /// A call by copy for a lone buffer is about to be made. The buffer needs no lease: the kernel
    /// reads it during the call only.
    #[inline(always)]
    pub(in crate::sender) fn begin_copy(&mut self, memory: IoVec) -> LoneCall {
        let bytes = memory.len().min(self.limits.bytes);
        let sequence = self.in_flight.done.ledger.open(0, memory.len() > 0);
        self.begin_call();
        if bytes > 0 || self.transport.sends_nothing() {
            self.begins_copy(bytes);
        }
        LoneCall { ticket: self.ticket(sequence, memory.len()), memory, bytes, id: None }
    }

    /// A call by copy for a lone buffer took all of it. The payload is dropped unless its owner
    /// wants it back.
    #[inline]
    pub(in crate::sender) fn copy_returned<P: IntoPayload>(
        &mut self,
        call: LoneCall,
        buf: P,
    ) -> Option<P> {
        self.end_call();
        self.in_flight.make_room_for_return();
        let sequence = self.in_flight.done.ledger.sequence(call.ticket);
        self.in_flight.done.hand_back(buf, sequence)
    }

    /// A call by copy for a lone buffer did not take the last `bytes` of it: it is as if it had never
    /// been made, except for what it took.
    #[cold]
    pub(in crate::sender) fn take_back_copy(&mut self, call: LoneCall, bytes: usize) {
        self.end_call();
        self.not_copied(bytes);
        self.in_flight.done.ledger.retract(call.ticket);
    }

    /// A call by copy for a lone buffer failed. Returns the consequence for the buffer.
    #[cold]
    pub(in crate::sender) fn copy_failed(&mut self, call: LoneCall, error: OsError) -> Stop {
        self.take_back_copy(call, call.bytes);
        self.in_flight.done.counts.copied_calls -= 1;
        let stop = self.classify(error);
        if let Stop::Blocked = stop {
            self.refused = Some(Blocked::Socket);
        }
        stop
    }

    /// Takes custody of a lone buffer, of which `accepted` bytes went by copy. The rest is unsent.
    #[cold]
    pub(in crate::sender) fn enter_lone(
        &mut self,
        buf: impl IntoPayload,
        way: Way,
        accepted: usize,
    ) -> Ticket {
        let memory = buf.io_vec();
        let sequence = self.in_flight.done.ledger.open(1, accepted > 0);
        let key = self.in_flight.enter(buf, sequence);
        let ticket = self.ticket(sequence, memory.len());
        self.put_lone(ticket, key, memory, way, accepted);
        ticket
    }

    fn put_lone(
        &mut self,
        ticket: Ticket,
        key: LeaseKey,
        memory: IoVec,
        way: Way,
        accepted: usize,
    ) {
        self.outbox().put_lone(key, memory, way, accepted);
        self.start(ticket, accepted);
    }
}

/// The calls of the outbox.
impl Machine {
    /// Takes custody of all `bufs` as one send. All of it is unsent.
    pub(in crate::sender) fn enter_all(&mut self, bufs: &mut Vec<Payload>) -> Ticket {
        assert!(bufs.len() < 1 << 31, "fewer than 2^31 buffers in a send");
        let sequence = self.in_flight.done.ledger.open(bufs.len() as u32, false);
        let mut outbox = self.outbox.take().unwrap_or_default();
        let mut len = 0;
        for buf in bufs.drain(..) {
            let memory = buf.io_vec();
            len += memory.len();
            outbox.push(self.in_flight.enter(buf, sequence), memory);
        }
        let tries = self.in_flight.copy_reason.is_none()
            && self.in_flight.route.concerns(self.in_flight.tracker.outstanding());
        outbox.start(self.transport, |elements, bytes| {
            tries && self.goes_without_copy(elements, bytes)
        });
        let is_empty = outbox.is_empty();
        self.outbox = Some(outbox);
        let ticket = self.ticket(sequence, len);
        if !is_empty {
            self.start(ticket, 0);
        }
        ticket
    }

    fn start(&mut self, ticket: Ticket, accepted: usize) {
        self.sending = Some(Sending { ticket, accepted });
        self.grant.revoke();
    }

    /// The elements of the send; no call is out.
    fn outbox(&mut self) -> &mut Outbox {
        debug_assert!(self.out == Out::No);
        self.outbox.get_or_insert_default()
    }

    /// The next call for what is unsent, or what has to be asked before it.
    pub(super) fn send_unsent(&mut self) -> Option<Next> {
        while self.sending.is_some() && self.out == Out::No && self.blocked.is_none() {
            let limits = self.limits;
            let cut = self.outbox().cut(limits).expect("something is unsent");
            if cut.bytes == 0 && !self.transport.sends_nothing() {
                self.advance(0);
                continue;
            }
            let way = match cut.way {
                Way::ZeroCopy if self.retry != Retry::ByCopy => match self.admission(cut.bytes) {
                    Ok(way) => way,
                    Err(question) => return Some(Next::Ask(question)),
                },
                _ => Some(Way::Copy),
            };
            match way {
                Some(way) => return Some(Next::Act(Send(self.begin_elements(cut, way)))),
                None => self.block(Blocked::Window),
            }
        }
        None
    }

    /// A call for elements of the outbox is about to be made.
    fn begin_elements(&mut self, cut: Cut, way: Way) -> RunCall {
        let outbox = self.outbox.take().expect("no call is out");
        self.grant.revoke();
        let id = if way == Way::ZeroCopy { self.issue(&outbox, cut) } else { None };
        if id.is_none() {
            self.begins_copy(cut.bytes);
        }
        self.begin_call();
        RunCall { outbox, cut, id }
    }

    /// Gives out the id of a call without copy. `None`: none can be had now, so that it goes by
    /// copy.
    fn issue(&mut self, outbox: &Outbox, cut: Cut) -> Option<NotificationId> {
        let is_first = self.in_flight.tracker.is_idle();
        let keys = outbox.keys(cut);
        let Some(id) = self.in_flight.tracker.issue(keys, call_bytes(cut.bytes)) else {
            self.refund(cut.bytes);
            return None;
        };
        for key in keys {
            self.in_flight.tracker.get_mut(*key).offers += 1;
        }
        if is_first {
            let now = self.known.time.expect("asked by the admission");
            self.in_flight.begins_anew(id, now);
        }
        self.in_flight.begins(cut.bytes);
        Some(id)
    }

    /// The answer to a call for elements of the outbox.
    pub(in crate::sender) fn returned(&mut self, call: RunCall, sent: Result<usize, OsError>) {
        let RunCall { outbox, cut, id } = call;
        self.outbox = Some(outbox);
        self.end_call();
        match (sent, id) {
            (Ok(accepted), Some(id)) if accepted > 0 => {
                self.accepted_zero_copy(cut.bytes, accepted);
                if accepted < cut.bytes {
                    let covered = self.outbox().covered(cut, accepted).len();
                    self.in_flight.tracker.trim(id, covered);
                }
                self.advance(accepted);
            }
            (Ok(accepted), None) if accepted > 0 || cut.bytes == 0 => {
                self.not_copied(cut.bytes - accepted);
                let outbox = self.outbox.take().expect("put back above");
                for key in outbox.covered(cut, accepted) {
                    self.in_flight.tracker.get_mut(*key).copied = true;
                }
                self.outbox = Some(outbox);
                self.advance(accepted);
            }
            (sent, id) => {
                if id.is_none() {
                    self.not_copied(cut.bytes);
                    self.in_flight.done.counts.copied_calls -= 1;
                }
                self.failed = Some(Failed::new(cut, id, sent));
            }
        }
    }

    /// The socket accepted the next `bytes` of what is unsent.
    fn advance(&mut self, bytes: usize) {
        self.retry = Retry::No;
        let Self { outbox, in_flight, sending, .. } = self;
        let outbox = outbox.as_mut().expect("no call is out");
        if let Some(sending) = sending {
            sending.accepted += bytes;
        }
        if outbox.advance(bytes, |key| in_flight.settle(key)) {
            *sending = None;
        }
        // Another thread may wait until this is accepted, and a task for its fate.
        let waits = |cold: &Cold| !cold.wakers.is_empty() || !cold.sleepers.is_empty();
        in_flight.done.news |= in_flight.done.cold.get().is_some_and(waits);
    }

    /// How the send just entered came out, and the payloads of one of which nothing was accepted.
    pub(in crate::sender) fn conclude(
        &mut self,
        ticket: Ticket,
        stop: Option<Stop>,
        mut on_refused: impl FnMut(Payload),
    ) -> Result<Offered, SendError<()>> {
        if let Some(Sending { accepted: 0, .. }) = self.sending
            && let Some(stop) = stop
        {
            self.take_unsent(|in_flight, key| on_refused(in_flight.withdraw(key)));
            self.in_flight.done.ledger.retract(ticket);
            self.refused = self.blocked.take();
            return Err(stop.into_send_error(()));
        }
        // A send of nothing makes no call.
        self.refused = None;
        match self.truncation(ticket) {
            Some(error) => Err(SendError::Truncated { ticket, error }),
            None => Ok(Offered { ticket, whole: self.sending.is_none() }),
        }
    }

    /// Nothing more of the present send is sent. The connection is over: to go on behind a gap
    /// would be silently wrong.
    pub(in crate::sender) fn cut_short(&mut self, error: OsError) {
        let error = *self.error.get_or_insert(error);
        self.grant.revoke();
        if let Some(Sending { ticket, accepted }) = self.sending {
            self.in_flight.done.truncate(ticket, accepted, error);
            self.take_unsent(InFlight::settle);
        }
    }

    /// Takes out the elements that are not wholly accepted.
    fn take_unsent(&mut self, mut on_taken: impl FnMut(&mut InFlight, LeaseKey)) {
        let Self { outbox, in_flight, .. } = self;
        let outbox = outbox.as_mut().expect("no call is out");
        outbox.take(|key| on_taken(in_flight, key));
        (self.sending, self.retry) = (None, Retry::No);
    }
}

/// The effects of every call.
impl Machine {
    #[inline(always)]
    fn begin_call(&mut self) {
        debug_assert!(self.out == Out::No);
        self.out = Out::Told;
        self.again = false;
        self.refused = None;
    }

    /// The call that was out has returned.
    #[inline(always)]
    fn end_call(&mut self) {
        self.out = Out::No;
        // What was read before the end of a call says nothing about that call.
        self.known = Known::default();
        // A thread that saw the call out may wait for its end, of which no event of the socket
        // tells.
        self.in_flight.done.news |= self.again;
    }

    /// The socket accepted the first bytes of a call without copy of `bytes`.
    #[inline]
    fn accepted_zero_copy(&mut self, bytes: usize, accepted: usize) {
        self.in_flight.route.returned();
        if accepted < bytes {
            self.in_flight.not_accepted(bytes - accepted);
        }
        self.unread += 1;
        self.window.went_well();
        self.verifies |= !mem::replace(&mut self.verified, true);
    }

    /// A call by copy is about to be made. Counted already: after the call no thread may hold the
    /// lock.
    #[inline(always)]
    fn begins_copy(&mut self, bytes: usize) {
        self.in_flight.route.accepted(bytes);
        let counts = &mut self.in_flight.done.counts;
        counts.copied_calls += 1;
        counts.copied_bytes += bytes as u64;
    }

    /// The socket did not accept the last `bytes` of a call by copy.
    fn not_copied(&mut self, bytes: usize) {
        self.in_flight.route.not_accepted(bytes);
        self.in_flight.done.counts.copied_bytes -= bytes as u64;
    }

    #[inline]
    fn ticket(&self, sequence: u64, len: usize) -> Ticket {
        Ticket::new(self.id, sequence, len)
    }
}

/// A call that failed.
impl Machine {
    /// Does for a call that failed what can be done for it, in one hold of the lock. Returns what
    /// has to be asked first, or `None` when it is settled.
    pub(super) fn recover(&mut self, mut failed: Failed) -> Option<Question> {
        if let Some(id) = failed.id {
            if self.transport.failures_take_ids() && !self.known.is_at_end {
                // The id must not be taken back while its notification is on the queue, or the
                // next call would be released by it.
                return self.ask_about(failed, Question::QueueToEnd);
            }
            failed.id = None;
            failed.took_id = self.take_back(id, failed.cut);
        }
        let errno = failed.error.raw();
        if !failed.was_zero_copy || failed.took_id {
            self.stop(failed.error);
            return None;
        }
        match errno {
            errno::ENOBUFS => return self.recover_no_bufs(failed),
            // More parts of pages than a packet can have: 17.
            errno::EMSGSIZE => self.retry = Retry::ByCopy,
            // The socket has come to need a copy, as one with kernel TLS does.
            errno::EOPNOTSUPP => {
                self.in_flight.copy_reason.get_or_insert(CopyReason::Refused(failed.error));
                self.retry = Retry::ByCopy;
            }
            _ => self.stop(failed.error),
        }
        None
    }

    /// The kernel refuses memory: reads the error queue and tries once more if that released
    /// anything, else sends by copy and shrinks the window.
    fn recover_no_bufs(&mut self, mut failed: Failed) -> Option<Question> {
        if !failed.is_counted {
            let Some(optmem) = self.known.optmem else {
                return self.ask_about(failed, Question::Optmem);
            };
            failed.is_counted = true;
            let used = optmem.unwrap_or(0);
            let cold = self.in_flight.done.cold.make();
            if used.saturating_add(OPTMEM_PER_CALL) > self.optmem_max {
                cold.no_bufs_optmem += 1;
            } else {
                cold.no_bufs_memlock += 1;
            }
        }
        if !failed.has_read {
            failed.has_read = true;
            let question = self.read_first();
            return self.ask_about(failed, question);
        }
        if self.known.freed > 0 && self.retry == Retry::No {
            self.retry = Retry::Once;
        } else {
            let in_flight_bytes = self.in_flight.done.counts.in_flight_bytes;
            self.window.shrink(self.in_flight.tracker.outstanding(), in_flight_bytes);
            self.retry = Retry::ByCopy;
        }
        None
    }

    fn ask_about(&mut self, failed: Failed, question: Question) -> Option<Question> {
        self.failed = Some(failed);
        Some(question)
    }

    /// Takes the id of a failed call back. Returns `true` if the kernel used it.
    fn take_back(&mut self, id: NotificationId, cut: Cut) -> bool {
        let may_be_taken = self.transport.failures_take_ids();
        let is_probe = self.in_flight.route.cancelled(id);
        self.grant.revoke();
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
        let outbox = self.outbox.take().expect("no call is out");
        for key in outbox.keys(cut) {
            self.in_flight.tracker.get_mut(*key).offers -= 1;
        }
        self.outbox = Some(outbox);
        self.in_flight.done.refund(1, cut.bytes);
        false
    }

    /// A call for what is unsent failed, and nothing can be done for it.
    fn stop(&mut self, error: OsError) {
        self.retry = Retry::No;
        if error.raw() == errno::EAGAIN && self.is_part_accepted() && mem::take(&mut self.again) {
            // A visitor came with news of the socket since the call began, and only this thread can
            // act on it. A buffer of which nothing is accepted is its owner's to send again.
            return;
        }
        let stop = match self.classify(error) {
            Stop::Refused(error) if error.raw() == errno::EFAULT && self.is_part_accepted() => {
                Stop::Failed(error)
            }
            stop => stop,
        };
        if let Stop::Failed(error) = stop
            && self.is_part_accepted()
        {
            self.cut_short(error);
        }
        self.blocked = Some(match stop {
            Stop::Blocked => Blocked::Socket,
            _ => Blocked::Refused,
        });
        self.stopped = Some(stop);
    }

    fn is_part_accepted(&self) -> bool {
        self.sending.is_some_and(|sending| sending.accepted > 0)
    }

    /// What is unsent has to wait.
    fn block(&mut self, why: Blocked) {
        self.blocked = Some(why);
        self.stopped = Some(Stop::Blocked);
    }

    /// The meaning of a call's error.
    fn classify(&mut self, error: OsError) -> Stop {
        // The next call is to say that the socket has room again.
        self.grant.revoke();
        if error.raw() == errno::EAGAIN {
            Stop::Blocked
        } else if errno::ends_connection(error.raw()) {
            Stop::Failed(*self.error.get_or_insert(error))
        } else if self.transport.is_drop(error.raw()) {
            self.in_flight.done.cold.make().dropped_sends += 1;
            Stop::Dropped(error)
        } else {
            Stop::Refused(error)
        }
    }
}

/// The tracker's record of a call.
#[inline]
fn call_bytes(bytes: usize) -> u32 {
    debug_assert!(u32::try_from(bytes).is_ok(), "calls are cut below 4 GiB");
    bytes as u32
}
