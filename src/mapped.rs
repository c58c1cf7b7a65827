//! Memory mapped by the user.

use std::{
    any::Any,
    fmt,
    ops::{Bound, Range, RangeBounds},
};

use crate::{error::RangeError, sync::Arc};

/// Memory that stays mapped as long as the value lives, to be sent as [`MappedSlice`]s.
///
/// With the feature `memmap2-0_9` the types of memmap2 0.9 are mappings: `MmapRaw`, and, for memory
/// that does not change, `Mmap` and `MmapMut`. Implement the trait for memory of another origin, such as
/// the RAM of a guest:
///
/// ```
/// use std::{ptr::NonNull, sync::Arc};
/// use pinbuf::{Mapping, MappedSlice};
///
/// /// RAM that the virtual processors write at any time.
/// struct GuestRam {
///     start: NonNull<u8>,
///     len: usize,
/// }
///
/// // SAFETY: the memory has no owner but this value, and is unmapped by its drop.
/// unsafe impl Send for GuestRam {}
/// // SAFETY: as above; the value gives no reference to the bytes.
/// unsafe impl Sync for GuestRam {}
/// // SAFETY: start and length never change, and the memory is mapped until the drop.
/// unsafe impl Mapping for GuestRam {
///     fn as_raw(&self) -> *const [u8] {
///         NonNull::slice_from_raw_parts(self.start, self.len).as_ptr()
///     }
/// }
/// # let page = Box::leak(Box::new([0_u8; 4096]));
/// # let ram = GuestRam { start: NonNull::from(page).cast(), len: 4096 };
/// let ram = Arc::new(ram);
/// let slice = MappedSlice::new(Arc::clone(&ram), 1024..2048)?;
/// # Ok::<(), pinbuf::error::RangeError>(())
/// ```
///
/// # Safety
///
/// As long as the value lives, [`as_raw`](Self::as_raw) returns the same range, and the range stays
/// mapped and contains only data that may be sent.
pub unsafe trait Mapping: Send + Sync + 'static {
    /// The whole range. The library passes the address to system calls, and reads nothing.
    fn as_raw(&self) -> *const [u8];
}

/// The types of memmap2 own their ranges, which no shared reference can unmap, move or resize.
macro_rules! memmap2_is_mapping {
    ($($kind:ident),+) => {$(
        #[cfg(feature = "memmap2-0_9")]
        #[cfg_attr(docsrs, doc(cfg(feature = "memmap2-0_9")))]
        // SAFETY: the range is mapped until the drop, and changes only through `&mut`.
        unsafe impl Mapping for memmap2::$kind {
            fn as_raw(&self) -> *const [u8] {
                std::ptr::slice_from_raw_parts(self.as_ptr(), self.len())
            }
        }
    )+};
}

memmap2_is_mapping! { MmapRaw, Mmap, MmapMut }

/// A range of user-mapped memory, such as a file or a guest's RAM, to be sent from its place.
///
/// The sender keeps the mapping until the kernel has released the range. The library passes the
/// address to system calls only and never reads the bytes. Other threads and processes may change
/// the bytes at any time, and are responsible for the bytes that arrive. A send from a file
/// truncated under the mapping fails with [`BadAddress`](crate::SendError::BadAddress); no signal
/// is raised.
///
/// Clones name the same memory. Slicing and cloning copy no bytes.
///
#[cfg_attr(feature = "memmap2-0_9", doc = "```")]
#[cfg_attr(not(feature = "memmap2-0_9"), doc = "```ignore")]
/// use std::sync::Arc;
/// use memmap2::{MmapOptions, MmapRaw};
/// use pinbuf::MappedSlice;
///
/// let map = Arc::new(MmapRaw::from(MmapOptions::new().len(8192).map_anon()?));
/// let slice = MappedSlice::new(map, 4096..8192)?;
/// let (head, body) = slice.split_at(100);
/// assert_eq!((head.len(), body.len()), (100, 3996));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
// # Invariants
//
// 1. As long as `owner` lives, `len` bytes from `start` on are mapped memory that may be passed to a
//    system call for reading.
#[derive(Clone)]
pub struct MappedSlice {
    owner: Arc<dyn Any + Send + Sync>,
    start: *const u8,
    len: usize,
}

// SAFETY: the owner is Send and Sync; only the kernel gets the pointer, and reads from any thread.
unsafe impl Send for MappedSlice {}
// SAFETY: as above.
unsafe impl Sync for MappedSlice {}

