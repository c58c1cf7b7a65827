//! Memory to send from.

use std::{io, ptr};

/// A private mapping, on base pages or on huge ones, every page present.
pub(crate) struct Memory {
    mapped: *mut libc::c_void,
    start: *mut u8,
    len: usize,
}

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

impl Memory {
    /// `len` bytes; with `huge`, on transparent huge pages.
    pub(crate) fn new(len: usize, huge: bool) -> Self {
        let len = len.next_multiple_of(HUGE);
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), len + HUGE, protection, flags, -1, 0) };
        assert_ne!(mapped, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        // What lies before stays unused: it is never touched.
        let start = mapped.cast::<u8>().wrapping_add(mapped.cast::<u8>().align_offset(HUGE));
        let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: the range lies in the mapping just made.
        unsafe { libc::madvise(start.cast(), len, advice) };
        // SAFETY: as above; nobody else knows it.
        unsafe { start.write_bytes(1, len) };
        Self { mapped, start, len }
    }

    pub(crate) fn start(&self) -> *const u8 {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, which nobody uses any more.
        unsafe { libc::munmap(self.mapped, self.len + HUGE) };
    }
}
