//! A fork while another thread is about to build the first pool of the process.
//!
//! The binary has its own `madvise`, which the library calls instead of the C library's: the first
//! call for a wiped-on-fork page waits for the test.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use libc::{c_int, c_void};
use pinbuf::Pool;

use crate::common::process::alone;

/// In the processes of other tests.
const UNUSED: u32 = 0;
const NOT_YET: u32 = 1;
const ARRIVED: u32 = 2;
const GO_ON: u32 = 3;

static STAGE: AtomicU32 = AtomicU32::new(UNUSED);

fn wait_for(stage: u32) {
    while STAGE.load(Ordering::SeqCst) != stage {
        thread::yield_now();
    }
}

/// In place of the C library's.
///
/// # Safety
///
/// As madvise(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn madvise(start: *mut c_void, len: usize, advice: c_int) -> c_int {
    let first = || STAGE.compare_exchange(NOT_YET, ARRIVED, Ordering::SeqCst, Ordering::SeqCst);
    if advice == libc::MADV_WIPEONFORK && first().is_ok() {
        wait_for(GO_ON);
    }
    // SAFETY: the caller's contract.
    unsafe { libc::syscall(libc::SYS_madvise, start, len, advice) as c_int }
}

#[test]
fn a_child_does_not_wait_for_a_thread_of_its_parent() {
    alone(|| {
        STAGE.store(NOT_YET, Ordering::SeqCst);
        let first = thread::spawn(|| Pool::new(4096, 1).unwrap());
        wait_for(ARRIVED);
        // SAFETY: fork(2); the child allocates, as glibc allows, and exits by _exit(2).
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: alarm(2) takes no pointers.
            unsafe { libc::alarm(60) };
            let has_one = Pool::new(4096, 1).is_ok_and(|pool| pool.try_alloc(1).is_ok());
            // SAFETY: _exit(2) does not return.
            unsafe { libc::_exit(i32::from(!has_one)) };
        }
        STAGE.store(GO_ON, Ordering::SeqCst);
        let pool = first.join().unwrap();
        assert!(pool.try_alloc(1).is_ok());
        let mut status = 0;
        // SAFETY: waitpid(2) writes one int.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "a signal means a hang");
    });
}
