//! The machine behind a sender: two locks, one for what is to be sent, one for what is in flight.
//!
//! Lock order: `ending`, `send`, `watch`, `in_flight`. None is held while user code runs (drops
//! of payloads, wakers) or while a thread waits: what a step lets go of is collected and disposed
//! of after the locks are free.

use std::{fmt, io, mem};

use super::{
    Config,
    ending::Ending,
    in_flight::InFlight,
    kernel::Kernel,
    outbox::{Call, Outbox},
    transport::CallLimits,
    window::{Admission, MemlockBudget, Window},
};
use crate::{
    error::{CopyReason, OsError, SendError},
    id::{NotificationId, Ticket},
    lease::{IntoPayload, Payload},
    raw::Reclaim,
    reaper,
    sync::{Arc, AtomicUsize, Held, Mutex, lock},
    sys::{errno, process::Process, socket::SendFlags},
};

/// Option memory the kernel takes for one note until it is read, in bytes: on 6.1 and 6.18. On
/// Debian's 6.12 it is 896; nothing but estimates and a statistic rests on the number.
const OPTMEM_PER_NOTE: u32 = 832;

/// Zero-copy calls after which the error queue is read at the latest.
const MAX_UNREAD_CALLS: usize = 32;

/// The shared part of a sender.
pub struct Core<K: Kernel> {
    pub(super) kernel: K,
    pub(super) config: Config,
    budget: Arc<MemlockBudget>,
    optmem_max: u32,
    /// Zero-copy calls after which the error queue is read.
    max_unread_calls: usize,
    call_limits: CallLimits,
    pub(super) send: Mutex<Send>,
    pub(super) in_flight: Mutex<InFlight>,
    /// The reaper's attention, for as long as it is of use to somebody.
    pub(super) watch: Mutex<Watch>,
    /// The end, once it has begun.
    pub(super) ending: Mutex<Option<Ending>>,
    /// The process that the sender belongs to.
    process: Process,
    /// Handles: 1, or 2 while split.
    pub(super) owners: AtomicUsize,
}

/// What is to be sent.
pub(super) struct Send {
    pub(super) outbox: Outbox,
    pub(super) window: Window,
    /// The first error of a connection that is over.
    pub(super) failed: Option<OsError>,
    /// Why the last attempt stopped.
    pub(super) stuck: Option<Stuck>,
    /// Whether the kernel has been seen to honour the flag.
    pub(super) verified: bool,
    /// Zero-copy calls since the error queue was last read.
    pub(super) unread_calls: usize,
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

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stuck {
    Socket,
    Window,
}

/// Why a flush ended with the outbox not empty.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    Stuck,
    /// The connection is over.
    Failed(OsError),
    /// The front of the outbox was refused; the connection is as it was.
    Refused(OsError),
    /// A datagram was accepted, and dropped below the socket.
    Dropped(OsError),
}

