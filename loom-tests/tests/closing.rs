//! Dropping a pool while slots are in use. The thread that recycles the last slot frees the memory.
//! Under loom a free counts as a write to every slot, so the free must come after every use.

use loom_tests::{Alive, model, pool, thread};
use pinbuf::PinnedBuf;

fn write_and_drop(mut buf: PinnedBuf) {
    buf.extend_from_slice(b"x");
}

/// The handle and the only slot in use are dropped at the same time.
#[test]
fn the_pool_is_freed_once_by_handle_or_slot() {
    model(|| {
        let pool = pool(2);
        let alive = Alive::probe(&pool);
        let buf = pool.try_alloc(1).unwrap();
        let user = thread::spawn(move || write_and_drop(buf));
        drop(pool);
        user.join().unwrap();
        assert!(!alive.get());
    });
}

/// The handle is gone; two slots are recycled at the same time.
#[test]
fn the_last_recycled_slot_frees_the_pool() {
    model(|| {
        let pool = pool(2);
        let alive = Alive::probe(&pool);
        let [one, two] = [(); 2].map(|()| pool.try_alloc(1).unwrap());
        drop(pool);
        let user = thread::spawn(move || write_and_drop(one));
        write_and_drop(two);
        user.join().unwrap();
        assert!(!alive.get());
    });
}

/// A waiter gets the slot, drops it and then drops the pool's last handle. The granting thread may
/// still work on the queue.
#[test]
fn the_pool_outlives_the_thread_that_grants_a_slot() {
    model(|| {
        let pool = pool(1);
        let alive = Alive::probe(&pool);
        let buf = pool.try_alloc(1).unwrap();
        let waiter = thread::spawn(move || {
            write_and_drop(pool.alloc(1).unwrap());
            drop(pool);
        });
        write_and_drop(buf);
        waiter.join().unwrap();
        assert!(!alive.get());
    });
}
