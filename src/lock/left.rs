//! The end of a call that is left to the next thread that takes a lock.

use crate::{
    sync::{AtomicU32, Ordering, light_barrier},
    sys::barrier,
};

const NO: u32 = 0;
const YES: u32 = 1;

/// Leaves the bookkeeping of a finished call to the next thread with the lock: usually the same
/// thread, for the next call. So a call costs one locked instruction, not two.
///
/// | word | from | to | by |
/// |---|---|---|---|
/// | `done` | `NO` | `YES` | the caller, without the lock, after the call |
/// | `met` | `NO` | `YES` | a thread with the lock that finds the call out |
/// | both | | `NO` | the caller, with the lock, before the call |
///
/// 1. The caller stores `done`, passes the light barrier, and loads `met`. With `NO` the caller is
///    through. With `YES` the caller takes the lock and tells of the end, unless the call is settled.
/// 2. A thread with the lock that finds the call out loads `done`. With `NO` the thread stores
///    `met`, passes the heavy barrier, and loads `done` again. With `YES` the thread settles the
///    call.
///
/// At least one load sees the opposite store, so the end is never lost. If both do, the thread with
/// the lock settles the call, and the caller finds the call settled.
///
/// Bench row: `send`, "user space".
#[derive(Default)]
pub(crate) struct LeftCall {
    done: AtomicU32,
    met: AtomicU32,
}

impl LeftCall {
    /// A call is about to be made. The caller holds the lock.
    #[inline(always)]
    pub(crate) fn arm(&self) {
        // Relaxed, both: every other access is with the lock, or by this thread.
        self.done.store(NO, Ordering::Relaxed);
        self.met.store(NO, Ordering::Relaxed);
    }

    /// The call is over. Returns `true` if the caller is through.
    #[inline(always)]
    pub(crate) fn leave(&self) -> bool {
        // Release: partner of the Acquire in `is_done`. The call comes before any proof that nothing
        // is in flight.
        self.done.store(YES, Ordering::Release);
        light_barrier();
        // Relaxed: the barrier orders this load; partner of the store in `meet`.
        self.met.load(Ordering::Relaxed) == NO
    }

    /// Returns `true` if the call is over. The asking thread holds the lock.
    #[inline(always)]
    pub(crate) fn is_done(&self) -> bool {
        // Acquire: partner of the Release in `leave`.
        self.done.load(Ordering::Acquire) == YES
    }

    /// Finds the call out, holding the lock. Returns `true` if the call is over; otherwise the caller
    /// will tell of the end.
    #[cold]
    pub(crate) fn meet(&self) -> bool {
        // Relaxed: the barrier orders this store; partner of the load in `leave`.
        self.met.store(YES, Ordering::Relaxed);
        barrier::heavy();
        self.is_done()
    }
}
