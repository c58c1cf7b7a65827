//! An asymmetric barrier: a compiler fence on the frequent side, a system call on the rare side.
//!
//! Two threads store to one place each, then load from the place of the peer. Each load must stay
//! behind the store, or both threads miss the store of the peer. A full barrier on both sides costs
//! the frequent side some ten nanoseconds. `membarrier(2)` makes every running thread of the
//! process pass a full barrier, so the frequent side only keeps the compiler from reordering.

pub(crate) use imp::{heavy, is_available, try_heavy};

#[cfg(all(target_os = "linux", not(any(loom, miri))))]
mod imp {
    use std::{io, time::Duration};

    use crate::{sync::unmodelled::sleep, sys::process::PerProcess};

    /// `MEMBARRIER_CMD_PRIVATE_EXPEDITED`, since Linux 4.14.
    const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

    /// Returns `true` if this process can issue the heavy half.
    pub(crate) fn is_available() -> bool {
        static REGISTERED: PerProcess<bool> = PerProcess::new();
        *REGISTERED.get(|| {
            membarrier(REGISTER_PRIVATE_EXPEDITED)
                .and_then(|()| membarrier(PRIVATE_EXPEDITED))
                .is_ok()
        })
    }

    /// The heavy half. For every thread, either the caller sees all accesses before the thread's
    /// present point, or the thread sees the caller's accesses from there on.
    pub(crate) fn heavy() {
        // The call worked when the process registered. A later system-call filter can forbid it,
        // and then no barrier is available. Waiting replaces the barrier: stores must only leave
        // the processors' store buffers, and take less than a microsecond to do so.
        if membarrier(PRIVATE_EXPEDITED).is_err() {
            sleep(Duration::from_millis(10));
        }
    }

    /// The heavy half for callers with an alternative. Returns `true` if the barrier was passed.
    pub(crate) fn try_heavy() -> bool {
        is_available() && membarrier(PRIVATE_EXPEDITED).is_ok()
    }

    fn membarrier(command: libc::c_int) -> io::Result<()> {
        // SAFETY: membarrier(2) takes no pointers; without flags the third argument is ignored.
        match unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Models and interpreters have no such call. A real fence on both sides stands for the call: the
/// models show the protocol to be right, not its asymmetry.
#[cfg(any(loom, miri))]
mod imp {
    use crate::sync::{Ordering, fence};

    pub(crate) fn is_available() -> bool {
        true
    }

    pub(crate) fn heavy() {
        // SeqCst: partner of the fence in `sync::light_barrier`.
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
        unreachable!("the barrier is not available");
    }

    pub(crate) fn try_heavy() -> bool {
        false
    }
}

#[cfg(all(test, target_os = "linux", not(any(loom, miri))))]
mod tests {
    #[test]
    fn every_supported_kernel_has_the_barrier() {
        assert!(super::is_available());
        super::heavy();
    }
}
