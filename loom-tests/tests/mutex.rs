//! The lock of every part.

use std::sync::Arc;

use loom_tests::{model, thread};
use pinbuf::__internals::{Guarded, Mutex};

/// Three threads want the lock at once. Each gets it, alone, and sees what the others did: none
/// sleeps for ever, and the one whom a sleeper's wake-up passes by is woken by that sleeper.
#[test]
fn whoever_waits_for_a_lock_gets_it() {
    model(|| {
        let lock = Arc::new(Mutex::new((0, Guarded::default())));
        let change = |lock: &Mutex<(u32, Guarded)>| {
            let mut guard = lock.lock();
            guard.0 += 1;
            guard.1.change();
        };
        let others = [(); 2].map(|()| {
            let lock = Arc::clone(&lock);
            thread::spawn(move || change(&lock))
        });
        change(&lock);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(lock.lock().0, 3);
    });
}

/// A holder lets go for the time of a call, and another thread tries its luck: whenever it has the
/// lock, the holder is at its call.
#[test]
fn a_lock_let_go_of_for_a_call_is_the_callers_again() {
    model(|| {
        let lock = Arc::new(Mutex::new(Guarded::default()));
        let other = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || {
                if let Some(guard) = lock.try_lock() {
                    guard.change();
                }
                lock.lock().change();
            })
        };
        let mut guard = lock.lock();
        guard.change();
        guard.unlocked(thread::yield_now);
        guard.change();
        drop(guard);
        other.join().unwrap();
    });
}
