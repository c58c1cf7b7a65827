//! A few slots of one class in the hands of one thread.

use std::{array, hint, ops::Range, ptr, ptr::NonNull, time::Duration};

use super::{class::SizeClass, freelist::BUNDLE, record::Record};
use crate::sync::{AtomicPtr, AtomicU32, Ordering, light_barrier, unmodelled::sleep, yield_now};

/// The most slots that a magazine holds: what makes it 2 KiB.
const ITEMS: usize = if cfg!(loom) { 2 } else { 253 };

/// How often the owner has to want another class before it gets the magazine: the exchange costs
/// about as much as so many visits to the free list.
const MISSES: u32 = if cfg!(loom) { 1 } else { 64 };

/// The length while the owner is at work.
const BUSY: u32 = u32::MAX;

/// Added to the key while the slots are being taken away.
const TAKEN: usize = 1;

/// A stack of free slots that its owner, one thread, works on with plain loads and stores, and that
/// others can nevertheless empty: an asymmetric Dekker lock.
///
/// The owner marks the length busy, then looks whether the key still says that the magazine belongs
/// to the class it wants; if so, it does its work and stores the new length. Who takes the slots
/// away changes the key, then has every thread pass a barrier, then looks at the length: from there
/// on the owner either is busy, and will be through in a moment, or sees the key.
///
/// # Invariants
///
/// 1. Only the owner writes `len` and the items. The items below the length are slots of the class
///    that the key names, Free, at home here and nowhere else.
/// 2. The key is 0 for a magazine that belongs to no class; the class's address for one that does,
///    and then it stands on that class's roster; that plus [`TAKEN`] while somebody who holds the
///    roster's lock reads the items. The owner sets it when it is 0, whoever holds the roster's
///    lock changes it otherwise.
/// 3. While the owner is busy and has seen the key name a class, that class lives, and its free
///    list has no flags: both, to close it and to queue for its slots, begin with taking all
///    magazines'.
/// 4. The limit is at most `ITEMS`.
/// 5. A magazine is in memory that a forked child finds full of zeros: there it belongs to no
///    class. No owner that the child has is busy then: it has only the thread that forked. (A
///    signal handler that interrupts an owner and forks must not return in the child.)
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Magazine {
    key: AtomicPtr<SizeClass>,
    len: AtomicU32,
    /// How many items the class allows.
    limit: AtomicU32,
    /// How often the owner wanted another class here since it last bound this one.
    misses: AtomicU32,
    items: [AtomicPtr<Record>; ITEMS],
}

#[cfg(all(not(loom), target_pointer_width = "64"))]
static_assertions::assert_eq_size!(Magazine, [u8; 2048]);

impl Default for Magazine {
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

// All but `begin_taking`, `take_all` and `look` is for the owner only.
impl Magazine {
    /// How many slots the magazines of a class of `count` slots may hold each; 0: it has none.
    ///
    /// A quarter of the class: what stands in magazines has to be fetched when it runs short.
    pub(crate) fn limit(count: usize) -> u32 {
        let (least, share) = if cfg!(loom) { (6, 3) } else { (64, 4) };
        if count < least { 0 } else { (count / share).min(ITEMS) as u32 }
    }

    /// How many slots come and go at a time with magazines of this limit: a bundle of the free
    /// list.
    pub(crate) fn batch(limit: u32) -> usize {
        let half = if cfg!(loom) { limit } else { limit / 2 };
        (half as usize).clamp(1, BUNDLE)
    }

