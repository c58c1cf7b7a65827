//! A magazine by itself, without a pool: a stack of one thread that another thread empties.

use std::sync::Arc;

use loom_tests::{model, thread};
use pinbuf::__internals::LoneMagazine;

/// Takes the last number, changes its contents, and pushes it again. Answers a number that could
/// not be pushed.
fn use_one(magazine: &LoneMagazine) -> Option<usize> {
    let number = magazine.pop()?;
    magazine.change(number);
    (!magazine.push(number)).then_some(number)
}

fn bound(numbers: usize) -> Arc<LoneMagazine> {
    let magazine = Arc::new(LoneMagazine::new(numbers));
    assert!(magazine.bind());
    (0..numbers).for_each(|number| assert!(magazine.push(number)));
    magazine
}

/// The owner takes and pushes a number while the taker takes all. Each number ends in one place,
/// and the changes of its contents are ordered.
#[test]
fn a_number_is_the_owners_or_the_takers() {
    model(|| {
        let magazine = bound(2);
        let other = Arc::clone(&magazine);
        let taker = thread::spawn(move || {
            let taken = other.take();
            taken.iter().for_each(|number| other.change(*number));
            taken
        });
        let kept = use_one(&magazine);
        let mut all = taker.join().unwrap();
        all.extend(kept);
        all.extend(magazine.take());
        all.sort_unstable();
        assert_eq!(all, [0, 1]);
    });
}

/// Two threads take at once: one of them gets the numbers, and the owner can bind again.
#[test]
fn two_takers_share_nothing() {
    model(|| {
        let magazine = bound(1);
        let other = Arc::clone(&magazine);
        let taker = thread::spawn(move || other.take());
        let mut all = magazine.take();
        let theirs = taker.join().unwrap();
        all.extend(theirs);
        assert_eq!(all, [0]);
        assert!(magazine.bind());
        magazine.change(0);
        assert!(magazine.push(0));
        assert_eq!(magazine.take(), [0]);
    });
}
