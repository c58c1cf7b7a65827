//! The memory of a pool: one mapping on the best available pages.

use std::{fmt, io, ptr::NonNull};

use crate::{
    backing::{Backing, Pages},
    error::{BuildError, OsError, Refusal},
    sys::memory::{self, Mapping, Supply},
};

/// The pages behind a region of a pool's memory, and the reasons against better ones.
///
/// ```
/// let pool = pinbuf::Pool::new(64 * 1024, 64)?;
/// println!("{}", pool.region());
/// # Ok::<(), pinbuf::BuildError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RegionReport {
    /// The kind of pages. All of the region is on them.
    pub pages: Pages,
    /// Size of one page in bytes.
    pub page_bytes: usize,
    /// Length of the region in bytes, a multiple of `page_bytes`.
    pub bytes: usize,
    /// `true` if every page was there when the pool was built. If not, transparent huge pages were
    /// asked for, and are not confirmed.
    pub populated: bool,
    /// The NUMA node of all pages, if a node was chosen.
    pub numa_node: Option<usize>,
    /// The better kinds, best first, each with the reason against it.
    pub refused: Vec<(Pages, Refusal)>,
}

impl fmt::Display for RegionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes on {}", self.bytes, self.pages)?;
        if let Some(node) = self.numa_node {
            write!(f, " of NUMA node {node}")?;
        }
        if !self.populated {
            f.write_str(", not populated")?;
        }
        for (pages, refusal) in &self.refused {
            write!(f, "; no {pages}: {refusal}")?;
        }
        Ok(())
    }
}

/// A mapping that no child process inherits.
#[derive(Debug)]
pub(crate) struct Region {
    mapping: Mapping,
    report: RegionReport,
}

impl Region {
    /// Maps at least `bytes` bytes on the best pages allowed by `backing`.
    pub(crate) fn map(bytes: usize, backing: Backing, supply: Supply) -> Result<Self, BuildError> {
        if let Some(node) = supply.numa_node {
            // Apart from the ladder: if the node has no page at all, no kind of pages is to blame.
            let one_page = Mapping::base(memory::page_bytes(), supply);
            one_page.map_err(|error| BuildError::NumaNode { node, refusal: refusal(&error) })?;
        }
        let usual = Pages::HugeTlb { page_bytes: memory::huge_page_bytes() };
        let (best, required) = match backing {
            Backing::Auto => (usual, false),
            Backing::Prefer(pages) => (pages, false),
            Backing::Require(pages) => (pages, true),
        };
        let mut refused = Vec::new();
        let mut pages = best;
        loop {
            let page_bytes = page_bytes(pages)?;
            match Self::rung(pages, page_bytes, bytes, required, supply) {
                Ok(mapping) => {
                    let bytes = mapping.len();
                    let Supply { populate: populated, numa_node } = supply;
                    let report =
                        RegionReport { pages, page_bytes, bytes, populated, numa_node, refused };
                    return Ok(Self { mapping, report });
                }
                Err(refusal) => {
                    let Some(worse) = worse(pages) else {
                        return Err(BuildError::OutOfMemory { bytes, refusal });
                    };
                    if required {
                        return Err(BuildError::Unavailable { pages, refusal });
                    }
                    refused.push((pages, refusal));
                    pages = worse;
                }
            }
        }
    }

    fn rung(
        pages: Pages,
        page_bytes: usize,
        bytes: usize,
        required: bool,
        supply: Supply,
    ) -> Result<Mapping, Refusal> {
        if pages != Pages::Base && bytes < page_bytes / 2 && !required {
            return Err(Refusal::TooSmall);
        }
        let len = bytes
            .checked_next_multiple_of(page_bytes)
            .filter(|&len| isize::try_from(len).is_ok())
            .ok_or(Refusal::AddressSpace)?;
        match pages {
            Pages::HugeTlb { .. } if !supply.populate => return Err(Refusal::Unpopulated),
            Pages::HugeTlb { .. } => Mapping::huge_tlb(len, page_bytes, supply.numa_node),
            Pages::Thp => Mapping::thp(len, page_bytes, supply),
            Pages::Base => Mapping::base(len, supply),
        }
        .map_err(|error| refusal(&error))
    }

