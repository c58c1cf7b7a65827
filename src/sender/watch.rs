//! Visitors: the work of a thread for a sender of another owner, and the reaper's care.

use std::{io, mem, time::Duration};

use super::{
    driver::{Core, MAX_BATCHES, Step, Watch},
    kernel::Kernel,
    machine::{Goal, Stop},
    report::Reaped,
};
use crate::{lock::lock, panics::Panics, raw::Reclaim, sync::Arc, sys::errno};

impl<K: Kernel> Core<K> {
    /// Reads the error queue, then sends as much of the unsent part as the socket takes.
    pub fn step(&self) -> io::Result<Step> {
        self.run(Goal::Visit)
    }

    /// Runs for a goal.
    pub(super) fn run(&self, goal: Goal) -> io::Result<Step> {
        let forked = || io::Error::from_raw_os_error(errno::EPERM);
        let step = self.advance(self.enter_own().ok_or_else(forked)?, goal).1;
        step.read.error.map_or(Ok(step), |error| Err(error.into()))
    }

    /// Reads the error queue and sends the unsent part, for the half that reaps.
    pub fn reap(&self) -> io::Result<Reaped> {
        self.reaped(self.look(Goal::Visit)?)
    }

    /// Reads the error queue and sends the unsent part, for the owner of the send.
    pub fn reap_and_flush(&self) -> io::Result<Reaped> {
        self.forget_refused();
        let step = self.look(Goal::Flush)?;
        match step.stop {
            Some(Stop::Refused(error)) => Err(error.into()),
            _ => self.reaped(step),
        }
    }

    fn reaped(&self, step: Step) -> io::Result<Reaped> {
        let read = step.read;
        if let Some(error) = read.refused {
            return Err(error.into());
        }
        // The news of a loop tells of the end, and then the run asks.
        if read.messages == 0 && !self.kernel.has_loop() {
            self.notice_end();
        }
        Ok(Reaped { messages: read.messages, calls: read.ids, unsent: !self.is_flushed() })
    }

    /// Runs for a goal, with the news that a loop of the program was told of.
    pub(super) fn look(&self, goal: Goal) -> io::Result<Step> {
        if self.is_forked() || !self.kernel.has_loop() {
            return self.run(goal);
        }
        // First: news that comes during the rest of the call has to end the next wait.
        let news = self.kernel.take_news()?;
        let goal = self.enter().heed(news, goal);
        let (mut step, mut panics) = (None, Panics::default());
        panics.catch(|| step = Some(self.run(goal)));
        // A reading that stops before the end of the queue takes so many messages at least. A panic hides their
        // number.
        let is_at_end = matches!(&step, Some(Ok(step)) if step.read.messages < MAX_BATCHES);
        let renewed =
            if is_at_end { Ok(()) } else { self.kernel.renew_news(self.enter().asks_for_data()) };
        panics.resume();
        renewed?;
        step.expect("a run without a result panics")
    }

    /// Looks whether the connection is over and no call of this sender has told.
    fn notice_end(&self) {
        let mut machine = self.enter();
        if machine.may_notice_end() {
            machine.connection_is(self.kernel.is_over().unwrap_or(false));
            self.tidy(machine);
        }
    }

    fn unwatch(&self, watch: &mut Watch, then: Watch) {
        if let Watch::On(token) | Watch::Unserved(token) = mem::replace(watch, then) {
            self.kernel.unwatch(token);
        }
    }

    /// Gives the sender to the reaper.
    pub(super) fn hand_over(self: Arc<Self>) {
        let sender: Arc<dyn Reclaim> = Arc::<Self>::clone(&self);
        let mut watch = lock(&self.watch);
        self.unwatch(&mut watch, Watch::Off);
        let (token, served) = self.kernel.adopt(sender);
        *watch = if served { Watch::On(token) } else { Watch::Unserved(token) };
    }

    /// No thread drives the sender from here on.
    pub(super) fn retire(&self) {
        self.unwatch(&mut lock(&self.watch), Watch::Over);
    }

    /// Returns only the kernel's side, unless another thread holds the core at this moment.
    pub fn into_kernel(self: Arc<Self>) -> Result<K, Arc<Self>> {
        self.retire();
        Arc::try_unwrap(self).map(|core| core.kernel)
    }
}

impl<K: Kernel> Reclaim for Core<K> {
    fn drive(&self) {
        self.attend();
    }

    fn attend(&self) -> Option<Duration> {
        // A failure shows in the sender's own calls.
        let look_again = self.advance(self.enter_own()?, Goal::Visit).1.look_again;
        // Both locks, in this order. An end that begins in between hands the sender over, and the
        // code below must not drop the reaper's reference then.
        let mut watch = lock(&self.watch);
        let mut machine = self.enter();
        if machine.is_ending() {
            let is_over = machine.is_over();
            drop(machine);
            drop(watch);
            if is_over {
                self.finish();
            }
            return look_again;
        }
        if !matches!(*watch, Watch::On(_)) {
            return None;
        }
        let look_again = machine.keeps_watch();
        machine.watched = look_again.is_some();
        drop(machine);
        if look_again.is_none() {
            self.unwatch(&mut watch, Watch::Off);
        }
        look_again
    }

    fn watch(self: Arc<Self>) -> bool {
        let sender: Arc<dyn Reclaim> = Arc::<Self>::clone(&self);
        let mut watch = lock(&self.watch);
        if *watch == Watch::Off {
            let token = self.kernel.watch(Arc::downgrade(&sender));
            *watch = token.map_or(Watch::Off, Watch::On);
        }
        let is_on = matches!(*watch, Watch::On(_));
        self.enter().watched = is_on;
        is_on || *watch == Watch::Over
    }
}
