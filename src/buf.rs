//! The exclusive handle of a slot.

use std::{
    fmt, io,
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
};

use crate::{
    raw::{LocalMagazine, Replaced, SlotRef, SlotState, wake_all},
    sync::panicking,
};

/// A buffer from a [`Pool`](crate::Pool), of length 0 when allocated: exclusive, writable, and
/// dereferencing to the bytes written so far.
///
/// Bytes of an earlier user are never part of the buffer, so that no accident can send them. The
/// buffer has a fixed [`capacity`](Self::capacity) and never moves. Its start is
/// [aligned](crate::pool::PoolBuilder::class).
///
/// Holding a `PinnedBuf` proves that neither the kernel nor the rest of the program reads or writes
/// the memory. Dropping the buffer recycles the slot. The buffer may outlive the pool's handles.
///
/// # Examples
///
/// ```
/// use std::io::Write;
///
/// let pool = pinbuf::Pool::new(4096, 8)?;
/// let mut buf = pool.try_alloc(4096)?;
/// assert!(buf.is_empty());
/// buf.extend_from_slice(b"GET ");
/// write!(buf, "/{}", 17)?;
/// assert_eq!(&buf[..], b"GET /17");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
// # Invariants
//
// 1. The slot's memory has no other user, except the kernel, which may read while the slot's state
//    word has a lease. The length beside the word has no other user either.
// 2. The first bytes up to the length are initialized, and the length is at most the capacity.
pub struct PinnedBuf {
    /// Taken by drop.
    slot: ManuallyDrop<SlotRef>,
}

// One word, because a buffer is moved into vectors, channels and sends. A move that reads two words
// at once would wait for the stores of both.
static_assertions::assert_eq_size!(PinnedBuf, usize);
static_assertions::assert_impl_all!(PinnedBuf: Send, Sync);

// SAFETY: a PinnedBuf owns its memory as a Box<[u8]> does (invariant 1); SlotRef is Send.
unsafe impl Send for PinnedBuf {}
// SAFETY: `&PinnedBuf` gives shared access to the bytes only; SlotRef is Sync.
unsafe impl Sync for PinnedBuf {}

impl PinnedBuf {
    /// The buffer of a slot that was just claimed.
    #[inline]
    pub(crate) fn new(slot: SlotRef) -> Self {
        debug_assert_eq!(slot.len(), 0);
        Self { slot: ManuallyDrop::new(slot) }
    }

    /// The slot with its first `len` bytes.
    ///
    /// # Safety
    ///
    /// `slot` is the only holder, a handle, and the first `len` bytes of its memory, which lie
    /// within its capacity, are initialized.
    pub(crate) unsafe fn from_parts(slot: SlotRef, len: usize) -> Self {
        slot.set_len(len);
        Self { slot: ManuallyDrop::new(slot) }
    }

    /// Where the slot's memory starts.
    #[inline]
    fn start(&self) -> NonNull<u8> {
        self.slot.memory()
    }

    #[inline]
    fn written(&self) -> usize {
        self.slot.len()
    }

