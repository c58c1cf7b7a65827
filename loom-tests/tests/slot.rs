//! A slot that several holders count.

use std::sync::Arc;

use loom_tests::{model, thread};
use pinbuf::__internals::StateWord;

/// Reads the memory, gives up a handle, and writes the memory if that was the last one: what the
/// slot's next owner does.
fn leave(slot: &StateWord) -> bool {
    slot.contents_read();
    let last = slot.unshare();
    if last {
        slot.contents_written();
    }
    last
}

/// Two handles are dropped at once. One of the droppers, and only one, is told that it was the
/// last, and what it then does to the memory comes after the other's reads.
#[test]
fn the_last_handle_out_is_alone() {
    model(|| {
        let slot = Arc::new(StateWord::new(0));
        slot.claim();
        slot.share();
        let other = {
            let slot = Arc::clone(&slot);
            thread::spawn(move || leave(&slot))
        };
        let last = leave(&slot);
        assert_ne!(last, other.join().unwrap());
    });
}

/// A handle, two leases: the kernel lets go of the leases, in any order with the handle's drop.
#[test]
fn the_last_lease_out_is_alone() {
    model(|| {
        let slot = Arc::new(StateWord::new(0));
        slot.claim();
        slot.share();
        slot.share();
        slot.begin_lease();
        slot.begin_lease();
        let reapers = [(); 2].map(|()| {
            let slot = Arc::clone(&slot);
            thread::spawn(move || {
                slot.end_lease();
                leave(&slot)
            })
        });
        let last = leave(&slot);
        let lasts = reapers.map(|reaper| reaper.join().unwrap());
        assert_eq!([last, lasts[0], lasts[1]].iter().filter(|&&last| last).count(), 1);
    });
}

/// One lease turns out unprovable while the handle is dropped: the slot is nobody's to recycle
/// before the late proof.
#[test]
fn a_quarantined_lease_keeps_the_slot_out() {
    model(|| {
        let slot = Arc::new(StateWord::new(0));
        slot.claim();
        slot.share();
        slot.begin_lease();
        let closer = {
            let slot = Arc::clone(&slot);
            thread::spawn(move || slot.quarantine())
        };
        assert!(!slot.unshare());
        closer.join().unwrap();
        slot.quarantine_released();
        assert!(slot.unshare());
    });
}
