//! The slots of one size.

use std::{ptr::NonNull, task::Waker};

use super::{
    freelist::{Diverted, FreeList},
    pool::RawPool,
    slot::{Slot, SlotState},
    waiters::{Joined, WaitTicket, Waiters},
};
use crate::{sync::CachePadded, sys::process::Process};

/// Equal slots in a row: their records, the free ones, and who waits for one.
#[derive(Debug)]
pub(crate) struct SizeClass {
    pool: NonNull<RawPool>,
    /// Where the first slot starts.
    memory: NonNull<u8>,
    capacity: usize,
    stride: usize,
    zero_on_recycle: bool,
    process: Process,
    slots: Box<[Slot]>,
    /// On a cache line of its own: it is written by every alloc and recycle, the rest never.
    free: CachePadded<FreeList>,
    waiters: Waiters,
}

/// What became of a slot that went home.
#[derive(Debug)]
pub(crate) enum Home {
    Free,
    /// Handed to a waiter, who is to be woken.
    Granted(Option<Waker>),
    /// The class is closed: the slot's hold on the pool is the caller's to give up.
    Closed,
}

impl SizeClass {
    pub(crate) fn new(
        pool: NonNull<RawPool>,
        memory: NonNull<u8>,
        capacity: usize,
        stride: usize,
        count: usize,
        zero_on_recycle: bool,
    ) -> Self {
        let slots: Box<[Slot]> = (0..count as u32).map(Slot::new).collect();
        let free = CachePadded::new(FreeList::new(&slots));
        let waiters = Waiters::default();
        let process = Process::this();
        Self { pool, memory, capacity, stride, zero_on_recycle, process, slots, free, waiters }
    }

    /// Whether the pool is that of the process which this one was forked from. Then its memory is
    /// not here and its locks may be taken for ever: only records and free lists, of which this
    /// process has a copy, may be touched, so that the drop of a buffer need not ask.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        !self.process.is_this()
    }

    pub(crate) fn pool(&self) -> NonNull<RawPool> {
        self.pool
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of memory that belong to each slot, the unused rest of its last page included.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    pub(crate) fn zero_on_recycle(&self) -> bool {
        self.zero_on_recycle
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    #[inline]
    pub(crate) fn slot(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }

    /// Where the memory of a slot starts; `capacity` bytes of it are the slot's.
    #[inline]
    pub(crate) fn memory(&self, index: u32) -> *mut u8 {
        self.memory.as_ptr().wrapping_add(index as usize * self.stride)
    }

    pub(crate) fn free(&self) -> &FreeList {
        &self.free
    }

    pub(crate) fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Takes a free slot. It is the caller's, and still Free.
    #[inline]
    pub(crate) fn pop(&self) -> Option<u32> {
        self.free.pop(&self.slots)
    }

    /// Queues for a slot.
    pub(crate) fn join(&self, waker: Waker) -> Joined {
        self.waiters.join(&self.free, &self.slots, waker)
    }

    /// Leaves the queue; a slot that was handed over in the meantime is the caller's.
    pub(crate) fn leave(&self, ticket: WaitTicket) -> Option<u32> {
        self.waiters.leave(&self.free, ticket)
    }

    /// Sends a Free slot home although a push was diverted.
    pub(crate) fn home(&self, index: u32) -> Home {
        loop {
            match self.free.push(index, self.slot(index).next()) {
                Ok(()) => return Home::Free,
                Err(Diverted::Closed) => return Home::Closed,
                Err(Diverted::Waiters) => {
                    if let Ok(waker) = self.waiters.grant(&self.free, index) {
                        return Home::Granted(waker);
                    }
                }
            }
        }
    }

    /// Whether no slot can come home before a late proof: waiting would wait for what may never
    /// come.
    pub(crate) fn is_wholly_quarantined(&self) -> bool {
        self.slots.iter().all(|slot| slot.state() == SlotState::Quarantined)
    }

    /// Called after a slot became Quarantined: if it was the last that was not, nobody may go on
    /// waiting. The queue's lock orders this with `join`: either the waiter sees the state, or
    /// this sees the waiter.
    pub(crate) fn slot_quarantined(&self) -> Vec<Waker> {
        // The lock comes first, also for a second thread here: the later one sees both slots.
        if self.waiters.waiting() > 0 && self.is_wholly_quarantined() {
            self.waiters.rouse()
        } else {
            Vec::new()
        }
    }

    /// Ends the class with its pool's handle; returns how many slots were at home. Slots handed to
    /// waiters are at home too: every waiter borrows the handle, so these were forgotten.
    pub(crate) fn close(&self) -> usize {
        self.free.close(&self.slots) + self.waiters.granted().len()
    }
}

#[cfg(loom)]
impl Drop for SizeClass {
    /// The memory goes with the class: nobody may be using it.
    fn drop(&mut self) {
        self.slots.iter().for_each(Slot::contents_written);
    }
}
