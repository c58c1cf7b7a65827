//! The machine behind a sender: two locks, one for what is to be sent, one for what is in flight.
//!
//! Lock order: `ending`, `send`, `watch`, `in_flight`. None is held while user code runs (drops
//! of payloads, wakers) or while a thread waits: what a step lets go of is collected and disposed
//! of after the locks are free.

use std::{fmt, io};

use super::{
    Config,
    call::{Call, Calls, Stop, Stuck},
    ending::Ending,
    in_flight::InFlight,
    kernel::Kernel,
    outbox::Outbox,
    rare::Rare,
    transport::{CallLimits, MIN_ZERO_COPY_ELEMENT},
    under_way::UnderWay,
    window::{Admission, MemlockBudget, Window},
};
use crate::{
    error::{CopyReason, OsError, SendError},
    id::{NotificationId, SenderId, Ticket},
    lease::{IntoPayload, Memory, Payload},
    lock::{Mutex, MutexGuard, lock},
    raw::{PoolHead, Reclaim},
    reaper,
    sync::{Arc, AtomicUsize, unique_id},
    sys::{
        errno,
        process::Process,
        socket::{IoVec, SendFlags},
    },
    tracker::ALONE,
};

/// The shared part of a sender.
///
/// In this order in memory, and so are its parts: what every send and note touches lies together,
/// in about the order of use; before and behind it lies what few need. Of ten thousand senders none
/// is in the cache when its turn comes.
#[repr(C)]
pub struct Core<K: Kernel> {
    /// Handles: 1, or 2 while split.
    pub(super) owners: AtomicUsize,
    /// The reaper's attention, for as long as it is of use to somebody.
    pub(super) watch: Mutex<Watch>,
    pub(super) config: Config,
    /// The end, once it has begun.
    pub(super) ending: Mutex<Option<Box<Ending>>>,
    /// The process that the sender belongs to.
    process: Process,
    pub(super) kernel: K,
    pub(super) id: SenderId,
    pub(super) budget: Arc<MemlockBudget>,
    pub(super) call_limits: CallLimits,
    /// A lone buffer below this goes by copy.
    least_without_copy: usize,
    pub(super) send: Mutex<Send>,
    pub(super) optmem_max: u32,
    /// The call of a lone buffer.
    under_way: UnderWay,
    in_flight: Mutex<InFlight>,
}

/// Pools that a sender remembers having made itself known to.
pub(super) const POOLS: usize = 8;

/// What is to be sent.
pub(super) struct Send {
    /// What a send of one buffer that the socket takes whole has no need of.
    pub(super) outbox: Rare<Outbox>,
    pub(super) calls: Calls,
    /// The last pool that this sender made itself known to, and those before it.
    pub(super) pool: Option<u64>,
    pub(super) earlier_pools: Rare<Vec<u64>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Watch {
    Off,
    On(reaper::Token),
    /// In the care of a reaper that has no thread.
    Unserved(reaper::Token),
    /// The sender is gone; nobody can want it driven any more.
    Over,
}

/// A send of which at least a part was accepted.
pub(super) struct Offered {
    pub(super) ticket: Ticket,
    /// Whether all of it was.
    pub(super) whole: bool,
}

impl<K: Kernel> Core<K> {
    /// `copy_reason` tells why nothing can go without copy, if so; `first` is the id that the
    /// socket's next zero-copy call takes.
    pub fn new(
        kernel: K,
        config: Config,
        copy_reason: Option<CopyReason>,
        budget: Arc<MemlockBudget>,
        optmem_max: u32,
        first: NotificationId,
    ) -> Arc<Self> {
        let (bytes, sends) = (config.max_in_flight_bytes, config.max_in_flight_sends);
        let in_flight = InFlight::new(&config, first, copy_reason, Arc::clone(&budget));
        Arc::new(Self {
            call_limits: kernel.transport().call_limits(&budget),
            least_without_copy: config.threshold_bytes.max(MIN_ZERO_COPY_ELEMENT),
            kernel,
            id: SenderId::new(unique_id()),
            config,
            budget,
            optmem_max,
            send: Mutex::new(Send {
                outbox: Rare::default(),
                calls: Calls::new(Window::new(bytes, sends), optmem_max),
                pool: None,
                earlier_pools: Rare::default(),
            }),
            in_flight: Mutex::new(in_flight),
            under_way: UnderWay::default(),
            watch: Mutex::new(Watch::Off),
            ending: Mutex::new(None),
            process: Process::this(),
            owners: AtomicUsize::new(1),
        })
    }

