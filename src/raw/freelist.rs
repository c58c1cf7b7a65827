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

/// Slots that a link can name: as many as a cache line has room for.
const FOLLOWERS: usize = if cfg!(loom) { 1 } else { 15 };

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

/// A slot's part in the free list.
///
/// A cache line of its own, apart from the slot's record: what a bundle consists of is in few of
/// them.
#[derive(Debug, Default)]
#[cfg_attr(not(loom), repr(align(64)))]
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
    fn name(&self, mut follower: impl FnMut() -> Option<u32>) -> usize {
        let named = self.followers.iter().map_while(|place| Some((place, follower()?)));
        // Relaxed: published by the exchange of the head.
        named.map(|(place, follower)| place.store(follower, Ordering::Relaxed)).count()
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

/// A stack of slots, by their numbers, in bundles: the first slot of each is linked to the next
/// bundle's, and its link names followers, whose links name more. So a magazine's worth of slots
/// comes and goes with one exchange, and only two cache misses after one another.
///
/// # Invariants
///
/// 1. The index names a slot at home or is `EMPTY`, and so does the link of every bundle on the
///    list.
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

// `links` are always those of all slots, whose owner the caller is.
impl FreeList {
    /// All slots, the first on top, in bundles of so many.
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

    /// Takes the slot on top, unless it is one of a bundle.
    #[inline]
    pub(crate) fn pop_single(&self, links: &[Link]) -> Result<u32, Unpopped> {
        self.detach(links, |top, followers| (followers == 0).then_some(top))
    }

    /// Takes the bundle on top, if `look` makes something of its first slot and its number of
    /// followers.
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
            // If the slot was popped since, what its link and those of its followers say may be
            // anything, and the exchange fails by invariant 2.
            let top = index(head);
            let link = links.get(top as usize).ok_or(Unpopped::Empty)?;
            let (next, followers) = link.read();
            let looked = look(top, followers).ok_or(Unpopped::Bundle)?;
            let popped = (head & !INDEX_MASK).wrapping_add(TAG) | u64::from(next);
            // Relaxed (success): the value is the one that the Acquire load read, by invariant 2
            // from the same write. Acquire (failure): as the load above.
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

    /// Puts one slot on top. `link` is its own.
    ///
    /// The caller may not touch the pool afterwards unless it keeps it alive in another way: the
    /// slot is at home. Both arguments consist of atomics only, so that they may dangle from then.
    #[inline]
    pub(crate) fn push(&self, index: u32, link: &Link) -> Result<(), Diverted> {
        self.push_chain(index, link, 0)
    }

    /// Puts slots on top, in bundles of `bundle`; nothing if there are none. The caller keeps the
    /// pool alive.
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
    pub(crate) fn close(&self, links: &[Link]) -> usize {
        // Acquire: partner of the Release in `push_chain`, for the links, and so that unmapping
        // comes after all that the slots' last owners did.
        let head = self.head.swap(CLOSED | u64::from(EMPTY), Ordering::Acquire);
        let mut count = 0;
        walk(links, index(head), |_| count += 1);
        count
    }

    /// The indices on the list, from the top. Exact only while nothing moves; ends in time even if
    /// the links are damaged.
    pub(crate) fn indices(&self, links: &[Link]) -> Vec<u32> {
        // Acquire: as in `detach`.
        let head = self.head.load(Ordering::Acquire);
        let mut indices = Vec::new();
        walk(links, index(head), |index| indices.push(index));
        indices
    }
}

/// Visits the slots of all bundles from `first` on; ends after as many bundles as there are slots.
fn walk(links: &[Link], first: u32, mut visit: impl FnMut(u32)) {
    let mut at = first;
    for _ in 0..=links.len() {
        let Some(link) = links.get(at as usize) else { break };
        Bundle::look(links, at).unpack(links, &mut visit);
        (at, _) = link.read();
    }
}

/// What the first links of a bundle say.
struct Bundle {
    first: u32,
    count: usize,
    /// The followers, and how many others each of them names.
    followers: [(u32, usize); FOLLOWERS],
}

impl Bundle {
    /// Asks for all cache lines at once: nothing here depends on what the followers' say. Nor need
    /// the bundle be the caller's yet, so that taking it and this go on at the same time.
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
    fn closing_counts_the_slots_at_home_and_diverts_the_rest() {
        let (links, list) = list(20, 6);
        assert_eq!(pop(&list, &links).len(), 6);
        assert_eq!(list.close(&links), 14);
        assert_eq!(push(&list, &links, 0), Err(Diverted::Closed));
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
