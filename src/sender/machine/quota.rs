//! The pools of a sender's buffers: their quotas, and which pools know the sender.

use super::cold::Lazy;
use crate::{lease::Memory, raw::PoolHead};

/// Leases on slots of each pool that has a quota.
///
/// Each sender keeps its own count, because only senders know their leases. A pool without a lease
/// here lets any number in, so no quota can stop a sender.
#[derive(Default)]
pub(super) struct Quotas(Lazy<Vec<Held>>);

/// Number of a pool, and the leases on its slots.
type Held = (u64, usize);

impl Quotas {
    /// Returns `true` if no pool with a quota was ever met.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.get().is_none()
    }

    /// Counts a lease.
    #[cold]
    pub(super) fn hold(&mut self, memory: &impl Memory) {
        if let Some(pool) = with_quota(memory) {
            let held = self.0.make();
            match held.iter_mut().find(|(id, _)| *id == pool.id()) {
                Some((_, count)) => *count += 1,
                None => held.push((pool.id(), 1)),
            }
        }
    }

    /// Ends [`hold`](Self::hold).
    #[inline]
    pub(super) fn release(&mut self, memory: &impl Memory) {
        if let Some(held) = self.0.get_mut()
            && let Some(pool) = with_quota(memory)
            && let Some((_, count)) = held.iter_mut().find(|(id, _)| *id == pool.id())
        {
            *count -= 1;
        }
    }

    /// Returns `true` if the quotas of the pools let buffers in. `bufs`: the pool's number and
    /// quota of each buffer.
    pub(super) fn allow(&self, bufs: impl Iterator<Item = (u64, Option<usize>)> + Clone) -> bool {
        let held = self.0.get().map_or(&[][..], Vec::as_slice);
        held.iter().filter(|(_, held)| *held > 0).all(|(id, held)| {
            let mut of_pool = bufs.clone().filter(|(pool, _)| pool == id);
            let quota = of_pool.next().and_then(|(_, quota)| quota);
            quota.is_none_or(|quota| held + 1 + of_pool.count() <= quota)
        })
    }
}

/// The pool of a piece of memory, if the pool has a quota.
#[inline]
pub(super) fn with_quota(memory: &impl Memory) -> Option<&PoolHead> {
    memory.pool().filter(|pool| pool.sender_quota().is_some())
}

/// Pools that a sender remembers as registered.
const MAX_KNOWN: usize = 8;

/// The pools with which a sender is registered.
#[derive(Default)]
pub(crate) struct KnownPools {
    /// The last pool, and the pools before. The numbers of pools begin with 1.
    last: u64,
    earlier: Lazy<Vec<u64>>,
}

impl KnownPools {
    /// Returns `true` if a pool does not know the sender yet, and enters the pool.
    #[inline(always)]
    pub(crate) fn is_new(&mut self, pool: u64) -> bool {
        self.last != pool && self.is_new_after_the_last(pool)
    }

    #[cold]
    fn is_new_after_the_last(&mut self, pool: u64) -> bool {
        if self.earlier.get().is_some_and(|earlier| earlier.contains(&pool)) {
            return false;
        }
        let last = std::mem::replace(&mut self.last, pool);
        if last != 0 {
            let earlier = self.earlier.make();
            // A pool forgotten here still knows the sender, and is told again by the next buffer.
            if earlier.len() == MAX_KNOWN - 1 {
                earlier.remove(0);
            }
            earlier.push(last);
        }
        true
    }
}
