//! Waiters and pools drive the holders of buffers.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    thread,
};

use pinbuf::{
    __internals::{Reclaim, raw},
    PinnedBuf, Pool,
};

use super::{CountedWaker, poll};
use crate::common::pool;

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
    let pool = pool(64, 1);
    let holder = Holder::new(0, true, vec![pool.alloc(1).unwrap()]);
    holder.register(&pool);
    drop(pool.alloc(1).unwrap());
    assert_eq!(holder.watched.load(Ordering::SeqCst), 0, "the waiter never slept");
    holder.bufs.lock().unwrap().push(pool.alloc(1).unwrap());
    assert!(matches!(poll(&mut pool.alloc_async(1), &Arc::default()), Poll::Ready(Ok(_))));
}

#[test]
fn a_waiter_has_holders_watched_before_it_sleeps() {
    let pool = pool(64, 1);
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
    let pool = pool(64, 1);
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
        let pool = pool(64, 1);
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
