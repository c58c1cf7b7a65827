//! The name of one slot that is out.

use std::{ptr::NonNull, task::Waker};

use super::{
    class::{Home, SizeClass},
    local::LocalMagazine,
    magazine::Magazine,
    pool::RawPool,
    rack,
    record::Record,
    replaced::Replaced,
    slot::Slot,
};

/// Names one slot that is out, and keeps its pool alive.
///
/// Not Clone, and no Drop: each is a holder counted in the slot's word, [`share`] makes one more,
/// [`recycle`] and [`unshare`] end it. Forgetting one keeps the slot out and the pool's memory
/// mapped, which is what Quarantined means.
///
/// # Invariants
///
/// 1. The slot is out: not on the free list, not in a magazine, not with a waiter. Its hold keeps
///    the pool alive.
///
/// [`share`]: Self::share
/// [`recycle`]: Self::recycle
/// [`unshare`]: Self::unshare
#[derive(Debug)]
pub struct SlotRef(NonNull<Record>);

// SAFETY: points to a record of a RawPool, which is Send and Sync; the slot's memory is handed out
// as a raw pointer only.
unsafe impl Send for SlotRef {}
// SAFETY: as above.
unsafe impl Sync for SlotRef {}

impl SlotRef {
    /// Hands out the slot that the caller took from where the free ones are, or was granted.
    #[inline]
    pub(crate) fn claim(record: &Record) -> Self {
        record.slot().claim();
        Self(NonNull::from(record))
    }

    #[inline]
    fn record(&self) -> &Record {
        // SAFETY: the pool is alive (invariant 1), and with it its records, which are only used
        // through shared references.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn class(&self) -> &SizeClass {
        // SAFETY: as in `record`.
        unsafe { self.record().class().as_ref() }
    }

    #[inline]
    pub(crate) fn slot(&self) -> &Slot {
        self.record().slot()
    }

    #[inline]
    pub(crate) fn memory(&self) -> NonNull<u8> {
        self.record().memory()
    }

