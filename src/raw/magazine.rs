//! The magazine: a stack of one thread, which other threads can empty.

use std::{array, ptr, ptr::NonNull, time::Duration};

use crate::sync::{AtomicPtr, AtomicU32, Ordering, light_barrier, unmodelled::sleep, yield_now};

/// The capacity of a magazine, which makes a magazine 2 KiB large.
pub(crate) const ITEMS: usize = if cfg!(loom) { 2 } else { 253 };

/// The number of misses before a magazine changes its key. The change costs about as much as 64
/// visits to the depot.
const MISSES: u32 = if cfg!(loom) { 1 } else { 64 };

/// The length while the owner works.
const BUSY: u32 = u32::MAX;

/// The bit in the key during a taking.
const TAKEN: usize = 1;

/// A stack of pointers to `T` with one owner, bound to one key at a time: an asymmetric Dekker
/// lock.
///
/// The owner is one thread, and uses plain loads and stores. Another thread, the taker, can take
/// all items at any time. Neither `K` nor `T` is ever dereferenced here.
///
/// ```text
///   owner                               taker, with the lock of the list of bound magazines
///   1. len = BUSY                       1. key = key | TAKEN
///   2. light barrier (compiler only)    2. heavy barrier (membarrier, all threads)
///   3. load key: is it still mine?      3. load len until it is not BUSY
///   4. yes: work on the items           4. read the items below len
///   5. len = new length (Release)       5. key = 0 (Release): unbound
/// ```
///
/// - If the owner's store of `BUSY` comes before the heavy barrier, the taker sees `BUSY`, and
///   waits until the owner has stored the new length.
/// - If the heavy barrier comes first, the owner sees the changed key, and leaves the items alone.
///
/// | key | meaning | changed to | by |
/// |---|---|---|---|
/// | 0 | unbound | `k` | the owner, in `bind`, under the lock |
/// | `k` | bound to `k`, on the list of `k` | `k + TAKEN` | a taker, in `begin_taking`, under the lock |
/// | | | 0 | the owner, in `unbind`, under the lock |
/// | `k + TAKEN` | a taker reads the items | 0 | that taker, in `finish_taking`, under the lock |
///
/// # Invariants
///
/// 1. Only the owner writes `len` and the items. The items below the length were pushed for the key
///    that the magazine is bound to, and are nowhere else.
/// 2. The key changes as the table says. "The lock" is the one of the key's
///    [`BoundMagazines`](super::bound::BoundMagazines).
/// 3. While the owner is busy and has seen the key `k`, no taker for `k` gets beyond step 3. So all
///    that a taker does after taking the items waits for the owner.
/// 4. The limit is at most [`ITEMS`].
/// 5. A magazine is in memory that is full of zeros in a forked child, where the magazine is
///    therefore unbound. No owner is busy in the child, which has only the thread that forked. (A
///    signal handler that interrupts an owner and forks must not return in the child.)
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Magazine<K, T> {
    key: AtomicPtr<K>,
    len: AtomicU32,
    /// The limit of items for the key.
    limit: AtomicU32,
    /// The number of times the owner wanted another key here since the magazine was bound.
    misses: AtomicU32,
    items: [AtomicPtr<T>; ITEMS],
}

#[cfg(all(not(loom), target_pointer_width = "64"))]
static_assertions::assert_eq_size!(Magazine<(), ()>, [u8; 2048]);

impl<K, T> Default for Magazine<K, T> {
    fn default() -> Self {
        Self {
            key: AtomicPtr::new(ptr::null_mut()),
            len: AtomicU32::new(0),
            limit: AtomicU32::new(0),
            misses: AtomicU32::new(0),
            items: array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
        }
    }
}

/// For the owner.
impl<K, T> Magazine<K, T> {
    /// Steps 1 to 5 of the owner: gives the length to `body`, which answers the new length and must
    /// not panic or wait. `None`: the magazine is not bound to `key`.
    #[inline(always)]
    fn alter<R>(&self, key: NonNull<K>, body: impl FnOnce(u32) -> (u32, R)) -> Option<R> {
        // Relaxed: only the owner writes the length.
        let len = self.len.load(Ordering::Relaxed);
        // Relaxed: the barrier orders this store before the load of the key.
        self.len.store(BUSY, Ordering::Relaxed);
        light_barrier();
        // Relaxed: this thread has written the key, if the key is the wanted one.
        let done = (self.key.load(Ordering::Relaxed) == key.as_ptr()).then(|| body(len));
        let (len, result) = done.map_or((len, None), |(len, result)| (len, Some(result)));
        // Release: partner of the Acquire in `items_of_idle_owner`. Publishes the items, and all
        // that the owner did to the items' contents.
        self.len.store(len, Ordering::Release);
        result
    }