impl MappedSlice {
    /// A range of a mapping.
    ///
    /// # Errors
    ///
    /// [`RangeError`] if the range does not lie inside the mapping.
    ///
    #[cfg_attr(feature = "memmap2-0_9", doc = "```")]
    #[cfg_attr(not(feature = "memmap2-0_9"), doc = "```ignore")]
    /// use std::sync::Arc;
    /// use memmap2::{MmapOptions, MmapRaw};
    ///
    /// let map = Arc::new(MmapRaw::from(MmapOptions::new().len(4096).map_anon()?));
    /// assert!(pinbuf::MappedSlice::new(map.clone(), 0..4096).is_ok());
    /// assert!(pinbuf::MappedSlice::new(map, 1..4097).is_err());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new<M: Mapping>(map: Arc<M>, range: Range<usize>) -> Result<Self, RangeError> {
        let whole = map.as_raw();
        let len = whole.len();
        if range.start > range.end || range.end > len {
            return Err(RangeError { range, len });
        }
        let start = whole.cast::<u8>().wrapping_add(range.start);
        Ok(Self { owner: map, start, len: range.len() })
    }

    /// Memory that lives as long as `owner`, without a type of the owner's own; see [`Mapping`].
    ///
    /// # Safety
    ///
    /// As long as `owner` lives, the `len` bytes from `start` on stay mapped and contain only data
    /// that may be sent.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let owner: Arc<Vec<u8>> = Arc::new(vec![7; 100]);
    /// let start = owner.as_ptr();
    /// // SAFETY: the Arc keeps the vector, and no reference can change it.
    /// let slice = unsafe { pinbuf::MappedSlice::from_raw_parts(owner, start, 100) };
    /// assert_eq!(slice.len(), 100);
    /// ```
    pub unsafe fn from_raw_parts(
        owner: Arc<dyn Any + Send + Sync>,
        start: *const u8,
        len: usize,
    ) -> Self {
        Self { owner, start, len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns `true` if the slice has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of the slice.
    ///
    /// # Panics
    ///
    /// If the range does not lie inside the slice.
    #[must_use]
    #[track_caller]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => self.len,
        };
        let len = self.len;
        assert!(start <= end && end <= len, "{start}..{end} does not lie inside 0..{len}");
        Self {
            owner: Arc::clone(&self.owner),
            start: self.start.wrapping_add(start),
            len: end - start,
        }
    }

    /// The first `at` bytes, and the remaining bytes.
    ///
    /// # Panics
    ///
    /// If `at` is larger than the length.
    #[must_use]
    #[track_caller]
    pub fn split_at(&self, at: usize) -> (Self, Self) {
        (self.slice(..at), self.slice(at..))
    }

    /// Address and length. No reference, since other writers may exist.
    #[inline]
    pub(crate) fn as_raw(&self) -> (*const u8, usize) {
        (self.start, self.len)
    }
}

impl fmt::Debug for MappedSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedSlice")
            .field("start", &self.start)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(len: usize) -> MappedSlice {
        let owner = Arc::new(vec![0_u8; len]);
        let start = owner.as_ptr();
        // SAFETY: the Arc keeps the vector, which has no writers.
        unsafe { MappedSlice::from_raw_parts(owner, start, len) }
    }

    #[test]
    fn parts_start_at_the_right_offsets() {
        let whole = slice(100);
        let part = whole.slice(10..=19).slice(2..);
        assert_eq!(part.len(), 8);
        assert_eq!(part.as_raw().0 as usize - whole.as_raw().0 as usize, 12);
        assert!(whole.slice(100..).is_empty());
    }

    #[test]
    #[should_panic(expected = "90..101 does not lie inside 0..100")]
    fn a_part_must_lie_inside_the_slice() {
        let _ = slice(100).slice(90..101);
    }

    #[test]
    fn a_part_keeps_the_owner() {
        let owner = Arc::new(vec![0_u8; 10]);
        let start = owner.as_ptr();
        // SAFETY: the Arc keeps the vector, which has no writers.
        let whole = unsafe { MappedSlice::from_raw_parts(owner.clone(), start, 10) };
        let (head, _) = whole.split_at(5);
        drop(whole);
        assert_eq!(Arc::strong_count(&owner), 2);
        drop(head);
        assert_eq!(Arc::strong_count(&owner), 1);
    }
}
