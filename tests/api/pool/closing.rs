//! The end of a pool, in any order of drops.

use std::thread;

use pinbuf::__internals::Lease;

use crate::{alive::Alive, common::pool};

#[test]
fn buffers_outlive_the_pool_and_the_last_one_unmaps() {
    let pool = pool(4096, 3);
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
    let pool = pool(4096, 3);
    let alive = Alive::probe(&pool);
    drop(pool.try_alloc(1).unwrap());
    assert!(alive.get());
    drop(pool);
    assert!(!alive.get());
}

#[test]
fn memory_without_proof_of_release_stays_mapped() {
    let pool = pool(4096, 1);
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
        let pool = pool(64, 4);
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
