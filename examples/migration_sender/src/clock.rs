//! The CPU time of the calling thread (unsafe code).

use std::time::Duration;

/// CPU time of the calling thread, in user space and in the kernel.
pub fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec, alive during the call.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(done, 0, "every thread has a CPU clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
