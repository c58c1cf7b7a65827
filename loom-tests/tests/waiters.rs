//! Waiting for a slot. A lost wake-up shows as a deadlock.

use std::{
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Waker},
};

use loom_tests::{Mutex, block_on, model, pool, thread};
use pinbuf::{
    __internals::{Lease, Reclaim, raw},
    AllocError, PinnedBuf,
    pool::Alloc,
};

fn poll_once(waiter: &mut Alloc<'_>) -> bool {
    Pin::new(waiter).poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

/// The slot is recycled before, while or after the waiter queues.
#[test]
fn a_waiter_is_woken() {
    model(|| {
        let pool = pool(1);
        let mut buf = pool.try_alloc(1).unwrap();
        let holder = thread::spawn(move || {
            buf.extend_from_slice(b"x");
            drop(buf);
        });
        pool.alloc(1).unwrap().extend_from_slice(b"y");
        holder.join().unwrap();
    });
}

/// As above, with a runtime's waker instead of a blocked thread.
#[test]
fn a_future_is_woken() {
    model(|| {
        let pool = pool(1);
        let buf = pool.try_alloc(1).unwrap();
        let holder = thread::spawn(move || drop(buf));
        block_on(pool.alloc_async(1)).unwrap().extend_from_slice(b"y");
        holder.join().unwrap();
    });
}

/// The slot goes to both waiters in turn, in either order.
#[test]
fn two_waiters_share_one_slot() {
    model(|| {
        let pool = pool(1);
        let buf = pool.try_alloc(1).unwrap();
        let other = pool.clone();
        let waiter = thread::spawn(move || other.alloc(1).unwrap().extend_from_slice(b"x"));
        drop(buf);
        pool.alloc(1).unwrap().extend_from_slice(b"y");
        waiter.join().unwrap();
    });
}

/// The first waiter gives up while the slot is granted to it: the second waiter gets the slot.
#[test]
fn a_cancelled_waiter_passes_its_slot_on() {
    model(|| {
        let pool = pool(1);
        let buf = pool.try_alloc(1).unwrap();
        let mut first = pool.alloc_async(1);
        assert!(poll_once(&mut first));
        let other = pool.clone();
        let second = thread::spawn(move || other.alloc(1).unwrap().extend_from_slice(b"x"));
        let holder = thread::spawn(move || drop(buf));
        drop(first);
        second.join().unwrap();
        holder.join().unwrap();
        let audit = pool.audit();
        assert!(audit.is_clean() && audit.stats.free() == 1, "{audit}");
    });
}

/// The last two slots become Quarantined while a waiter queues: no slot is left to wait for, and
/// the waiter gets an error.
#[test]
fn no_waiter_sleeps_on_quarantined_slots() {
    model(|| {
        let pool = pool(2);
        let [one, two] = [(); 2].map(|()| {
            let mut buf = pool.try_alloc(1).unwrap();
            buf.begin_lease();
            buf
        });
        let closers = [one, two].map(|mut buf| thread::spawn(move || buf.quarantine()));
        assert_eq!(pool.alloc(1).unwrap_err(), AllocError::Exhausted);
        for closer in closers {
            closer.join().unwrap();
        }
    });
}

/// A small sender: holds a buffer until driven.
struct Holder {
    in_flight: Mutex<Option<PinnedBuf>>,
}

impl Holder {
    fn new(buf: Option<PinnedBuf>) -> Arc<Self> {
        Arc::new(Self { in_flight: Mutex::new(buf) })
    }

    fn weak(self: &Arc<Self>) -> Weak<dyn Reclaim> {
        let weak: Weak<Self> = Arc::downgrade(self);
        weak
    }
}

impl Reclaim for Holder {
    fn drive(&self) {
        let buf = self.in_flight.lock().unwrap().take();
        drop(buf);
    }

    /// The watching thread is not modelled: it drives at events, and there are none.
    fn watch(self: Arc<Self>) -> bool {
        true
    }
}

/// Both slots are in flight, and the threads with the senders wait for a slot each. Each may be
/// granted the slot reaped by the peer.
#[test]
fn waiters_reap_their_own_senders() {
    model(|| {
        let pool = pool(2);
        let holders = [(); 2].map(|()| Holder::new(pool.try_alloc(1).ok()));
        for holder in &holders {
            raw(&pool).register(holder.weak());
        }
        let other = pool.clone();
        let waiter = thread::spawn(move || other.alloc(1).unwrap());
        let one = pool.alloc(1).unwrap();
        let two = waiter.join().unwrap();
        drop((one, two));
        assert!(pool.audit().is_clean());
    });
}

/// A slot goes in flight while a waiter queues: either the waiter finds the holder registered, or
/// the holder finds the waiter queued and asks for a watch.
#[test]
fn a_holder_that_registers_late_sees_the_waiter() {
    model(|| {
        let pool = pool(1);
        let buf = pool.try_alloc(1).unwrap();
        let holder = Holder::new(None);
        let sender = {
            let holder = Arc::clone(&holder);
            let pool = pool.clone();
            thread::spawn(move || {
                *holder.in_flight.lock().unwrap() = Some(buf);
                raw(&pool).register(holder.weak());
                if raw(&pool).has_waiters() {
                    // The watching thread would do this at the next event.
                    holder.drive();
                }
            })
        };
        drop(pool.alloc(1).unwrap());
        sender.join().unwrap();
    });
}
