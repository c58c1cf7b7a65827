//! The files that hold the RAM of a QEMU.
//!
//! A memory backend with `share=on` is a file that any process can map: named, unlinked, or a memfd.
//! The memory map of the hypervisor tells the file, so no path has to be right in this process's
//! namespace:
//!
//! 1. `query-memdev` names the backends.
//! 2. The mapping of a backend is the shared one of its size. Of several, `info ramblock` knows the
//!    address (from QEMU 8.0 on), or `mem-path` the file.
//! 3. A descriptor of the hypervisor opens the file.
//!
//! A hole of the file reads as zeros. A read through a mapping fills the hole, so only the ranges of
//! [`GuestRam::data_ranges`] may be read.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    process::{Mapping, Process},
    qmp::{Qmp, Version},
};
use crate::{
    failure::{Code, Failure},
    sys,
    wire::PAGE,
};

/// The first version that puts shared memory without a named file into its own stream.
const NAMED_FILES_ONLY: Version = Version { major: 8, minor: 1 };
/// The unit of `st_blocks`.
const BLOCK: u64 = 512;

/// A piece of guest memory.
#[derive(Debug)]
pub struct GuestRam {
    /// The name of the memory backend.
    pub id: String,
    /// The size in bytes, a multiple of the page size.
    pub size: u64,
    /// The memory itself.
    pub file: File,
    /// 4096, or the size of huge pages.
    pub page_size: u64,
    /// The memory's place in the hypervisor.
    pub addresses: Range<u64>,
    /// The hypervisor.
    pub process: Arc<Process>,
}

/// Use of the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The source's.
    Read,
    /// The destination's.
    Write,
}

/// Finds all memory backends of a QEMU.
///
/// # Errors
///
/// Fails with the arguments that QEMU has to be started with, if a backend is private or out of
/// sight.
pub fn find(qmp: &mut Qmp, access: Access) -> Result<Vec<GuestRam>, Failure> {
    let backends = qmp.execute("query-memdev", json!({}))?;
    let backends = backends.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut search = Search { process: Arc::new(Process::behind(qmp)?), qmp, access };
    let found: Vec<_> =
        backends.iter().map(|backend| search.backend(backend)).collect::<Result<_, _>>()?;
    match found.is_empty() {
        true => Err(search.refused("the guest has no memory backend", "m0", "SIZE")),
        false => Ok(found),
    }
}

struct Search<'a> {
    process: Arc<Process>,
    qmp: &'a mut Qmp,
    access: Access,
}

impl Search<'_> {
    fn backend(&mut self, backend: &Value) -> Result<GuestRam, Failure> {
        let id = backend["id"].as_str().unwrap_or("without a name");
        let size = backend["size"].as_u64().unwrap_or(0);
        let refused = |search: &Self, why: &str| {
            Err(search.refused(&format!("the memory {id} {why}"), id, &size.to_string()))
        };
        if backend["share"] != true {
            return refused(self, "is private to QEMU");
        }
        match self.kind(id)?.as_str() {
            "memory-backend-file" => {}
            "memory-backend-memfd" if self.qmp.version() < NAMED_FILES_ONLY => {}
            kind => return refused(self, &format!("is a {kind}, which QEMU sends itself")),
        }
        let denied = |error| self.denied(id, &error);
        let mut mappings = self.process.mappings().map_err(denied)?;
        mappings.retain(|mapping| mapping.addresses.end - mapping.addresses.start == size);
        let mapping = match mappings.as_slice() {
            [] => None,
            [only] => Some(only.clone()),
            _ => self.choose(id, mappings)?,
        };
        let Some(mapping) = mapping else {
            return refused(self, "is not to be told from other memory of its size");
        };
        if mapping.offset != 0 {
            return refused(self, "does not begin at the start of its file");
        }
        let write = self.access == Access::Write;
        let options = OpenOptions::new().read(true).write(write).clone();
        let denied = |error| self.denied(id, &error);
        let file = self.process.mapped_file(mapping.file, &options).map_err(denied)?;
        let (kind, block) = sys::file_system(&file).map_err(denied)?;
        let page_size = if kind == libc::HUGETLBFS_MAGIC { block } else { PAGE as u64 };
        let process = Arc::clone(&self.process);
        let ram = GuestRam {
            id: id.into(),
            size,
            file,
            page_size,
            addresses: mapping.addresses,
            process,
        };
        ram.check_backing().map_err(denied)?;
        Ok(ram)
    }

    /// The type of a backend in QEMU's object model.
    fn kind(&mut self, id: &str) -> Result<String, Failure> {
        let objects = self.qmp.execute("qom-list", json!({ "path": "/objects" }))?;
        let object = objects.as_array().into_iter().flatten().find(|object| object["name"] == id);
        let kind = object.and_then(|object| object["type"].as_str()?.strip_prefix("child<"));
        Ok(kind.unwrap_or("object out of sight>").trim_end_matches('>').to_owned())
    }

    /// Of several mappings of one size, the backend's.
    fn choose(&mut self, id: &str, mappings: Vec<Mapping>) -> Result<Option<Mapping>, Failure> {
        let command = json!({ "command-line": "info ramblock" });
        let blocks = self.qmp.execute("human-monitor-command", command)?;
        if let Some(address) = address_of(blocks.as_str().unwrap_or_default(), id) {
            return Ok(mappings.into_iter().find(|mapping| mapping.addresses.start == address));
        }
        let property = json!({ "path": format!("/objects/{id}"), "property": "mem-path" });
        // A memfd has no path, which QEMU answers with an error.
        let path = self.qmp.execute("qom-get", property).ok();
        let file = path.as_ref().and_then(|path| self.process.file_at(path.as_str()?).ok());
        let mut mappings = mappings.into_iter().filter(|mapping| Some(mapping.file) == file);
        // A file that is mapped twice has no certain address.
        Ok(mappings.next().filter(|_| mappings.next().is_none()))
    }

    fn refused(&self, why: &str, id: &str, size: &str) -> Failure {
        let remedy = format!(
            "start QEMU with -object memory-backend-file,id={id},size={size},mem-path=PATH,share=on \
             -machine memory-backend={id} (PATH a file in /dev/shm of its own, or /proc/self/fd/N of \
             an inherited memfd)"
        );
        let path = self.qmp.path().display();
        Failure::new(Code::Environment, format!("QMP {path}: {why}; {remedy}"))
    }

    fn denied(&self, id: &str, error: &io::Error) -> Failure {
        let pid = self.process.pid();
        let remedy = match error.kind() {
            ErrorKind::PermissionDenied => {
                "; run migration_sender as the user that QEMU was started as, or with \
                 CAP_SYS_PTRACE: QEMU's -runas hides its memory from its new user"
            }
            _ => "",
        };
        Failure::new(Code::Environment, format!("memory {id} of process {pid}: {error}{remedy}"))
    }
}

