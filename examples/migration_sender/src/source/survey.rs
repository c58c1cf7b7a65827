//! The search for pages that differ from the destination's.

use std::{
    fmt, io,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    bitmap::DirtyBitmap,
    memory::{GuestMemory, for_all},
    track::{Changes, Tracker},
    wire::{CHUNK, Digester, PAGE, RegionLayout, Run},
};

/// The digest of a page that the destination has not told yet.
const UNKNOWN: u128 = u128::MAX;

/// The digests of the destination's pages, as told by the destination.
///
/// A digest taken at the source would be wrong: the kernel reads a page later than any look at it.
pub struct Known {
    digester: Digester,
    zero: u128,
    pages: Mutex<Vec<u128>>,
}

impl Known {
    /// The destination begins with zeros.
    pub fn new(digester: Digester, pages: usize) -> Self {
        let zero = digester.digest(&[0; PAGE]);
        Self { digester, zero, pages: Mutex::new(vec![zero; pages]) }
    }

    pub fn digester(&self) -> &Digester {
        &self.digester
    }

    /// The pages of `runs` are on their way.
    pub fn sent(&self, runs: &[Run]) {
        self.set(runs, std::iter::repeat(UNKNOWN));
    }

    /// The pages of `runs` will be zero.
    pub fn zeroed(&self, runs: &[Run]) {
        self.set(runs, std::iter::repeat(self.zero));
    }

    /// The destination has applied the pages of `runs`, and these are their digests.
    pub fn told(&self, runs: &[Run], digests: &[u8]) {
        let digests = digests.as_chunks().0;
        self.set(runs, digests.iter().map(|digest| u128::from_le_bytes(*digest)));
    }

