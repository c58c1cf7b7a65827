//! What a class keeps of each of its slots.

use std::ptr::NonNull;

use super::{class::SizeClass, slot::Slot};
use crate::sync::{AtomicUsize, Ordering};

/// A slot's state, and where it belongs.
///
/// Each record has a cache line of its own: neighbours are with other threads.
#[derive(Debug)]
#[cfg_attr(not(loom), repr(align(64)))]
pub(crate) struct Record {
    slot: Slot,
    class: NonNull<SizeClass>,
    memory: NonNull<u8>,
    /// Bytes written of an exclusive buffer. 0 while the slot is Free: it is who sends a slot home
    /// that sees to that, with the record at hand, which the next owner still has to fetch.
    len: AtomicUsize,
}

#[cfg(all(not(loom), target_pointer_width = "64"))]
static_assertions::assert_eq_size!(Record, [u8; 64]);

// SAFETY: the pointers are only handed out: to the class, which is used through shared references,
// and to the slot's memory, which only its holder accesses.
unsafe impl Send for Record {}
// SAFETY: as above.
unsafe impl Sync for Record {}

impl Record {
    pub(crate) fn new(index: u32, class: NonNull<SizeClass>, memory: NonNull<u8>) -> Self {
        let len = AtomicUsize::new(0);
        Self { slot: Slot::new(index), class, memory, len }
    }

    #[inline]
    pub(crate) fn slot(&self) -> &Slot {
        &self.slot
    }

    /// The slot's number within its class.
    #[inline]
    pub(crate) fn index(&self) -> u32 {
        self.slot.index()
    }

    /// Alive as long as this record is.
    #[inline]
    pub(crate) fn class(&self) -> NonNull<SizeClass> {
        self.class
    }

    /// Where the slot's memory starts.
    #[inline]
    pub(crate) fn memory(&self) -> NonNull<u8> {
        self.memory
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        // Relaxed: only an exclusive holder uses it, and whoever passes the buffer on orders that.
        self.len.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_len(&self, len: usize) {
        // Relaxed: as in `len`.
        self.len.store(len, Ordering::Relaxed);
    }
}
