//! The identity of a process: a forked child inherits everything, and must leave it alone.

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

/// The process that made an object.
///
/// The kernel wipes a page when a process forks (`MADV_WIPEONFORK`). The page holds the number of
/// the process, so a check for a fork costs two loads. A handler of `pthread_atfork` would miss
/// children made by `clone(2)` directly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Process(u64);

/// Points to `NOWHERE` at first, then for good to the wiped-on-fork page, or to `STAND_IN` without
/// such a page.
static COOKIE: StaticPtr<StaticU64> = StaticPtr::new((&raw const NOWHERE).cast_mut());
/// Stands in for the page before the first look for one. Stays 0.
static NOWHERE: StaticU64 = StaticU64::new(0);
/// Stands in for the page if the kernel gives none.
static STAND_IN: StaticU64 = StaticU64::new(0);

impl Process {
    /// This process.
    pub(crate) fn this() -> Self {
        static LAST: StaticU64 = StaticU64::new(0);
        if ptr::eq(cookie(), &NOWHERE) {
            prepare();
        }
        // Relaxed, all three: only the numbers matter. A child has its parent's last number, so the
        // numbers of a process and its ancestors differ.
        match cookie().load(Ordering::Relaxed) {
            0 => {
                let own = LAST.fetch_add(1, Ordering::Relaxed) + 1;
                let set = cookie().compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed);
                Self(set.map_or_else(|other| other, |_| own))
            }
            own => Self(own),
        }
    }

    /// Returns `true` in the process of this value, `false` in a forked child.
    #[inline(always)]
    pub(crate) fn is_this(self) -> bool {
        // Models and interpreters do not fork.
        // Relaxed: the wipe came before everything in this process.
        cfg!(any(loom, miri)) || cookie().load(Ordering::Relaxed) == self.0
    }
}

#[inline(always)]
fn cookie() -> &'static StaticU64 {
    // Acquire: partner of the Release in `prepare`.
    let cookie = COOKIE.load(Ordering::Acquire);
    // SAFETY: the pointer leads to a static, or to the start of a page of numbers that is never
    // unmapped. Both are accessed as this type only.
    unsafe { &*cookie }
}

/// Finds a place for the number. Several threads may search at once, and the first result counts.
/// No lock: a child forked meanwhile would wait for a thread that exists in its parent only.
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
    // Release: partner of the Acquire in `cookie`, and needed for form only: every thread sees a
    // fresh page as zeros. Relaxed (failure): `cookie` loads again.
    if COOKIE.compare_exchange(nowhere, place, Ordering::Release, Ordering::Relaxed).is_ok() {
        // Never unmapped.
        std::mem::forget(page);
    }
}

/// A page that a forked child finds full of zeros.
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
        // Relaxed: the child has only this thread.
        STAND_IN.store(0, Ordering::Relaxed);
    }
    // SAFETY: pthread_atfork(3) keeps the address of the handler, a function, and calls it in a
    // child. An atomic store is allowed there. The call fails only for lack of memory, and then
    // forks are not detected.
    unsafe { libc::pthread_atfork(None, None, Some(wipe)) };
}

#[cfg(any(loom, miri))]
fn wipe_stand_in_on_fork() {}

/// A value per process. A forked child starts with a new value and leaves its parent's untouched,
/// since a thread of the parent may have been in the middle of a change.
pub(crate) struct PerProcess<T: 'static> {
    current: StaticPtr<(Process, T)>,
}

impl<T: Send + Sync> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self { current: StaticPtr::new(ptr::null_mut()) }
    }

    /// The value of this process, made by `make` at the first call. If two threads are the first,
    /// one of the two values is dropped.
    pub(crate) fn get(&self, make: impl FnOnce() -> T) -> &'static T {
        // Acquire: partner of the Release below, for the value behind the pointer.
        let seen = self.current.load(Ordering::Acquire);
        // SAFETY: the pointer is null, or leads to a box that was leaked below and is only ever
        // shared.
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
                        // SAFETY: the box was made above, and no other thread has seen it.
                        drop(unsafe { Box::from_raw(made) });
                        other
                    }
                };
                // SAFETY: the pointer leads to a box that was leaked, here or by the thread that
                // set it, and is only ever shared.
                let (_, value) = unsafe { &*current };
                value
            }
        }
    }
}

#[cfg(all(test, not(any(loom, miri))))]
mod tests {
    use super::*;

    /// Runs `body` in a forked child and returns its answer.
    fn in_child(body: impl FnOnce() -> bool) -> bool {
        // SAFETY: fork(2); the child calls `body`, which at most allocates, as glibc's and musl's
        // malloc allow, and then exits by _exit(2).
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
        assert!(ptr::eq(value, VALUES.get(|| unreachable!("the value exists"))));
        assert!(in_child(|| {
            let childs = VALUES.get(|| StaticU64::new(2));
            childs.store(3, Ordering::Relaxed);
            !ptr::eq(childs, value) && value.load(Ordering::Relaxed) == 1
        }));
        assert_eq!(VALUES.get(|| unreachable!("the value exists")).load(Ordering::Relaxed), 1);
    }
}
