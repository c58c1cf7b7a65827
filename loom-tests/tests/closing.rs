//! Dropping a pool while its slots are out. Whoever brings the last slot home frees the memory;
//! under loom that counts as a write to every slot, so it must come after every use.

use loom_tests::{Alive, model, pool, thread};
use pinbuf::PinnedBuf;

fn write_and_drop(mut buf: PinnedBuf) {
    buf.extend_from_slice(b"x");
}

/// The handle and the only slot that is out go at the same time.
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

/// The handle is gone; two slots come home at the same time.
#[test]
fn the_last_slot_home_frees_the_pool() {
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

/// A waiter gets the slot, drops it and then the pool's last handle, while the thread that handed
/// it over may not be through with the queue.
#[test]
fn a_hand_over_outlives_what_the_waiter_does_with_the_slot() {
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
