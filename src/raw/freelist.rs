//! The free slots of a class: a stack behind one atomic word.

use super::record::Record;
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

/// Slots that the cache line of a record can name.
const FOLLOWERS: usize = if cfg!(loom) { 1 } else { 5 };

/// Slots in a bundle at most: one, those it names, and those they name.
pub(crate) const BUNDLE: usize = 1 + FOLLOWERS + FOLLOWERS * FOLLOWERS;

/// Why a slot was not pushed. It is still the caller's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Diverted {
    /// Somebody waits: the slot is theirs.
    Waiters,
    /// The pool's handle is gone: the slot is given up with its hold on the pool.
    Closed,
}

/// Why nothing was popped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unpopped {
    Empty,
    /// What is on top is more than one slot.
    Bundle,
}

/// A record's part in the free list.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// Index of the next bundle's first slot, and above it the number of followers.
    next: AtomicU32,
    followers: [AtomicU32; FOLLOWERS],
}

impl Link {
    /// Where the list goes on, and how many followers this bundle has.
    fn read(&self) -> (u32, usize) {
        // Relaxed: ordered by the load of the head.
        let word = self.next.load(Ordering::Relaxed);
        (word & EMPTY, (word >> INDEX_BITS) as usize)
    }

    /// Names followers as long as there is room, and answers how many.
    fn name<'a>(&self, mut follower: impl FnMut() -> Option<&'a Record>) -> usize {
        let mut named = 0;
        for place in &self.followers {
            let Some(follower) = follower() else { break };
            // Relaxed: published by the exchange of the head.
            place.store(follower.index(), Ordering::Relaxed);
            named += 1;
        }
        named
    }

    /// So many of those named.
    fn followers(&self, count: usize) -> impl Iterator<Item = u32> {
        // Relaxed: as in `read`.
        self.followers.iter().take(count).map(|place| place.load(Ordering::Relaxed))
    }

    fn write(&self, next: u32, followers: usize) {
        // Relaxed: published by the exchange of the head.
        self.next.store(next | (followers as u32) << INDEX_BITS, Ordering::Relaxed);
    }
}