impl GuestRam {
    /// The ranges that are no holes, in order. Zeros may be in them.
    ///
    /// # Performance
    ///
    /// Ordinary memory: two system calls for each range. Huge pages: a read of every page that the
    /// guest has not touched, up to its first byte other than zero.
    pub fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        self.check_backing()?;
        if self.page_size != PAGE as u64 {
            return self.huge_data();
        }
        self.data_in(0..self.size)
    }

    /// As `data_ranges`, for a part of ordinary memory.
    pub fn data_in(&self, part: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let (mut ranges, mut at) = (Vec::new(), part.start);
        while at < part.end
            && let Some(range) = sys::next_data(&self.file, at)?
            && range.start < part.end
        {
            at = range.end;
            ranges.push(range.start..range.end.min(part.end));
        }
        Ok(ranges)
    }

    /// Fails if the file has become shorter than the memory: reads through a mapping would raise
    /// SIGBUS, and sends fail with EFAULT. The files of memfds that QEMU makes are sealed.
    pub fn check_backing(&self) -> io::Result<()> {
        match self.file.metadata()?.len() >= self.size {
            true => Ok(()),
            false => Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                format!("the file of memory {} was truncated under the guest", self.id),
            )),
        }
    }

    /// As `data_ranges`: for hugetlbfs SEEK_DATA finds no holes. The page table of the hypervisor
    /// tells the pages that the guest has touched. Others may be full too, filled by the program
    /// that received the guest; their reads by pread(2) do not fill holes.
    fn huge_data(&self) -> io::Result<Vec<Range<u64>>> {
        let pagemap = self.process.file("pagemap", OpenOptions::new().read(true))?;
        let mut pages = Vec::new();
        for offset in (0..self.size).step_by(self.page_size as usize) {
            let mut entry = [0; 8];
            let place = (self.addresses.start + offset) / PAGE as u64 * entry.len() as u64;
            pagemap.read_exact_at(&mut entry, place)?;
            pages.push(u64::from_ne_bytes(entry) & PRESENT != 0);
        }
        let present = pages.iter().filter(|page| **page).count() as u64 * self.page_size;
        let is_all_present = present >= self.file.metadata()?.blocks() * BLOCK;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (offset, is_present) in (0..).step_by(self.page_size as usize).zip(pages) {
            if !is_present && (is_all_present || self.is_zero(offset)?) {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.end == offset => last.end += self.page_size,
                _ => ranges.push(offset..offset + self.page_size),
            }
        }
        Ok(ranges)
    }

    /// Returns `true` if a page is a hole or full of zeros.
    fn is_zero(&self, offset: u64) -> io::Result<bool> {
        let mut piece = [0; 64 << 10];
        for at in (offset..offset + self.page_size).step_by(piece.len()) {
            self.file.read_exact_at(&mut piece, at)?;
            if piece.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The bit of a pagemap entry for a page in memory.
const PRESENT: u64 = 1 << 63;

/// The address of a block in the table of `info ramblock`:
/// `m0    4 KiB  0x0 (offset)  0x10000000 (used)  0x10000000 (total) 0x7fd4e3fff000 (address)  rw`.
fn address_of(table: &str, id: &str) -> Option<u64> {
    let line = table.lines().find(|line| {
        let name = line.split_ascii_whitespace().next().unwrap_or_default();
        name.rsplit('/').next() == Some(id)
    })?;
    let mut numbers = line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("0x"));
    u64::from_str_radix(numbers.nth(3)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_blocks_tells_addresses_from_version_8_on() {
        let old = "  Block Name    PSize   Offset   Used   Total\n   m0  4 KiB  0x00 0x10 0x10\n";
        let new = "  Block Name    PSize   Offset   Used   Total  HVA  RO\n\
                   mem0  4 KiB  0x00 0x10 0x10 0x00007f0000000000  rw\n\
                   /objects/m0  4 KiB  0x00 0x10 0x10 0x00007fd4e3fff000  rw\n";
        assert_eq!(address_of(old, "m0"), None);
        assert_eq!(address_of(new, "m0"), Some(0x7fd4_e3ff_f000));
        assert_eq!(address_of(new, "m1"), None);
    }
}
