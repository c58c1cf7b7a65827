//! The dirty bitmap: the changed pages.
//!
//! The rule of pre-copy: a writer writes first and marks afterwards. The harvest takes the marks of
//! a chunk before the round reads any page of the chunk. If the harvest took the mark of a write,
//! the round sees the write. A later write leaves its mark for the next round. So no write is lost,
//! and a torn page is always sent again.
//!
//! The stopped guest must not wait for a scan of the whole bitmap, 32 MiB for a terabyte of memory.
//! So a summary has a bit per chunk, and each pump harvests its own chunks while it sends: before
//! the first page of the last round a pump reads 64 KiB at most.

use std::iter;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(loom)] // The model is in `loom-tests`.
use loom::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::{CHUNK, PAGE, Run, channel_of};

/// Pages of one chunk.
const CHUNK_PAGES: usize = CHUNK / PAGE;
/// Words of a chunk's marks: a cache line.
const CHUNK_WORDS: usize = CHUNK_PAGES / 64;

/// One bit for each page of a chunk.
#[derive(Debug)]
#[repr(align(64))]
struct Marks([AtomicU64; CHUNK_WORDS]);

/// One bit for each page of the guest memory.
#[derive(Debug)]
pub struct DirtyBitmap {
    chunks: Box<[Marks]>,
    /// A bit for each chunk, set if the chunk has a mark.
    summary: Box<[AtomicU64]>,
    pages: usize,
}

impl DirtyBitmap {
    /// A bitmap with every page marked, the state at the start of a migration.
    pub fn all_dirty(pages: usize) -> Self {
        let chunks = pages.div_ceil(CHUNK_PAGES);
        let marks = |chunk| {
            let first = |word| chunk * CHUNK_PAGES + word * 64;
            Marks(std::array::from_fn(|word| ones(pages.saturating_sub(first(word)))))
        };
        Self {
            chunks: (0..chunks).map(marks).collect(),
            summary: (0..chunks.div_ceil(64)).map(|word| ones(chunks - word * 64)).collect(),
            pages,
        }
    }

    /// Marks a page after it was written.
    pub fn mark(&self, page: usize) {
        assert!(page < self.pages);
        let chunk = page / CHUNK_PAGES;
        // Release, with `take`'s Acquire: a thread with the mark sees the write before the mark.
        // Never skipped if the bit seems set: the harvest may be about to take the older mark.
        self.chunks[chunk].0[page % CHUNK_PAGES / 64].fetch_or(1 << (page % 64), Ordering::Release);
        // Release, with `harvest`'s Acquire: a harvest with the chunk's bit finds the mark. In the
        // other order a harvest in between would take the bit, find no mark, and never look again.
        self.summary[chunk / 64].fetch_or(1 << (chunk % 64), Ordering::Release);
    }

    /// The number of marked pages.
    pub fn count(&self) -> u64 {
        // Relaxed, here and below: an estimate.
        let chunks = self.summary.iter().enumerate().flat_map(|(index, word)| {
            bits(word.load(Ordering::Relaxed)).map(move |bit| &self.chunks[index * 64 + bit])
        });
        let words = chunks.flat_map(|marks| &marks.0);
        words.map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// Takes all marks in the chunks of one channel in ascending order, each chunk only when asked
    /// for.
    pub fn harvest(&self, channel: usize, channels: usize) -> impl Iterator<Item = DirtyChunk> {
        self.summary.iter().enumerate().flat_map(move |(index, word)| {
            // Relaxed: a present mark may as well wait for the next round, and the last round comes
            // after the join of the dirtier.
            let taken = match word.load(Ordering::Relaxed) {
                0 => 0,
                _ => {
                    let chunks = index * 64..index * 64 + 64;
                    let own = chunks.map(|at| channel_of(at * CHUNK, channels) == channel);
                    let own = own.rev().fold(0, |mask, own| mask << 1 | u64::from(own));
                    // Acquire, with `mark`'s Release.
                    word.fetch_and(!own, Ordering::Acquire) & own
                }
            };
            bits(taken).map(move |bit| self.take(index * 64 + bit))
        })
    }

    /// Takes the marks of a chunk.
    fn take(&self, chunk: usize) -> DirtyChunk {
        // Acquire, with `mark`'s Release.
        let words = self.chunks[chunk].0.each_ref().map(|word| word.swap(0, Ordering::Acquire));
        DirtyChunk { first_page: chunk * CHUNK_PAGES, words }
    }
}

/// The marked pages of one chunk.
#[derive(Clone, Copy, Debug)]
pub struct DirtyChunk {
    first_page: usize,
    words: [u64; CHUNK_WORDS],
}

impl DirtyChunk {
    /// The page numbers, ascending.
    pub fn pages(self) -> impl Iterator<Item = usize> {
        let words = self.words.into_iter().enumerate();
        words.flat_map(move |(at, word)| bits(word).map(move |bit| self.first_page + at * 64 + bit))
    }

    /// The pages with a true `wanted`.
    pub fn filter(mut self, wanted: impl Fn(usize) -> bool) -> Self {
        for page in self.pages() {
            // Without a branch, so that the processor can look at the next pages meanwhile.
            let unwanted = u64::from(!wanted(page)) << (page % 64);
            self.words[page % CHUNK_PAGES / 64] &= !unwanted;
        }
        self
    }

