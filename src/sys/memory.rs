//! Anonymous memory: mapped, populated at once, aligned, kept out of forked children.
//!
//! A populated mapping has all its pages when the constructor returns. So a lack of memory is an
//! error of the constructor, and no signal at the first touch.

use std::{io, ptr::NonNull};

pub(crate) use imp::Mapping;

/// Size of a base page in bytes.
pub(crate) fn page_bytes() -> usize {
    // SAFETY: sysconf(3) takes any name and touches no memory of ours.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // POSIX requires _SC_PAGESIZE; 4096 keeps the arithmetic valid on systems without it.
    usize::try_from(bytes).ok().filter(|bytes| bytes.is_power_of_two()).unwrap_or(4096)
}

/// Size of a transparent huge page in bytes, and usually of a hugetlb page; 2 MiB if the kernel
/// does not say.
pub(crate) fn huge_page_bytes() -> usize {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .filter(|bytes: &usize| bytes.is_power_of_two())
        .unwrap_or(2 << 20)
}

/// Returns `true` if transparent huge pages are switched off system-wide.
#[cfg(all(target_os = "linux", not(any(loom, miri))))]
fn thp_is_off() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .is_ok_and(|modes| modes.contains("[never]"))
}

/// The advice of `madvise(2)` that only some kernels take. Not every libc has the values, which are
/// the same on every architecture.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Advice {
    /// `MADV_WIPEONFORK`, since Linux 4.14.
    WipeOnFork = 18,
    /// `MADV_POPULATE_WRITE`, since Linux 5.14.
    PopulateWrite = 23,
    /// `MADV_COLLAPSE`, since Linux 6.1, on kernels with transparent huge pages.
    Collapse = 25,
}

/// Returns `true` if the kernel knows an advice.
pub(crate) fn knows(advice: Advice) -> bool {
    cfg!(target_os = "linux") && knows_number(advice as libc::c_int)
}

/// Asks with an empty range: the kernel checks the advice before the range.
fn knows_number(advice: libc::c_int) -> bool {
    // SAFETY: madvise(2): a range of length 0 contains no memory.
    unsafe { libc::madvise(std::ptr::null_mut(), 0, advice) == 0 }
}

/// Time and place of the pages of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Supply {
    /// All pages at once, so that a lack is an error of the constructor. Otherwise each page at its
    /// first touch, where a lack ends the process, and without a reservation.
    pub(crate) populate: bool,
    /// Pages from this NUMA node only.
    pub(crate) numa_node: Option<usize>,
}

impl Default for Supply {
    fn default() -> Self {
        Self { populate: true, numa_node: None }
    }
}

/// Values in memory that a forked child finds full of zeros.
#[cfg(all(target_os = "linux", not(any(loom, miri))))]
#[derive(Debug)]
pub(crate) struct WipedOnFork<T> {
    start: NonNull<T>,
    _map: memmap2::MmapRaw,
}

#[cfg(all(target_os = "linux", not(any(loom, miri))))]
impl<T> WipedOnFork<T> {
    /// Maps zeroed memory for `count` values.
    ///
    /// # Safety
    ///
    /// Zeros are a valid `T` without drop glue. In a child they may replace any value.
    pub(crate) unsafe fn new(count: usize) -> io::Result<Self> {
        let len = (count * size_of::<T>()).next_multiple_of(page_bytes());
        let map = memmap2::MmapRaw::from(memmap2::MmapOptions::new().len(len).map_anon()?);
        let advice = Advice::WipeOnFork as libc::c_int;
        // SAFETY: madvise(2), MADV_WIPEONFORK: the range is a live private anonymous mapping of
        // ours. The advice changes the contents in a child, and nothing here.
        if unsafe { libc::madvise(map.as_mut_ptr().cast(), len, advice) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(map.as_mut_ptr()).expect("no mapping lies at address 0").cast();
        Ok(Self { start, _map: map })
    }

    /// The first value.
    #[inline]
    pub(crate) fn start(&self) -> NonNull<T> {
        self.start
    }
}

/// Values on the heap, for targets without forks.
#[cfg(not(all(target_os = "linux", not(any(loom, miri)))))]
#[derive(Debug)]
pub(crate) struct WipedOnFork<T>(Box<[T]>);

#[cfg(not(all(target_os = "linux", not(any(loom, miri)))))]
impl<T: Default> WipedOnFork<T> {
    /// # Safety
    ///
    /// None here.
    pub(crate) unsafe fn new(count: usize) -> io::Result<Self> {
        Ok(Self((0..count).map(|_| T::default()).collect()))
    }

