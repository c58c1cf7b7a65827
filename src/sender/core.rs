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
    window::{Admission, MemlockBudget, Window},
};
use crate::{
    error::{CopyReason, OsError, SendError},
    id::{NotificationId, Ticket},
    lease::{IntoPayload, Payload},
    raw::Reclaim,
    reaper,
    sync::{Arc, AtomicUsize, Mutex, lock},
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
    /// Room for the payloads of a send on their way in.
    pub(super) staging: Vec<Payload>,
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
        Arc::new(Self {
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
                staging: Vec::new(),
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
        if self.is_forked() {
            return Err(SendError::Forked(buf));
        }
        let mut send = lock(&self.send);
        let mut bufs = mem::take(&mut send.staging);
        bufs.push(buf.into_payload());
        let result = self.offer(&mut send, &mut bufs).map_err(|error| {
            error.map(|()| P::from_payload(bufs.pop().expect("comes back with the error")))
        });
        send.staging = bufs;
        drop(send);
        self.dispose();
        result
    }

    /// Sends all of `bufs` as one send, as far as the socket takes it.
    pub fn try_send_vectored(
        self: &Arc<Self>,
        bufs: &mut Vec<Payload>,
    ) -> Result<Ticket, SendError<()>> {
        if self.is_forked() {
            return Err(SendError::Forked(()));
        }
        let result = self.offer(&mut lock(&self.send), bufs);
        self.dispose();
        result
    }

    /// Takes all of `bufs` and sends; on an error that carries a buffer they are all back.
    fn offer(
        self: &Arc<Self>,
        send: &mut Send,
        bufs: &mut Vec<Payload>,
    ) -> Result<Ticket, SendError<()>> {
        if let Some(error) = send.failed {
            return Err(SendError::Connection { error, buf: () });
        }
        self.flush_rest(send).map_err(Stop::into_send_error)?;
        if !lock(&self.in_flight).quotas_allow(bufs, &self.kernel) {
            send.stuck = Some(Stuck::Window);
            return Err(SendError::WouldBlock(()));
        }
        self.register(send, bufs);
        let (ticket, awaited) = self.enter(send, bufs);
        let flushed = self.flush(send);
        // Not before: with nothing in flight yet the reaper would let go of the sender again.
        if awaited || self.config.max_hold.is_some() {
            Arc::clone(self).watch();
        }
        let Err(stop) = flushed else { return Ok(ticket) };
        let accepted = send.outbox.sending().map_or(0, |(_, accepted)| accepted);
        if accepted == 0 {
            let mut in_flight = lock(&self.in_flight);
            bufs.extend(send.outbox.take().map(|key| in_flight.withdraw(key)));
            in_flight.done.ledger.retract(ticket.sequence);
            return Err(stop.into_send_error());
        }
        match self.give_up(send, stop) {
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
    fn enter(&self, send: &mut Send, bufs: &mut Vec<Payload>) -> (Ticket, bool) {
        let mut in_flight = lock(&self.in_flight);
        let count = u32::try_from(bufs.len()).expect("fewer than 2^32 buffers in a send");
        let sequence = in_flight.done.ledger.open(count);
        let (mut len, mut awaited) = (0, false);
        for buf in bufs.drain(..) {
            let (key, memory) = in_flight.enter(buf, sequence);
            len += memory.len();
            send.outbox.push(key, memory);
            awaited |= in_flight.tracker.get(key).is_awaited();
        }
        let zero_copy = in_flight.copy_reason.is_none()
            && in_flight.route.concerns(in_flight.tracker.outstanding());
        let ticket = Ticket { sequence, len };
        let threshold_bytes = zero_copy.then_some(self.config.threshold_bytes);
        send.outbox.start(ticket, threshold_bytes, self.kernel.transport());
        (ticket, awaited)
    }

    /// Sends what is left of the last send.
    pub(super) fn flush_rest(&self, send: &mut Send) -> Result<(), Stop> {
        let before = send.outbox.sending();
        let flushed = self.flush(send);
        if send.outbox.sending() != before {
            lock(&self.in_flight).done.news = true;
        }
        flushed.map_err(|stop| self.give_up(send, stop))
    }

    /// If a stream cannot go on after a part of a send was accepted, that send is cut short and
    /// the connection is over: going on behind a gap would be silently wrong.
    fn give_up(&self, send: &mut Send, stop: Stop) -> Stop {
        let error = match stop {
            Stop::Failed(error) => error,
            Stop::Refused(error) if error.raw() == errno::EFAULT => error,
            Stop::Stuck | Stop::Refused(_) | Stop::Dropped(_) => return stop,
        };
        send.failed = Some(error);
        self.truncate(send, error);
        Stop::Failed(error)
    }

    /// Lets go of everything that is not accepted.
    pub(super) fn truncate(&self, send: &mut Send, error: OsError) {
        let Some((ticket, accepted)) = send.outbox.sending() else { return };
        let mut in_flight = lock(&self.in_flight);
        in_flight.done.truncate(ticket, accepted, error);
        send.outbox.take().for_each(|key| in_flight.settle(key));
    }

    /// Sends what the outbox holds, until it is empty or something stops it.
    fn flush(&self, send: &mut Send) -> Result<(), Stop> {
        let limits = self.kernel.transport().call_limits(&self.budget);
        while let Some(call) = send.outbox.next_call(limits) {
            if call.zero_copy {
                self.send_zero_copy(send, call)
            } else {
                self.send_copied(send, call)
            }?;
            send.stuck = None;
        }
        Ok(())
    }

    fn send_copied(&self, send: &mut Send, call: Call) -> Result<(), Stop> {
        let flags = SendFlags { zerocopy: false, more: call.more };
        let accepted = match call.bytes {
            0 if !self.kernel.transport().sends_nothing() => 0,
            _ => match self.kernel.send(send.outbox.memory(), flags) {
                Ok(accepted) => accepted,
                Err(error) => return Err(self.stopped(send, &error)),
            },
        };
        self.accepted(send, call, None, accepted)
    }

    fn send_zero_copy(&self, send: &mut Send, call: Call) -> Result<(), Stop> {
        let flags = SendFlags { zerocopy: true, more: false };
        let mut retried = false;
        loop {
            let id = match self.admit(send, call) {
                Ok(id) => id,
                Err(Admission::Full) => {
                    send.stuck = Some(Stuck::Window);
                    return Err(Stop::Stuck);
                }
                Err(_) => return self.send_copied(send, call),
            };
            let error = match self.kernel.send(send.outbox.memory(), flags) {
                Ok(accepted) if accepted > 0 => {
                    return self.accepted(send, call, Some(id), accepted);
                }
                Ok(_) => io::ErrorKind::WouldBlock.into(),
                Err(error) => error,
            };
            let mut in_flight = lock(&self.in_flight);
            let failed = in_flight.fail_call(&self.kernel, id, &send.outbox);
            if failed.took_id || error.raw_os_error() != Some(errno::ENOBUFS) {
                drop(in_flight);
                return match error.raw_os_error() {
                    // More parts of pages than a packet can have: 17.
                    Some(errno::EMSGSIZE) if !failed.took_id => self.send_copied(send, call),
                    _ => Err(self.stopped(send, &error)),
                };
            }
            self.count_no_bufs(&mut in_flight);
            send.unread_calls = 0;
            let read = in_flight.read_notes(&self.kernel).unwrap_or_default();
            if failed.freed + read.ids == 0 || retried {
                let stats = &in_flight.done.stats;
                send.window.shrink(in_flight.tracker.outstanding(), stats.in_flight_bytes);
                drop(in_flight);
                return self.send_copied(send, call);
            }
            retried = true;
        }
    }

    /// The id of a zero-copy call, or what must happen instead.
    fn admit(&self, send: &mut Send, call: Call) -> Result<NotificationId, Admission> {
        let (keys, memory) = (send.outbox.keys(), send.outbox.memory());
        let mut in_flight = lock(&self.in_flight);
        let unread_limit = (self.optmem_max / OPTMEM_PER_NOTE / 2) as usize;
        let outstanding = in_flight.tracker.outstanding();
        if send.unread_calls >= unread_limit.clamp(1, MAX_UNREAD_CALLS)
            || in_flight.route.wants_notes(outstanding)
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
        in_flight.begin_call(keys, memory, self.kernel.now()).ok_or_else(|| {
            self.budget.refund(1, call.bytes);
            Admission::Copy
        })
    }

    /// The kernel took `accepted` bytes of the call last cut.
    fn accepted(
        &self,
        send: &mut Send,
        call: Call,
        id: Option<NotificationId>,
        accepted: usize,
    ) -> Result<(), Stop> {
        let mut in_flight = lock(&self.in_flight);
        in_flight.route.accepted(accepted);
        let keys = send.outbox.keys();
        let covered = send.outbox.covered(accepted);
        match id {
            Some(id) => {
                in_flight.in_call = false;
                if covered < keys.len() {
                    in_flight.tracker.trim(id, covered);
                }
                in_flight.done.stats.zero_copy_calls += 1;
                in_flight.done.stats.zero_copy_bytes += accepted as u64;
                send.window.went_well();
                send.unread_calls += 1;
            }
            None => {
                for key in &keys[..covered] {
                    in_flight.tracker.get_mut(*key).copied = true;
                }
                let made = call.bytes > 0 || self.kernel.transport().sends_nothing();
                in_flight.done.stats.copied_calls += u64::from(made);
                in_flight.done.stats.copied_bytes += accepted as u64;
            }
        }
        send.outbox.advance(accepted, |key| in_flight.settle(key));
        if id.is_some() && !mem::replace(&mut send.verified, true) {
            self.verify(&mut in_flight);
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
    fn stopped(&self, send: &mut Send, error: &io::Error) -> Stop {
        if error.kind() == io::ErrorKind::WouldBlock {
            send.stuck = Some(Stuck::Socket);
            return Stop::Stuck;
        }
        send.stuck = None;
        let error = OsError::from(error);
        if errno::ends_connection(error.raw()) {
            Stop::Failed(*send.failed.get_or_insert(error))
        } else if self.kernel.transport().is_drop(error.raw()) {
            lock(&self.in_flight).done.stats.dropped_sends += 1;
            Stop::Dropped(error)
        } else {
            Stop::Refused(error)
        }
    }
}

impl<K: Kernel> fmt::Debug for Core<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
