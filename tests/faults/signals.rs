//! Signals by the hundred, to whoever is in the middle of a system call.

use std::{
    mem,
    panic::{self, AssertUnwindSafe},
    ptr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use pinbuf::{AllocError, Sender, WaitError};

use crate::{
    calls,
    common::{
        STALLED, TIGHT, after, assert_all_home, assert_arrived, eventually, filled, pair_at, pool,
        process::{alone, the_reaper},
        reader, soon, zero_copy,
    },
};

const LEN: usize = 64 << 10;

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Has SIGUSR1 interrupt system calls.
fn catch_signals() {
    // SAFETY: `sigaction` is a C struct for which all zeros is a value: no flags, so no SA_RESTART.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: sigaction(2) reads the action, whose handler only counts.
    assert_eq!(unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut()) }, 0);
}

fn this_thread() -> libc::pid_t {
    // SAFETY: gettid(2) takes no pointers.
    unsafe { libc::gettid() }
}

/// Signals a thread every millisecond while `body` runs, and says how many signals came.
fn under_fire<T>(target: libc::pid_t, body: impl FnOnce() -> T) -> (T, usize) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let process = std::process::id();
                // SAFETY: tgkill(2) takes no pointers.
                unsafe { libc::syscall(libc::SYS_tgkill, process, target, libc::SIGUSR1) };
                thread::sleep(Duration::from_millis(1));
            }
        });
        let before = SIGNALS.load(Ordering::Relaxed);
        // Else a body that fails would be waited for by the thread that it is to end.
        let result = panic::catch_unwind(AssertUnwindSafe(body));
        over.store(true, Ordering::Relaxed);
        let result = result.unwrap_or_else(|panic| panic::resume_unwind(panic));
        let came = SIGNALS.load(Ordering::Relaxed) - before;
        // Some hundreds, where the machine has nothing else to do; one shows a wait that it ends.
        assert!(came > 2, "{came} signals: the test shows nothing");
        (result, came)
    })
}

/// The wait does not end early, and a signal has this thread make few calls.
#[track_caller]
fn lasts<T>(time: Duration, wait: impl FnOnce() -> T) -> T {
    let (end, before) = (Instant::now() + time, calls::of_this_thread());
    let (result, signals) = under_fire(this_thread(), wait);
    assert!(Instant::now() >= end, "it ended early");
    let calls = calls::of_this_thread() - before;
    assert!(calls.all() < 20 + 4 * signals, "{calls:?} for {signals} signals");
    result
}

#[test]
fn a_wait_under_fire_lasts_its_time_and_does_not_spin() {
    alone(|| {
        catch_signals();
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(LEN, 4);
        let mut sender = zero_copy().max_in_flight_sends(2).adopt(near).unwrap();
        let time = Duration::from_millis(300);
        let tickets: Vec<_> = (0..2)
            .map(|seed| sender.send(filled(pool.try_alloc(1).unwrap(), LEN, seed)).unwrap())
            .collect();
        let _held = (pool.try_alloc(1).unwrap(), pool.try_alloc(1).unwrap());
        let deadline = || Some(Instant::now() + time);
        let waited = lasts(time, || sender.wait(tickets[1], deadline()));
        assert_eq!(waited, Err(WaitError::TimedOut));
        let drained = lasts(time, || sender.drain(deadline()));
        assert_eq!(drained, Err(WaitError::TimedOut));
        let starved = lasts(time, || pool.alloc_timeout(1, time));
        assert_eq!(starved.unwrap_err(), AllocError::TimedOut);
        // A hang-up that stays makes it wait by edges.
        let closed = lasts(time, || sender.close(Instant::now() + time));
        assert!(!closed.drained && closed.aborted, "{closed:?}");
        drop(far);
    });
}

/// An interrupted wait is one without news. Where it is an error, sends are cut short by `EINTR`.
#[test]
fn sends_under_fire_lose_and_change_nothing() {
    alone(|| {
        catch_signals();
        const COUNT: usize = 300;
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let pool = pool(LEN, 8);
        let mut sender = zero_copy().adopt(near).unwrap();
        let peer = reader(far, Duration::from_millis(200));
        under_fire(this_thread(), || {
            for seed in 0..COUNT {
                sender.send(filled(pool.alloc(1).unwrap(), LEN, seed)).unwrap();
            }
            sender.drain(soon()).unwrap();
            assert!(sender.close(soon().unwrap()).drained);
        });
        assert_arrived(&peer.join().unwrap(), LEN, COUNT);
        assert_all_home(&pool);
    });
}

/// For the reaper too: where an interrupted wait ends its thread, nothing comes home.
#[test]
fn the_reaper_under_fire_sees_senders_to_their_end() {
    alone(|| {
        catch_signals();
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let pool = pool(1 << 20, 1);
        let mut sender: Sender<_> = zero_copy().adopt(near).unwrap();
        sender.try_send(filled(pool.try_alloc(1).unwrap(), 1 << 20, 0)).unwrap();
        assert!(!sender.flush().unwrap(), "the reaper has something to flush");
        drop(sender);
        let reaper = the_reaper();
        let before = calls::of_the_reaper();
        let peer = reader(far, Duration::from_millis(300));
        let ((), signals) = under_fire(reaper, || {
            eventually("all is released", || pool.stats().free() == 1);
            assert!(pinbuf::reaper::wait_idle(after(60_000)));
        });
        let calls = calls::of_the_reaper() - before;
        // One mebibyte leaves in parts, each of them news.
        assert!(calls.all() < 100 + 4 * signals, "{calls:?} for {signals} signals");
        assert_arrived(&peer.join().unwrap(), 1 << 20, 1);
    });
}
