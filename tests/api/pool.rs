//! The public interface of pools.

#![allow(clippy::print_stderr, reason = "seeds and skips are for the reader of a failure")]

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, RawWaker, RawWakerVTable, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use pinbuf::{
    __internals::{Lease, Reclaim, raw},
    AllocError, BuildError, PinnedBuf, Pool,
    pool::{Backing, LocalPool, Pages, Refusal, Waiter},
};

use crate::{alive::Alive, common::reserve::Reserve};

fn base(capacity: usize, count: usize) -> Pool {
    Pool::builder().class(capacity, count).backing(Backing::Require(Pages::Base)).build().unwrap()
}

#[derive(Default)]
struct CountedWaker(AtomicUsize);

impl CountedWaker {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for CountedWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn poll<F: Future + Unpin>(future: &mut F, waker: &Arc<CountedWaker>) -> Poll<F::Output> {
    let waker = Waker::from(Arc::clone(waker));
    Pin::new(future).poll(&mut Context::from_waker(&waker))
}

fn assert_all_free(pool: &Pool) {
    let audit = pool.audit();
    assert!(audit.is_clean(), "{audit}");
    let slots: usize = audit.stats.classes.iter().map(|class| class.slots).sum();
    assert_eq!(audit.stats.free(), slots, "{audit}");
}

mod alloc {
    use super::*;

    #[test]
    fn takes_the_smallest_class_that_fits() {
        let pool = Pool::builder().class(65536, 1).class(100, 1).class(4096, 1).build().unwrap();
        assert_eq!(pool.try_alloc(0).unwrap().capacity(), 100);
        assert_eq!(pool.try_alloc(100).unwrap().capacity(), 100);
        assert_eq!(pool.try_alloc(101).unwrap().capacity(), 4096);
        assert_eq!(pool.try_alloc(4097).unwrap().capacity(), 65536);
        let largest = 65536;
        let error = AllocError::TooLarge { requested: 65537, largest };
        assert_eq!(pool.try_alloc(65537).unwrap_err(), error);
        assert_eq!(pool.alloc(65537).unwrap_err(), error);
        assert_eq!(pool.alloc_timeout(65537, Duration::MAX).unwrap_err(), error);
    }

    #[test]
    fn an_empty_class_does_not_borrow_from_a_larger_one() {
        let pool = Pool::builder().class(4096, 1).class(8192, 1).build().unwrap();
        let _buf = pool.try_alloc(1).unwrap();
        assert_eq!(pool.try_alloc(1).unwrap_err(), AllocError::Exhausted);
    }

    #[test]
    fn hands_out_every_slot_once_and_none_overlap() {
        for capacity in [1, 64, 100, 4095, 4096, 5000] {
            let pool = base(capacity, 50);
            let mut bufs: Vec<_> = (0..50).map(|_| pool.try_alloc(capacity).unwrap()).collect();
            assert_eq!(pool.try_alloc(capacity).unwrap_err(), AllocError::Exhausted);
            for (n, buf) in bufs.iter_mut().enumerate() {
                buf.resize(capacity, n as u8);
            }
            for (n, buf) in bufs.iter().enumerate() {
                assert!(buf.iter().all(|&byte| byte == n as u8), "capacity {capacity}, buffer {n}");
                let start = buf.as_ptr() as usize;
                let alignment = capacity.next_power_of_two().clamp(64, 4096);
                assert_eq!(start % alignment, 0, "capacity {capacity}, buffer {n}");
                if capacity < 4096 {
                    let last = start + capacity - 1;
                    assert_eq!(start / 4096, last / 4096, "capacity {capacity} straddles a page");
                }
            }
            drop(bufs);
            assert_all_free(&pool);
        }
    }