    /// Recycles all buffers, at a lower cost than a drop of each. The buffers may be of several
    /// pools. The vector keeps its room for the next
    /// [`try_alloc_many`](crate::Pool::try_alloc_many).
    ///
    /// ```
    /// use pinbuf::{PinnedBuf, Pool};
    ///
    /// let pool = Pool::new(4096, 64)?;
    /// let mut bufs = Vec::new();
    /// pool.try_alloc_many(4096, 32, &mut bufs)?;
    /// PinnedBuf::recycle_all(&mut bufs);
    /// assert_eq!(pool.stats().free(), 64);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn recycle_all(bufs: &mut Vec<Self>) {
        loop {
            SlotRef::recycle_last(bufs, |buf| &buf.slot);
            // The magazine has no room, or the buffer has another class.
            let Some(buf) = bufs.pop() else { return };
            drop(buf);
        }
    }

    /// The room of the buffer in bytes: the capacity of the size class, at least the requested
    /// capacity.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.slot.capacity()
    }

    /// Appends `bytes`.
    ///
    /// ```
    /// let pool = pinbuf::Pool::new(4096, 1)?;
    /// let mut buf = pool.try_alloc(4096)?;
    /// buf.extend_from_slice(b"to be ");
    /// buf.extend_from_slice(b"sent");
    /// assert_eq!(&buf[..], b"to be sent");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// To append a part if the rest does not fit, use [`io::Write::write`].
    ///
    /// # Panics
    ///
    /// If the bytes do not fit. The buffer does not grow beyond its capacity.
    #[inline]
    #[track_caller]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let spare = self.spare_capacity_mut();
        assert!(
            bytes.len() <= spare.len(),
            "{} bytes do not fit into the {} bytes left of the buffer",
            bytes.len(),
            spare.len(),
        );
        spare[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: so many bytes from the old length on were written above, and fit.
        unsafe { self.set_len(self.written() + bytes.len()) };
    }

    /// Makes the buffer `len` bytes long. New bytes are `value`.
    ///
    /// ```
    /// let pool = pinbuf::Pool::new(4096, 1)?;
    /// let mut buf = pool.try_alloc(4096)?;
    /// buf.resize(1000, 0);
    /// buf[999] = 1;
    /// assert_eq!(buf.len(), 1000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If `len` is larger than the capacity.
    #[track_caller]
    pub fn resize(&mut self, len: usize, value: u8) {
        let capacity = self.capacity();
        assert!(len <= capacity, "a length of {len} is above the capacity of {capacity}");
        if let Some(more) = len.checked_sub(self.written()) {
            self.spare_capacity_mut()[..more].fill(value);
        }
        // SAFETY: at most the capacity; the bytes from the old length on were filled above.
        unsafe { self.set_len(len) };
    }

    /// Shortens the buffer to `len` bytes; does nothing to a shorter buffer.
    pub fn truncate(&mut self, len: usize) {
        self.slot.set_len(self.written().min(len));
    }

    /// Makes the buffer empty. The capacity stays.
    pub fn clear(&mut self) {
        self.slot.set_len(0);
    }

    /// The part of the buffer behind its length, to be written and then taken in with
    /// [`set_len`](Self::set_len).
    ///
    /// The part may hold bytes of an earlier user, unless the pool was built with
    /// `zero_on_recycle`.
    ///
    /// ```
    /// let pool = pinbuf::Pool::new(4096, 1)?;
    /// let mut buf = pool.try_alloc(4096)?;
    /// buf.spare_capacity_mut()[0] = 7;
    /// // SAFETY: one byte was written.
    /// unsafe { buf.set_len(1) };
    /// assert_eq!(&buf[..], [7]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn spare_capacity_mut(&mut self) -> &mut [u8] {
        self.slot.word().contents_written();
        let written = self.written();
        let spare = self.capacity() - written;
        // SAFETY: the length is at most the capacity (invariant 2), so the pointer stays inside the
        // slot's memory or one past it.
        let start = unsafe { self.start().add(written) };
        // SAFETY: `spare` bytes from there belong to the slot and are mapped, and there is no other
        // user (invariant 1) while `self` is borrowed. All memory of a pool is initialized: the kernel
        // maps it filled with zeros, and safe code can only replace bytes by bytes.
        unsafe { slice::from_raw_parts_mut(start.as_ptr(), spare) }
    }

    /// Appends what `fill` writes to the start of the room behind the length, and returns the number of
    /// bytes, which `fill` returns. Nothing is zeroed first.
    ///
    /// The memory of a pool always holds bytes: zeros at first, later those of an earlier buffer. So
    /// `fill` may see the bytes of an earlier user of the pool, and a number too large makes such bytes
    /// part of the buffer. A pool that is shared by users who must not see each other's bytes is built
    /// with [`zero_on_recycle`](crate::pool::PoolBuilder::zero_on_recycle).
    ///
    /// ```
    /// let pool = pinbuf::Pool::new(4096, 1)?;
    /// let mut buf = pool.try_alloc(4096)?;
    /// buf.append_with(|room| {
    ///     room[..5].copy_from_slice(b"hello");
    ///     5
    /// });
    /// assert_eq!(buf, b"hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If `fill` returns more than the length of the room.
    #[track_caller]
    pub fn append_with(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let spare = self.spare_capacity_mut();
        let room = spare.len();
        let count = fill(spare);
        assert!(count <= room, "{count} bytes are more than the room of {room}");
        // SAFETY: the sum is at most the capacity, and all memory of a pool is initialized.
        unsafe { self.set_len(self.written() + count) };
        count
    }

    /// Reads once from `reader`, and appends at most `limit` bytes. Returns the number: 0 at the end of
    /// the stream, and if there is no room. Nothing is zeroed first: see
    /// [`append_with`](Self::append_with), also for what the reader may see.
    ///
    /// ```
    /// # use std::io::Read;
    /// let mut file = &b"some contents"[..];
    /// let pool = pinbuf::Pool::new(4096, 1)?;
    /// let mut buf = pool.try_alloc(4096)?;
    /// while buf.read_from(&mut file, 4096)? > 0 {}
    /// assert_eq!(buf, b"some contents");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The error of the reader, but for [`io::ErrorKind::Interrupted`], after which the read is tried
    /// again. The buffer is unchanged then.
    #[track_caller]
    pub fn read_from(&mut self, reader: &mut impl io::Read, limit: usize) -> io::Result<usize> {
        loop {
            let mut error = None;
            let count = self.append_with(|room| {
                let most = room.len().min(limit);
                let count = reader.read(&mut room[..most]).unwrap_or_else(|failed| {
                    error = Some(failed);
                    0
                });
                assert!(count <= most, "a reader told of {count} bytes in a room of {most}");
                count
            });
            match error {
                None => return Ok(count),
                Some(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Some(error) => return Err(error),
            }
        }
    }

    /// Sets the length.
    ///
    /// # Safety
    ///
    /// `len` is at most the capacity, and the first `len` bytes have been written since the buffer
    /// was allocated.
    #[inline]
    pub unsafe fn set_len(&mut self, len: usize) {
        debug_assert!(len <= self.capacity());
        self.slot.set_len(len);
    }

    /// The slot. The buffer is the only holder.
    #[inline]
    pub(crate) fn slot(&self) -> &SlotRef {
        &self.slot
    }

    /// Slot and length; the slot is the caller's.
    #[inline]
    pub(crate) fn into_parts(self) -> (SlotRef, usize) {
        let len = self.written();
        let mut buf = ManuallyDrop::new(self);
        // SAFETY: the field is not used again: `buf` is never dropped.
        (unsafe { ManuallyDrop::take(&mut buf.slot) }, len)
    }

    /// Recycles the slot into `magazine`, or drops the buffer if the class differs.
    #[inline]
    pub(crate) fn recycle_into(self, magazine: &LocalMagazine<'_>) {
        let (slot, _) = self.into_parts();
        if let Err(slot) = slot.try_recycle_into(magazine) {
            drop_unreleased(slot);
        }
    }

    /// Gives the slot of this quarantined lease, the only holder, new pages. The lease becomes an
    /// empty buffer again. See [`SlotRef::replace_pages`].
    pub(crate) fn replace_pages(&mut self) -> Option<Replaced> {
        let mut len = self.written();
        let replaced = self.slot.replace_pages(&mut len);
        self.slot.set_len(len);
        replaced
    }

    /// Address and length of the bytes written. No reference, because the kernel may read.
    #[inline]
    pub(crate) fn as_raw(&self) -> (*const u8, usize) {
        (self.start().as_ptr(), self.written())
    }
}

