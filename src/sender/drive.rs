//! Driving a sender: what its owner, the other half, a thread that waits for a slot and the reaper
//! may all do for it; and what it tells of itself.

use std::{
    io, mem,
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::{
    Capabilities, Reaped, Returned, SenderStats,
    call::{Stop, Stuck},
    core::{Core, Watch},
    hold,
    in_flight::{Done, InFlight, OVERDUE, Read},
    kernel::{Interest, Kernel},
    ledger::Fate,
};
use crate::{
    error::{CopyReason, OsError, WaitError},
    id::{NotificationId, Ticket},
    lock::{lock, try_lock},
    panics::Panics,
    raw::Reclaim,
    sync::Arc,
    sys::{Foreign, errno},
};

impl<K: Kernel> Core<K> {
    /// Reads the notes, then sends what the socket now takes of the last send.
    pub fn step(&self) -> io::Result<Step> {
        self.step_and_next(true).0
    }

    /// As [`step`](Self::step), but for the notes.
    pub(super) fn push(&self) -> io::Result<Step> {
        self.step_and_next(false).0
    }

    /// Returns also when to look again though there is no news.
    fn step_and_next(&self, reads: bool) -> (io::Result<Step>, Option<Duration>) {
        if self.is_forked() {
            return (Err(io::Error::from_raw_os_error(errno::EPERM)), None);
        }
        let (read, has_rest) = {
            let mut in_flight = self.in_flight();
            let read = if reads { in_flight.read_notes(&self.kernel) } else { Ok(Read::default()) };
            (read, in_flight.has_rest)
        };
        // News comes once: if the thread that has the lock was refused just before, the rest is
        // this one's to send. Without a rest nobody waits here for the half that sends.
        let send = if has_rest { Some(lock(&self.send)) } else { try_lock(&self.send) };
        let flushed = send.map_or(Ok(()), |mut send| {
            if reads {
                send.calls.unread = 0;
            }
            let mut in_flight = self.in_flight();
            self.flush_rest(&mut send, &mut in_flight)
        });
        self.check_hold();
        self.dispose();
        let next = self.advance_end();
        (read.map(|read| Step { read, flushed }), next)
    }

    /// As [`step`](Self::step), for a caller that wants to know what was read.
    pub fn reap(&self) -> io::Result<Reaped> {
        let read = self.step()?.read;
        if let Some(error) = read.refused {
            return Err(error.into());
        }
        if read.messages == 0 {
            self.notice_end(false);
        }
        Ok(Reaped { messages: read.messages, calls: read.ids })
    }

    /// Records that the connection is over, if it is and no call of ours has told. Returns `true`
    /// if it is over.
    ///
    /// Once the sender's own end has begun there is nothing to notice: an orderly end is one too.
    /// `waits`: also for a call of another thread, which would tell as well.
    #[cold]
    pub(super) fn notice_end(&self, waits: bool) -> bool {
        let ending = lock(&self.ending);
        if ending.is_some() || !self.kernel.transport().has_end() {
            return false;
        }
        let send = if waits { Some(lock(&self.send)) } else { try_lock(&self.send) };
        let Some(mut send) = send else { return false };
        let is_known = send.calls.connection_error().is_some();
        send.calls.is_over |= !is_known && self.kernel.is_over().unwrap_or(false);
        send.calls.is_over
    }

    /// As [`step`](Self::step), for a caller that wants to know whether nothing is left to send.
    pub fn flush_now(&self) -> Result<bool, OsError> {
        self.forget_refused();
        match self.step().map_err(|error| OsError::from(&error))?.flushed {
            Ok(()) => self.connection_error().map_or(Ok(true), Err),
            Err(Stop::Stuck) => Ok(false),
            Err(Stop::Failed(error) | Stop::Refused(error) | Stop::Dropped(error)) => Err(error),
        }
    }

    /// Drops what was let go of and wakes who waited for it, with no lock held.
    pub(super) fn dispose(&self) {
        let mut in_flight = self.in_flight();
        let news = mem::take(&mut in_flight.done.news);
        let InFlight { done, .. } = &mut *in_flight;
        if done.settled.is_empty() && !done.has_woken() {
            if news {
                in_flight.rouse_sleepers();
            }
            return;
        }
        let drops = !done.settled.is_empty();
        // Nothing else, or a sleeper whose task waits too would rouse himself for ever.
        let rouses = news || drops;
        let mut settled = mem::take(&mut done.settled);
        // Who drops nothing may rouse nobody when he is through, so nobody waits for him.
        done.dropping += u32::from(drops);
        let woken = in_flight.take_woken();
        drop(in_flight);
        let mut panics = Panics::default();
        settled.drop_all(&mut panics);
        let mut in_flight = self.in_flight();
        in_flight.done.settled.put_back(settled);
        in_flight.done.dropping -= u32::from(drops);
        if rouses {
            in_flight.rouse_sleepers();
        }
        drop(in_flight);
        // Behind the drops: whoever is told of a release finds the slot free.
        panics.catch_each(woken.into_iter(), Waker::wake);
        panics.resume();
    }

    /// The owner looks at what there is to do anew: if nothing is left, nothing is stuck. What
    /// was refused is the owner's, and others who drive the sender do not know of it.
    pub fn forget_refused(&self) {
        if self.is_forked() {
            return;
        }
        let mut send = lock(&self.send);
        if send.outbox.is_empty() {
            send.calls.stuck = None;
        }
    }

    /// What its owner should wait for.
    pub fn interest(&self) -> Interest {
        if self.is_forked() {
            return Interest::default();
        }
        let writable = lock(&self.send).calls.stuck == Some(Stuck::Socket);
        let in_flight = self.in_flight();
        let released = in_flight.tracker.outstanding() > 0 && in_flight.poisoned().is_none();
        Interest { writable, released }
    }

    /// Whether everything is accepted.
    pub(super) fn is_flushed(&self) -> bool {
        lock(&self.send).outbox.is_empty()
    }

    /// Whether a send was given up after a part of it was accepted.
    pub(super) fn has_cut_short(&self) -> bool {
        self.in_flight().done.extras.truncated_sends > 0
    }

    /// Whether everything is accepted and released.
    pub fn is_drained(&self) -> bool {
        self.is_flushed() && self.in_flight().tracker.outstanding() == 0
    }

    /// Whether nothing that was let go of has yet to be dropped, by this thread or another.
    pub(super) fn is_disposed(&self) -> bool {
        let InFlight { done, .. } = &*self.in_flight();
        done.settled.is_empty() && done.dropping == 0
    }

    /// Reads the error queue for the first time, which shows that it can be read. Returns why sends
    /// go by copy, if they do.
    pub(super) fn try_reading(&self) -> Option<CopyReason> {
        let mut in_flight = self.in_flight();
        // What may pass will show again when it matters.
        let _ = in_flight.read_notes(&self.kernel);
        in_flight.copy_reason
    }

    /// Whether notes prove nothing any more.
    pub fn is_poisoned(&self) -> bool {
        self.in_flight().poisoned().is_some()
    }

    /// The fate of a send, or `None` while it is open.
    pub fn fate(&self, ticket: Ticket) -> Result<Option<Fate>, WaitError> {
        self.check_ticket(ticket)?;
        Ok(self.in_flight().fate(ticket))
    }

    /// Refuses a ticket that this sender did not give, and every ticket in a forked child.
    pub(super) fn check_ticket(&self, ticket: Ticket) -> Result<(), WaitError> {
        if self.is_forked() {
            Err(WaitError::Forked)
        } else if !ticket.is_of(self.id) {
            Err(WaitError::ForeignTicket)
        } else {
            Ok(())
        }
    }

    /// The fate of a send, with a wake-up for when it has one.
    pub fn poll_fate(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        ticket: Ticket,
    ) -> Poll<Result<Fate, WaitError>> {
        self.check_ticket(ticket)?;
        self.step().map_err(|error| WaitError::Os(OsError::from(&error)))?;
        // Cloned, and the one it replaces dropped, with no lock held: that is user code.
        let waker = cx.waker().clone();
        let mut in_flight = self.in_flight();
        if let Some(fate) = in_flight.fate(ticket) {
            return Poll::Ready(Ok(fate));
        }
        let wakers = &mut in_flight.done.extras.wakers;
        let known = wakers.iter().position(|(waiting, _)| *waiting == ticket);
        let replaced = known.map(|at| wakers.swap_remove(at));
        wakers.push((ticket, waker));
        drop(in_flight);
        drop(replaced);
        if !Arc::<Self>::clone(self).watch() {
            return Poll::Ready(Err(WaitError::NoThread));
        }
        Poll::Pending
    }

    /// The first error of a connection that is over.
    pub fn connection_error(&self) -> Option<OsError> {
        if self.is_forked() {
            return None;
        }
        lock(&self.send).calls.connection_error()
    }

    /// What cut a send short, if so.
    pub(super) fn truncation(&self, ticket: Ticket) -> Option<OsError> {
        self.in_flight().done.ledger.truncation(ticket)
    }

    /// The next foreign message of the error queue.
    pub fn next_event(&self) -> Option<Foreign> {
        if self.is_forked() {
            return None;
        }
        let extras = &mut self.in_flight().done.extras;
        if extras.events.is_empty() { None } else { extras.events.pop_front() }
    }

    /// The next payload handed back.
    pub fn next_returned(&self) -> Option<Returned> {
        if self.is_forked() {
            return None;
        }
        let extras = &mut self.in_flight().done.extras;
        if extras.returned.is_empty() { None } else { extras.returned.pop_front() }
    }

    /// Whether sends can go without copy, and if not, why.
    pub fn capabilities(&self) -> Capabilities {
        if self.is_forked() {
            return Capabilities { zero_copy: false, reason: None };
        }
        let in_flight = self.in_flight();
        let route = in_flight.route.is_copied().then_some(CopyReason::Route);
        let reason = in_flight.copy_reason;
        Capabilities { zero_copy: reason.is_none(), reason: reason.or(route) }
    }

    /// Counters and state.
    pub fn stats(&self) -> SenderStats {
        if self.is_forked() {
            return SenderStats::default();
        }
        let window = {
            let send = lock(&self.send);
            (send.calls.window.sends(), send.calls.window.bytes())
        };
        let in_flight = self.in_flight();
        let Done { stats, extras, .. } = &in_flight.done;
        SenderStats {
            zero_copy_calls: stats.zero_copy_calls,
            zero_copy_bytes: stats.zero_copy_bytes,
            copied_calls: stats.copied_calls,
            copied_bytes: stats.copied_bytes,
            notes: stats.notes,
            released_calls: stats.released_calls,
            deferred_copies: stats.deferred_copies,
            no_bufs_optmem: extras.no_bufs_optmem,
            no_bufs_memlock: extras.no_bufs_memlock,
            dropped_sends: extras.dropped_sends,
            truncated_sends: extras.truncated_sends,
            events_dropped: extras.events_dropped,
            in_flight_bytes: stats.in_flight_bytes,
            in_flight_calls: in_flight.tracker.outstanding(),
            leases: in_flight.tracker.leases(),
            window_sends: window.0,
            window_bytes: window.1,
            route: in_flight.route.stats(),
        }
    }

    /// The id that the socket's next zero-copy call takes.
    pub fn next_id(&self) -> NotificationId {
        self.in_flight().tracker.next_id()
    }

    fn unwatch(&self, watch: &mut Watch, then: Watch) {
        if let Watch::On(token) | Watch::Unserved(token) = mem::replace(watch, then) {
            self.kernel.unwatch(token);
        }
    }

    /// The kernel's side alone, unless somebody else holds the core at this moment.
    pub fn into_kernel(self: Arc<Self>) -> Result<K, Arc<Self>> {
        self.retire();
        Arc::try_unwrap(self).map(|core| core.kernel)
    }

    /// Lets go of what is not accepted, and lets nothing more in.
    pub(super) fn cut_short(&self, error: OsError) {
        let mut send = lock(&self.send);
        let error = *send.calls.failed.get_or_insert(error);
        let mut in_flight = self.in_flight();
        send.truncate(&mut in_flight, error);
        in_flight.has_rest = false;
    }

    /// Gives the sender to the reaper.
    pub(super) fn hand_over(self: Arc<Self>) {
        let sender: Arc<dyn Reclaim> = Arc::<Self>::clone(&self);
        let mut watch = lock(&self.watch);
        self.unwatch(&mut watch, Watch::Off);
        let (token, served) = self.kernel.adopt(sender);
        *watch = if served { Watch::On(token) } else { Watch::Unserved(token) };
    }

    /// Nobody drives the sender from here on.
    pub(super) fn retire(&self) {
        self.unwatch(&mut lock(&self.watch), Watch::Over);
    }
}

/// What one [`Core::step`] did.
#[derive(Debug)]
pub struct Step {
    /// What was read of the error queue.
    pub read: Read,
    flushed: Result<(), Stop>,
}

impl Step {
    /// The error of a call for the rest of a send that says nothing about the connection.
    pub(super) fn refused(&self) -> Option<OsError> {
        match self.flushed {
            Err(Stop::Refused(error)) => Some(error),
            _ => None,
        }
    }
}

impl<K: Kernel> Reclaim for Core<K> {
    fn drive(&self) {
        self.attend();
    }

    fn attend(&self) -> Option<Duration> {
        if self.is_forked() {
            return None;
        }
        // A failure shows in the sender's own calls.
        let (_, next) = self.step_and_next(true);
        // Held to the last: an end that begins only now hands the sender over, and what is let go
        // of below would be the reaper's hold on it.
        let ending = lock(&self.ending);
        if ending.is_some() {
            drop(ending);
            if self.is_over() {
                self.finish();
            }
            return next;
        }
        let mut watch = lock(&self.watch);
        if !matches!(*watch, Watch::On(_)) {
            return None;
        }
        let mut in_flight = self.in_flight();
        let acknowledges = self.kernel.transport().has_end();
        let limit = self.config.max_hold.filter(|_| in_flight.may_hold(acknowledges));
        if limit.is_none() && !in_flight.is_awaited() {
            drop(in_flight);
            self.unwatch(&mut watch, Watch::Off);
            return None;
        }
        Some(limit.map_or(OVERDUE, hold::look_after))
    }

    fn watch(self: Arc<Self>) -> bool {
        let sender: Arc<dyn Reclaim> = Arc::<Self>::clone(&self);
        let mut watch = lock(&self.watch);
        if *watch == Watch::Off {
            let token = self.kernel.watch(Arc::downgrade(&sender));
            *watch = token.map_or(Watch::Off, Watch::On);
        }
        matches!(*watch, Watch::On(_) | Watch::Over)
    }
}