    /// The pages that `others` lacks.
    pub fn without(mut self, others: Self) -> Self {
        self.words.iter_mut().zip(others.words).for_each(|(word, others)| *word &= !others);
        self
    }
}

/// A page as a run of bytes; the last page may be short.
pub fn page_run(page: usize, memory_len: usize) -> Run {
    let offset = page * PAGE;
    Run { offset, len: PAGE.min(memory_len - offset) }
}

/// A word with its first `count` bits set, at most all of them.
fn ones(count: usize) -> AtomicU64 {
    AtomicU64::new(if count < 64 { (1 << count) - 1 } else { u64::MAX })
}

/// The numbers of the set bits.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        // Clears the lowest set bit.
        word &= word.checked_sub(1)?;
        Some(bit)
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    fn pages(bitmap: &DirtyBitmap, channel: usize, channels: usize) -> Vec<usize> {
        bitmap.harvest(channel, channels).flat_map(DirtyChunk::pages).collect()
    }

    #[test]
    fn a_new_bitmap_has_exactly_all_pages() {
        for count in [1, 63, 64, 65, CHUNK_PAGES, CHUNK_PAGES + 1, 65 * CHUNK_PAGES + 3] {
            let bitmap = DirtyBitmap::all_dirty(count);
            assert_eq!(bitmap.count(), count as u64);
            assert_eq!(pages(&bitmap, 0, 1), (0..count).collect::<Vec<_>>());
            assert_eq!(bitmap.count(), 0, "a harvest takes the marks");
        }
    }

    #[test]
    fn a_mark_is_harvested_once_by_its_channel() {
        const CHANNELS: usize = 3;
        let bitmap = DirtyBitmap::all_dirty(200 * CHUNK_PAGES + 9);
        (0..CHANNELS).for_each(|channel| drop(pages(&bitmap, channel, CHANNELS)));
        let marked =
            [0, 40, CHUNK_PAGES - 1, CHUNK_PAGES, 130 * CHUNK_PAGES, 200 * CHUNK_PAGES + 8];
        for page in marked.into_iter().chain([40]) {
            bitmap.mark(page);
        }
        assert_eq!(bitmap.count(), marked.len() as u64);
        for channel in 0..CHANNELS {
            let own = |page: &usize| page / CHUNK_PAGES % CHANNELS == channel;
            let own: Vec<_> = marked.into_iter().filter(own).collect();
            assert_eq!(pages(&bitmap, channel, CHANNELS), own);
            assert!(pages(&bitmap, channel, CHANNELS).is_empty());
        }
    }

    #[test]
    fn filtered_pages_of_a_chunk_are_complete() {
        let bitmap = DirtyBitmap::all_dirty(3 * CHUNK_PAGES - 7);
        let chunk = bitmap.harvest(1, 2).next().unwrap();
        let odd = chunk.filter(|page| page % 2 == 1);
        let third = odd.filter(|page| page % 3 == 0);
        let own = CHUNK_PAGES..2 * CHUNK_PAGES;
        assert!(odd.pages().eq(own.clone().filter(|page| page % 2 == 1)));
        assert!(third.pages().eq(own.clone().filter(|page| page % 6 == 3)));
        assert!(chunk.without(third).pages().eq(own.filter(|page| page % 6 != 3)));
    }

    #[test]
    fn a_mark_during_a_harvest_is_taken_in_time() {
        let bitmap = DirtyBitmap::all_dirty(3 * CHUNK_PAGES);
        let mut harvest = bitmap.harvest(0, 1);
        assert_eq!(harvest.next().unwrap().pages().count(), CHUNK_PAGES);
        bitmap.mark(5);
        bitmap.mark(2 * CHUNK_PAGES);
        assert_eq!(harvest.map(|chunk| chunk.pages().count()).sum::<usize>(), 2 * CHUNK_PAGES);
        assert_eq!(pages(&bitmap, 0, 1), [5]);
    }

    #[test]
    fn no_mark_during_a_harvest_is_lost() {
        const MARKS: usize = 500;
        const BURSTS: usize = 500;
        let bitmap = DirtyBitmap::all_dirty(MARKS);
        pages(&bitmap, 0, 1);
        let (burst, seen) = (AtomicU64::new(0), AtomicU64::new(0));
        let deadline = Instant::now() + Duration::from_secs(60);
        thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..=BURSTS {
                    burst.store(number as u64, Ordering::Relaxed);
                    (0..MARKS).for_each(|page| bitmap.mark(page));
                    let all = (number * MARKS) as u64;
                    // A lost mark never shows, since no other comes meanwhile.
                    while seen.load(Ordering::Relaxed) < all && Instant::now() < deadline {
                        thread::yield_now();
                    }
                }
            });
            let mut harvested = 0;
            while harvested < BURSTS * MARKS {
                for _ in pages(&bitmap, 0, 1) {
                    let written = burst.load(Ordering::Relaxed) as usize;
                    assert_eq!(written, harvested / MARKS + 1, "what was written before the mark");
                    harvested += 1;
                }
                seen.store(harvested as u64, Ordering::Relaxed);
                assert!(Instant::now() < deadline, "only {harvested} were seen");
            }
        });
    }
}
