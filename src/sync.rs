//! The only file that names `std::sync`, `std::thread`, loom or `crossbeam::utils`.
//!
//! Under `cfg(loom)` models explore the types of loom. `Arc` and `Weak` are the standard library's
//! in both builds: loom has no `Weak`, and no memory ordering of this crate depends on them.

pub(crate) use std::{
    sync::{Arc, OnceLock, Weak},
    thread::panicking,
};

#[cfg(not(loom))]
mod imp {
    pub(crate) use crossbeam::utils::CachePadded;
    #[cfg(not(miri))]
    pub(crate) use std::sync::atomic::compiler_fence;
    #[cfg(miri)]
    pub(crate) use std::sync::atomic::fence;
    pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
    pub(crate) use std::thread::yield_now;
    use std::{thread, time::Duration};

    /// A static with a value per thread.
    macro_rules! per_thread {
        ($(#[$attribute:meta])* static $name:ident: $kind:ty = $value:expr;) => {
            thread_local! {
                $(#[$attribute])*
                static $name: $kind = const { $value };
            }
        };
    }
    pub(crate) use per_thread;

    /// Puts its creating thread to sleep, and wakes the thread. A wake-up before the sleep is kept.
    #[derive(Debug)]
    pub(crate) struct Parker(thread::Thread);

    impl Parker {
        pub(crate) fn new() -> Self {
            Self(thread::current())
        }

        /// Sleeps until unparked or timed out; may end early.
        pub(crate) fn park(&self, limit: Option<Duration>) {
            debug_assert_eq!(self.0.id(), thread::current().id());
            match limit {
                Some(limit) => thread::park_timeout(limit),
                None => thread::park(),
            }
        }

        pub(crate) fn unpark(&self) {
            self.0.unpark();
        }
    }

    /// The contents of a buffer, for models. Nothing in this build.
    #[derive(Debug, Default)]
    pub(crate) struct Witness(());

    impl Witness {
        #[inline(always)]
        pub(crate) fn read(&self) {}

        #[inline(always)]
        pub(crate) fn write(&self) {}
    }
}

#[cfg(loom)]
mod imp {
    use loom::sync::Notify;
    pub(crate) use loom::sync::atomic::{
        AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub(crate) use loom::thread::yield_now;
    use std::{ops::Deref, time::Duration};

    macro_rules! per_thread {
        ($(#[$attribute:meta])* static $name:ident: $kind:ty = $value:expr;) => {
            loom::thread_local! {
                $(#[$attribute])*
                static $name: $kind = $value;
            }
        };
    }
    pub(crate) use per_thread;

    /// A `Notify`, because a thread of loom loses a wake-up while blocked on a mutex.
    #[derive(Debug)]
    pub(crate) struct Parker(Notify);

    impl Parker {
        pub(crate) fn new() -> Self {
            Self(Notify::new())
        }

        /// Models have no clock: a limited sleep may end at once.
        pub(crate) fn park(&self, limit: Option<Duration>) {
            match limit {
                Some(_) => yield_now(),
                None => self.0.wait(),
            }
        }

        pub(crate) fn unpark(&self) {
            self.0.notify();
        }
    }

    /// Padding means nothing to a model.
    #[derive(Debug, Default)]
    pub(crate) struct CachePadded<T>(T);

    impl<T> CachePadded<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(value)
        }
    }

    impl<T> Deref for CachePadded<T> {
        type Target = T;
        fn deref(&self) -> &T {
            &self.0
        }
    }

    /// The contents of a buffer. loom fails the model if a write is not ordered before or after every
    /// other access.
    #[derive(Debug, Default)]
    pub(crate) struct Witness(loom::cell::UnsafeCell<()>);

    impl Witness {
        pub(crate) fn read(&self) {
            self.0.with(|_| ());
        }

        pub(crate) fn write(&self) {
            self.0.with_mut(|_| ());
        }
    }
}

pub(crate) use imp::*;
pub(crate) use unmodelled::{sleep, spawn, unique_id};

/// The light half of [`heavy`](crate::sys::barrier::heavy), between a store and a load. Threads
/// with the heavy half store to the loaded place, and load from the stored place.
#[inline(always)]
pub(crate) fn light_barrier() {
    // SeqCst: partner of the heavy half: one of the two loads sees the peer's store. A compiler
    // fence is enough where the heavy half makes all processors pass a barrier.
    #[cfg(not(any(loom, miri)))]
    compiler_fence(Ordering::SeqCst);
    #[cfg(any(loom, miri))]
    fence(Ordering::SeqCst);
}

/// The parts of [`lock::mutex::Mutex`](crate::lock::mutex::Mutex).
pub(crate) mod plain {
    #[cfg(loom)]
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
    #[cfg(not(loom))]
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
    use std::{sync::PoisonError, time::Duration};

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a wake-up, or for the end of `limit`. A model has no clock, and no limits.
    pub(crate) fn wait<'a, T>(
        condition: &Condvar,
        guard: MutexGuard<'a, T>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, T> {
        match limit {
            #[cfg(not(loom))]
            Some(limit) => {
                condition.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0
            }
            _ => condition.wait(guard).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// Calls outside the models.
pub(crate) mod unmodelled {
    #![allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "loom's atomics cannot live in a static, and the reaper is no part of a model"
    )]
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    pub(crate) use std::sync::atomic::{AtomicPtr as StaticPtr, AtomicU64 as StaticU64};

    /// A flag in a static, set for good. A lock of the user's orders the calls.
    pub(crate) struct Flag(AtomicBool);

    impl Flag {
        pub(crate) const fn new() -> Self {
            Self(AtomicBool::new(false))
        }

        pub(crate) fn set(&self) {
            // Relaxed: nothing is published with the flag.
            self.0.store(true, Ordering::Relaxed);
        }

        pub(crate) fn is_set(&self) -> bool {
            // Relaxed: as in `set`.
            self.0.load(Ordering::Relaxed)
        }
    }

    /// A number that is new for each call in this process.
    pub(crate) fn unique_id() -> u64 {
        // 0 is never returned.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: nothing is published with the numbers.
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Consecutive numbers for size classes.
    pub(crate) fn next_class() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: as in `unique_id`.
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Starts a thread without a handle to join.
    pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        std::thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
    }

    /// Sleeps for a time.
    pub(crate) fn sleep(time: std::time::Duration) {
        std::thread::sleep(time);
    }
}