    /// Keeps the memory out of core dumps.
    pub(crate) fn dont_dump(&self) -> Result<(), BuildError> {
        self.mapping.dont_dump().map_err(|error| BuildError::DontDump((&error).into()))
    }

    /// Locks the memory into RAM.
    pub(crate) fn lock(&self, supply: Supply) -> Result<(), BuildError> {
        let bytes = self.mapping.len();
        self.mapping
            .lock(supply)
            .map_err(|error| BuildError::Lock { bytes, error: OsError::from(&error) })
    }

    /// Returns `true` if a part of the memory can get new pages while the kernel holds the old
    /// ones.
    ///
    /// Not on hugetlb pages: a held page stays out of the reserve, so that a new page may be
    /// missing. The next touch would end in SIGBUS.
    pub(crate) fn can_replace(&self, start: *mut u8, len: usize) -> bool {
        let page_bytes = memory::page_bytes();
        let whole_pages = start.addr().is_multiple_of(page_bytes) && len.is_multiple_of(page_bytes);
        whole_pages && matches!(self.report.pages, Pages::Base | Pages::Thp)
    }

    /// Discards the pages of a part of the memory, which then reads as zeros. The first step of a
    /// replacement; [`repopulate`](Self::repopulate) is the second.
    ///
    /// # Safety
    ///
    /// The part lies in the region, [`can_replace`](Self::can_replace) returns `true` for the part,
    /// and nothing uses its contents, except that the kernel may go on reading the old pages.
    pub(crate) unsafe fn discard(&self, start: NonNull<u8>, len: usize) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.mapping.discard(start, len) }
    }

    /// Puts pages where [`discard`](Self::discard) left none.
    pub(crate) fn repopulate(&self, start: NonNull<u8>, len: usize) -> io::Result<()> {
        self.mapping.repopulate(start, len)
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.mapping.start()
    }

    pub(crate) fn report(&self) -> &RegionReport {
        &self.report
    }
}

fn worse(pages: Pages) -> Option<Pages> {
    match pages {
        Pages::HugeTlb { .. } => Some(Pages::Thp),
        Pages::Thp => Some(Pages::Base),
        Pages::Base => None,
    }
}

fn page_bytes(pages: Pages) -> Result<usize, BuildError> {
    match pages {
        Pages::HugeTlb { page_bytes } => (page_bytes.is_power_of_two()
            && page_bytes > memory::page_bytes())
        .then_some(page_bytes)
        .ok_or(BuildError::PageSize { page_bytes }),
        Pages::Thp => Ok(memory::huge_page_bytes()),
        Pages::Base => Ok(memory::page_bytes()),
    }
}

fn refusal(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::Unsupported if error.raw_os_error().is_none() => Refusal::Unsupported,
        _ => Refusal::Os(error.into()),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_region_of_half_a_huge_page_is_large_enough_for_one() {
        let page = memory::huge_page_bytes();
        let refusal = |bytes, required| {
            Region::rung(Pages::Thp, page, bytes, required, Supply::default()).err()
        };
        assert_eq!(refusal(page / 2 - 1, false), Some(Refusal::TooSmall));
        assert_ne!(refusal(page / 2, false), Some(Refusal::TooSmall));
        assert_ne!(refusal(1, true), Some(Refusal::TooSmall));
    }

    #[test]
    fn a_refusal_keeps_the_number_of_its_error() {
        let ours = io::Error::from(io::ErrorKind::Unsupported);
        assert_eq!(refusal(&ours), Refusal::Unsupported);
        let of_kernel = io::Error::from_raw_os_error(38); // ENOSYS
        assert_eq!(of_kernel.kind(), io::ErrorKind::Unsupported);
        assert_eq!(refusal(&of_kernel), Refusal::Os((&of_kernel).into()));
    }
}
