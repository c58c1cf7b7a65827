//! The end of a call that is left to the next thread that takes a lock.

use crate::{
    sync::{AtomicU32, Ordering, light_barrier},
    sys::barrier,
};

const NO: u32 = 0;
const YES: u32 = 1;

/// Leaves the bookkeeping of a finished call to the next thread that takes the lock: as a rule the
/// same thread, with its next call. So a call costs one locked instruction, not two.
///
/// | word | from | to | by |
/// |---|---|---|---|
/// | `done` | `NO` | `YES` | the caller, without the lock, after the call |
/// | `met` | `NO` | `YES` | a thread that has the lock and finds the call out |
/// | both | | `NO` | the caller, with the lock, before the call |
///
/// 1. The caller stores `done`, passes the light barrier, and loads `met`. If that is `NO`, it is
///    through. Else it takes the lock and tells of the end itself, unless it was settled.
/// 2. A thread that has the lock and finds the call out loads `done`. If that is `NO`, it stores
///    `met`, passes the heavy barrier, and loads `done` again. If `done` is `YES`, it settles the
///    call.
///
/// One of the two loads sees the other thread's store, so the end is never lost. Both may see it:
/// then the thread that has the lock settles the call, and the caller finds it settled.
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
        // Relaxed, both: other threads look at them with the lock, which orders that.
        self.done.store(NO, Ordering::Relaxed);
        self.met.store(NO, Ordering::Relaxed);
    }

    /// The call is over. Returns `true` if the caller is through with it.
    #[inline(always)]
    pub(crate) fn leave(&self) -> bool {
        // Release: partner of the Acquire in `is_done`, for the call, which comes before any proof
        // that nothing is in flight.
        self.done.store(YES, Ordering::Release);
        light_barrier();
        // Relaxed: the barrier orders it; partner of the store in `meet`.
        self.met.load(Ordering::Relaxed) == NO
    }

    /// Returns `true` if the call is over. The thread that asks holds the lock.
    #[inline(always)]
    pub(crate) fn is_done(&self) -> bool {
        // Acquire: partner of the Release in `leave`.
        self.done.load(Ordering::Acquire) == YES
    }

    /// Finds the call out, holding the lock. Returns `true` if it is over; else the caller will tell
    /// of its end.
    #[cold]
    pub(crate) fn meet(&self) -> bool {
        // Relaxed: the barrier orders it; partner of the load in `leave`.
        self.met.store(YES, Ordering::Relaxed);
        barrier::heavy();
        self.is_done()
    }
}
