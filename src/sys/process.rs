//! Which process this is: a forked child inherits everything, and must leave it alone.

#![cfg_attr(
    loom,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "models have one process, and loom's atomics cannot live in a static"
    )
)]

use std::ptr;

use super::memory::WipedOnFork;
use crate::sync::{
    Ordering,
    unmodelled::{StaticPtr, StaticU64},
};

/// The process that made something.
///
/// The kernel wipes a page when a process forks (`MADV_WIPEONFORK`). It holds the number of the
/// process, so that the question whether this is still the same one costs two loads. A handler of
/// `pthread_atfork` would do too, but for children made by `clone(2)` directly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Process(u64);

/// Where the number stands: `NOWHERE`, then for good a page that is wiped on fork, or `STAND_IN`.
static COOKIE: StaticPtr<StaticU64> = StaticPtr::new((&raw const NOWHERE).cast_mut());
/// Stands in for the page until one has been looked for. Stays 0.
static NOWHERE: StaticU64 = StaticU64::new(0);
/// Stands in for the page where none can be had.
static STAND_IN: StaticU64 = StaticU64::new(0);

impl Process {
    /// This process.
    pub(crate) fn this() -> Self {
        static LAST: StaticU64 = StaticU64::new(0);
        if ptr::eq(cookie(), &NOWHERE) {
            prepare();
        }
        // Relaxed, all three: only the numbers matter. A child has its parent's last number, so
        // those of a process and its ancestors differ.
        match cookie().load(Ordering::Relaxed) {
            0 => {
                let own = LAST.fetch_add(1, Ordering::Relaxed) + 1;
                let set = cookie().compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed);
                Self(set.map_or_else(|other| other, |_| own))
            }
            own => Self(own),
        }
    }

    /// Whether this is that process, and not one forked from it.
    #[inline(always)]
    pub(crate) fn is_this(self) -> bool {
        // Models and interpreters do not fork.
        // Relaxed: the wiping came before everything that this process did.
        cfg!(any(loom, miri)) || cookie().load(Ordering::Relaxed) == self.0
    }
}

#[inline(always)]
fn cookie() -> &'static StaticU64 {
    // Acquire: partner of the Release in `prepare`.
    let cookie = COOKIE.load(Ordering::Acquire);
    // SAFETY: it points to a static, or to the start of a page of numbers that is never unmapped;
    // both are accessed as this type only.
    unsafe { &*cookie }
}

/// Finds a place for the number. Several threads may do so at once, and the first one is heeded:
/// under a lock, a child forked meanwhile would wait for a thread that it does not have.
fn prepare() {
    let page = wiped_on_fork();
    let place = match &page {
        Some(page) => page.start().as_ptr(),
        None => {
            wipe_stand_in_on_fork();
            (&raw const STAND_IN).cast_mut()
        }
    };
    let nowhere = (&raw const NOWHERE).cast_mut();
    // Release: partner of the Acquire in `cookie`, which needs it for nothing but form: a fresh
    // page is all zeros to everybody. Relaxed (failure): `cookie` looks again.
    if COOKIE.compare_exchange(nowhere, place, Ordering::Release, Ordering::Relaxed).is_ok() {
        // Never unmapped.
        std::mem::forget(page);
    }
}

/// A page that a forked child finds wiped.
fn wiped_on_fork() -> Option<WipedOnFork<StaticU64>> {
    if cfg!(all(target_os = "linux", not(any(loom, miri)))) {
        // SAFETY: zeros are an atomic number.
        unsafe { WipedOnFork::new(1) }.ok()
    } else {
        None
    }
}

#[cfg(not(any(loom, miri)))]
fn wipe_stand_in_on_fork() {
    extern "C" fn wipe() {
        // Relaxed: the child has one thread, this one.
        STAND_IN.store(0, Ordering::Relaxed);
    }
    // SAFETY: pthread_atfork(3) keeps the address of the handler, which is a function, and calls it
    // in a child, where an atomic store is allowed. It fails only for want of memory; then forks
    // pass unnoticed.
    unsafe { libc::pthread_atfork(None, None, Some(wipe)) };
}

#[cfg(any(loom, miri))]
fn wipe_stand_in_on_fork() {}

/// A value of which each process has its own: a forked child begins anew, and leaves what its
/// parent had, which another thread may have been in the middle of, untouched.
pub(crate) struct PerProcess<T: 'static> {
    current: StaticPtr<(Process, T)>,
}

impl<T: Send + Sync> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self { current: StaticPtr::new(ptr::null_mut()) }
    }

    /// The value of this process, made by `make` if there is none yet. When two threads are the
    /// first, what one of them made is dropped.
    pub(crate) fn get(&self, make: impl FnOnce() -> T) -> &'static T {
        // Acquire: partner of the Release below, for the value behind the pointer.
        let seen = self.current.load(Ordering::Acquire);
        // SAFETY: it is null, or of a box that was leaked below and is only ever shared.
        match unsafe { seen.as_ref() } {
            Some((process, value)) if process.is_this() => value,
            _ => {
                let made = Box::into_raw(Box::new((Process::this(), make())));
                // AcqRel: Release publishes the value; Acquire (failure): as the load above.
                let set =
                    self.current.compare_exchange(seen, made, Ordering::AcqRel, Ordering::Acquire);
                let current = match set {
                    Ok(_) => made,
                    Err(other) => {
                        // SAFETY: it was made above, and nobody else has seen it.
                        drop(unsafe { Box::from_raw(made) });
                        other
                    }
                };
                // SAFETY: of a box that is leaked here or was by the thread that set it, and is
                // only ever shared.
                let (_, value) = unsafe { &*current };
                value
            }
        }
    }
}

#[cfg(all(test, not(any(loom, miri))))]
mod tests {
    use super::*;

    /// Runs `body` in a forked child and says what it answered.
    fn in_child(body: impl FnOnce() -> bool) -> bool {
        // SAFETY: fork(2); the child calls `body`, which allocates at most, as glibc's and musl's
        // malloc allow, and then leaves by _exit(2).
        match unsafe { libc::fork() } {
            -1 => panic!("{}", std::io::Error::last_os_error()),
            0 => {
                let answer = body();
                // SAFETY: _exit(2) does not return.
                unsafe { libc::_exit(i32::from(answer)) }
            }
            child => {
                let mut status = 0;
                // SAFETY: waitpid(2) writes one int.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                assert!(libc::WIFEXITED(status), "{status:x}");
                libc::WEXITSTATUS(status) == 1
            }
        }
    }

    #[test]
    fn a_child_is_another_process_and_so_is_its_child() {
        let own = Process::this();
        assert_eq!(Process::this(), own);
        assert!(own.is_this());
        assert!(in_child(|| {
            let known_at_once = !own.is_this();
            let child = Process::this();
            known_at_once
                && !own.is_this()
                && child.is_this()
                && in_child(|| !own.is_this() && !child.is_this() && Process::this() != own)
        }));
        assert!(own.is_this());
    }

    #[test]
    fn each_process_has_its_own_value() {
        static VALUES: PerProcess<StaticU64> = PerProcess::new();
        let value = VALUES.get(|| StaticU64::new(1));
        assert!(ptr::eq(value, VALUES.get(|| unreachable!("there is one"))));
        assert!(in_child(|| {
            let childs = VALUES.get(|| StaticU64::new(2));
            childs.store(3, Ordering::Relaxed);
            !ptr::eq(childs, value) && value.load(Ordering::Relaxed) == 1
        }));
        assert_eq!(VALUES.get(|| unreachable!("there is one")).load(Ordering::Relaxed), 1);
    }
}
