//! Calls: what is entered before one, and what its answer changes.

use std::{mem, time::Instant};

use super::{
    call::{Failed, LoneCall, Offered, Out, Refused, Retry, RunCall, Stop},
    in_flight::InFlight,
    outbox::{Cut, Outbox, Way},
    question::Question,
    state::{Machine, Sending},
};
use crate::{
    error::{OsError, SendError},
    id::{NotificationId, Ticket},
    lease::{IntoPayload, Lease, Memory, Payload},
    sys::socket::IoVec,
    tracker::{ALONE, LeaseKey},
};

/// Calls that are told of after one was met.
const TELLS: u16 = 1024;

/// The calls of lone buffers: one call, as a rule, and no element in the outbox.
impl Machine {
    /// A call without copy for a lone buffer, for which the tracker has a place, is about to be
    /// made. `now` is asked if no other call is in flight, or every call is timed.
    #[inline(always)]
    pub(crate) fn begin_zero_copy(
        &mut self,
        buf: impl IntoPayload,
        now: impl FnOnce() -> Instant,
    ) -> LoneCall {
        let memory = buf.io_vec();
        let bytes = memory.len().min(self.limits.bytes);
        let sequence = self.in_flight.done.ledger.open(1, false);
        let is_first = self.in_flight.tracker.is_idle();
        if is_first || self.is_timed() {
            let now = self.known.time.unwrap_or_else(now);
            self.in_flight.begins(self.in_flight.tracker.next_id(), now, is_first);
        }
        let lease = || Lease::new(buf, sequence, 1);
        let id = self.in_flight.tracker.insert_issued(lease, call_bytes(bytes));
        self.begin_call(Way::ZeroCopy, bytes);
        LoneCall { ticket: self.ticket(sequence, memory.len()), memory, bytes, id: Some(id) }
    }

