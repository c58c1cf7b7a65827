//! `PAGEMAP_SCAN` with a userfaultfd that lives in the hypervisor.
//!
//! The library `preload/lib.rs` makes the userfaultfd when the hypervisor starts. This process
//! duplicates the descriptor, registers the guest's memory for asynchronous write protection, and
//! scans the page table: one call tells the written pages and protects them again.
//!
//! A page table entry of protected memory is in one of these states:
//!
//! | entry                     | meaning                                    | told as               |
//! |---------------------------|--------------------------------------------|-----------------------|
//! | present, protected        | not written                                |                       |
//! | present or swapped, other | written                                    | written               |
//! | marker ("swapped")        | protected, absent from the table           | hole, if it is one    |
//! | none                      | written, then taken by the kernel, or hole | written, or hole      |
//!
//! The category `PAGE_IS_WRITTEN` alone is not enough. Part of the kernels leave the last state out,
//! which comes from a swap-out of a written page, or of a huge page taken apart. A page that the
//! balloon gives back leaves a marker or nothing, and its bytes are zeros from then on. The file
//! tells: such a page is a hole.
//!
//! One case stays unseen: a page that is given back and *read* again by the guest, between two
//! calls. The balloon's protocol leaves its bytes undefined.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use super::{Changes, Tracker, holes, push, without};
use crate::{
    hypervisor::{memory::GuestRam, process::Process},
    sys::{self, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PAGE_IS_WRITTEN, PageRegion},
    wire::PAGE,
};

/// UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_FEATURE_WP_UNPOPULATED, UFFD_FEATURE_WP_ASYNC.
const FEATURES: u64 = 1 << 12 | 1 << 13 | 1 << 15;
/// Regions of one scan.
const REGIONS: usize = 4096;

/// A tracker by write protection in the hypervisor.
#[derive(Debug)]
pub struct Uffd {
    uffd: OwnedFd,
    pagemap: File,
    ram: Arc<[GuestRam]>,
    regions: Vec<PageRegion>,
}

impl Uffd {
    /// Registers the memory.
    ///
    /// # Errors
    ///
    /// Fails with the missing condition, for the user.
    pub fn new(ram: Arc<[GuestRam]>) -> Result<Self, String> {
        let process = Arc::clone(&ram.first().ok_or("there is no memory")?.process);
        let pagemap = process
            .file("pagemap", OpenOptions::new().read(true))
            .map_err(|error| format!("page table: {error}"))?;
        let mut reason = "the hypervisor has no userfaultfd; start it with \
                          LD_PRELOAD=libpinbuf_uffd.so, and without -daemonize"
            .to_owned();
        let descriptors = process.descriptors().map_err(|error| error.to_string())?;
        for (number, target) in descriptors {
            if target.as_os_str() != "anon_inode:[userfaultfd]" {
                continue;
            }
            match take(&process, number, &ram, &pagemap) {
                Ok(uffd) => {
                    let regions = vec![PageRegion::default(); REGIONS];
                    return Ok(Self { uffd, pagemap, ram, regions });
                }
                Err(why) => reason = why,
            }
        }
        Err(reason)
    }

    /// Protects a piece of memory, and returns the pages without protection or without an entry, in
    /// order.
    fn scan(&mut self, addresses: &Range<u64>) -> io::Result<Vec<PageRegion>> {
        let (mut regions, mut at) = (Vec::new(), addresses.start);
        while at < addresses.end {
            let (found, end) =
                sys::pagemap_scan(&self.pagemap, at..addresses.end, &mut self.regions)?;
            regions.extend_from_slice(&self.regions[..found]);
            // The end of the walk is right only if there was no room for more: else it may lie
            // before regions that are told already.
            at = if found == self.regions.len() { end } else { addresses.end };
        }
        regions.sort_unstable_by_key(|region| region.start);
        Ok(regions)
    }

    fn changes_of(&mut self, piece: &GuestRam) -> io::Result<Changes> {
        const ALL: u64 = PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
        // Their file tells no holes, so all that is absent counts. Digests are compared anyway.
        let is_huge = piece.page_size != PAGE as u64;
        let (mut written, mut absent) = (Vec::new(), Vec::new());
        for region in self.scan(&piece.addresses)? {
            let start = piece.addresses.start;
            let range = region.start - start..region.end - start;
            let is_marker = region.categories & ALL == PAGE_IS_SWAPPED;
            // Of a page without an entry, kernels differ on whether it is written.
            let is_unmarked = region.categories & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED) == 0;
            if is_marker || is_unmarked {
                push(&mut absent, range.clone());
            }
            if !is_marker || is_huge {
                push(&mut written, range);
            }
        }
        if is_huge {
            return Ok(Changes { written, holes: Vec::new() });
        }
        let holes = holes(piece, &absent)?;
        Ok(Changes { written: without(&written, &holes), holes })
    }
}

/// Takes a userfaultfd of the process, and registers all memory with it.
fn take(
    process: &Process,
    number: i32,
    ram: &[GuestRam],
    pagemap: &File,
) -> Result<OwnedFd, String> {
    let uffd = process.descriptor(number).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "the userfaultfd of process {} is out of reach: {error}; it needs CAP_SYS_PTRACE, or \
             the same user with kernel.yama.ptrace_scope=0",
            process.pid()
        ),
        _ => format!("userfaultfd of process {}: {error}", process.pid()),
    })?;
    // An earlier migration may have chosen them.
    let chosen = sys::userfaultfd_choose(uffd.as_fd(), FEATURES);
    for piece in ram {
        let mut one = [PageRegion::default()];
        let first = piece.addresses.start..piece.addresses.start + piece.page_size;
        let begun = register(&uffd, piece)
            .and_then(|()| sys::pagemap_scan(pagemap, first, &mut one))
            // The scan has protected a page, which the first call has to return.
            .and_then(|_| register(&uffd, piece));
        begun.map_err(|error| {
            let error = chosen.as_ref().err().unwrap_or(&error);
            format!("no asynchronous write protection ({error}); it needs Linux 6.7")
        })?;
    }
    Ok(uffd)
}

/// Registers memory without protection of any page. A sender that was killed has left some.
fn register(uffd: &OwnedFd, piece: &GuestRam) -> io::Result<()> {
    // Fails if the memory has never been registered.
    let _ = sys::userfaultfd_unregister(uffd.as_fd(), &piece.addresses);
    sys::userfaultfd_register(uffd.as_fd(), &piece.addresses)
}

impl Tracker for Uffd {
    fn changes(&mut self) -> io::Result<Vec<Changes>> {
        let ram = Arc::clone(&self.ram);
        ram.iter().map(|piece| self.changes_of(piece)).collect()
    }

    /// A huge page is written as a whole.
    fn is_exact(&self) -> bool {
        self.ram.iter().all(|piece| piece.page_size == PAGE as u64)
    }
}

impl Drop for Uffd {
    /// Lets the guest write at full speed again.
    fn drop(&mut self) {
        for piece in self.ram.iter() {
            // Fails only if the hypervisor has ended.
            let _ = sys::userfaultfd_unregister(self.uffd.as_fd(), &piece.addresses);
        }
    }
}
