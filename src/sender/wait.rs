//! Waiting without spinning.
//!
//! Three conditions make `poll(2)` return at once for ever: an unread notification while waiting
//! for room, an error condition after a reset that no call of ours clears, and room in the socket
//! while waiting for a notification. So waits are for edges. Another thread may read the awaited
//! notification: the second half of the sender, the reaper, a thread that waits for a slot. So
//! the thread that reads the notification wakes the sleeping threads.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    driver::Core,
    kernel::{Edges, Kernel},
    machine::{Goal, OVERDUE, Offered, Stop, look_after},
    report::Fate,
};
use crate::{
    error::{OsError, SendError, WaitError},
    id::Ticket,
    lease::{IntoPayload, Payload},
    sync::Arc,
    sys::socket::Ready,
};

/// One wait of one thread, over any number of rounds.
pub(super) struct Wait<'a, K: Kernel> {
    core: &'a Core<K>,
    deadline: Option<Instant>,
    /// The wait is about a buffer that may have been refused as a whole.
    sending: bool,
    edges: Option<Arc<dyn Edges>>,
    /// The count of changes at this thread's last look. The thread sleeps only while the count is
    /// the same. Changes of its own calls are seen, so no thread wakes itself.
    seen: u64,
    /// The last round ended with an error condition of the socket.
    error: bool,
    /// The last round ended with nothing but an error condition.
    notifications_only: bool,
}

impl<'a, K: Kernel> Wait<'a, K> {
    pub(super) fn new(core: &'a Core<K>, deadline: Option<Instant>, sending: bool) -> Self {
        // From here on changes are counted. The descriptors of an earlier wait have kept the socket's
        // news, so no second look is needed before the first sleep.
        let edges = core.enter_own().and_then(|mut own| own.cold_mut().spare_edges.take());
        let (error, notifications_only) = (false, false);
        Self { core, deadline, sending, edges, seen: 0, error, notifications_only }
    }

    /// Drives the sender until `done` gives a result.
    pub(super) fn until<T>(
        mut self,
        mut done: impl FnMut(&Core<K>) -> Option<Result<T, WaitError>>,
    ) -> Result<T, WaitError> {
        if self.core.is_forked() {
            return Err(WaitError::Forked);
        }
        loop {
            // The owner waits for the call of a visitor; every other thread waits below.
            let goal = match (self.sending, self.leaves_unread()) {
                (true, true) => Goal::Push,
                (true, false) => Goal::Flush,
                (false, _) => Goal::Visit,
            };
            let step = self.core.run(goal).map_err(|error| os(&error))?;
            self.seen = step.changes;
            if self.sending
                && let Some(Stop::Refused(error)) = step.stop
            {
                self.core.give_up(error);
            }
            if let Some(result) = done(self.core) {
                return result;
            }
            self.round(step.read.messages)?;
        }
    }

    /// Waits once until a try to send may succeed, unless one may by now.
    pub(super) fn round_to_send(&mut self) -> Result<(), WaitError> {
        // First, because by edges notifications can be left unread. A failure shows in the round.
        let _ = self.listen();
        let leaves_unread = self.leaves_unread();
        if !leaves_unread || self.core.max_hold.is_some() {
            let goal = if leaves_unread { Goal::Push } else { Goal::Flush };
            if self.core.run(goal).map_err(|error| os(&error))?.read.messages > 0 {
                return Ok(());
            }
        }
        {
            let machine = self.core.enter();
            if machine.may_try() {
                return Ok(());
            }
            self.seen = machine.changes();
        }
        self.round(0)
    }

    /// Returns `true` if the notifications are left to the calls to come, which read many at once:
    /// there is room for those calls, and by edges an unread notification does not end a wait for
    /// room.
    fn leaves_unread(&self) -> bool {
        self.sending && self.edges.is_some() && !self.notifications_only
    }

    /// Makes the descriptors for waits by edges. The first wait tells the present state.
    fn listen(&mut self) -> Result<(), WaitError> {
        if self.edges.is_none() {
            self.edges = self.core.kernel.edges().map_err(|error| os(&error))?;
        }
        Ok(())
    }

    /// Waits once for the sender's interest; `messages` were read since the last round.
    fn round(&mut self, messages: usize) -> Result<(), WaitError> {
        let most = self.core.max_hold.map_or(OVERDUE, look_after);
        let left = match self.deadline {
            None => most,
            Some(deadline) => match deadline.checked_duration_since(self.core.kernel.now()) {
                Some(left) if left > Duration::ZERO => left.min(most),
                _ => return Err(WaitError::TimedOut),
            },
        };
        match self.listen() {
            // For want of descriptors; levels would end every wait at once.
            Err(error) if self.error && messages == 0 => return Err(error),
            _ => {}
        }
        let by_edges = match &self.edges {
            Some(edges) if !self.core.enter().falls_asleep(self.seen, edges) => return Ok(()),
            Some(edges) => {
                let ready = edges.wait(Some(left));
                self.core.enter().is_awake(edges);
                ready.ok()
            }
            None => None,
        };
        let ready = match by_edges {
            Some(ready) => ready,
            // There are no edges, or a filter for system calls has come to forbid them.
            None => self.wait_by_levels(left)?,
        };
        self.error = ready.error || ready.hangup;
        self.notifications_only = self.error && !ready.writable;
        Ok(())
    }