    /// The answer to a call without copy for a lone buffer. What the socket did not take of it is
    /// unsent. Returns `true` if it took all.
    #[inline]
    pub(crate) fn zero_copy_returned(
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
    pub(crate) fn begin_copy(&mut self, memory: IoVec) -> LoneCall {
        let bytes = memory.len().min(self.limits.bytes);
        let sequence = self.in_flight.done.ledger.open(0, memory.len() > 0);
        self.begin_call(Way::Copy, bytes);
        LoneCall { ticket: self.ticket(sequence, memory.len()), memory, bytes, id: None }
    }

    /// A call by copy for borrowed bytes is about to be made, for as many as one call may cover. Each
    /// write has a ticket of its own, which is released with the call.
    #[inline(always)]
    pub(crate) fn begin_write(&mut self, bytes: IoVec) -> LoneCall {
        self.begin_copy(bytes.part(0, bytes.len().min(self.limits.bytes)))
    }

    /// A call by copy for borrowed bytes took so many of them.
    #[inline]
    pub(crate) fn wrote(&mut self, call: LoneCall, accepted: usize) {
        self.end_call();
        self.not_copied(call.bytes - accepted);
    }

    /// A call by copy for a lone buffer took all of it. The payload is dropped unless its owner
    /// wants it back.
    #[inline]
    pub(crate) fn copy_returned<P: IntoPayload>(&mut self, call: LoneCall, buf: P) -> Option<P> {
        self.end_call();
        self.in_flight.make_room_for_return();
        let sequence = self.in_flight.done.ledger.sequence(call.ticket);
        self.in_flight.done.hand_back(buf, sequence, None)
    }

    /// A call by copy for a lone buffer did not take the last `bytes` of it: it is as if it had never
    /// been made, except for what it took.
    #[cold]
    pub(crate) fn take_back_copy(&mut self, call: LoneCall, bytes: usize) {
        self.end_call();
        self.not_copied(bytes);
        self.in_flight.done.ledger.retract(call.ticket);
    }

    /// A call by copy for a lone buffer failed. Returns the consequence for the buffer.
    #[cold]
    pub(crate) fn copy_failed(&mut self, call: LoneCall, error: OsError) -> Stop {
        self.take_back_copy(call, call.bytes);
        self.in_flight.done.counts.copied_calls -= 1;
        let stop = self.classify(error);
        self.refuse(stop);
        stop
    }

    /// Takes custody of a lone buffer, of which `accepted` bytes went by copy. The rest is unsent.
    #[cold]
    pub(crate) fn enter_lone(
        &mut self,
        buf: impl IntoPayload,
        way: Way,
        accepted: usize,
    ) -> Ticket {
        let memory = buf.io_vec();
        let sequence = self.in_flight.done.ledger.open(1, false);
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

/// A call with its end left to the next thread with the lock.
impl Machine {
    /// Returns `true` if the end of the call that is out is left.
    #[inline(always)]
    pub(crate) fn is_left(&self) -> bool {
        matches!(self.out, Out::Left(_))
    }

    /// A call with a left end is over.
    #[inline(always)]
    pub(crate) fn settle_left(&mut self) {
        if matches!(mem::replace(&mut self.out, Out::No), Out::Left(Way::ZeroCopy)) {
            self.unread += 1;
            let released = self.in_flight.tracker.settle(ALONE);
            debug_assert!(released.is_none(), "its notification is read after its end is settled");
            // Nothing to drop, which the compiler cannot know.
            mem::forget(released);
        }
    }

    /// The call is not over. Its caller will tell of its end, and of the ends of the next calls: a
    /// thread that meets calls pays for a barrier.
    pub(crate) fn meet_call(&mut self) {
        self.out = Out::Told;
        self.tells = TELLS;
    }

    /// Lets the end of the call that is about to be made be left, if that can be. It was let in by a
    /// grant, or is small.
    #[inline(always)]
    pub(crate) fn leave_end(&mut self, way: Way) -> bool {
        if self.tells > 0 {
            self.tells -= 1;
            return false;
        }
        let leaves = self.leaves && !self.wants_watch;
        if leaves {
            self.out = Out::Left(way);
        }
        leaves
    }
}

/// The calls of the outbox.
impl Machine {
    /// Takes custody of all `bufs` as one send. All of it is unsent.
    pub(crate) fn enter_all(&mut self, bufs: &mut Vec<Payload>) -> Ticket {
        assert!(bufs.len() < 1 << 31, "fewer than 2^31 buffers in a send");
        let sequence = self.in_flight.done.ledger.open(bufs.len() as u32, false);
        let mut outbox = self.outbox.take().unwrap_or_default();
        let is_vectored = bufs.len() > 1;
        let mut len = 0;
        for buf in bufs.drain(..) {
            let memory = buf.io_vec();
            len += memory.len();
            outbox.push(self.in_flight.enter(buf, sequence), memory);
        }
        let tries = self.in_flight.copy_reason.is_none() && self.in_flight.route.concerns();
        outbox.start(self.transport, |elements, bytes| {
            tries && self.goes_without_copy(elements, bytes)
        });
        let is_empty = outbox.is_empty();
        self.outbox = Some(outbox);
        if is_vectored {
            self.in_flight.done.note_vectored(sequence, len);
        }
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
        debug_assert!(!self.is_calling());
        self.outbox.get_or_insert_default()
    }

    /// The next call for what is unsent.
    pub(super) fn send_unsent(&mut self) -> Result<Option<RunCall>, Question> {
        while self.sending.is_some() && !self.is_calling() && self.blocked.is_none() {
            let limits = self.limits;
            let cut = self.outbox().cut(limits).expect("something is unsent");
            if cut.bytes == 0 && !self.transport.sends_nothing() {
                self.advance(0);
                continue;
            }
            let way = match cut.way {
                Way::ZeroCopy if self.retry != Retry::ByCopy => self.admission(cut.bytes)?,
                _ => Some(Way::Copy),
            };
            match way {
                Some(way) => return Ok(Some(self.begin_elements(cut, way))),
                None => self.blocked = Some(Stop::Window),
            }
        }
        Ok(None)
    }

    /// A call for elements of the outbox is about to be made.
    fn begin_elements(&mut self, cut: Cut, way: Way) -> RunCall {
        let outbox = self.outbox.take().expect("no call is out");
        let id = if way == Way::ZeroCopy { self.issue(&outbox, cut) } else { None };
        let way = if id.is_some() { Way::ZeroCopy } else { Way::Copy };
        self.begin_call(way, cut.bytes);
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
        if is_first || self.is_timed() {
            let now = self.known.time.expect("asked by the admission");
            self.in_flight.begins(id, now, is_first);
        }
        Some(id)
    }

    /// The answer to a call for elements of the outbox.
    pub(crate) fn returned(&mut self, call: RunCall, sent: Result<usize, OsError>) {
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
                let Self { outbox, in_flight, .. } = self;
                for key in outbox.as_ref().expect("put back above").covered(cut, accepted) {
                    in_flight.tracker.get_mut(*key).copied = true;
                }
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
        in_flight.done.changed();
    }

    /// The outcome of the send just entered, with its payloads if no byte was accepted.
    pub(crate) fn conclude(
        &mut self,
        ticket: Ticket,
        mut on_refused: impl FnMut(Payload),
    ) -> Result<Offered, SendError<()>> {
        // A send of nothing makes no call.
        self.refused = Refused::No;
        if let Some(Sending { accepted: 0, .. }) = self.sending
            && let Some(stop) = self.blocked.take()
        {
            self.take_unsent(|in_flight, key| on_refused(in_flight.withdraw(key)));
            self.in_flight.done.retract(ticket);
            self.refuse(stop);
            return Err(stop.into_send_error(()));
        }
        match self.in_flight.done.ledger.truncation(ticket) {
            Some(error) => Err(SendError::Truncated { ticket, error }),
            None => Ok(Offered { ticket, whole: self.sending.is_none() }),
        }
    }

    /// Nothing more of the present send is sent. The connection is over: to go on behind a gap
    /// would be silently wrong.
    pub(crate) fn cut_short(&mut self, error: OsError) {
        let error = self.fail(error);
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
    /// A call is about to be made. Counted already: after the call no thread may hold the lock.
    #[inline(always)]
    fn begin_call(&mut self, way: Way, bytes: usize) {
        debug_assert!(!self.is_calling());
        self.out = Out::Told;
        self.again = false;
        self.refused = Refused::No;
        self.in_flight.route.accepted(bytes);
        let counts = &mut self.in_flight.done.counts;
        match way {
            Way::ZeroCopy => {
                counts.zero_copy_calls += 1;
                counts.zero_copy_bytes += bytes as u64;
                counts.in_flight_bytes += bytes;
            }
            Way::Copy => {
                // Nothing to send is no call on a stream.
                counts.copied_calls += u64::from(bytes > 0 || self.transport.sends_nothing());
                counts.copied_bytes += bytes as u64;
            }
        }
    }

    /// The call that was out has returned.
    #[inline(always)]
    fn end_call(&mut self) {
        self.out = Out::No;
        if self.again {
            // A thread that saw the call out may wait for its end, of which no event of the socket
            // tells. The thread of the call asks what that one could not.
            self.in_flight.done.changed();
            self.in_flight.done.news |= self.hung_up();
        }
    }

    /// The socket accepted the first bytes of a call without copy of `bytes`.
    #[inline]
    fn accepted_zero_copy(&mut self, bytes: usize, accepted: usize) {
        if self.in_flight.route.returned() {
            self.in_flight.mode_changed();
        }
        if accepted < bytes {
            self.in_flight.not_accepted(bytes - accepted);
        }
        self.unread += 1;
        self.window.went_well();
        self.verifies |= !mem::replace(&mut self.verified, true);
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

/// The tracker's record of a call.
#[inline]
fn call_bytes(bytes: usize) -> u32 {
    debug_assert!(u32::try_from(bytes).is_ok(), "calls are cut below 4 GiB");
    bytes as u32
}
