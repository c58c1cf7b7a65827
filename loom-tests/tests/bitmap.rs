//! The dirty bitmap of `examples/migration_sender`, with the example's own code: marks by writers,
//! harvests by rounds.

#![allow(dead_code, unreachable_pub, reason = "a part of the example is used here")]
#![allow(clippy::disallowed_types, reason = "the library's sync shim is private to it")]

#[path = "../../examples/migration_sender/src/bitmap.rs"]
mod bitmap;

/// As in the example, but with the smallest possible chunks: one word of marks.
mod wire {
    pub(crate) const PAGE: usize = 4096;
    pub(crate) const CHUNK: usize = 64 * PAGE;
}

use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};

use bitmap::{Cursor, DirtyBitmap, DirtyChunk};
use loom_tests::{model, thread};

/// A word in a page is written while a round sends the marked pages. The last round runs with the
/// writer stopped, and leaves the destination with the written value.
fn migrate(is_marked_before: bool) {
    let guest = Arc::new((DirtyBitmap::all_dirty(1), AtomicU64::new(0)));
    let (bitmap, page) = &*guest;
    let mut destination = None;
    let mut round = || {
        for _ in bitmap.harvest(&Cursor::default()).flat_map(DirtyChunk::pages) {
            // Relaxed, like the reads of the source; the mark was taken before.
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
            // Relaxed, like the writes of a guest; the mark publishes the value.
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
fn writes_during_a_round_reach_the_destination() {
    model(|| migrate(false));
}

/// The round takes the older mark, before or after the writer sees that mark.
#[test]
fn repeated_writes_during_a_round_reach_the_destination() {
    model(|| migrate(true));
}
