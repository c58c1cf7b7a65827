//! The lock of every part: taken by one locked instruction, released by a plain store, no poison.

use std::{
    cell::UnsafeCell,
    fmt, hint,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    time::Duration,
};

use crate::{
    sync::{
        AtomicU32, Ordering, light_barrier,
        plain::{self, Condvar},
    },
    sys::barrier,
};

const FREE: u32 = 0;
const HELD: u32 = 1;

/// Looks of a thread before it sleeps: most holders release sooner.
const LOOKS: u32 = if cfg!(loom) { 0 } else { 100 };

/// The sleep between two looks where the system has no barrier.
const NAP: Duration = Duration::from_millis(1);

/// A lock that keeps working after the panic of a holder.
///
/// No lock of this crate guards an invariant that user code could break half-way, because no lock
/// is held while user code runs. So there is no poison, and no check for panics on the fast path.
/// Contended waits use a lock and a condition variable of the standard library.
///
/// | state | from | to | by |
/// |---|---|---|---|
/// | `FREE` | | `HELD` | a thread that takes the lock: compare-and-swap |
/// | `HELD` | | `FREE` | the holder: plain store |
///
/// # Releasing with a plain store
///
/// An exchange in place of the store would cost 5 to 10 ns. A store alone could miss a thread
/// going to sleep at the same moment. An asymmetric barrier prevents the miss:
///
/// 1. The holder stores `FREE`, passes the light barrier, and loads `waiting`.
/// 2. A waiting thread counts itself in `waiting`, passes the heavy barrier, and tries the lock.
///
/// The holder sees the waiting thread, or the waiting thread sees `FREE`. Where the heavy barrier cannot
/// be had, a waiting thread wakes up every millisecond and tries again. Exclusion rests on the
/// compare-and-swap alone; the barrier only keeps wake-ups from being lost.
///
/// Bench row: `send`, "user space".
///
/// # Invariants
///
/// 1. The thread that changed the state from `FREE` holds the lock until it stores `FREE`, and is
///    the only one to access the value.
/// 2. `waiting` changes only while `queue` is locked. A thread waits on `freed` only while
///    counted.
#[repr(C)]
pub struct Mutex<T> {
    /// Locked between a look at the state and a sleep.
    queue: plain::Mutex<()>,
    freed: Condvar,
    /// Threads that sleep, or are about to.
    waiting: AtomicU32,
    /// Beside the value: one cache line has both.
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: shared references give the value to one thread at a time (invariant 1), as if it were
// sent.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// A free lock.
    pub fn new(value: T) -> Self {
        Self {
            state: AtomicU32::new(FREE),
            waiting: AtomicU32::new(0),
            queue: plain::Mutex::new(()),
            freed: Condvar::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// Waits until the lock is free, and takes it.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        if !self.try_take() {
            self.wait();
        }
        MutexGuard { mutex: self, _owner: PhantomData }
    }

    #[inline(always)]
    fn try_take(&self) -> bool {
        // Acquire: partner of the Release in `release`, for the last holder's accesses. Relaxed
        // (failure): nothing is read.
        self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn wait(&self) {
        let mut looks = LOOKS;
        while looks > 0 {
            // Relaxed: a hint.
            if self.state.load(Ordering::Relaxed) == FREE && self.try_take() {
                return;
            }
            hint::spin_loop();
            looks -= 1;
        }
        let mut queue = plain::lock(&self.queue);
        // Relaxed: the barrier orders it; partner of the load in `release`.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let nap = if barrier::try_heavy() { None } else { Some(NAP) };
        while !self.try_take() {
            queue = plain::wait(&self.freed, queue, nap);
        }
        // Relaxed: `queue` is locked (invariant 2).
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    #[inline(always)]
    fn release(&self) {
        // Release: partner of the Acquire in `try_take`.
        self.state.store(FREE, Ordering::Release);
        light_barrier();
        // Relaxed: the barrier orders it; partner of the count in `wait`.
        if self.waiting.load(Ordering::Relaxed) != 0 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // A thread that has seen the lock held, and has `queue`, sleeps once `queue` is free.
        drop(plain::lock(&self.queue));
        self.freed.notify_one();
    }
}

/// The right to the value of a [`Mutex`]. Dropping the guard releases the lock.
pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    /// A guard is `Send` and `Sync` where `&mut T` is.
    _owner: PhantomData<&'a mut T>,
}

#[cfg(not(loom))]
impl<'a, T> MutexGuard<'a, T> {
    /// The lock.
    pub(crate) fn mutex(&self) -> &'a Mutex<T> {
        self.mutex
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard's owner holds the lock (invariant 1).
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; the guard is borrowed mutably.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.mutex.release();
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MutexGuard").finish_non_exhaustive()
    }
}
