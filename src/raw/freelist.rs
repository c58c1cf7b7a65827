//! The free slots of a class: a stack of indices behind one atomic word.

use super::slot::Slot;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

const INDEX_BITS: u32 = 26;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
/// No slot: an index that no class is large enough to have.
const EMPTY: u32 = INDEX_MASK as u32;

const WAITERS: u64 = 1 << INDEX_BITS;
const CLOSED: u64 = 1 << (INDEX_BITS + 1);
const FLAGS: u64 = WAITERS | CLOSED;
/// The remaining 36 bits.
const TAG: u64 = 1 << (INDEX_BITS + 2);

/// The most slots one class can have.
pub(crate) const MAX_SLOTS: usize = EMPTY as usize;

/// Why a slot was not pushed. It is still the caller's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Diverted {
    /// Somebody waits: the slot is theirs.
    Waiters,
    /// The pool's handle is gone: the slot is given up with its hold on the pool.
    Closed,
}

/// A stack of slot indices, linked through [`Slot::next`].
///
/// # Invariants
///
/// 1. The index names a slot at home or is `EMPTY`, and so does the link of every slot on the list.
/// 2. The tag counts pops: between two occurrences of one head value no slot was popped. A pop that
///    read a link before another thread popped and pushed the same slot therefore fails. (After
///    2^36 pops while one pop stands still, minutes at least, the tag would repeat.)
/// 3. `WAITERS` is set only while the list is empty and a waiter is queued, and changes only under
///    the waiters' lock. So a push that meets it hands its slot to the first waiter, nobody
///    overtakes a waiter, and no fence is needed between "the list is empty" and "I wait".
/// 4. `CLOSED` never goes away.
///
/// One word for all of it means that a push needs to look at nothing else.
#[derive(Debug)]
pub(crate) struct FreeList {
    head: AtomicU64,
}

impl FreeList {
    /// All of `slots`, the first on top.
    pub(crate) fn new(slots: &[Slot]) -> Self {
        for (index, slot) in slots.iter().enumerate() {
            let next = if index + 1 == slots.len() { EMPTY } else { index as u32 + 1 };
            // Relaxed: nobody else knows the slots yet.
            slot.next().store(next, Ordering::Relaxed);
        }
        let top = if slots.is_empty() { EMPTY } else { 0 };
        Self { head: AtomicU64::new(u64::from(top)) }
    }

    /// Takes the slot on top. `None`: the list is empty.
    #[inline]
    pub(crate) fn pop(&self, slots: &[Slot]) -> Option<u32> {
        // Acquire: partner of the Release in `push_chain`; makes the link below and the slot's
        // contents visible. Pushes and pops in between continue the release sequence.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let index = index(head);
            let slot = slots.get(index as usize)?;
            // Relaxed: ordered by the load of `head`. If the slot was popped since, this may be
            // any value, and the exchange fails by invariant 2.
            let next = slot.next().load(Ordering::Relaxed);
            let popped = (head & !INDEX_MASK).wrapping_add(TAG) | u64::from(next);
            // Relaxed (success): the value is the one that the Acquire load read, by invariant 2
            // from the same write. Acquire (failure): as the load above.
            match self.head.compare_exchange_weak(
                head,
                popped,
                Ordering::Relaxed,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(index),
                Err(now) => head = now,
            }
        }
    }

    /// Puts one slot on top. `next` is its link.
    ///
    /// The caller may not touch the pool afterwards unless it keeps it alive in another way: the
    /// slot is at home. Both arguments consist of atomics only, so that they may dangle from then.
    #[inline]
    pub(crate) fn push(&self, index: u32, next: &AtomicU32) -> Result<(), Diverted> {
        self.push_chain(index, next)
    }

    /// Puts a chain of slots on top, linked from `first` to the one whose link is `last`.
    #[inline]
    pub(crate) fn push_chain(&self, first: u32, last: &AtomicU32) -> Result<(), Diverted> {
        // Relaxed: nothing is read through it.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head & FLAGS != 0 {
                return Err(diverted(head));
            }
            // Relaxed: published by the exchange.
            last.store(index(head), Ordering::Relaxed);
            let pushed = (head & !INDEX_MASK) | u64::from(first);
            // Release (success): partner of the Acquire loads in `pop` and `close`; publishes the
            // links, the slots' state words and what their owners did to the contents. Relaxed
            // (failure): as the load above.
            match self.head.compare_exchange_weak(
                head,
                pushed,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => head = now,
            }
        }
    }

    /// Sets `WAITERS` if the list is empty. Only under the waiters' lock.
    pub(crate) fn set_waiters(&self) -> bool {
        // Relaxed, all three: the lock orders the flag with the queue, and no slot is taken here.
        self.head
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |head| {
                (index(head) == EMPTY).then_some(head | WAITERS)
            })
            .is_ok()
    }

    /// Takes `WAITERS` back. Only under the waiters' lock.
    pub(crate) fn clear_waiters(&self) {
        // Relaxed: as in `set_waiters`.
        self.head.fetch_and(!WAITERS, Ordering::Relaxed);
    }

    pub(crate) fn has_waiters(&self) -> bool {
        // Relaxed: exact under the waiters' lock, a hint elsewhere.
        self.head.load(Ordering::Relaxed) & WAITERS != 0
    }

    /// Sets `CLOSED`, takes every slot off the list and returns how many there were.
    pub(crate) fn close(&self, slots: &[Slot]) -> usize {
        // Acquire: partner of the Release in `push_chain`, for the links, and so that unmapping
        // comes after all that the slots' last owners did.
        let head = self.head.swap(CLOSED | u64::from(EMPTY), Ordering::Acquire);
        self.walk(head, slots).count()
    }

    /// The indices on the list, from the top. Exact only while nothing moves; ends after as many
    /// steps as there are slots even if the links are damaged.
    pub(crate) fn iter<'a>(&self, slots: &'a [Slot]) -> impl Iterator<Item = u32> + 'a {
        // Acquire: as in `pop`.
        self.walk(self.head.load(Ordering::Acquire), slots)
    }

    fn walk<'a>(&self, head: u64, slots: &'a [Slot]) -> impl Iterator<Item = u32> + use<'a> {
        let link = |at: u32| {
            // Relaxed: ordered by the load of the head.
            slots.get(at as usize).map(|slot| slot.next().load(Ordering::Relaxed))
        };
        let first = Some(index(head)).filter(|&at| (at as usize) < slots.len());
        std::iter::successors(first, move |&at| {
            link(at).filter(|&next| (next as usize) < slots.len())
        })
        .take(slots.len() + 1)
    }
}

