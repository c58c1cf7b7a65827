//! Which pages changed: the dirty bitmap, and the dirtier that plays a running guest.
//!
//! The rule that makes pre-copy right: a writer writes first and marks afterwards, the harvest takes
//! the marks before any page is read for the round. A write whose mark the harvest saw is seen by the
//! round; a write that came later leaves its mark for the next one. So no write is ever lost, and a
//! page that was torn on the wire is always sent again.

use std::{
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    memory::{GuestMemory, mix},
    protocol::{CHUNK, PAGE, Run},
};

/// Pages of one chunk, and so bits of one chunk in the bitmap.
const CHUNK_PAGES: usize = CHUNK / PAGE;
/// One dirtied page in so many becomes zero.
const ZERO_EVERY: u64 = 32;

/// One bit for each page of the guest memory.
#[derive(Debug)]
pub(crate) struct DirtyBitmap {
    words: Box<[AtomicU64]>,
    pages: usize,
}

impl DirtyBitmap {
    /// A bitmap with every page marked, as a migration starts.
    pub(crate) fn all_dirty(pages: usize) -> Self {
        let words = (0..pages.div_ceil(64))
            .map(|word| match pages - word * 64 {
                rest @ ..64 => AtomicU64::new((1 << rest) - 1),
                _ => AtomicU64::new(u64::MAX),
            })
            .collect();
        Self { words, pages }
    }

    /// Marks a page after it was written.
    pub(crate) fn mark(&self, page: usize) {
        assert!(page < self.pages);
        // Release, with the harvest's Acquire: who sees the mark sees the write before it. Never
        // skipped when the bit seems set: the harvest may be about to take that older mark.
        self.words[page / 64].fetch_or(1 << (page % 64), Ordering::Release);
    }

