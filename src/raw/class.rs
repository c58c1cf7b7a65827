//! Slots of equal size.

use std::{ptr::NonNull, task::Waker};

use super::{
    bound::{Bound, BoundMagazines},
    depot::{Depot, Pushed},
    freelist::BUNDLE,
    head::PoolHead,
    magazine::{self, ITEMS, Refill},
    state::{SlotState, StateWord},
    waiters::{Joined, WaitTicket},
};
use crate::{
    sync::{AtomicUsize, CachePadded, Ordering, unmodelled},
    sys::{barrier, process::Process},
};

/// A magazine for free slots of one class.
pub(crate) type Magazine = magazine::Magazine<SizeClass, Slot>;

/// The bookkeeping of a slot. It lies apart from the mapped memory, out of reach for stray writes
/// to a buffer and for child processes.
///
/// Each slot has a cache line of its own, because neighbours are used by other threads.
#[derive(Debug)]
#[cfg_attr(not(loom), repr(align(64)))]
pub(crate) struct Slot {
    word: StateWord,
    class: NonNull<SizeClass>,
    memory: NonNull<u8>,
    /// Bytes written of an exclusive buffer. 0 while the slot is Free. The recycling
    /// thread resets the length, because its processor has the cache line.
    len: AtomicUsize,
}

#[cfg(all(not(loom), target_pointer_width = "64"))]
static_assertions::assert_eq_size!(Slot, [u8; 64]);

// SAFETY: the pointers are only handed out: to the class, which is used through shared references,
// and to the slot's memory, which only the slot's holder accesses.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Slot {
    #[inline]
    pub(crate) fn word(&self) -> &StateWord {
        &self.word
    }

    /// The slot's number within its class.
    #[inline]
    pub(crate) fn index(&self) -> u32 {
        self.word.index()
    }

    /// The slot's class. The class lives as long as the slot.
    #[inline]
    pub(crate) fn class(&self) -> NonNull<SizeClass> {
        self.class
    }

    /// The start of the slot's memory.
    #[inline]
    pub(crate) fn memory(&self) -> NonNull<u8> {
        self.memory
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        // Relaxed: only an exclusive holder uses the length, and a hand-over of the buffer orders
        // that.
        self.len.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_len(&self, len: usize) {
        // Relaxed: as in `len`.
        self.len.store(len, Ordering::Relaxed);
    }
}

/// The place of a class in its pool.
#[derive(Clone, Copy)]
pub(crate) struct ClassLayout {
    /// The start of the memory of the first slot.
    pub(crate) memory: NonNull<u8>,
    /// Bytes that each slot offers.
    pub(crate) capacity: usize,
    /// Bytes from slot to slot.
    pub(crate) stride: usize,
    /// The number of slots.
    pub(crate) count: usize,
}

/// Equal slots in a row, and the free ones among them.
///
/// ```text
///   thread 1: magazine ---+   recall: any thread that finds the depot empty takes the slots of
///   thread 2: magazine ---+-- all magazines, under the lock of `bound`
///   thread 3: magazine ---+
///                 |  ^
///   spill a bundle|  |refill with a bundle
///                 v  |
///               depot (free list, waiters) <---- slots that no magazine takes
/// ```
///
/// # Invariants
///
/// 1. A free slot is in the depot or in a magazine. It is in neither only while the magazine's
///    owner is busy, while the lock of `bound` is held, or on its way to its next owner. So a
///    thread that finds the depot empty, takes the lock, recalls the magazines, and finds the depot
///    empty again has proof that no slot is free.
/// 2. While a magazine is bound and the lock of `bound` is free, the depot has no flags: a thread
///    that queues or closes has the lock and has recalled all magazines, and a magazine is bound
///    under the lock if no flag is set.
#[derive(Debug)]
pub(crate) struct SizeClass {
    head: NonNull<PoolHead>,
    capacity: usize,
    stride: usize,
    zero_on_recycle: bool,
    process: Process,
    /// The capacity of a magazine for this class; 0: there are no magazines.
    magazine_limit: u32,
    /// The number of the class among all that have magazines, in any pool.
    number: usize,
    slots: Box<[Slot]>,
    depot: Depot,
    /// On a cache line of its own, like the depot's free list: the fields above are never written.
    bound: CachePadded<BoundMagazines<SizeClass, Slot>>,
}