impl Deref for PinnedBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.slot.word().contents_read();
        // SAFETY: so many bytes are mapped, the slot's and initialized (invariant 2), and
        // there is no writer while `self` is borrowed (invariant 1).
        unsafe { slice::from_raw_parts(self.start().as_ptr(), self.written()) }
    }
}

impl DerefMut for PinnedBuf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.slot.word().contents_written();
        // SAFETY: so many bytes are mapped, the slot's and initialized (invariant 2), and
        // there is no other user while `self` is borrowed (invariant 1).
        unsafe { slice::from_raw_parts_mut(self.start().as_ptr(), self.written()) }
    }
}

/// Compares the bytes: with a slice, an array, a vector, another buffer.
impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for PinnedBuf {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for PinnedBuf {}

/// Appends the bytes.
///
/// # Panics
///
/// If they do not fit.
impl Extend<u8> for PinnedBuf {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        bytes.into_iter().for_each(|byte| self.extend_from_slice(&[byte]));
    }
}

impl<'a> Extend<&'a u8> for PinnedBuf {
    fn extend<I: IntoIterator<Item = &'a u8>>(&mut self, bytes: I) {
        self.extend(bytes.into_iter().copied());
    }
}

impl AsRef<[u8]> for PinnedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for PinnedBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// Appends as much as fits. A full buffer takes 0 bytes, an error of `write_all`:
/// [`io::ErrorKind::WriteZero`].
impl io::Write for PinnedBuf {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fits = bytes.len().min(self.capacity() - self.written());
        self.extend_from_slice(&bytes[..fits]);
        Ok(fits)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(feature = "bytes")]
