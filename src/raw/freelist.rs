//! The free slots of a class: a stack behind one atomic word.

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

/// Slots that a link can name: the rest of a cache line.
const FOLLOWERS: usize = if cfg!(loom) { 1 } else { 15 };

/// Slots in a bundle at most: the first, its followers, and the followers of each follower.
pub(crate) const BUNDLE: usize = 1 + FOLLOWERS + FOLLOWERS * FOLLOWERS;

/// The reason that a slot was not pushed. The slot is still the caller's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Diverted {
    /// A waiter is queued: the slot is to be granted.
    Waiters,
    /// The pool is closed: the slot's hold on the pool is to be dropped.
    Closed,
}

/// The reason that nothing was popped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unpopped {
    Empty,
    /// A bundle of several slots is on top.
    Bundle,
}

/// A slot's part in the free list.
///
/// Links are cache lines of their own, apart from the slots' state words, so that a bundle of 241
/// slots is in 16 lines.
#[derive(Debug, Default)]
#[cfg_attr(not(loom), repr(align(64)))]
pub(crate) struct Link {
    /// Index of the next bundle's first slot, and above it the number of followers.
    next: AtomicU32,
    followers: [AtomicU32; FOLLOWERS],
}

impl Link {
    /// The first slot of the next bundle, and the number of followers of this one.
    fn read(&self) -> (u32, usize) {
        // Relaxed: ordered by the load of the head.
        let word = self.next.load(Ordering::Relaxed);
        (word & EMPTY, (word >> INDEX_BITS) as usize)
    }

    /// Names followers as long as there is room, and returns their number.
    fn name(&self, mut follower: impl FnMut() -> Option<u32>) -> usize {
        let named = self.followers.iter().map_while(|place| Some((place, follower()?)));
        // Relaxed: published by the exchange of the head.
        named.map(|(place, follower)| place.store(follower, Ordering::Relaxed)).count()
    }

    /// The first `count` of the named followers.
    fn followers(&self, count: usize) -> impl Iterator<Item = u32> {
        // Relaxed: as in `read`.
        self.followers.iter().take(count).map(|place| place.load(Ordering::Relaxed))
    }

    fn write(&self, next: u32, followers: usize) {
        // Relaxed: published by the exchange of the head.
        self.next.store(next | (followers as u32) << INDEX_BITS, Ordering::Relaxed);
    }
}

/// A stack of slots, by their numbers, in bundles.
///
/// ```text
///   head: tag (36 bits) | CLOSED | WAITERS | index of the slot on top (26 bits)
///                                             |
///   link of slot 7:  next bundle: 40 | followers: 8, 9, 10      <- bundle of 7 to 10 and more
///                                    |  link of 8: followers 11, 12
///   link of slot 40: next: none      v
/// ```
///
/// The first slot of a bundle is linked to the first slot of the next bundle. Its link names
/// followers, and the followers' links name more. So half a magazine of slots moves with one
/// exchange and two cache misses in a row: the links of all followers are loaded at once.
///
/// | head | changed to | by |
/// |---|---|---|
/// | no flag | slots on top | `push`, `push_all` |
/// | a slot on top | the next bundle on top, tag + 1 | `pop`, `pop_single` |
/// | empty | `WAITERS` | a waiter, under the waiters' lock |
/// | `WAITERS` | no flag | the last waiter or its granter, under the waiters' lock |
/// | any | `CLOSED`, empty, for good | the drop of the pool's handle |
///
/// # Invariants
///
/// 1. The index names a free slot or is `EMPTY`, and so does the link of every bundle on the list.
/// 2. The tag counts pops: between two occurrences of one head value no slot was popped. A pop that
///    read a link before another thread popped and pushed the same slot therefore fails. (After
///    2^36 pops while one pop stands still, minutes at least, the tag would repeat.)
/// 3. `WAITERS` is set only while the list is empty and a waiter is queued, and changes only under
///    the waiters' lock. A push that sees the flag grants its slot to the first waiter. So no
///    thread overtakes a waiter, and no fence is needed between "the list is empty" and "I wait".
/// 4. `CLOSED` stays set.
///
/// Flags and index are in one word, so that a push has to look at nothing else.
#[derive(Debug)]
pub(crate) struct FreeList {
    head: AtomicU64,
}

// `links` are always the links of all slots of the list.
impl FreeList {
    /// A list of all slots, the first on top, in bundles of `bundle`.
    pub(crate) fn new(links: &[Link], bundle: usize) -> Self {
        let list = Self { head: AtomicU64::new(u64::from(EMPTY)) };
        let all = 0..links.len() as u32;
        list.push_all(links, all, bundle).expect("a new list has no flags");
        list
    }

