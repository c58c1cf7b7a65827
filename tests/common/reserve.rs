//! The system's reserve of huge pages.

use std::{fs, io, os::fd::AsRawFd};

/// Extra huge pages, as long as the value lives, and the lock.
pub(crate) struct Reserve {
    before: usize,
    _lock: fs::File,
}

impl Reserve {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";
    pub(crate) const PAGE: usize = 2 << 20;

    /// Admits a single test of all processes, so that counts are right.
    pub(crate) fn lock() -> io::Result<fs::File> {
        let lock = fs::File::open(Self::FILE)?;
        // SAFETY: flock(2) takes no pointers.
        let locked = unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) };
        if locked == 0 { Ok(lock) } else { Err(io::Error::last_os_error()) }
    }

    /// Adds this many pages of 2 MiB.
    pub(crate) fn add(pages: usize) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("the reserve of huge pages: {error}");
        let lock = Self::lock().map_err(cannot)?;
        let before = Self::read().map_err(cannot)?;
        fs::write(Self::FILE, (before + pages).to_string()).map_err(cannot)?;
        let reserve = Self { before, _lock: lock };
        match Self::read().map_err(cannot)? {
            now if now == before + pages => Ok(reserve),
            now => Err(format!("{} of {pages} huge pages are available", now - before)),
        }
    }

    fn read() -> io::Result<usize> {
        Ok(fs::read_to_string(Self::FILE)?.trim().parse().unwrap_or(0))
    }

    /// Unused and unclaimed pages.
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
