//! Random settings of senders and pools, and of the process.

use std::{mem, time::Duration};

use pinbuf::{
    Policy, Pool, Sender,
    pool::{Backing, Pages},
    sender::{OnRelease, SenderBuilder},
};

use crate::random::Random;

/// Lowers the memlock limit of the process, or leaves it unchanged. The limit binds ordinary users,
/// and workers without their exemption ([`bind_to_memlock`]).
pub(crate) fn limit_memlock(random: &mut Random) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one `rlimit`, alive during the call.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    let bytes = random.pick(&[256 << 10, 1 << 20, 4 << 20, limit.rlim_cur]);
    limit.rlim_cur = limit.rlim_cur.min(bytes);
    // SAFETY: setrlimit(2) reads one `rlimit`, alive during the call. Lowering the soft limit is
    // never refused.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

/// Drops `CAP_IPC_LOCK` of the calling thread, and so its exemption from the memlock limit.
pub(crate) fn bind_to_memlock() {
    const VERSION: u32 = 0x2008_0522;
    const CAP_IPC_LOCK: u32 = 14;
    let header = [VERSION, 0];
    // Effective, permitted, inheritable; twice, for 64 capabilities.
    let mut sets = [0_u32; 6];
    // SAFETY: capget(2) reads the header and writes two structs of three words, for this version.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) };
    if got == 0 {
        sets[0] &= !(1 << CAP_IPC_LOCK);
        // SAFETY: capset(2) reads the header and two structs of three words.
        unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    }
}

/// Settings of a sender, with its limit for sends in flight.
pub(crate) fn sender(random: &mut Random) -> (SenderBuilder, Option<Duration>) {
    let policies = [Policy::Prefer, Policy::Prefer, Policy::Prefer, Policy::Require];
    let policy = match random.within(1..=10) {
        1 => Policy::Never,
        2 | 3 => Policy::Auto,
        _ => random.pick(&policies),
    };
    let mut builder = Sender::builder()
        .policy(policy)
        .threshold_bytes(random.pick(&[1, 4096, 16 << 10, 16 << 10, 64 << 10]))
        .max_in_flight_bytes(random.pick(&[16 << 10, 256 << 10, 64 << 20, 64 << 20]))
        .max_in_flight_sends(random.pick(&[1, 2, 8, 64, 4096, 4096]))
        .linger(random.millis(20..=300));
    if random.percent(25) {
        builder = builder.on_release(OnRelease::Return);
    }
    let max_hold = random.percent(15).then(|| random.millis(100..=1000));
    if let Some(limit) = max_hold {
        builder = builder.max_hold(limit);
    }
    (builder, max_hold)
}

/// A pool of few slots, so that each is reused at once.
pub(crate) fn pool(random: &mut Random) -> Pool {
    let backing = match random.within(0..=3) {
        0 => Backing::Prefer(Pages::HugeTlb { page_bytes: 2 << 20 }),
        1 => Backing::Prefer(Pages::Thp),
        2 => Backing::Prefer(Pages::Base),
        _ => Backing::Auto,
    };
    let mut builder = Pool::builder()
        .class(random.pick(&[4096, 16 << 10, 48 << 10]), random.within(2..=24))
        .class(random.pick(&[64 << 10, 256 << 10]), random.within(2..=16))
        .backing(backing)
        .dont_dump(random.percent(20))
        .populate(random.percent(90))
        .fallback(random.percent(50))
        .zero_on_recycle(random.percent(30));
    if random.percent(50) {
        builder = builder.class(1 << 20, random.within(2..=4));
    }
    if random.percent(25) {
        builder = builder.sender_quota(random.within(1..=4));
    }
    builder.build().expect("every kind of pages falls back to base pages")
}

/// Returns `true` if a pool is on pages of the system's reserve.
pub(crate) fn is_huge(pool: &Pool) -> bool {
    let pages = pool.region().pages;
    mem::discriminant(&pages) == mem::discriminant(&Pages::HugeTlb { page_bytes: 0 })
}
