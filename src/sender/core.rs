//! The machine behind a sender: two locks, one for what is to be sent, one for what is in flight.
//!
//! Lock order: `ending`, `send`, `watch`, `in_flight`. None is held while user code runs (drops
//! of payloads, wakers) or while a thread waits: what a step lets go of is collected and disposed
//! of after the locks are free.

use std::fmt;

use super::{
    Config,
    call::{Call, Calls, Stop, Stuck},
    ending::Ending,
    in_flight::InFlight,
    kernel::Kernel,
    outbox::Outbox,
    rare::Rare,
    transport::CallLimits,
    window::{MemlockBudget, Window},
};
use crate::{
    error::{CopyReason, OsError, SendError},
    id::{NotificationId, Ticket},
    lease::{IntoPayload, Payload},
    raw::Reclaim,
    reaper,
    sync::{Arc, AtomicUsize, Held, Mutex, lock},
    sys::{errno, process::Process, socket::IoVec},
    tracker::LeaseKey,
};

/// The shared part of a sender.
pub struct Core<K: Kernel> {
    pub(super) kernel: K,
    pub(super) config: Config,
    pub(super) budget: Arc<MemlockBudget>,
    pub(super) optmem_max: u32,
    call_limits: CallLimits,
    pub(super) send: Mutex<Send>,
    pub(super) in_flight: Mutex<InFlight>,
    /// The reaper's attention, for as long as it is of use to somebody.
    pub(super) watch: Mutex<Watch>,
    /// The end, once it has begun.
    pub(super) ending: Mutex<Option<Box<Ending>>>,
    /// The process that the sender belongs to.
    process: Process,
    /// Handles: 1, or 2 while split.
    pub(super) owners: AtomicUsize,
}

