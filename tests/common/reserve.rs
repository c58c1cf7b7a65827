//! The system's reserve of huge pages.

use std::{fs, io, os::fd::AsRawFd};

/// More huge pages than there were, for as long as this lives. One test of all processes at a time
/// has it: what it finds and puts back is the truth.
pub(crate) struct Reserve {
    before: usize,
    _lock: fs::File,
}

impl Reserve {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";
    pub(crate) const PAGE: usize = 2 << 20;

    /// Adds so many pages of 2 MiB.
    pub(crate) fn add(pages: usize) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("the reserve of huge pages: {error}");
        let lock = fs::File::open(Self::FILE).map_err(cannot)?;
        // SAFETY: flock(2) takes no pointers.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) } != 0 {
            return Err(cannot(io::Error::last_os_error()));
        }
        let before = Self::read().map_err(cannot)?;
        fs::write(Self::FILE, (before + pages).to_string()).map_err(cannot)?;
        let reserve = Self { before, _lock: lock };
        match Self::read().map_err(cannot)? {
            now if now == before + pages => Ok(reserve),
            now => Err(format!("{} of {pages} huge pages are to be had", now - before)),
        }
    }

    fn read() -> io::Result<usize> {
        Ok(fs::read_to_string(Self::FILE)?.trim().parse().unwrap_or(0))
    }

    /// Pages that nobody uses, nor has a claim to.
    pub(crate) fn free() -> usize {
        let info = fs::read_to_string("/proc/meminfo").unwrap();
        let count = |key: &str| -> usize {
            let line = info.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim().parse().unwrap()
        };
        count("HugePages_Free:") - count("HugePages_Rsvd:")
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        let _ = fs::write(Self::FILE, self.before.to_string());
    }
}
