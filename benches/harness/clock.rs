//! Time, and the time per operation.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// CPU time of this thread: other threads affect its caches only.
pub(crate) fn thread_cpu() -> Duration {
    cpu(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time of all threads of this process.
pub(crate) fn process_cpu() -> Duration {
    cpu(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn cpu(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one live timespec.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "every thread and process has a CPU clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Wall-clock time, for the joint work of several threads.
pub(crate) fn wall() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Repeats `batch` of `ops` operations for about `slice`. Returns the nanoseconds per operation.
pub(crate) fn per_op(
    clock: impl Fn() -> Duration,
    slice: Duration,
    ops: usize,
    mut batch: impl FnMut(),
) -> f64 {
    // Doubled until long enough, so that a read of the clock costs nothing even for short batches.
    let mut batches = 1_usize;
    loop {
        let start = clock();
        for _ in 0..batches {
            batch();
        }
        let taken = clock() - start;
        if taken >= slice / 2 {
            return taken.as_nanos() as f64 / (batches * ops) as f64;
        }
        batches *= 2;
    }
}