    /// Takes the last item. `None`: the magazine is empty or not bound to `key`.
    #[inline(always)]
    pub(crate) fn pop(&self, key: NonNull<K>) -> Option<NonNull<T>> {
        let popped = self.alter(key, |len| {
            let last = len.wrapping_sub(1);
            match self.items.get(last as usize) {
                // Relaxed: only the owner writes the items.
                Some(item) => (last, Some(item.load(Ordering::Relaxed))),
                None => (len, None),
            }
        })??;
        // SAFETY: the items below the length were pushed (invariant 1), and pushes are of
        // `NonNull`.
        Some(unsafe { NonNull::new_unchecked(popped) })
    }

    /// Adds an item. `false`: the magazine is full or not bound to `key`.
    ///
    /// Nothing behind `key` is touched after the push, so that both pointers may dangle from then.
    #[inline(always)]
    pub(crate) fn push(&self, key: NonNull<K>, item: NonNull<T>) -> bool {
        self.push_if(key, item, || true)
    }

    /// As [`push`](Self::push), if there is room and `allow` then returns `true`. `allow` must not
    /// panic or wait.
    #[inline(always)]
    pub(crate) fn push_if(
        &self,
        key: NonNull<K>,
        item: NonNull<T>,
        allow: impl FnOnce() -> bool,
    ) -> bool {
        let pushed = self.alter(key, |len| match self.room(len) {
            Some(place) if allow() => {
                // Relaxed: published with the length.
                place.store(item.as_ptr(), Ordering::Relaxed);
                (len + 1, true)
            }
            _ => (len, false),
        });
        pushed.unwrap_or(false)
    }

    /// The place for one more item.
    #[inline(always)]
    fn room(&self, len: u32) -> Option<&AtomicPtr<T>> {
        // Relaxed: only the owner writes the limit.
        let is_room = len < self.limit.load(Ordering::Relaxed);
        // SAFETY: the limit is at most the number of items (invariant 4).
        is_room.then(|| unsafe { self.items.get_unchecked(len as usize) })
    }

