//! One system call that sends: its way, and its possible ends.

use crate::{
    error::{OsError, SendError},
    id::NotificationId,
    sys::errno,
};

/// The way of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::sender) enum Way {
    /// By copy: the kernel reads the memory during the call only.
    #[default]
    Copy,
    /// Without copy: the kernel reads the memory until the release of the call.
    ZeroCopy,
}

/// The elements of the outbox in one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::sender) struct Cut {
    /// Index of the first element, and one past the last.
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) bytes: usize,
    /// The way of the elements if nothing stands against it.
    pub(super) way: Way,
    /// More of the same send follows, so that a small header need not travel alone.
    pub(super) more: bool,
}

/// A failed call, until its meaning is settled.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) cut: Cut,
    pub(super) error: OsError,
    /// The call was without copy.
    pub(super) was_zero_copy: bool,
    /// The id of the call, until it is known whether the kernel used the id.
    pub(super) id: Option<NotificationId>,
    /// The kernel used the id, and has released it.
    pub(super) took_id: bool,
    /// The limit met by the kernel is counted.
    pub(super) is_counted: bool,
    /// The error queue was read after the failure.
    pub(super) has_read: bool,
}

impl Failed {
    /// A call that took nothing, with its answer; `id` of a call without copy.
    pub(super) fn new(cut: Cut, id: Option<NotificationId>, sent: Result<usize, OsError>) -> Self {
        Self {
            cut,
            // A call that takes nothing without an error found no room.
            error: sent.err().unwrap_or(OsError::from_raw(errno::EAGAIN)),
            was_zero_copy: id.is_some(),
            id,
            took_id: false,
            is_counted: false,
            has_read: false,
        }
    }
}

/// The way of the next call of the outbox after a failed call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Retry {
    /// No call failed.
    #[default]
    No,
    /// Without copy, once more: releases made room.
    Once,
    /// By copy, even for large elements.
    ByCopy,
}

/// Why a send cannot go on at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::sender) enum Blocked {
    /// The socket has no room.
    Socket,
    /// The window, the memlock budget or a quota has no room.
    Window,
    /// A call was refused for a different reason.
    Refused,
}

/// Why a flush ended with something unsent.
#[derive(Clone, Copy, Debug)]
pub(in crate::sender) enum Stop {
    Blocked,
    /// The connection is over.
    Failed(OsError),
    /// The next elements were refused; the connection is unchanged.
    Refused(OsError),
    /// A datagram was accepted, and dropped below the socket.
    Dropped(OsError),
}

impl Stop {
    /// Converts to the error of a send without an accepted byte.
    pub(in crate::sender) fn into_send_error<B>(self, buf: B) -> SendError<B> {
        match self {
            Self::Blocked => SendError::WouldBlock(buf),
            Self::Failed(error) => SendError::Connection { error, buf },
            Self::Refused(error) if error.raw() == errno::EFAULT => SendError::BadAddress(buf),
            Self::Refused(error) => SendError::Os { error, buf },
            Self::Dropped(error) => SendError::Dropped { error, buf },
        }
    }
}
