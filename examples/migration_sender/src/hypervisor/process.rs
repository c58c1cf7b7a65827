//! The process of a hypervisor: its memory map, descriptors and page tables, by `/proc`.
//!
//! A process number can come from another pid namespace or be used again. So the process is held by
//! a pidfd, and [`Process::behind`] compares the number of a thread with the monitor's own words.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    ops::Range,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
};

use serde_json::json;

use super::qmp::Qmp;
use crate::{
    failure::{Code, Failure},
    sys,
};

/// A live process. Another process never takes its place.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: OwnedFd,
}

/// A file in the address space of a process, shared and writable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    pub addresses: Range<u64>,
    /// The offset of the first address in the file.
    pub offset: u64,
    pub file: FileId,
}

/// Device and inode of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileId {
    device: (u32, u32),
    inode: u64,
}

impl Process {
    /// The process at the other end of a monitor.
    ///
    /// # Errors
    ///
    /// Fails without a sight of the process: it can live in another pid namespace.
    pub fn behind(qmp: &mut Qmp) -> Result<Self, Failure> {
        let processors = qmp.execute("query-cpus-fast", json!({}))?;
        let thread = processors[0]["thread-id"].as_i64().unwrap_or(0);
        // The process with the listener is a manager, such as libvirt, if it has handed the socket
        // down. Then the thread leads to the process.
        let listener = qmp.peer_pid().unwrap_or(0);
        for pid in [listener, group_of(thread).unwrap_or(0)] {
            let Some(process) = Self::open(pid).ok().filter(|process| process.has_thread(thread))
            else {
                continue;
            };
            // An answer with the pidfd open: the process of the thread has not ended before.
            qmp.execute("query-name", json!({}))?;
            return Ok(process);
        }
        let why = format!(
            "QMP {}: the process behind the monitor is out of sight (process {listener} made the \
             socket, thread {thread} is a processor); run migration_sender in QEMU's pid namespace, \
             as QEMU's user or root",
            qmp.path().display()
        );
        Err(Failure::new(Code::Environment, why))
    }

