//! The lock of every part.

use std::sync::Arc;

use loom_tests::{model, thread};
use pinbuf::__internals::{Guarded, Mutex};

/// Three threads want the lock at once. Each thread gets it alone and sees the changes of the other
/// threads. No thread sleeps for ever: a woken thread wakes the next.
#[test]
fn every_waiting_thread_gets_the_lock() {
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
