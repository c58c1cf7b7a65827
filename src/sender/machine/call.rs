//! One system call that sends: what it covers, whether it is out, and how it can end.

use std::io;

use super::outbox::{Cut, Outbox, Way};
use crate::{
    error::{OsError, SendError},
    id::{NotificationId, Ticket},
    sys::{
        errno,
        socket::{IoVec, SendFlags},
    },
};

/// `true` while a call is out: made, with an answer not yet told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Out {
    No,
    /// A call of a lone buffer. The next thread that takes the lock settles its end.
    Left(Way),
    /// The thread that made the call tells the machine of its end.
    Told,
}

/// A call for elements of the outbox, which is out with the call: the kernel reads the elements
/// while other threads change the machine.
#[must_use]
pub(crate) struct RunCall {
    pub(super) outbox: Box<Outbox>,
    pub(super) cut: Cut,
    pub(super) id: Option<NotificationId>,
}

impl RunCall {
    pub(crate) fn memory(&self) -> &[IoVec] {
        self.outbox.memory(self.cut)
    }

    pub(crate) fn flags(&self) -> SendFlags {
        // A call without copy carries much: no small packet would be spared.
        let zerocopy = self.id.is_some();
        SendFlags { zerocopy, more: self.cut.more && !zerocopy }
    }
}

/// A call for a lone buffer.
#[must_use]
#[derive(Clone, Copy)]
pub(crate) struct LoneCall {
    pub(crate) ticket: Ticket,
    pub(crate) memory: IoVec,
    /// Bytes of the call: all of the memory, or what one call may cover.
    pub(crate) bytes: usize,
    /// The id that was issued for a call without copy.
    pub(super) id: Option<NotificationId>,
}

impl LoneCall {
    #[inline(always)]
    pub(crate) fn way(&self) -> Way {
        if self.id.is_some() { Way::ZeroCopy } else { Way::Copy }
    }

    #[inline(always)]
    pub(crate) fn flags(&self) -> SendFlags {
        let zerocopy = self.id.is_some();
        SendFlags { zerocopy, more: !zerocopy && self.bytes < self.memory.len() }
    }

    /// The memory of the call.
    #[inline(always)]
    pub(crate) fn part(&self) -> IoVec {
        self.memory.part(0, self.bytes)
    }

    /// Returns `true` if the answer is that all of the buffer was accepted.
    #[inline(always)]
    pub(crate) fn took_all(&self, sent: &io::Result<usize>) -> bool {
        matches!(sent, Ok(accepted) if *accepted == self.memory.len())
    }
}

/// A send of which at least a part was accepted.
pub(crate) struct Offered {
    pub(crate) ticket: Ticket,
    /// `true` if all of it was.
    pub(crate) whole: bool,
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

/// The reason against a further call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// The socket has no room.
    Blocked,
    /// The window, the memlock budget or a quota has no room.
    Window,
    /// The connection is over.
    Failed(OsError),
    /// The next elements were refused; the connection is unchanged.
    Refused(OsError),
    /// A datagram was accepted, and dropped below the socket.
    Dropped(OsError),
}

/// The reason against the owner's last buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Refused {
    /// The buffer was let in, or is the owner's to forget.
    #[default]
    No,
    /// The socket had no room.
    ForRoom,
    /// As `ForRoom`, and a later look has found room.
    RoomFound,
    /// The window or a quota had no room.
    ForRelease,
}

impl Stop {
    /// Converts to the error of a send without an accepted byte.
    pub(crate) fn into_send_error<B>(self, buf: B) -> SendError<B> {
        match self {
            Self::Blocked | Self::Window => SendError::WouldBlock(buf),
            Self::Failed(error) => SendError::Connection { error, buf },
            Self::Refused(error) if error.raw() == errno::EFAULT => SendError::BadAddress(buf),
            Self::Refused(error) => SendError::Os { error, buf },
            Self::Dropped(error) => SendError::Dropped { error, buf },
        }
    }
}
