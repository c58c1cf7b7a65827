//! Magazines through the pool's public interface, with real threads: no slot is stranded, and ends
//! are clean.

#![cfg(target_os = "linux")]

use std::{
    cell::RefCell,
    pin::pin,
    sync::{
        Barrier, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use pinbuf::{AllocError, PinnedBuf, Pool};

use crate::{
    alive::Alive,
    common::{self, assert_all_free, process::alone},
};

/// A pool of slots of 64 bytes, enough for magazines.
fn pool(count: usize) -> Pool {
    common::pool(64, count)
}

/// All slots of a pool.
fn all(pool: &Pool) -> Vec<PinnedBuf> {
    std::iter::from_fn(|| pool.try_alloc(1).ok()).collect()
}

/// Runs `body` on a second thread. The thread then stays idle until the end of `meanwhile`.
fn beside_idle<R: Send>(body: impl FnOnce() -> R + Send, meanwhile: impl FnOnce()) -> R {
    thread::scope(|scope| {
        let (done, is_done) = mpsc::channel();
        let (over, is_over) = mpsc::channel::<()>();
        let idle = scope.spawn(move || {
            let result = body();
            done.send(()).unwrap();
            let _ = is_over.recv();
            result
        });
        is_done.recv().unwrap();
        meanwhile();
        drop(over);
        idle.join().unwrap()
    })
}

#[test]
fn slots_of_an_idle_thread_are_found() {
    for count in [64, 100, 1000] {
        let pool = pool(count);
        let use_one = || drop(pool.try_alloc(1).unwrap());
        beside_idle(use_one, || {
            let bufs = all(&pool);
            assert_eq!(bufs.len(), count);
            assert_eq!(pool.try_alloc(1).unwrap_err(), AllocError::Exhausted);
            drop(bufs);
        });
        let use_local = || {
            let local = pool.local(1).unwrap();
            local.recycle(local.try_alloc().unwrap());
            beside_idle(use_one, || {
                let mut bufs = Vec::new();
                assert_eq!(pool.try_alloc_many(1, usize::MAX, &mut bufs), Ok(count));
                PinnedBuf::recycle_all(&mut bufs);
            });
        };
        use_local();
        assert_all_free(&pool);
    }
}

#[test]
fn a_waiter_gets_the_slot_before_its_threads_magazine() {
    let pool = pool(64);
    let mut bufs = all(&pool);
    assert_eq!(bufs.len(), 64);
    let mut alloc = pin!(pool.alloc_async(1));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(alloc.as_mut().poll(&mut cx).is_pending());
    bufs.pop();
    assert!(matches!(alloc.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
    drop(bufs);
    assert_all_free(&pool);
}

/// 62 of 64 slots are in use, and two threads use one slot each. A slot for either is always free:
/// on the list, or in a magazine of one of the threads.
#[test]
fn a_free_slot_is_always_found() {
    let pool = pool(64);
    let _out: Vec<_> = (0..62).map(|_| pool.try_alloc(1).unwrap()).collect();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0..20_000 {
                    let buf = pool.try_alloc(1);
                    assert!(buf.is_ok(), "no slot in round {round}");
                }
            });
        }
    });
}

#[test]
fn ended_threads_leave_no_slot_behind() {
    let pool = pool(256);
    for _ in 0..50 {
        let pool = pool.clone();
        thread::spawn(move || {
            let bufs: Vec<_> = (0..40).map(|_| pool.try_alloc(1).unwrap()).collect();
            drop(bufs);
        })
        .join()
        .unwrap();
        // A magazine left on the list would be read after the end of the memory.
    }
    assert_all_free(&pool);
    assert_eq!(all(&pool).len(), 256);
}

/// Uses a pool at the end of a thread.
struct Late(Pool);

impl Drop for Late {
    fn drop(&mut self) {
        let bufs: Vec<_> = (0..20).map(|_| self.0.try_alloc(1).unwrap()).collect();
        drop(bufs);
        assert!(self.0.audit().is_clean());
    }
}

