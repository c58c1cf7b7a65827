//! Frozen buffers: clones and leases of one slot, on several threads.

use loom_tests::{model, pool, thread};
use pinbuf::{__internals::Lease, Pool, SharedBuf};

fn shared(pool: &Pool) -> SharedBuf {
    let mut buf = pool.try_alloc(1).unwrap();
    buf.extend_from_slice(b"x");
    buf.freeze()
}

fn read_and_drop(buf: SharedBuf) {
    assert_eq!(&buf[..], b"x");
    drop(buf);
}

/// Asserts that the slot is free exactly once, and that the next owner writes after every read.
fn assert_home(pool: &Pool) {
    let audit = pool.audit();
    assert!(audit.is_clean() && audit.stats.free() == 1, "{audit}");
    pool.try_alloc(1).unwrap().extend_from_slice(b"y");
}

/// Two clones are dropped at once while a third thread waits for the slot, and then writes.
#[test]
fn the_last_of_two_clones_recycles_the_slot() {
    model(|| {
        let pool = pool(1);
        let one = shared(&pool);
        let two = one.clone();
        let waiter = {
            let pool = pool.clone();
            thread::spawn(move || pool.alloc(1).unwrap().extend_from_slice(b"z"))
        };
        let other = thread::spawn(move || read_and_drop(two));
        read_and_drop(one);
        other.join().unwrap();
        waiter.join().unwrap();
        assert_home(&pool);
    });
}

/// The kernel releases one send while the last clone is dropped.
#[test]
fn a_clone_and_a_lease_end_in_any_order() {
    model(|| {
        let pool = pool(1);
        let one = shared(&pool);
        let mut leased = one.clone();
        leased.begin_lease();
        let reaper = thread::spawn(move || {
            leased.kernel_reads();
            leased.end_lease();
            drop(leased);
        });
        read_and_drop(one);
        reaper.join().unwrap();
        assert_home(&pool);
    });
}

/// A clone is made and the original dropped, while the lease of a second thread begins and ends.
#[test]
fn a_clone_made_while_a_lease_ends_is_counted() {
    model(|| {
        let pool = pool(1);
        let one = shared(&pool);
        let mut leased = one.clone();
        let sender = thread::spawn(move || {
            leased.begin_lease();
            leased.kernel_reads();
            leased.end_lease();
            drop(leased);
        });
        let two = one.clone();
        read_and_drop(one);
        assert_eq!(pool.stats().free(), 0, "a clone is left");
        read_and_drop(two);
        sender.join().unwrap();
        assert_home(&pool);
    });
}

/// A thaw while the other clone is read and dropped: refused, or after the drop.
#[test]
fn a_thawed_buffer_is_written_after_every_read() {
    model(|| {
        let pool = pool(1);
        let one = shared(&pool);
        let two = one.clone();
        let reader = thread::spawn(move || read_and_drop(two));
        match one.try_into_pinned() {
            Ok(mut buf) => buf.extend_from_slice(b"y"),
            Err(one) => read_and_drop(one),
        }
        reader.join().unwrap();
        assert_home(&pool);
    });
}