    /// Does what `body` does with the length, unless the magazine does not belong to `class` (any
    /// more). `body` answers the new length. It must not panic or wait.
    #[inline(always)]
    fn alter<R>(&self, class: NonNull<SizeClass>, body: impl FnOnce(u32) -> (u32, R)) -> Option<R> {
        // Relaxed: only the owner writes it.
        let len = self.len.load(Ordering::Relaxed);
        // Relaxed: the barrier orders it before the load of the key.
        self.len.store(BUSY, Ordering::Relaxed);
        light_barrier();
        // Relaxed: if it names the class, this thread wrote it.
        if self.key.load(Ordering::Relaxed) != class.as_ptr() {
            // Release: as below.
            self.len.store(len, Ordering::Release);
            return None;
        }
        let (len, result) = body(len);
        // Release: partner of the Acquire in `take_all`; publishes the items, and all that was done
        // to these slots.
        self.len.store(len, Ordering::Release);
        Some(result)
    }

    /// Takes the last slot put in, if the magazine belongs to `class` and is not empty.
    #[inline(always)]
    pub(crate) fn take<'a>(&self, class: &'a SizeClass) -> Option<&'a Record> {
        let taken = self.alter(NonNull::from(class), |len| {
            let last = len.wrapping_sub(1);
            match self.items.get(last as usize) {
                // Relaxed: only the owner writes it.
                Some(item) => (last, Some(item.load(Ordering::Relaxed))),
                None => (len, None),
            }
        })??;
        // SAFETY: the items below the length name records (invariant 1). Said here, because
        // otherwise what became of the branches above is asked once more.
        unsafe { hint::assert_unchecked(!taken.is_null()) };
        // SAFETY: a record of `class` (invariant 1), which lives as long as that.
        Some(unsafe { &*taken })
    }

    /// Puts in a slot of `class`, which is Free, if the magazine belongs to that and is not full.
    ///
    /// Afterwards the slot is at home, and nothing here keeps the pool alive: hence no references.
    #[inline(always)]
    pub(crate) fn put(&self, class: NonNull<SizeClass>, record: NonNull<Record>) -> bool {
        self.put_if(class, record, || true)
    }

    /// As [`put`](Self::put), if there is room and then `free` makes the slot Free, which must not
    /// panic or wait.
    #[inline(always)]
    pub(crate) fn put_if(
        &self,
        class: NonNull<SizeClass>,
        record: NonNull<Record>,
        free: impl FnOnce() -> bool,
    ) -> bool {
        let put = self.alter(class, |len| match self.room(len) {
            Some(place) if free() => {
                // Relaxed: published with the length.
                place.store(record.as_ptr(), Ordering::Relaxed);
                (len + 1, true)
            }
            _ => (len, false),
        });
        put.unwrap_or(false)
    }

    /// The place for one more item.
    #[inline(always)]
    fn room(&self, len: u32) -> Option<&AtomicPtr<Record>> {
        // Relaxed: only the owner writes it.
        let is_room = len < self.limit.load(Ordering::Relaxed);
        // SAFETY: the limit is at most the number of items (invariant 4).
        is_room.then(|| unsafe { self.items.get_unchecked(len as usize) })
    }

    /// Fills up from `class`'s free list, being empty, and takes a slot. `None`: the list is empty,
    /// or the magazine does not belong to the class any more.
    pub(crate) fn refill<'a>(&self, class: &'a SizeClass) -> Option<&'a Record> {
        self.alter(NonNull::from(class), |len| {
            debug_assert_eq!(len, 0);
            let mut first = None;
            let mut len = 0;
            let records = class.records();
            // Busy meanwhile, so that who finds the list empty and looks into the magazines waits
            // until the slots are here.
            class.free().pop(class.links(), |index| {
                let record = &records[index as usize];
                if first.is_none() {
                    first = Some(record);
                } else {
                    // Relaxed: published with the length.
                    self.items[len].store(ptr::from_ref(record).cast_mut(), Ordering::Relaxed);
                    len += 1;
                }
            });
            (len as u32, first)
        })?
    }

    /// Takes up to `most` of the last slots put in, if the magazine belongs to `class`. The owner
    /// must not put in others before it has them all.
    #[inline]
    pub(crate) fn take_many<'a>(
        &self,
        class: &'a SizeClass,
        most: usize,
    ) -> impl Iterator<Item = &'a Record> {
        let taken = self.alter(NonNull::from(class), |len| {
            let rest = len.saturating_sub(u32::try_from(most).unwrap_or(u32::MAX));
            (rest, rest as usize..len as usize)
        });
        // The items stay until the owner puts in others.
        // SAFETY: they were records of `class` when the magazine belonged to it (invariant 1).
        unsafe { self.items(taken.unwrap_or(0..0)) }
    }

    /// Puts in slots of `class`, which are Free, as long as there is room and `next` has one, which
    /// must not panic or wait; none if the magazine does not belong to the class. Afterwards as
    /// after [`put`](Self::put).
    #[inline]
    pub(crate) fn put_many(
        &self,
        class: NonNull<SizeClass>,
        mut next: impl FnMut() -> Option<NonNull<Record>>,
    ) {
        self.alter(class, |len| {
            // Relaxed: only the owner writes it.
            let room = len as usize..self.limit.load(Ordering::Relaxed) as usize;
            let mut put = 0;
            for place in self.items.get(room).unwrap_or_default() {
                let Some(record) = next() else { break };
                // Relaxed: published with the length.
                place.store(record.as_ptr(), Ordering::Relaxed);
                put += 1;
            }
            (len + put, ())
        });
    }

    /// Puts in a slot of `class` after making room by sending others to the free list. `false`: the
    /// magazine does not belong to the class any more. Afterwards as after [`put`](Self::put).
    pub(crate) fn spill(&self, class: NonNull<SizeClass>, record: NonNull<Record>) -> bool {
        let spilt = self.alter(class, |len| {
            // SAFETY: the class lives while the owner is busy (invariant 3).
            let class = unsafe { class.as_ref() };
            let bundle = class.bundle();
            let kept = (len as usize).saturating_sub(bundle);
            // SAFETY: they are records of `class`, to which the magazine belongs (invariant 1).
            let records = unsafe { self.items(kept..len as usize) };
            // There are no flags (invariant 3).
            let indices = records.map(Record::index);
            if class.free().push_all(class.links(), indices, bundle).is_err() {
                return (len, false);
            }
            // Relaxed: published with the length.
            self.items[kept].store(record.as_ptr(), Ordering::Relaxed);
            (kept as u32 + 1, true)
        });
        spilt.unwrap_or(false)
    }

    /// The records that some of the items name.
    ///
    /// # Safety
    ///
    /// These items were put in for a class that lives for `'a`.
    unsafe fn items<'a>(&self, range: Range<usize>) -> impl Iterator<Item = &'a Record> {
        self.items[range].iter().map(|item| {
            // Relaxed: written by this thread, or ordered by the length's Acquire.
            let record = item.load(Ordering::Relaxed);
            // SAFETY: a record of a class that lives long enough, as the caller promises.
            unsafe { &*record }
        })
    }

    /// Whether the magazine belongs to `class`, as far as the owner knows.
    #[inline(always)]
    pub(crate) fn belongs_to(&self, class: NonNull<SizeClass>) -> bool {
        // Relaxed: if it names the class, this thread wrote it.
        self.key.load(Ordering::Relaxed) == class.as_ptr()
    }

    /// Whether the magazine belongs to no class, and so can be bound to one.
    pub(crate) fn is_unbound(&self) -> bool {
        // Acquire: partner of the Release in `take_all`, whose reading of the items comes before
        // others are put in.
        self.key.load(Ordering::Acquire).is_null()
    }

    /// Counts that the owner wanted another class here, and answers whether it did so often enough
    /// for that to be worth while.
    pub(crate) fn is_missed(&self) -> bool {
        // Relaxed, both: the owner's alone.
        let misses = self.misses.load(Ordering::Relaxed).saturating_add(1);
        self.misses.store(misses, Ordering::Relaxed);
        misses >= MISSES
    }

    /// Binds the magazine, which is unbound, to `class`. The caller has the lock of its roster and
    /// puts it there.
    pub(crate) fn bind(&self, class: &SizeClass) {
        // Relaxed, all four: others look only under the lock, or after one more store to the
        // length.
        self.len.store(0, Ordering::Relaxed);
        self.limit.store(class.magazine_limit(), Ordering::Relaxed);
        self.misses.store(0, Ordering::Relaxed);
        self.key.store(ptr::from_ref(class).cast_mut(), Ordering::Relaxed);
    }

    /// The class that the magazine belongs to, after `hold` has seen to it that it goes on living.
    /// `None`: it belongs to none, once a taking away that was under way has ended.
    pub(crate) fn hold_class(
        &self,
        hold: impl FnOnce(NonNull<SizeClass>),
    ) -> Option<NonNull<SizeClass>> {
        // Relaxed: only the owner writes it.
        let len = self.len.load(Ordering::Relaxed);
        // Relaxed: the barrier orders it before the load of the key.
        self.len.store(BUSY, Ordering::Relaxed);
        light_barrier();
        // Relaxed: if it names a class untaken, this thread wrote it.
        let class = NonNull::new(self.key.load(Ordering::Relaxed));
        let class = class.filter(|class| class.addr().get() & TAKEN == 0);
        // While the owner is busy, the class lives (invariant 3).
        if let Some(class) = class {
            hold(class);
        }
        // Release: as in `alter`.
        self.len.store(len, Ordering::Release);
        if class.is_none() {
            wait_for(|| self.is_unbound().then_some(()));
        }
        class
    }

    /// Unbinds the magazine from `class`, whose roster's lock the caller has, and answers the slots
    /// in it.
    pub(crate) fn unbind<'a>(&self, class: &'a SizeClass) -> impl Iterator<Item = &'a Record> {
        debug_assert!(self.belongs_to(NonNull::from(class)));
        // Relaxed: only the owner writes it.
        let len = self.len.load(Ordering::Relaxed) as usize;
        // Relaxed: who takes slots away needs the lock.
        self.key.store(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: they are records of `class`, to which the magazine belonged (invariant 1).
        unsafe { self.items(0..len) }
    }

    /// Begins to take the slots away from the owner; a heavy barrier and then
    /// [`take_all`](Self::take_all) complete that. The caller has the lock of the roster that the
    /// magazine stands on, from here to there.
    pub(crate) fn begin_taking(&self, class: &SizeClass) {
        let taken = ptr::from_ref(class).map_addr(|address| address | TAKEN);
        // Relaxed: the barrier orders it before the load of the length.
        self.key.store(taken.cast_mut(), Ordering::Relaxed);
    }

    /// Takes all slots, which are those of `class`, and leaves the magazine unbound.
    pub(crate) fn take_all<'a>(&self, class: &'a SizeClass, each: impl FnMut(&'a Record)) {
        // The owner, who is not busy any more since the key changed, leaves them alone.
        self.look(class).for_each(each);
        // Release: partner of the Acquire in `is_unbound`.
        self.key.store(ptr::null_mut(), Ordering::Release);
    }

    /// The slots in the magazine, which stands on the roster of `class`, whose lock the caller has.
    /// Exact only while the owner does nothing.
    pub(crate) fn look<'a>(&self, _class: &'a SizeClass) -> impl Iterator<Item = &'a Record> {
        let len = wait_for(|| {
            // Acquire: partner of the Release in `alter`.
            let len = self.len.load(Ordering::Acquire);
            (len != BUSY).then_some(len as usize)
        });
        // SAFETY: since the magazine was bound to `class` every item below its length was put in
        // for that.
        unsafe { self.items(0..len) }
    }
}

/// Waits for another thread that does not wait itself: it needs a processor, nothing else.
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
            // It may run at a lower priority, to which nothing is yielded.
            sleep(Duration::from_micros(50));
        }
    }
}
