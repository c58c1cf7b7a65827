//! The shared handle of a slot.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    mem::ManuallyDrop,
    ops::{Bound, Deref, RangeBounds},
    ptr::NonNull,
    slice,
};

use crate::{
    buf::PinnedBuf,
    raw::{Replaced, SlotRef},
};

/// A frozen buffer: read-only, cheap to clone, to be sent over many sockets at once.
///
/// Clones and [slices](Self::slice) name the same bytes. Each send takes a lease of its own.
/// So the slot is recycled after the drop of the last clone *and* the release of the last send, in
/// either order.
///
/// Holding a `SharedBuf` proves that no code writes the bytes. The kernel may still read: a clone
/// may be in flight.
///
/// Buffers compare and hash by contents, and a map with shared buffers as keys is searched with slices.
/// With the feature `bytes` a conversion into `bytes::Bytes` copies nothing, and a `bytes::Buf` reads from the front.
///
/// # Performance
///
/// A clone is an atomic operation on the slot's state word, and so is its drop. Nothing is
/// allocated.
///
/// # Examples
///
/// ```
/// let pool = pinbuf::Pool::new(4096, 1)?;
/// let mut buf = pool.try_alloc(4096)?;
/// buf.extend_from_slice(b"to all of you");
///
/// let shared = buf.freeze();
/// let clones = [shared.clone(), shared.slice(3..)];
/// assert_eq!(&clones[1][..], b"all of you");
/// drop(clones);
///
/// let mut buf = shared.try_into_pinned().expect("no clone is left");
/// buf.extend_from_slice(b"!");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
// # Invariants
//
// 1. `slot` is one holder of the slot: a handle, except in the custody of a lease.
// 2. `len` bytes from `start` on lie in the slot's memory. The memory is initialized from its
//    start to the end of these bytes, and has no writer as long as the slot has a frozen holder.
pub struct SharedBuf {
    /// Taken by drop.
    slot: ManuallyDrop<SlotRef>,
    start: NonNull<u8>,
    len: usize,
}

#[cfg(all(not(loom), target_pointer_width = "64"))]
static_assertions::assert_eq_size!(SharedBuf, [u8; 24]);
static_assertions::assert_impl_all!(SharedBuf: Send, Sync);

// SAFETY: a SharedBuf gives shared access to bytes without a writer (invariant 2), as an
// Arc<[u8]> does; SlotRef is Send.
unsafe impl Send for SharedBuf {}
// SAFETY: as above; SlotRef is Sync.
unsafe impl Sync for SharedBuf {}

impl PinnedBuf {
    /// Makes the buffer read-only, for clones and sends over many sockets.
    ///
    /// ```
    /// let pool = pinbuf::Pool::new(4096, 1)?;
    /// let shared = pool.try_alloc(4096)?.freeze();
    /// assert!(shared.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn freeze(self) -> SharedBuf {
        let (start, _) = self.as_raw();
        let start = NonNull::new(start.cast_mut()).expect("no mapping lies at address 0");
        let (slot, len) = self.into_parts();
        SharedBuf { slot: ManuallyDrop::new(slot), start, len }
    }
}