// SAFETY: the pointers are to the pool's head, which is Sync, and into the region. Only the
// holders of slots access the region's memory.
unsafe impl Send for SizeClass {}
// SAFETY: as above; the fields that change are atomics and locks.
unsafe impl Sync for SizeClass {}

impl SizeClass {
    /// A class that will lie at `at`.
    pub(crate) fn new(
        at: NonNull<Self>,
        head: NonNull<PoolHead>,
        layout: ClassLayout,
        zero_on_recycle: bool,
    ) -> Self {
        let ClassLayout { memory, capacity, stride, count } = layout;
        let slot = |index: u32| {
            let start = memory.as_ptr().wrapping_add(index as usize * stride);
            let memory = NonNull::new(start).expect("no mapping lies at address 0");
            Slot { word: StateWord::new(index), class: at, memory, len: AtomicUsize::new(0) }
        };
        // Zeroing a slot takes so long that a magazine would save nothing.
        let magazines = !zero_on_recycle && barrier::is_available();
        let magazine_limit = if magazines { magazine_limit(count) } else { 0 };
        Self {
            head,
            capacity,
            stride,
            zero_on_recycle,
            process: Process::this(),
            magazine_limit,
            number: if magazine_limit > 0 { unmodelled::next_class() as usize } else { 0 },
            slots: (0..count as u32).map(slot).collect(),
            depot: Depot::new(count, bundle(magazine_limit)),
            bound: CachePadded::default(),
        }
    }