    pub(crate) fn start(&self) -> NonNull<T> {
        NonNull::from(&*self.0).cast()
    }
}

#[cfg(not(any(loom, miri)))]
mod imp {
    use super::{NonNull, Supply, io, page_bytes};
    use memmap2::{MmapOptions, MmapRaw};

    /// Writable zeroed memory, unmapped on drop.
    #[derive(Debug)]
    pub(crate) struct Mapping {
        /// May start before and end after the requested memory, to align it.
        map: MmapRaw,
        offset: usize,
        len: usize,
    }

    impl Mapping {
        /// Base pages.
        pub(crate) fn base(len: usize, supply: Supply) -> io::Result<Self> {
            let mapping = Self { map: Self::room(len, supply)?, offset: 0, len };
            mapping.prepare(supply)?;
            // With transparent huge pages set to `always`, the first touch would take one,
            // populated or not. The advice fails on kernels without huge pages.
            #[cfg(target_os = "linux")]
            let _ = mapping.advise(memmap2::Advice::NoHugePage);
            if supply.populate {
                mapping.populate()?;
            }
            Ok(mapping)
        }

        /// Addresses for memory of `len` bytes.
        fn room(len: usize, supply: Supply) -> io::Result<MmapRaw> {
            let mut options = MmapOptions::new();
            if !supply.populate {
                options.no_reserve_swap();
            }
            Ok(options.len(len).map_anon()?.into())
        }

        /// The advice that must come before the first page.
        fn prepare(&self, supply: Supply) -> io::Result<()> {
            self.dont_fork()?;
            supply.numa_node.map_or(Ok(()), |node| self.bind(node))
        }

        pub(crate) fn start(&self) -> NonNull<u8> {
            let start = self.map.as_mut_ptr().wrapping_add(self.offset);
            NonNull::new(start).expect("a mapping does not start at address 0")
        }

        pub(crate) fn len(&self) -> usize {
            self.len
        }

        /// Writes to every page. Never used on hugetlb memory, where a lack is a SIGBUS.
        fn touch(&self) {
            for at in (0..self.len).step_by(page_bytes()) {
                let byte = self.start().as_ptr().wrapping_add(at);
                // SAFETY: `at < len`, so the byte lies inside the mapping. The mapping is writable,
                // zeroed (0 changes nothing) and not shared yet.
                unsafe { byte.write_volatile(0) };
            }
        }
    }

    fn check(result: libc::c_int) -> io::Result<()> {
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    #[cfg(target_os = "linux")]
    impl Mapping {
        /// Huge pages from the reserve; `len` is a multiple of `page_bytes`, a power of two.
        ///
        /// Fails without MADV_POPULATE_WRITE (Linux 5.14): every other way to populate can end in
        /// SIGBUS.
        pub(crate) fn huge_tlb(
            len: usize,
            page_bytes: usize,
            numa_node: Option<usize>,
        ) -> io::Result<Self> {
            let bits = page_bytes.trailing_zeros() as u8;
            // memmap2 unmaps the requested length, and the kernel refuses to unmap a part of a huge
            // page.
            debug_assert_eq!(len % page_bytes, 0);
            let map = MmapRaw::from(MmapOptions::new().len(len).huge(Some(bits)).map_anon()?);
            let mapping = Self { map, offset: 0, len };
            mapping.prepare(Supply { populate: true, numa_node })?;
            mapping.advise(memmap2::Advice::PopulateWrite)?;
            Ok(mapping)
        }

        /// Ordinary memory collapsed into huge pages of `page_bytes`, a power of two; `len` is a
        /// multiple of it.
        ///
        /// Fails if the kernel cannot confirm the collapse (before Linux 6.1, MADV_COLLAPSE is
        /// EINVAL). Without populating there is nothing to collapse yet: the kernel takes huge
        /// pages at the first touch, as far as there are some.
        pub(crate) fn thp(len: usize, page_bytes: usize, supply: Supply) -> io::Result<Self> {
            // A mapping starts at a base page, so this slack always contains an aligned start.
            let slack = page_bytes - super::page_bytes();
            let room = len.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
            let map = Self::room(room, supply)?;
            let offset = map.as_ptr().align_offset(page_bytes);
            let mapping = Self { map, offset, len };
            mapping.prepare(supply)?;
            mapping.advise(memmap2::Advice::HugePage)?;
            if supply.populate {
                mapping.populate()?;
                mapping.collapse()?;
            } else if super::thp_is_off() {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Ok(mapping)
        }

        /// Locks the memory into RAM. Pages that come later are locked on arrival.
        pub(crate) fn lock(&self, supply: Supply) -> io::Result<()> {
            let start = self.start().as_ptr().cast_const().cast();
            let flags = if supply.populate { 0 } else { libc::MLOCK_ONFAULT };
            // SAFETY: mlock2(2) reads and writes no memory; the range is one live mapping of ours.
            check(unsafe { libc::mlock2(start, self.len, flags as _) })
        }

        /// Binds all later pages to one NUMA node. EINVAL: no such node, or a node without memory.
        /// ENOSYS: a kernel without NUMA.
        fn bind(&self, node: usize) -> io::Result<()> {
            const WORD: usize = libc::c_ulong::BITS as usize;
            let mut nodes = [0 as libc::c_ulong; 1024 / WORD];
            let word =
                nodes.get_mut(node / WORD).ok_or(io::Error::from_raw_os_error(libc::EINVAL))?;
            *word = 1 << (node % WORD);
            let start = self.start().as_ptr();
            let most = nodes.len() * WORD + 1;
            // SAFETY: mbind(2): the range is one live mapping of ours, and only the origin of its
            // pages changes. The call reads `most - 1` bits of the mask, which is long enough.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_mbind,
                    start,
                    self.len,
                    libc::MPOL_BIND,
                    nodes.as_ptr(),
                    most,
                    0,
                )
            };
            check(result as libc::c_int)
        }

        /// Keeps the memory out of core dumps.
        pub(crate) fn dont_dump(&self) -> io::Result<()> {
            self.advise(memmap2::Advice::DontDump)
        }

        /// A child would share the pages copy on write. The owner of the page under the kernel's
        /// read would then depend on the child's exit or write, and a write of ours would split a
        /// huge page.
        fn dont_fork(&self) -> io::Result<()> {
            self.advise(memmap2::Advice::DontFork)
        }

        fn populate(&self) -> io::Result<()> {
            match self.advise(memmap2::Advice::PopulateWrite) {
                // Before Linux 5.14.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.touch();
                    Ok(())
                }
                result => result,
            }
        }

