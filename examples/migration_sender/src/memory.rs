//! The guest memory of either end: mappings with concurrent access by several threads, by the
//! kernel, and by the hypervisor that owns them.
//!
//! This file, `clock.rs`, `signals.rs` and the files of `hypervisor` and `track` contain all unsafe
//! code of the example. The rules:
//!
//! - No code makes a reference to plain bytes of a [`GuestMemory`]. A guest writes the source's
//!   memory while other threads test and send it, so Rust accesses anonymous memory as relaxed
//!   atomics only. Memory behind a file is read with pread(2): a hole stays a hole, and a truncated
//!   file is an error rather than SIGBUS. The kernel reads through the pointer in a `MappedSlice`.
//! - The destination's memory is written by [`View`]s, one per channel. A chunk belongs to the view
//!   that first claims it in a round, so no two threads write one chunk. [`GuestMemory::split`]
//!   takes the memory away, and [`GuestMemory::rejoin`] returns it for all views together.

use std::{
    fs::{self, File},
    io::{self, IoSliceMut, Read, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::{FileExt, FileTypeExt},
    path::Path,
    sync::Arc,
    sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    thread,
};

use memmap2::{MmapMut, MmapOptions, MmapRaw};
use pinbuf::MappedSlice;

use crate::{
    hypervisor::memory::{Access, GuestRam},
    signals,
    wire::{CHUNK, Digester, Layout, PAGE, ProtocolError, RegionLayout, Run, retryable},
};

/// Each run of this many bytes of patterned memory is random or zero as a whole.
const PATTERN_RUN: usize = 256 << 10;
/// One in this many runs of patterned memory is zero.
const ZERO_RUN_EVERY: u64 = 8;
/// Elements of one vectored read.
const READ_SLICES: usize = 128;
/// Bytes of one copy for a digest.
const PIECE: usize = 64 << 10;

/// RAM of a machine outside this process: a file that the hypervisor has mapped too.
pub trait Ram: std::fmt::Debug + Send + Sync {
    /// The name at both ends.
    fn id(&self) -> &str;

    /// Length in bytes.
    fn len(&self) -> u64;

    fn file(&self) -> &File;

    /// The ranges that are not holes, in ascending order.
    fn data_ranges(&self) -> io::Result<Vec<Range<u64>>>;
}

/// A piece of the RAM of a QEMU.
#[derive(Debug)]
struct QemuRam {
    rams: Arc<[GuestRam]>,
    number: usize,
}

impl QemuRam {
    fn ram(&self) -> &GuestRam {
        &self.rams[self.number]
    }
}

impl Ram for QemuRam {
    fn id(&self) -> &str {
        &self.ram().id
    }

    fn len(&self) -> u64 {
        self.ram().size
    }

    fn file(&self) -> &File {
        &self.ram().file
    }

    fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        self.ram().data_ranges()
    }
}

/// Memory of a guest, mapped. The module's head has the rules of access.
#[derive(Debug)]
pub struct GuestMemory {
    layout: Layout,
    /// One for each region of the layout.
    regions: Vec<Region>,
}

#[derive(Debug)]
struct Region {
    map: Arc<MmapRaw>,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Anonymous,
    /// A private mapping of a file.
    Image(File),
    /// A shared mapping.
    Ram(Box<dyn Ram>),
}

impl GuestMemory {
    /// Memory full of zeros.
    pub fn zeroed(layout: Layout) -> io::Result<Self> {
        let regions = layout.regions().iter().map(|region| Region::anonymous(region.len, |_| ()));
        Ok(Self { regions: regions.collect::<io::Result<_>>()?, layout })
    }

    /// Memory like a busy guest's: pseudo-random, with one in eight runs of 256 KiB zero.
    pub fn patterned(len: usize, seed: u64) -> io::Result<Self> {
        let region = Region::anonymous(len, |bytes| {
            let workers = workers();
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
        })?;
        Self::single(region, len)
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
        Self::single(Region { map: Arc::new(map.into()), origin: Origin::Image(image) }, len)
    }

