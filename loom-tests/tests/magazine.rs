//! Magazines: stacks of free slots, one per thread. Other threads take their slots when the depot
//! is empty. In a model a magazine has room for two slots, a pool of six slots has magazines, and
//! bundles have two slots.
//!
//! The owner's half of the barrier is a fence here, like the heavy half. The models show the
//! protocol to be right. They do not show the kernel's barrier to replace the missing half.

use loom_tests::{Alive, block_on, model, pool, thread};
use pinbuf::{PinnedBuf, Pool};

/// Takes a slot, writes to its memory, and drops it into this thread's magazine.
fn use_one(pool: &Pool) {
    pool.try_alloc(1).expect("more slots than users").extend_from_slice(b"x");
}

/// A pool with two slots on the free list and the others in use.
fn two_left() -> (Pool, [PinnedBuf; 4]) {
    let pool = pool(6);
    let out = [(); 4].map(|()| pool.try_alloc(1).unwrap());
    (pool, out)
}

fn assert_all_free(pool: &Pool) {
    let audit = pool.audit();
    assert!(audit.is_clean() && audit.stats.free() == 6, "{audit}");
}

/// A joined thread may still be unbinding its magazines.
fn wait_for_the_end(alive: &Alive) {
    while alive.get() {
        thread::yield_now();
    }
}

/// The owner works on a magazine while a second thread takes the slots away. A slot is free all the
/// time. One of the threads finds the slot in any place, and the writes of the two owners are
/// ordered.
#[test]
fn a_slot_in_a_magazine_is_the_owners_or_the_takers() {
    model(|| {
        let (pool, out) = two_left();
        let other = pool.clone();
        let owner = thread::spawn(move || {
            use_one(&other);
            use_one(&other);
        });
        use_one(&pool);
        owner.join().unwrap();
        drop(out);
        assert_all_free(&pool);
    });
}

/// The only free slots are in the magazine of an idle thread.
#[test]
fn no_slot_is_stranded_with_an_idle_thread() {
    model(|| {
        let (pool, out) = two_left();
        let local = pool.local(1).unwrap();
        let buf = local.try_alloc().unwrap();
        local.recycle(buf);
        let other = pool.clone();
        let waiter = thread::spawn(move || {
            let two = [(); 2].map(|()| other.alloc(1).unwrap());
            assert!(other.try_alloc(1).is_err());
            drop(two);
        });
        waiter.join().unwrap();
        drop((out, local));
        assert_all_free(&pool);
    });
}

/// An owner's writes come before the next owner's, for a slot that went through the magazines of
/// both.
#[test]
fn contents_are_published_with_a_magazine() {
    model(|| {
        let (pool, out) = two_left();
        let other = pool.clone();
        let owner = thread::spawn(move || {
            if let Ok(mut buf) = other.try_alloc(1) {
                buf.extend_from_slice(b"x");
            }
        });
        let mut two = [pool.alloc(1).unwrap(), pool.alloc(1).unwrap()];
        two.iter_mut().for_each(|buf| buf.extend_from_slice(b"y"));
        owner.join().unwrap();
        drop((out, two));
        assert_all_free(&pool);
    });
}

/// A thread with a magazine drops the last slot while another thread queues: the slot goes to the
/// waiter, not into the magazine.
#[test]
fn a_waiter_gets_the_slot_before_a_magazine() {
    model(|| {
        let (pool, out) = two_left();
        let last = pool.try_alloc(1).unwrap();
        let other = pool.clone();
        let owner = thread::spawn(move || {
            let buf = other.alloc(1).unwrap();
            drop(buf);
        });
        block_on(pool.alloc_async(1)).unwrap().extend_from_slice(b"y");
        owner.join().unwrap();
        drop((out, last));
        assert_all_free(&pool);
    });
}

/// As above, but the thread has no magazine yet, and must not bind one beside a waiter.
#[test]
fn no_magazine_is_bound_beside_a_waiter() {
    model(|| {
        let (pool, out) = two_left();
        let (last, buf) = (pool.try_alloc(1).unwrap(), pool.try_alloc(1).unwrap());
        let holder = thread::spawn(move || drop(buf));
        pool.alloc(1).unwrap().extend_from_slice(b"y");
        holder.join().unwrap();
        drop((out, last));
        assert_all_free(&pool);
    });
}

/// The pool's last handle is dropped while a slot is on the way into a magazine with further slots.
/// The memory is freed once, after the last use.
#[test]
fn the_pools_end_empties_magazines() {
    model(|| {
        let pool = pool(6);
        let alive = Alive::probe(&pool);
        let other = pool.clone();
        let owner = thread::spawn(move || {
            let mut buf = other.try_alloc(1).unwrap();
            drop(other);
            buf.extend_from_slice(b"x");
        });
        use_one(&pool);
        drop(pool);
        owner.join().unwrap();
        wait_for_the_end(&alive);
    });
}

/// A thread ends while a second thread empties the magazine.
#[test]
fn a_thread_that_ends_moves_its_magazine_to_the_depot_once() {
    model(|| {
        let (pool, out) = two_left();
        let alive = Alive::probe(&pool);
        let other = pool.clone();
        let owner = thread::spawn(move || use_one(&other));
        use_one(&pool);
        owner.join().unwrap();
        drop(out);
        assert_all_free(&pool);
        drop(pool);
        wait_for_the_end(&alive);
    });
}

/// A thread binds a magazine to a second pool while the first pool ends: in a model a thread has a
/// single magazine for all pools.
#[test]
fn a_magazine_changes_pools_while_the_first_ends() {
    model(|| {
        let (next, pool) = (pool(6), pool(6));
        let alive = Alive::probe(&pool);
        let buf = pool.try_alloc(1).unwrap();
        let owner = thread::spawn(move || {
            drop(buf);
            use_one(&next);
            assert_all_free(&next);
        });
        drop(pool);
        owner.join().unwrap();
        wait_for_the_end(&alive);
    });
}