    #[test]
    fn threads_that_pass_buffers_on_keep_the_pool_correct() {
        let seed = RandomState::new().hash_one(0);
        eprintln!("seed {seed}");
        let pool = base(64, 7);
        let shelf = Mutex::new(Vec::<(u64, PinnedBuf)>::new());
        thread::scope(|scope| {
            for id in 0..4_u64 {
                let (pool, shelf) = (&pool, &shelf);
                scope.spawn(move || {
                    let mut random = seed.wrapping_add(id.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1;
                    for round in 0..5_000_u64 {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let taken = match random % 4 {
                            0 => pool.try_alloc(64).ok(),
                            1 => pool.alloc_timeout(64, Duration::from_micros(random % 50)).ok(),
                            2 => {
                                // A future that is dropped in any state.
                                let waker = Arc::<CountedWaker>::default();
                                let _ = poll(&mut pool.alloc_async(64), &waker);
                                None
                            }
                            _ => {
                                if let Some((mark, buf)) = shelf.lock().unwrap().pop() {
                                    assert_eq!(
                                        buf[..],
                                        mark.to_le_bytes(),
                                        "another thread wrote to the buffer"
                                    );
                                }
                                None
                            }
                        };
                        if let Some(mut buf) = taken {
                            let mark = id << 32 | round;
                            assert!(buf.is_empty());
                            buf.extend_from_slice(&mark.to_le_bytes());
                            shelf.lock().unwrap().push((mark, buf));
                        }
                    }
                });
            }
        });
        drop(shelf);
        assert_all_free(&pool);
    }
}

mod waiting {
    use super::*;

    #[test]
    fn slots_go_to_waiters_in_order() {
        let pool = base(64, 1);
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
        let pool = base(64, 1);
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

        let pool = base(64, 1);
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
        let pool = base(64, 1);
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
        let pool = base(64, 1);
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
        let pool = base(64, 2);
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
        let pool = base(64, 1);
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
        let pool = base(64, 2);
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| (0..500).for_each(|_| drop(pool.alloc(1).unwrap())));
            }
        });
        assert_all_free(&pool);
    }

    #[test]
    fn a_timeout_ends_the_wait_and_leaves_the_queue() {
        let pool = base(64, 1);
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
            let pool = base(64, 64);
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
            let pool = base(64, 1);
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

        let pool = base(64, 1);
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
        let pool = base(64, 1);
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
        let pool = base(64, 1);
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
        let pool = base(64, 2);
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
}

mod reclaim {
    use super::*;

    /// A holder of buffers that drops one at each drive after the first `deaf` drives.
    struct Holder {
        deaf: AtomicUsize,
        watches: bool,
        watched: AtomicUsize,
        bufs: Mutex<Vec<PinnedBuf>>,
    }

    impl Holder {
        fn new(deaf: usize, watches: bool, bufs: Vec<PinnedBuf>) -> Arc<Self> {
            let (deaf, watched) = (deaf.into(), 0.into());
            Arc::new(Self { deaf, watches, watched, bufs: bufs.into() })
        }

        fn register(self: &Arc<Self>, pool: &Pool) {
            let weak: Weak<Self> = Arc::downgrade(self);
            raw(pool).register(weak);
        }
    }

    impl Reclaim for Holder {
        fn drive(&self) {
            let deaf = self.deaf.load(Ordering::SeqCst);
            if deaf > 0 {
                self.deaf.store(deaf - 1, Ordering::SeqCst);
            } else {
                let buf = self.bufs.lock().unwrap().pop();
                drop(buf);
            }
        }

        fn watch(self: Arc<Self>) -> bool {
            self.watched.fetch_add(1, Ordering::SeqCst);
            self.watches
        }
    }

    #[test]
    fn a_waiter_reaps_its_own_senders() {
        let pool = base(64, 1);
        let holder = Holder::new(0, true, vec![pool.alloc(1).unwrap()]);
        holder.register(&pool);
        drop(pool.alloc(1).unwrap());
        assert_eq!(holder.watched.load(Ordering::SeqCst), 0, "the waiter never slept");
        holder.bufs.lock().unwrap().push(pool.alloc(1).unwrap());
        assert!(matches!(poll(&mut pool.alloc_async(1), &Arc::default()), Poll::Ready(Ok(_))));
    }

