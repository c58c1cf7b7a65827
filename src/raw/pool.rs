//! The pool behind its handles, and the name of one slot that is out.

use std::{ops::Deref, ptr::NonNull, task::Waker};

use super::{
    class::{Home, SizeClass},
    freelist::MAX_SLOTS,
    reclaim::Reclaim,
    region::Region,
    replaced::{Replaced, ReplacedBytes},
    slot::Slot,
};
use crate::{
    backing::Backing,
    error::BuildError,
    sync::{Arc, AtomicUsize, Mutex, Ordering, Weak, lock, unique_id},
    sys::memory::{self, Supply},
};

/// What a pool is built from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Capacity in bytes and number of slots of each class.
    pub(crate) classes: Vec<(usize, usize)>,
    pub(crate) backing: Backing,
    pub(crate) dont_dump: bool,
    pub(crate) mlock: bool,
    pub(crate) zero_on_recycle: bool,
    pub(crate) supply: Supply,
    pub(crate) fallback: bool,
    pub(crate) sender_quota: Option<usize>,
}

/// A pool. Lives in a box of its own until its last hold is given up.
///
/// # Invariants
///
/// 1. `holds` is 1 for the handle, plus 1 for each slot, wherever it is, plus 1 for each thread that
///    is handing a slot to a waiter. While the handle lives no alloc or recycle touches it. Closing
///    gives up the handle's hold and those of the slots at home; from then a slot that comes home
///    gives up its own. Whoever brings it to 0 frees the pool.
/// 2. Apart from that the pool is only ever used through shared references.
pub struct RawPool {
    id: u64,
    holds: AtomicUsize,
    /// In ascending order of capacity.
    classes: Box<[SizeClass]>,
    reclaim: Mutex<Vec<Weak<dyn Reclaim>>>,
    replaced: ReplacedBytes,
    fallback: bool,
    sender_quota: Option<usize>,
    /// Dropped last: the classes point into it.
    region: Region,
}

// SAFETY: the only parts that are not Send and Sync by themselves are the pointers in `classes`:
// to this pool, which is used through shared references and atomics only (invariant 2), and into
// `region`, which is accessed only through a SlotRef by that slot's holder.
unsafe impl Send for RawPool {}
// SAFETY: as above.
unsafe impl Sync for RawPool {}

impl RawPool {
    /// A number that no other pool of this process ever has.
    #[inline]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Enters someone who holds slots of this pool in flight. Once is enough; that the pool
    /// forgets it when it is dropped goes without saying.
    ///
    /// Look at [`has_waiters`](Self::has_waiters) afterwards.
    pub fn register(&self, reclaim: Weak<dyn Reclaim>) {
        let mut registered = lock(&self.reclaim);
        if registered.len() == registered.capacity() {
            registered.retain(|known| known.strong_count() > 0);
        }
        registered.push(reclaim);
    }

    /// Whether somebody waits for a slot of any class.
    ///
    /// Exact for whoever is ordered after the waiter's queueing by a lock; see [`Reclaim`].
    #[inline]
    pub fn has_waiters(&self) -> bool {
        self.classes.iter().any(|class| class.free().has_waiters())
    }

    /// All who registered and still live. The list is copied, so that none runs under its lock.
    pub(crate) fn reclaimers(&self) -> Vec<Arc<dyn Reclaim>> {
        lock(&self.reclaim).iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn classes(&self) -> &[SizeClass] {
        &self.classes
    }

    /// Hands out a free slot of `class`, or, where that is chosen, of the next larger one that has
    /// one.
    #[inline]
    pub(crate) fn take(&self, class: &SizeClass) -> Option<SlotRef> {
        match class.pop() {
            Some(index) => Some(SlotRef::claim(class, index)),
            None if self.fallback => self.take_larger(class),
            None => None,
        }
    }

    #[cold]
    fn take_larger(&self, than: &SizeClass) -> Option<SlotRef> {
        let mut larger = self.classes.iter().filter(|class| class.capacity() > than.capacity());
        larger.find_map(|class| Some(SlotRef::claim(class, class.pop()?)))
    }

    /// How many slots one sender may have in flight.
    pub fn sender_quota(&self) -> Option<usize> {
        self.sender_quota
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// Bytes of former pages that the kernel still holds.
    pub fn replaced_bytes(&self) -> usize {
        self.replaced.get()
    }

    /// Gives up `holds` of the pool's holds.
    ///
    /// # Safety
    ///
    /// The caller has that many (invariant 1) and uses them no more; without another one it does
    /// not touch the pool, nor any slot, again.
    unsafe fn give_up(pool: NonNull<Self>, holds: usize) {
        // SAFETY: the caller's holds keep the pool alive until the subtraction. A local place, not
        // a reference to all of the pool, because another thread may free it right after.
        let count = unsafe { &(*pool.as_ptr()).holds };
        // AcqRel: Release partners with the Acquire of whoever brings it to 0 and frees the pool,
        // which so comes after everybody's last access.
        if count.fetch_sub(holds, Ordering::AcqRel) == holds {
            // SAFETY: the pointer is of the box leaked in `PoolHandle::build`; no hold is left,
            // so nobody else uses it, and only one thread sees the count reach 0.
            drop(unsafe { Box::from_raw(pool.as_ptr()) });
        }
    }
}

impl std::fmt::Debug for RawPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let classes: Vec<_> =
            self.classes.iter().map(|class| (class.capacity(), class.slots().len())).collect();
        f.debug_struct("Pool")
            .field("id", &self.id)
            .field("classes", &classes)
            .field("region", self.region.report())
            .finish()
    }
}