    /// Takes the lock of what is in flight, and settles the call that was left to be.
    #[inline(always)]
    pub(super) fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        let mut in_flight = lock(&self.in_flight);
        if self.under_way.take() {
            in_flight.settle_left();
        }
        in_flight
    }

    /// Whether the sender is that of the process this one was forked from. Then its socket, the
    /// notes above all, is that process's, and its locks may be taken for ever.
    #[inline]
    pub(super) fn is_forked(&self) -> bool {
        !self.process.is_this()
    }

    /// Sends one buffer, as far as the socket takes it.
    #[inline]
    pub fn try_send<P: IntoPayload>(self: &Arc<Self>, buf: P) -> Result<Ticket, SendError<P>> {
        self.offer_one(buf).map(|offered| offered.ticket)
    }

    /// Sends all of `bufs` as one send, as far as the socket takes it.
    pub fn try_send_vectored(
        self: &Arc<Self>,
        bufs: &mut Vec<Payload>,
    ) -> Result<Ticket, SendError<()>> {
        self.offer_all(bufs).map(|offered| offered.ticket)
    }

    /// Takes the only buffer of a send and sends. One that goes by copy needs no lease: nobody
    /// reads it after the call.
    #[inline(always)]
    pub(super) fn offer_one<P: IntoPayload>(
        self: &Arc<Self>,
        buf: P,
    ) -> Result<Offered, SendError<P>> {
        if self.is_forked() {
            return Err(SendError::Forked(buf));
        }
        let mut send = lock(&self.send);
        if let Err(error) = self.make_way(&mut send) {
            drop(send);
            self.dispose();
            return Err(error.map(|()| buf));
        }
        let memory = buf.io_vec();
        let len = memory.len();
        let has_quota = || buf.pool().is_some_and(|pool| pool.sender_quota().is_some());
        if len < self.least_without_copy && !has_quota() || send.calls.copies.take(len, buf.pool())
        {
            return self.offer_copied(send, buf);
        }
        let mut bytes = len;
        let mut in_flight = self.in_flight();
        let asks = !(in_flight.passes.take(len, buf.pool()) && self.budget.charge(len));
        if asks {
            bytes = len.min(self.call_limits.bytes);
            match self.ask(&mut send, &mut in_flight, &buf, bytes) {
                Admission::ZeroCopy => {}
                Admission::Copy => {
                    drop(in_flight);
                    return self.offer_copied(send, buf);
                }
                Admission::Full => return Err(self.refuse(send, in_flight).map(|()| buf)),
            }
        }
        if !in_flight.tracker.has_place() {
            // Every call out of the outbox asks for itself.
            self.budget.refund(1, bytes);
            return self.offer_rest(send, in_flight, buf, true, 0);
        }
        if asks {
            in_flight.make_room(&buf);
        }
        let awaited = buf.is_awaited();
        let calls_for_more = asks | awaited;
        let sequence = in_flight.done.ledger.open(1, false);
        let ticket = Ticket::new(self.id, sequence, len);
        let id = in_flight.enter_call(&self.kernel, buf, sequence, bytes);
        self.under_way.begin();
        drop(in_flight);
        let part = [memory.part(0, bytes)];
        let sent = self.kernel.send(&part, SendFlags { zerocopy: true, more: false });
        let is_whole = matches!(sent, Ok(accepted) if accepted == len);
        if !is_whole || !self.under_way.leave() {
            return self.conclude_call(send, ticket, memory, &part, id, sent, awaited);
        }
        send.calls.unread += 1;
        if calls_for_more {
            self.conclude_asked(send, awaited);
        }
        Ok(Offered { ticket, whole: true })
    }

    /// Does after a call what only one that had to ask may call for, or one that somebody waits
    /// for.
    #[cold]
    #[inline(never)]
    fn conclude_asked(self: &Arc<Self>, mut send: MutexGuard<'_, Send>, awaited: bool) {
        send.calls.stuck = None;
        if send.calls.went_well() {
            self.verify(&mut self.in_flight());
        }
        drop(send);
        self.look_after(awaited);
        // What was found released meanwhile.
        self.dispose();
    }