    #[test]
    fn a_waiter_has_holders_watched_before_it_sleeps() {
        let pool = base(64, 1);
        let holder = Holder::new(1, true, vec![pool.alloc(1).unwrap()]);
        holder.register(&pool);
        assert!(!raw(&pool).has_waiters());
        thread::scope(|scope| {
            let waiter = scope.spawn(|| pool.alloc(1).unwrap());
            while holder.watched.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            assert!(raw(&pool).has_waiters(), "the waiter queued before it asked for help");
            holder.drive();
            drop(waiter.join().unwrap());
        });
        assert!(!raw(&pool).has_waiters());
    }

    #[test]
    fn without_a_reaper_a_waiter_drives_repeatedly() {
        let pool = base(64, 1);
        let holder = Holder::new(3, false, vec![pool.alloc(1).unwrap()]);
        holder.register(&pool);
        drop(pool.alloc(1).unwrap());
        holder.bufs.lock().unwrap().push(pool.alloc(1).unwrap());
        holder.deaf.store(3, Ordering::SeqCst);
        let waker = Arc::<CountedWaker>::default();
        let mut waiter = pin!(pool.alloc_async(1));
        let mut polls = 1;
        while poll(&mut waiter, &waker).is_pending() {
            assert_eq!(waker.count(), polls, "the future asks for another poll");
            polls += 1;
        }
        assert_eq!(polls, 4);
    }

    /// Holders with and without a thread that drives them.
    #[test]
    fn each_holder_must_be_watched_for_a_waiter_to_sleep() {
        for all in [[true, true], [true, false], [false, true]] {
            let pool = base(64, 1);
            let _buf = pool.try_alloc(1).unwrap();
            let holders = all.map(|watches| Holder::new(0, watches, Vec::new()));
            holders.iter().for_each(|holder| holder.register(&pool));
            let waker = Arc::<CountedWaker>::default();
            let mut waiter = pool.alloc_async(1);
            assert!(poll(&mut waiter, &waker).is_pending());
            let asks = usize::from(all != [true, true]);
            assert_eq!(waker.count(), asks, "{all:?}");
            drop(holders);
            assert!(poll(&mut waiter, &waker).is_pending());
            assert_eq!(waker.count(), asks, "no holder is left to drive");
        }
    }
}

mod buffer {
    use super::*;

    #[test]
    fn starts_empty_after_any_former_contents() {
        let pool = base(64, 1);
        pool.try_alloc(64).unwrap().resize(64, 7);
        let mut buf = pool.try_alloc(64).unwrap();
        assert!(buf.is_empty());
        buf.resize(32, 0);
        assert_eq!(buf[..], [0; 32]);
    }

    #[test]
    fn starts_empty_after_any_way_of_recycling() {
        let ways: [fn(PinnedBuf, &LocalPool<'_>); 5] = [
            |buf, _| drop(buf),
            |buf, local| local.recycle(buf),
            |buf, _| PinnedBuf::recycle_all(&mut vec![buf]),
            |buf, _| drop(buf.freeze()),
            |buf, _| drop([buf.freeze()].map(|buf| (buf.clone(), buf))),
        ];
        let pool = base(64, 64);
        let local = pool.local(64).unwrap();
        for way in ways {
            let mut bufs: Vec<_> = (0..64).map(|_| pool.try_alloc(64).unwrap()).collect();
            bufs.iter_mut().for_each(|buf| buf.resize(64, 7));
            bufs.into_iter().for_each(|buf| way(buf, &local));
            let bufs: Vec<_> = (0..64).map(|_| pool.try_alloc(64).unwrap()).collect();
            assert!(bufs.iter().all(|buf| buf.is_empty()));
        }
    }

    #[test]
    fn grows_and_shrinks_up_to_its_capacity() {
        let pool = base(10, 1);
        let mut buf = pool.try_alloc(10).unwrap();
        buf.extend_from_slice(b"hello");
        buf.resize(7, b'!');
        assert_eq!(&buf[..], b"hello!!");
        buf.resize(5, b'?');
        buf.truncate(9);
        assert_eq!(&buf[..], b"hello");
        buf[0] = b'j';
        buf.truncate(2);
        assert_eq!(buf.as_ref(), b"je");
        assert_eq!(buf.spare_capacity_mut().len(), 8);
        buf.spare_capacity_mut()[0] = b't';
        // SAFETY: three bytes were written.
        unsafe { buf.set_len(3) };
        assert_eq!(buf.as_mut(), b"jet");
        assert_eq!(format!("{buf:?}"), "PinnedBuf { len: 3, capacity: 10, .. }");
        buf.clear();
        assert!(buf.is_empty());
    }

    #[test]
    fn write_takes_the_bytes_that_fit() {
        let pool = base(10, 1);
        let mut buf = pool.try_alloc(10).unwrap();
        assert_eq!(buf.write(b"0123456").unwrap(), 7);
        assert_eq!(buf.write(b"789abc").unwrap(), 3);
        assert_eq!(buf.write(b"d").unwrap(), 0);
        assert_eq!(&buf[..], b"0123456789");
        let error = buf.write_all(b"d").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WriteZero);
    }