#[test]
fn destructors_of_thread_locals_can_use_the_pool() {
    thread_local! {
        static EARLIER: RefCell<Option<Late>> = const { RefCell::new(None) };
        static LATER: RefCell<Option<Late>> = const { RefCell::new(None) };
    }
    let pool = pool(256);
    let alive = Alive::probe(&pool);
    for _ in 0..10 {
        let pool = pool.clone();
        thread::spawn(move || {
            // A value is made before the thread's magazines, and a value after: in any order of
            // destruction, one value has no magazines.
            EARLIER.with(|late| *late.borrow_mut() = Some(Late(pool.clone())));
            drop(pool.try_alloc(1).unwrap());
            LATER.with(|late| *late.borrow_mut() = Some(Late(pool)));
        })
        .join()
        .unwrap();
    }
    assert_all_free(&pool);
    drop(pool);
    assert!(!alive.get());
}

#[test]
fn a_pool_ends_with_slots_in_magazines() {
    let pool = pool(1000);
    let alive = Alive::probe(&pool);
    let (one, two) = (pool.clone(), pool.clone());
    let last = beside_idle(
        move || {
            let bufs: Vec<_> = (0..61).map(|_| one.try_alloc(1).unwrap()).collect();
            let local = one.local(1).unwrap();
            bufs.into_iter().take(20).for_each(|buf| local.recycle(buf));
            drop(local);
            one.try_alloc(1).unwrap()
        },
        || {
            drop(two.try_alloc(1).unwrap());
            drop(two);
            drop(pool);
        },
    );
    assert!(alive.get(), "one buffer is in use");
    // On this thread, with a magazine bound to the class.
    drop(last);
    assert!(!alive.get());
}

#[test]
fn pools_end_beside_drops_into_magazines() {
    for _ in 0..300 {
        let pool = pool(64);
        let alive = Alive::probe(&pool);
        let start = Barrier::new(3);
        let mut bufs: Vec<_> = (0..20).map(|_| pool.try_alloc(1).unwrap()).collect();
        let rest = bufs.split_off(10);
        thread::scope(|scope| {
            for bufs in [bufs, rest] {
                let (start, pool) = (&start, pool.clone());
                scope.spawn(move || {
                    drop(pool.try_alloc(1).unwrap());
                    drop(pool);
                    start.wait();
                    bufs.into_iter().for_each(drop);
                });
            }
            start.wait();
            drop(pool);
        });
        // A scope does not wait for thread-local destructors.
        common::eventually("the pool is gone", || !alive.get());
    }
}

#[test]
fn memory_is_bounded_by_threads() {
    alone(|| {
        const POOLS: usize = 10_000;
        const THREADS: usize = 100;
        let pools: Vec<_> = (0..POOLS).map(|_| pool(64)).collect();
        let resident = || -> usize {
            let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return 0 };
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            line.unwrap_or("0 kB").trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
        };
        let (used, over) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
        thread::scope(|scope| {
            let before = resident();
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for pool in &pools {
                        drop(pool.try_alloc(1).unwrap());
                    }
                    used.wait();
                    over.wait();
                });
            }
            used.wait();
            let grown = resident().saturating_sub(before);
            over.wait();
            // Two pages, a stack, and lists of pools with magazines of a few threads.
            assert!(grown < THREADS * (256 << 10), "{} KiB a thread", (grown / THREADS) >> 10);
        });
        let last = pools.last().unwrap();
        common::eventually("all slots are free", || {
            last.audit().is_clean() && last.stats().free() == 64
        });
        pools.iter().for_each(assert_all_free);
    });
}

#[test]
fn drops_of_many_buffers_equal_single_drops() {
    let (pool, other) = (pool(64), pool(100));
    let mut bufs = Vec::new();
    assert_eq!(pool.try_alloc_many(1, 0, &mut bufs), Ok(0));
    assert_eq!(pool.try_alloc_many(1, 10, &mut bufs), Ok(10));
    assert_eq!(other.try_alloc_many(1, 90, &mut bufs), Ok(90));
    assert_eq!(pool.try_alloc_many(1, 100, &mut bufs), Ok(54));
    assert_eq!(pool.try_alloc_many(1, 1, &mut bufs), Err(AllocError::Exhausted));
    assert!(pool.try_alloc_many(65, 1, &mut bufs).is_err());
    for (mark, buf) in bufs.iter_mut().enumerate() {
        assert!(buf.is_empty());
        buf.resize(64, mark as u8);
    }
    assert!(bufs.iter().enumerate().all(|(mark, buf)| buf.iter().all(|&b| b == mark as u8)));
    assert_eq!((pool.stats().free(), other.stats().free()), (0, 10));
    PinnedBuf::recycle_all(&mut bufs);
    assert!(bufs.is_empty());
    assert_all_free(&pool);
    assert_all_free(&other);
}