        /// MADV_COLLAPSE succeeds only if every huge page of the range exists afterwards.
        fn collapse(&self) -> io::Result<()> {
            // libc has the constant for glibc only; the value is the same on every architecture.
            const MADV_COLLAPSE: libc::c_int = 25;
            let start = self.start().as_ptr().cast();
            // SAFETY: madvise(2), MADV_COLLAPSE: keeps the contents; the range is page-aligned
            // and lies inside one live mapping of ours.
            check(unsafe { libc::madvise(start, self.len, MADV_COLLAPSE) })
        }

        /// Discards the pages of a part of the mapping. The part then reads as zeros. A page with
        /// another reference, such as a send in flight, keeps its contents for that reference. The
        /// mapping stays, with its advice and its lock.
        ///
        /// # Safety
        ///
        /// The part lies in the mapping, consists of whole pages, and has no other user of its
        /// contents.
        pub(crate) unsafe fn discard(&self, start: NonNull<u8>, len: usize) -> io::Result<()> {
            // libc has the constant for glibc only; the value is the same on every architecture.
            const MADV_DONTNEED_LOCKED: libc::c_int = 24;
            let discard = |advice| {
                // SAFETY: madvise(2), MADV_DONTNEED: the range is page-aligned and lies inside a
                // live private mapping of ours. Its contents are lost, as the caller's contract
                // allows.
                check(unsafe { libc::madvise(start.as_ptr().cast(), len, advice) })
            };
            match discard(libc::MADV_DONTNEED) {
                // Locked memory. Kernels before 5.18 refuse the second advice too.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    discard(MADV_DONTNEED_LOCKED)
                }
                result => result,
            }
        }

        /// Adds the missing pages without changing any contents.
        pub(crate) fn repopulate(&self, start: NonNull<u8>, len: usize) -> io::Result<()> {
            let offset = start.as_ptr().addr() - self.map.as_ptr().addr();
            self.map.advise_range(memmap2::Advice::PopulateWrite, offset, len)
        }

        fn advise(&self, advice: memmap2::Advice) -> io::Result<()> {
            self.map.advise_range(advice, self.offset, self.len)
        }
    }

    #[cfg(not(target_os = "linux"))]
    impl Mapping {
        pub(crate) fn huge_tlb(
            _len: usize,
            _page_bytes: usize,
            _numa_node: Option<usize>,
        ) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn thp(_len: usize, _page_bytes: usize, _supply: Supply) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn bind(&self, _node: usize) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        /// Locks the memory into RAM (`mlock`), which also populates all of it.
        pub(crate) fn lock(&self, _supply: Supply) -> io::Result<()> {
            // SAFETY: mlock(2) reads and writes no memory; the range is one live mapping of ours.
            check(unsafe { libc::mlock(self.start().as_ptr().cast_const().cast(), self.len) })
        }

        pub(crate) fn dont_dump(&self) -> io::Result<()> {
            Ok(())
        }

        pub(crate) unsafe fn discard(&self, _start: NonNull<u8>, _len: usize) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn repopulate(&self, _start: NonNull<u8>, _len: usize) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        /// Not needed: without zero copy no kernel reads the pages after a call has returned.
        fn dont_fork(&self) -> io::Result<()> {
            Ok(())
        }

        fn populate(&self) -> io::Result<()> {
            self.touch();
            Ok(())
        }
    }
}

