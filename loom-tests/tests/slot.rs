//! A slot with several holders.

use std::sync::Arc;

use loom_tests::{model, thread};
use pinbuf::__internals::StateWord;

/// Reads the memory, drops a handle, and after the last handle writes the memory, like the slot's
/// next owner.
fn leave(slot: &StateWord) -> bool {
    slot.contents_read();
    let last = slot.unshare();
    if last {
        slot.contents_written();
    }
    last
}

/// Two handles are dropped at once. Exactly one drop is told to be the last. The write after the
/// last drop comes after all reads.
#[test]
fn the_last_dropped_handle_is_alone() {
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

/// A handle and two leases: the kernel releases the leases, in any order with the drop of the
/// handle.
#[test]
fn the_last_ended_lease_is_alone() {
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

/// One lease becomes unprovable while the handle is dropped: no thread may recycle the slot before
/// the late proof.
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