    /// The RAM of a machine, mapped a second time.
    pub fn of_machine(
        rams: impl IntoIterator<Item = Box<dyn Ram>>,
        access: Access,
    ) -> io::Result<Self> {
        let rams: Vec<_> = rams.into_iter().collect();
        let sizes = rams.iter().map(|ram| (ram.id().to_string(), ram.len() as usize));
        let layout = Layout::new(sizes)?;
        let map = |(ram, region): (Box<dyn Ram>, &RegionLayout)| {
            let (file, options) = (ram.file(), MmapOptions::new().len(region.len).clone());
            if file.metadata()?.len() < region.len as u64 {
                let why = format!("the file of {} is shorter than its memory", region.id);
                return Err(io::Error::other(why));
            }
            let map = match access {
                Access::Read => options.map_raw_read_only(file),
                Access::Write => options.map_raw(file),
            }?;
            Ok(Region { map: Arc::new(map), origin: Origin::Ram(ram) })
        };
        let regions = rams.into_iter().zip(layout.regions()).map(map);
        Ok(Self { regions: regions.collect::<io::Result<_>>()?, layout })
    }

    /// The RAM of a QEMU, mapped a second time.
    pub fn of_qemu(rams: &Arc<[GuestRam]>, access: Access) -> io::Result<Self> {
        let ram = |number| Box::new(QemuRam { rams: Arc::clone(rams), number }) as Box<dyn Ram>;
        Self::of_machine((0..rams.len()).map(ram), access)
    }

    /// The same memory in the order of another layout. Fails with the difference in words.
    pub fn ordered(self, layout: &Layout) -> Result<Self, String> {
        let sizes = |layout: &Layout| {
            let regions = layout.regions().iter().map(|region| (region.id.clone(), region.len));
            regions.collect::<Vec<_>>()
        };
        let (ours, theirs) = (sizes(&self.layout), sizes(layout));
        let mut found: Vec<_> = ours.iter().cloned().zip(self.regions).collect();
        let mut regions = Vec::new();
        for wanted in &theirs {
            let at = found.iter().position(|(size, _)| size == wanted);
            let at = at.ok_or_else(|| format!("has {theirs:?}, the destination {ours:?}"))?;
            regions.push(found.swap_remove(at).1);
        }
        match found.is_empty() {
            true => Ok(Self { layout: layout.clone(), regions }),
            false => Err(format!("has {theirs:?}, the destination {ours:?}")),
        }
    }

