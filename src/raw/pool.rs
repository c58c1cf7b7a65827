//! The pool behind its handles.

use std::{iter, ops::Deref, ptr::NonNull};

use super::{
    class::SizeClass, freelist::MAX_SLOTS, rack, reclaim::Reclaim, record::Record, region::Region,
    replaced::ReplacedBytes, slotref::SlotRef,
};
use crate::{
    backing::Backing,
    error::{AllocError, BuildError},
    lock::{Mutex, lock},
    sync::{Arc, AtomicUsize, Ordering, Weak, unique_id},
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
/// 1. `holds` is 1 for the handle, plus 1 for each slot, wherever it is, plus 1 for each thread
///    that is handing a slot to a waiter or giving up a magazine. While the handle lives no alloc
///    or recycle touches it. Closing gives up the handle's hold and those of the slots at home, in
///    magazines too; from then a slot that comes home gives up its own. Whoever brings it to 0
///    frees the pool.
/// 2. Apart from that the pool is only ever used through shared references.
pub struct RawPool {
    id: u64,
    holds: AtomicUsize,
    classes: Classes,
    reclaim: Mutex<Vec<Weak<dyn Reclaim>>>,
    pub(super) replaced: ReplacedBytes,
    fallback: bool,
    sender_quota: Option<usize>,
    /// Dropped last: the classes point into it.
    region: Region,
}

// SAFETY: the only parts that are not Send and Sync by themselves are the pointers in `classes`:
// to this pool and to its classes, which are used through shared references and atomics only
// (invariant 2), and into `region`, which is accessed only through a SlotRef by that slot's holder.
unsafe impl Send for RawPool {}
// SAFETY: as above.
unsafe impl Sync for RawPool {}
// SAFETY: as above: its pointers are to its pool, to itself and into the region.
unsafe impl Sync for SizeClass {}

impl RawPool {
    /// A number that no other pool of this process ever has.
    #[inline]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Enters someone who holds slots of this pool in flight. Once is enough, and more often does
    /// no harm; that the pool forgets it when it is dropped goes without saying.
    ///
    /// Look whether somebody waits for such a slot afterwards.
    pub fn register(&self, reclaim: Weak<dyn Reclaim>) {
        let mut registered = lock(&self.reclaim);
        if registered.len() == registered.capacity() {
            registered.retain(|known| known.strong_count() > 0);
            registered.sort_unstable_by_key(|known| known.as_ptr().addr());
            registered.dedup_by(|one, other| one.ptr_eq(other));
            // After a crowd, or those who are gone would keep its room, and their own memory.
            let room = (2 * registered.len()).max(4);
            registered.shrink_to(room);
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
    pub(crate) fn take(&self, class: &SizeClass) -> Result<SlotRef, AllocError> {
        let at = NonNull::from(class);
        match rack::with(at, || class.place(), |magazine| magazine.take(class)) {
            Some(record) => Ok(SlotRef::claim(record)),
            None => self.take_elsewhere(class),
        }
    }

    /// Hands out a slot where the magazine has none.
    #[cold]
    #[inline(never)]
    fn take_elsewhere(&self, class: &SizeClass) -> Result<SlotRef, AllocError> {
        if class.is_forked() {
            return Err(AllocError::Forked);
        }
        let larger = |other: &&SizeClass| self.fallback && other.capacity() > class.capacity();
        let classes = iter::once(class).chain(self.classes.iter().filter(larger));
        let taken = classes.filter_map(take_at_length).next();
        taken.map(SlotRef::claim).ok_or(AllocError::Exhausted)
    }

    /// Adds what `make` makes of up to `count` slots, handed out as by [`take`](Self::take), to
    /// `bufs`, and says why they are fewer.
    #[inline]
    pub(crate) fn take_many<T>(
        &self,
        class: &SizeClass,
        count: usize,
        bufs: &mut Vec<T>,
        make: impl Fn(SlotRef) -> T,
    ) -> Result<(), AllocError> {
        let full = bufs.len().saturating_add(count);
        while bufs.len() < full {
            rack::with(
                NonNull::from(class),
                || class.place(),
                |magazine| {
                    let records = magazine.take_many(class, full - bufs.len());
                    bufs.extend(records.map(|record| make(SlotRef::claim(record))));
                    Some(())
                },
            );
            if bufs.len() < full {
                bufs.push(make(self.take_elsewhere(class)?));
            }
        }
        Ok(())
    }

    /// How many slots one sender may have in flight.
    #[inline]
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

    /// Takes one more hold of the pool, to be given up.
    pub(super) fn hold(&self) {
        // Relaxed: taken while another one is alive.
        self.holds.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives up `holds` of the pool's holds.
    ///
    /// # Safety
    ///
    /// The caller has that many (invariant 1) and uses them no more; without another one it does
    /// not touch the pool, nor any slot, again.
    pub(super) unsafe fn give_up(pool: NonNull<Self>, holds: usize) {
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
            self.classes.iter().map(|class| (class.capacity(), class.records().len())).collect();
        f.debug_struct("Pool")
            .field("id", &self.id)
            .field("classes", &classes)
            .field("region", self.region.report())
            .finish()
    }
}

/// The classes of a pool, in ascending order of capacity.
///
/// Not a box, which may not be moved while there are pointers into it.
struct Classes(NonNull<[SizeClass]>);

impl Classes {
    /// So many classes, each made by `make`, which is told where it will lie.
    fn new(count: usize, make: impl Fn(usize, NonNull<SizeClass>) -> SizeClass) -> Self {
        // The only reference: one more to the whole would end the pointers to the parts.
        let first = NonNull::from(Box::leak(Box::<[SizeClass]>::new_uninit_slice(count))).cast();
        for number in 0..count {
            // SAFETY: there is room for so many.
            let at = unsafe { first.add(number) };
            // SAFETY: there is room for a class, unused so far.
            unsafe { at.write(make(number, at)) };
        }
        Self(NonNull::slice_from_raw_parts(first, count))
    }
}

impl Deref for Classes {
    type Target = [SizeClass];

    #[inline]
    fn deref(&self) -> &[SizeClass] {
        // SAFETY: they live as long as this, and are only used through shared references.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Classes {
    fn drop(&mut self) {
        // SAFETY: of the box leaked in `new`; nobody uses them after the pool's end.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// The one handle of a pool. Dropping it closes the pool; slots that are out stay valid, and the
/// last of them to come home frees it.
pub(crate) struct PoolHandle {
    pool: NonNull<RawPool>,
    /// That with the smallest slots, at hand.
    smallest: NonNull<SizeClass>,
}

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
        let classes = Classes::new(layout.places.len(), |number, at| {
            let ((capacity, count), place) = (options.classes[number], &layout.places[number]);
            // SAFETY: the offset is at most `layout.bytes`, which the region spans.
            let memory = unsafe { region.start().add(place.offset) };
            let zero = options.zero_on_recycle;
            SizeClass::new(at, pool, memory, capacity, place.stride, count, zero)
        });
        let handle = Self { pool, smallest: classes.0.cast() };
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
        Ok(handle)
    }

    /// The smallest class whose slots have `capacity` bytes.
    #[inline]
    pub(crate) fn class(&self, capacity: usize) -> Result<&SizeClass, AllocError> {
        // SAFETY: the handle's hold keeps the pool alive, and with it its classes, which are only
        // used through shared references.
        let smallest = unsafe { self.smallest.as_ref() };
        if smallest.capacity() >= capacity { Ok(smallest) } else { self.larger_class(capacity) }
    }

    fn larger_class(&self, capacity: usize) -> Result<&SizeClass, AllocError> {
        let classes = self.classes();
        let fits = classes.iter().find(|class| class.capacity() >= capacity);
        fits.ok_or_else(|| {
            let largest = classes.last().map_or(0, SizeClass::capacity);
            AllocError::TooLarge { requested: capacity, largest }
        })
    }
}

impl Deref for PoolHandle {
    type Target = RawPool;

    #[inline]
    fn deref(&self) -> &RawPool {
        // SAFETY: the handle's hold (invariant 1) keeps the pool alive, and it is used through
        // shared references only (invariant 2).
        unsafe { self.pool.as_ref() }
    }
}

impl Drop for PoolHandle {
    fn drop(&mut self) {
        // In a forked child nothing of the pool's lies where it was, which may be somebody else's
        // by now: unmapping it would be a mistake.
        if self.classes().iter().any(SizeClass::is_forked) {
            return;
        }
        let at_home: usize = self.classes().iter().map(SizeClass::close).sum();
        // SAFETY: the handle's hold is given up with the handle; those of the slots at home became
        // ours when `close` took them off lists and magazines.
        unsafe { RawPool::give_up(self.pool, at_home + 1) };
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

/// Takes a slot of the class, filling the thread's magazine up on the way, or emptying the others'.
fn take_at_length(class: &SizeClass) -> Option<&Record> {
    // SAFETY: the class lives while it is borrowed.
    unsafe { rack::with_bound(NonNull::from(class), |magazine| class.take(magazine)) }
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
    fn the_pool_forgets_holders_that_are_gone_and_knows_the_others_once() {
        struct Holder(#[expect(dead_code, reason = "so that each lies at a place of its own")] u8);

        impl Reclaim for Holder {
            fn drive(&self) {}

            fn watch(self: Arc<Self>) -> bool {
                true
            }
        }

        let options = Options { classes: vec![(64, 1)], ..Options::default() };
        let pool = PoolHandle::build(options).unwrap();
        let kept = [(); 2].map(|()| Arc::new(Holder(0)));
        let enter = |holder: &Arc<Holder>| {
            let holder: Weak<Holder> = Arc::downgrade(holder);
            pool.register(holder);
        };
        let crowd: Vec<_> = (0..1000).map(|_| Arc::new(Holder(0))).collect();
        crowd.iter().for_each(enter);
        drop(crowd);
        for _ in 0..1000 {
            pool.register(Weak::<Holder>::new());
            kept.iter().for_each(enter);
        }
        assert!(lock(&pool.reclaim).len() < 10);
        let mut known: Vec<_> =
            pool.reclaimers().iter().map(|known| Arc::as_ptr(known).addr()).collect();
        known.sort_unstable();
        known.dedup();
        assert_eq!(known.len(), 2);
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