    /// Returns `true` in a process forked from the one that built the pool. There the memory is
    /// absent and the locks may be taken for ever. Only slots and free lists, of which this process
    /// has a copy, may be touched.
    ///
    /// Alloc and the drop of a buffer ask this only if no magazine serves them, since a child finds
    /// no magazine bound.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        !self.process.is_this()
    }

    #[inline]
    pub(crate) fn head(&self) -> NonNull<PoolHead> {
        self.head
    }

    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of memory that belong to each slot, the unused end of the last page included.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    pub(crate) fn zero_on_recycle(&self) -> bool {
        self.zero_on_recycle
    }

    pub(crate) fn has_magazines(&self) -> bool {
        self.magazine_limit > 0
    }

    #[inline]
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) fn slot(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }

    pub(crate) fn depot(&self) -> &Depot {
        &self.depot
    }

    /// Takes the last slot of the caller's own magazine.
    #[inline(always)]
    pub(crate) fn pop_from(&self, magazine: &Magazine) -> Option<&Slot> {
        let slot = magazine.pop(NonNull::from(self))?;
        // SAFETY: the magazine was bound to this class, and only slots of a class are pushed for
        // the class, which owns them.
        Some(unsafe { slot.as_ref() })
    }

    /// Takes up to `most` slots of the caller's own magazine, into which the caller pushes nothing
    /// before the iterator is exhausted.
    #[inline]
    pub(crate) fn pop_many_from<'a>(
        &'a self,
        magazine: &'a Magazine,
        most: usize,
    ) -> impl Iterator<Item = &'a Slot> {
        let slots = magazine.pop_many(NonNull::from(self), most).iter();
        // SAFETY: as in `pop_from`.
        slots.map(|slot| unsafe { slot.as_ref() })
    }

    /// Binds the caller's own magazine, unless it is bound already. `false`: not possible, or
    /// not useful, now.
    ///
    /// # Safety
    ///
    /// The caller owns the magazine, and keeps its memory until a recall or
    /// [`unbind`](Self::unbind) has unbound it.
    pub(crate) unsafe fn bind(&self, magazine: &Magazine) -> bool {
        let may = || !self.depot.has_waiters();
        // SAFETY: the caller's promise.
        self.has_magazines()
            && unsafe { self.bound.bind(NonNull::from(self), magazine, self.magazine_limit, may) }
    }

    /// Takes a free slot: from the caller's own magazine, if that is bound to this class, from the
    /// depot, or from the magazines of other threads. The slot is the caller's, and still Free.
    pub(crate) fn pop(&self, own: Option<&Magazine>) -> Option<&Slot> {
        if let Some(slot) = own.and_then(|own| self.pop_from(own).or_else(|| self.refill(own))) {
            return Some(slot);
        }
        if let Some(index) = self.depot.pop_single() {
            return Some(self.slot(index));
        }
        if !self.has_magazines() || self.depot.has_waiters() {
            return None;
        }
        let mut bound = self.bound.lock();
        self.pop_one(&bound).or_else(|| {
            let recalled = self.recall(&mut bound, own);
            recalled.then(|| self.pop_one(&bound))?
        })
    }

    /// Refills the caller's own, empty magazine from the depot, and takes a slot.
    fn refill(&self, own: &Magazine) -> Option<&Slot> {
        // The owner is busy during the refill. So a thread that finds the depot empty, and recalls
        // the magazines, waits until the slots are in this one.
        let fill = |refill: &mut Refill<'_, Slot>| {
            self.depot.pop_bundle(|index| refill.push(NonNull::from(self.slot(index))));
        };
        let slot = own.refill(NonNull::from(self), fill)?;
        // SAFETY: a slot of this class, as pushed above.
        Some(unsafe { slot.as_ref() })
    }

    /// Pushes a Free slot into the caller's own, full magazine, after moving a bundle from there to
    /// the depot. `false`, and nothing has happened: the magazine is not bound to `class`. After a
    /// push the caller may not touch the pool.
    pub(crate) fn spill(class: NonNull<Self>, own: &Magazine, slot: NonNull<Slot>) -> bool {
        // SAFETY: `slot` is still the caller's. The slot's hold keeps the class alive.
        let count = unsafe { class.as_ref() }.depot.bundle();
        own.spill(class, slot, count, |slots| {
            // SAFETY: the owner is busy, so that closing the class waits (invariant 3 of
            // `Magazine`).
            let class = unsafe { class.as_ref() };
            // SAFETY: slots of `class`, since the magazine is bound to it.
            let indices = slots.iter().map(|slot| unsafe { slot.as_ref() }.index());
            // No flag is set, since a magazine is bound (invariant 2).
            class.depot.push_all(indices)
        })
    }

    /// Takes one slot of the bundle on top of the depot. `bound` is this class's list, locked.
    fn pop_one(&self, bound: &Bound<Self, Slot>) -> Option<&Slot> {
        let mut indices = [0; BUNDLE];
        let mut count = 0;
        self.depot.pop_bundle(|index| {
            indices[count] = index;
            count += 1;
        });
        let (first, rest) = indices[..count].split_first()?;
        self.push_all(bound, rest.iter().copied());
        Some(self.slot(*first))
    }

    /// Moves the slots of all magazines but `own` to the depot. Returns `true` if there were such
    /// magazines. `bound` is this class's list, locked.
    fn recall(&self, bound: &mut Bound<Self, Slot>, own: Option<&Magazine>) -> bool {
        let mut indices = Vec::new();
        let recalled = self.bound.recall(bound, NonNull::from(self), own, |slot| {
            // SAFETY: a slot of this class, since the magazine is bound to it.
            indices.push(unsafe { slot.as_ref() }.index());
        });
        self.push_all(bound, indices);
        recalled
    }

    /// Moves slots that were free before to the depot. `_bound` is this class's list, locked, so
    /// that no flag can be set meanwhile; none is set before, since the slots were free.
    fn push_all(&self, _bound: &Bound<Self, Slot>, slots: impl IntoIterator<Item = u32>) {
        let pushed = self.depot.push_all(slots);
        debug_assert!(pushed);
    }

    /// Unbinds the caller's own magazine, which was bound to this class, and moves its slots to the
    /// depot, unless a recall has done both.
    pub(crate) fn unbind(&self, magazine: &Magazine) {
        let mut bound = self.bound.lock();
        let slots = bound.unbind(NonNull::from(self), magazine);
        // SAFETY: slots of this class, since the magazine was bound to it.
        let indices = slots.map(|slot| unsafe { slot.as_ref() }.index());
        self.push_all(&bound, indices);
    }

    /// Queues for a slot. From then on no slot goes into a magazine.
    pub(crate) fn join(&self, waker: Waker) -> Joined {
        // A waker that is not used is dropped after the lock.
        let mut waker = Some(waker);
        let mut bound = self.bound.lock();
        self.recall(&mut bound, None);
        self.depot.join(|| self.pop_one(&bound).map(Slot::index), &mut waker)
    }

    /// As [`Depot::claim`].
    pub(crate) fn claim(&self, ticket: WaitTicket, waker: &Waker) -> Option<u32> {
        self.depot.claim(ticket, waker)
    }

    /// As [`Depot::leave`].
    pub(crate) fn leave(&self, ticket: WaitTicket) -> Option<u32> {
        self.depot.leave(ticket)
    }

    /// Pushes a Free slot to the depot, past the magazines; see [`Depot::push_or_grant`].
    pub(crate) fn push_or_grant(&self, slot: &Slot) -> Pushed {
        self.depot.push_or_grant(slot.index())
    }

    /// Returns `true` if every slot is Quarantined, so that none may ever become free.
    pub(crate) fn is_wholly_quarantined(&self) -> bool {
        self.slots.iter().all(|slot| slot.word().state() == SlotState::Quarantined)
    }

    /// The wakers of all waiters, to be woken, if they have nothing to wait for: called after a
    /// slot became Quarantined. The queue's lock orders this with [`join`](Self::join), so that
    /// either the waiter sees the slot's state, or this call sees the waiter.
    pub(crate) fn slot_quarantined(&self) -> Vec<Waker> {
        self.depot.wake_if(|| self.is_wholly_quarantined())
    }

    /// The numbers of the free slots: in the depot and in magazines. Exact only while nothing
    /// moves. Not for a forked child.
    pub(crate) fn free_slots(&self) -> Vec<u32> {
        let bound = self.bound.lock();
        let mut indices = self.depot.slots();
        let in_magazines = bound.magazines().flat_map(|own| own.items_of_idle_owner().iter());
        // SAFETY: slots of this class, since the magazines are bound to it.
        indices.extend(in_magazines.map(|slot| unsafe { slot.as_ref() }.index()));
        indices
    }

    /// Closes the class with its pool's handle, and returns the number of free slots.
    pub(crate) fn close(&self) -> usize {
        let mut in_magazines = 0;
        let mut bound = self.bound.lock();
        self.bound.recall(&mut bound, NonNull::from(self), None, |_| in_magazines += 1);
        bound.close();
        drop(bound);
        in_magazines + self.depot.close()
    }
}

/// The capacity of a magazine for a class of `count` slots; 0: there are no magazines.
///
/// A magazine has a quarter of the class at most: a thread that runs short has to fetch the slots
/// in magazines.
fn magazine_limit(count: usize) -> u32 {
    let (least, share) = if cfg!(loom) { (6, 3) } else { (64, 4) };
    if count < least { 0 } else { (count / share).min(ITEMS) as u32 }
}

/// Slots in a bundle: half a magazine comes and goes at a time.
fn bundle(magazine_limit: u32) -> usize {
    let half = if cfg!(loom) { magazine_limit } else { magazine_limit / 2 };
    (half as usize).clamp(1, BUNDLE)
}

#[cfg(loom)]
impl Drop for SizeClass {
    /// The memory ends with the class: a model fails if the contents are still in use.
    fn drop(&mut self) {
        self.slots.iter().for_each(|slot| slot.word().contents_written());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_magazine_has_a_quarter_of_its_class_at_most() {
        for (count, limit) in [(1, 0), (63, 0), (64, 16), (100, 25), (4 * ITEMS, ITEMS as u32)] {
            assert_eq!(magazine_limit(count), limit, "{count} slots");
        }
        assert_eq!(magazine_limit(usize::MAX), ITEMS as u32);
    }
}