    #[test]
    #[should_panic(expected = "11 bytes do not fit into the 10 bytes left")]
    fn extending_beyond_the_capacity_panics() {
        base(10, 1).try_alloc(1).unwrap().extend_from_slice(&[0; 11]);
    }

    #[test]
    #[should_panic(expected = "a length of 11 is above the capacity of 10")]
    fn resizing_beyond_the_capacity_panics() {
        base(10, 1).try_alloc(1).unwrap().resize(11, 0);
    }

    #[test]
    fn zero_on_recycle_erases_all_contents() {
        let pool = Pool::builder().class(64, 1).zero_on_recycle(true).build().unwrap();
        let mut buf = pool.try_alloc(64).unwrap();
        buf.resize(64, 7);
        buf.truncate(1);
        drop(buf);
        let mut buf = pool.try_alloc(64).unwrap();
        // SAFETY: the pool zeroes slots on recycling, and mapped memory starts zeroed.
        unsafe { buf.set_len(64) };
        assert_eq!(buf[..], [0; 64]);
    }

    #[test]
    fn a_drop_in_flight_quarantines_even_while_unwinding() {
        let pool = base(64, 2);
        let mut buf = pool.try_alloc(1).unwrap();
        buf.begin_lease();
        drop(buf);
        let panicked = thread::scope(|scope| {
            let dropping = scope.spawn(|| {
                let mut buf = pool.try_alloc(1).unwrap();
                buf.begin_lease();
                panic!("on purpose, while a buffer is in flight");
            });
            dropping.join().is_err()
        });
        assert!(panicked);
        let stats = pool.stats();
        assert_eq!((stats.free(), stats.quarantined()), (0, 2));
        assert!(pool.audit().is_clean());
    }

    #[test]
    fn a_buffer_from_a_lease_is_an_ordinary_buffer() {
        let pool = base(64, 1);
        let mut buf = pool.try_alloc(1).unwrap();
        buf.extend_from_slice(b"abc");
        buf.begin_lease();
        assert_eq!(pool.stats().in_flight(), 1);
        buf.end_lease();
        assert_eq!(&buf[..], b"abc");
        drop(buf);
        assert_all_free(&pool);
    }

    #[cfg(feature = "bytes")]
    #[test]
    fn is_a_bytes_buf_mut() {
        use bytes::BufMut;

        let pool = base(10, 1);
        let mut buf = pool.try_alloc(1).unwrap();
        buf.put_u32(0x6162_6364);
        buf.put_slice(b"ef");
        assert_eq!(buf.remaining_mut(), 4);
        buf.put(&b"ghij"[..]);
        assert!(!buf.has_remaining_mut());
        assert_eq!(&buf[..], b"abcdefghij");
    }
}

mod closing {
    use super::*;

