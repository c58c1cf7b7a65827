//! Former pages of slots in the hands of the kernel.

use crate::sync::{Arc, AtomicUsize, Ordering};

/// The number of bytes of a pool's former pages that the kernel still holds.
#[derive(Clone, Debug)]
pub(crate) struct ReplacedBytes {
    held: Arc<AtomicUsize>,
    most: usize,
}

impl ReplacedBytes {
    /// 0, for a pool of `pool_bytes`, of which the kernel may hold a quarter at once.
    pub(crate) fn new(pool_bytes: usize) -> Self {
        Self { held: Arc::default(), most: pool_bytes / 4 }
    }

    /// The bytes held now.
    pub(crate) fn get(&self) -> usize {
        // Relaxed: a statistic.
        self.held.load(Ordering::Relaxed)
    }

    /// Counts `bytes` more, if the bound allows that.
    pub(crate) fn add(&self, bytes: usize) -> Option<Replaced> {
        let add = |held: usize| held.checked_add(bytes).filter(|held| *held <= self.most);
        // Relaxed, both: nothing is published with the number.
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Replaced { bytes, held: Arc::clone(&self.held) })
    }
}

/// Former pages in the hands of the kernel; new pages are at their address.
///
/// Drop the value with the proof that the kernel has released the pages. Forget the value if no
/// proof can come any more. Nothing but a counter is kept alive.
#[derive(Debug)]
#[must_use = "a drop means that the kernel has released the pages"]
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
