//! The pool behind its handles.

use std::{iter, ops::Deref, ptr::NonNull};

use super::{
    class::{ClassLayout, SizeClass, Slot},
    freelist::MAX_SLOTS,
    head::PoolHead,
    region::Region,
    slotref::SlotRef,
    threads::{self, LocalMagazine},
};
use crate::{
    backing::Backing,
    error::{AllocError, BuildError},
    sys::memory::{self, Supply},
};

/// The settings of a pool.
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

/// A pool, in an allocation of its own until the last hold of its head is dropped.
#[repr(C)]
pub struct RawPool {
    /// The first field: a pointer to the pool is a pointer to the head.
    head: PoolHead,
    classes: Classes,
    fallback: bool,
}

// SAFETY: the only parts that are not Send and Sync by themselves are the pointers in `classes`: to
// the head and to the classes, which are used through shared references and atomics only (invariant
// 2 of `PoolHead`), and into the region, which is accessed only through a SlotRef by that slot's
// holder.
unsafe impl Send for RawPool {}
// SAFETY: as above.
unsafe impl Sync for RawPool {}

impl RawPool {
    /// The pool of a slot.
    pub(crate) fn of(slot: &SlotRef) -> &Self {
        // SAFETY: the pointer is derived from a pointer to the whole pool, and the head is the
        // first field. The slot's hold keeps the pool alive, which is used through shared
        // references only.
        unsafe { slot.head().cast().as_ref() }
    }

    /// Frees the pool of `head`.
    ///
    /// # Safety
    ///
    /// The pool is one of `PoolHandle::build`, the pointer is derived from the one to the whole
    /// pool, and nothing uses the pool from now on.
    unsafe fn free(head: NonNull<PoolHead>) {
        // SAFETY: the pointer is the one of the box leaked in `PoolHandle::build`, since the head
        // is the first field.
        drop(unsafe { Box::from_raw(head.cast::<Self>().as_ptr()) });
    }

    /// Returns `true` if a thread or task waits for a slot of any class.
    ///
    /// Exact if a lock orders the call after the waiter's queueing; see
    /// [`Reclaim`](super::reclaim::Reclaim).
    #[inline]
    pub fn has_waiters(&self) -> bool {
        self.classes.iter().any(|class| class.depot().has_waiters())
    }

    pub(crate) fn classes(&self) -> &[SizeClass] {
        &self.classes
    }

    /// Takes and claims a free slot of `class`, or, if the pool has `fallback`, of the next larger
    /// class with a free slot.
    #[inline]
    pub(crate) fn alloc(&self, class: &SizeClass) -> Result<SlotRef, AllocError> {
        let at = NonNull::from(class);
        match threads::with_magazine(at, || class.number(), |own| class.pop_from(own)) {
            Some(slot) => Ok(SlotRef::claim(slot)),
            None => self.alloc_slow(class),
        }
    }

    /// As [`alloc`](Self::alloc), where this thread's magazine has no slot.
    #[cold]
    #[inline(never)]
    fn alloc_slow(&self, class: &SizeClass) -> Result<SlotRef, AllocError> {
        if class.is_forked() {
            return Err(AllocError::Forked);
        }
        let larger = |other: &&SizeClass| self.fallback && other.capacity() > class.capacity();
        let classes = iter::once(class).chain(self.classes.iter().filter(larger));
        let popped = classes.filter_map(pop).next();
        popped.map(SlotRef::claim).ok_or(AllocError::Exhausted)
    }

    /// Adds what `make` makes of up to `count` slots, each as of [`alloc`](Self::alloc), to `bufs`.
    /// `Err` says why there are fewer.
    #[inline]
    pub(crate) fn alloc_many<T>(
        &self,
        class: &SizeClass,
        count: usize,
        bufs: &mut Vec<T>,
        make: impl Fn(SlotRef) -> T,
    ) -> Result<(), AllocError> {
        let full = bufs.len().saturating_add(count);
        while bufs.len() < full {
            threads::with_magazine(
                NonNull::from(class),
                || class.number(),
                |own| {
                    let slots = class.pop_many_from(own, full - bufs.len());
                    bufs.extend(slots.map(|slot| make(SlotRef::claim(slot))));
                    Some(())
                },
            );
            if bufs.len() < full {
                bufs.push(make(self.alloc_slow(class)?));
            }
        }
        Ok(())
    }
}

impl Deref for RawPool {
    type Target = PoolHead;

    #[inline]
    fn deref(&self) -> &PoolHead {
        &self.head
    }
}

