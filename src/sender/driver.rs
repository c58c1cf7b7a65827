//! Carries out the machine's acts and answers its questions, under one lock, and lets buffers in.

use std::{fmt, io, task::Waker, time::Duration};

use super::{
    budget::MemlockBudget,
    config::Config,
    kernel::{Interest, Kernel},
    machine::{Act, Disposal, Goal, Item, LoneCall, Machine, Offered, Question, Read, Stop, Way},
    telemetry::{Cause, Scope},
    transport::MIN_ZERO_COPY_ELEMENT,
};
use crate::{
    error::{CopyReason, OsError, SendError},
    id::{NotificationId, SenderId, Ticket},
    lease::{IntoPayload, Memory, Payload},
    lock::{Condition, Mutex, MutexGuard, left::LeftCall, lock},
    panics::Panics,
    raw::{PoolHead, Reclaim},
    reaper,
    sync::{Arc, Weak, unique_id},
    sys::{
        barrier, errno,
        message::Header,
        process::Process,
        socket::{IoVec, SendFlags},
    },
};

/// Batches of notifications read in one go, so that a busy peer cannot keep a thread for ever.
pub(super) const MAX_BATCHES: usize = 64;

/// The shared part of a sender: the machine, its lock and its socket.
///
/// Lock order: `watch`, `machine`. Neither is held while user code runs (drops of payloads, wakers),
/// during a call that sends, or while a thread waits.
#[repr(C)]
pub struct Core<K: Kernel> {
    /// The process that the sender belongs to.
    process: Process,
    /// A lone buffer below this goes by copy.
    least_without_copy: usize,
    pub(super) kernel: K,
    /// The end of a call that is left.
    left: LeftCall,
    machine: Mutex<Machine>,
    pub(super) id: SenderId,
    /// For threads that wait until the call of another thread is over.
    call_over: Condition,
    pub(super) max_hold: Option<Duration>,
    /// The peer's silence is limited.
    pub(super) limits_silence: bool,
    /// The reaper's attention.
    pub(super) watch: Mutex<Watch>,
    pub(super) this: Weak<Self>,
    scope: Scope,
}

/// The care of the reaper.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Watch {
    Off,
    On(reaper::Token),
    /// In the care of a reaper that has no thread.
    Unserved(reaper::Token),
    /// The sender is gone: no thread can want it driven any more.
    Over,
}

