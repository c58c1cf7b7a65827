//! The machine's questions to the kernel, and the answers it has.

use std::time::{Duration, Instant};

/// A question about the socket, or a request to it. The driver answers under the lock, so that no
/// other thread comes between a question and its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::sender) enum Question {
    /// Read the error queue until it is empty, or for a good while.
    Queue,
    /// Read the error queue until it is empty.
    QueueToEnd,
    /// How much option memory is in use? Never asked while a call is out.
    Optmem,
    /// How many bytes are accepted and not acknowledged?
    Unacked,
    /// What time is it?
    Time,
    /// End the stream in order.
    Shutdown,
    /// Break the connection.
    Abort,
    /// Is the connection over?
    IsOver,
    /// Free the memory of quarantined leases early.
    ReplacePages,
}

/// The answers of one hold of the lock. They are forgotten with the hold, and when a call returns:
/// what was read before the end of a call says nothing about that call.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Known {
    /// The error queue was read.
    pub(super) has_read: bool,
    /// Reading it failed.
    pub(super) read_failed: bool,
    /// It was read to its end, or that cannot be done.
    pub(super) is_at_end: bool,
    /// The error queue is to be read before anything else.
    pub(super) wants_read: bool,
    /// An admission has looked whether the error queue is to be read first.
    pub(super) has_looked: bool,
    /// The option memory is to be asked once the error queue is read: the connection was aborted.
    pub(super) wants_proof: bool,
    /// Ids found released.
    pub(super) freed: u64,
    pub(super) time: Option<Instant>,
    /// `Some(None)`: it cannot be told.
    pub(super) optmem: Option<Option<u32>>,
    /// `Some(None)`: it cannot be told.
    pub(super) unacked: Option<Option<usize>>,
    pub(super) is_over: Option<bool>,
    /// What is held was looked at.
    pub(super) has_looked_at_hold: bool,
    /// When to look again though nothing happens.
    pub(super) look_again: Option<Duration>,
}
