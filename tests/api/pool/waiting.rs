//! Waits for a slot: order, wake-ups, cancellation, ends.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll, RawWaker, RawWakerVTable, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use pinbuf::{__internals::Lease, AllocError, PinnedBuf, Pool, pool::Waiter};

use super::{CountedWaker, poll};
use crate::{
    alive::Alive,
    common::{assert_all_free, pool},
};

#[test]
fn slots_go_to_waiters_in_order() {
    let pool = pool(64, 1);
    let buf = pool.try_alloc(1).unwrap();
    let wakers: [Arc<CountedWaker>; 3] = Default::default();
    let mut waiters = [(); 3].map(|()| pool.alloc_async(1));
    for (waiter, waker) in waiters.iter_mut().zip(&wakers) {
        assert!(poll(waiter, waker).is_pending());
    }
    assert_eq!(pool.stats().classes[0].waiting, 3);
    let mut holding = Some(buf);
    for turn in 0..3 {
        drop(holding.take());
        let woken: Vec<_> = wakers.iter().map(|waker| waker.count()).collect();
        assert_eq!(woken.iter().sum::<usize>(), turn + 1, "one waiter per slot");
        assert_eq!(woken[turn], 1);
        assert_eq!(pool.try_alloc(1).unwrap_err(), AllocError::Exhausted);
        for late in turn + 1..3 {
            assert!(poll(&mut waiters[late], &wakers[late]).is_pending());
        }
        let Poll::Ready(buf) = poll(&mut waiters[turn], &wakers[turn]) else {
            panic!("waiter {turn} was woken and has no slot");
        };
        holding = Some(buf.unwrap());
    }
    drop(holding);
    assert_all_free(&pool);
    assert!(pool.try_alloc(1).is_ok(), "without waiters the list is in use again");
}

#[test]
fn a_dropped_granted_future_passes_its_slot_on() {
    let pool = pool(64, 1);
    let buf = pool.try_alloc(1).unwrap();
    let wakers: [Arc<CountedWaker>; 2] = Default::default();
    let mut first = pool.alloc_async(1);
    let mut second = pool.alloc_async(1);
    assert!(poll(&mut first, &wakers[0]).is_pending());
    assert!(poll(&mut second, &wakers[1]).is_pending());
    drop(buf);
    assert_eq!((wakers[0].count(), wakers[1].count()), (1, 0));
    assert!(pool.audit().is_clean(), "a granted slot is accounted for");
    drop(first);
    assert_eq!(wakers[1].count(), 1);
    drop(second);
    assert_all_free(&pool);
    assert!(pool.try_alloc(1).is_ok());
}

#[test]
fn a_stored_waiter_is_polled_for_one_buffer_after_another() {
    struct Connection {
        waiter: Waiter,
        woken: Arc<CountedWaker>,
    }

    impl Connection {
        fn poll(&mut self) -> Poll<PinnedBuf> {
            let waker = Waker::from(Arc::clone(&self.woken));
            self.waiter.poll_alloc(&mut Context::from_waker(&waker)).map(Result::unwrap)
        }
    }

    let pool = pool(64, 1);
    let alive = Alive::probe(&pool);
    assert!(matches!(pool.waiter(65), Err(AllocError::TooLarge { .. })));
    let mut connections =
        [(); 2].map(|()| Connection { waiter: pool.waiter(1).unwrap(), woken: Arc::default() });
    let Poll::Ready(mut buf) = connections[0].poll() else { panic!("one is free") };
    for turn in [1, 0, 1, 0] {
        assert!(connections[turn].poll().is_pending());
        let before = connections[turn].woken.count();
        assert!(connections[turn].poll().is_pending(), "the place is kept");
        assert_eq!(pool.stats().classes[0].waiting, 1);
        drop(buf);
        assert_eq!(connections[turn].woken.count(), before + 1);
        let Poll::Ready(next) = connections[turn].poll() else { panic!("woken in vain") };
        buf = next;
    }
    let [mut first, second] = connections;
    assert!(first.poll().is_pending());
    drop((pool, second));
    assert!(alive.get(), "a waiter is a handle of the pool");
    drop(buf);
    // Granted, and given up.
    drop(first);
    assert!(!alive.get());
}

