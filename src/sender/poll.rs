//! Waits of tasks: one waker for each awaited event, and a thread or a loop that looks for news.

use std::{
    io,
    os::fd::BorrowedFd,
    task::{Context, Poll, Waker, ready},
};

use super::{
    driver::{Core, Step},
    kernel::{Kernel, Socket, SocketKernel},
    machine::{Awaited, Goal, Machine, Stop},
    report::{CloseReport, Fate},
};
use crate::{
    error::{OsError, WaitError},
    id::Ticket,
    panics::Panics,
    raw::Reclaim,
    sync::Arc,
    sys::errno,
};

impl<K: Kernel> Core<K> {
    /// Waits until a refused buffer may be let in.
    pub fn poll_ready(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Result<(), WaitError>> {
        self.poll_until(cx, Awaited::Admission, Goal::Flush, |machine| {
            machine.may_admit().then_some(Ok(()))
        })
    }

    /// Waits until nothing is unsent. Fails if the last send was cut short.
    pub fn poll_flush(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_until(cx, Awaited::Acceptance, Goal::Flush, |machine| {
            (!machine.is_unsent()).then_some(Ok(()))
        }))?;
        Poll::Ready(self.flushed())
    }

    /// Waits for the fate of a send.
    pub fn poll_fate(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        ticket: Ticket,
    ) -> Poll<Result<Fate, WaitError>> {
        self.check_ticket(ticket)?;
        self.poll_until(cx, Awaited::Fate(ticket), Goal::Visit, |machine| {
            machine.fate(ticket).map(Ok)
        })
    }

    /// Waits until everything is accepted and released, and every released payload is dropped.
    pub fn poll_drain(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Result<(), WaitError>> {
        self.poll_until(cx, Awaited::Releases, Goal::Visit, Machine::drained)
    }

    /// Begins the end in order, and waits until the end is over.
    pub fn poll_close(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<CloseReport, WaitError>> {
        self.begin_end(false);
        ready!(self.poll_until(cx, Awaited::End, Goal::Visit, |machine| {
            machine.is_ended().then_some(Ok(()))
        }))?;
        Poll::Ready(Ok(self.report()))
    }

    /// Runs for a goal, and leaves the waker of the task if `done` has no result. The order matters:
    ///
    /// 1. keep a waker that wakes no task, so that the run looks for what the task waits for, and
    ///    does not wake the task that makes the run;
    /// 2. run;
    /// 3. ask for the result, and keep the waker of the task, in one hold of the lock;
    /// 4. have the socket watched.
    fn poll_until<T>(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        awaited: Awaited,
        goal: Goal,
        done: impl Fn(&mut Machine) -> Option<Result<T, WaitError>>,
    ) -> Poll<Result<T, WaitError>> {
        if self.is_forked() {
            return Poll::Ready(Err(WaitError::Forked));
        }
        let waker = cx.waker().clone();
        if let Some(result) = self.result_or_keep(awaited, Waker::noop().clone(), &done) {
            return Poll::Ready(result);
        }
        let looked = self.look(goal);
        if let (Goal::Flush, Ok(Step { stop: Some(Stop::Refused(error)), .. })) = (goal, &looked) {
            self.give_up(*error);
        }
        let failed = looked.err().map(|error| WaitError::Os(OsError::from(&error)));
        let done = |machine: &mut Machine| failed.map(Err).or_else(|| done(machine));
        match self.result_or_keep(awaited, waker, done) {
            Some(result) => Poll::Ready(result),
            None if self.kernel.has_loop() || Arc::clone(self).watch() => Poll::Pending,
            None => Poll::Ready(Err(WaitError::NoThread)),
        }
    }

    /// The result of a wait, if there is one. Otherwise keeps the waker, without a gap for the event
    /// in between.
    fn result_or_keep<T>(
        &self,
        awaited: Awaited,
        waker: Waker,
        done: impl FnOnce(&mut Machine) -> Option<T>,
    ) -> Option<T> {
        let mut machine = self.enter();
        let result = done(&mut machine);
        let kept = result.is_none().then_some(waker);
        let earlier = machine.replace_waker(awaited, kept);
        // The drop of a waker runs user code.
        drop(machine);
        drop(earlier);
        result
    }

    /// Wakes all tasks that wait, without news.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code, reason = "only its streams ask"))]
    pub(super) fn wake_tasks(&self) {
        let wakers = self.enter_own().map_or_else(Vec::new, |mut machine| machine.take_wakers());
        let mut panics = Panics::default();
        panics.catch_each(wakers.into_iter(), |(_, waker)| waker.wake());
        panics.resume();
    }

    /// The outcome of a flush.
    pub(super) fn flushed(&self) -> io::Result<()> {
        let truncation = self.enter().in_flight.done.ledger.last_truncation();
        truncation.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl<S: Socket> Core<SocketKernel<S>> {
    /// The descriptor for a loop of the program. The first call makes the descriptor.
    pub(super) fn event_fd(&self) -> io::Result<BorrowedFd<'_>> {
        if self.is_forked() {
            return Err(io::Error::from_raw_os_error(errno::EPERM));
        }
        self.kernel.event_fd()
    }

    /// Waits until a read of the socket would not wait.
    pub(super) fn poll_readable(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.event_fd()?;
        self.ask_for_data()?;
        let data = |machine: &mut Machine| machine.take_data().then_some(Ok(()));
        self.poll_until(cx, Awaited::Data, Goal::Tidy, data).map_err(Into::into)
    }

    /// Makes data news, and with the first call the present state.
    fn ask_for_data(&self) -> io::Result<()> {
        let mut machine = self.enter();
        if !machine.asks_for_data() {
            // With the lock, so that no thread renews the news without data afterwards.
            self.kernel.renew_news(true)?;
            machine.ask_for_data();
        }
        Ok(())
    }
}
