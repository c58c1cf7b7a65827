//! A magazine without a pool: a stack of one thread, emptied by a second thread.
//!
//! Under loom alone. Elsewhere the contents have no size, so all numbers share an address, and a
//! magazine stays unbound for a while after a take.

#![cfg(loom)]

use std::sync::Arc;

use loom_tests::{model, thread};
use pinbuf::__internals::LoneMagazine;

/// A magazine with room for two numbers, with number 0 in it.
fn with_zero() -> Arc<LoneMagazine> {
    let magazine = Arc::new(LoneMagazine::new(2));
    assert!(magazine.bind(0));
    assert!(magazine.push(0));
    magazine
}

/// The owner takes number 0 and pushes number 1, while the taker takes all. Each number ends in a
/// single place, and the changes of the contents are ordered.
#[test]
fn a_number_is_the_owners_or_the_takers() {
    model(|| {
        let magazine = with_zero();
        let other = Arc::clone(&magazine);
        let taker = thread::spawn(move || {
            let taken = other.take();
            taken.iter().for_each(|number| other.change(*number));
            taken
        });
        let mut all = Vec::from_iter(magazine.pop());
        all.iter().for_each(|number| magazine.change(*number));
        magazine.change(1);
        if !magazine.push(1) {
            all.push(1);
        }
        all.extend(taker.join().unwrap());
        all.extend(magazine.take());
        all.sort_unstable();
        assert_eq!(all, [0, 1]);
    });
}

/// Two threads take at once: only one gets the numbers, and the owner can bind again.
#[test]
fn two_takers_share_nothing() {
    model(|| {
        let magazine = with_zero();
        let other = Arc::clone(&magazine);
        let taker = thread::spawn(move || other.take());
        let mut all = magazine.take();
        let theirs = taker.join().unwrap();
        all.extend(theirs);
        assert_eq!(all, [0]);
        assert!(magazine.bind(0));
        magazine.change(0);
        assert!(magazine.push(0));
        assert_eq!(magazine.take(), [0]);
    });
}

/// The owner binds the magazine to another list, with another lock, while the taker takes all. The
/// taker's reads of the items come before the owner's next writes.
#[test]
fn a_magazine_changes_lists_after_the_last_read() {
    model(|| {
        let magazine = with_zero();
        let other = Arc::clone(&magazine);
        let taker = thread::spawn(move || other.take());
        magazine.bind(1);
        assert_eq!(taker.join().unwrap(), [0]);
    });
}

/// The owner holds what the magazine's list belongs to, while the taker takes all. A hold comes
/// before all that the taker does afterwards.
#[test]
fn a_hold_comes_before_the_end_of_a_list() {
    model(|| {
        let magazine = with_zero();
        let other = Arc::clone(&magazine);
        let taker = thread::spawn(move || other.take());
        magazine.hold();
        assert_eq!(taker.join().unwrap(), [0]);
    });
}
