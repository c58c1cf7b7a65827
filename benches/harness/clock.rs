//! Time, and what an operation takes of it.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// CPU time of this thread: what others do meanwhile shows in caches only.
pub(crate) fn thread_cpu() -> Duration {
    cpu(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time of all threads of this process.
pub(crate) fn process_cpu() -> Duration {
    cpu(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn cpu(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec where it is told to, and that is a live one.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "every thread and process has a CPU clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Time on the wall, for what several threads do together.
pub(crate) fn wall() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Repeats `batch`, which is `ops` operations, for about `slice`; the nanoseconds of one operation.
pub(crate) fn per_op(
    clock: impl Fn() -> Duration,
    slice: Duration,
    ops: usize,
    mut batch: impl FnMut(),
) -> f64 {
    // Doubled until it is long enough, so that reading the clock costs nothing however short a
    // batch is.
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