    /// Takes up to `most` of the last items; none if the magazine is not bound to `key`. The owner
    /// must not push before the iterator is exhausted.
    #[inline]
    pub(crate) fn pop_many(&self, key: NonNull<K>, most: usize) -> Items<'_, T> {
        let popped = self.alter(key, |len| {
            let kept = len.saturating_sub(u32::try_from(most).unwrap_or(u32::MAX));
            (kept, kept as usize..len as usize)
        });
        // The items stay in place until the next push.
        Items(&self.items[popped.unwrap_or(0..0)])
    }

    /// Adds items as long as there is room and `next` has one; none if the magazine is not bound to
    /// `key`. `next` must not panic or wait. As after [`push`](Self::push), nothing behind `key` is
    /// touched afterwards.
    #[inline]
    pub(crate) fn push_many(&self, key: NonNull<K>, mut next: impl FnMut() -> Option<NonNull<T>>) {
        self.alter(key, |len| {
            // Relaxed: only the owner writes the limit.
            let room = len as usize..self.limit.load(Ordering::Relaxed) as usize;
            let mut pushed = 0;
            for place in self.items.get(room).unwrap_or_default() {
                let Some(item) = next() else { break };
                // Relaxed: published with the length.
                place.store(item.as_ptr(), Ordering::Relaxed);
                pushed += 1;
            }
            (len + pushed, ())
        });
    }

    /// Fills an empty magazine with the items of `fill`, and takes the first item. `None`: `fill`
    /// added nothing, or the magazine is not bound to `key`.
    ///
    /// The owner is busy during `fill`. So `fill` must not panic or wait, and may rely on all that
    /// a taker changes only after step 3 (invariant 3).
    pub(crate) fn refill(
        &self,
        key: NonNull<K>,
        fill: impl FnOnce(&mut Refill<'_, T>),
    ) -> Option<NonNull<T>> {
        self.alter(key, |len| {
            debug_assert_eq!(len, 0);
            let mut refill = Refill { items: &self.items, len: 0, first: None };
            fill(&mut refill);
            (refill.len as u32, refill.first)
        })?
    }

    /// Gives the last `count` items to `spill`, and adds `item` if that returns `true`. `false`:
    /// `spill` did, and nothing has changed, or the magazine is not bound to `key`.
    ///
    /// The owner is busy during `spill`, as in [`refill`](Self::refill).
    pub(crate) fn spill(
        &self,
        key: NonNull<K>,
        item: NonNull<T>,
        count: usize,
        spill: impl FnOnce(Items<'_, T>) -> bool,
    ) -> bool {
        let spilt = self.alter(key, |len| {
            let kept = (len as usize).saturating_sub(count);
            if !spill(Items(&self.items[kept..len as usize])) {
                return (len, false);
            }
            // Relaxed: published with the length.
            self.items[kept].store(item.as_ptr(), Ordering::Relaxed);
            (kept as u32 + 1, true)
        });
        spilt.unwrap_or(false)
    }

    /// Returns `true` if the magazine is bound to `key`, unless a taker is at work.
    #[inline(always)]
    pub(crate) fn is_bound_to(&self, key: NonNull<K>) -> bool {
        // Relaxed: this thread has written the key, if the key is the wanted one.
        self.key.load(Ordering::Relaxed) == key.as_ptr()
    }

    /// Returns `true` if the magazine is bound to no key: then [`bind`](Self::bind) is possible.
    pub(crate) fn is_unbound(&self) -> bool {
        // Acquire: partner of the Release in `finish_taking`. The taker's reads of the items come
        // before the next pushes.
        self.key.load(Ordering::Acquire).is_null()
    }

    /// Counts a miss: the owner wanted another key here. Returns `true` if there were so many
    /// misses that a change of the key pays.
    pub(crate) fn count_miss(&self) -> bool {
        // Relaxed, both: only the owner uses the count.
        let misses = self.misses.load(Ordering::Relaxed).saturating_add(1);
        self.misses.store(misses, Ordering::Relaxed);
        misses >= MISSES
    }

    /// Binds the magazine, which is unbound, to `key`. For
    /// [`BoundMagazines::bind`](super::bound::BoundMagazines::bind) only, under the lock.
    pub(crate) fn bind(&self, key: NonNull<K>, limit: u32) {
        debug_assert!(limit as usize <= ITEMS);
        // Relaxed, all four: other threads look only under the lock, or after a further store to
        // the length.
        self.len.store(0, Ordering::Relaxed);
        self.limit.store(limit, Ordering::Relaxed);
        self.misses.store(0, Ordering::Relaxed);
        self.key.store(key.as_ptr(), Ordering::Relaxed);
    }

    /// Unbinds the magazine from `key`, and answers the items. For
    /// [`Bound::unbind`](super::bound::Bound::unbind) only, under the lock.
    pub(crate) fn unbind(&self, key: NonNull<K>) -> Items<'_, T> {
        debug_assert!(self.is_bound_to(key));
        // Relaxed: only the owner writes the length.
        let len = self.len.load(Ordering::Relaxed) as usize;
        // Relaxed: takers need the lock.
        self.key.store(ptr::null_mut(), Ordering::Relaxed);
        Items(&self.items[..len])
    }

    /// The key that the magazine is bound to, after `hold` has made sure that what the key points
    /// to stays alive. `None`: the magazine is unbound. If a taker is at work, this waits for the
    /// taker.
    ///
    /// The owner is busy during `hold`, as in [`refill`](Self::refill): there the key's own end
    /// would wait for the owner (invariant 3).
    pub(crate) fn hold_key(&self, hold: impl FnOnce(NonNull<K>)) -> Option<NonNull<K>> {
        // Relaxed: only the owner writes the length.
        let len = self.len.load(Ordering::Relaxed);
        // Relaxed: the barrier orders this store before the load of the key.
        self.len.store(BUSY, Ordering::Relaxed);
        light_barrier();
        // Relaxed: this thread has written every key without `TAKEN`.
        let key = NonNull::new(self.key.load(Ordering::Relaxed));
        let key = key.filter(|key| key.addr().get() & TAKEN == 0);
        if let Some(key) = key {
            hold(key);
        }
        // Release: as in `alter`.
        self.len.store(len, Ordering::Release);
        if key.is_none() {
            wait_for(|| self.is_unbound().then_some(()));
        }
        key
    }
}

