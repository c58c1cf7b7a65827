//! The dirty bitmap of `examples/migration_sender`, the code of which is here as it is: what a
//! writer marks and a harvest takes.

#![allow(dead_code, unreachable_pub, reason = "a part of the example is used here")]
#![allow(clippy::disallowed_types, reason = "the library's sync shim is private to it")]

#[path = "../../examples/migration_sender/src/bitmap.rs"]
mod bitmap;

/// As the example has them, but for chunks that are as small as can be: one word of marks.
mod protocol {
    pub(crate) const PAGE: usize = 4096;
    pub(crate) const CHUNK: usize = 64 * PAGE;

    pub(crate) struct Run {
        pub(crate) offset: usize,
        pub(crate) len: usize,
    }

    pub(crate) fn channel_of(offset: usize, channels: usize) -> usize {
        offset / CHUNK % channels
    }
}

use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};

use bitmap::{DirtyBitmap, DirtyChunk};
use loom_tests::{model, thread};

/// A page of one word is written while a round sends what is marked. The last round, with the
/// writer stopped, leaves the destination with what was written.
fn migrate(is_marked_before: bool) {
    let guest = Arc::new((DirtyBitmap::all_dirty(1), AtomicU64::new(0)));
    let (bitmap, page) = &*guest;
    let mut destination = None;
    let mut round = || {
        for _ in bitmap.harvest(0, 1).flat_map(DirtyChunk::pages) {
            // Relaxed, as the source reads; it has taken the mark before.
            destination = Some(page.load(Ordering::Relaxed));
        }
    };
    if !is_marked_before {
        round();
    }
    let writer = {
        let guest = Arc::clone(&guest);
        thread::spawn(move || {
            let (bitmap, page) = &*guest;
            // Relaxed, as a guest writes; the mark publishes it.
            page.store(1, Ordering::Relaxed);
            bitmap.mark(0);
        })
    };
    round();
    writer.join().unwrap();
    round();
    assert_eq!(destination, Some(1));
}

#[test]
fn what_is_written_during_a_round_is_sent_by_it_or_the_next() {
    model(|| migrate(false));
}

/// The round takes the older mark, and the writer may find that before or after.
#[test]
fn what_is_written_again_during_a_round_is_sent_by_it_or_the_next() {
    model(|| migrate(true));
}