/// The result of a run of the driver.
#[derive(Debug)]
pub struct Step {
    /// The messages read from the error queue.
    pub read: Read,
    /// The reason for an unsent part, after a call for it.
    pub(super) stop: Option<Stop>,
    /// The way of a buffer that was let in.
    pub(super) way: Option<Way>,
    /// When to look again though nothing happens.
    pub(super) look_again: Option<Duration>,
    /// The changes up to the end of the run.
    pub(super) changes: u64,
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
        let id = SenderId::new(unique_id());
        let transport = kernel.transport();
        let mut machine =
            Machine::new(id, config, transport, copy_reason, budget, optmem_max, first);
        machine.leaves &= barrier::is_available();
        Arc::new_cyclic(|this| Self {
            process: Process::this(),
            least_without_copy: config.threshold_bytes.max(MIN_ZERO_COPY_ELEMENT),
            id,
            kernel,
            machine: Mutex::new(machine),
            left: LeftCall::default(),
            call_over: Condition::new(),
            max_hold: config.max_hold,
            limits_silence: config.max_hold.is_some() && transport.has_end(),
            watch: Mutex::new(Watch::Off),
            this: Weak::clone(this),
            scope: Scope::current(),
        })
    }

    /// Returns `true` in a forked child. The socket and its notifications then belong to the
    /// parent, and a lock may be held by a thread that does not exist here.
    #[inline]
    pub(super) fn is_forked(&self) -> bool {
        !self.process.is_this()
    }

    /// Takes the lock.
    #[inline(always)]
    pub(super) fn enter(&self) -> MutexGuard<'_, Machine> {
        let mut machine = lock(&self.machine);
        self.entered(&mut machine);
        machine
    }

    /// Takes the lock, except in a forked child.
    pub(super) fn enter_own(&self) -> Option<MutexGuard<'_, Machine>> {
        (!self.is_forked()).then(|| self.enter())
    }

    /// This thread has just taken the lock: settles a call with a left end.
    #[inline(always)]
    fn entered(&self, machine: &mut Machine) {
        if machine.is_left() {
            if self.left.is_done() || self.left.meet() {
                machine.settle_left();
            } else {
                machine.meet_call();
            }
        }
    }

    /// Takes the lock after a call of this thread has returned, and wakes the threads that wait for
    /// its end: they look once the lock is released. The call of a lone buffer may be settled
    /// already: a thread has seen its end while this one saw that it was met.
    #[inline(always)]
    fn enter_after_call(&self) -> MutexGuard<'_, Machine> {
        let machine = lock(&self.machine);
        if machine.awaiting > 0 {
            self.call_over.notify_all();
        }
        machine
    }

    /// Waits until no call is out.
    pub(super) fn await_call<'a>(
        &'a self,
        mut machine: MutexGuard<'a, Machine>,
    ) -> MutexGuard<'a, Machine> {
        while machine.is_calling() {
            machine.awaiting += 1;
            machine = self.call_over.wait(machine);
            machine.awaiting -= 1;
            self.entered(&mut machine);
        }
        machine
    }

    /// Runs the machine for a goal until there is nothing left to do for it.
    pub(super) fn advance<'a>(
        &'a self,
        machine: MutexGuard<'a, Machine>,
        goal: Goal,
    ) -> (MutexGuard<'a, Machine>, Step) {
        self.advance_with(machine, goal, None)
    }

    /// As [`advance`](Self::advance), with the header of the datagram that is being settled.
    ///
    /// No other thread sends that datagram: its calls follow each other in one run, and between them
    /// the lock is held. So the machine need not keep the header.
    fn advance_with<'a>(
        &'a self,
        mut machine: MutexGuard<'a, Machine>,
        mut goal: Goal,
        header: Option<&Header>,
    ) -> (MutexGuard<'a, Machine>, Step) {
        let mut read = Read::default();
        let mut look_again = None;
        let mut panics = Panics::default();
        machine.begin_run(goal);
        loop {
            machine.forget();
            let act = self.answer(&mut machine, goal);
            read += machine.take_read();
            match act {
                Act::Send(call) => {
                    drop(machine);
                    let sent = self.transmit(call.memory(), call.flags(), header);
                    machine = self.enter_after_call();
                    machine.returned(call, sent.map_err(|error| os(&error)));
                }
                Act::AwaitCall => machine = self.await_call(machine),
                Act::Dispose(disposal, woken) => {
                    // All else is done for the goal. To begin anew would read the queue again.
                    goal = Goal::Tidy;
                    look_again = machine.known.look_again.or(look_again);
                    drop(machine);
                    machine = self.dispose(disposal, woken, &mut panics);
                }
                Act::Watch => {
                    drop(machine);
                    if let Some(this) = self.this.upgrade() {
                        this.watch();
                    }
                    machine = self.enter();
                }
                Act::Done(way) => {
                    let stop = machine.blocked;
                    let look_again = machine.known.look_again.or(look_again);
                    if panics.any() {
                        drop(machine);
                        panics.resume();
                        machine = self.enter();
                    }
                    let changes = machine.changes();
                    return (machine, Step { read, stop, way, look_again, changes });
                }
            }
        }
    }

    /// Makes one call.
    #[inline(always)]
    fn transmit(
        &self,
        memory: &[IoVec],
        flags: SendFlags,
        header: Option<&Header>,
    ) -> io::Result<usize> {
        match header {
            None => self.kernel.send(memory, flags),
            Some(header) => self.kernel.send_with(memory, flags, header),
        }
    }

    /// Answers the machine's questions until it asks for an act. There is no guard here, so no other
    /// thread can come between a question and its answer.
    fn answer(&self, machine: &mut Machine, goal: Goal) -> Act {
        loop {
            let question = match machine.next(goal) {
                Ok(act) => return act,
                Err(question) => question,
            };
            match question {
                Question::Queue | Question::QueueToEnd => {
                    let error = self.read_queue(machine, question == Question::QueueToEnd).err();
                    machine.queue_read(question, error);
                }
                Question::Optmem => machine.known.optmem = Some(self.kernel.optmem().ok()),
                Question::Unacked => machine.known.unacked = Some(self.kernel.unacked().ok()),
                Question::Time => machine.known.time = Some(self.kernel.now()),
                Question::Room => {
                    let room = Interest { writable: true, released: false };
                    let ready = self.kernel.wait(room, Some(Duration::ZERO)).unwrap_or_default();
                    machine.room_is(ready.writable || ready.hangup);
                }
                Question::Shutdown => {
                    let result = self.kernel.shutdown_write();
                    machine.shut_down(result.map_err(|error| OsError::from(&error)));
                }
                Question::IsOver => machine.connection_is(self.kernel.is_over().unwrap_or(false)),
                Question::Abort => machine.aborted(self.kernel.abort().is_ok()),
                Question::ReplacePages => machine.in_flight.replace_pages(),
            }
        }
    }

    /// Reads the error queue until it is empty, or, unless `to_end`, for a good while.
    fn read_queue(&self, machine: &mut Machine, to_end: bool) -> Result<(), OsError> {
        if machine.is_timed() {
            machine.known.time = Some(self.kernel.now());
        }
        let mut batches = 0;
        while to_end || batches < MAX_BATCHES {
            let batch = self.kernel.read_batch(&mut |record| machine.record(record));
            let batch = batch.map_err(|error| OsError::from(&error))?;
            machine.batch(batch.messages, batch.truncated);
            if batch.drained {
                break;
            }
            batches += 1;
        }
        Ok(())
    }

    /// Drops what was released, wakes the tasks that waited for it, and ends the waits of threads,
    /// in this order: a task that is told of a release finds the slot free. Subscribers are told of
    /// events last, since they may take their time.
    fn dispose(
        &self,
        mut disposal: Disposal,
        woken: Vec<Waker>,
        panics: &mut Panics,
    ) -> MutexGuard<'_, Machine> {
        disposal.drop_all(panics);
        let mut machine = self.enter();
        machine.disposed(disposal);
        let untold = machine.take_untold();
        if woken.is_empty() && untold.is_empty() {
            return machine;
        }
        drop(machine);
        panics.catch_each(woken.into_iter(), Waker::wake);
        panics.catch_each(untold.into_iter(), |event| self.scope.tell(self.id, event));
        self.enter()
    }

    /// Has the sender watched if what it sends may be held for a limited time.
    pub(super) fn watch_hold(&self) {
        if self.limits_silence {
            let mut machine = self.enter();
            machine.wants_watch = true;
            self.tidy(machine);
        }
    }

    /// Disposes of what was released during a send, and releases the lock.
    #[inline(always)]
    pub(super) fn tidy(&self, machine: MutexGuard<'_, Machine>) {
        if !machine.is_tidy() {
            drop(self.advance(machine, Goal::Tidy));
        }
    }
}

