//! A forked child that misuses its inheritance.

use std::{
    net::TcpStream,
    panic::{self, AssertUnwindSafe},
};

use pinbuf::{AllocError, Pool, SendError, Sender};

/// Forks. The child tries the pool and the sender of its parent, drops the sender, and ends.
/// Returns `Err` if the child saw another error than `Forked`, was killed, or hung.
pub(crate) fn misuse(pool: &Pool, sender: &mut Sender<TcpStream>) -> Result<(), String> {
    // SAFETY: fork(2). The child allocates, as glibc and musl allow, takes no lock of this program,
    // and exits by _exit(2).
    match unsafe { libc::fork() } {
        -1 => Ok(()),
        0 => {
            // SAFETY: alarm(2) takes no pointers.
            unsafe { libc::alarm(20) };
            let right = panic::catch_unwind(AssertUnwindSafe(|| {
                matches!(pool.try_alloc(1), Err(AllocError::Forked))
                    && matches!(sender.try_send(&[7; 20_000][..]), Err(SendError::Forked(_)))
                    && sender.reap().is_err()
                    && sender.drain(None).is_err()
                    // SAFETY: `sender` is valid for reads, and the process ends before another use
                    // of it.
                    && { drop(unsafe { std::ptr::read(sender) }); true }
            }));
            // SAFETY: _exit(2) ends the process.
            unsafe { libc::_exit(i32::from(!right.unwrap_or(false))) }
        }
        child => {
            let mut status = 0;
            // SAFETY: waitpid(2) writes one int, alive during the call.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            match (waited == child, status) {
                (true, 0) => Ok(()),
                _ => Err(format!("a forked child ended with {status:#x}")),
            }
        }
    }
}
