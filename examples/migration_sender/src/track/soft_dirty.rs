//! The soft-dirty bits of the hypervisor's page tables.
//!
//! A write of `4` to `clear_refs` takes all bits away, and the kernel sets the bit of a page at the
//! next write. Reading the bits and taking them away are two steps, and a write between them would
//! be lost. So the bits are taken away once, at the start, and the set of written pages only grows:
//! it saves digests of the pages that were never written.
//!
//! The kernel loses a bit together with its page table entry: after a swap-out, and when it makes or
//! splits a huge page of shared memory. Both are refused.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    process,
    sync::Arc,
};

use memmap2::MmapMut;

use super::{Changes, Tracker, holes, push, without};
use crate::{
    hypervisor::{memory::GuestRam, process::Process},
    sys,
    wire::PAGE,
};

const SOFT_DIRTY: u64 = 1 << 55;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;
/// Bytes of an entry of the page map.
const ENTRY: usize = 8;

/// A tracker by soft-dirty bits.
#[derive(Debug)]
pub struct SoftDirty {
    pagemap: File,
    ram: Arc<[GuestRam]>,
    /// The first call, which returns all pages, is over.
    has_begun: bool,
}

impl SoftDirty {
    /// Takes the bits of the whole hypervisor away.
    ///
    /// # Errors
    ///
    /// Fails with the missing condition, for the user.
    pub fn new(ram: Arc<[GuestRam]>) -> Result<Self, String> {
        for piece in ram.iter() {
            match sys::file_system(&piece.file) {
                Ok((libc::TMPFS_MAGIC, _)) => {}
                Ok(_) => return Err(format!("memory {} is not in tmpfs", piece.id)),
                Err(error) => return Err(format!("memory {}: {error}", piece.id)),
            }
        }
        // The first line is the table's head.
        if fs::read_to_string("/proc/swaps").unwrap_or_default().lines().count() > 1 {
            return Err("the kernel loses bits of pages that it swaps out; turn swap off".into());
        }
        let huge = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
        let setting = fs::read_to_string(huge).unwrap_or_default();
        if !setting.is_empty() && !setting.contains("[never]") && !setting.contains("[deny]") {
            return Err(format!("the kernel loses bits of huge pages; write never to {huge}"));
        }
        probe().map_err(|error| error.to_string())?;
        let process = Arc::clone(&ram.first().ok_or("there is no memory")?.process);
        let open = || {
            clear(&process)?;
            process.file("pagemap", OpenOptions::new().read(true))
        };
        let pagemap = open().map_err(|error| {
            format!(
                "page table of process {}: {error}; it needs QEMU's user or root",
                process.pid()
            )
        })?;
        Ok(Self { pagemap, ram, has_begun: false })
    }
}

/// Takes all bits of a process away.
fn clear(process: &Process) -> io::Result<()> {
    process.file("clear_refs", OpenOptions::new().write(true))?.write_all(b"4")
}

/// Fails unless the kernel sets the bit of a page of this process at a write. Kernels without
/// CONFIG_MEM_SOFT_DIRTY take the `4` without an error.
fn probe() -> io::Result<()> {
    let own = Process::open(process::id().try_into().unwrap_or(0))?;
    let pagemap = own.file("pagemap", OpenOptions::new().read(true))?;
    let mut page = MmapMut::map_anon(PAGE)?;
    page[0] = 1;
    clear(&own)?;
    let address = page.as_ptr() as u64;
    let before = entries(&pagemap, address, 1)?[0];
    page[0] = 2;
    let after = entries(&pagemap, address, 1)?[0];
    match (before & SOFT_DIRTY, after & SOFT_DIRTY) {
        (0, SOFT_DIRTY) => Ok(()),
        _ => Err(io::Error::other("this kernel does not keep soft-dirty bits")),
    }
}

fn entries(pagemap: &File, address: u64, count: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; count * ENTRY];
    pagemap.read_exact_at(&mut bytes, address / PAGE as u64 * ENTRY as u64)?;
    Ok(bytes.as_chunks().0.iter().map(|entry| u64::from_ne_bytes(*entry)).collect())
}

impl SoftDirty {
    fn changes_of(&self, piece: &GuestRam) -> io::Result<Changes> {
        const STEP: usize = 64 << 10;
        let (mut written, mut absent) = (Vec::new(), Vec::new());
        for start in (0..piece.size).step_by(STEP * PAGE) {
            let count = STEP.min(((piece.size - start) / PAGE as u64) as usize);
            let found = entries(&self.pagemap, piece.addresses.start + start, count)?;
            for (at, entry) in (start..).step_by(PAGE).zip(found) {
                let page = at..at + PAGE as u64;
                let is_absent = entry & (PRESENT | SWAPPED) == 0;
                if is_absent {
                    push(&mut absent, page.clone());
                }
                if is_absent || entry & SOFT_DIRTY != 0 || !self.has_begun {
                    push(&mut written, page);
                }
            }
        }
        let holes = holes(piece, &absent)?;
        Ok(Changes { written: without(&written, &holes), holes })
    }
}

impl Tracker for SoftDirty {
    /// All pages that were written since the start, those without an entry in the table, and all
    /// holes.
    fn changes(&mut self) -> io::Result<Vec<Changes>> {
        let changes = self.ram.iter().map(|piece| self.changes_of(piece)).collect();
        self.has_begun = true;
        changes
    }

    fn is_exact(&self) -> bool {
        false
    }
}