    /// Number of pages marked now.
    pub(crate) fn count(&self) -> u64 {
        // Relaxed: an estimate.
        self.words.iter().map(|w| u64::from(w.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// Takes all marks.
    pub(crate) fn harvest(&self) -> DirtyPages {
        // Acquire, with `mark`'s Release.
        let words = self.words.iter().map(|word| word.swap(0, Ordering::Acquire)).collect();
        DirtyPages { words }
    }
}

/// The pages of one round.
#[derive(Clone, Debug)]
pub(crate) struct DirtyPages {
    words: Arc<[u64]>,
}

impl DirtyPages {
    /// Number of pages.
    pub(crate) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Hands the pages of a chunk to `each` as ascending page numbers.
    pub(crate) fn for_each_in_chunk<E>(
        &self,
        chunk: usize,
        mut each: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let first = chunk * CHUNK_PAGES / 64;
        let last = (first + CHUNK_PAGES / 64).min(self.words.len());
        for index in first..last {
            let mut word = self.words[index];
            while word != 0 {
                each(index * 64 + word.trailing_zeros() as usize)?;
                word &= word - 1;
            }
        }
        Ok(())
    }
}

/// A page as a run of bytes; the last page may be short.
pub(crate) fn page_run(page: usize, memory_len: usize) -> Run {
    let offset = page * PAGE;
    Run { offset, len: PAGE.min(memory_len - offset) }
}

/// How a dirtier behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirtierConfig {
    /// Bytes of pages to write per second; 0: no dirtier at all.
    pub(crate) bytes_per_second: u64,
    /// The first so many bytes of the memory are written.
    pub(crate) working_set: usize,
    pub(crate) seed: u64,
}

/// A thread that writes pages of a guest memory as a running guest would.
#[derive(Debug)]
pub(crate) struct Dirtier {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Dirtier {
    /// Starts writing random pages of the working set at the configured rate.
    pub(crate) fn start(
        config: DirtierConfig,
        memory: Arc<GuestMemory>,
        bitmap: Arc<DirtyBitmap>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = match config.bytes_per_second {
            0 => None,
            _ => Some(
                thread::Builder::new()
                    .name("dirtier".into())
                    .spawn(move || dirty(config, &memory, &bitmap, &flag))?,
            ),
        };
        Ok(Self { stop, thread })
    }

    /// Stops the thread and returns how many pages it wrote. When this returns, all its writes and
    /// marks are visible to the caller: joining a thread synchronizes with all it did.
    pub(crate) fn stop(mut self) -> u64 {
        self.halt()
    }

    fn halt(&mut self) -> u64 {
        // Relaxed: only a request. The join is what the caller relies on.
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(0, |thread| thread.join().unwrap_or(0))
    }
}

impl Drop for Dirtier {
    fn drop(&mut self) {
        self.halt();
    }
}

fn dirty(
    config: DirtierConfig,
    memory: &GuestMemory,
    bitmap: &DirtyBitmap,
    stop: &AtomicBool,
) -> u64 {
    const TICK: Duration = Duration::from_millis(1);
    let start = Instant::now();
    let pages = config.working_set.min(memory.len()).div_ceil(PAGE).max(1) as u64;
    let rate = config.bytes_per_second as f64 / PAGE as f64;
    let mut written = 0;
    let mut random = config.seed;
    while !stop.load(Ordering::Relaxed) && memory.check_backing().is_ok() {
        let due = (start.elapsed().as_secs_f64() * rate) as u64;
        // At most so many between two looks at `stop`: they count as downtime.
        for _ in 0..due.saturating_sub(written).min(64) {
            random = mix(random);
            let page = (random % pages) as usize;
            write_page(memory, page_run(page, memory.len()), random);
            bitmap.mark(page);
            written += 1;
        }
        if written >= due {
            thread::sleep(TICK);
        }
    }
    written
}

/// Writes one line of a page, or now and then zeroes the page.
fn write_page(memory: &GuestMemory, run: Run, random: u64) {
    const LINE: usize = 64;
    let words = run.len / 8 * 8;
    if (random >> 32).is_multiple_of(ZERO_EVERY) {
        for at in (0..words).step_by(8) {
            memory.write_word(run.offset + at, 0);
        }
        return;
    }
    let line = (random >> 40) as usize % (PAGE / LINE) * LINE;
    for at in (line..words.min(line + LINE)).step_by(8) {
        memory.write_word(run.offset + at, random ^ at as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pages: &DirtyPages, chunk: usize) -> Vec<usize> {
        let mut list = Vec::new();
        let all = pages.for_each_in_chunk(chunk, |page| {
            list.push(page);
            Ok::<(), ()>(())
        });
        all.unwrap();
        list
    }

    #[test]
    fn starts_with_every_page_and_none_beyond_the_end() {
        for pages in [1, 63, 64, 65, CHUNK_PAGES, CHUNK_PAGES + 1] {
            let bitmap = DirtyBitmap::all_dirty(pages);
            assert_eq!(bitmap.count(), pages as u64);
            assert_eq!(bitmap.harvest().count(), pages as u64);
            assert_eq!(bitmap.count(), 0, "a harvest takes the marks");
        }
    }

    #[test]
    fn a_mark_is_harvested_once_in_its_chunk() {
        let bitmap = DirtyBitmap::all_dirty(2 * CHUNK_PAGES + 9);
        bitmap.harvest();
        for page in [0, 70, CHUNK_PAGES - 1, CHUNK_PAGES, 2 * CHUNK_PAGES + 8, 70] {
            bitmap.mark(page);
        }
        let pages = bitmap.harvest();
        assert_eq!(pages.count(), 5);
        assert_eq!(list(&pages, 0), [0, 70, CHUNK_PAGES - 1]);
        assert_eq!(list(&pages, 1), [CHUNK_PAGES]);
        assert_eq!(list(&pages, 2), [2 * CHUNK_PAGES + 8]);
    }

    #[test]
    fn the_dirtier_stays_in_its_working_set_and_marks_what_it_writes() {
        let memory = Arc::new(GuestMemory::zeroed(CHUNK).unwrap());
        let bitmap = Arc::new(DirtyBitmap::all_dirty(memory.pages()));
        bitmap.harvest();
        let config =
            DirtierConfig { bytes_per_second: 1 << 30, working_set: 10 * PAGE + 1, seed: 1 };
        let dirtier = Dirtier::start(config, Arc::clone(&memory), Arc::clone(&bitmap)).unwrap();
        while bitmap.count() < 11 {
            thread::yield_now();
        }
        assert!(dirtier.stop() >= 11);
        let harvest = bitmap.harvest();
        assert_eq!(list(&harvest, 0), (0..11).collect::<Vec<_>>());
        let clean = 11 * PAGE;
        assert!(memory.is_zero(clean, memory.len() - clean));
        assert_eq!(bitmap.count(), 0, "it stopped");
    }
}
