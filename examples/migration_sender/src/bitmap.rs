//! The dirty bitmap: the changed pages.
//!
//! The rule of pre-copy: a writer writes first and marks afterwards. The harvest takes the marks of
//! a chunk before the round reads any page of the chunk. If the harvest took the mark of a write,
//! the round sees the write. A later write leaves its mark for the next round. So no write is lost,
//! and a torn page is always sent again.
//!
//! The stopped guest must not wait for a scan of the whole bitmap, 32 MiB for a terabyte of memory.
//! So a summary has a bit per chunk, and the pumps harvest chunks while they send: before the first
//! page of the last round a pump reads 64 KiB at most. The pumps share the chunks by a [`Cursor`],
//! which gives each chunk to one pump of a round, so no page is sent twice in a round.

use std::iter;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[cfg(loom)] // The model is in `loom-tests`.
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::wire::{CHUNK, PAGE};

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

/// The place of a round's harvest, shared by its channels.
#[derive(Debug, Default)]
pub struct Cursor(AtomicUsize);

impl Cursor {
    /// Begins the next round, when no harvest is left.
    pub fn rewind(&self) {
        // Relaxed: the order to harvest reaches the other threads later, through a channel.
        self.0.store(0, Ordering::Relaxed);
    }
}

impl DirtyBitmap {
    /// A bitmap without marks.
    pub fn clean(pages: usize) -> Self {
        Self::new(pages, |_| AtomicU64::new(0))
    }

    /// A bitmap with every page marked.
    pub fn all_dirty(pages: usize) -> Self {
        Self::new(pages, ones)
    }

    /// `word` makes a word of which so many bits, at most all of them, exist.
    fn new(pages: usize, word: impl Fn(usize) -> AtomicU64) -> Self {
        let chunks = pages.div_ceil(CHUNK_PAGES);
        let marks = |chunk| {
            let first = |word| chunk * CHUNK_PAGES + word * 64;
            Marks(std::array::from_fn(|at| word(pages.saturating_sub(first(at)))))
        };
        Self {
            chunks: (0..chunks).map(marks).collect(),
            summary: (0..chunks.div_ceil(64)).map(|at| word(chunks - at * 64)).collect(),
            pages,
        }
    }

    /// Returns `true` if the page has a mark.
    pub fn is_marked(&self, page: usize) -> bool {
        // Relaxed: an unseen mark costs its page a second look.
        let word =
            self.chunks[page / CHUNK_PAGES].0[page % CHUNK_PAGES / 64].load(Ordering::Relaxed);
        word >> (page % 64) & 1 == 1
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

    /// Takes all marks behind the cursor in ascending order, each chunk only when asked for.
    /// Harvests with one cursor share the chunks.
    pub fn harvest(&self, cursor: &Cursor) -> impl Iterator<Item = DirtyChunk> {
        iter::from_fn(|| {
            loop {
                // Relaxed, here and below: the cursor hands out numbers and publishes nothing.
                let from = cursor.0.load(Ordering::Relaxed);
                let chunk = self.next_marked(from)?;
                let (relaxed, next) = (Ordering::Relaxed, chunk + 1);
                if cursor.0.compare_exchange(from, next, relaxed, relaxed).is_ok() {
                    // Acquire, with `mark`'s Release.
                    self.summary[chunk / 64].fetch_and(!(1 << (chunk % 64)), Ordering::Acquire);
                    return Some(self.take(chunk));
                }
            }
        })
    }

    /// The first chunk with a mark, from this chunk on.
    fn next_marked(&self, from: usize) -> Option<usize> {
        let mut unwanted = !(u64::MAX << (from % 64));
        (from / 64..self.summary.len()).find_map(|index| {
            // Relaxed: a present mark may as well wait for the next round, and the last round comes
            // after the stop of the guest.
            let word = self.summary[index].load(Ordering::Relaxed) & !unwanted;
            unwanted = 0;
            (word != 0).then(|| index * 64 + word.trailing_zeros() as usize)
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

    fn pages(bitmap: &DirtyBitmap) -> Vec<usize> {
        bitmap.harvest(&Cursor::default()).flat_map(DirtyChunk::pages).collect()
    }

    #[test]
    fn a_new_bitmap_has_exactly_all_pages() {
        for count in [1, 63, 64, 65, CHUNK_PAGES, CHUNK_PAGES + 1, 65 * CHUNK_PAGES + 3] {
            let bitmap = DirtyBitmap::all_dirty(count);
            assert_eq!(bitmap.count(), count as u64);
            assert_eq!(pages(&bitmap), (0..count).collect::<Vec<_>>());
            assert_eq!(bitmap.count(), 0, "a harvest takes the marks");
            assert_eq!(DirtyBitmap::clean(count).count(), 0);
        }
    }

    #[test]
    fn a_mark_is_harvested_once() {
        let bitmap = DirtyBitmap::clean(200 * CHUNK_PAGES + 9);
        let marked =
            [0, 40, CHUNK_PAGES - 1, CHUNK_PAGES, 130 * CHUNK_PAGES, 200 * CHUNK_PAGES + 8];
        for page in marked.into_iter().chain([40]) {
            bitmap.mark(page);
        }
        assert_eq!(bitmap.count(), marked.len() as u64);
        assert!(bitmap.is_marked(40) && !bitmap.is_marked(41));
        assert_eq!(pages(&bitmap), marked);
        assert!(pages(&bitmap).is_empty() && !bitmap.is_marked(40));
    }

    #[test]
    fn harvests_share_the_chunks_of_a_round() {
        let bitmap = DirtyBitmap::all_dirty(300 * CHUNK_PAGES);
        let cursor = Cursor::default();
        let harvest = || bitmap.harvest(&cursor).map(|chunk| chunk.first_page).collect::<Vec<_>>();
        let mut all = thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(harvest)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        all.sort_unstable();
        assert!(all.into_iter().eq((0..300).map(|chunk| chunk * CHUNK_PAGES)));
        bitmap.mark(7);
        assert!(harvest().is_empty(), "a chunk is sent once per round");
        assert_eq!(pages(&bitmap), [7]);
    }

    #[test]
    fn filtered_pages_of_a_chunk_are_complete() {
        let bitmap = DirtyBitmap::all_dirty(3 * CHUNK_PAGES - 7);
        let chunk = bitmap.harvest(&Cursor::default()).nth(1).unwrap();
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
        let cursor = Cursor::default();
        let mut harvest = bitmap.harvest(&cursor);
        assert_eq!(harvest.next().unwrap().pages().count(), CHUNK_PAGES);
        bitmap.mark(5);
        bitmap.mark(2 * CHUNK_PAGES);
        assert_eq!(harvest.map(|chunk| chunk.pages().count()).sum::<usize>(), 2 * CHUNK_PAGES);
        assert_eq!(pages(&bitmap), [5]);
    }

    #[test]
    fn no_mark_during_a_harvest_is_lost() {
        const MARKS: usize = 500;
        const BURSTS: usize = 500;
        let bitmap = DirtyBitmap::all_dirty(MARKS);
        pages(&bitmap);
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
                for _ in pages(&bitmap) {
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
