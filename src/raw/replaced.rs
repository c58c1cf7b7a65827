//! Pages taken out from under an address while the kernel still holds them.

use crate::sync::{Arc, AtomicUsize, Ordering};

/// How many bytes of a pool's former pages the kernel still holds, beyond the pool's own.
#[derive(Clone, Debug)]
pub(crate) struct ReplacedBytes {
    held: Arc<AtomicUsize>,
    most: usize,
}

impl ReplacedBytes {
    /// None so far, for a pool of so many bytes: a quarter of it may be held at once.
    pub(crate) fn new(pool_bytes: usize) -> Self {
        Self { held: Arc::default(), most: pool_bytes / 4 }
    }

    /// Bytes held now.
    pub(crate) fn get(&self) -> usize {
        // Relaxed: a statistic.
        self.held.load(Ordering::Relaxed)
    }

    /// Counts so many bytes more, if that is not too much.
    pub(crate) fn add(&self, bytes: usize) -> Option<Replaced> {
        let add = |held: usize| held.checked_add(bytes).filter(|held| *held <= self.most);
        // Relaxed, both: only the number matters, nothing is published with it.
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Replaced { bytes, held: Arc::clone(&self.held) })
    }
}

/// Stands for pages that the kernel holds though their address has new ones.
///
/// To be dropped when the kernel is proven to have let go of them, and forgotten when no proof can
/// come any more. Keeps nothing alive but a counter.
#[derive(Debug)]
#[must_use = "dropping it says that the kernel has let go of the pages"]
pub struct Replaced {
    bytes: usize,
    held: Arc<AtomicUsize>,
}

impl Drop for Replaced {
    fn drop(&mut self) {
        // Relaxed: as in `add`.
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