/// For takers, under the lock of the magazine's list.
impl<K, T> Magazine<K, T> {
    /// Step 1 of the taker. A heavy barrier and [`finish_taking`](Self::finish_taking) follow,
    /// under the same lock.
    pub(crate) fn begin_taking(&self, key: NonNull<K>) {
        let taken = key.as_ptr().map_addr(|address| address | TAKEN);
        // Relaxed: the barrier orders this store before the load of the length.
        self.key.store(taken, Ordering::Relaxed);
    }

    /// Steps 3 to 5 of the taker: gives all items to `each`, and leaves the magazine unbound.
    pub(crate) fn finish_taking(&self, each: impl FnMut(NonNull<T>)) {
        // The key has changed: an owner that is idle leaves the items alone from here on.
        self.items_of_idle_owner().iter().for_each(each);
        // Release: partner of the Acquire in `is_unbound`.
        self.key.store(ptr::null_mut(), Ordering::Release);
    }

    /// The items, once the owner is idle. Exact only as long as the owner stays idle.
    pub(crate) fn items_of_idle_owner(&self) -> Items<'_, T> {
        let len = wait_for(|| {
            // Acquire: partner of the Release in `alter`.
            let len = self.len.load(Ordering::Acquire);
            (len != BUSY).then_some(len as usize)
        });
        Items(&self.items[..len])
    }
}

/// The items that a [`Magazine::refill`] adds.
#[derive(Debug)]
pub(crate) struct Refill<'a, T> {
    items: &'a [AtomicPtr<T>; ITEMS],
    len: usize,
    /// The first item, for the caller of the refill.
    first: Option<NonNull<T>>,
}

impl<T> Refill<'_, T> {
    /// Adds an item. The limit is [`ITEMS`] + 1.
    #[inline]
    pub(crate) fn push(&mut self, item: NonNull<T>) {
        if self.first.is_none() {
            self.first = Some(item);
        } else {
            // Relaxed: published with the length.
            self.items[self.len].store(item.as_ptr(), Ordering::Relaxed);
            self.len += 1;
        }
    }
}

/// Some items of a magazine, from the oldest.
#[derive(Debug)]
pub(crate) struct Items<'a, T>(&'a [AtomicPtr<T>]);

impl<'a, T> Items<'a, T> {
    /// The items. (A vector that is extended reserves once only for iterators of the standard
    /// library; bench row "One alloc and drop/bulk of 32": 1.07 ns instead of 1.62.)
    #[inline]
    pub(crate) fn iter(self) -> impl Iterator<Item = NonNull<T>> + use<'a, T> {
        self.0.iter().map(|item| {
            // Relaxed: written by this thread, or ordered by the length's Acquire.
            let item = item.load(Ordering::Relaxed);
            // SAFETY: these places were below the length, so a `NonNull` was pushed there
            // (invariant 1 of `Magazine`).
            unsafe { NonNull::new_unchecked(item) }
        })
    }
}