    fn wait_by_levels(&mut self, left: Duration) -> Result<Ready, WaitError> {
        self.edges = None;
        let mut interest = self.core.interest();
        interest.writable &= self.sending || !self.core.is_flushed();
        self.core.kernel.wait(interest, Some(left)).map_err(|error| os(&error))
    }
}

impl<K: Kernel> Drop for Wait<'_, K> {
    fn drop(&mut self) {
        let Some(edges) = self.edges.take() else { return };
        let left = self.core.enter().cold_mut().spare_edges.replace(edges);
        // Two threads may have waited at once. Descriptors are closed with no lock held.
        drop(left);
    }
}

/// The calls that block.
impl<K: Kernel> Core<K> {
    /// Sends several buffers as one send and waits until all of them are accepted.
    pub fn send_vectored(&self, bufs: &mut Vec<Payload>) -> Result<Ticket, SendError<()>> {
        self.wait_to_send(self.offer_all(bufs), None, |()| self.offer_all(bufs))
    }

    /// Sends a buffer and waits until every byte is accepted, or the time is up.
    pub fn send_timeout<P: IntoPayload>(
        &self,
        buf: P,
        timeout: Duration,
    ) -> Result<Ticket, SendError<P>> {
        let offered = self.offer_one(buf, None);
        self.wait_to_send(offered, Some(timeout), |buf| self.offer_one(buf, None))
    }

    /// The end of a limited wait that begins now. A time too long for the clock is no limit.
    pub(super) fn deadline(&self, timeout: Option<Duration>) -> Option<Instant> {
        self.kernel.now().checked_add(timeout?)
    }

    /// Goes on waiting and trying after an incomplete first attempt.
    #[cold]
    pub(super) fn wait_to_send<B>(
        &self,
        mut offered: Result<Offered, SendError<B>>,
        timeout: Option<Duration>,
        mut attempt: impl FnMut(B) -> Result<Offered, SendError<B>>,
    ) -> Result<Ticket, SendError<B>> {
        let waits =
            matches!(offered, Ok(Offered { whole: false, .. }) | Err(SendError::WouldBlock(_)));
        if !waits {
            return offered.map(|offered| offered.ticket);
        }
        // The clock is read only now.
        let deadline = self.deadline(timeout);
        // Bytes written past the sender may have filled the socket, and hold this send up too.
        self.watch_hold();
        let mut wait = Wait::new(self, deadline, true);
        let ticket = loop {
            match offered {
                Ok(Offered { ticket, whole: true }) => return Ok(ticket),
                Ok(Offered { ticket, .. }) => break ticket,
                Err(SendError::WouldBlock(buf)) => match wait.round_to_send() {
                    Ok(()) => offered = attempt(buf),
                    Err(WaitError::Os(error)) => return Err(SendError::Os { error, buf }),
                    Err(_) => return Err(SendError::TimedOut(buf)),
                },
                Err(error) => return Err(error),
            }
        };
        let waited = wait.round_to_send();
        let flushed = waited.and_then(|()| wait.until(|core| core.is_flushed().then_some(Ok(()))));
        if let Err(WaitError::Os(error)) = flushed
            && !self.is_flushed()
        {
            // The caller would not know that a part of the send is still to come.
            self.give_up(error);
        }
        match self.truncation(ticket) {
            Some(error) => Err(SendError::Truncated { ticket, error }),
            None if self.is_flushed() => Ok(ticket),
            None => Err(SendError::Unfinished { ticket }),
        }
    }

    /// Waits until a send has its fate.
    pub fn wait(&self, ticket: Ticket, deadline: Option<Instant>) -> Result<Fate, WaitError> {
        self.check_ticket(ticket)?;
        Wait::new(self, deadline, false).until(|core| {
            Some(match core.enter().fate(ticket)? {
                Fate::Quarantined => Err(WaitError::Poisoned),
                fate => Ok(fate),
            })
        })
    }

    /// Waits until everything is accepted and released, and every released payload is dropped.
    pub fn drain(&self, deadline: Option<Instant>) -> Result<(), WaitError> {
        Wait::new(self, deadline, false).until(|core| core.enter().drained())
    }

    /// Drives the sender until the end is over.
    pub(super) fn wait_over(&self, deadline: Option<Instant>) -> Result<(), WaitError> {
        Wait::new(self, deadline, false).until(|core| core.enter().is_ended().then_some(Ok(())))
    }

    /// Gives the unsent part up: no call can send it, and the caller would not know of it.
    pub(super) fn give_up(&self, error: OsError) {
        let mut machine = self.await_call(self.enter());
        machine.cut_short(error);
        self.tidy(machine);
    }
}

fn os(error: &io::Error) -> WaitError {
    WaitError::Os(OsError::from(error))
}