    /// Asks whether a lone buffer may go, and how.
    #[cold]
    #[inline(never)]
    fn ask(
        self: &Arc<Self>,
        send: &mut Send,
        in_flight: &mut InFlight,
        buf: &impl Memory,
        bytes: usize,
    ) -> Admission {
        if !in_flight.quotas_allow(buf.pool().into_iter(), &self.kernel) {
            return Admission::Full;
        }
        if !self.goes_without_copy(1, buf.io_vec().len()) {
            return Admission::Copy;
        }
        let admission = self.admit(&mut send.calls, in_flight, bytes);
        match admission {
            Admission::ZeroCopy => {
                send.calls.copies.revoke();
                self.register(send, buf.pool());
                in_flight.passes = self.passes(&send.calls, in_flight, buf.pool(), bytes);
            }
            Admission::Copy => send.calls.copies = in_flight.copies(buf.pool(), bytes),
            Admission::Full => {}
        }
        admission
    }

    /// Ends the send of a lone buffer whose call did not take all of it, or was come upon by
    /// somebody.
    #[cold]
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "all of what a send has so far")]
    fn conclude_call<P: IntoPayload>(
        self: &Arc<Self>,
        mut send: MutexGuard<'_, Send>,
        ticket: Ticket,
        memory: IoVec,
        part: &[IoVec; 1],
        id: NotificationId,
        sent: io::Result<usize>,
        awaited: bool,
    ) -> Result<Offered, SendError<P>> {
        let mut in_flight = self.in_flight();
        let bytes = part[0].len();
        let more = bytes < memory.len();
        let call = Call { keys: &[ALONE], memory: part, bytes, zero_copy: true, more };
        let called = self.called(&mut send.calls, &mut in_flight, call, id, sent, false);
        in_flight.unlocked(|| self.look_after(awaited));
        let accepted = *called.as_ref().unwrap_or(&0);
        if called.is_ok() && accepted == memory.len() {
            in_flight.settle(ALONE);
            self.unlock(send, in_flight);
            return Ok(Offered { ticket, whole: true });
        }
        send.outbox.put_rest(ticket, ALONE, memory, true, accepted);
        let sent = called.and_then(|_| self.flush(&mut send, &mut in_flight));
        self.conclude_lone(send, in_flight, ticket, sent)
    }

    /// Sends a buffer by copy. What the socket does not take of it becomes a lease.
    #[inline]
    fn offer_copied<P: IntoPayload>(
        self: &Arc<Self>,
        mut send: MutexGuard<'_, Send>,
        buf: P,
    ) -> Result<Offered, SendError<P>> {
        let memory = buf.io_vec();
        let len = memory.len();
        let bytes = len.min(self.call_limits.bytes);
        // Nothing to send is no call on a stream, and no copy anywhere.
        let is_call = bytes > 0 || self.kernel.transport().sends_nothing();
        let sent = match is_call {
            true => {
                let flags = SendFlags { zerocopy: false, more: bytes < len };
                self.kernel.send(&[memory.part(0, bytes)], flags)
            }
            false => Ok(0),
        };
        let mut in_flight = self.in_flight();
        let accepted = match sent {
            Ok(accepted) => accepted,
            Err(error) => {
                let stop = self.stopped(&mut send.calls, &mut in_flight, &error);
                self.unlock(send, in_flight);
                return Err(stop.into_send_error().map(|()| buf));
            }
        };
        send.calls.stuck = None;
        if is_call {
            in_flight.copied(accepted);
        }
        if accepted == len {
            let sequence = in_flight.done.ledger.open(0, len > 0);
            in_flight.make_room_for_return();
            let dropped = in_flight.done.hand_back(buf, sequence);
            self.unlock(send, in_flight);
            self.watch_hold();
            drop(dropped);
            return Ok(Offered { ticket: Ticket::new(self.id, sequence, len), whole: true });
        }
        self.offer_rest(send, in_flight, buf, false, accepted)
    }

    /// Takes custody of a buffer of which so many bytes went by copy, if any, and sends the rest.
    #[cold]
    #[inline(never)]
    fn offer_rest<P: IntoPayload>(
        self: &Arc<Self>,
        mut send: MutexGuard<'_, Send>,
        mut in_flight: MutexGuard<'_, InFlight>,
        buf: P,
        zero_copy: bool,
        accepted: usize,
    ) -> Result<Offered, SendError<P>> {
        let memory = buf.io_vec();
        let sequence = in_flight.done.ledger.open(1, accepted > 0);
        let ticket = Ticket::new(self.id, sequence, memory.len());
        self.register(&mut send, buf.pool());
        let (key, awaited) = in_flight.enter(buf, sequence);
        send.outbox.put_rest(ticket, key, memory, zero_copy, accepted);
        let sent = self.flush(&mut send, &mut in_flight);
        in_flight.unlocked(|| self.look_after(awaited));
        self.conclude_lone(send, in_flight, ticket, sent)
    }

    #[cold]
    fn conclude_lone<P: IntoPayload>(
        self: &Arc<Self>,
        send: MutexGuard<'_, Send>,
        in_flight: MutexGuard<'_, InFlight>,
        ticket: Ticket,
        sent: Result<(), Stop>,
    ) -> Result<Offered, SendError<P>> {
        let mut refused = None;
        let on_refused = |payload| refused = Some(P::from_payload(payload));
        let concluded = self.conclude(send, in_flight, ticket, sent, on_refused);
        concluded.map_err(|error| error.map(|()| refused.expect("comes back with the error")))
    }

    /// Takes all of `bufs` and sends; on an error that carries a buffer they are all back.
    pub(super) fn offer_all(
        self: &Arc<Self>,
        bufs: &mut Vec<Payload>,
    ) -> Result<Offered, SendError<()>> {
        if self.is_forked() {
            return Err(SendError::Forked(()));
        }
        let mut send = lock(&self.send);
        if let Err(error) = self.make_way(&mut send) {
            drop(send);
            self.dispose();
            return Err(error);
        }
        let mut in_flight = self.in_flight();
        if !in_flight.quotas_allow(bufs.iter().filter_map(Memory::pool), &self.kernel) {
            return Err(self.refuse(send, in_flight));
        }
        assert!(bufs.len() < 1 << 31, "fewer than 2^31 buffers in a send");
        let sequence = in_flight.done.ledger.open(bufs.len() as u32, false);
        let (mut len, mut awaited) = (0, false);
        for buf in bufs.drain(..) {
            self.register(&mut send, buf.pool());
            let memory = buf.io_vec();
            let (key, is_awaited) = in_flight.enter(buf, sequence);
            awaited |= is_awaited;
            len += memory.len();
            send.outbox.push(key, memory);
        }
        let ticket = Ticket::new(self.id, sequence, len);
        let without_copy = |elements, bytes| {
            in_flight.tries_zero_copy() && self.goes_without_copy(elements, bytes)
        };
        send.outbox.start(ticket, self.kernel.transport(), without_copy);
        let sent = self.flush(&mut send, &mut in_flight);
        in_flight.unlocked(|| self.look_after(awaited));
        self.conclude(send, in_flight, ticket, sent, |payload| bufs.push(payload))
    }

    /// Sees to it that nothing is in the way of another send.
    #[inline]
    fn make_way(&self, send: &mut Send) -> Result<(), SendError<()>> {
        if let Some(error) = send.calls.failed {
            return Err(SendError::Connection { error, buf: () });
        }
        if send.outbox.get().is_none_or(Outbox::is_empty) {
            return Ok(());
        }
        let mut in_flight = self.in_flight();
        self.flush_rest(send, &mut in_flight).map_err(Stop::into_send_error)
    }

    /// Ends a send that there is no room for.
    #[cold]
    fn refuse(
        &self,
        mut send: MutexGuard<'_, Send>,
        in_flight: MutexGuard<'_, InFlight>,
    ) -> SendError<()> {
        send.calls.stuck = Some(Stuck::Window);
        self.unlock(send, in_flight);
        SendError::WouldBlock(())
    }

    /// Ends a send that was entered. If nothing of it was accepted, all comes back.
    fn conclude(
        self: &Arc<Self>,
        mut send: MutexGuard<'_, Send>,
        mut in_flight: MutexGuard<'_, InFlight>,
        ticket: Ticket,
        sent: Result<(), Stop>,
        mut on_refused: impl FnMut(Payload),
    ) -> Result<Offered, SendError<()>> {
        let accepted = send.outbox.sending().map_or(0, |(_, accepted)| accepted);
        let result = match sent {
            Ok(()) => Ok(()),
            Err(stop) if accepted == 0 => {
                send.outbox.take(|key| on_refused(in_flight.withdraw(key)));
                in_flight.done.ledger.retract(ticket);
                Err(stop.into_send_error())
            }
            Err(stop) => match self.give_up(&mut send, &mut in_flight, stop) {
                Stop::Failed(error) => Err(SendError::Truncated { ticket, error }),
                Stop::Stuck | Stop::Refused(_) | Stop::Dropped(_) => Ok(()),
            },
        };
        let whole = send.outbox.is_empty();
        in_flight.has_rest = !whole;
        if !whole {
            // Once more: before, the reaper could have come by and seen no rest.
            in_flight.unlocked(|| self.look_after(false));
        }
        self.unlock(send, in_flight);
        result.map(|()| Offered { ticket, whole })
    }

    /// Has the sender watched if somebody waits for a slot of what it has just sent, or if that may
    /// be in flight for so long only. Not before: with nothing in flight yet the reaper would let
    /// go of the sender again.
    pub(super) fn look_after(self: &Arc<Self>, awaited: bool) {
        if awaited || self.config.max_hold.is_some() {
            Arc::clone(self).watch();
        }
    }

    /// Lets go of the locks after a send, and of what was let go of meanwhile.
    #[inline(always)]
    fn unlock(&self, send: MutexGuard<'_, Send>, in_flight: MutexGuard<'_, InFlight>) {
        let quiet = in_flight.done.is_quiet();
        drop(in_flight);
        drop(send);
        if !quiet {
            self.dispose();
        }
    }

    /// Makes this sender known to the pool of a buffer, so that a thread waiting there for a slot
    /// can read the notes that would free one.
    #[inline(always)]
    fn register(self: &Arc<Self>, send: &mut Send, pool: Option<&PoolHead>) {
        let Some(pool) = pool else { return };
        if send.pool != Some(pool.id()) {
            self.register_with(send, pool);
        }
    }

    #[cold]
    fn register_with(self: &Arc<Self>, send: &mut Send, pool: &PoolHead) {
        if !send.earlier_pools.contains(&pool.id()) {
            if let Some(earlier) = send.pool.replace(pool.id()) {
                // One that is forgotten here goes on knowing, and is told again by the next buffer.
                if send.earlier_pools.len() == POOLS - 1 {
                    send.earlier_pools.remove(0);
                }
                send.earlier_pools.push(earlier);
            }
            let sender: Arc<dyn Reclaim> = Arc::<Self>::clone(self);
            pool.register(Arc::downgrade(&sender));
        }
    }

    /// Sends what is left of the last send.
    pub(super) fn flush_rest(
        &self,
        send: &mut Send,
        in_flight: &mut MutexGuard<'_, InFlight>,
    ) -> Result<(), Stop> {
        if send.outbox.is_empty() {
            return Ok(());
        }
        // The send to come has to see whether there is something to dispose of.
        in_flight.passes.revoke();
        let before = send.outbox.sending();
        let flushed = self.flush(send, in_flight);
        if send.outbox.sending() != before {
            in_flight.done.news = true;
        }
        let flushed = flushed.map_err(|stop| self.give_up(send, in_flight, stop));
        in_flight.has_rest = !send.outbox.is_empty();
        flushed
    }

    /// If a stream cannot go on after a part of a send was accepted, that send is cut short and
    /// the connection is over: going on behind a gap would be silently wrong.
    fn give_up(&self, send: &mut Send, in_flight: &mut InFlight, stop: Stop) -> Stop {
        let error = match stop {
            Stop::Failed(error) => error,
            Stop::Refused(error) if error.raw() == errno::EFAULT => error,
            Stop::Stuck | Stop::Refused(_) | Stop::Dropped(_) => return stop,
        };
        send.calls.failed = Some(error);
        send.truncate(in_flight, error);
        Stop::Failed(error)
    }

    /// Sends what the outbox holds, until it is empty or something stops it. What a call did not
    /// take is asked for again: only a refusal tells that the socket is full, and that there will
    /// be news when it no longer is, and not that memory behind it cannot be read.
    fn flush(&self, send: &mut Send, in_flight: &mut MutexGuard<'_, InFlight>) -> Result<(), Stop> {
        let Send { outbox, calls, .. } = send;
        while let Some(call) = outbox.next_call(self.call_limits) {
            let accepted = self.call(calls, in_flight, call)?;
            outbox.advance(accepted, |key| in_flight.settle(key));
        }
        Ok(())
    }

    /// Whether neighbours of so many bytes go without copy if they can.
    #[inline]
    fn goes_without_copy(&self, elements: usize, bytes: usize) -> bool {
        let Config { threshold_bytes, .. } = self.config;
        self.kernel.transport().goes_without_copy(threshold_bytes, elements, bytes)
    }
}

impl Send {
    /// Lets go of everything that is not accepted.
    pub(super) fn truncate(&mut self, in_flight: &mut InFlight, error: OsError) {
        let Some((ticket, accepted)) = self.outbox.sending() else { return };
        in_flight.done.truncate(ticket, accepted, error);
        self.outbox.take(|key| in_flight.settle(key));
    }
}

impl<K: Kernel> fmt::Debug for Core<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
