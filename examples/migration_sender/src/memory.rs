//! The guest memory of either end: a mapping with concurrent access by several threads and the
//! kernel.
//!
//! This file, `clock.rs` and `signals.rs` contain all unsafe code of the example. The rules:
//!
//! - No code makes a reference to plain bytes of a [`GuestMemory`]. The dirtier writes the source's
//!   memory while other threads test and send it, so Rust accesses the memory as relaxed atomics
//!   only. The kernel reads through the pointer in a `MappedSlice`.
//! - The destination's memory is cut into [`View`]s, one per channel, with disjoint chunks. Only a
//!   view writes, and only without readers: [`GuestMemory::split`] takes the memory away, and
//!   [`GuestMemory::rejoin`] returns it for all views together.

use std::{
    fs::{self, File},
    io::{self, IoSliceMut, Read, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::FileTypeExt,
    path::Path,
    sync::Arc,
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
    thread,
};

use memmap2::{MmapMut, MmapOptions, MmapRaw};
use xxhash_rust::xxh3::Xxh3Default;

use crate::{
    protocol::{CHUNK, Layout, PAGE, Run, channel_of, retryable},
    signals,
};

/// Each run of this many bytes of patterned memory is random or zero as a whole.
const PATTERN_RUN: usize = 256 << 10;
/// One in this many runs of patterned memory is zero.
const ZERO_RUN_EVERY: u64 = 8;
/// Elements of one vectored read.
const READ_SLICES: usize = 128;

/// Memory of a guest, mapped. The module's head has the rules of access.
#[derive(Debug)]
pub struct GuestMemory {
    map: Arc<MmapRaw>,
    /// Length in bytes, not always a multiple of the page size.
    len: usize,
    /// The file behind the mapping, if any.
    image: Option<File>,
}

impl GuestMemory {
    /// Memory full of zeros.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        Self::filled(len, |_| ())
    }

    /// Memory like a busy guest's: pseudo-random, with one in eight runs of 256 KiB zero.
    pub fn patterned(len: usize, seed: u64) -> io::Result<Self> {
        Self::filled(len, |bytes| {
            let workers = thread::available_parallelism().map_or(1, |n| n.get());
            let share = bytes.len().div_ceil(workers).next_multiple_of(PATTERN_RUN);
            thread::scope(|scope| {
                for (worker, bytes) in bytes.chunks_mut(share).enumerate() {
                    let first = (worker * share / PATTERN_RUN) as u64;
                    scope.spawn(move || {
                        for (run, bytes) in (first..).zip(bytes.chunks_mut(PATTERN_RUN)) {
                            fill_run(bytes, mix(seed ^ mix(run)));
                        }
                    });
                }
            });
        })
    }

    fn filled(len: usize, fill: impl FnOnce(&mut [u8])) -> io::Result<Self> {
        let mut map = MmapMut::map_anon(len)?;
        // Huge pages make page faults several times cheaper at both ends, but are optional.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        fill(&mut map);
        Ok(Self { map: Arc::new(map.into()), len, image: None })
    }

    /// Memory with the contents of a file or block device, copied on write: the file never changes.
    /// A change or truncation by another program changes the guest's memory.
    pub fn from_image(path: &Path) -> io::Result<Self> {
        // Before the open, since an open of a FIFO waits for a writer.
        let kind = fs::metadata(path)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let why = "neither a file nor a block device";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let mut image = File::open(path)?;
        // Unlike the metadata, a seek tells the size of a block device too.
        let len = image.seek(SeekFrom::End(0))?;
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is empty"));
        }
        // SAFETY: the bytes of the mapping may change with the file. No reference to them is made
        // from this map: it becomes an `MmapRaw` at once, and is read as atomics only. A truncated
        // file raises SIGBUS, and `signals` turns the signal into an exit.
        let map = unsafe { MmapOptions::new().len(len).no_reserve_swap().map_copy(&image) }?;
        Ok(Self { map: Arc::new(map.into()), len, image: Some(image) })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Number of pages; the last page may be partial.
    pub fn pages(&self) -> usize {
        self.len.div_ceil(PAGE)
    }

    /// The mapping, as the origin of sends.
    pub fn map(&self) -> &Arc<MmapRaw> {
        &self.map
    }

    /// Fails if the file behind the memory has become shorter. A check before an access leaves only
    /// a short window for SIGBUS.
    pub fn check_backing(&self) -> io::Result<()> {
        let Some(image) = &self.image else { return Ok(()) };
        let metadata = image.metadata()?;
        if metadata.is_file() && metadata.len() < self.len as u64 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the memory image was truncated while it was being migrated",
            ));
        }
        Ok(())
    }

    /// Returns `true` if all bytes are zero. `offset` is a multiple of 8.
    pub fn is_zero(&self, offset: usize, len: usize) -> bool {
        let (words, tail) = self.cells(offset, len);
        let (pieces, rest) = words.as_chunks::<16>();
        // Relaxed: a racing write is marked afterwards, so its page is checked again. Vectors would
        // be plain reads and a data race, and no faster: an atomic load is an operand of an `or`,
        // and with one branch for two cache lines the loop keeps up with any memory.
        let zero = |words: &[AtomicU64]| {
            words.iter().fold(0, |bits, word| bits | word.load(Ordering::Relaxed)) == 0
        };
        pieces.iter().all(|piece| zero(piece))
            && zero(rest)
            && tail.iter().all(|byte| byte.load(Ordering::Relaxed) == 0)
    }

    /// Writes a word like a guest, beside concurrent readers. `offset` is a multiple of 8.
    pub fn write_word(&self, offset: usize, value: u64) {
        let (words, _) = self.cells(offset, 8);
        // Relaxed: the dirty bitmap publishes the word.
        words[0].store(value, Ordering::Relaxed);
    }

    /// Copies bytes out. `offset` is a multiple of 8.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        let (words, tail) = self.cells(offset, out.len());
        let (out_words, out_tail) = out.as_chunks_mut::<8>();
        // Relaxed: the bytes are consistent only without writers, a duty of the caller.
        for (out, word) in out_words.iter_mut().zip(words) {
            *out = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        for (out, byte) in out_tail.iter_mut().zip(tail) {
            *out = byte.load(Ordering::Relaxed);
        }
    }

    /// Passes the whole memory to `each` in pieces of at most 64 KiB.
    pub fn for_each_piece<E>(&self, mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut piece = vec![0; 64 << 10];
        for offset in (0..self.len).step_by(piece.len()) {
            let len = piece.len().min(self.len - offset);
            self.read(offset, &mut piece[..len]);
            each(&piece[..len])?;
        }
        Ok(())
    }

    /// XXH3-128 of the whole memory. Meaningful only without writers.
    pub fn digest(&self) -> io::Result<u128> {
        self.check_backing()?;
        let mut hasher = Xxh3Default::new();
        self.for_each_piece(|piece| {
            hasher.update(piece);
            if signals::interrupted() { Err(io::ErrorKind::Interrupted) } else { Ok(()) }
        })?;
        Ok(hasher.digest128())
    }

    /// Cuts the memory into one view per channel.
    pub fn split(self, channels: usize) -> Vec<View> {
        let memory = Arc::new(self);
        let layout = Layout { memory_len: memory.len, channels };
        (0..channels).map(|channel| View { memory: Arc::clone(&memory), channel, layout }).collect()
    }

    /// Joins the views of one memory. `None` unless all are present.
    pub fn rejoin(views: Vec<View>) -> Option<Self> {
        let mut memory = None;
        for view in views {
            memory = Arc::into_inner(view.memory);
        }
        memory
    }

    /// The bytes as atomic words, and the up to 7 bytes behind the last word.
    fn cells(&self, offset: usize, len: usize) -> (&[AtomicU64], &[AtomicU8]) {
        assert!(offset.is_multiple_of(8) && offset <= self.len && len <= self.len - offset);
        let start = self.map.as_mut_ptr().wrapping_add(offset);
        let tail = start.wrapping_add(len / 8 * 8);
        // SAFETY: within the mapping, which lives as long as `self`; a mapping starts on a page, so
        // the words are aligned; initialized, since the mapping is zeros or a file; no code makes
        // references to plain bytes while these live (module's head).
        let words = unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), len / 8) };
        // SAFETY: as above; a byte is always aligned.
        let tail = unsafe { std::slice::from_raw_parts(tail.cast::<AtomicU8>(), len % 8) };
        (words, tail)
    }
}