#[test]
fn a_cancelled_waiter_is_skipped() {
    let pool = pool(64, 1);
    let buf = pool.try_alloc(1).unwrap();
    let wakers: [Arc<CountedWaker>; 3] = Default::default();
    let [mut first, mut second, mut third] = [(); 3].map(|()| pool.alloc_async(1));
    assert!(poll(&mut first, &wakers[0]).is_pending());
    assert!(poll(&mut second, &wakers[1]).is_pending());
    assert!(poll(&mut third, &wakers[2]).is_pending());
    drop(second);
    drop(first);
    drop(buf);
    assert!(matches!(poll(&mut third, &wakers[2]), Poll::Ready(Ok(_))));
    assert_all_free(&pool);
}

#[test]
fn the_waker_of_the_latest_poll_is_woken() {
    let pool = pool(64, 1);
    let buf = pool.try_alloc(1).unwrap();
    let wakers: [Arc<CountedWaker>; 2] = Default::default();
    let mut waiter = pool.alloc_async(1);
    assert!(poll(&mut waiter, &wakers[0]).is_pending());
    assert!(poll(&mut waiter, &wakers[1]).is_pending());
    drop(buf);
    assert_eq!((wakers[0].count(), wakers[1].count()), (0, 1));
}

#[test]
fn a_forgotten_granted_future_costs_only_its_slot() {
    let pool = pool(64, 2);
    let bufs = [pool.try_alloc(1).unwrap(), pool.try_alloc(1).unwrap()];
    let waker = Arc::default();
    let mut waiter = pool.alloc_async(1);
    assert!(poll(&mut waiter, &waker).is_pending());
    drop(bufs);
    std::mem::forget(waiter);
    let kept = pool.try_alloc(1).unwrap();
    assert_eq!(pool.try_alloc(1).unwrap_err(), AllocError::Exhausted);
    let alive = Alive::probe(&pool);
    drop(pool);
    assert!(alive.get());
    drop(kept);
    assert!(!alive.get(), "the slot of a forgotten waiter does not keep the pool");
}

#[test]
fn a_blocked_thread_is_woken_by_a_drop() {
    let pool = pool(64, 1);
    for _ in 0..50 {
        let buf = pool.alloc(1).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| pool.alloc(1).unwrap());
            while pool.stats().classes[0].waiting == 0 {
                thread::yield_now();
            }
            drop(buf);
            drop(waiter.join().unwrap());
        });
    }
    assert_all_free(&pool);
}

#[test]
fn all_blocked_threads_get_a_slot() {
    let pool = pool(64, 2);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| (0..500).for_each(|_| drop(pool.alloc(1).unwrap())));
        }
    });
    assert_all_free(&pool);
}

#[test]
fn a_timeout_ends_the_wait_and_leaves_the_queue() {
    let pool = pool(64, 1);
    let buf = pool.alloc(1).unwrap();
    let end = Instant::now() + Duration::from_millis(20);
    let error = pool.alloc_timeout(1, Duration::from_millis(20)).unwrap_err();
    assert_eq!(error, AllocError::TimedOut);
    assert!(Instant::now() >= end);
    assert_eq!(pool.alloc_timeout(1, Duration::ZERO).unwrap_err(), AllocError::TimedOut);
    assert_eq!(pool.stats().classes[0].waiting, 0);
    drop(buf);
    assert!(pool.alloc_timeout(1, Duration::ZERO).is_ok());
}

/// The drop of an unneeded waker, after a slot was recycled in time, is user code and may use
/// the pool.
#[test]
fn an_unneeded_waker_is_dropped_without_a_lock() {
    struct Task {
        pool: Pool,
        /// Recycled when the waker is cloned, between the look for a slot and the queue.
        last: Mutex<Option<PinnedBuf>>,
    }

    fn task(data: *const ()) -> &'static Task {
        // SAFETY: the task was leaked as the data of these wakers.
        unsafe { &*data.cast() }
    }

    static ACTIONS: RawWakerVTable = RawWakerVTable::new(
        |data| {
            drop(task(data).last.lock().unwrap().take());
            RawWaker::new(data, &ACTIONS)
        },
        |_| {},
        |_| {},
        |data| drop(task(data).pool.try_alloc(1)),
    );

    let (done, wait) = mpsc::channel();
    thread::spawn(move || {
        let pool = pool(64, 64);
        let mut bufs: Vec<_> = (0..64).map(|_| pool.try_alloc(1).unwrap()).collect();
        let last = bufs.pop().into();
        let task: &Task = Box::leak(Box::new(Task { pool: pool.clone(), last }));
        let raw = RawWaker::new(std::ptr::from_ref(task).cast(), &ACTIONS);
        // SAFETY: the actions keep the contract: they may be called from any thread, and the
        // data live for ever.
        let waker = unsafe { Waker::from_raw(raw) };
        let got = pin!(pool.alloc_async(1)).poll(&mut Context::from_waker(&waker));
        done.send(matches!(got, Poll::Ready(Ok(_)))).unwrap();
    });
    let got = wait.recv_timeout(Duration::from_secs(60)).expect("a deadlock");
    assert!(got, "the slot recycled in between");
}

