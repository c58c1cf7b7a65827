//! The name of a slot outside the pool.

use std::{ptr::NonNull, task::Waker};

use super::{
    class::{Magazine, SizeClass, Slot},
    depot::{Depot, Pushed},
    head::PoolHead,
    replaced::Replaced,
    state::StateWord,
    threads::{self, LocalMagazine},
};

/// Names a slot outside the pool ("out"), and keeps the slot's pool alive.
///
/// Not Clone, and no Drop: each is a holder counted in the slot's state word. [`share`] makes one
/// more, [`recycle`] and [`unshare`] end it. Forgetting one keeps the slot out and the pool's
/// memory mapped, which is the meaning of Quarantined.
///
/// A slot that is recycled becomes Free and then goes to the first of these places that takes it:
///
/// | | place | takes the slot if | function |
/// |---|---|---|---|
/// | 1 | this thread's magazine, or the local handle's | bound to the class, and has room | `push`, `try_recycle_into` |
/// | 2 | the same after binding it and making room | the depot has no flags | `push_slow`, `push_via` |
/// | 3 | the depot's free list | the depot has no flags | `push_via` |
/// | 4 | a waiter | one is queued | `push_or_grant` |
/// | 5 | none: the slot's hold on the pool is dropped | the pool is closed | `push_or_grant` |
///
/// # Invariants
///
/// 1. The slot is out: not in the depot, not in a magazine, not granted to a waiter. Its hold keeps
///    the pool alive.
///
/// [`share`]: Self::share
/// [`recycle`]: Self::recycle
/// [`unshare`]: Self::unshare
#[derive(Debug)]
pub struct SlotRef(NonNull<Slot>);

// SAFETY: points to a slot of a pool, which is Send and Sync; the slot's memory is handed out as a
// raw pointer only.
unsafe impl Send for SlotRef {}
// SAFETY: as above.
unsafe impl Sync for SlotRef {}

impl SlotRef {
    /// Hands out a Free slot of the caller, out of a magazine, the depot or a grant.
    #[inline]
    pub(crate) fn claim(slot: &Slot) -> Self {
        slot.word().claim();
        Self(NonNull::from(slot))
    }

    #[inline]
    fn slot(&self) -> &Slot {
        // SAFETY: the pool is alive (invariant 1), and so are the pool's slots, which are only
        // used through shared references.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn class(&self) -> &SizeClass {
        // SAFETY: as in `slot`.
        unsafe { self.slot().class().as_ref() }
    }

    /// The slot's state word.
    #[inline]
    pub(crate) fn word(&self) -> &StateWord {
        self.slot().word()
    }

    #[inline]
    pub(crate) fn memory(&self) -> NonNull<u8> {
        self.slot().memory()
    }