impl Stop {
    /// As the error of a send of which nothing was accepted.
    fn into_send_error(self) -> SendError<()> {
        match self {
            Self::Stuck => SendError::WouldBlock(()),
            Self::Failed(error) => SendError::Connection { error, buf: () },
            Self::Refused(error) if error.raw() == errno::EFAULT => SendError::BadAddress(()),
            Self::Refused(error) => SendError::Os { error, buf: () },
            Self::Dropped(error) => SendError::Dropped { error, buf: () },
        }
    }
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
        let max_unread_calls = (optmem_max / OPTMEM_PER_NOTE / 2) as usize;
        Arc::new(Self {
            call_limits: kernel.transport().call_limits(&budget),
            max_unread_calls: max_unread_calls.clamp(1, MAX_UNREAD_CALLS),
            kernel,
            config,
            budget,
            optmem_max,
            send: Mutex::new(Send {
                outbox: Outbox::default(),
                window: Window::new(bytes, sends),
                failed: None,
                stuck: None,
                verified: false,
                unread_calls: 0,
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

    #[inline]
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
    fn offer(self: &Arc<Self>, bufs: &mut impl Bufs) -> Result<Offered, SendError<()>> {
        let mut send = lock(&self.send);
        let mut in_flight = Held::new(&self.in_flight);
        let result = self.offer_locked(&mut send, &mut in_flight, bufs);
        let whole = send.outbox.is_empty();
        let quiet = in_flight.done.is_quiet();
        drop((in_flight, send));
        if !quiet {
            self.dispose();
        }
        result.map(|ticket| Offered { ticket, whole })
    }

    fn offer_locked(
        self: &Arc<Self>,
        send: &mut Send,
        in_flight: &mut Held<'_, InFlight>,
        bufs: &mut impl Bufs,
    ) -> Result<Ticket, SendError<()>> {
        if let Some(error) = send.failed {
            return Err(SendError::Connection { error, buf: () });
        }
        self.flush_rest(send, in_flight).map_err(Stop::into_send_error)?;
        self.register(send, bufs.as_slice());
        if !in_flight.quotas_allow(bufs.as_slice(), &self.kernel) {
            send.stuck = Some(Stuck::Window);
            return Err(SendError::WouldBlock(()));
        }
        let (ticket, awaited) = self.enter(send, in_flight, bufs);
        let flushed = self.flush(send, in_flight);
        // Not before: with nothing in flight yet the reaper would let go of the sender again.
        if awaited || self.config.max_hold.is_some() {
            in_flight.unlocked(|| Arc::clone(self).watch());
        }
        let Err(stop) = flushed else { return Ok(ticket) };
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
    fn register(self: &Arc<Self>, send: &mut Send, bufs: &[Payload]) {
        for buf in bufs {
            let Some(pool) = buf.pool() else { continue };
            if !send.pools.contains(&pool.id()) {
                send.pools.push(pool.id());
                let sender: Arc<dyn Reclaim> = Arc::<Self>::clone(self);
                pool.register(Arc::downgrade(&sender));
            }
        }
    }

    /// Moves `bufs` into the outbox as the next send; tells whether somebody waits for a slot of
    /// theirs.
    fn enter(
        &self,
        send: &mut Send,
        in_flight: &mut InFlight,
        bufs: &mut impl Bufs,
    ) -> (Ticket, bool) {
        let count = u32::try_from(bufs.as_slice().len());
        let count = count.expect("fewer than 2^32 buffers in a send");
        let sequence = in_flight.done.ledger.open(count);
        let (mut len, mut awaited) = (0, false);
        bufs.take_each(|buf| {
            let (key, memory) = in_flight.enter(buf, sequence);
            len += memory.len();
            send.outbox.push(key, memory);
            awaited |= in_flight.tracker.get(key).is_awaited();
        });
        let zero_copy = in_flight.copy_reason.is_none()
            && in_flight.route.concerns(in_flight.tracker.outstanding());
        let ticket = Ticket { sequence, len };
        let threshold_bytes = zero_copy.then_some(self.config.threshold_bytes);
        send.outbox.start(ticket, threshold_bytes, self.kernel.transport());
        (ticket, awaited)
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
        send.failed = Some(error);
        send.truncate(in_flight, error);
        Stop::Failed(error)
    }

    /// Sends what the outbox holds, until it is empty or something stops it.
    fn flush(&self, send: &mut Send, in_flight: &mut Held<'_, InFlight>) -> Result<(), Stop> {
        while let Some(call) = send.outbox.next_call(self.call_limits) {
            if call.zero_copy {
                self.send_zero_copy(send, in_flight, call)
            } else {
                self.send_copied(send, in_flight, call)
            }?;
            send.stuck = None;
        }
        Ok(())
    }

    fn send_copied(
        &self,
        send: &mut Send,
        in_flight: &mut Held<'_, InFlight>,
        call: Call,
    ) -> Result<(), Stop> {
        let flags = SendFlags { zerocopy: false, more: call.more };
        let accepted = match call.bytes {
            0 if !self.kernel.transport().sends_nothing() => 0,
            _ => match in_flight.unlocked(|| self.kernel.send(send.outbox.memory(), flags)) {
                Ok(accepted) => accepted,
                Err(error) => return Err(self.stopped(send, in_flight, &error)),
            },
        };
        self.accepted(send, in_flight, call, None, accepted)
    }

    fn send_zero_copy(
        &self,
        send: &mut Send,
        in_flight: &mut Held<'_, InFlight>,
        call: Call,
    ) -> Result<(), Stop> {
        let flags = SendFlags { zerocopy: true, more: false };
        let mut retried = false;
        loop {
            let id = match self.admit(send, in_flight, call) {
                Ok(id) => id,
                Err(Admission::Full) => {
                    send.stuck = Some(Stuck::Window);
                    return Err(Stop::Stuck);
                }
                Err(_) => return self.send_copied(send, in_flight, call),
            };
            let sent = in_flight.unlocked(|| self.kernel.send(send.outbox.memory(), flags));
            let error = match sent {
                Ok(accepted) if accepted > 0 => {
                    return self.accepted(send, in_flight, call, Some(id), accepted);
                }
                Ok(_) => io::ErrorKind::WouldBlock.into(),
                Err(error) => error,
            };
            let failed = in_flight.fail_call(&self.kernel, id, &send.outbox);
            if failed.took_id || error.raw_os_error() != Some(errno::ENOBUFS) {
                return match error.raw_os_error() {
                    // More parts of pages than a packet can have: 17.
                    Some(errno::EMSGSIZE) if !failed.took_id => {
                        self.send_copied(send, in_flight, call)
                    }
                    _ => Err(self.stopped(send, in_flight, &error)),
                };
            }
            self.count_no_bufs(in_flight);
            send.unread_calls = 0;
            let read = in_flight.read_notes(&self.kernel).unwrap_or_default();
            if failed.freed + read.ids == 0 || retried {
                let stats = &in_flight.done.stats;
                send.window.shrink(in_flight.tracker.outstanding(), stats.in_flight_bytes);
                return self.send_copied(send, in_flight, call);
            }
            retried = true;
        }
    }

    /// The id of a zero-copy call, or what must happen instead.
    fn admit(
        &self,
        send: &mut Send,
        in_flight: &mut InFlight,
        call: Call,
    ) -> Result<NotificationId, Admission> {
        if send.unread_calls >= self.max_unread_calls
            || in_flight.route.wants_notes(in_flight.tracker.outstanding())
        {
            send.unread_calls = 0;
            let _ = in_flight.read_notes(&self.kernel);
        }
        // A full window is looked at again after reading the notes, and once more after asking
        // whether a note went astray.
        for attempt in 0.. {
            let (sends, bytes) =
                (in_flight.tracker.outstanding(), in_flight.done.stats.in_flight_bytes);
            if in_flight.copy_reason.is_some()
                || !in_flight.route.admits(sends, || self.kernel.now())
            {
                return Err(Admission::Copy);
            }
            let admission = send.window.admit(&self.budget, call.bytes, sends, bytes);
            match (admission, attempt) {
                (Admission::ZeroCopy, _) => break,
                (Admission::Full, 0) => {
                    send.unread_calls = 0;
                    let _ = in_flight.read_notes(&self.kernel);
                }
                (Admission::Full, 1) => {
                    in_flight.prove(&self.kernel);
                }
                (other, _) => return Err(other),
            }
        }
        in_flight.begin_call(&self.kernel, &send.outbox, call.bytes).ok_or_else(|| {
            self.budget.refund(1, call.bytes);
            Admission::Copy
        })
    }

    /// The kernel took `accepted` bytes of the call last cut.
    fn accepted(
        &self,
        send: &mut Send,
        in_flight: &mut InFlight,
        call: Call,
        id: Option<NotificationId>,
        accepted: usize,
    ) -> Result<(), Stop> {
        in_flight.route.accepted(accepted);
        match id {
            Some(id) => {
                in_flight.in_call = false;
                if accepted < call.bytes {
                    in_flight.tracker.trim(id, send.outbox.covered(accepted));
                }
                in_flight.done.stats.zero_copy_calls += 1;
                in_flight.done.stats.zero_copy_bytes += accepted as u64;
                send.window.went_well();
                send.unread_calls += 1;
            }
            None => {
                for key in &send.outbox.keys()[..send.outbox.covered(accepted)] {
                    in_flight.tracker.get_mut(*key).copied = true;
                }
                let made = call.bytes > 0 || self.kernel.transport().sends_nothing();
                in_flight.done.stats.copied_calls += u64::from(made);
                in_flight.done.stats.copied_bytes += accepted as u64;
            }
        }
        send.outbox.advance(accepted, |key| in_flight.settle(key));
        if id.is_some() && !mem::replace(&mut send.verified, true) {
            self.verify(in_flight);
        }
        if accepted < call.bytes {
            send.stuck = Some(Stuck::Socket);
            return Err(Stop::Stuck);
        }
        Ok(())
    }

    /// After the first zero-copy call: option memory reading 0 with the id outstanding means that
    /// the kernel took the option and ignored the flag, so nothing is in flight.
    fn verify(&self, in_flight: &mut InFlight) {
        if in_flight.tracker.outstanding() > 0 && matches!(self.kernel.optmem(), Ok(0)) {
            in_flight.release_all();
            in_flight.copy_reason = Some(CopyReason::Ignored);
        }
    }

    /// Which limit the kernel ran into.
    fn count_no_bufs(&self, in_flight: &mut InFlight) {
        let used = self.kernel.optmem().unwrap_or(0);
        if used.saturating_add(OPTMEM_PER_NOTE) > self.optmem_max {
            in_flight.done.stats.no_bufs_optmem += 1;
        } else {
            in_flight.done.stats.no_bufs_memlock += 1;
        }
    }

    /// What a failed call means.
    fn stopped(&self, send: &mut Send, in_flight: &mut InFlight, error: &io::Error) -> Stop {
        if error.kind() == io::ErrorKind::WouldBlock {
            send.stuck = Some(Stuck::Socket);
            return Stop::Stuck;
        }
        send.stuck = None;
        let error = OsError::from(error);
        if errno::ends_connection(error.raw()) {
            Stop::Failed(*send.failed.get_or_insert(error))
        } else if self.kernel.transport().is_drop(error.raw()) {
            in_flight.done.stats.dropped_sends += 1;
            Stop::Dropped(error)
        } else {
            Stop::Refused(error)
        }
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
    fn take_each(&mut self, on_payload: impl FnMut(Payload));
    fn put_back(&mut self, payload: Payload);
}

impl Bufs for Option<Payload> {
    fn as_slice(&self) -> &[Payload] {
        self.as_slice()
    }

    fn take_each(&mut self, on_payload: impl FnMut(Payload)) {
        self.take().into_iter().for_each(on_payload);
    }

    fn put_back(&mut self, payload: Payload) {
        *self = Some(payload);
    }
}

impl Bufs for Vec<Payload> {
    fn as_slice(&self) -> &[Payload] {
        self
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
