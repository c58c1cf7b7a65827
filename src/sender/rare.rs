//! What most senders never need: memory for it only once it is needed, so that one that is idle
//! stays small.

use std::{
    collections::VecDeque,
    ops::{Deref, DerefMut},
    task::Waker,
};

use super::{Returned, hold::Hold, kernel::Edges};
use crate::{id::Ticket, sync::Arc, sys::Foreign};

/// A value that is empty at first, and takes memory from the first change on.
///
/// To read it costs none; a change of what may be empty is guarded by a look.
pub(super) struct Rare<T: Empty>(Option<Box<T>>);

/// What a [`Rare`] is before it has a value of its own.
pub(super) trait Empty: Default + 'static {
    const EMPTY: &'static Self;
}

impl<T: 'static> Empty for Vec<T> {
    const EMPTY: &'static Self = &Self::new();
}

impl<T: 'static> Empty for VecDeque<T> {
    const EMPTY: &'static Self = &Self::new();
}

impl<T: Empty> Rare<T> {
    /// The value if it has ever been changed: the quickest look.
    #[inline]
    pub(super) fn get(&self) -> Option<&T> {
        self.0.as_deref()
    }
}

impl<T: Empty> Default for Rare<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Empty> Deref for Rare<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::EMPTY)
    }
}

impl<T: Empty> DerefMut for Rare<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

/// What few senders have of all that lives under the lock of those in flight.
#[derive(Default)]
pub(super) struct Extras {
    /// Payloads for the caller, when it wants them back.
    pub(super) returned: VecDeque<Returned>,
    pub(super) wakers: Vec<(Ticket, Waker)>,
    /// Who waited for a slot in vain, to be woken once no lock is held.
    pub(super) roused: Vec<Waker>,
    /// Leases on slots of each pool that has a quota.
    pub(super) held: Vec<(u64, usize)>,
    pub(super) events: VecDeque<Foreign>,
    /// Threads that wait for news of this sender, which another thread may be the one to read.
    pub(super) sleepers: Vec<Arc<dyn Edges>>,
    /// What a thread that waited has left for the next one: two descriptors and the calls to make
    /// them, which a busy sender would spend on every buffer. A sender that never waits has none.
    pub(super) spare_edges: Option<Arc<dyn Edges>>,
    pub(super) hold: Hold,
    /// As in [`SenderStats`](super::SenderStats).
    pub(super) no_bufs_optmem: u64,
    pub(super) no_bufs_memlock: u64,
    pub(super) dropped_sends: u64,
    pub(super) truncated_sends: u64,
    pub(super) events_dropped: u64,
}

impl Empty for Extras {
    const EMPTY: &'static Self = &Self {
        returned: VecDeque::new(),
        wakers: Vec::new(),
        roused: Vec::new(),
        held: Vec::new(),
        events: VecDeque::new(),
        sleepers: Vec::new(),
        spare_edges: None,
        hold: Hold::NONE,
        no_bufs_optmem: 0,
        no_bufs_memlock: 0,
        dropped_sends: 0,
        truncated_sends: 0,
        events_dropped: 0,
    };
}