/// A stack of slots, in bundles: the first slot of each is linked to the next bundle's, and its record
/// names followers, whose records name more. So a magazine's worth of slots comes and goes with one
/// exchange, and only two cache misses after one another.
///
/// # Invariants
///
/// 1. The index names a slot at home or is `EMPTY`, and so does the link of every bundle on the list.
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
    /// All of `records`, the first on top, in bundles of so many.
    pub(crate) fn new(records: &[Record], bundle: usize) -> Self {
        let list = Self { head: AtomicU64::new(u64::from(EMPTY)) };
        list.push_all(records, bundle).expect("a new list has no flags");
        list
    }

    /// Takes the bundle on top and gives its slots to `take`, the top one first. `false`: the list is
    /// empty.
    #[inline]
    pub(crate) fn pop<'a>(&self, records: &'a [Record], take: impl FnMut(&'a Record)) -> bool {
        let popped = self.detach(records, |_| true);
        popped.map(|first| unpack(records, first, take)).is_ok()
    }

    /// Takes the slot on top, unless it is one of a bundle.
    #[inline]
    pub(crate) fn pop_single<'a>(&self, records: &'a [Record]) -> Result<&'a Record, Unpopped> {
        self.detach(records, |followers| followers == 0)
    }

    /// Takes the bundle on top, if its first slot's number of followers is `wanted`, and answers that
    /// slot.
    #[inline]
    fn detach<'a>(
        &self,
        records: &'a [Record],
        wanted: impl Fn(usize) -> bool,
    ) -> Result<&'a Record, Unpopped> {
        // Acquire: partner of the Release in `push_chain`; makes the links below and the slots'
        // contents visible. Pushes and pops in between continue the release sequence.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            // If the slot was popped since, its link may be any, and the exchange fails by
            // invariant 2.
            let top = records.get(index(head) as usize).ok_or(Unpopped::Empty)?;
            let (next, followers) = top.link().read();
            if !wanted(followers) {
                return Err(Unpopped::Bundle);
            }
            let popped = (head & !INDEX_MASK).wrapping_add(TAG) | u64::from(next);
            // Relaxed (success): the value is the one that the Acquire load read, by invariant 2
            // from the same write. Acquire (failure): as the load above.
            match self.head.compare_exchange_weak(
                head,
                popped,
                Ordering::Relaxed,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok(top),
                Err(now) => head = now,
            }
        }
    }

    /// Puts one slot on top. `link` is its record's.
    ///
    /// The caller may not touch the pool afterwards unless it keeps it alive in another way: the
    /// slot is at home. Both arguments consist of atomics only, so that they may dangle from then.
    #[inline]
    pub(crate) fn push(&self, index: u32, link: &Link) -> Result<(), Diverted> {
        self.push_chain(index, link, 0)
    }

    /// Puts slots on top, in bundles of `bundle`; nothing if there are none. The caller keeps the pool
    /// alive.
    pub(crate) fn push_all<'a>(
        &self,
        records: impl IntoIterator<Item = &'a Record>,
        bundle: usize,
    ) -> Result<(), Diverted> {
        let mut records = records.into_iter();
        let Some(mut first) = records.next() else { return Ok(()) };
        let top = first.index();
        loop {
            let mut rest = records.by_ref().take(bundle - 1);
            let followers = first.link().name(|| {
                let follower = rest.next()?;
                let named = follower.link().name(|| rest.next());
                follower.link().write(EMPTY, named);
                Some(follower)
            });
            let Some(next) = records.next() else {
                return self.push_chain(top, first.link(), followers);
            };
            first.link().write(next.index(), followers);
            first = next;
        }
    }

    /// Puts a chain of bundles on top, whose last one is still to be linked.
    #[inline]
    fn push_chain(&self, first: u32, last: &Link, followers: usize) -> Result<(), Diverted> {
        // Relaxed: nothing is read through it.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head & FLAGS != 0 {
                return Err(diverted(head));
            }
            last.write(index(head), followers);
            let pushed = (head & !INDEX_MASK) | u64::from(first);
            // Release (success): partner of the Acquire loads in `detach` and `close`; publishes
            // the links, the slots' state words and what their owners did to the contents. Relaxed
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

    #[inline]
    pub(crate) fn has_waiters(&self) -> bool {
        // Relaxed: exact under the waiters' lock, a hint elsewhere.
        self.head.load(Ordering::Relaxed) & WAITERS != 0
    }

    /// Sets `CLOSED`, takes every slot off the list and returns how many there were.
    pub(crate) fn close(&self, records: &[Record]) -> usize {
        // Acquire: partner of the Release in `push_chain`, for the links, and so that unmapping
        // comes after all that the slots' last owners did.
        let head = self.head.swap(CLOSED | u64::from(EMPTY), Ordering::Acquire);
        let mut count = 0;
        walk(records, index(head), |_| count += 1);
        count
    }

    /// The indices on the list, from the top. Exact only while nothing moves; ends in time even if
    /// the links are damaged.
    pub(crate) fn indices(&self, records: &[Record]) -> Vec<u32> {
        // Acquire: as in `detach`.
        let head = self.head.load(Ordering::Acquire);
        let mut indices = Vec::new();
        walk(records, index(head), |record| indices.push(record.index()));
        indices
    }
}

/// Visits the slots of all bundles from `first` on; ends after as many bundles as there are slots.
fn walk<'a>(records: &'a [Record], first: u32, mut visit: impl FnMut(&'a Record)) {
    let mut at = first;
    for _ in 0..=records.len() {
        let Some(first) = records.get(at as usize) else { break };
        (at, _) = first.link().read();
        unpack(records, first, &mut visit);
    }
}

