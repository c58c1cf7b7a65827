//! The end of a sender, driven by the caller of `close`, by the remaining half, or by the reaper.

use std::time::Instant;

use super::{driver::Core, kernel::Kernel, machine::Goal, report::CloseReport};
use crate::{
    error::{OsError, WaitError},
    panics::Panics,
    reaper,
    sync::Arc,
    sys::errno,
};

impl<K: Kernel> Core<K> {
    /// Begins the end, unless the end has begun. `lingers`: abort without progress.
    pub(super) fn begin_end(&self, lingers: bool) {
        if self.is_forked() {
            return;
        }
        if self.enter().begin_end(lingers, self.kernel.now()) {
            // With the user's linger time the close of the descriptor would block, and with a
            // linger time of 0 the tail of the stream would be lost.
            let _ = self.kernel.linger_off();
        }
    }

    /// Flushes, shuts down and drains; aborts what is left at the deadline, if there is one.
    pub fn close(self: Arc<Self>, deadline: Option<Instant>) -> CloseReport {
        let owner = Owner(self);
        let core = &owner.0;
        core.begin_end(false);
        if let Err(error) = core.wait_over(deadline) {
            if let WaitError::Os(error) = error {
                // The deadline is still to come: this error is why the end does not wait for it.
                core.enter().end_failed(error);
            }
            core.cut_off(errno::ETIMEDOUT);
        }
        core.report()
    }

    /// [Aborts](Self::abort), and gives the sender up.
    pub fn break_off(self: Arc<Self>) -> CloseReport {
        let owner = Owner(self);
        owner.0.abort();
        owner.0.report()
    }

    /// Breaks the connection: unaccepted bytes are given up, and the kernel releases every id
    /// except those of packets in a queue below.
    pub fn abort(&self) {
        self.cut_off(errno::ECANCELED);
    }

    fn cut_off(&self, why: i32) {
        if self.is_forked() {
            return;
        }
        self.begin_end(true);
        let mut machine = self.await_call(self.enter());
        machine.ask_abort(OsError::from_raw(why));
        drop(self.advance(machine, Goal::Tidy));
    }

    /// Returns `true` if the end has come.
    pub(super) fn is_over(&self) -> bool {
        self.enter().is_over()
    }

    /// The report of the end so far.
    pub(super) fn report(&self) -> CloseReport {
        if self.is_forked() {
            return CloseReport::of_forked();
        }
        let unacked = self.kernel.unacked().ok();
        self.enter().report(unacked)
    }

    /// The last step before the descriptor is closed; no thread drives the sender any more. After a
    /// send cut short the close must not look like the orderly end of a whole stream.
    pub(super) fn finish(&self) {
        if self.enter().cold().is_some_and(|cold| cold.counts.truncated_sends > 0) {
            let _ = self.kernel.reset_on_close();
        }
        self.retire();
    }

    /// The sender has two owners from here on.
    pub fn share(&self) {
        // A child's halves own nothing.
        if let Some(mut machine) = self.enter_own() {
            machine.owners = 2;
        }
    }

    /// An owner gives the sender up. `begin_end`: the stream ends without this owner; otherwise
    /// only the last owner ends the stream. The last owner leaves an unfinished end to the reaper.
    ///
    /// A sender with nothing to do is closed without an orderly end of the stream: another handle
    /// of the socket may go on.
    pub fn leave(self: Arc<Self>, begin_end: bool) {
        // A child only closes its descriptor, with the core.
        if self.is_forked() {
            return;
        }
        if begin_end {
            self.begin_end(true);
        }
        let is_last = {
            let mut machine = self.enter();
            machine.owners -= 1;
            machine.owners == 0
        };
        if !is_last {
            if begin_end {
                // A failure shows in the calls of the remaining owner.
                let _ = self.step();
            }
            return;
        }
        // A failure to read the error queue leaves the end to the reaper too, and so does a panic
        // of user code: closing the descriptor now would end all proof of release.
        let mut panics = Panics::default();
        panics.catch(|| _ = self.step());
        if self.is_drained() {
            // No end is begun: a thread that waits for a slot may yet drive this sender once. An end
            // that has begun is over with the step.
            let _ = self.kernel.linger_off();
            self.finish();
        } else {
            self.begin_end(true);
            if self.is_over() {
                self.finish();
            } else {
                self.hand_over();
            }
        }
        // Otherwise a program without the thread that only drops would run out of descriptors.
        reaper::serve_some();
        panics.resume();
    }
}

/// The only owner of an ending sender: gives the sender up on every way out.
struct Owner<K: Kernel>(Arc<Core<K>>);

impl<K: Kernel> Drop for Owner<K> {
    fn drop(&mut self) {
        Arc::clone(&self.0).leave(false);
    }
}
