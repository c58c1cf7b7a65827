//! The free list, through the calls that use it.

use loom_tests::{model, pool, thread};
use pinbuf::Pool;

/// Takes a slot if there is one, writes to its memory, and drops it.
fn use_one(pool: &Pool) {
    if let Ok(mut buf) = pool.try_alloc(1) {
        buf.extend_from_slice(b"x");
    }
}

/// One slot goes back and forth. Each owner's writes come after the writes of the previous owner:
/// the push's Release and the pop's Acquire.
#[test]
fn contents_are_published_with_the_slot() {
    model(|| {
        let pool = pool(1);
        let other = pool.clone();
        let user = thread::spawn(move || use_one(&other));
        use_one(&pool);
        user.join().unwrap();
        assert!(pool.try_alloc(1).is_ok());
    });
}

/// A thread has read the link of the top slot and not taken the slot yet. A second thread takes the
/// top slot and the next, and pushes the first back, so the link is stale. Without the tag the next
/// slot would be handed out twice, and the state word and the memory's witness would both report
/// the fault.
#[test]
fn a_stale_link_is_not_followed() {
    model(|| {
        let pool = pool(2);
        let other = pool.clone();
        let user = thread::spawn(move || {
            let first = other.try_alloc(1);
            let second = other.try_alloc(1);
            drop(first);
            if let Ok(mut buf) = second {
                buf.extend_from_slice(b"x");
            }
        });
        let first = pool.try_alloc(1);
        use_one(&pool);
        drop(first);
        user.join().unwrap();
        let audit = pool.audit();
        assert!(audit.is_clean() && audit.stats.free() == 2, "{audit}");
    });
}

/// Three threads, two slots: no slot has two owners, and none is lost.
#[test]
fn no_slot_is_handed_out_twice() {
    model(|| {
        let pool = pool(2);
        let others = [(); 2].map(|()| {
            let pool = pool.clone();
            thread::spawn(move || use_one(&pool))
        });
        use_one(&pool);
        for other in others {
            other.join().unwrap();
        }
        let audit = pool.audit();
        assert!(audit.is_clean() && audit.stats.free() == 2, "{audit}");
    });
}