    /// Bytes written, for an exclusive holder to keep.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.slot().len()
    }

    #[inline]
    pub(crate) fn set_len(&self, len: usize) {
        self.slot().set_len(len);
    }

    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.class().capacity()
    }

    /// The head of the slot's pool.
    #[inline]
    pub(crate) fn pool(&self) -> &PoolHead {
        // SAFETY: the pool is alive (invariant 1) and used through shared references only.
        unsafe { self.class().head().as_ref() }
    }

    /// A pointer to the head of the slot's pool, derived from the one to the whole pool.
    pub(super) fn head(&self) -> NonNull<PoolHead> {
        self.class().head()
    }

    /// Returns `true` if a thread or task waits for a slot of this class.
    #[inline]
    pub(crate) fn is_awaited(&self) -> bool {
        self.class().depot().has_waiters()
    }

    /// Turns a lease into a quarantined one. Returns the wakers of waiters without hope, to be
    /// woken with no lock held.
    #[must_use]
    pub(crate) fn quarantine(&self) -> Vec<Waker> {
        self.word().quarantine();
        if self.class().is_forked() { Vec::new() } else { self.class().slot_quarantined() }
    }

    /// Turns a quarantined lease into a handle by giving the slot new pages. The pages of
    /// the kernel's reads are no longer the slot's. `len`, the length of the written bytes, becomes
    /// 0 with their loss.
    ///
    /// `None`, and the slot stays Quarantined:
    /// - the slot has another holder: a handle, or a lease of whatever kind;
    /// - the slot has no whole pages of its own, or pages that cannot be replaced;
    /// - the kernel holds too many former pages of the pool already;
    /// - the system has no page to give.
    pub(crate) fn replace_pages(&self, len: &mut usize) -> Option<Replaced> {
        let (memory, bytes) = (self.memory(), self.class().stride());
        let pool = self.pool();
        if !self.word().is_quarantined_alone() || !pool.region().can_replace(memory.as_ptr(), bytes)
        {
            return None;
        }
        let replaced = pool.replaced.add(bytes)?;
        self.word().contents_written();
        // SAFETY: `bytes` from `memory` on are the slot's, and so in the region, which can replace
        // them. The caller's lease is the only holder, as just checked, and new holders are made
        // only from handles: apart from the kernel nothing uses the contents.
        unsafe { pool.region().discard(memory, bytes) }.ok()?;
        *len = 0;
        pool.region().repopulate(memory, bytes).ok()?;
        self.word().quarantine_released();
        Some(replaced)
    }

    /// One more handle, made from a handle.
    ///
    /// # Panics
    ///
    /// With 2^21 - 1 holders.
    pub(crate) fn share(&self) -> Self {
        self.word().share();
        Self { ..*self }
    }

    /// Ends a handle; the last holder recycles the slot.
    pub(crate) fn unshare(self) {
        if self.word().unshare() {
            self.push();
        }
    }

    /// Recycles the slot of an only handle. `Err`: there are other holders, or this is no handle.
    #[inline]
    pub(crate) fn try_recycle(self) -> Result<(), Self> {
        if !self.word().try_recycle() {
            return Err(self);
        }
        self.push();
        Ok(())
    }

    /// Recycles the slot of an only handle.
    ///
    /// # Panics
    ///
    /// If the handle is not the only holder.
    pub(crate) fn recycle(self) {
        self.word().recycle();
        self.push();
    }

    /// Recycles the slot of an only lease into this thread's magazine, which wakes no waiter.
    /// `false`, and nothing has happened: there are other holders, or the magazine has no room.
    #[inline(always)]
    #[must_use]
    pub(crate) fn try_recycle_leased(&self) -> bool {
        let class = self.slot().class();
        let number = || self.class().number();
        let free = || {
            let alone = self.word().try_recycle_leased();
            if alone {
                self.set_len(0);
            }
            alone
        };
        threads::with_magazine(class, number, |own| own.push_if(class, self.0, free).then_some(()))
            .is_some()
    }

    /// Recycles the last buffers in a row of one class and without other holders, as far as the
    /// thread's magazine has room.
    #[inline]
    pub(crate) fn recycle_last<T>(bufs: &mut Vec<T>, slot: impl Fn(&T) -> &SlotRef) {
        let Some(last) = bufs.last() else { return };
        let class = slot(last).slot().class();
        let mut rest = bufs.iter();
        threads::with_magazine(
            class,
            || slot(last).class().number(),
            |own| {
                own.push_many(class, || {
                    let &Self(at) = slot(rest.as_slice().last()?);
                    // SAFETY: the slot is out (invariant 1).
                    let slot = unsafe { at.as_ref() };
                    if slot.class() != class || !slot.word().try_recycle() {
                        return None;
                    }
                    slot.set_len(0);
                    rest.next_back();
                    Some(at)
                });
                Some(())
            },
        );
        let rest = rest.len();
        // SAFETY: not more than before. The buffers behind are recycled, and must not be dropped.
        unsafe { bufs.set_len(rest) };
    }

    /// Recycles the slot of an only handle into the magazine of `local`, if that is for its class.
    #[inline]
    pub(crate) fn try_recycle_into(self, local: &LocalMagazine<'_>) -> Result<(), Self> {
        let class = self.slot().class();
        let Some(own) = local.magazine(class) else { return self.try_recycle_foreign() };
        if !self.word().try_recycle() {
            return Err(self);
        }
        self.set_len(0);
        if !own.push(class, self.0) {
            self.push_slow_local(own);
        }
        Ok(())
    }

    /// As [`try_recycle`](Self::try_recycle), out of line: with a second magazine's code inside,
    /// [`try_recycle_into`](Self::try_recycle_into) would not be inlined (bench row "One alloc and
    /// drop/one thread/pinbuf, local handle": 1.7 ns instead of 1.3).
    #[cold]
    #[inline(never)]
    fn try_recycle_foreign(self) -> Result<(), Self> {
        self.try_recycle()
    }

    // The way of a slot that is Free already. After the push the pool may be freed by another
    // thread: nothing of the pool is touched, and no argument is a reference into it.

    /// Pushes the slot into this thread's magazine, or elsewhere.
    #[inline]
    fn push(self) {
        self.set_len(0);
        let class = self.slot().class();
        let number = || self.class().number();
        let push = |own: &Magazine| own.push(class, self.0).then_some(());
        if threads::with_magazine(class, number, push).is_none() {
            self.push_slow();
        }
    }

    /// Pushes the slot after this thread's magazine has refused.
    #[cold]
    #[inline(never)]
    fn push_slow(self) {
        let class = self.class();
        if class.is_forked() {
            return;
        }
        if class.zero_on_recycle() {
            self.word().contents_written();
            // SAFETY: `capacity` bytes from `memory` are the slot's and mapped. The state word says
            // that there is no handle and no lease, so nothing else accesses them.
            unsafe { self.memory().write_bytes(0, class.capacity()) };
        }
        // SAFETY: the slot's hold keeps the class alive until the push.
        unsafe { threads::with_bound_magazine(self.slot().class(), |own| self.push_via(own)) };
    }

    /// Pushes the slot after `own`, the magazine of a local handle, has refused.
    #[cold]
    #[inline(never)]
    fn push_slow_local(self, own: &Magazine) {
        if !self.class().is_forked() {
            // SAFETY: the local handle unbinds the magazine before the memory ends.
            let is_bound = unsafe { self.class().bind(own) };
            self.push_via(is_bound.then_some(own));
        }
    }

    /// Pushes the slot into the caller's own magazine, which is bound to the class and may be full,
    /// or to the depot.
    fn push_via(self, own: Option<&Magazine>) {
        let class = self.slot().class();
        if own.is_some_and(|own| own.push(class, self.0) || SizeClass::spill(class, own, self.0)) {
            return;
        }
        let index = self.slot().index();
        let (free, link) = self.class().depot().parts(index);
        if !Depot::push(free, link, index) {
            self.push_or_grant();
        }
    }

    /// Grants the slot to a waiter, or drops the slot's hold on a closed pool.
    fn push_or_grant(self) {
        if self.class().is_forked() {
            return;
        }
        let head = self.class().head();
        // This hold keeps the pool alive for the rest of the hand-over: the waiter may claim the
        // slot, and drop it and the pool, while this thread still unlocks.
        // SAFETY: the slot's own hold keeps the pool alive up to the push.
        unsafe { head.as_ref() }.add_hold();
        let (holds, waker) = match self.class().push_or_grant(self.slot()) {
            Pushed::Listed => (1, None),
            Pushed::Granted(waker) => (1, waker),
            Pushed::Closed => (2, None),
        };
        // SAFETY: the hold added above, and the slot's own if the class is closed.
        unsafe { PoolHead::drop_holds(head, holds) };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Pushes a granted slot for a waiter that gives up. The slot is Free, since no claim was made.
    pub(crate) fn return_grant(slot: &Slot) {
        Self(NonNull::from(slot)).push_or_grant();
    }
}