fn index(head: u64) -> u32 {
    (head & INDEX_MASK) as u32
}

fn diverted(head: u64) -> Diverted {
    if head & CLOSED != 0 { Diverted::Closed } else { Diverted::Waiters }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn list(count: u32) -> (Vec<Slot>, FreeList) {
        let slots: Vec<_> = (0..count).map(Slot::new).collect();
        let list = FreeList::new(&slots);
        (slots, list)
    }

    #[test]
    fn hands_out_low_addresses_first_and_the_last_pushed_again() {
        let (slots, list) = list(3);
        assert_eq!(list.pop(&slots), Some(0));
        assert_eq!(list.pop(&slots), Some(1));
        list.push(0, slots[0].next()).unwrap();
        assert_eq!(list.iter(&slots).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(list.pop(&slots), Some(0));
        assert_eq!(list.pop(&slots), Some(2));
        assert_eq!(list.pop(&slots), None);
    }

    #[test]
    fn a_chain_goes_on_in_one_piece() {
        let (slots, list) = list(3);
        while list.pop(&slots).is_some() {}
        slots[2].next().store(0, Ordering::Relaxed);
        list.push_chain(2, slots[0].next()).unwrap();
        assert_eq!(list.iter(&slots).collect::<Vec<_>>(), [2, 0]);
    }

    #[test]
    fn every_pop_changes_the_tag() {
        let (slots, list) = list(1);
        let before = list.head.load(Ordering::Relaxed);
        list.pop(&slots).unwrap();
        list.push(0, slots[0].next()).unwrap();
        assert_ne!(list.head.load(Ordering::Relaxed), before);
    }

    #[test]
    fn the_waiters_flag_is_for_an_empty_list_and_diverts_pushes() {
        let (slots, list) = list(1);
        assert!(!list.set_waiters());
        list.pop(&slots).unwrap();
        assert!(list.set_waiters());
        assert_eq!(list.push(0, slots[0].next()), Err(Diverted::Waiters));
        list.clear_waiters();
        assert_eq!(list.push(0, slots[0].next()), Ok(()));
    }

    #[test]
    fn closing_counts_the_slots_at_home_and_diverts_the_rest() {
        let (slots, list) = list(3);
        list.pop(&slots).unwrap();
        assert_eq!(list.close(&slots), 2);
        assert_eq!(list.push(0, slots[0].next()), Err(Diverted::Closed));
        assert_eq!(list.pop(&slots), None);
    }

    #[test]
    fn a_damaged_list_does_not_trap_the_walk() {
        let (slots, list) = list(2);
        slots[1].next().store(0, Ordering::Relaxed);
        assert_eq!(list.iter(&slots).count(), 3);
    }
}
