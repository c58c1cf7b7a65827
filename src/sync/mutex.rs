//! The lock of every part: one exchange to take it, one to let go of it, and no poison.

use std::{
    cell::UnsafeCell,
    fmt, hint,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use super::{
    AtomicU32, Ordering,
    plain::{self, Condvar},
};

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and somebody may sleep until it is free.
const WAITED_FOR: u32 = 2;

/// How often a thread looks again before it sleeps: most holders are through sooner.
const LOOKS: u32 = if cfg!(loom) { 0 } else { 100 };

/// A lock that goes on with the data of a thread that panicked: none here guards an invariant that
/// user code could break half-way, since none is held while user code runs.
///
/// The standard library's asks twice a round whether the thread panics, for the sake of others who
/// would want to know. Threads that have to wait do so by its means.
///
/// # Invariants
///
/// 1. Whoever changed the state from `FREE` holds the lock until he sets it back, and alone
///    accesses the value.
/// 2. A thread sleeps only while the state is `WAITED_FOR`, which it has set, holding `queue`.
#[repr(C)]
pub struct Mutex<T> {
    /// Between a look at the state and a sleep.
    queue: plain::Mutex<()>,
    freed: Condvar,
    /// Beside the value: who comes for that has both in one cache line.
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
            queue: plain::Mutex::new(()),
            freed: Condvar::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// Waits until the lock is free, and takes it.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.take();
        MutexGuard { mutex: self, _owner: PhantomData }
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.try_take().then(|| MutexGuard { mutex: self, _owner: PhantomData })
    }

    #[inline(always)]
    fn try_take(&self) -> bool {
        // Acquire: partner of the Release in `let_go`, for what the last holder did. Relaxed
        // (failure): nothing is read.
        self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline(always)]
    fn take(&self) {
        if !self.try_take() {
            self.wait();
        }
    }

    #[cold]
    fn wait(&self) {
        let mut looks = LOOKS;
        // Relaxed: a hint.
        while looks > 0 && self.state.load(Ordering::Relaxed) == HELD {
            hint::spin_loop();
            looks -= 1;
        }
        let mut queue = plain::lock(&self.queue);
        // Acquire: as in `try_take`. Who takes it here does not know whether others wait too, so he
        // leaves it at that.
        while self.state.swap(WAITED_FOR, Ordering::Acquire) != FREE {
            queue = plain::wait(&self.freed, queue);
        }
    }

    #[inline(always)]
    fn let_go(&self) {
        // Release: partner of the Acquire in `try_take` and `wait`.
        if self.state.swap(FREE, Ordering::Release) == WAITED_FOR {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // Who has seen the lock held and has `queue` is asleep once this thread gets that.
        drop(plain::lock(&self.queue));
        self.freed.notify_one();
    }
}

/// The right to the value of a [`Mutex`]. Dropping it lets go of the lock.
pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    /// It goes to other threads, and is shared with them, where `&mut T` may.
    _owner: PhantomData<&'a mut T>,
}

impl<T> MutexGuard<'_, T> {
    /// Lets go of the lock for the time of a call.
    #[inline(always)]
    pub fn unlocked<R>(&mut self, body: impl FnOnce() -> R) -> R {
        struct Retake<'a, T>(&'a Mutex<T>);
        impl<T> Drop for Retake<'_, T> {
            #[inline(always)]
            fn drop(&mut self) {
                self.0.take();
            }
        }
        self.mutex.let_go();
        // Also when the call panics: the guard is dropped after that.
        let _retake = Retake(self.mutex);
        body()
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard's owner holds the lock (invariant 1), but during `unlocked`, which
        // borrows the guard mutably.
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
        self.mutex.let_go();
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
