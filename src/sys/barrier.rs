//! The two halves of an asymmetric barrier: nothing on the one side, a system call on the other.
//!
//! Two threads that each store to one place and then load from the other's have to keep the load
//! behind the store, or neither sees the other. A full barrier on both sides costs the frequent one
//! some ten nanoseconds. `membarrier(2)` makes every running thread of the process pass a full
//! barrier, so that the frequent side need only keep the compiler from reordering.

pub(crate) use imp::{heavy, is_available, try_heavy};

#[cfg(all(target_os = "linux", not(any(loom, miri))))]
mod imp {
    use std::{io, time::Duration};

    use crate::{sync::unmodelled::sleep, sys::process::PerProcess};

    /// `MEMBARRIER_CMD_PRIVATE_EXPEDITED`, since Linux 4.14.
    const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

    /// Whether this process can have the heavy half.
    pub(crate) fn is_available() -> bool {
        static REGISTERED: PerProcess<bool> = PerProcess::new();
        *REGISTERED.get(|| {
            membarrier(REGISTER_PRIVATE_EXPEDITED)
                .and_then(|()| membarrier(PRIVATE_EXPEDITED))
                .is_ok()
        })
    }

    /// The heavy half: every thread's accesses before its present point are seen by the caller, or
    /// it sees the caller's from there on.
    pub(crate) fn heavy() {
        // It worked when the process registered. A filter for system calls that was put up since
        // can forbid it; then no barrier is to be had, and what it is needed for, that stores leave
        // the processors' store buffers, is waited for: that takes them less than a microsecond.
        if membarrier(PRIVATE_EXPEDITED).is_err() {
            sleep(Duration::from_millis(10));
        }
    }

    /// The heavy half for callers that can do without. Returns `true` if it was passed.
    pub(crate) fn try_heavy() -> bool {
        is_available() && membarrier(PRIVATE_EXPEDITED).is_ok()
    }

    fn membarrier(command: libc::c_int) -> io::Result<()> {
        // SAFETY: membarrier(2) takes no pointers; without flags the third argument is not looked
        // at.
        match unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Models and interpreters have no such call. A real fence on both sides stands for it, which shows
/// that the protocol is right, not that the asymmetry is.
#[cfg(any(loom, miri))]
mod imp {
    use crate::sync::{Ordering, fence};

    pub(crate) fn is_available() -> bool {
        true
    }

    pub(crate) fn heavy() {
        // SeqCst: partner of the one in `sync::light_barrier`.
        fence(Ordering::SeqCst);
    }

    pub(crate) fn try_heavy() -> bool {
        heavy();
        true
    }
}

#[cfg(all(not(target_os = "linux"), not(any(loom, miri))))]
mod imp {
    pub(crate) fn is_available() -> bool {
        false
    }

    pub(crate) fn heavy() {
        unreachable!("it is not available");
    }

    pub(crate) fn try_heavy() -> bool {
        false
    }
}

#[cfg(all(test, target_os = "linux", not(any(loom, miri))))]
mod tests {
    #[test]
    fn the_barrier_is_there_on_every_kernel_that_is_supported() {
        assert!(super::is_available());
        super::heavy();
    }
}