    #[test]
    fn buffers_outlive_the_pool_and_the_last_one_unmaps() {
        let pool = base(4096, 3);
        let alive = Alive::probe(&pool);
        let mut bufs: Vec<_> = (0..2).map(|_| pool.try_alloc(1).unwrap()).collect();
        let clone = pool.clone();
        drop(pool);
        drop(clone.try_alloc(1).unwrap());
        drop(clone);
        for buf in &mut bufs {
            buf.resize(4096, 7);
            assert!(buf.iter().all(|&byte| byte == 7));
        }
        drop(bufs.pop());
        assert!(alive.get());
        drop(bufs.pop());
        assert!(!alive.get());
    }

    #[test]
    fn a_pool_with_all_slots_free_unmaps_at_once() {
        let pool = base(4096, 3);
        let alive = Alive::probe(&pool);
        drop(pool.try_alloc(1).unwrap());
        assert!(alive.get());
        drop(pool);
        assert!(!alive.get());
    }

    #[test]
    fn memory_without_proof_of_release_stays_mapped() {
        let pool = base(4096, 1);
        let alive = Alive::probe(&pool);
        let mut buf = pool.try_alloc(1).unwrap();
        buf.begin_lease();
        drop(buf);
        drop(pool);
        assert!(alive.get());
    }

    #[test]
    fn pool_and_buffers_dropped_by_many_threads_at_once() {
        for _ in 0..200 {
            let pool = base(64, 4);
            let alive = Alive::probe(&pool);
            let bufs: Vec<_> = (0..3).map(|_| pool.try_alloc(1).unwrap()).collect();
            thread::scope(|scope| {
                for mut buf in bufs {
                    scope.spawn(move || buf.extend_from_slice(b"x"));
                }
                scope.spawn(move || drop(pool));
            });
            assert!(!alive.get());
        }
    }
}

mod building {
    use super::*;

    fn error(builder: pinbuf::pool::PoolBuilder) -> BuildError {
        builder.build().unwrap_err()
    }

    #[test]
    fn errors_tell_the_fault_and_the_remedy() {
        let class = |capacity, count| Pool::builder().class(capacity, count);
        assert_eq!(error(Pool::builder()), BuildError::NoClass);
        let empty = BuildError::EmptyClass { capacity: 0, count: 5 };
        assert_eq!(error(class(0, 5)), empty);
        assert!(matches!(error(class(5, 0)), BuildError::EmptyClass { .. }));
        let twice = error(class(64, 1).class(100, 1).class(64, 2));
        assert_eq!(twice, BuildError::DuplicateClass { capacity: 64 });
        assert!(twice.to_string().contains("make them one"));
        assert!(matches!(error(class(1, 1 << 26)), BuildError::TooManySlots { .. }));
        for (capacity, count) in [
            (usize::MAX, 1),
            (usize::MAX / 2, 1),
            (usize::MAX / 1000, 1001),
            (usize::MAX >> 24, 1 << 25),
        ] {
            let error = error(class(capacity, count));
            assert_eq!(error, BuildError::TooLarge { capacity, count });
            assert!(error.to_string().contains("use smaller or fewer slots"));
        }
        let error = error(class(64, 1).backing(Backing::Prefer(Pages::HugeTlb { page_bytes: 3 })));
        assert_eq!(error, BuildError::PageSize { page_bytes: 3 });
    }

    #[cfg(target_pointer_width = "64")]
    #[test]
    fn too_much_memory_is_an_error() {
        let error = error(Pool::builder().class(1 << 45, 1).class(1 << 44, 1));
        let BuildError::OutOfMemory { bytes, refusal: Refusal::Os(_) } = error else {
            panic!("{error:?}");
        };
        assert_eq!(bytes, (1 << 45) + (1 << 44));
    }
}

#[cfg(target_os = "linux")]
mod memory {
    use super::*;

