//! The layout of the guest memory: regions side by side in one space of offsets.

use super::{MAX_REGIONS, ProtocolError, frame::u64_at};

/// The unit of dirty tracking, in bytes.
pub const PAGE: usize = 4096;
/// The unit of work for a channel, in bytes. Every region starts at a multiple.
pub const CHUNK: usize = 2 << 20;

/// One region of guest memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionLayout {
    /// The name at both ends.
    pub id: String,
    /// Bytes of memory; the last page may be partial.
    pub len: usize,
    /// The offset of the region's first byte.
    pub start: usize,
}

impl RegionLayout {
    pub fn end(&self) -> usize {
        self.start + self.len
    }
}

/// The regions of a guest, in the order of their offsets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    regions: Vec<RegionLayout>,
}

impl Layout {
    /// Places regions of these names and lengths. Fails for an empty list, an empty region, a name
    /// used twice, and offsets past the address space.
    pub fn new(regions: impl IntoIterator<Item = (String, usize)>) -> Result<Self, ProtocolError> {
        let wrong = |why| Err(ProtocolError::Hello(why));
        let mut placed: Vec<RegionLayout> = Vec::new();
        for (id, len) in regions {
            let start = placed.last().map_or(0, RegionLayout::end);
            let start = start.checked_next_multiple_of(CHUNK);
            // One more chunk, so that the span is a whole number of chunks too.
            let fits = |start: &usize| {
                len <= isize::MAX as usize && start.checked_add(len + CHUNK).is_some()
            };
            let Some(start) = start.filter(fits) else {
                return wrong("the memory of the guest is too large for an address space");
            };
            if len == 0 {
                return wrong("a region of the guest memory is empty");
            }
            if placed.len() == MAX_REGIONS || placed.iter().any(|region| region.id == id) {
                return wrong("too many regions, or two of one name");
            }
            placed.push(RegionLayout { id, len, start });
        }
        match placed.is_empty() {
            true => wrong("there is no region of memory"),
            false => Ok(Self { regions: placed }),
        }
    }

    pub fn regions(&self) -> &[RegionLayout] {
        &self.regions
    }

    /// Bytes of memory in all regions.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.len as u64).sum()
    }

    /// The end of the space of offsets, a multiple of [`CHUNK`].
    pub fn span(&self) -> usize {
        self.regions.last().map_or(0, RegionLayout::end).next_multiple_of(CHUNK)
    }

    /// The number of the region with this offset.
    pub fn region_of(&self, offset: usize) -> Option<usize> {
        let behind = self.regions.partition_point(|region| region.start <= offset);
        let number = behind.checked_sub(1)?;
        (offset < self.regions[number].end()).then_some(number)
    }

    /// A page as a run of bytes; the last page of a region may be short.
    pub fn page_run(&self, page: usize) -> Run {
        let offset = page * PAGE;
        let region = &self.regions[self.region_of(offset).expect("marked pages have a region")];
        Run { offset, len: PAGE.min(region.end() - offset) }
    }
}

/// A run of guest memory in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    pub offset: usize,
    pub len: usize,
}

impl Run {
    pub const SIZE: usize = 16;

    pub fn end(self) -> usize {
        self.offset + self.len
    }

    /// The number of pages.
    pub fn pages(self) -> u64 {
        self.len.div_ceil(PAGE) as u64
    }

    pub fn encode(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&(self.offset as u64).to_le_bytes());
        bytes[8..].copy_from_slice(&(self.len as u64).to_le_bytes());
        bytes
    }
}