/// The one handle of a pool. Dropping it closes the pool; slots that are out stay valid, and the
/// last of them to come home frees it.
pub(crate) struct PoolHandle(NonNull<RawPool>);

// SAFETY: a PoolHandle gives out `&RawPool`, which is Sync, and its drop may run on any thread,
// RawPool being Send.
unsafe impl Send for PoolHandle {}
// SAFETY: as above.
unsafe impl Sync for PoolHandle {}

impl PoolHandle {
    pub(crate) fn build(mut options: Options) -> Result<Self, BuildError> {
        options.classes.sort_unstable();
        if options.sender_quota == Some(0) {
            return Err(BuildError::NoQuota);
        }
        let layout = Layout::of(&options.classes)?;
        let region = Region::map(layout.bytes, options.backing, options.supply)?;
        if options.dont_dump {
            region.dont_dump()?;
        }
        if options.mlock {
            region.lock(options.supply)?;
        }
        let pool = NonNull::from(Box::leak(Box::<RawPool>::new_uninit())).cast::<RawPool>();
        let classes: Box<[SizeClass]> = options
            .classes
            .iter()
            .zip(&layout.places)
            .map(|(&(capacity, count), place)| {
                // SAFETY: the offset is at most `layout.bytes`, which the region spans.
                let memory = unsafe { region.start().add(place.offset) };
                let zero = options.zero_on_recycle;
                SizeClass::new(pool, memory, capacity, place.stride, count, zero)
            })
            .collect();
        let slots: usize = options.classes.iter().map(|(_, count)| count).sum();
        let raw = RawPool {
            id: unique_id(),
            holds: AtomicUsize::new(slots + 1),
            classes,
            reclaim: Mutex::default(),
            replaced: ReplacedBytes::new(region.report().bytes),
            fallback: options.fallback,
            sender_quota: options.sender_quota,
            region,
        };
        // SAFETY: the pointer is to a box of a RawPool's layout, unused so far.
        unsafe { pool.write(raw) };
        Ok(Self(pool))
    }
}

impl Deref for PoolHandle {
    type Target = RawPool;

    fn deref(&self) -> &RawPool {
        // SAFETY: the handle's hold (invariant 1) keeps the pool alive, and it is used through
        // shared references only (invariant 2).
        unsafe { self.0.as_ref() }
    }
}

impl Drop for PoolHandle {
    fn drop(&mut self) {
        // In a forked child nothing of the pool's lies where it was, which may be somebody else's by
        // now: unmapping it would be a mistake.
        if self.classes.iter().any(SizeClass::is_forked) {
            return;
        }
        let at_home: usize = self.classes.iter().map(SizeClass::close).sum();
        // SAFETY: the handle's hold is given up with the handle; those of the slots at home became
        // ours when `close` took them off their lists.
        unsafe { RawPool::give_up(self.0, at_home + 1) };
    }
}

/// Where each class lies in the region.
struct Layout {
    places: Vec<Place>,
    bytes: usize,
}

struct Place {
    offset: usize,
    stride: usize,
}