/// The entry of buffers.
impl<K: Kernel> Core<K> {
    /// Sends one buffer, as far as the socket takes it.
    #[inline]
    pub fn try_send<P: IntoPayload>(&self, buf: P) -> Result<Ticket, SendError<P>> {
        self.offer_one(buf, None).map(|offered| offered.ticket)
    }

    /// Sends one buffer as a datagram or a train with this header, if the socket takes it now.
    pub fn try_send_with<P: IntoPayload>(
        &self,
        buf: P,
        header: &Header,
    ) -> Result<Ticket, SendError<P>> {
        self.offer_one(buf, Some(header)).map(|offered| offered.ticket)
    }

    /// Sends one buffer as a datagram or a train with this header, and waits until the socket takes
    /// it.
    pub fn send_with<P: IntoPayload>(
        &self,
        buf: P,
        header: &Header,
    ) -> Result<Ticket, SendError<P>> {
        match self.offer_one(buf, Some(header)) {
            Ok(Offered { ticket, whole: true }) => Ok(ticket),
            offered => self.wait_to_send(offered, None, |buf| self.offer_one(buf, Some(header))),
        }
    }

    /// Sends all of `bufs` as one send, as far as the socket takes it.
    pub fn try_send_vectored(&self, bufs: &mut Vec<Payload>) -> Result<Ticket, SendError<()>> {
        self.offer_all(bufs).map(|offered| offered.ticket)
    }