    fn single(region: Region, len: usize) -> io::Result<Self> {
        let layout = Layout::new([("ram".to_string(), len)])?;
        Ok(Self { layout, regions: vec![region] })
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Bytes of memory in all regions.
    pub fn len(&self) -> u64 {
        self.layout.bytes()
    }

    /// A run in place, to be sent. The run lies within a region.
    pub fn slice(&self, run: Run) -> MappedSlice {
        let (region, at) = self.find(run.offset);
        MappedSlice::new(Arc::clone(&region.map), at..at + run.len)
            .expect("runs lie within a region")
    }

    /// The address of an offset, valid up to the end of its region.
    pub fn address(&self, offset: usize) -> *mut u8 {
        let (region, at) = self.find(offset);
        region.map.as_mut_ptr().wrapping_add(at)
    }

    /// Fails if the file behind a private mapping has become shorter. A check before an access
    /// leaves only a short window for SIGBUS.
    pub fn check_backing(&self) -> io::Result<()> {
        for (region, place) in self.regions.iter().zip(self.layout.regions()) {
            let Origin::Image(image) = &region.origin else { continue };
            let metadata = image.metadata()?;
            if metadata.is_file() && metadata.len() < place.len as u64 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the memory image was truncated while it was being migrated",
                ));
            }
        }
        Ok(())
    }

    /// The ranges of offsets that are not holes.
    pub fn data_ranges(&self) -> io::Result<Vec<Range<usize>>> {
        let mut all = Vec::new();
        for (region, place) in self.regions.iter().zip(self.layout.regions()) {
            match &region.origin {
                Origin::Ram(ram) => {
                    let within = |at: u64| place.start + (at as usize).min(place.len);
                    let ranges = ram.data_ranges()?;
                    all.extend(ranges.iter().map(|range| within(range.start)..within(range.end)));
                }
                _ => all.push(place.start..place.end()),
            }
        }
        Ok(all)
    }

    /// Returns `true` if all bytes are zero. `offset` is a multiple of 8. A page that cannot be read
    /// is not zero: its send has the error.
    pub fn is_zero(&self, offset: usize, len: usize) -> bool {
        let (region, at) = self.find(offset);
        if let Origin::Ram(ram) = &region.origin {
            let mut piece = [0; PAGE];
            return (at..at + len).step_by(PAGE).all(|from| {
                let piece = &mut piece[..PAGE.min(at + len - from)];
                ram.file().read_exact_at(piece, from as u64).is_ok()
                    && piece.iter().fold(0, |bits, byte| bits | byte) == 0
            });
        }
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

    /// Copies bytes out. `offset` is a multiple of 8, and the bytes lie within a region. The copy is
    /// consistent only without writers.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        let (region, at) = self.find(offset);
        if let Origin::Ram(ram) = &region.origin {
            return ram.file().read_exact_at(out, at as u64);
        }
        let (words, tail) = self.cells(offset, out.len());
        let (out_words, out_tail) = out.as_chunks_mut::<8>();
        // Relaxed: the bytes are consistent only without writers, a duty of the caller.
        for (out, word) in out_words.iter_mut().zip(words) {
            *out = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        for (out, byte) in out_tail.iter_mut().zip(tail) {
            *out = byte.load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// Passes the bytes of a range of offsets to `each`, in pieces of whole pages with the offset of
    /// each. The range lies within a region.
    pub fn for_each_piece(
        &self,
        range: Range<usize>,
        mut each: impl FnMut(usize, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut piece = vec![0; PIECE.min(range.len())];
        for offset in range.clone().step_by(PIECE) {
            let len = PIECE.min(range.end - offset);
            self.read(offset, &mut piece[..len])?;
            each(offset, &piece[..len])?;
        }
        Ok(())
    }

    /// A digest of the whole memory: that of the digests of all chunks. Meaningful only without
    /// writers.
    pub fn digest(&self, digester: &Digester) -> io::Result<u128> {
        self.check_backing()?;
        let chunks: Vec<_> = self.layout.regions().iter().flat_map(chunks).collect();
        let digests: Vec<AtomicU64> = (0..2 * chunks.len()).map(|_| AtomicU64::new(0)).collect();
        for_all(&chunks, |number, chunk| {
            let mut bytes = vec![0; chunk.len()];
            self.read(chunk.start, &mut bytes)?;
            let digest = digester.digest(&bytes);
            // Relaxed: read after the join of the threads.
            digests[2 * number].store(digest as u64, Ordering::Relaxed);
            digests[2 * number + 1].store((digest >> 64) as u64, Ordering::Relaxed);
            Ok(())
        })?;
        let all = digests.iter().flat_map(|half| half.load(Ordering::Relaxed).to_le_bytes());
        Ok(digester.digest(&all.collect::<Vec<_>>()))
    }

    /// Zeroes everything that is not a hole: a hypervisor's file may have an earlier guest's bytes.
    pub fn clear(&self) -> io::Result<()> {
        let ranges = self.data_ranges()?;
        for_all(&ranges, |_, range| {
            for offset in range.clone().step_by(PAGE) {
                let len = PAGE.min(range.end - offset);
                if !self.is_zero(offset, len) {
                    let (words, tail) = self.cells(offset, len);
                    // Relaxed: no other thread has the memory yet.
                    words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
                    tail.iter().for_each(|byte| byte.store(0, Ordering::Relaxed));
                }
            }
            Ok(())
        })
    }

    /// Cuts the memory into one view per channel.
    pub fn split(self, channels: usize) -> Vec<View> {
        let claims = (0..self.layout.span() / CHUNK).map(|_| AtomicU64::new(0)).collect();
        let memory = Arc::new(Claimed { memory: self, claims });
        (0..channels)
            .map(|channel| View { shared: Arc::clone(&memory), channel, round: 0 })
            .collect()
    }

    /// Joins the views of one memory. `None` unless all are present.
    pub fn rejoin(views: Vec<View>) -> Option<Self> {
        let mut memory = None;
        for view in views {
            memory = Arc::into_inner(view.shared);
        }
        Some(memory?.memory)
    }

    /// The region with the offset, and the offset within.
    fn find(&self, offset: usize) -> (&Region, usize) {
        let number = self.layout.region_of(offset).expect("offsets lie within a region");
        (&self.regions[number], offset - self.layout.regions()[number].start)
    }

    /// The bytes as atomic words, and the up to 7 bytes behind the last word.
    fn cells(&self, offset: usize, len: usize) -> (&[AtomicU64], &[AtomicU8]) {
        let (region, at) = self.find(offset);
        let whole = region.map.len();
        assert!(at.is_multiple_of(8) && at <= whole && len <= whole - at);
        let start = self.address(offset);
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

impl Region {
    fn anonymous(len: usize, fill: impl FnOnce(&mut [u8])) -> io::Result<Self> {
        let mut map = MmapMut::map_anon(len)?;
        // Huge pages make page faults several times cheaper at both ends, but are optional.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        fill(&mut map);
        Ok(Self { map: Arc::new(map.into()), origin: Origin::Anonymous })
    }
}

/// The number of threads for work on the whole memory.
fn workers() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get())
}

/// The chunks of a region, as ranges of offsets.
fn chunks(region: &RegionLayout) -> impl Iterator<Item = Range<usize>> {
    let end = region.end();
    (region.start..end).step_by(CHUNK).map(move |start| start..end.min(start + CHUNK))
}

/// Does the work for each item, with its number, on all processors. Ends early after a failure or a
/// signal.
pub fn for_all<T: Sync>(
    items: &[T],
    work: impl Fn(usize, &T) -> io::Result<()> + Sync,
) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    let run = || loop {
        // Relaxed: hands out numbers, publishes nothing.
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(item) = items.get(number) else { return Ok(()) };
        if signals::interrupted() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if let Err(error) = work(number, item) {
            next.store(items.len(), Ordering::Relaxed);
            return Err(error);
        }
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..workers().min(items.len())).map(|_| scope.spawn(run)).collect();
        let first = run();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread died")))
        };
        others.into_iter().map(join).fold(first, Result::and)
    })
}