impl Layout {
    /// `classes` in ascending order.
    fn of(classes: &[(usize, usize)]) -> Result<Self, BuildError> {
        if classes.is_empty() {
            return Err(BuildError::NoClass);
        }
        let page_bytes = memory::page_bytes();
        let mut places: Vec<Place> = Vec::with_capacity(classes.len());
        let mut bytes = 0_usize;
        let mut last = 0;
        for &(capacity, count) in classes {
            if capacity == 0 || count == 0 {
                return Err(BuildError::EmptyClass { capacity, count });
            }
            if capacity == last {
                return Err(BuildError::DuplicateClass { capacity });
            }
            last = capacity;
            if count > MAX_SLOTS {
                return Err(BuildError::TooManySlots { capacity, count, most: MAX_SLOTS });
            }
            let end = stride(capacity, page_bytes).and_then(|stride| {
                places.push(Place { offset: bytes, stride });
                stride.checked_mul(count)?.checked_next_multiple_of(page_bytes)?.checked_add(bytes)
            });
            bytes = end
                .filter(|&bytes| isize::try_from(bytes).is_ok())
                .ok_or(BuildError::TooLarge { capacity, count })?;
        }
        Ok(Self { places, bytes })
    }
}

/// Distance from slot to slot: whole pages, or a power of two of which pages are whole multiples,
/// so that no slot smaller than a page straddles two. At least a cache line.
fn stride(capacity: usize, page_bytes: usize) -> Option<usize> {
    if capacity >= page_bytes {
        capacity.checked_next_multiple_of(page_bytes)
    } else {
        Some(capacity.next_power_of_two().max(64))
    }
}

/// Names one slot that is out, and keeps its pool alive.
///
/// Not Clone, and no Drop: each is a holder counted in the slot's word, [`share`] makes one more,
/// [`recycle`] and [`unshare`] end it. Forgetting one keeps the slot out and the pool's memory
/// mapped, which is what Quarantined means.
///
/// # Invariants
///
/// 1. The slot is out: not on the free list, not with a waiter. Its hold keeps the pool alive.
///
/// [`share`]: Self::share
/// [`recycle`]: Self::recycle
/// [`unshare`]: Self::unshare
#[derive(Debug)]
pub struct SlotRef {
    class: NonNull<SizeClass>,
    index: u32,
}

// SAFETY: points to a SizeClass of a RawPool, which is Send and Sync; the slot's memory is handed
// out as a raw pointer only.
unsafe impl Send for SlotRef {}
// SAFETY: as above.
unsafe impl Sync for SlotRef {}

impl SlotRef {
    /// Hands out the slot that the caller took off `class`'s free list, or was granted.
    #[inline]
    pub(crate) fn claim(class: &SizeClass, index: u32) -> Self {
        class.slot(index).claim();
        Self { class: NonNull::from(class), index }
    }

    #[inline]
    fn class(&self) -> &SizeClass {
        // SAFETY: the pool is alive (invariant 1), and with it its classes, which are only used
        // through shared references.
        unsafe { self.class.as_ref() }
    }

    #[inline]
    pub(crate) fn slot(&self) -> &Slot {
        self.class().slot(self.index)
    }

