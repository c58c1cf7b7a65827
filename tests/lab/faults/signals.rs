//! Hundreds of signals to threads in the middle of a system call.

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
        STALLED, TIGHT, assert_all_free, assert_arrived, eventually, filled, pair_at, pool,
        process::{alone, the_reaper},
        reader, soon, within, zero_copy,
    },
};

const LEN: usize = 64 << 10;

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Makes SIGUSR1 interrupt system calls.
fn catch_signals() {
    // SAFETY: an all-zero `sigaction` is valid: no flags, so no SA_RESTART.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: sigaction(2) reads the action; its handler only counts.
    assert_eq!(unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut()) }, 0);
}

fn this_thread() -> libc::pid_t {
    // SAFETY: gettid(2) takes no pointers.
    unsafe { libc::gettid() }
}

/// Signals a thread every millisecond during `body`, and returns the number of signals.
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
        // A failed body must end the signalling thread too.
        let result = panic::catch_unwind(AssertUnwindSafe(body));
        over.store(true, Ordering::Relaxed);
        let result = result.unwrap_or_else(|panic| panic::resume_unwind(panic));
        let came = SIGNALS.load(Ordering::Relaxed) - before;
        // Some hundreds on an idle machine; a single signal shows whether the wait ends.
        assert!(came > 2, "{came} signals: the test shows nothing");
        (result, came)
    })
}

/// Asserts that the wait does not end early, and makes few calls per signal.
#[track_caller]
fn lasts<T>(time: Duration, wait: impl FnOnce() -> T) -> T {
    let (end, before) = (Instant::now() + time, calls::of_this_thread());
    let (result, signals) = under_fire(this_thread(), wait);
    assert!(Instant::now() >= end, "the wait ended early");
    let calls = calls::of_this_thread() - before;
    assert!(calls.all() < 20 + 4 * signals, "{calls:?} for {signals} signals");
    result
}

#[test]
fn signals_neither_shorten_a_wait_nor_make_it_spin() {
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
        let waited = lasts(time, || sender.wait(tickets[1], Some(time)));
        assert_eq!(waited, Err(WaitError::TimedOut));
        let drained = lasts(time, || sender.drain(Some(time)));
        assert_eq!(drained, Err(WaitError::TimedOut));
        let starved = lasts(time, || pool.alloc_timeout(1, time));
        assert_eq!(starved.unwrap_err(), AllocError::TimedOut);
        // A lasting hangup makes the sender wait by edges.
        let closed = lasts(time, || sender.close(Some(time)));
        assert!(!closed.drained && closed.aborted, "{closed:?}");
        drop(far);
    });
}

/// An interrupted wait has no event. If it were an error, `EINTR` would truncate sends.
#[test]
fn signals_lose_and_change_no_byte_of_sends() {
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
            assert!(sender.close(soon()).drained);
        });
        assert_arrived(&peer.join().unwrap(), LEN, COUNT);
        assert_all_free(&pool);
    });
}

/// For the reaper too: if an interrupted wait ended its thread, no slot would be recycled.
#[test]
fn signals_do_not_stop_the_reaper() {
    alone(|| {
        catch_signals();
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let pool = pool(1 << 20, 1);
        let mut sender: Sender<_> = zero_copy().adopt(near).unwrap();
        sender.try_send(filled(pool.try_alloc(1).unwrap(), 1 << 20, 0)).unwrap();
        assert!(sender.reap().unwrap().unsent, "the reaper has something to flush");
        drop(sender);
        let reaper = the_reaper();
        let before = calls::of_the_reaper();
        let peer = reader(far, Duration::from_millis(300));
        let ((), signals) = under_fire(reaper, || {
            eventually("all sends are released", || pool.stats().free() == 1);
            assert!(pinbuf::reaper::wait_idle(within(60_000)));
        });
        let calls = calls::of_the_reaper() - before;
        // One mebibyte leaves in parts, and each part is an event.
        assert!(calls.all() < 100 + 4 * signals, "{calls:?} for {signals} signals");
        assert_arrived(&peer.join().unwrap(), 1 << 20, 1);
    });
}