#[cfg_attr(docsrs, doc(cfg(feature = "bytes")))]
// SAFETY: `chunk_mut` is the whole spare capacity, of `remaining_mut` bytes, and does not change
// but through `advance_mut`.
unsafe impl bytes::BufMut for PinnedBuf {
    fn remaining_mut(&self) -> usize {
        self.capacity() - self.written()
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        assert!(count <= self.remaining_mut(), "advanced by {count} bytes beyond the capacity");
        // SAFETY: the caller wrote the next `count` bytes, and `count` fits, as checked.
        unsafe { self.set_len(self.written() + count) };
    }

    fn chunk_mut(&mut self) -> &mut bytes::buf::UninitSlice {
        self.spare_capacity_mut().into()
    }
}

impl fmt::Debug for PinnedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedBuf")
            .field("len", &self.written())
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

impl Drop for PinnedBuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the field is not used again: this is the drop.
        let slot = unsafe { ManuallyDrop::take(&mut self.slot) };
        if let Err(slot) = slot.try_recycle() {
            drop_unreleased(slot);
        }
    }
}

/// Keeps a slot in flight out of reach, and reports a handle in a wrong state.
#[cold]
#[inline(never)]
fn drop_unreleased(slot: SlotRef) {
    match slot.word().state() {
        SlotState::InFlight => wake_all(slot.quarantine()),
        SlotState::Quarantined => {}
        // Reports the wrong state, unless the thread already panics.
        SlotState::Free | SlotState::Owned if panicking() => {}
        SlotState::Free | SlotState::Owned => slot.recycle(),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        mem,
        panic::catch_unwind,
        task::{Context, Poll, Wake, Waker},
    };

    use super::*;
    use crate::{
        error::AllocError,
        pool::{LocalPool, Pool},
        sync::{Arc, AtomicUsize, Ordering},
    };

    /// A buffer of a Free slot. Only a fault of this crate can make such a buffer.
    fn recycled_already() -> PinnedBuf {
        let buf = Pool::new(4096, 1).unwrap().try_alloc(1).unwrap();
        buf.slot.word().recycle();
        buf
    }

    #[test]
    fn filling_appends_without_zeroing_and_zeroing_pools_show_nothing() {
        for (zeroes, seen) in [(false, 7), (true, 0)] {
            let builder = Pool::builder().class(4096, 1).zero_on_recycle(zeroes);
            let pool = builder.build().unwrap();
            pool.try_alloc(1).unwrap().resize(4096, 7);
            let mut buf = pool.try_alloc(1).unwrap();
            buf.extend_from_slice(b"ab");
            let count = buf.append_with(|room| {
                assert_eq!((room.len(), room[0]), (4094, seen));
                room[..2].copy_from_slice(b"cd");
                2
            });
            assert_eq!(count, 2);
            assert_eq!(buf, b"abcd");
        }
    }

    #[test]
    fn reading_appends_at_most_so_many_bytes_and_keeps_the_buffer_on_an_error() {
        struct Failing(io::ErrorKind);
        impl io::Read for Failing {
            fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
                match mem::replace(&mut self.0, io::ErrorKind::Other) {
                    io::ErrorKind::Interrupted => Err(io::ErrorKind::Interrupted.into()),
                    kind => {
                        room.fill(9);
                        Err(kind.into())
                    }
                }
            }
        }
        let pool = Pool::new(64, 1).unwrap();
        let mut buf = pool.try_alloc(64).unwrap();
        let mut reader = &[5; 200][..];
        assert_eq!(buf.read_from(&mut reader, 3).unwrap(), 3);
        let error = buf.read_from(&mut Failing(io::ErrorKind::Interrupted), 9).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Other, "an interrupted read is tried again");
        assert_eq!(buf, [5; 3]);
        assert_eq!(buf.read_from(&mut reader, 1000).unwrap(), 61);
        assert_eq!(buf.read_from(&mut reader, 1000).unwrap(), 0, "no room");
        assert_eq!((buf.len(), reader.len()), (64, 136));
    }

    #[test]
    #[should_panic(expected = "more than the room of 64")]
    fn a_fill_beyond_the_room_is_refused() {
        Pool::new(64, 1).unwrap().try_alloc(64).unwrap().append_with(|room| room.len() + 1);
    }

    #[test]
    #[should_panic(expected = "slot 0 cannot be recycled: it is Free")]
    fn a_second_recycle_of_a_slot_is_reported() {
        drop(recycled_already());
    }

    #[test]
    fn a_second_recycle_does_not_abort_a_thread_that_unwinds() {
        let unwound = catch_unwind(|| {
            let _buf = recycled_already();
            panic!("on purpose");
        });
        assert!(unwound.is_err());
    }

    /// Counts its wake-ups.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_buffer_that_the_kernel_may_read_is_quarantined_however_it_is_dropped() {
        let by_drop: fn(&LocalPool<'_>, PinnedBuf) = |_, buf| drop(buf);
        let into_local: fn(&LocalPool<'_>, PinnedBuf) = |local, buf| local.recycle(buf);
        let with_others: fn(&LocalPool<'_>, PinnedBuf) =
            |_, buf| PinnedBuf::recycle_all(&mut vec![buf]);
        for end in [by_drop, into_local, with_others] {
            let pool = Pool::new(4096, 64).unwrap();
            let local = pool.local(1).unwrap();
            let mut bufs: Vec<_> = (0..64).map(|_| pool.try_alloc(1).unwrap()).collect();
            let mut alloc = std::pin::pin!(pool.alloc_async(1));
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            let mut cx = Context::from_waker(&waker);
            assert!(alloc.as_mut().poll(&mut cx).is_pending());
            while let Some(buf) = bufs.pop() {
                buf.slot.word().begin_lease();
                end(&local, buf);
                assert_eq!(pool.stats().quarantined(), 64 - bufs.len());
            }
            assert_eq!(woken.0.load(Ordering::Relaxed), 1, "no slot may ever come");
            let result = alloc.as_mut().poll(&mut cx).map_ok(drop);
            assert_eq!(result, Poll::Ready(Err(AllocError::Exhausted)));
        }
    }

    #[test]
    fn a_recycled_buffer_is_empty_when_it_is_allocated_again() {
        let pool = Pool::new(4096, 64).unwrap();
        let local = pool.local(1).unwrap();
        for _ in 0..2 {
            let mut buf = local.try_alloc().unwrap();
            assert!(buf.is_empty());
            buf.resize(4096, 1);
            local.recycle(buf);
        }
    }
}