    /// Sends a buffer and waits until every byte is accepted.
    #[inline(always)]
    pub fn send<P: IntoPayload>(&self, buf: P) -> Result<Ticket, SendError<P>> {
        match self.offer_one(buf, None) {
            Ok(Offered { ticket, whole: true }) => Ok(ticket),
            offered => self.wait_to_send(offered, None, |buf| self.offer_one(buf, None)),
        }
    }

    /// Takes the only buffer of a send and sends.
    #[inline(always)]
    pub(super) fn offer_one<P: IntoPayload>(
        &self,
        buf: P,
        header: Option<&Header>,
    ) -> Result<Offered, SendError<P>> {
        if self.is_forked() {
            return Err(SendError::Forked(buf));
        }
        let (len, pool) = (buf.io_vec().len(), buf.pool());
        let is_small =
            len < self.least_without_copy && pool.is_none_or(|pool| pool.sender_quota().is_none());
        let mut machine = self.enter();
        let granted = machine.granted(len, pool.map_or(0, PoolHead::id), is_small);
        let way = match granted {
            Some(way) => way,
            None => match self.admit(machine, Item::of(&buf)) {
                Ok((admitted, way)) => {
                    machine = admitted;
                    way
                }
                Err(stop) => return Err(stop.into_send_error(buf)),
            },
        };
        match way {
            Way::Copy => self.offer_copied(machine, buf, granted.is_none(), header),
            Way::ZeroCopy => self.offer_zero_copy(machine, buf, granted.is_none(), header),
        }
    }

