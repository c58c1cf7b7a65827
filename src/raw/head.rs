//! The part of a pool below its size classes and slots.

use std::{fmt, ptr::NonNull};

use super::{reclaim::Reclaim, region::Region, replaced::ReplacedBytes};
use crate::{
    lock::{Mutex, lock},
    sync::{Arc, AtomicUsize, Ordering, Weak, unique_id},
};

/// The head of a pool: identity, lifetime, memory, and the holders of slots in flight. Lies at the
/// start of the pool's own allocation.
///
/// # Invariants
///
/// 1. `holds` is the sum of: 1 for the pool's handle, 1 for each slot, wherever the slot is, and 1
///    for each thread that hands a slot to a waiter or unbinds a magazine. While the handle lives,
///    no alloc and no recycle touches the count. Closing the pool drops the handle's hold and those
///    of the free slots, in magazines too; from then on each slot that is recycled drops its own.
///    The thread that brings the count to 0 frees the pool.
/// 2. Apart from that the pool is only used through shared references.
pub struct PoolHead {
    id: u64,
    holds: AtomicUsize,
    /// Frees the pool of this head.
    free: unsafe fn(NonNull<PoolHead>),
    reclaim: Mutex<Vec<Weak<dyn Reclaim>>>,
    pub(super) replaced: ReplacedBytes,
    sender_quota: Option<usize>,
    region: Region,
}

impl PoolHead {
    /// The head of a new pool of `slots` slots, which `free` frees after the last hold is dropped.
    pub(super) fn new(
        slots: usize,
        free: unsafe fn(NonNull<Self>),
        sender_quota: Option<usize>,
        region: Region,
    ) -> Self {
        Self {
            id: unique_id(),
            holds: AtomicUsize::new(slots + 1),
            free,
            reclaim: Mutex::default(),
            replaced: ReplacedBytes::new(region.report().bytes),
            sender_quota,
            region,
        }
    }

    /// A number of this pool alone in the process, for good.
    #[inline]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The limit of slots in flight for each sender.
    #[inline]
    pub fn sender_quota(&self) -> Option<usize> {
        self.sender_quota
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// The bytes of former pages in the hands of the kernel.
    pub fn replaced_bytes(&self) -> usize {
        self.replaced.get()
    }

    /// Registers a holder of slots in flight. A second registration of the same holder changes
    /// nothing, and dropped holders are pruned.
    ///
    /// After this the caller looks whether a waiter needs such a slot; see [`Reclaim`].
    pub fn register(&self, reclaim: Weak<dyn Reclaim>) {
        let mut registered = lock(&self.reclaim);
        if registered.len() == registered.capacity() {
            registered.retain(|known| known.strong_count() > 0);
            registered.sort_unstable_by_key(|known| known.as_ptr().addr());
            registered.dedup_by(|one, other| one.ptr_eq(other));
            // Shrink after a burst: a weak reference keeps the allocation of a dropped holder.
            let room = (2 * registered.len()).max(4);
            registered.shrink_to(room);
        }
        registered.push(reclaim);
    }

    /// All living registered holders. The list is a copy, so that no holder runs under the lock.
    pub(crate) fn reclaimers(&self) -> Vec<Arc<dyn Reclaim>> {
        lock(&self.reclaim).iter().filter_map(Weak::upgrade).collect()
    }

    /// Adds a hold, to be dropped with [`drop_holds`](Self::drop_holds).
    pub(super) fn add_hold(&self) {
        // Relaxed: another hold is alive, as the caller knows.
        self.holds.fetch_add(1, Ordering::Relaxed);
    }

    /// Drops `holds` of the pool's holds, and frees the pool with the last one.
    ///
    /// # Safety
    ///
    /// The caller has that many holds (invariant 1), and does not use them any more. Without a
    /// further hold, the caller does not touch the pool or a slot of the pool again. The pointer is
    /// derived from the one to the whole pool.
    pub(super) unsafe fn drop_holds(head: NonNull<Self>, holds: usize) {
        // SAFETY: the caller's holds keep the pool alive until the subtraction. This is a reference
        // to the count alone, because another thread may free the pool right afterwards.
        let count = unsafe { &(*head.as_ptr()).holds };
        // AcqRel: Release partners with the Acquire of the thread that brings the count to 0. So
        // freeing the pool comes after the last access of every thread.
        if count.fetch_sub(holds, Ordering::AcqRel) == holds {
            // SAFETY: no hold is left, and only one thread sees the count reach 0: nothing else
            // uses the pool.
            let free = unsafe { head.as_ref() }.free;
            // SAFETY: as above; `free` is for this pointer.
            unsafe { free(head) };
        }
    }
}

impl fmt::Debug for PoolHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolHead")
            .field("id", &self.id)
            .field("region", self.region.report())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{backing::Backing, sys::memory::Supply};

    fn head() -> PoolHead {
        let region = Region::map(4096, Backing::default(), Supply::default()).unwrap();
        PoolHead::new(1, |_| {}, None, region)
    }

    #[test]
    fn every_pool_has_a_number_of_its_own_and_prints_it() {
        let heads = [head(), head()];
        assert_ne!(heads[0].id(), heads[1].id());
        for head in heads {
            let printed = format!("{head:?}");
            assert!(printed.contains(&head.id().to_string()), "{printed}");
        }
    }

    #[test]
    fn the_pool_knows_living_holders_once_and_prunes_the_others() {
        struct Holder(#[expect(dead_code, reason = "so that each lies at a place of its own")] u8);

        impl Reclaim for Holder {
            fn drive(&self) {}

            fn watch(self: Arc<Self>) -> bool {
                true
            }
        }

        let head = head();
        let kept = [(); 2].map(|()| Arc::new(Holder(0)));
        let enter = |holder: &Arc<Holder>| {
            let holder: Weak<Holder> = Arc::downgrade(holder);
            head.register(holder);
        };
        let crowd: Vec<_> = (0..1000).map(|_| Arc::new(Holder(0))).collect();
        crowd.iter().for_each(enter);
        assert_eq!(head.reclaimers().len(), crowd.len());
        drop(crowd);
        for _ in 0..1000 {
            head.register(Weak::<Holder>::new());
            kept.iter().for_each(enter);
        }
        assert!(lock(&head.reclaim).len() < 10);
        let mut known: Vec<_> =
            head.reclaimers().iter().map(|known| Arc::as_ptr(known).addr()).collect();
        known.sort_unstable();
        known.dedup();
        assert_eq!(known.len(), 2);
    }
}