/// Heap memory for models and interpreters, which have no mappings.
#[cfg(any(loom, miri))]
mod imp {
    use super::{NonNull, Supply, io, page_bytes};
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    #[derive(Debug)]
    pub(crate) struct Mapping {
        start: NonNull<u8>,
        layout: Layout,
    }

    impl Mapping {
        pub(crate) fn base(len: usize, _supply: Supply) -> io::Result<Self> {
            let layout = Layout::from_size_align(len.max(1), page_bytes())
                .map_err(|_| io::ErrorKind::OutOfMemory)?;
            // SAFETY: the layout's size is not 0.
            let start = unsafe { alloc_zeroed(layout) };
            let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
            Ok(Self { start, layout })
        }

        pub(crate) fn huge_tlb(
            _len: usize,
            _page_bytes: usize,
            _numa_node: Option<usize>,
        ) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn thp(_len: usize, _page_bytes: usize, _supply: Supply) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn start(&self) -> NonNull<u8> {
            self.start
        }

        pub(crate) fn len(&self) -> usize {
            self.layout.size()
        }

        pub(crate) fn lock(&self, _supply: Supply) -> io::Result<()> {
            Ok(())
        }

        pub(crate) fn dont_dump(&self) -> io::Result<()> {
            Ok(())
        }

        pub(crate) unsafe fn discard(&self, start: NonNull<u8>, len: usize) -> io::Result<()> {
            // SAFETY: the part lies in the allocation, and its contents have no other user.
            unsafe { start.write_bytes(0, len) };
            Ok(())
        }

        pub(crate) fn repopulate(&self, _start: NonNull<u8>, _len: usize) -> io::Result<()> {
            Ok(())
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: allocated in `base` with this layout, freed once.
            unsafe { dealloc(self.start.as_ptr(), self.layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_powers_of_two() {
        assert!(page_bytes().is_power_of_two());
        assert!(huge_page_bytes().is_power_of_two());
    }

    #[cfg(all(target_os = "linux", not(any(loom, miri))))]
    #[test]
    fn an_advice_is_known_exactly_if_the_kernel_takes_it() {
        const UNKNOWN: libc::c_int = 9999;
        for advice in [18, 23, 25, UNKNOWN] {
            let mapping = Mapping::base(page_bytes(), Supply::default()).unwrap();
            // SAFETY: madvise(2): none of the three loses contents; the range is a mapping of ours.
            let given =
                unsafe { libc::madvise(mapping.start().as_ptr().cast(), mapping.len(), advice) };
            let refused =
                given != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL);
            // A page is too small to be collapsed, and the error is EINVAL too.
            if advice != Advice::Collapse as libc::c_int {
                assert_eq!(knows_number(advice), !refused, "{advice}");
            }
        }
        assert!(knows(Advice::WipeOnFork), "Linux 4.14");
        let huge = huge_page_bytes();
        assert!(knows(Advice::Collapse) || Mapping::thp(huge, huge, Supply::default()).is_err());
    }

    #[cfg(all(target_os = "linux", not(any(loom, miri))))]
    #[test]
    fn transparent_huge_pages_are_aligned_and_confirmed_by_the_kernel() {
        let huge = huge_page_bytes();
        let Ok(mapping) = Mapping::thp(2 * huge, huge, Supply::default()) else {
            return; // Counted by tests/api/pool/memory.rs, where the region's report names the reason.
        };
        let start = mapping.start().as_ptr() as usize;
        assert_eq!(start % huge, 0);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        let mut huge_kib = 0;
        for line in smaps.lines() {
            if let Some((from, to)) = line.split(' ').next().and_then(|range| range.split_once('-'))
                && let (Ok(from), Ok(to)) =
                    (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
            {
                inside = from < start + mapping.len() && start < to;
            }
            if let Some(kib) = line.strip_prefix("AnonHugePages:").filter(|_| inside) {
                huge_kib += kib.trim_end_matches("kB").trim().parse::<usize>().unwrap();
            }
        }
        assert!(huge_kib * 1024 >= mapping.len(), "{huge_kib} KiB huge");
    }
}
