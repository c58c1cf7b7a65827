//! The machine's questions to the kernel, and the answers so far.

use std::time::{Duration, Instant};

/// A question about the socket, or a request. The driver answers under the lock, so no other thread
/// comes between a question and its answer.
///
/// A function of the machine returns a question as an error: the function can go on only with the
/// answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Question {
    /// Read the error queue until it is empty, or for a good while.
    Queue,
    /// Read the error queue until it is empty.
    QueueToEnd,
    /// Read the option memory in use. Never asked while a call is out.
    Optmem,
    /// Read the number of unacknowledged bytes.
    Unacked,
    /// Read the clock.
    Time,
    /// Look for room in the socket.
    Room,
    /// End the stream in order.
    Shutdown,
    /// Break the connection.
    Abort,
    /// Is the connection over?
    IsOver,
    /// Free the memory of quarantined leases early.
    ReplacePages,
}

/// The answers of one hold of the lock, forgotten with the hold. A call returns into a new hold: a
/// fact from before the end of a call says nothing about the call.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Known {
    /// The error queue was read.
    pub(super) has_read: bool,
    /// Reading the queue failed.
    pub(super) read_failed: bool,
    /// The queue was read to its end, or its end cannot be reached.
    pub(super) is_at_end: bool,
    /// The error queue is to be read before anything else.
    pub(super) wants_read: bool,
    /// An admission has looked whether the error queue is to be read first, or, with nothing to be
    /// admitted, a look for room in the socket was taken.
    pub(super) has_looked: bool,
    /// The option memory is to be asked once the error queue is read: the connection was aborted.
    pub(super) wants_proof: bool,
    /// Ids found released.
    pub(super) freed: u64,
    pub(crate) time: Option<Instant>,
    /// `Some(None)`: the kernel cannot tell.
    pub(crate) optmem: Option<Option<u32>>,
    /// `Some(None)`: the kernel cannot tell.
    pub(crate) unacked: Option<Option<usize>>,
    pub(super) is_over: Option<bool>,
    /// A look at the hold was taken.
    pub(super) has_looked_at_hold: bool,
    /// When to look again though nothing happens.
    pub(crate) look_again: Option<Duration>,
}

impl Known {
    #[inline]
    pub(super) fn time(&self) -> Result<Instant, Question> {
        self.time.ok_or(Question::Time)
    }

    pub(super) fn optmem(&self) -> Result<Option<u32>, Question> {
        self.optmem.ok_or(Question::Optmem)
    }

    pub(super) fn unacked(&self) -> Result<Option<usize>, Question> {
        self.unacked.ok_or(Question::Unacked)
    }
}