    fn set(&self, runs: &[Run], mut digests: impl Iterator<Item = u128>) {
        let mut pages = self.lock();
        for run in runs {
            let first = run.offset / PAGE;
            for (page, digest) in
                pages[first..first + run.pages() as usize].iter_mut().zip(&mut digests)
            {
                *page = digest;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u128>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").finish_non_exhaustive()
    }
}

/// The way to find the pages of the next round.
#[derive(Debug)]
pub enum Watch {
    /// The make-believe guest marks its pages itself.
    Marks,
    /// Digests of all data.
    Digests,
    /// A tracker of writes. Its candidates are digested if it is not exact.
    Tracker(Box<dyn Tracker>),
}

impl Watch {
    /// Returns `true` if the destination has to tell digests.
    pub fn needs_digests(&self) -> bool {
        match self {
            Self::Marks => false,
            Self::Digests => true,
            Self::Tracker(tracker) => !tracker.is_exact(),
        }
    }

    /// Marks the pages of the first round: everything that is not a hole. A tracker begins.
    pub fn begin(&mut self, memory: &GuestMemory, bitmap: &DirtyBitmap) -> io::Result<()> {
        let data = match self {
            Self::Marks => return Ok(()),
            Self::Digests => memory.data_ranges()?,
            Self::Tracker(tracker) => {
                placed(memory, tracker.changes()?.into_iter().map(|changes| changes.written))
            }
        };
        data.into_iter().flat_map(page_numbers).for_each(|page| bitmap.mark(page));
        Ok(())
    }

    /// Marks the pages that differ from the destination's, and maybe more.
    pub fn survey(
        &mut self,
        memory: &GuestMemory,
        bitmap: &DirtyBitmap,
        known: Option<&Known>,
    ) -> io::Result<()> {
        let Some(known) = known else { return Ok(()) };
        let mut is_exact = false;
        let (candidates, holes) = match self {
            Self::Marks => return Ok(()),
            Self::Digests => {
                let data = memory.data_ranges()?;
                let holes = holes(&data, memory);
                (data, holes)
            }
            Self::Tracker(tracker) => {
                is_exact = tracker.is_exact();
                let (written, holes): (Vec<_>, Vec<_>) = tracker
                    .changes()?
                    .into_iter()
                    .map(|Changes { written, holes }| (written, holes))
                    .unzip();
                (placed(memory, written.into_iter()), placed(memory, holes.into_iter()))
            }
        };
        let pages = known.lock();
        for page in holes.into_iter().flat_map(page_numbers).filter(|p| pages[*p] != known.zero) {
            // Given back by the guest: the pump finds zeros.
            bitmap.mark(page);
        }
        if is_exact {
            candidates.into_iter().flat_map(page_numbers).for_each(|page| bitmap.mark(page));
            return Ok(());
        }
        let pieces: Vec<_> = candidates.into_iter().flat_map(chunks).collect();
        for_all(&pieces, |_, piece| {
            memory.for_each_piece(piece.clone(), |offset, bytes| {
                for (page, bytes) in (offset / PAGE..).zip(bytes.chunks(PAGE)) {
                    // A marked page is sent anyway.
                    if !bitmap.is_marked(page) && known.digester.digest(bytes) != pages[page] {
                        bitmap.mark(page);
                    }
                }
                Ok(())
            })
        })
    }
}

/// The ranges of all regions, in offsets of the memory and in whole pages.
fn placed(
    memory: &GuestMemory,
    pieces: impl Iterator<Item = Vec<Range<u64>>>,
) -> Vec<Range<usize>> {
    let place = |(region, ranges): (&RegionLayout, Vec<Range<u64>>)| {
        let (start, len) = (region.start, region.len);
        let whole = move |range: Range<u64>| {
            let end = len.min((range.end as usize).next_multiple_of(PAGE));
            start + range.start as usize / PAGE * PAGE..start + end
        };
        ranges.into_iter().map(whole).filter(|range| !range.is_empty()).collect::<Vec<_>>()
    };
    memory.layout().regions().iter().zip(pieces).flat_map(place).collect()
}

fn page_numbers(range: Range<usize>) -> Range<usize> {
    range.start / PAGE..range.end.div_ceil(PAGE)
}

fn chunks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let cuts = (range.start / CHUNK + 1..=range.end.saturating_sub(1) / CHUNK).map(|n| n * CHUNK);
    let ends = cuts.chain([range.end]);
    ends.scan(range.start, |start, end| {
        let piece = *start..end;
        *start = end;
        Some(piece)
    })
}

/// The ranges of the regions outside the ranges of data.
fn holes(data: &[Range<usize>], memory: &GuestMemory) -> Vec<Range<usize>> {
    let mut holes = Vec::new();
    for region in memory.layout().regions() {
        let mut at = region.start;
        let is_own = |range: &&Range<usize>| (region.start..region.end()).contains(&range.start);
        for range in data.iter().filter(is_own) {
            holes.push(at.next_multiple_of(PAGE)..range.start / PAGE * PAGE);
            at = range.end;
        }
        holes.push(at.next_multiple_of(PAGE)..region.end());
    }
    holes.retain(|hole| hole.start < hole.end);
    holes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{DigestKind, Layout, Secret};

    #[test]
    fn ranges_are_cut_at_chunks() {
        let cut = |range| chunks(range).map(|piece| (piece.start, piece.end)).collect::<Vec<_>>();
        assert_eq!(cut(0..CHUNK), [(0, CHUNK)]);
        let ends = [PAGE, CHUNK, 2 * CHUNK, 2 * CHUNK + 1];
        assert_eq!(
            cut(PAGE..2 * CHUNK + 1),
            ends.windows(2).map(|w| (w[0], w[1])).collect::<Vec<_>>()
        );
    }

    #[test]
    fn digests_find_changed_pages_only() {
        let layout = Layout::new([("a".into(), 2 * CHUNK), ("b".into(), CHUNK)]).unwrap();
        let memory = GuestMemory::zeroed(layout).unwrap();
        let pages = memory.layout().span() / PAGE;
        let bitmap = DirtyBitmap::clean(pages);
        let digester = Digester::new(DigestKind::Xxh3, Secret::draw().unwrap());
        let known = Known::new(digester, pages);
        let mut watch = Watch::Digests;
        let mut marked = || {
            watch.survey(&memory, &bitmap, Some(&known)).unwrap();
            let cursor = Default::default();
            bitmap.harvest(&cursor).flat_map(|chunk| chunk.pages()).collect::<Vec<_>>()
        };
        assert_eq!(marked(), [0; 0], "the destination begins with zeros");
        memory.write_word(5 * PAGE + 8, 1);
        memory.write_word(2 * CHUNK, 1);
        let changed = [5, 2 * CHUNK / PAGE];
        assert_eq!(marked(), changed);
        let runs = changed.map(|page| Run { offset: page * PAGE, len: PAGE });
        known.sent(&runs);
        assert_eq!(marked(), changed, "not told yet");
        let mut page = [0; PAGE];
        memory.read(5 * PAGE, &mut page).unwrap();
        known.told(&runs[..1], &known.digester().digest(&page).to_le_bytes());
        assert_eq!(marked(), changed[1..]);
    }
}