/// The drop of the waker of a waiter that gives up is user code, and may use the pool.
#[test]
fn a_leaving_waiters_waker_is_dropped_without_a_lock() {
    struct Task(Pool);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for Task {
        fn drop(&mut self) {
            assert_eq!(self.0.stats().classes[0].waiting, 0);
        }
    }

    let (done, wait) = mpsc::channel();
    thread::spawn(move || {
        let pool = pool(64, 1);
        let _buf = pool.try_alloc(1).unwrap();
        let mut waiter = pool.alloc_async(1);
        let waker = Waker::from(Arc::new(Task(pool.clone())));
        assert!(Pin::new(&mut waiter).poll(&mut Context::from_waker(&waker)).is_pending());
        drop(waker);
        drop(waiter);
        done.send(()).unwrap();
    });
    wait.recv_timeout(Duration::from_secs(60)).expect("a deadlock");
}

#[test]
fn a_waker_that_panics_leaves_the_memory_to_its_end() {
    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("as a runtime's waker may");
        }
    }

    let pool = pool(64, 1);
    let alive = Alive::probe(&pool);
    let buf = pool.try_alloc(1).unwrap();
    let mut waiter = pool.alloc_async(1);
    let waker = Waker::from(Arc::new(Panics));
    assert!(Pin::new(&mut waiter).poll(&mut Context::from_waker(&waker)).is_pending());
    assert!(catch_unwind(AssertUnwindSafe(|| drop(buf))).is_err());
    drop(waiter);
    assert_all_free(&pool);
    drop(pool);
    assert!(!alive.get());
}

#[test]
fn the_longest_timeout_is_no_limit() {
    let pool = pool(64, 1);
    let buf = pool.try_alloc(1).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.alloc_timeout(1, Duration::MAX).map(drop));
        while pool.stats().classes[0].waiting == 0 && !waiter.is_finished() {
            thread::yield_now();
        }
        drop(buf);
        assert_eq!(waiter.join().unwrap(), Ok(()));
    });
}

#[test]
fn a_future_goes_from_thread_to_thread() {
    let pool = pool(64, 1);
    let buf = pool.try_alloc(1).unwrap();
    let waker = Arc::<CountedWaker>::default();
    let mut waiter = pool.alloc_async(1);
    assert!(poll(&mut waiter, &waker).is_pending());
    drop(buf);
    let there = thread::scope(|scope| scope.spawn(|| poll(&mut waiter, &waker)).join());
    assert!(matches!(there, Ok(Poll::Ready(Ok(_)))));
}

#[test]
fn no_waiter_waits_for_quarantined_slots_alone() {
    let pool = pool(64, 2);
    let mut bufs = [pool.try_alloc(1).unwrap(), pool.try_alloc(1).unwrap()];
    let waker = Arc::<CountedWaker>::default();
    let mut waiter = pool.alloc_async(1);
    assert!(poll(&mut waiter, &waker).is_pending());
    for buf in &mut bufs {
        buf.begin_lease();
    }
    bufs[0].quarantine();
    assert_eq!(waker.count(), 0);
    bufs[1].quarantine();
    assert_eq!(waker.count(), 1, "a waiter is woken when no slot can come");
    assert!(matches!(poll(&mut waiter, &waker), Poll::Ready(Err(AllocError::Exhausted))));
    assert_eq!(pool.alloc(1).unwrap_err(), AllocError::Exhausted);
    assert_eq!(pool.stats().quarantined(), 2);
    bufs[0].quarantine_released();
    let [first, second] = bufs;
    drop(first);
    assert!(pool.alloc(1).is_ok(), "free after a late proof");
    drop(second);
    assert_eq!(pool.stats().quarantined(), 1);
}
