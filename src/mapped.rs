//! Memory mapped by the user.

use std::{
    any::Any,
    fmt,
    ops::{Bound, Range, RangeBounds},
};

use memmap2::MmapRaw;

use crate::{error::RangeError, sync::Arc};

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
/// ```
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
///
/// # Invariants
///
/// 1. As long as `owner` lives, `len` bytes from `start` on are mapped memory that may be passed to
///    a system call for reading.
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
    /// ```
    /// use std::sync::Arc;
    /// use memmap2::{MmapOptions, MmapRaw};
    ///
    /// let map = Arc::new(MmapRaw::from(MmapOptions::new().len(4096).map_anon()?));
    /// assert!(pinbuf::MappedSlice::new(map.clone(), 0..4096).is_ok());
    /// assert!(pinbuf::MappedSlice::new(map, 1..4097).is_err());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(map: Arc<MmapRaw>, range: Range<usize>) -> Result<Self, RangeError> {
        let len = map.len();
        if range.start > range.end || range.end > len {
            return Err(RangeError { range, len });
        }
        let start = map.as_ptr().wrapping_add(range.start);
        Ok(Self { owner: map, start, len: range.len() })
    }

    /// Memory that lives as long as `owner`.
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