/// Reads and checks the run table of a frame with `bytes` of memory.
///
/// Afterwards every run lies within one region and within one chunk, starts on a page, is whole
/// pages (or ends with the region), and the runs ascend without overlap.
pub fn decode_runs(
    table: &[u8],
    bytes: u64,
    layout: &Layout,
    runs: &mut Vec<Run>,
) -> Result<(), ProtocolError> {
    runs.clear();
    let size = |n: u64| usize::try_from(n).map_err(|_| ProtocolError::RunOutOfBounds);
    let (mut previous_end, mut sum) = (0, 0);
    for entry in table.chunks_exact(Run::SIZE) {
        let offset = size(u64_at(entry, 0))?;
        let len = size(u64_at(entry, 8))?;
        let end = offset.checked_add(len).ok_or(ProtocolError::RunOutOfBounds)?;
        let region = layout.region_of(offset).ok_or(ProtocolError::RunOutOfBounds)?;
        let region_end = layout.regions[region].end();
        if len == 0 || end > region_end {
            return Err(ProtocolError::RunOutOfBounds);
        }
        if !offset.is_multiple_of(PAGE) || !(len.is_multiple_of(PAGE) || end == region_end) {
            return Err(ProtocolError::RunNotPages);
        }
        if offset < previous_end || offset / CHUNK != (end - 1) / CHUNK {
            return Err(ProtocolError::RunOverlap);
        }
        (previous_end, sum) = (end, sum + len as u64);
        runs.push(Run { offset, len });
    }
    if sum == bytes { Ok(()) } else { Err(ProtocolError::WrongLength) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two regions: 5 chunks and 100 bytes, then a chunk.
    fn layout() -> Layout {
        Layout::new([("a".into(), 5 * CHUNK + 100), ("b".into(), CHUNK)]).unwrap()
    }

    fn decode(list: &[Run], bytes: usize) -> Result<Vec<Run>, ProtocolError> {
        let table: Vec<u8> = list.iter().flat_map(|run| run.encode()).collect();
        let mut runs = Vec::new();
        decode_runs(&table, bytes as u64, &layout(), &mut runs).map(|()| runs)
    }

    #[test]
    fn regions_start_at_chunks() {
        let layout = layout();
        assert_eq!(layout.regions()[1].start, 6 * CHUNK);
        assert_eq!((layout.bytes(), layout.span()), ((6 * CHUNK + 100) as u64, 7 * CHUNK));
        assert_eq!(layout.region_of(5 * CHUNK + 99), Some(0));
        assert_eq!(layout.region_of(5 * CHUNK + 100), None);
        assert_eq!(layout.region_of(6 * CHUNK), Some(1));
        assert_eq!(layout.region_of(7 * CHUNK), None);
        assert_eq!(layout.page_run(5 * CHUNK / PAGE).len, 100);
    }

    #[test]
    fn an_impossible_layout_is_refused() {
        let region = |id: &str, len| (id.to_string(), len);
        for regions in [
            vec![],
            vec![region("a", 0)],
            vec![region("a", 1), region("a", 1)],
            vec![region("a", usize::MAX)],
            vec![region("a", isize::MAX as usize), region("b", isize::MAX as usize)],
            (0..=MAX_REGIONS).map(|n| region(&n.to_string(), 1)).collect(),
        ] {
            assert!(Layout::new(regions).is_err());
        }
    }

    #[test]
    fn runs_are_checked_against_the_regions() {
        let run = |offset, len| Run { offset, len };
        let good = [run(0, PAGE), run(2 * PAGE, 2 * PAGE), run(4 * CHUNK, CHUNK)];
        assert_eq!(decode(&good, 3 * PAGE + CHUNK), Ok(good.to_vec()));
        let tail = [run(5 * CHUNK, 100), run(6 * CHUNK, CHUNK)];
        assert_eq!(decode(&tail, 100 + CHUNK), Ok(tail.to_vec()));

        use ProtocolError::*;
        assert_eq!(decode(&[run(5 * CHUNK, 101)], 101), Err(RunOutOfBounds));
        assert_eq!(decode(&[run(5 * CHUNK + PAGE, PAGE)], PAGE), Err(RunOutOfBounds));
        assert_eq!(decode(&[run(usize::MAX - PAGE + 1, PAGE)], PAGE), Err(RunOutOfBounds));
        assert_eq!(decode(&[run(0, 0)], 0), Err(RunOutOfBounds));
        assert_eq!(decode(&[run(8, PAGE)], PAGE), Err(RunNotPages));
        assert_eq!(decode(&[run(0, 100)], 100), Err(RunNotPages));
        assert_eq!(decode(&[run(PAGE, PAGE), run(0, PAGE)], 2 * PAGE), Err(RunOverlap));
        assert_eq!(decode(&[run(0, PAGE), run(0, PAGE)], 2 * PAGE), Err(RunOverlap));
        assert_eq!(decode(&[run(CHUNK - PAGE, 2 * PAGE)], 2 * PAGE), Err(RunOverlap));
        assert_eq!(decode(&[run(0, PAGE)], 2 * PAGE), Err(WrongLength));
    }
}
