//! The end of a call that nobody holds a lock for.

use crate::sync::{AtomicU32, Ordering};

/// No call is under way, or its sender sees to its end himself, under the lock.
const NOBODYS: u32 = 0;
/// A call is under way that nobody has come upon so far.
const UNSEEN: u32 = 1;
/// It took all, and whoever comes upon it settles it.
const LEFT: u32 = 2;

/// How a send leaves what is to be done after its call to whoever has the lock of what is in flight
/// next: as a rule the next send, before its own call. So it takes that lock once, not twice.
///
/// # Invariants
///
/// 1. `NOBODYS` becomes `UNSEEN`, and anything `NOBODYS`, by the hands of who has that lock;
///    `UNSEEN` becomes `LEFT` by the sender's, who has that of the sends.
#[derive(Default)]
pub(super) struct UnderWay(AtomicU32);

impl UnderWay {
    /// A call is about to be made, of a lease that is entered. The caller has both locks.
    #[inline(always)]
    pub(super) fn begin(&self) {
        // Relaxed: others look at it under the lock, which orders that.
        self.0.store(UNSEEN, Ordering::Relaxed);
    }

    /// The call took all. Whether its sender is through with it: if somebody has come upon it
    /// meanwhile, he may have met its note, and it is the sender's to settle.
    #[inline(always)]
    pub(super) fn leave(&self) -> bool {
        // Release: partner of the Acquire in `take`, for the call, which comes before any proof
        // that nothing is in flight. Relaxed (failure): the lock is taken next.
        self.0.compare_exchange(UNSEEN, LEFT, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Comes upon the call, if there is one, having just taken the lock. Whether it is to be
    /// settled.
    #[inline(always)]
    pub(super) fn take(&self) -> bool {
        // Acquire, both: partner of the Release in `leave`.
        match self.0.load(Ordering::Acquire) {
            NOBODYS => return false,
            // Relaxed: the sender is through with it, and the lock is held (invariant 1).
            LEFT => self.0.store(NOBODYS, Ordering::Relaxed),
            _ => return self.0.swap(NOBODYS, Ordering::Acquire) == LEFT,
        }
        true
    }
}