/// Waits for a thread that needs nothing but a processor.
fn wait_for<R>(ready: impl Fn() -> Option<R>) -> R {
    let mut turns = 0;
    loop {
        if let Some(result) = ready() {
            return result;
        }
        turns += 1;
        if cfg!(loom) || turns < 16 {
            yield_now();
        } else {
            // A yield does not help a thread with a lower priority.
            sleep(Duration::from_micros(50));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Keys and items are addresses that nothing dereferences.
    fn at<T>(address: usize) -> NonNull<T> {
        NonNull::new(ptr::without_provenance_mut(address)).unwrap()
    }

    fn bound(limit: u32) -> (Magazine<u64, u8>, NonNull<u64>) {
        let (magazine, key) = (Magazine::default(), at(8));
        magazine.bind(key, limit);
        (magazine, key)
    }

    fn addresses(items: Items<'_, u8>) -> Vec<usize> {
        items.iter().map(|item| item.addr().get()).collect()
    }

    #[test]
    fn the_last_item_comes_first_and_the_limit_holds() {
        let (magazine, key) = bound(2);
        assert_eq!(magazine.pop(key), None);
        assert!(magazine.push(key, at(1)) && magazine.push(key, at(2)));
        assert!(!magazine.push(key, at(3)));
        assert_eq!(magazine.pop(key), Some(at(2)));
        assert!(!magazine.push_if(key, at(3), || false));
        assert_eq!(addresses(magazine.items_of_idle_owner()), [1]);
    }

    #[test]
    fn a_magazine_serves_no_other_key() {
        let (magazine, key) = bound(2);
        assert!(magazine.push(key, at(1)));
        let other = at(16);
        assert_eq!(magazine.pop(other), None);
        assert!(!magazine.push(other, at(2)));
        assert_eq!(magazine.pop_many(other, 2).iter().count(), 0);
        magazine.push_many(other, || unreachable!("not bound to this key"));
        assert_eq!(magazine.refill(other, |_| unreachable!("not bound to this key")), None);
        assert!(!magazine.spill(other, at(2), 1, |_| unreachable!("not bound to this key")));
        assert_eq!(magazine.pop(key), Some(at(1)));
    }

    #[test]
    fn many_items_come_and_go_at_once() {
        let (magazine, key) = bound(4);
        let mut next = (1..).map(at);
        magazine.push_many(key, || next.next());
        assert_eq!(addresses(magazine.pop_many(key, 3)), [2, 3, 4]);
        magazine.push_many(key, || None);
        assert_eq!(addresses(magazine.pop_many(key, usize::MAX)), [1]);
    }

    #[test]
    fn a_refill_takes_one_item_and_keeps_the_others() {
        let (magazine, key) = bound(4);
        assert_eq!(magazine.refill(key, |_| ()), None);
        let filled = magazine.refill(key, |refill| (1..=3).for_each(|item| refill.push(at(item))));
        assert_eq!(filled, Some(at(1)));
        assert_eq!(addresses(magazine.items_of_idle_owner()), [2, 3]);
    }

    #[test]
    fn a_spill_makes_room_for_one_item_or_changes_nothing() {
        let (magazine, key) = bound(3);
        (1..=3).for_each(|item| assert!(magazine.push(key, at(item))));
        assert!(!magazine.spill(key, at(4), 2, |_| false));
        assert_eq!(addresses(magazine.items_of_idle_owner()), [1, 2, 3]);
        let mut spilt = Vec::new();
        assert!(magazine.spill(key, at(4), 2, |items| {
            spilt = addresses(items);
            true
        }));
        assert_eq!(spilt, [2, 3]);
        assert_eq!(addresses(magazine.items_of_idle_owner()), [1, 4]);
    }

    #[test]
    fn an_owner_finds_an_emptied_magazine_unbound() {
        let (magazine, key) = bound(2);
        assert!(magazine.push(key, at(1)));
        assert!(!magazine.is_unbound());
        magazine.begin_taking(key);
        assert_eq!(magazine.pop(key), None, "a taker is at work");
        let mut taken = Vec::new();
        magazine.finish_taking(|item| taken.push(item));
        assert_eq!(taken, [at(1)]);
        assert!(magazine.is_unbound());
        assert_eq!(magazine.hold_key(|_| unreachable!("unbound")), None);
    }

    #[test]
    fn a_magazine_changes_its_key_after_many_misses() {
        let (magazine, key) = bound(1);
        assert_eq!((1..).find(|_| magazine.count_miss()), Some(MISSES));
        magazine.unbind(key);
        magazine.bind(at(16), 1);
        assert_eq!((1..).find(|_| magazine.count_miss()), Some(MISSES));
    }

    #[test]
    fn each_binding_has_a_limit_of_its_own() {
        let (magazine, key) = bound(1);
        magazine.unbind(key);
        magazine.bind(key, 2);
        assert!(magazine.push(key, at(1)) && magazine.push(key, at(2)));
        magazine.unbind(key);
        magazine.bind(key, 1);
        assert!(magazine.push(key, at(1)) && !magazine.push(key, at(2)));
    }
}
