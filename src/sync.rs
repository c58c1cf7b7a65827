//! The only file that names `std::sync`, `std::thread`, loom or `crossbeam::utils`.
//!
//! Under `cfg(loom)` everything that a model explores is loom's. `Arc` and `Weak` are the standard
//! library's in both builds: loom has no `Weak`, and no memory ordering of ours rests on them.

pub(crate) use std::sync::{Arc, OnceLock, Weak};

#[cfg(not(loom))]
mod imp {
    pub(crate) use crossbeam::utils::CachePadded;
    pub(crate) use std::{
        sync::{
            Mutex, MutexGuard,
            atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
        },
        thread,
    };
}

#[cfg(loom)]
mod imp {
    pub(crate) use loom::{
        sync::{
            Mutex, MutexGuard,
            atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
        },
        thread,
    };

    /// Padding means nothing to a model.
    #[derive(Debug, Default)]
    pub(crate) struct CachePadded<T>(T);

    impl<T> CachePadded<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(value)
        }
    }

    impl<T> std::ops::Deref for CachePadded<T> {
        type Target = T;
        fn deref(&self) -> &T {
            &self.0
        }
    }
}

pub(crate) use imp::*;

/// Locks, and goes on with the data of a thread that panicked: no lock here guards an invariant
/// that user code could break half-way, since none is held while user code runs.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Locks if nobody else has the lock.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(std::sync::TryLockError::WouldBlock) => None,
    }
}