/// Takes a free slot of the class. On the way this thread's magazine is refilled, or the magazines
/// of other threads are emptied.
fn pop(class: &SizeClass) -> Option<&Slot> {
    // SAFETY: the class lives while borrowed.
    unsafe { threads::with_bound_magazine(NonNull::from(class), |own| class.pop(own)) }
}

impl LocalMagazine<'_> {
    /// Takes and claims a free slot of the handle's class.
    #[inline]
    pub(crate) fn alloc(&self) -> Result<SlotRef, AllocError> {
        match self.pop() {
            Some(slot) => Ok(SlotRef::claim(slot)),
            None => self.alloc_slow(),
        }
    }

    #[cold]
    #[inline(never)]
    fn alloc_slow(&self) -> Result<SlotRef, AllocError> {
        if self.class().is_forked() {
            return Err(AllocError::Forked);
        }
        self.pop_slow().map(SlotRef::claim).ok_or(AllocError::Exhausted)
    }
}

impl std::fmt::Debug for RawPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let classes: Vec<_> =
            self.classes.iter().map(|class| (class.capacity(), class.slots().len())).collect();
        f.debug_struct("Pool")
            .field("id", &self.id())
            .field("classes", &classes)
            .field("region", self.region().report())
            .finish()
    }
}

/// The classes of a pool, in ascending order of capacity.
///
/// Not a box: a box may not be moved while there are pointers into it.
struct Classes(NonNull<[SizeClass]>);

impl Classes {
    /// `count` classes, each made by `make`, which gets the number of the class and the address
    /// where the class will lie.
    fn new(count: usize, make: impl Fn(usize, NonNull<SizeClass>) -> SizeClass) -> Self {
        // The only reference to the whole: a second one would end the pointers to the parts.
        let first = NonNull::from(Box::leak(Box::<[SizeClass]>::new_uninit_slice(count))).cast();
        for number in 0..count {
            // SAFETY: there is room for `count`.
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
        // SAFETY: the classes live as long as `self`, and are only used through shared references.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Classes {
    fn drop(&mut self) {
        // SAFETY: the box leaked in `new`; nothing uses the classes after the pool's end.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// The one handle of a pool. Dropping the handle closes the pool. Slots outside stay valid, and
/// the recycling of the last slot frees the pool.
pub(crate) struct PoolHandle {
    pool: NonNull<RawPool>,
    /// The class with the smallest slots.
    smallest: NonNull<SizeClass>,
}

// SAFETY: a PoolHandle gives out `&RawPool`, and RawPool is Sync. The drop may run on any thread,
// since RawPool is Send.
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
            // SAFETY: the offset is at most `layout.bytes`, the length of the region.
            let memory = unsafe { region.start().add(place.offset) };
            let layout = ClassLayout { memory, capacity, stride: place.stride, count };
            SizeClass::new(at, pool.cast(), layout, options.zero_on_recycle)
        });
        let handle = Self { pool, smallest: classes.0.cast() };
        let slots = options.classes.iter().map(|(_, count)| count).sum();
        let head = PoolHead::new(slots, RawPool::free, options.sender_quota, region);
        let raw = RawPool { head, classes, fallback: options.fallback };
        // SAFETY: the pointer is to a box of a RawPool's layout, unused so far.
        unsafe { pool.write(raw) };
        Ok(handle)
    }

    /// The smallest class with slots of `capacity` bytes.
    #[inline]
    pub(crate) fn class(&self, capacity: usize) -> Result<&SizeClass, AllocError> {
        // SAFETY: the handle's hold keeps the pool and its classes alive, which are only used
        // through shared references.
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
        // SAFETY: the handle's hold keeps the pool alive (invariant 1 of `PoolHead`), and the pool
        // is used through shared references only (invariant 2).
        unsafe { self.pool.as_ref() }
    }
}

impl Drop for PoolHandle {
    fn drop(&mut self) {
        // In a forked child the pool's memory is absent, and other memory may lie there by now:
        // unmapping it would be a mistake.
        if self.classes().iter().any(SizeClass::is_forked) {
            return;
        }
        let free: usize = self.classes().iter().map(SizeClass::close).sum();
        // SAFETY: the handle's hold ends with the handle; those of the free slots became this
        // thread's when `close` took the slots out of depots and magazines.
        unsafe { PoolHead::drop_holds(self.pool.cast(), free + 1) };
    }
}

/// The places of the classes in the region.
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
    fn classes_lie_one_after_another_on_page_borders() {
        let page = memory::page_bytes();
        let layout = Layout::of(&[(64, 3), (page, 2), (page + 1, 1)]).unwrap();
        let offsets: Vec<_> = layout.places.iter().map(|place| place.offset).collect();
        assert_eq!(offsets, [0, page, 3 * page]);
        assert_eq!(layout.bytes, 5 * page);
    }
}