    /// Takes the bundle on top and gives its slots to `take`, the top one first. `false`: the list
    /// is empty.
    #[inline]
    pub(crate) fn pop(&self, links: &[Link], take: impl FnMut(u32)) -> bool {
        let popped = self.detach(links, |top, _| Some(Bundle::look(links, top)));
        popped.map(|bundle| bundle.unpack(links, take)).is_ok()
    }

    /// Takes the slot on top, unless the slot is the first of a bundle.
    #[inline]
    pub(crate) fn pop_single(&self, links: &[Link]) -> Result<u32, Unpopped> {
        self.detach(links, |top, followers| (followers == 0).then_some(top))
    }

    /// Takes the bundle on top, if `look`, which gets the first slot and the number of followers,
    /// answers something.
    #[inline]
    fn detach<R>(
        &self,
        links: &[Link],
        look: impl Fn(u32, usize) -> Option<R>,
    ) -> Result<R, Unpopped> {
        // Acquire: partner of the Release in `push_chain`; makes the links below and the slots'
        // contents visible. Pushes and pops in between continue the release sequence.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            // If the slot was popped since, the links may say anything, and the exchange fails by
            // invariant 2.
            let top = index(head);
            let link = links.get(top as usize).ok_or(Unpopped::Empty)?;
            let (next, followers) = link.read();
            let looked = look(top, followers).ok_or(Unpopped::Bundle)?;
            let popped = (head & !INDEX_MASK).wrapping_add(TAG) | u64::from(next);
            // Relaxed (success): the value is the one of the Acquire load, by invariant 2 from the
            // same write. Acquire (failure): as the load above.
            match self.head.compare_exchange_weak(
                head,
                popped,
                Ordering::Relaxed,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok(looked),
                Err(now) => head = now,
            }
        }
    }

    /// Puts one slot on top. `link` is the slot's own.
    ///
    /// After the push the caller may not touch the pool, unless another hold keeps the pool alive.
    /// The list and the link consist of atomics only, so that both references may dangle from then.
    #[inline]
    pub(crate) fn push(&self, index: u32, link: &Link) -> Result<(), Diverted> {
        self.push_chain(index, link, 0)
    }

    /// Puts slots on top, in bundles of `bundle`. The caller keeps the pool alive.
    pub(crate) fn push_all(
        &self,
        links: &[Link],
        slots: impl IntoIterator<Item = u32>,
        bundle: usize,
    ) -> Result<(), Diverted> {
        let mut slots = slots.into_iter();
        let Some(top) = slots.next() else { return Ok(()) };
        let mut first = &links[top as usize];
        loop {
            let mut rest = slots.by_ref().take(bundle - 1);
            let followers = first.name(|| {
                let follower = rest.next()?;
                let link = &links[follower as usize];
                link.write(EMPTY, link.name(|| rest.next()));
                Some(follower)
            });
            let Some(next) = slots.next() else { return self.push_chain(top, first, followers) };
            first.write(next, followers);
            first = &links[next as usize];
        }
    }

    /// Puts a chain of bundles on top. The last bundle is linked here.
    #[inline]
    fn push_chain(&self, first: u32, last: &Link, followers: usize) -> Result<(), Diverted> {
        // Relaxed: nothing is read through the head.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head & FLAGS != 0 {
                return Err(diverted(head));
            }
            last.write(index(head), followers);
            let pushed = (head & !INDEX_MASK) | u64::from(first);
            // Release (success): partner of the Acquire loads in `detach` and `close`; publishes
            // the links, the slots' state words and their owners' accesses to the contents. Relaxed
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

    /// Clears `WAITERS`. Only under the waiters' lock.
    pub(crate) fn clear_waiters(&self) {
        // Relaxed: as in `set_waiters`.
        self.head.fetch_and(!WAITERS, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn has_waiters(&self) -> bool {
        // Relaxed: exact under the waiters' lock, a hint elsewhere.
        self.head.load(Ordering::Relaxed) & WAITERS != 0
    }

    /// Sets `CLOSED`, takes every slot off the list and returns their number.
    pub(crate) fn close(&self, links: &[Link]) -> usize {
        // Acquire: partner of the Release in `push_chain`. Makes the links visible, and puts
        // unmapping after all accesses of the slots' last owners.
        let head = self.head.swap(CLOSED | u64::from(EMPTY), Ordering::Acquire);
        let mut count = 0;
        walk(links, index(head), |_| count += 1);
        count
    }

    /// The indices on the list, from the top. Exact only while nothing moves. Ends even if the
    /// links are damaged.
    pub(crate) fn indices(&self, links: &[Link]) -> Vec<u32> {
        // Acquire: as in `detach`.
        let head = self.head.load(Ordering::Acquire);
        let mut indices = Vec::new();
        walk(links, index(head), |index| indices.push(index));
        indices
    }
}

/// Visits the slots of all bundles from `first` on. Ends after as many bundles as there are slots.
fn walk(links: &[Link], first: u32, mut visit: impl FnMut(u32)) {
    let mut at = first;
    for _ in 0..=links.len() {
        let Some(link) = links.get(at as usize) else { break };
        Bundle::look(links, at).unpack(links, &mut visit);
        (at, _) = link.read();
    }
}

/// The content of the first links of a bundle.
struct Bundle {
    first: u32,
    count: usize,
    /// The followers, and the number of followers of each.
    followers: [(u32, usize); FOLLOWERS],
}

impl Bundle {
    /// Loads the lines of all followers at once, because no address here depends on a follower's
    /// link. The caller need not have the bundle yet, so that the loads and the exchange overlap.
    #[inline]
    fn look(links: &[Link], first: u32) -> Self {
        let link = &links[first as usize];
        let (_, count) = link.read();
        let mut followers = [(0, 0); FOLLOWERS];
        for (place, follower) in followers.iter_mut().zip(link.followers(count)) {
            *place = (follower, links[follower as usize].read().1);
        }
        Self { first, count, followers }
    }

    /// Visits the slots.
    #[inline]
    fn unpack(self, links: &[Link], mut visit: impl FnMut(u32)) {
        visit(self.first);
        for (follower, named) in self.followers.into_iter().take(self.count) {
            visit(follower);
            links[follower as usize].followers(named).for_each(&mut visit);
        }
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

    fn list(count: usize, bundle: usize) -> (Vec<Link>, FreeList) {
        let links: Vec<_> = (0..count).map(|_| Link::default()).collect();
        let list = FreeList::new(&links, bundle);
        (links, list)
    }

    fn pop(list: &FreeList, links: &[Link]) -> Vec<u32> {
        let mut popped = Vec::new();
        assert_ne!(list.pop(links, |slot| popped.push(slot)), popped.is_empty());
        popped
    }

    fn push(list: &FreeList, links: &[Link], slot: u32) -> Result<(), Diverted> {
        list.push(slot, &links[slot as usize])
    }

    #[test]
    fn hands_out_low_addresses_first_and_the_last_pushed_again() {
        let (links, list) = list(3, 1);
        assert_eq!(pop(&list, &links), [0]);
        assert_eq!(pop(&list, &links), [1]);
        push(&list, &links, 0).unwrap();
        assert_eq!(list.indices(&links), [0, 2]);
        assert_eq!(pop(&list, &links), [0]);
        assert_eq!(pop(&list, &links), [2]);
        assert_eq!(pop(&list, &links), []);
    }

    #[test]
    fn bundles_come_and_go_in_one_piece() {
        let count = 2 * BUNDLE;
        for bundle in 1..=BUNDLE {
            let (links, list) = list(count, bundle);
            assert_eq!(list.indices(&links), Vec::from_iter(0..count as u32));
            assert_eq!(pop(&list, &links), Vec::from_iter(0..bundle as u32));
            let want = if bundle == 1 { Ok(1) } else { Err(Unpopped::Bundle) };
            assert_eq!(list.pop_single(&links), want);
            push(&list, &links, 0).unwrap();
            assert_eq!(list.pop_single(&links), Ok(0));
            list.push_all(&links, (0..bundle as u32).rev(), bundle).unwrap();
            assert_eq!(pop(&list, &links), Vec::from_iter((0..bundle as u32).rev()));
        }
    }

    #[test]
    fn every_pop_changes_the_tag() {
        let (links, list) = list(1, 1);
        let before = list.head.load(Ordering::Relaxed);
        pop(&list, &links);
        push(&list, &links, 0).unwrap();
        assert_ne!(list.head.load(Ordering::Relaxed), before);
    }

    #[test]
    fn the_waiters_flag_is_for_an_empty_list_and_diverts_pushes() {
        let (links, list) = list(1, 1);
        assert!(!list.set_waiters());
        pop(&list, &links);
        assert!(list.set_waiters());
        assert_eq!(push(&list, &links, 0), Err(Diverted::Waiters));
        list.clear_waiters();
        assert_eq!(push(&list, &links, 0), Ok(()));
    }

    #[test]
    fn closing_counts_free_slots_and_diverts_all_others() {
        let (links, list) = list(20, 6);
        assert_eq!(pop(&list, &links).len(), 6);
        assert_eq!(list.close(&links), 14);
        assert_eq!(push(&list, &links, 0), Err(Diverted::Closed));
        list.clear_waiters();
        assert_eq!(push(&list, &links, 0), Err(Diverted::Closed), "the last waiter leaves");
        assert_eq!(list.push_all(&links, 0..6, 6), Err(Diverted::Closed));
        assert_eq!(pop(&list, &links), []);
    }

    #[test]
    fn a_damaged_list_does_not_trap_the_walk() {
        let (links, list) = list(2, 1);
        links[1].write(0, 0);
        assert_eq!(list.indices(&links).len(), 3);
    }
}
