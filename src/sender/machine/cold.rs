//! State that most senders never need: its memory is allocated with its first change, so that an
//! idle sender stays small.

use std::{collections::VecDeque, task::Waker};

use super::{
    super::{kernel::Edges, report::Returned},
    hold::Hold,
};
use crate::{id::Ticket, sync::Arc, sys::Foreign};

/// Foreign messages of the error queue kept for the caller.
const MAX_EVENTS: usize = 64;

/// A value in a box that the first change makes.
pub(super) struct Lazy<T>(Option<Box<T>>);

impl<T> Default for Lazy<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Default> Lazy<T> {
    /// The value, if it was ever changed.
    #[inline]
    pub(super) fn get(&self) -> Option<&T> {
        self.0.as_deref()
    }

    /// The value, to be changed, if it ever was.
    #[inline]
    pub(super) fn get_mut(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }

    /// The value, to be changed.
    #[inline]
    pub(super) fn make(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

/// State that few senders have.
#[derive(Default)]
pub(in crate::sender) struct Cold {
    /// Payloads for a caller with [`HandBack::Return`](crate::sender::HandBack::Return).
    pub(in crate::sender) returned: VecDeque<Returned>,
    /// Tasks waiting for the fate of a send.
    pub(in crate::sender) wakers: Vec<(Ticket, Waker)>,
    /// Tasks waiting for a slot in vain, to be woken once no lock is held.
    pub(in crate::sender) hopeless: Vec<Waker>,
    pub(in crate::sender) events: VecDeque<Foreign>,
    /// Threads waiting for changes of this sender, which another thread may read.
    pub(in crate::sender) sleepers: Vec<Arc<dyn Edges>>,
    /// The descriptors of a finished wait, for the next wait. A busy sender would spend the calls
    /// to make them on every buffer.
    pub(in crate::sender) spare_edges: Option<Arc<dyn Edges>>,
    pub(in crate::sender) hold: Hold,
    /// As in [`SenderStats`](crate::sender::SenderStats).
    pub(in crate::sender) no_bufs_optmem: u64,
    pub(in crate::sender) no_bufs_memlock: u64,
    pub(in crate::sender) dropped_sends: u64,
    pub(in crate::sender) truncated_sends: u64,
    pub(in crate::sender) events_dropped: u64,
}

impl Cold {
    /// Keeps a foreign message for the caller; drops the oldest one if there are too many.
    pub(super) fn keep_event(&mut self, event: Foreign) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
            self.events_dropped += 1;
        }
        self.events.push_back(event);
    }
}