#[test]
fn a_local_handle_keeps_buffers_of_its_class_only() {
    let two = Pool::builder().class(64, 64).class(128, 64).build().unwrap();
    let local = two.local(65).unwrap();
    assert_eq!(two.local(129).unwrap_err(), AllocError::TooLarge { requested: 129, largest: 128 });
    let buf = local.try_alloc().unwrap();
    assert_eq!(buf.capacity(), 128);
    let start = buf.as_ptr();
    local.recycle(buf);
    let buf = local.try_alloc().unwrap();
    assert_eq!(buf.as_ptr(), start, "the slot is in the handle's own magazine");
    let small = two.try_alloc(1).unwrap();
    let foreign = pool(64).try_alloc(1).unwrap();
    [buf, small, foreign].into_iter().for_each(|buf| local.recycle(buf));
    assert_all_free(&two);
    let zeroing = Pool::builder().class(64, 64).zero_on_recycle(true).build().unwrap();
    let local = zeroing.local(1).unwrap();
    let mut buf = local.try_alloc().unwrap();
    buf.extend_from_slice(&[7; 64]);
    local.recycle(buf);
    let mut buf = local.try_alloc().unwrap();
    // SAFETY: the pool was built with zeroing.
    unsafe { buf.set_len(64) };
    assert_eq!(buf[..], [0; 64]);
}

#[test]
fn a_full_local_magazine_makes_room_for_the_next_buffer() {
    let pool = pool(64);
    let local = pool.local(1).unwrap();
    let bufs: Vec<_> = std::iter::from_fn(|| local.try_alloc().ok()).collect();
    assert_eq!(bufs.len(), 64);
    for buf in bufs {
        let start = buf.as_ptr();
        local.recycle(buf);
        let last = local.try_alloc().unwrap();
        assert_eq!(last.as_ptr(), start, "the handle's own magazine has the slot");
        local.recycle(last);
    }
    assert_all_free(&pool);
}

/// Threads take and drop buffers in every way, pass them on, wait, and check the marks of the other
/// threads, in a large pool and in a pool that runs dry repeatedly.
#[test]
fn concurrent_operations_keep_the_pool_correct() {
    let seed = common::seed();
    for (count, threads) in [(1000, 4), (64, 6)] {
        let pool = pool(count);
        let shelf = Mutex::new(Vec::<(u64, PinnedBuf)>::new());
        let failed = AtomicBool::new(false);
        thread::scope(|scope| {
            for id in 0..threads {
                let (pool, shelf, failed) = (&pool, &shelf, &failed);
                scope.spawn(move || {
                    let mut random = common::random(seed ^ id << 32);
                    let local = pool.local(64).unwrap();
                    let mut bufs = Vec::new();
                    for round in 0..4_000_u64 {
                        let random = random();
                        let mark = id << 32 | round;
                        match random % 8 {
                            0 | 1 => bufs.extend(pool.try_alloc(64)),
                            2 => bufs.extend(local.try_alloc()),
                            3 => {
                                let most = (random >> 8) as usize % 40;
                                let _ = pool.try_alloc_many(64, most, &mut bufs);
                            }
                            4 => {
                                let wait = Duration::from_micros(random >> 8 & 63);
                                bufs.extend(pool.alloc_timeout(64, wait));
                            }
                            5 => bufs.drain(..).for_each(|buf| local.recycle(buf)),
                            6 => PinnedBuf::recycle_all(&mut bufs),
                            _ => {
                                if let Some((mark, buf)) = shelf.lock().unwrap().pop()
                                    && buf[..] != mark.to_le_bytes()
                                {
                                    failed.store(true, Ordering::Relaxed);
                                }
                            }
                        }
                        if let Some(mut buf) = bufs.pop() {
                            buf.clear();
                            buf.extend_from_slice(&mark.to_le_bytes());
                            shelf.lock().unwrap().push((mark, buf));
                        }
                        bufs.truncate(20);
                    }
                });
            }
        });
        assert!(!failed.load(Ordering::Relaxed), "a thread wrote to the buffer of another");
        drop(shelf);
        common::eventually("all slots are free", || {
            pool.audit().is_clean() && pool.stats().free() == count
        });
    }
}