    /// The process with this number now.
    pub fn open(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, pidfd: sys::pidfd_open(pid)? })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns `true` if the process has not ended.
    pub fn is_alive(&self) -> bool {
        sys::is_alive(self.pidfd.as_fd())
    }

    /// Opens a file of the process's folder in `/proc`.
    pub fn file(&self, name: &str, options: &OpenOptions) -> io::Result<File> {
        let file = options.open(self.path(name))?;
        self.check_alive()?;
        Ok(file)
    }

    /// Duplicates a descriptor.
    pub fn descriptor(&self, fd: i32) -> io::Result<OwnedFd> {
        sys::pidfd_getfd(self.pidfd.as_fd(), fd)
    }

    /// The numbers of the open descriptors, each with its target in `/proc`.
    pub fn descriptors(&self) -> io::Result<Vec<(i32, PathBuf)>> {
        let mut descriptors = Vec::new();
        for entry in fs::read_dir(self.path("fd"))? {
            let entry = entry?;
            let number = entry.file_name().to_string_lossy().parse();
            // A descriptor can be closed meanwhile.
            if let (Ok(number), Ok(target)) = (number, fs::read_link(entry.path())) {
                descriptors.push((number, target));
            }
        }
        self.check_alive()?;
        Ok(descriptors)
    }

    /// Opens a mapped file, by a descriptor of the process.
    pub fn mapped_file(&self, id: FileId, options: &OpenOptions) -> io::Result<File> {
        for (number, _) in self.descriptors()? {
            let name = format!("fd/{number}");
            if fs::metadata(self.path(&name)).is_ok_and(|file| FileId::of(&file) == id) {
                return self.file(&name, options);
            }
        }
        Err(io::Error::new(ErrorKind::NotFound, "the process has closed the file"))
    }

    /// The identity of the file at a path, in the process's eyes.
    pub fn file_at(&self, path: &str) -> io::Result<FileId> {
        let own = ["/proc/self/", "/dev/"].iter().find_map(|folder| path.strip_prefix(folder));
        let path = match own {
            Some(name) if name.starts_with("fd/") => self.path(name),
            _ => self.path(&format!("root{path}")),
        };
        Ok(FileId::of(&fs::metadata(path)?))
    }

    /// All shared and writable mappings of files. Neighbours that go on in the same file are one.
    pub fn mappings(&self) -> io::Result<Vec<Mapping>> {
        let maps = fs::read(self.path("maps"))?;
        self.check_alive()?;
        let mut mappings: Vec<Mapping> = Vec::new();
        for next in String::from_utf8_lossy(&maps).lines().filter_map(mapping) {
            match mappings.last_mut() {
                Some(last) if last.goes_on_in(&next) => last.addresses.end = next.addresses.end,
                _ => mappings.push(next),
            }
        }
        Ok(mappings)
    }

    fn check_alive(&self) -> io::Result<()> {
        match self.is_alive() {
            true => Ok(()),
            false => Err(io::Error::new(ErrorKind::NotFound, "the process has ended")),
        }
    }

    /// Returns `true` if one of the process's threads calls itself `number`, in its own namespace.
    fn has_thread(&self, number: i64) -> bool {
        let Ok(threads) = fs::read_dir(self.path("task")) else { return false };
        threads.flatten().any(|thread| {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            field(&status, "NSpid:").or(field(&status, "Pid:")) == Some(number)
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }
}

impl Mapping {
    fn goes_on_in(&self, next: &Self) -> bool {
        let len = self.addresses.end - self.addresses.start;
        next.file == self.file
            && next.addresses.start == self.addresses.end
            && next.offset == self.offset + len
    }
}

impl FileId {
    fn of(file: &fs::Metadata) -> Self {
        let device = (libc::major(file.dev()), libc::minor(file.dev()));
        Self { device, inode: file.ino() }
    }
}

/// A line of `maps`, for example
/// `7f111bfff000-7f112bfff000 rw-s 00000000 00:1b 3    /dev/shm/guest`.
fn mapping(line: &str) -> Option<Mapping> {
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let addresses = hex(start)?..hex(end)?;
    if fields.next()? != "rw-s" {
        return None;
    }
    let offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = (hex(major)?.try_into().ok()?, hex(minor)?.try_into().ok()?);
    let inode = fields.next()?.parse().ok()?;
    Some(Mapping { addresses, offset, file: FileId { device, inode } })
}

/// The process of a thread, in this namespace.
fn group_of(thread: i64) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    field(&status, "Tgid:")?.try_into().ok()
}

/// The last number behind a name in `status`: of a list, the one of the innermost namespace.
fn field(status: &str, name: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shared_writable_mappings_count() {
        let line = "7f111bfff000-7f112bfff000 rw-s 00001000 00:1b 3      /dev/shm/a b (deleted)";
        let found = mapping(line).unwrap();
        assert_eq!(found.addresses, 0x7f11_1bff_f000..0x7f11_2bff_f000);
        assert_eq!((found.offset, found.file), (0x1000, FileId { device: (0, 27), inode: 3 }));
        for line in [
            "7f111bfff000-7f112bfff000 rw-p 00000000 00:00 0 ",
            "7f111bfff000-7f112bfff000 r--s 00000000 00:1b 3 /dev/shm/a",
            "",
            "x",
        ] {
            assert_eq!(mapping(line), None, "{line}");
        }
    }

    #[test]
    fn the_innermost_namespace_names_a_thread() {
        assert_eq!(field("Name:\tx\nNSpid:\t77\t5\n", "NSpid:"), Some(5));
        assert_eq!(field("Name:\tx\n", "NSpid:"), None);
    }

    #[test]
    fn a_process_finds_itself_and_its_threads() {
        let own = Process::open(std::process::id() as i32).unwrap();
        assert!(own.is_alive());
        assert!(own.has_thread(i64::from(own.pid())) && !own.has_thread(-1));
        assert_eq!(group_of(own.pid().into()), Some(own.pid()));
        assert!(own.mappings().is_ok() && !own.descriptors().unwrap().is_empty());
    }

    #[test]
    fn an_ended_process_is_told_from_a_live_one() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::open(child.id() as i32).unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive());
        assert!(process.mappings().is_err() && process.descriptors().is_err());
    }
}
