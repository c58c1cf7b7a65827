//! A pool's memory by hand: a mapping of a kind of page, populated in one call.

use std::{io, ptr, time::Duration};

use pinbuf::{
    Pool,
    pool::{Backing, Pages},
};

use super::{SIZE, harness::thread_cpu};

/// The milliseconds to build a pool of `len` bytes.
pub(crate) fn pinbuf(pages: Pages, len: usize) -> Result<f64, String> {
    let start = thread_cpu();
    let builder = Pool::builder().class(SIZE, len / SIZE).backing(Backing::Require(pages));
    let pool = builder.build().map_err(|error| error.to_string())?;
    let taken = thread_cpu() - start;
    drop(pool);
    Ok(ms(taken))
}

/// The milliseconds to map and populate `len` bytes.
pub(crate) fn raw(pages: Pages, len: usize) -> Result<f64, String> {
    let start = thread_cpu();
    let mapping = Mapping::new(pages, len).map_err(|error| error.to_string())?;
    let taken = thread_cpu() - start;
    drop(mapping);
    Ok(ms(taken))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The alignment of transparent huge pages.
const HUGE: usize = 2 << 20;

struct Mapping {
    address: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    fn new(pages: Pages, len: usize) -> io::Result<Self> {
        let huge = matches!(pages, Pages::Thp);
        let hugetlb = match pages {
            Pages::HugeTlb { .. } => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
            _ => 0,
        };
        // Room for the alignment.
        let mapped_len = if huge { len + HUGE } else { len };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | hugetlb;
        // SAFETY: mmap(2) without MAP_FIXED and without an address disturbs nothing.
        let address = unsafe { libc::mmap(ptr::null_mut(), mapped_len, prot, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping = Self { address, len: mapped_len };
        let offset = if huge { address.align_offset(HUGE) } else { 0 };
        let inside = address.wrapping_byte_add(offset);
        if huge {
            advise(inside, len, libc::MADV_HUGEPAGE)?;
        }
        advise(inside, len, libc::MADV_POPULATE_WRITE)?;
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: munmap(2) of exactly this private mapping.
        unsafe { libc::munmap(self.address, self.len) };
    }
}

fn advise(address: *mut libc::c_void, len: usize, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: madvise(2) within a private mapping; neither advice changes its contents.
    match unsafe { libc::madvise(address, len, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