/// A memory with the claims of its views.
#[derive(Debug)]
struct Claimed {
    memory: GuestMemory,
    /// For each chunk the last claim: the round, and the channel plus one. Zero: none yet.
    claims: Box<[AtomicU64]>,
}

/// One channel's access to the destination's memory.
///
/// A view writes only chunks that it has claimed in its round. The rounds of all views advance
/// together: a view of the next round begins after the writes of all views of this one.
#[derive(Debug)]
pub struct View {
    shared: Arc<Claimed>,
    channel: usize,
    round: u32,
}

impl View {
    pub fn layout(&self) -> &Layout {
        &self.shared.memory.layout
    }

    /// Begins a round.
    pub fn begin(&mut self, round: u32) {
        self.round = round;
    }

    /// Reads the bytes of `runs` from `input` straight into the memory. The runs ascend.
    pub fn receive(&mut self, input: &mut impl Read, runs: &[Run]) -> io::Result<()> {
        for runs in runs.chunks(READ_SLICES) {
            let mut previous_end = 0;
            let mut slices = Vec::with_capacity(runs.len());
            for run in runs {
                assert!(run.offset >= previous_end, "the runs of a table ascend");
                previous_end = run.end();
                let start = self.own(*run)?;
                // SAFETY: the run lies in the mapping and in a chunk claimed by this view (`own`).
                // `&mut self` excludes other calls of the view, and ascending runs do not overlap.
                // Every byte of the mapping is initialized. The hypervisor does not run.
                let bytes = unsafe { std::slice::from_raw_parts_mut(start, run.len) };
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
    pub fn clear(&mut self, runs: &[Run]) -> io::Result<()> {
        for run in runs {
            let start = self.own(*run)?;
            for at in (0..run.len).step_by(PAGE) {
                let len = PAGE.min(run.len - at);
                if !self.shared.memory.is_zero(run.offset + at, len) {
                    // SAFETY: within the mapping and within a chunk claimed by this view.
                    unsafe { std::ptr::write_bytes(start.wrapping_add(at), 0, len) };
                }
            }
        }
        Ok(())
    }

    /// Digests the pages of `runs`, in order.
    pub fn digests(
        &self,
        runs: &[Run],
        digester: &Digester,
        mut each: impl FnMut(u128),
    ) -> io::Result<()> {
        for run in runs {
            self.shared.memory.for_each_piece(run.offset..run.end(), |_, piece| {
                piece.chunks(PAGE).for_each(|page| each(digester.digest(page)));
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The address of a run, with its chunk claimed. The bounds are checked again: soundness must
    /// not depend on the parsing of a peer's bytes.
    fn own(&self, run: Run) -> Result<*mut u8, ProtocolError> {
        let Run { offset, len } = run;
        let (region, at) = self.shared.memory.find(offset);
        assert!(len > 0 && len <= region.map.len() - at);
        assert!(offset / CHUNK == (run.end() - 1) / CHUNK, "a run lies within one chunk");
        let ours = u64::from(self.round) << 32 | (self.channel + 1) as u64;
        let claim = &self.shared.claims[offset / CHUNK];
        // Relaxed: the winner is alone in the round, and the end of a round orders its writes before
        // those of the next. Claims of earlier rounds are replaced.
        let claimed = claim.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            let earlier = held == 0 || held >> 32 < ours >> 32;
            (earlier || held == ours).then_some(ours)
        });
        claimed.map_err(|_| ProtocolError::ChunkTwice { offset: offset / CHUNK * CHUNK })?;
        Ok(self.shared.memory.address(offset))
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
    use crate::wire::{DigestKind, Secret};

    const LEN: usize = 3 * CHUNK + PAGE + 13;

    fn zeroed() -> GuestMemory {
        GuestMemory::zeroed(Layout::new([("ram".into(), LEN)]).unwrap()).unwrap()
    }

    #[test]
    fn patterned_memory_repeats_and_has_zero_and_other_pages() {
        let digester = Digester::new(DigestKind::Xxh3, Secret::from_bytes([3; Secret::SIZE]));
        let memory = GuestMemory::patterned(LEN, 1).unwrap();
        let zero = (0..LEN / PAGE).filter(|page| memory.is_zero(page * PAGE, PAGE)).count();
        assert!(zero > 0 && zero < LEN / PAGE / 2, "{zero} zero pages of {}", LEN / PAGE);
        let digest = memory.digest(&digester).unwrap();
        let again = GuestMemory::patterned(LEN, 1).unwrap();
        assert_eq!(digest, again.digest(&digester).unwrap());
        again.write_word(LEN / 8 * 8 - 8, 7);
        assert_ne!(digest, again.digest(&digester).unwrap());
    }

    #[test]
    fn the_last_partial_word_counts() {
        let memory = zeroed();
        let last = LEN / PAGE * PAGE;
        assert!(memory.is_zero(last, 13));
        memory.write_word(last, 1);
        assert!(!memory.is_zero(last, 13));
        memory.write_word(last, 0);
        memory.cells(last, 13).1[4].store(1, Ordering::Relaxed);
        assert!(!memory.is_zero(last, 13));
        let mut tail = [0; 13];
        memory.read(last, &mut tail).unwrap();
        assert_eq!(tail, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn views_receive_clear_and_rejoin() {
        let mut views = zeroed().split(2);
        let runs = [Run { offset: CHUNK, len: PAGE }, Run { offset: 3 * CHUNK + PAGE, len: 13 }];
        let bytes: Vec<u8> = (0..PAGE + 13).map(|n| n as u8 | 1).collect();
        views[1].receive(&mut &bytes[..], &runs).unwrap();
        let short = views[1].receive(&mut &bytes[..7], &runs);
        assert_eq!(short.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        views[0].begin(1);
        views[0].clear(&runs[..1]).unwrap();
        let memory = GuestMemory::rejoin(views).unwrap();
        let mut out = vec![1; LEN];
        memory.read(0, &mut out).unwrap();
        assert!(out[..LEN - 13].iter().all(|byte| *byte == 0));
        assert_eq!(out[LEN - 13..], bytes[PAGE..]);
    }

    #[test]
    fn a_chunk_belongs_to_one_view_per_round() {
        let mut views = zeroed().split(2);
        let page = [Run { offset: CHUNK, len: PAGE }];
        views[0].clear(&page).unwrap();
        views[0].clear(&page).unwrap();
        assert!(views[1].clear(&page).unwrap_err().to_string().contains("two channels"));
        views[1].begin(1);
        views[1].clear(&page).unwrap();
        assert!(views[0].clear(&page).is_err(), "its round is over");
    }

    #[test]
    fn a_missing_view_keeps_the_memory_away() {
        let mut views = zeroed().split(2);
        let missing = views.pop();
        assert!(GuestMemory::rejoin(views).is_none());
        drop(missing);
    }

    #[test]
    fn work_ends_with_the_first_failure() {
        let items: Vec<_> = (0..1000).collect();
        let seen = AtomicUsize::new(0);
        let outcome = for_all(&items, |number, _| {
            seen.fetch_add(1, Ordering::Relaxed);
            if number == 5 { Err(io::Error::other("five")) } else { Ok(()) }
        });
        assert!(outcome.is_err() && seen.into_inner() >= 6);
        for_all(&items, |_, _| Ok(())).unwrap();
    }
}
