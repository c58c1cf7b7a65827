//! The free list, through the calls that use it.

use loom_tests::{model, pool, thread};
use pinbuf::Pool;

/// Takes a slot if there is one, writes to its memory, and drops it.
fn use_one(pool: &Pool) {
    if let Ok(mut buf) = pool.try_alloc(1) {
        buf.extend_from_slice(b"x");
    }
}

/// One slot goes back and forth. Each owner's writes come after those of the one before: the
/// push's Release and the pop's Acquire.
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

/// While one thread is between reading the link of the slot on top and taking it, the other takes
/// that slot and the next, and puts the first back: the link is stale. Without the tag the next
/// slot would be handed out twice, which its record and its memory's witness both report.
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

/// Three threads, two slots: nobody shares one, none is lost.
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