impl SharedBuf {
    /// A clone of a part of the bytes.
    ///
    /// # Panics
    ///
    /// If the range does not lie inside, and as [`clone`](Self::clone).
    #[must_use]
    #[track_caller]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let from = match range.start_bound() {
            Bound::Included(&from) => from,
            Bound::Excluded(&before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&last) => last.saturating_add(1),
            Bound::Excluded(&to) => to,
            Bound::Unbounded => self.len,
        };
        assert!(from <= to && to <= self.len, "{from}..{to} is outside of {} bytes", self.len);
        // SAFETY: `from` is at most `len`, so the pointer stays inside the slot's memory or one
        // past it (invariant 2).
        let start = unsafe { self.start.add(from) };
        Self { slot: ManuallyDrop::new(self.slot.share()), start, len: to - from }
    }

    /// Makes the buffer writable again, if this is the only handle and no send is in flight.
    ///
    /// The buffer begins at the slot's start, and ends at the end of this slice.
    ///
    /// # Errors
    ///
    /// The handle, if there is a second handle or an unreleased send.
    ///
    /// ```
    /// let pool = pinbuf::Pool::new(4096, 1)?;
    /// let one = pool.try_alloc(4096)?.freeze();
    /// let two = one.clone();
    /// let one = one.try_into_pinned().unwrap_err();
    /// drop(two);
    /// assert!(one.try_into_pinned().is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_into_pinned(self) -> Result<PinnedBuf, Self> {
        if !self.slot.word().is_alone() {
            return Err(self);
        }
        let mut this = ManuallyDrop::new(self);
        // SAFETY: the field is not used again: `this` is never dropped.
        let slot = unsafe { ManuallyDrop::take(&mut this.slot) };
        let end = this.start.as_ptr().addr() + this.len - slot.memory().addr().get();
        // SAFETY: `is_alone` just said that this handle is the only holder; the slot's memory is
        // initialized up to the end of this slice (invariant 2).
        Ok(unsafe { PinnedBuf::from_parts(slot, end) })
    }

    /// The slot. The buffer is one of the holders.
    pub(crate) fn slot(&self) -> &SlotRef {
        &self.slot
    }

    /// Gives the slot of this quarantined lease, the only holder, new pages. The lease becomes an
    /// empty buffer again. See [`SlotRef::replace_pages`].
    pub(crate) fn replace_pages(&mut self) -> Option<Replaced> {
        self.slot.replace_pages(&mut self.len)
    }

    /// Address and length of the bytes.
    #[inline]
    pub(crate) fn as_raw(&self) -> (*const u8, usize) {
        (self.start.as_ptr(), self.len)
    }
}

/// One more handle of the same bytes.
///
/// # Panics
///
/// With 2^21 - 1 clones and leases of one buffer.
impl Clone for SharedBuf {
    fn clone(&self) -> Self {
        Self { slot: ManuallyDrop::new(self.slot.share()), ..*self }
    }
}

impl Deref for SharedBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.slot.word().contents_read();
        // SAFETY: `len` bytes from `start` are mapped, the slot's and initialized, and have no
        // writer as long as this handle exists (invariant 2).
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for SharedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// A map with shared buffers as keys is searched with a plain slice.
impl Borrow<[u8]> for SharedBuf {
    fn borrow(&self) -> &[u8] {
        self
    }
}

/// Equal contents, as with slices.
impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for SharedBuf {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for SharedBuf {}

/// The order of the contents, as with slices.
impl Ord for SharedBuf {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(other)
    }
}

impl PartialOrd for SharedBuf {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The hash of the contents, as with slices.
impl Hash for SharedBuf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl From<PinnedBuf> for SharedBuf {
    fn from(buf: PinnedBuf) -> Self {
        buf.freeze()
    }
}

/// Copies nothing; the slot is recycled after the last of the `Bytes`.
#[cfg(feature = "bytes")]
#[cfg_attr(docsrs, doc(cfg(feature = "bytes")))]
impl From<SharedBuf> for bytes::Bytes {
    fn from(buf: SharedBuf) -> Self {
        Self::from_owner(buf)
    }
}

/// Consumes the bytes from the front: the buffer becomes a slice of its rest. `copy_to_bytes` copies nothing.
///
/// # Panics
///
/// With a count of more bytes than remain. `copy_to_bytes` also as [`clone`](SharedBuf::clone), since it makes a
/// holder.
#[cfg(feature = "bytes")]
#[cfg_attr(docsrs, doc(cfg(feature = "bytes")))]
impl bytes::Buf for SharedBuf {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self
    }

    #[track_caller]
    fn advance(&mut self, count: usize) {
        assert!(count <= self.len, "advanced by {count} of {} bytes", self.len);
        // SAFETY: `count` is at most `len`, so the pointer stays inside the slot's memory or one
        // past it (invariant 2).
        self.start = unsafe { self.start.add(count) };
        self.len -= count;
    }

    #[track_caller]
    fn copy_to_bytes(&mut self, len: usize) -> bytes::Bytes {
        let front = self.slice(..len);
        self.advance(len);
        front.into()
    }
}

impl fmt::Debug for SharedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBuf").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for SharedBuf {
    fn drop(&mut self) {
        // SAFETY: the field is not used again: this is the drop.
        unsafe { ManuallyDrop::take(&mut self.slot) }.unshare();
    }
}