    /// Bytes written, for an exclusive holder to keep.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.record().len()
    }

    #[inline]
    pub(crate) fn set_len(&self, len: usize) {
        self.record().set_len(len);
    }

    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.class().capacity()
    }

    #[inline]
    pub(crate) fn pool(&self) -> &RawPool {
        let pool = self.class().pool();
        // SAFETY: the pool is alive (invariant 1) and used through shared references only.
        unsafe { pool.as_ref() }
    }

    /// Whether somebody waits for a slot of this class.
    #[inline]
    pub(crate) fn is_awaited(&self) -> bool {
        self.class().free().has_waiters()
    }

    /// Turns a lease into a quarantined one. Returns the wakers of those who wait, if that leaves
    /// them nothing to wait for; they are to be woken with no lock held.
    #[must_use]
    pub(crate) fn quarantine(&self) -> Vec<Waker> {
        self.slot().quarantine();
        if self.class().is_forked() { Vec::new() } else { self.class().slot_quarantined() }
    }

    /// Turns a quarantined lease into a handle by giving the slot new pages, so that what the
    /// kernel may still read is no longer the slot's. `len`, the length of what was written,
    /// becomes 0 when that is lost.
    ///
    /// `None`, and the slot stays Quarantined: somebody else holds it too, by a handle or a lease
    /// of whatever kind; it has no whole pages of its own, or such as cannot be replaced; the
    /// kernel holds too much of the pool already; or it has no page to give.
    pub(crate) fn replace_pages(&self, len: &mut usize) -> Option<Replaced> {
        let (memory, bytes) = (self.memory(), self.class().stride());
        let pool = self.pool();
        if !self.slot().is_quarantined_alone() || !pool.region().can_replace(memory.as_ptr(), bytes)
        {
            return None;
        }
        let replaced = pool.replaced.add(bytes)?;
        self.slot().contents_written();
        // SAFETY: `bytes` from `memory` on are the slot's, and so in the region, which can replace
        // them. The caller's lease is the only holder, as just checked, and nobody can come to hold
        // the slot but through a handle: apart from the kernel nobody uses the contents.
        unsafe { pool.region().discard(memory, bytes) }.ok()?;
        *len = 0;
        pool.region().repopulate(memory, bytes).ok()?;
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

    /// Gives up the only handle and sends the slot home. `Err`: it is not the only one, or no
    /// handle.
    #[inline]
    pub(crate) fn try_recycle(self) -> Result<(), Self> {
        if !self.slot().try_recycle() {
            return Err(self);
        }
        self.go_home();
        Ok(())
    }

    /// Gives up the only handle and sends the slot home.
    ///
    /// # Panics
    ///
    /// If there is anything but one handle on the slot.
    pub(crate) fn recycle(self) {
        self.slot().recycle();
        self.go_home();
    }

    /// Recycles those of the last buffers in a row that are of one class and alone, as far as the
    /// thread's magazine has room for them.
    #[inline]
    pub(crate) fn recycle_last<T>(bufs: &mut Vec<T>, slot: impl Fn(&T) -> &SlotRef) {
        let Some(last) = bufs.last() else { return };
        let class = slot(last).record().class();
        let mut rest = bufs.iter();
        rack::with(
            class,
            || slot(last).class().place(),
            |magazine| {
                magazine.put_many(class, || {
                    let &Self(at) = slot(rest.as_slice().last()?);
                    // SAFETY: the slot is out (invariant 1).
                    let record = unsafe { at.as_ref() };
                    if record.class() != class || !record.slot().try_recycle() {
                        return None;
                    }
                    record.set_len(0);
                    rest.next_back();
                    Some(at)
                });
                Some(())
            },
        );
        let rest = rest.len();
        // SAFETY: not more than before. Those behind are recycled, and must not be dropped.
        unsafe { bufs.set_len(rest) };
    }

    // A slot that goes home. Once it is there nothing here keeps the pool alive: nothing of it is
    // touched, and no argument is a reference into it.

    /// Sends the slot, which is Free, home by this thread's magazine.
    #[inline]
    fn go_home(self) {
        self.set_len(0);
        let class = self.record().class();
        let place = || self.class().place();
        if rack::with(class, place, |magazine| magazine.put(class, self.0).then_some(())).is_none()
        {
            self.go_elsewhere();
        }
    }

    /// Ends a lease and sends the slot home by this thread's magazine, which wakes nobody. `false`,
    /// and nothing has happened: somebody else holds the slot too, or the magazine does not take
    /// it.
    #[inline(always)]
    #[must_use]
    pub(crate) fn try_recycle_leased(&self) -> bool {
        let class = self.record().class();
        let place = || self.class().place();
        let free = || {
            let alone = self.slot().try_recycle_leased();
            if alone {
                self.set_len(0);
            }
            alone
        };
        rack::with(class, place, |magazine| magazine.put_if(class, self.0, free).then_some(()))
            .is_some()
    }

    /// Sends the slot, which is Free, home where this thread's magazine does not take it.
    #[cold]
    #[inline(never)]
    fn go_elsewhere(self) {
        let class = self.class();
        if class.is_forked() {
            return;
        }
        if class.zero_on_recycle() {
            self.slot().contents_written();
            // SAFETY: `capacity` bytes from `memory` are the slot's and mapped; the word says that
            // there is no handle and no lease, so nobody else accesses them.
            unsafe { self.memory().write_bytes(0, class.capacity()) };
        }
        // SAFETY: the slot's hold keeps the class alive until it is home.
        unsafe { rack::with_bound(self.record().class(), |magazine| self.go_by(magazine)) };
    }

    /// Gives up the only handle and sends the slot home by `local`'s magazine, if it is for its
    /// class.
    #[inline]
    pub(crate) fn try_recycle_into(self, local: &LocalMagazine<'_>) -> Result<(), Self> {
        let Some(magazine) = local.magazine(self.class()) else {
            return self.try_recycle_foreign();
        };
        if !self.slot().try_recycle() {
            return Err(self);
        }
        self.set_len(0);
        if !magazine.put(self.record().class(), self.0) {
            self.go_beyond(magazine);
        }
        Ok(())
    }

    /// As [`try_recycle`](Self::try_recycle), out of line: with a second magazine's code in it
    /// [`try_recycle_into`](Self::try_recycle_into) would not be inlined (bench row "One alloc and
    /// drop/one thread/pinbuf, local handle": 1.7 ns instead of 1.3).
    #[cold]
    #[inline(never)]
    fn try_recycle_foreign(self) -> Result<(), Self> {
        self.try_recycle()
    }

    /// Sends the slot, which is Free, home where the caller's own `magazine` did not take it.
    #[cold]
    #[inline(never)]
    fn go_beyond(self, magazine: &Magazine) {
        if !self.class().is_forked() {
            let bound = self.class().bind(magazine);
            self.go_by(bound.then_some(magazine));
        }
    }

    /// Sends the slot, which is Free, home by the caller's own magazine, which is bound to its
    /// class, or to the free list.
    fn go_by(self, own: Option<&Magazine>) {
        let class = self.record().class();
        if own.is_some_and(|own| own.put(class, self.0) || own.spill(class, self.0)) {
            return;
        }
        let (class, index) = (self.class(), self.record().index());
        let link = &class.links()[index as usize];
        if class.free().push(index, link).is_err() {
            self.recycle_diverted();
        }
    }

    /// Hands the slot, which is Free, to a waiter or gives it up with a closed pool.
    fn recycle_diverted(self) {
        if self.class().is_forked() {
            return;
        }
        let pool = self.class().pool();
        // It keeps the pool alive for the rest of the hand-over: the waiter may claim the slot,
        // drop it and the pool, while this thread still unlocks.
        // SAFETY: the slot's own hold keeps the pool alive up to `home`.
        unsafe { pool.as_ref() }.hold();
        // The hold just taken keeps the class alive.
        let (holds, waker) = match self.class().home(self.record()) {
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
    pub(crate) fn pass_on(record: &Record) {
        Self(NonNull::from(record)).recycle_diverted();
    }
}
