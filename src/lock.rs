//! The lock of every part, and its substitute in models.

#[allow(unsafe_code)]
pub(crate) mod mutex;

#[cfg(loom)]
pub(crate) use modelled::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use mutex::{Mutex, MutexGuard};

/// Waits until a lock is free, and takes it.
#[inline(always)]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

/// Takes a lock if the lock is free.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    mutex.try_lock()
}

#[cfg(loom)]
mod modelled {
    use std::ops::{Deref, DerefMut};

    use crate::sync::plain;

    /// loom's own lock, with fewer interleavings, for all models but those of the lock itself.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(plain::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(plain::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard { mutex: self, guard: Some(self.0.lock().unwrap()) }
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok().map(|guard| MutexGuard { mutex: self, guard: Some(guard) })
        }
    }

    #[derive(Debug)]
    pub(crate) struct MutexGuard<'a, T> {
        mutex: &'a Mutex<T>,
        /// `None` only while unlocked.
        guard: Option<plain::MutexGuard<'a, T>>,
    }

    impl<T> MutexGuard<'_, T> {
        pub(crate) fn unlocked<R>(&mut self, body: impl FnOnce() -> R) -> R {
            self.guard = None;
            let result = body();
            self.guard = Some(self.mutex.0.lock().unwrap());
            result
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.guard.as_ref().unwrap()
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.guard.as_mut().unwrap()
        }
    }
}
