//! Turns in rounds: a member that wants a turn is on the list, and once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use loom_tests::{Mutex, model, thread};
use pinbuf::__internals::{Listed, Member, Turns};

/// A stream whose turn reads the notification.
#[derive(Default)]
struct Stream {
    in_flight: Mutex<bool>,
    listed: Listed,
    /// Past loom: read after the join of all threads.
    turns: AtomicUsize,
}

impl Member for Stream {
    fn listed(&self) -> &Listed {
        &self.listed
    }

    fn wants_turn(&self) -> bool {
        *self.in_flight.lock().unwrap()
    }

    fn take_turn(&self) {
        *self.in_flight.lock().unwrap() = false;
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    fn wake(&self) {}
}

impl Stream {
    /// Sends, and waits. Returns `true` if the rounds are to begin.
    fn send(self: &Arc<Self>, turns: &Turns<Self>) -> bool {
        *self.in_flight.lock().unwrap() = true;
        Turns::is_missing(&**self) && turns.add(self)
    }
}

/// The stream sends again, on another thread, while its turn ends.
#[test]
fn a_member_that_wants_a_turn_during_its_turn_has_another() {
    model(|| {
        let (turns, stream) = (Arc::new(Turns::default()), Arc::new(Stream::default()));
        assert!(stream.send(&turns), "the first begins the rounds");
        let sending = {
            let (turns, stream) = (Arc::clone(&turns), Arc::clone(&stream));
            thread::spawn(move || stream.send(&turns))
        };
        let goes_on = turns.round();
        let begins = sending.join().unwrap();
        assert!(!(goes_on && begins), "two tasks make rounds");
        assert_eq!(stream.wants_turn(), goes_on || begins);
        if stream.wants_turn() {
            assert!(!turns.round());
            assert_eq!(stream.turns.load(Ordering::Relaxed), 2);
        }
    });
}

/// Two tasks wait for one stream.
#[test]
fn a_member_of_two_tasks_has_one_turn() {
    model(|| {
        let (turns, stream) = (Arc::new(Turns::default()), Arc::new(Stream::default()));
        let other = {
            let (turns, stream) = (Arc::clone(&turns), Arc::clone(&stream));
            thread::spawn(move || stream.send(&turns))
        };
        let begins = stream.send(&turns);
        assert!(begins != other.join().unwrap(), "one of them begins the rounds");
        assert!(!turns.round());
        assert_eq!(stream.turns.load(Ordering::Relaxed), 1);
    });
}
