//! Waiting without spinning.
//!
//! Three conditions make `poll(2)` return at once for ever: an unread note while waiting for room,
//! an error condition after a reset that no call of ours clears, and room in the socket while
//! waiting for a note. The first is met by reading the notes after every return, the second by
//! waiting for edges instead of levels, the third by not asking for room.

use std::time::{Duration, Instant};

use super::{
    core::Core,
    kernel::{Interest, Kernel},
};
use crate::{
    error::{OsError, WaitError},
    sys::epoll::EdgeWait,
};

/// How long a wait goes on before it asks the option memory whether a note went astray.
const OVERDUE: Duration = Duration::from_secs(1);

/// One wait of one thread, over as many rounds as it takes.
pub(super) struct Wait<'a, K: Kernel> {
    core: &'a Core<K>,
    deadline: Option<Instant>,
    edges: Option<EdgeWait>,
    /// Whether the last round ended with an error condition of the socket.
    error: bool,
}

impl<'a, K: Kernel> Wait<'a, K> {
    pub(super) fn new(core: &'a Core<K>, deadline: Option<Instant>) -> Self {
        Self { core, deadline, edges: None, error: false }
    }

    /// Drives the sender until `done` gives a result.
    pub(super) fn until<T>(
        mut self,
        mut done: impl FnMut(&Core<K>) -> Option<Result<T, WaitError>>,
    ) -> Result<T, WaitError> {
        loop {
            let messages = self.core.step().map_err(|error| os(&error))?.read.messages;
            if let Some(result) = done(self.core) {
                return result;
            }
            self.round(messages)?;
        }
    }

    /// Drives the sender until its end is over.
    pub(super) fn until_over(self) -> Result<(), WaitError> {
        self.until(|core| core.is_over().then_some(Ok(())))
    }

    /// Drives the sender once, then waits once, without a deadline.
    pub(super) fn step_and_round(&mut self) -> Result<(), OsError> {
        let result = self.core.step().map_err(|error| os(&error));
        match result.and_then(|step| self.round(step.read.messages)) {
            Err(WaitError::Os(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits once for what the sender is interested in; `messages` were read since the last round.
    pub(super) fn round(&mut self, messages: usize) -> Result<(), WaitError> {
        let interest = self.core.interest();
        if self.error && messages == 0 && self.edges.is_none() {
            self.edges = self.core.kernel.edges(interest).map_err(|error| os(&error))?;
        }
        let left = match self.deadline {
            None => OVERDUE,
            Some(deadline) => match deadline.checked_duration_since(self.core.kernel.now()) {
                Some(left) if left > Duration::ZERO => left.min(OVERDUE),
                _ => return Err(WaitError::TimedOut),
            },
        };
        let kernel = &self.core.kernel;
        let ready = kernel.wait(interest, Some(left), self.edges.as_ref());
        let ready = ready.map_err(|error| os(&error))?;
        self.error = ready.error || ready.hangup;
        if interest != Interest::default() && !ready.writable && !self.error {
            self.core.check_overdue();
        }
        Ok(())
    }
}

fn os(error: &std::io::Error) -> WaitError {
    WaitError::Os(OsError::from(error))
}
