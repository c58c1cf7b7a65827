//! Which pages changed: the dirty bitmap.
//!
//! The rule that makes pre-copy right: a writer writes first and marks afterwards, the harvest
//! takes the marks of a chunk before any page of it is read for the round. A write whose mark the
//! harvest took is seen by the round; a write that came later leaves its mark for the next one. So
//! no write is ever lost, and a page that was torn on the wire is always sent again.
//!
//! The stopped guest must not wait for a scan of the whole bitmap, 32 MiB for a terabyte of memory.
//! So every chunk has a bit in a summary, and each pump harvests its own chunks while it sends
//! them: before the first page of the last round a pump looks at 64 KiB at most.

use std::iter;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(loom)] // A model of it is in `loom-tests`.
use loom::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::{CHUNK, PAGE, Run, channel_of};

/// Pages of one chunk.
const CHUNK_PAGES: usize = CHUNK / PAGE;
/// Words of the marks of one chunk, which are a cache line.
const CHUNK_WORDS: usize = CHUNK_PAGES / 64;

/// One bit for each page of a chunk.
#[derive(Debug)]
#[repr(align(64))]
struct Marks([AtomicU64; CHUNK_WORDS]);

/// One bit for each page of the guest memory.
#[derive(Debug)]
pub struct DirtyBitmap {
    chunks: Box<[Marks]>,
    /// One bit for each chunk, set if the chunk has a mark.
    summary: Box<[AtomicU64]>,
    pages: usize,
}

impl DirtyBitmap {
    /// A bitmap with every page marked, as a migration starts.
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
        // Release, with `take`'s Acquire: who sees the mark sees the write before it. Never skipped
        // when the bit seems set: the harvest may be about to take that older mark.
        self.chunks[chunk].0[page % CHUNK_PAGES / 64].fetch_or(1 << (page % 64), Ordering::Release);
        // Release, with `harvest`'s Acquire: who takes the chunk's bit finds the mark. The other
        // way round, a harvest in between would take the bit, find no mark, and miss it ever after.
        self.summary[chunk / 64].fetch_or(1 << (chunk % 64), Ordering::Release);
    }

    /// Number of pages marked now.
    pub fn count(&self) -> u64 {
        // Relaxed, here and below: an estimate.
        let chunks = self.summary.iter().enumerate().flat_map(|(index, word)| {
            bits(word.load(Ordering::Relaxed)).map(move |bit| &self.chunks[index * 64 + bit])
        });
        let words = chunks.flat_map(|marks| &marks.0);
        words.map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// Takes all marks in the chunks of one channel, a chunk at a time and as late as it is asked
    /// for, in ascending order.
    pub fn harvest(&self, channel: usize, channels: usize) -> impl Iterator<Item = DirtyChunk> {
        self.summary.iter().enumerate().flat_map(move |(index, word)| {
            // Relaxed: what is marked now may as well be left for the next round, and the last one
            // comes after the dirtier was joined.
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
    /// The numbers of its pages, ascending.
    pub fn pages(self) -> impl Iterator<Item = usize> {
        let words = self.words.into_iter().enumerate();
        words.flat_map(move |(at, word)| bits(word).map(move |bit| self.first_page + at * 64 + bit))
    }

    /// Those of its pages that `wanted` is true of.
    pub fn filter(mut self, wanted: impl Fn(usize) -> bool) -> Self {
        for page in self.pages() {
            // No branch, so that a processor is not kept from looking at the next pages meanwhile.
            let unwanted = u64::from(!wanted(page)) << (page % 64);
            self.words[page % CHUNK_PAGES / 64] &= !unwanted;
        }
        self
    }

    /// Its pages that `others` has not.
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

/// A word with its first `count` bits set, all of them if it has not so many.
fn ones(count: usize) -> AtomicU64 {
    AtomicU64::new(if count < 64 { (1 << count) - 1 } else { u64::MAX })
}

/// The numbers of the bits that are set.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        // Clears the lowest bit that is set.
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
    fn starts_with_every_page_and_none_beyond_the_end() {
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
    fn the_pages_of_a_chunk_are_parted_without_loss() {
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
    fn a_mark_made_during_the_harvest_is_taken_now_or_later() {
        let bitmap = DirtyBitmap::all_dirty(3 * CHUNK_PAGES);
        let mut harvest = bitmap.harvest(0, 1);
        assert_eq!(harvest.next().unwrap().pages().count(), CHUNK_PAGES);
        bitmap.mark(5);
        bitmap.mark(2 * CHUNK_PAGES);
        assert_eq!(harvest.map(|chunk| chunk.pages().count()).sum::<usize>(), 2 * CHUNK_PAGES);
        assert_eq!(pages(&bitmap, 0, 1), [5]);
    }

    #[test]
    fn no_mark_made_during_a_harvest_is_missed() {
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
                    // A missed one is never seen, for no other comes meanwhile.
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
