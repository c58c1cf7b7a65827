//! The lock of every part, and its substitute in models.

pub(crate) mod left;
#[allow(unsafe_code)]
pub(crate) mod mutex;

#[cfg(loom)]
pub(crate) use modelled::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use mutex::{Mutex, MutexGuard};

use crate::sync::plain;

/// Waits until a lock is free, and takes it.
#[inline(always)]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

/// Lets threads wait for a change of what a lock guards.
///
/// The thread that makes the change holds the lock, and calls [`notify_all`](Self::notify_all)
/// before the release. A waiting thread looks again with the lock.
pub(crate) struct Condition {
    /// Locked from before the release of the lock until the sleep.
    queue: plain::Mutex<()>,
    changed: plain::Condvar,
}

impl Condition {
    pub(crate) fn new() -> Self {
        Self { queue: plain::Mutex::new(()), changed: plain::Condvar::new() }
    }

    /// Releases the lock, sleeps until a change or without a reason, and takes the lock again.
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let mutex = guard.mutex();
        let queue = plain::lock(&self.queue);
        drop(guard);
        drop(plain::wait(&self.changed, queue, None));
        mutex.lock()
    }

    /// Wakes all waiting threads. The caller holds the lock.
    #[cold]
    pub(crate) fn notify_all(&self) {
        // A thread that released the lock to wait sleeps once `queue` is free.
        drop(plain::lock(&self.queue));
        self.changed.notify_all();
    }
}

#[cfg(loom)]
mod modelled {
    use std::ops::{Deref, DerefMut};

    use crate::sync::plain;

    /// loom's own lock, with fewer interleavings, for all models except the models of the lock.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(plain::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(plain::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard { mutex: self, guard: self.0.lock().unwrap() }
        }
    }

    #[derive(Debug)]
    pub(crate) struct MutexGuard<'a, T> {
        mutex: &'a Mutex<T>,
        guard: plain::MutexGuard<'a, T>,
    }

    impl<'a, T> MutexGuard<'a, T> {
        pub(crate) fn mutex(&self) -> &'a Mutex<T> {
            self.mutex
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            &self.guard
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            &mut self.guard
        }
    }
}