    #[inline]
    pub(crate) fn memory(&self) -> *mut u8 {
        self.class().memory(self.index)
    }

    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.class().capacity()
    }

    pub(crate) fn pool(&self) -> &RawPool {
        let pool = self.class().pool();
        // SAFETY: the pool is alive (invariant 1) and used through shared references only.
        unsafe { pool.as_ref() }
    }

    /// Turns a lease into a quarantined one. Returns the wakers of those who wait, if that leaves
    /// them nothing to wait for; they are to be woken with no lock held.
    #[must_use]
    pub(crate) fn quarantine(&self) -> Vec<Waker> {
        self.slot().quarantine();
        if self.class().is_forked() { Vec::new() } else { self.class().slot_quarantined() }
    }

    /// Turns a quarantined lease into a handle by giving the slot new pages, so that what the
    /// kernel may still read is no longer the slot's. `len`, the length of what was written, becomes
    /// 0 when that is lost.
    ///
    /// `None`, and the slot stays Quarantined: somebody else holds it too, by a handle or a lease of
    /// whatever kind; it has no whole pages of its own, or such as cannot be replaced; the kernel
    /// holds too much of the pool already; or it has no page to give.
    pub(crate) fn replace_pages(&self, len: &mut usize) -> Option<Replaced> {
        let (memory, bytes) = (NonNull::new(self.memory())?, self.class().stride());
        let pool = self.pool();
        if !self.slot().is_quarantined_alone() || !pool.region.can_replace(memory.as_ptr(), bytes) {
            return None;
        }
        let replaced = pool.replaced.add(bytes)?;
        self.slot().contents_written();
        // SAFETY: `bytes` from `memory` on are the slot's, and so in the region, which can replace
        // them. The caller's lease is the only holder, as just checked, and nobody can come to hold
        // the slot but through a handle: apart from the kernel nobody uses the contents.
        unsafe { pool.region.discard(memory, bytes) }.ok()?;
        *len = 0;
        pool.region.repopulate(memory, bytes).ok()?;
        self.slot().quarantine_released();
        Some(replaced)
    }

    /// One more handle, made from a handle.
    ///
    /// # Panics
    ///
    /// With 2^21 - 1 holders.
    pub(crate) fn share(&self) -> Self {
        self.slot().share();
        Self { ..*self }
    }

    /// Gives up a handle; the last holder sends the slot home.
    pub(crate) fn unshare(self) {
        if self.slot().unshare() {
            self.go_home();
        }
    }

    /// Gives up the only handle and sends the slot home.
    ///
    /// # Panics
    ///
    /// If there is anything but one handle on the slot.
    #[inline]
    pub(crate) fn recycle(self) {
        self.slot().recycle();
        self.go_home();
    }

    /// Sends the slot home, which is Free.
    #[inline]
    fn go_home(self) {
        let class = self.class();
        let slot = class.slot(self.index);
        // A forked child may put its copy of the record wherever it likes; the memory is not there.
        if class.zero_on_recycle() && !class.is_forked() {
            slot.contents_written();
            // SAFETY: `capacity` bytes from `memory` are the slot's and mapped; the word says that
            // there is no handle and no lease, so nobody else accesses them.
            unsafe { self.memory().write_bytes(0, class.capacity()) };
        }
        // After a successful push nothing here keeps the pool alive: nothing of it is touched.
        if class.free().push(self.index, slot.next()).is_err() {
            self.recycle_diverted();
        }
    }

    /// Hands the slot, which is Free, to a waiter or gives it up with a closed pool.
    #[cold]
    pub(crate) fn recycle_diverted(self) {
        if self.class().is_forked() {
            return;
        }
        let Self { class, index } = self;
        // SAFETY: the slot's own hold keeps the pool alive up to `home`.
        let pool = unsafe { class.as_ref() }.pool();
        // Relaxed: taken from a live hold. It keeps the pool alive for the rest of the hand-over:
        // the waiter may claim the slot, drop it and the pool, while this thread still unlocks.
        // SAFETY: as above.
        unsafe { pool.as_ref() }.holds.fetch_add(1, Ordering::Relaxed);
        // SAFETY: kept alive by the hold just taken.
        let (holds, waker) = match unsafe { class.as_ref() }.home(index) {
            Home::Free => (1, None),
            Home::Granted(waker) => (1, waker),
            Home::Closed => (2, None),
        };
        // SAFETY: the hold taken above, and the slot's own if the class is closed.
        unsafe { RawPool::give_up(pool, holds) };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A granted slot that its waiter no longer wants: it passes on to the next, or home. It was
    /// never claimed, so it is Free.
    pub(crate) fn pass_on(class: &SizeClass, index: u32) {
        Self { class: NonNull::from(class), index }.recycle_diverted();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn no_slot_below_a_page_straddles_two_pages() {
        for capacity in 1..4096 {
            let stride = stride(capacity, 4096).unwrap();
            assert!(stride >= capacity && stride >= 64);
            assert_eq!(4096 % stride, 0, "capacity {capacity}");
        }
        assert_eq!(stride(4096, 4096), Some(4096));
        assert_eq!(stride(4097, 4096), Some(8192));
        assert_eq!(stride(usize::MAX, 4096), None);
    }

    #[test]
    fn the_pool_forgets_holders_that_are_gone() {
        struct Nobody;

        impl Reclaim for Nobody {
            fn drive(&self) {}

            fn watch(self: Arc<Self>) -> bool {
                true
            }
        }

        let options = Options { classes: vec![(64, 1)], ..Options::default() };
        let pool = PoolHandle::build(options).unwrap();
        let kept = Arc::new(Nobody);
        for _ in 0..1000 {
            pool.register(Weak::<Nobody>::new());
        }
        let weak: Weak<Nobody> = Arc::downgrade(&kept);
        pool.register(weak);
        assert!(lock(&pool.reclaim).len() < 10);
        assert_eq!(pool.reclaimers().len(), 1);
    }

    #[test]
    fn classes_lie_one_after_another_on_page_borders() {
        let page = memory::page_bytes();
        let layout = Layout::of(&[(64, 3), (page, 2), (page + 1, 1)]).unwrap();
        let offsets: Vec<_> = layout.places.iter().map(|place| place.offset).collect();
        assert_eq!(offsets, [0, page, 3 * page]);
        assert_eq!(layout.bytes, 5 * page);
    }
}