    /// Asks whether a lone buffer may go, and how.
    #[cold]
    #[inline(never)]
    pub(super) fn admit<'a>(
        &'a self,
        machine: MutexGuard<'a, Machine>,
        item: Item,
    ) -> Result<(MutexGuard<'a, Machine>, Way), Stop> {
        let (mut machine, Step { way, stop, .. }) = self.advance(machine, Goal::Admit(item));
        if let Some(way) = way {
            return Ok((machine, way));
        }
        let stop = machine.connection_error().map(Stop::Failed).or(stop).unwrap_or(Stop::Window);
        machine.refuse(stop);
        self.tidy(machine);
        Err(stop)
    }

    /// Sends a buffer without copy. `asked`: it was not let in by a grant.
    #[inline(always)]
    fn offer_zero_copy<P: IntoPayload>(
        &self,
        mut machine: MutexGuard<'_, Machine>,
        buf: P,
        asked: bool,
        header: Option<&Header>,
    ) -> Result<Offered, SendError<P>> {
        if asked || !machine.in_flight.tracker.has_place() {
            self.register(&mut machine, buf.pool());
            if !machine.in_flight.tracker.has_place() {
                machine.refund(buf.io_vec().len());
                return self.offer_rest(machine, buf, Way::ZeroCopy, 0, header);
            }
            machine.in_flight.make_room(&buf);
        }
        machine.wants_watch |= buf.is_awaited() || self.max_hold.is_some();
        let call = machine.begin_zero_copy(buf, || self.kernel.now());
        let Some((mut machine, sent)) = self.call_lone(machine, &call, asked, header) else {
            return Ok(Offered { ticket: call.ticket, whole: true });
        };
        let whole = machine.zero_copy_returned(call, sent.map_err(|error| os(&error)));
        if whole && !machine.verifies {
            self.tidy(machine);
            return Ok(Offered { ticket: call.ticket, whole });
        }
        self.settle_lone(machine, call.ticket, header)
    }

    /// Sends a buffer by copy. What the socket does not take of it becomes a lease.
    ///
    /// Out of line, which leaves more registers to the sends without copy. Bench row: `send`, "User
    /// instructions".
    #[inline(never)]
    fn offer_copied<P: IntoPayload>(
        &self,
        mut machine: MutexGuard<'_, Machine>,
        buf: P,
        asked: bool,
        header: Option<&Header>,
    ) -> Result<Offered, SendError<P>> {
        let call = machine.begin_copy(buf.io_vec());
        let Some((mut machine, sent)) = self.call_lone(machine, &call, asked, header) else {
            return Ok(Offered { ticket: call.ticket, whole: true });
        };
        match sent {
            Ok(accepted) if accepted == call.memory.len() => {
                machine.wants_watch |= self.limits_silence;
                let dropped = machine.copy_returned(call, buf);
                self.tidy(machine);
                drop(dropped);
                Ok(Offered { ticket: call.ticket, whole: true })
            }
            Ok(accepted) => {
                machine.take_back_copy(call, call.bytes - accepted);
                self.offer_rest(machine, buf, Way::Copy, accepted, header)
            }
            Err(error) => {
                let stop = self.copy_failed(&mut machine, call, os(&error));
                self.tidy(machine);
                Err(stop.into_send_error(buf))
            }
        }
    }

    /// A call by copy for a lone buffer failed. Returns the consequence for the buffer.
    #[cold]
    pub(super) fn copy_failed(
        &self,
        machine: &mut Machine,
        call: LoneCall,
        error: OsError,
    ) -> Stop {
        if machine.may_be_the_end(error) && self.kernel.is_over().unwrap_or(false) {
            machine.ended_by(error);
        }
        machine.copy_failed(call, error)
    }

    /// Makes the call of a lone buffer, without the lock. Returns the answer with the lock, or `None`
    /// if all of the buffer was accepted and the call is settled or left.
    #[inline(always)]
    pub(super) fn call_lone<'a>(
        &'a self,
        mut machine: MutexGuard<'a, Machine>,
        call: &LoneCall,
        asked: bool,
        header: Option<&Header>,
    ) -> Option<(MutexGuard<'a, Machine>, io::Result<usize>)> {
        // A call that had to ask is told of: it may call for more.
        let leaves = !asked && machine.leave_end(call.way());
        if leaves {
            self.left.arm();
        }
        drop(machine);
        // Nothing to send is no call on a stream, and no copy anywhere.
        let sent = if call.bytes > 0 || self.kernel.transport().sends_nothing() {
            self.transmit(&[call.part()], call.flags(), header)
        } else {
            Ok(0)
        };
        if leaves && call.took_all(&sent) && self.left.leave() {
            return None;
        }
        let machine = self.enter_after_call();
        machine.is_calling().then_some((machine, sent))
    }

    /// Takes custody of a buffer of which `accepted` bytes went by copy, and sends the rest.
    #[cold]
    #[inline(never)]
    fn offer_rest<P: IntoPayload>(
        &self,
        mut machine: MutexGuard<'_, Machine>,
        buf: P,
        way: Way,
        accepted: usize,
        header: Option<&Header>,
    ) -> Result<Offered, SendError<P>> {
        self.register(&mut machine, buf.pool());
        machine.wants_watch |= buf.is_awaited();
        let ticket = machine.enter_lone(buf, way, accepted);
        self.settle_lone(machine, ticket, header)
    }

    /// Brings the send of a lone buffer as far as it goes.
    #[cold]
    #[inline(never)]
    fn settle_lone<P: IntoPayload>(
        &self,
        machine: MutexGuard<'_, Machine>,
        ticket: Ticket,
        header: Option<&Header>,
    ) -> Result<Offered, SendError<P>> {
        let mut refused = None;
        let on_refused = |payload| refused = Some(P::from_payload(payload));
        let settled = self.settle(machine, ticket, header, on_refused);
        settled.map_err(|error| error.map(|()| refused.expect("comes back with the error")))
    }

    /// Takes all of `bufs` and sends; on an error that carries a buffer they are all back.
    pub(super) fn offer_all(&self, bufs: &mut Vec<Payload>) -> Result<Offered, SendError<()>> {
        if self.is_forked() {
            return Err(SendError::Forked(()));
        }
        let (mut machine, mut step) = self.advance(self.enter(), Goal::Push);
        let pools = bufs.iter().filter_map(Memory::pool);
        let quotas = pools.map(|pool| (pool.id(), pool.sender_quota()));
        if !machine.quotas_allow(quotas.clone()) {
            // What the queue releases may let the unsent part go on too.
            (machine, step) = self.advance(machine, Goal::Flush);
        }
        let stop = if let Some(error) = machine.connection_error() {
            Some(Stop::Failed(error))
        } else if machine.is_unsent() {
            step.stop.or(Some(Stop::Blocked))
        } else if !machine.quotas_allow(quotas) {
            machine.in_flight.done.held_back(Cause::Quota);
            Some(Stop::Window)
        } else {
            None
        };
        if let Some(stop) = stop {
            machine.refuse(stop);
            self.tidy(machine);
            return Err(stop.into_send_error(()));
        }
        for buf in bufs.iter() {
            self.register(&mut machine, buf.pool());
            machine.wants_watch |= buf.is_awaited();
        }
        let ticket = machine.enter_all(bufs);
        self.settle(machine, ticket, None, |payload| bufs.push(payload))
    }

    /// Brings a send that was entered as far as it goes. If nothing of it was accepted, all of it
    /// comes back.
    fn settle(
        &self,
        machine: MutexGuard<'_, Machine>,
        ticket: Ticket,
        header: Option<&Header>,
        on_refused: impl FnMut(Payload),
    ) -> Result<Offered, SendError<()>> {
        let (mut machine, _) = self.advance_with(machine, Goal::Settle, header);
        let settled = machine.conclude(ticket, on_refused);
        machine.wants_watch |= self.max_hold.is_some();
        self.tidy(machine);
        settled
    }

    /// Makes this sender known to the pool of a buffer, so that a thread that waits there for a slot
    /// can read the notifications that would free one.
    #[inline(always)]
    fn register(&self, machine: &mut Machine, pool: Option<&PoolHead>) {
        if let Some(pool) = pool
            && machine.pools.is_new(pool.id())
            && let Some(this) = self.this.upgrade()
        {
            let this: Arc<dyn Reclaim> = this;
            pool.register(Arc::downgrade(&this));
        }
    }
}

/// The error of a call that sends. Only a simulated kernel has errors without a number.
pub(super) fn os(error: &io::Error) -> OsError {
    if error.kind() == io::ErrorKind::WouldBlock {
        return OsError::from_raw(errno::EAGAIN);
    }
    OsError::from(error)
}

impl<K: Kernel> fmt::Debug for Core<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom), target_pointer_width = "64"))]
mod tests {
    use std::{mem::offset_of, os::fd::OwnedFd};

    use super::*;
    use crate::sender::kernel::SocketKernel;

    type Sender = Core<SocketKernel<OwnedFd>>;

    /// Bench row: `shuffled-32`.
    #[test]
    fn hot_fields_come_before_the_machine() {
        let hot = [
            offset_of!(Sender, process),
            offset_of!(Sender, least_without_copy),
            offset_of!(Sender, kernel),
            offset_of!(Sender, left),
        ];
        let machine = offset_of!(Sender, machine);
        assert!(hot.iter().all(|start| *start < machine) && machine <= 48, "{hot:?} {machine}");
        let scope = size_of::<Scope>();
        assert!(size_of::<Sender>() <= 1112 + scope, "{} with {scope}", size_of::<Sender>());
    }
}