/// Visits the slots of one bundle.
#[inline]
fn unpack<'a>(records: &'a [Record], first: &'a Record, mut visit: impl FnMut(&'a Record)) {
    let (_, followers) = first.link().read();
    visit(first);
    for follower in first.link().followers(followers) {
        let follower = &records[follower as usize];
        visit(follower);
        let (_, named) = follower.link().read();
        follower.link().followers(named).for_each(|last| visit(&records[last as usize]));
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
    use std::ptr::NonNull;

    use super::*;

    fn list(count: u32, bundle: u32) -> (Vec<Record>, FreeList) {
        let record = |index| Record::new(index, NonNull::dangling(), NonNull::dangling());
        let records: Vec<_> = (0..count).map(record).collect();
        let list = FreeList::new(&records, bundle as usize);
        (records, list)
    }

    fn pop(list: &FreeList, records: &[Record]) -> Vec<u32> {
        let mut popped = Vec::new();
        assert_ne!(list.pop(records, |record| popped.push(record.index())), popped.is_empty());
        popped
    }

    fn push(list: &FreeList, record: &Record) -> Result<(), Diverted> {
        list.push(record.index(), record.link())
    }

    #[test]
    fn hands_out_low_addresses_first_and_the_last_pushed_again() {
        let (records, list) = list(3, 1);
        assert_eq!(pop(&list, &records), [0]);
        assert_eq!(pop(&list, &records), [1]);
        push(&list, &records[0]).unwrap();
        assert_eq!(list.indices(&records), [0, 2]);
        assert_eq!(pop(&list, &records), [0]);
        assert_eq!(pop(&list, &records), [2]);
        assert_eq!(pop(&list, &records), []);
    }

    #[test]
    fn bundles_come_and_go_in_one_piece() {
        for bundle in 1..=BUNDLE {
            let (records, list) = list(70, bundle as u32);
            assert_eq!(list.indices(&records), Vec::from_iter(0..70));
            assert_eq!(pop(&list, &records), Vec::from_iter(0..bundle as u32));
            let single = list.pop_single(&records).map(Record::index);
            let want = if bundle == 1 { Ok(1) } else { Err(Unpopped::Bundle) };
            assert_eq!(single, want);
            push(&list, &records[0]).unwrap();
            assert_eq!(list.pop_single(&records).unwrap().index(), 0);
            list.push_all(records[..bundle].iter().rev(), bundle).unwrap();
            assert_eq!(pop(&list, &records), Vec::from_iter((0..bundle as u32).rev()));
        }
    }

    #[test]
    fn every_pop_changes_the_tag() {
        let (records, list) = list(1, 1);
        let before = list.head.load(Ordering::Relaxed);
        pop(&list, &records);
        push(&list, &records[0]).unwrap();
        assert_ne!(list.head.load(Ordering::Relaxed), before);
    }

    #[test]
    fn the_waiters_flag_is_for_an_empty_list_and_diverts_pushes() {
        let (records, list) = list(1, 1);
        assert!(!list.set_waiters());
        pop(&list, &records);
        assert!(list.set_waiters());
        assert_eq!(push(&list, &records[0]), Err(Diverted::Waiters));
        list.clear_waiters();
        assert_eq!(push(&list, &records[0]), Ok(()));
    }

    #[test]
    fn closing_counts_the_slots_at_home_and_diverts_the_rest() {
        let (records, list) = list(20, 6);
        assert_eq!(pop(&list, &records).len(), 6);
        assert_eq!(list.close(&records), 14);
        assert_eq!(push(&list, &records[0]), Err(Diverted::Closed));
        assert_eq!(list.push_all(&records[..6], 6), Err(Diverted::Closed));
        assert_eq!(pop(&list, &records), []);
    }

    #[test]
    fn a_damaged_list_does_not_trap_the_walk() {
        let (records, list) = list(2, 1);
        records[1].link().write(0, 0);
        assert_eq!(list.indices(&records).len(), 3);
    }
}