/// What is to be sent.
pub(super) struct Send {
    /// What a send of one buffer that the socket takes whole has no need of.
    pub(super) outbox: Rare<Outbox>,
    pub(super) calls: Calls,
    /// Pools that know this sender.
    pub(super) pools: Vec<u64>,
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
            kernel,
            config,
            budget,
            optmem_max,
            send: Mutex::new(Send {
                outbox: Rare::default(),
                calls: Calls::new(Window::new(bytes, sends), optmem_max),
                pools: Vec::new(),
            }),
            in_flight: Mutex::new(in_flight),
            watch: Mutex::new(Watch::Off),
            ending: Mutex::new(None),
            process: Process::this(),
            owners: AtomicUsize::new(1),
        })
    }

    /// Whether the sender is that of the process this one was forked from. Then its socket, the
    /// notes above all, is that process's, and its locks may be taken for ever.
    #[inline]
    pub(super) fn is_forked(&self) -> bool {
        !self.process.is_this()
    }

    /// Sends one buffer, as far as the socket takes it.
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

    #[inline(always)]
    pub(super) fn offer_one<P: IntoPayload>(
        self: &Arc<Self>,
        buf: P,
    ) -> Result<Offered, SendError<P>> {
        if self.is_forked() {
            return Err(SendError::Forked(buf));
        }
        let mut buf = Some(buf.into_payload());
        self.offer(&mut buf).map_err(|error| {
            error.map(|()| P::from_payload(buf.expect("comes back with the error")))
        })
    }

    pub(super) fn offer_all(
        self: &Arc<Self>,
        bufs: &mut Vec<Payload>,
    ) -> Result<Offered, SendError<()>> {
        if self.is_forked() {
            return Err(SendError::Forked(()));
        }
        self.offer(bufs)
    }

    /// Takes all of `bufs` and sends; on an error that carries a buffer they are all back.
    #[inline(always)]
    fn offer(self: &Arc<Self>, bufs: &mut impl Bufs) -> Result<Offered, SendError<()>> {
        let mut send = lock(&self.send);
        let mut in_flight = Held::new(&self.in_flight);
        let result = self.offer_locked(&mut send, &mut in_flight, bufs);
        let whole = send.outbox.is_empty();
        let state = &mut *in_flight;
        state.has_rest = !whole;
        let settled = state.done.take_lone();
        let quiet = state.done.is_quiet();
        drop(in_flight);
        drop(send);
        drop(settled);
        if !quiet {
            self.dispose();
        }
        result.map(|ticket| Offered { ticket, whole })
    }

    #[inline(always)]
    fn offer_locked(
        self: &Arc<Self>,
        send: &mut Send,
        in_flight: &mut Held<'_, InFlight>,
        bufs: &mut impl Bufs,
    ) -> Result<Ticket, SendError<()>> {
        if let Some(error) = send.calls.failed {
            return Err(SendError::Connection { error, buf: () });
        }
        if !send.outbox.is_empty() {
            self.flush_rest(send, in_flight).map_err(Stop::into_send_error)?;
        }
        self.register(send, bufs.as_slice());
        if !in_flight.quotas_allow(bufs.as_slice(), &self.kernel) {
            send.calls.stuck = Some(Stuck::Window);
            return Err(SendError::WouldBlock(()));
        }
        let (ticket, awaited, sent) = self.enter(send, in_flight, bufs);
        // Not before: with nothing in flight yet the reaper would let go of the sender again.
        if awaited || self.config.max_hold.is_some() {
            in_flight.unlocked(|| Arc::clone(self).watch());
        }
        let Err(stop) = sent else { return Ok(ticket) };
        let accepted = send.outbox.sending().map_or(0, |(_, accepted)| accepted);
        if accepted == 0 {
            send.outbox.take(|key| bufs.put_back(in_flight.withdraw(key)));
            in_flight.done.ledger.retract(ticket.sequence);
            return Err(stop.into_send_error());
        }
        match self.give_up(send, in_flight, stop) {
            Stop::Failed(error) => Err(SendError::Truncated { ticket, error }),
            Stop::Stuck | Stop::Refused(_) | Stop::Dropped(_) => Ok(ticket),
        }
    }

    /// Makes this sender known to the pools of `bufs`, so that a thread waiting there for a slot
    /// can read the notes that would free one.
    #[inline]
    fn register(self: &Arc<Self>, send: &mut Send, bufs: &[Payload]) {
        for buf in bufs {
            let Some(pool) = buf.pool() else { continue };
            if !send.pools.contains(&pool.id()) {
                send.pools.reserve_exact(1);
                send.pools.push(pool.id());
                let sender: Arc<dyn Reclaim> = Arc::<Self>::clone(self);
                pool.register(Arc::downgrade(&sender));
            }
        }
    }

    /// Takes `bufs` as the next send and sends; tells whether somebody waits for a slot of theirs.
    #[inline(always)]
    fn enter(
        &self,
        send: &mut Send,
        in_flight: &mut Held<'_, InFlight>,
        bufs: &mut impl Bufs,
    ) -> (Ticket, bool, Result<(), Stop>) {
        let count = u32::try_from(bufs.as_slice().len());
        let count = count.expect("fewer than 2^32 buffers in a send");
        let state = &mut **in_flight;
        let sequence = state.done.ledger.open(count);
        if let Some(buf) = bufs.take_lone() {
            let (key, memory, awaited) = state.enter(buf, sequence);
            let ticket = Ticket { sequence, len: memory.len() };
            return (ticket, awaited, self.send_lone(send, in_flight, ticket, key, memory));
        }
        let (mut len, mut awaited) = (0, false);
        bufs.take_each(|buf| {
            let (key, memory, is_awaited) = state.enter(buf, sequence);
            awaited |= is_awaited;
            len += memory.len();
            send.outbox.push(key, memory);
        });
        let ticket = Ticket { sequence, len };
        let without_copy = |elements, bytes| self.goes_without_copy(in_flight, elements, bytes);
        send.outbox.start(ticket, self.kernel.transport(), without_copy);
        (ticket, awaited, self.flush(send, in_flight))
    }

    /// Sends what is left of the last send.
    pub(super) fn flush_rest(
        &self,
        send: &mut Send,
        in_flight: &mut Held<'_, InFlight>,
    ) -> Result<(), Stop> {
        if send.outbox.is_empty() {
            return Ok(());
        }
        let before = send.outbox.sending();
        let flushed = self.flush(send, in_flight);
        if send.outbox.sending() != before {
            in_flight.done.news = true;
        }
        flushed.map_err(|stop| self.give_up(send, in_flight, stop))
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
    fn flush(&self, send: &mut Send, in_flight: &mut Held<'_, InFlight>) -> Result<(), Stop> {
        let Send { outbox, calls, .. } = send;
        while let Some(call) = outbox.next_call(self.call_limits) {
            let accepted = self.call(calls, in_flight, call)?;
            outbox.advance(accepted, |key| in_flight.settle(key));
        }
        Ok(())
    }

    /// Sends the only buffer of a send, which has just been entered. What its first call leaves of
    /// it goes to the outbox.
    #[inline(always)]
    fn send_lone(
        &self,
        send: &mut Send,
        in_flight: &mut Held<'_, InFlight>,
        ticket: Ticket,
        key: LeaseKey,
        memory: IoVec,
    ) -> Result<(), Stop> {
        let bytes = ticket.len.min(self.call_limits.bytes);
        let zero_copy = self.goes_without_copy(in_flight, 1, ticket.len);
        let (keys, part) = ([key], [memory.part(0, bytes)]);
        let call = Call { keys: &keys, memory: &part, bytes, zero_copy, more: bytes < ticket.len };
        let called = self.call(&mut send.calls, in_flight, call);
        let accepted = *called.as_ref().unwrap_or(&0);
        if called.is_ok() && accepted == ticket.len {
            in_flight.settle(key);
            return Ok(());
        }
        send.outbox.put_rest(ticket, key, memory, zero_copy, accepted);
        called?;
        self.flush(send, in_flight)
    }

    /// Whether neighbours of so many bytes go without copy.
    #[inline]
    fn goes_without_copy(&self, in_flight: &InFlight, elements: usize, bytes: usize) -> bool {
        let Config { threshold_bytes, .. } = self.config;
        in_flight.tries_zero_copy()
            && self.kernel.transport().goes_without_copy(threshold_bytes, elements, bytes)
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

/// Payloads on their way in, and back out if they are refused.
trait Bufs {
    fn as_slice(&self) -> &[Payload];
    /// The only one, if it is known to be that.
    fn take_lone(&mut self) -> Option<Payload>;
    fn take_each(&mut self, on_payload: impl FnMut(Payload));
    fn put_back(&mut self, payload: Payload);
}

impl Bufs for Option<Payload> {
    fn as_slice(&self) -> &[Payload] {
        self.as_slice()
    }

    fn take_lone(&mut self) -> Option<Payload> {
        self.take()
    }

    fn take_each(&mut self, _: impl FnMut(Payload)) {}

    fn put_back(&mut self, payload: Payload) {
        *self = Some(payload);
    }
}

impl Bufs for Vec<Payload> {
    fn as_slice(&self) -> &[Payload] {
        self
    }

    fn take_lone(&mut self) -> Option<Payload> {
        None
    }

    fn take_each(&mut self, on_payload: impl FnMut(Payload)) {
        self.drain(..).for_each(on_payload);
    }

    fn put_back(&mut self, payload: Payload) {
        self.push(payload);
    }
}

impl<K: Kernel> fmt::Debug for Core<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