    /// The `VmFlags` of the mapping at `address`.
    fn flags(address: usize) -> HashSet<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            if let Some(range) = mapped_range(line) {
                inside = range.contains(&address);
            } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        panic!("{address:#x} is not mapped");
    }

    fn address(pool: &Pool) -> usize {
        pool.try_alloc(1).unwrap().as_ptr() as usize
    }

    #[test]
    fn no_child_inherits_a_buffer() {
        let _reserve = Reserve::lock();
        for backing in [Backing::Auto, Backing::Require(Pages::Base)] {
            let pool = Pool::builder().class(1 << 20, 4).backing(backing).build().unwrap();
            let flags = flags(address(&pool));
            assert!(flags.contains("dc"), "{flags:?}");
            assert!(!flags.contains("dd") && !flags.contains("lo"), "{flags:?}");
        }
    }

    #[test]
    fn options_reach_the_mapping() {
        let pool = Pool::builder().class(4096, 4).dont_dump(true).mlock(true).build().unwrap();
        let flags = flags(address(&pool));
        assert!(flags.contains("dd") && flags.contains("lo"), "{flags:?}");
    }

    #[test]
    fn the_report_tells_the_pages_and_the_refused_kinds() {
        let _reserve = Reserve::lock();
        let pool = Pool::builder().class(2 << 20, 4).build().unwrap();
        let region = pool.region();
        eprintln!("{region}");
        assert!(region.bytes >= 8 << 20);
        assert_eq!(region.bytes % region.page_bytes, 0);
        let rungs = match region.pages {
            Pages::HugeTlb { .. } => 0,
            Pages::Thp => 1,
            Pages::Base => 2,
            other => panic!("{other}"),
        };
        assert_eq!(region.refused.len(), rungs);
        assert!(region.refused.iter().all(|(_, refusal)| matches!(refusal, Refusal::Os(_))));
    }

    #[test]
    fn a_small_pool_takes_no_huge_page_unless_required() {
        let pool = Pool::new(4096, 4).unwrap();
        let region = pool.region();
        assert_eq!((region.pages, region.bytes), (Pages::Base, 4 * 4096));
        let refusals: Vec<_> = region.refused.iter().map(|(_, refusal)| *refusal).collect();
        assert_eq!(refusals, [Refusal::TooSmall; 2]);
    }

    #[test]
    fn required_transparent_huge_pages_are_aligned_or_refused() {
        let builder = Pool::builder().class(4096, 4).backing(Backing::Require(Pages::Thp));
        match builder.build() {
            Ok(pool) => {
                let region = pool.region();
                assert_eq!((region.pages, region.bytes), (Pages::Thp, region.page_bytes));
                assert_eq!(address(&pool) % region.page_bytes, 0);
                assert!(flags(address(&pool)).contains("hg"));
            }
            Err(BuildError::Unavailable { pages: Pages::Thp, refusal }) => {
                eprintln!("skipped required_transparent_huge_pages_are_aligned: {refusal}");
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn required_hugetlb_pages_are_taken_or_refused_and_given_back() {
        let _reserve = Reserve::lock();
        const PAGE: usize = Reserve::PAGE;
        let pages = Pages::HugeTlb { page_bytes: PAGE };
        let free = || {
            let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
            std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok())
        };
        let reserve: usize = free().unwrap_or(0);
        // One page more than the reserve has.
        let greedy = Pool::builder().class(PAGE, reserve + 1).backing(Backing::Require(pages));
        assert!(matches!(
            greedy.build(),
            Err(BuildError::Unavailable { refusal: Refusal::Os(_), .. })
        ));
        if reserve == 0 {
            eprintln!("skipped required_hugetlb_pages_are_taken: no huge page is set aside");
            return;
        }
        // Not a multiple of the huge page.
        let pool = Pool::builder().class(4096, 3).backing(Backing::Require(pages)).build().unwrap();
        let region = pool.region();
        assert_eq!((region.pages, region.bytes), (pages, PAGE));
        assert!(flags(address(&pool)).contains("ht"));
        assert!(flags(address(&pool)).contains("dc"));
        assert_eq!(free(), Some(reserve - 1));
        let mut buf = pool.try_alloc(4096).unwrap();
        buf.resize(4096, 1);
        drop(pool);
        drop(buf);
        assert_eq!(free(), Some(reserve), "the page went back to the reserve");
    }
}

#[cfg(target_os = "linux")]
fn mapped_range(line: &str) -> Option<std::ops::Range<usize>> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let parse = |text| usize::from_str_radix(text, 16).ok();
    Some(parse(start)?..parse(end)?)
}