/// The chunks of the destination's memory for one channel.
///
/// A view proves exclusive access to its chunks: the views of a memory are made together, have
/// disjoint chunks, and keep the memory itself out of reach.
#[derive(Debug)]
pub struct View {
    memory: Arc<GuestMemory>,
    channel: usize,
    layout: Layout,
}

impl View {
    /// The channel of the view, and the layout of its memory.
    pub fn place(&self) -> (usize, Layout) {
        (self.channel, self.layout)
    }

    /// Reads the bytes of `runs` from `input` straight into the memory. The runs ascend.
    pub fn receive(&mut self, input: &mut impl Read, runs: &[Run]) -> io::Result<()> {
        for runs in runs.chunks(READ_SLICES) {
            let mut previous_end = 0;
            let mut slices = Vec::with_capacity(runs.len());
            for run in runs {
                assert!(run.offset >= previous_end, "the runs of a table ascend");
                previous_end = run.end();
                let range = self.own(*run);
                let start = self.memory.map.as_mut_ptr().wrapping_add(range.start);
                // SAFETY: the range lies in the mapping and in chunks of this view only (`own`).
                // `&mut self` excludes other calls of the view, and ascending runs do not overlap.
                // Every byte of an anonymous mapping is initialized.
                let bytes = unsafe { std::slice::from_raw_parts_mut(start, range.len()) };
                slices.push(IoSliceMut::new(bytes));
            }
            let mut rest = &mut slices[..];
            while !rest.is_empty() {
                match input.read_vectored(rest) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => IoSliceMut::advance_slices(&mut rest, n),
                    Err(e) if retryable(&e) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// Zeroes `runs`. A page of zeros is not written, and so stays unpopulated.
    pub fn clear(&mut self, runs: &[Run]) {
        for run in runs {
            let range = self.own(*run);
            for offset in range.clone().step_by(PAGE) {
                let len = PAGE.min(range.end - offset);
                if !self.memory.is_zero(offset, len) {
                    let start = self.memory.map.as_mut_ptr().wrapping_add(offset);
                    // SAFETY: within the mapping and within chunks of this view only.
                    unsafe { std::ptr::write_bytes(start, 0, len) };
                }
            }
        }
    }

    /// The run as a range, checked again to be within this view's chunks: soundness must not depend
    /// on the parsing of a peer's bytes.
    fn own(&self, run: Run) -> Range<usize> {
        let Run { offset, len } = run;
        assert!(len > 0 && len <= self.layout.memory_len && offset <= self.layout.memory_len - len);
        assert!(offset / CHUNK == (run.end() - 1) / CHUNK, "a run lies within one chunk");
        assert!(channel_of(offset, self.layout.channels) == self.channel, "not this view's chunk");
        offset..run.end()
    }
}

/// Fills a run of patterned memory; `seed` decides whether the run is zero.
fn fill_run(bytes: &mut [u8], seed: u64) {
    if seed.is_multiple_of(ZERO_RUN_EVERY) {
        return;
    }
    let (words, tail) = bytes.as_chunks_mut::<8>();
    for (index, word) in (0..).zip(words) {
        *word = scatter(seed, index).to_le_bytes();
    }
    tail.fill(seed as u8 | 1);
}

/// A cheap nonzero word, for bulk.
fn scatter(seed: u64, index: u64) -> u64 {
    (seed.wrapping_add(index) | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index << 1)
}

/// The finalizer of splitmix64: every bit of the result depends on every bit of `n`.
pub fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 3 * CHUNK + PAGE + 13;

    #[test]
    fn patterned_memory_repeats_and_has_zero_and_other_pages() {
        let memory = GuestMemory::patterned(LEN, 1).unwrap();
        let zero = (0..LEN / PAGE).filter(|page| memory.is_zero(page * PAGE, PAGE)).count();
        assert!(zero > 0 && zero < LEN / PAGE / 2, "{zero} zero pages of {}", LEN / PAGE);
        let again = GuestMemory::patterned(LEN, 1).unwrap();
        assert_eq!(memory.digest().unwrap(), again.digest().unwrap());
        let other = GuestMemory::patterned(LEN, 2).unwrap();
        assert_ne!(memory.digest().unwrap(), other.digest().unwrap());
    }

    #[test]
    fn the_last_partial_word_counts() {
        let memory = GuestMemory::zeroed(LEN).unwrap();
        let last = memory.pages() * PAGE - PAGE;
        assert!(memory.is_zero(last, 13));
        memory.write_word(last, 1);
        assert!(!memory.is_zero(last, 13));
        memory.write_word(last, 0);
        memory.cells(last, 13).1[4].store(1, Ordering::Relaxed);
        assert!(!memory.is_zero(last, 13));
        let mut tail = [0; 13];
        memory.read(last, &mut tail);
        assert_eq!(tail, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn views_receive_clear_and_rejoin() {
        let mut views = GuestMemory::zeroed(LEN).unwrap().split(2);
        let runs = [Run { offset: CHUNK, len: PAGE }, Run { offset: 3 * CHUNK + PAGE, len: 13 }];
        let bytes: Vec<u8> = (0..PAGE + 13).map(|n| n as u8 | 1).collect();
        views[1].receive(&mut &bytes[..], &runs).unwrap();
        let short = views[1].receive(&mut &bytes[..7], &runs);
        assert_eq!(short.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        views[1].clear(&runs[..1]);
        let memory = GuestMemory::rejoin(views).unwrap();
        let mut out = vec![1; LEN];
        memory.read(0, &mut out);
        assert!(out[..LEN - 13].iter().all(|byte| *byte == 0));
        assert_eq!(out[LEN - 13..], bytes[PAGE..]);
    }

    #[test]
    #[should_panic(expected = "not this view's chunk")]
    fn a_view_refuses_chunks_of_others() {
        let mut views = GuestMemory::zeroed(LEN).unwrap().split(2);
        views[0].clear(&[Run { offset: CHUNK, len: PAGE }]);
    }

    #[test]
    fn a_missing_view_keeps_the_memory_away() {
        let mut views = GuestMemory::zeroed(LEN).unwrap().split(2);
        let missing = views.pop();
        assert!(GuestMemory::rejoin(views).is_none());
        drop(missing);
    }
}
