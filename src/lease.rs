//! Payloads, and leases: payloads in the sender's custody.

use std::{
    fmt,
    mem::{self, ManuallyDrop},
    task::Waker,
};

use crate::{
    buf::PinnedBuf,
    error::ErrorBuf,
    mapped::MappedSlice,
    raw::{PoolHead, Replaced, SlotRef, wake_all},
    shared::SharedBuf,
    sync::Arc,
    sys::socket::IoVec,
};

/// Memory that can be sent.
///
/// The sender owns the memory from the send until the kernel has released every byte. `Debug` shows the
/// length, and not the bytes.
#[non_exhaustive]
pub enum Payload {
    /// A buffer of a [`Pool`](crate::Pool).
    Pinned(PinnedBuf),
    /// A frozen buffer of a pool, for several sends at the same time.
    Shared(SharedBuf),
    /// Memory the user mapped.
    Mapped(MappedSlice),
    /// Memory that lives as long as the process.
    Static(&'static [u8]),
    /// Bytes behind a shared reference count.
    Arc(Arc<[u8]>),
    /// Bytes on the heap.
    Vec(Vec<u8>),
    /// Bytes of the `bytes` crate.
    #[cfg(feature = "bytes")]
    Bytes(bytes::Bytes),
}

impl Payload {
    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.as_raw().1
    }

    /// Returns `true` if there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Pinned(_) => "Pinned",
            Self::Shared(_) => "Shared",
            Self::Mapped(_) => "Mapped",
            Self::Static(_) => "Static",
            Self::Arc(_) => "Arc",
            Self::Vec(_) => "Vec",
            #[cfg(feature = "bytes")]
            Self::Bytes(_) => "Bytes",
        };
        f.debug_struct(kind).field("len", &self.len()).finish()
    }
}

mod sealed {
    use super::{IoVec, PoolHead, SlotRef};

    /// Where bytes are.
    pub trait Memory {
        /// Address and length.
        fn as_raw(&self) -> (*const u8, usize);

        /// The slot of the bytes, if a pool has them.
        #[inline]
        fn slot(&self) -> Option<&SlotRef> {
            None
        }

        /// The head of the slot's pool.
        #[inline]
        fn pool(&self) -> Option<&PoolHead> {
            self.slot().map(SlotRef::pool)
        }

        /// Returns `true` if a thread or task waits for such a slot.
        #[inline]
        fn is_awaited(&self) -> bool {
            self.slot().is_some_and(SlotRef::is_awaited)
        }

        #[inline]
        fn io_vec(&self) -> IoVec {
            let (start, len) = self.as_raw();
            IoVec::new(start, len)
        }
    }
}

pub(crate) use sealed::Memory;

impl<M: Memory> ErrorBuf for M {
    fn len_of(&self) -> Option<usize> {
        Some(self.io_vec().len())
    }
}

macro_rules! memory_of_buffers {
    ($($kind:ty),+ $(,)?) => {$(
        impl Memory for $kind {
            #[inline]
            fn as_raw(&self) -> (*const u8, usize) {
                self.as_raw()
            }

            #[inline]
            fn slot(&self) -> Option<&SlotRef> {
                Some(self.slot())
            }
        }
    )+};
}

memory_of_buffers! { PinnedBuf, SharedBuf }

impl Memory for MappedSlice {
    #[inline]
    fn as_raw(&self) -> (*const u8, usize) {
        self.as_raw()
    }
}

macro_rules! memory_of_slices {
    ($($(#[$attribute:meta])* $kind:ty),+ $(,)?) => {$(
        $(#[$attribute])*
        impl Memory for $kind {
            #[inline]
            fn as_raw(&self) -> (*const u8, usize) {
                (self.as_ptr(), self.len())
            }
        }
    )+};
}

memory_of_slices! {
    &'static [u8], &'static str, Arc<[u8]>, Vec<u8>, Box<[u8]>, String, #[cfg(feature = "bytes")] bytes::Bytes,
}

impl<const N: usize> Memory for &'static [u8; N] {
    #[inline]
    fn as_raw(&self) -> (*const u8, usize) {
        (self.as_ptr(), N)
    }
}

impl Memory for Payload {
    #[inline]
    fn as_raw(&self) -> (*const u8, usize) {
        match self {
            Self::Pinned(buf) => Memory::as_raw(buf),
            Self::Shared(buf) => Memory::as_raw(buf),
            Self::Mapped(slice) => Memory::as_raw(slice),
            Self::Static(slice) => slice.as_raw(),
            Self::Arc(slice) => slice.as_raw(),
            Self::Vec(vec) => Memory::as_raw(vec),
            #[cfg(feature = "bytes")]
            Self::Bytes(bytes) => bytes.as_raw(),
        }
    }

    #[inline]
    fn slot(&self) -> Option<&SlotRef> {
        match self {
            Self::Pinned(buf) => Some(buf.slot()),
            Self::Shared(buf) => Some(buf.slot()),
            _ => None,
        }
    }
}

/// An argument of `send`: a [`Payload`], or a type with a conversion to `Payload`.
///
/// The type comes back unchanged in a [`SendError`](crate::SendError). Sealed: send
/// memory of further types as a [`MappedSlice`]. Its constructors state the conditions.
pub trait IntoPayload: Memory + Sized {
    /// Wraps the buffer.
    fn into_payload(self) -> Payload;
    /// Unwraps a payload made by [`into_payload`](Self::into_payload); panics if the payload is of
    /// another kind.
    #[doc(hidden)]
    fn from_payload(payload: Payload) -> Self;
}

macro_rules! into_payload {
    ($($(#[$attribute:meta])* $kind:ty => $variant:ident),+ $(,)?) => {$(
        $(#[$attribute])*
        impl IntoPayload for $kind {
            #[inline]
            fn into_payload(self) -> Payload {
                Payload::$variant(self)
            }

            fn from_payload(payload: Payload) -> Self {
                match payload {
                    Payload::$variant(inner) => inner,
                    other => panic!("not what went in: {other:?}"),
                }
            }
        }

        $(#[$attribute])*
        impl From<$kind> for Payload {
            fn from(inner: $kind) -> Self {
                Payload::$variant(inner)
            }
        }
    )+};
}

into_payload! {
    PinnedBuf => Pinned,
    SharedBuf => Shared,
    MappedSlice => Mapped,
    &'static [u8] => Static,
    Arc<[u8]> => Arc,
    Vec<u8> => Vec,
    #[cfg(feature = "bytes")]
    bytes::Bytes => Bytes,
}

/// Types that are sent as another type.
macro_rules! into_payload_by {
    ($([$($generics:tt)*] $kind:ty: $inner:ty, $to:expr, $back:expr);+ $(;)?) => {$(
        impl<$($generics)*> IntoPayload for $kind {
            #[inline]
            fn into_payload(self) -> Payload {
                self.into()
            }

            fn from_payload(payload: Payload) -> Self {
                $back(<$inner>::from_payload(payload))
            }
        }

        impl<$($generics)*> From<$kind> for Payload {
            fn from(from: $kind) -> Self {
                $to(from).into()
            }
        }
    )+};
}

into_payload_by! {
    [] Box<[u8]>: Vec<u8>, <[u8]>::into_vec, Vec::into_boxed_slice;
    [] String: Vec<u8>, String::into_bytes, |back| String::from_utf8(back).expect("was a string");
    [] &'static str: &'static [u8], str::as_bytes, |back| str::from_utf8(back).expect("was a string");
    [const N: usize] &'static [u8; N]: &'static [u8], <[u8; N]>::as_slice, |back: &'static [u8]| {
        back.try_into().expect("was such an array")
    };
}

/// Takes the buffer out of a payload, for example out of one handed back. The error is the payload.
///
/// ```
/// use pinbuf::{Payload, PinnedBuf, Pool};
///
/// let pool = Pool::new(4096, 1)?;
/// let payload = Payload::from(pool.try_alloc(1)?);
/// let buf = PinnedBuf::try_from(payload).expect("is one");
/// assert!(PinnedBuf::try_from(Payload::from(b"static")).is_err());
/// # drop(buf);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl TryFrom<Payload> for PinnedBuf {
    type Error = Payload;

    fn try_from(payload: Payload) -> Result<Self, Payload> {
        match payload {
            Payload::Pinned(buf) => Ok(buf),
            other => Err(other),
        }
    }
}

impl IntoPayload for Payload {
    fn into_payload(self) -> Payload {
        self
    }

    fn from_payload(payload: Payload) -> Self {
        payload
    }
}

/// A payload in the sender's custody: in flight, or waiting inside the sender.
///
/// While a lease exists, the kernel may read the payload's bytes, and no code may write or reuse
/// them.
///
/// | end of the lease | by |
/// |---|---|
/// | [`release`](Self::release) | the sender, after the proof |
/// | [`try_recycle`](Self::try_recycle) | the same, for the usual lease of a buffer |
/// | drop, after a panic took the tracker away | leaves the memory alone for ever, the slot Quarantined |
///
/// A quarantined lease can part with its payload before the proof, after
/// [new pages](Self::replace_pages) have replaced the kernel's.
#[derive(Debug)]
pub(crate) struct Lease {
    custody: Custody,
    /// Sequence number of the send.
    pub(crate) ticket: u64,
    /// The number of zero-copy calls with the payload.
    pub(crate) offers: u32,
    /// `true` if the sender chose to copy a part.
    pub(crate) copied: bool,
    quarantined: bool,
}

#[derive(Debug)]
enum Custody {
    /// The usual payload, by itself, so that one word is moved as one word.
    Buf(PinnedBuf),
    /// Any further payload.
    Payload(Payload),
    /// After the release.
    Nothing,
    /// The former pages, in the hands of the kernel, of a payload with new pages.
    Replaced(#[expect(dead_code, reason = "its drop says that they are released")] Replaced),
}

#[cfg(all(not(loom), target_pointer_width = "64"))]
static_assertions::const_assert!(size_of::<Lease>() <= 56);

impl Lease {
    #[inline(always)]
    pub(crate) fn new(buf: impl IntoPayload, ticket: u64, offers: u32) -> Self {
        if let Some(slot) = buf.slot() {
            slot.word().begin_lease();
        }
        let custody = match buf.into_payload() {
            Payload::Pinned(buf) => Custody::Buf(buf),
            payload => Custody::Payload(payload),
        };
        Self { custody, ticket, offers, copied: false, quarantined: false }
    }

    #[inline]
    fn slot(&self) -> Option<&SlotRef> {
        match &self.custody {
            Custody::Buf(buf) => Some(buf.slot()),
            Custody::Payload(payload) => payload.slot(),
            Custody::Nothing | Custody::Replaced(_) => None,
        }
    }

    /// The payload, if the lease still has one. Afterwards the lease has none.
    fn take(&mut self) -> Option<Payload> {
        match mem::replace(&mut self.custody, Custody::Nothing) {
            Custody::Buf(buf) => Some(Payload::Pinned(buf)),
            Custody::Payload(payload) => Some(payload),
            Custody::Nothing | Custody::Replaced(_) => None,
        }
    }

    /// Returns `true` if a thread or task waits for a slot like the payload's.
    pub(crate) fn is_awaited(&self) -> bool {
        self.slot().is_some_and(SlotRef::is_awaited)
    }

    /// Returns `true` if the release cannot be proven.
    pub(crate) fn is_quarantined(&self) -> bool {
        self.quarantined
    }

    /// The bytes can no longer be proven released by a notification. Returns the wakers of waiters without
    /// hope, to be woken with no lock held.
    #[must_use]
    pub(crate) fn quarantine(&mut self) -> Vec<Waker> {
        if mem::replace(&mut self.quarantined, true) {
            return Vec::new();
        }
        self.slot().map(SlotRef::quarantine).unwrap_or_default()
    }

    /// Frees the memory of a quarantined lease early, if the memory is a pool's without a further
    /// holder: new pages come, and the empty payload is the caller's to drop. The lease lives on
    /// until the proof, for the old pages.
    ///
    /// The caller sends nothing of the payload any more.
    pub(crate) fn replace_pages(&mut self) -> Option<Payload> {
        let replaced = match &mut self.custody {
            Custody::Buf(buf) => buf.replace_pages(),
            Custody::Payload(Payload::Shared(buf)) => buf.replace_pages(),
            Custody::Payload(_) | Custody::Nothing | Custody::Replaced(_) => None,
        }?;
        let payload = self.take();
        self.custody = Custody::Replaced(replaced);
        payload
    }

    /// As [`release`](Self::release), for the usual lease, of a buffer without a hand-back:
    /// recycles the slot at once. Runs no user code and wakes no waiter. `false`, and nothing has
    /// happened: not the usual lease, or no room in the thread's magazine.
    #[inline(always)]
    pub(crate) fn try_recycle(&mut self) -> bool {
        let recycled = matches!(
            &self.custody,
            Custody::Buf(buf) if !self.quarantined && buf.slot().try_recycle_leased()
        );
        if recycled {
            // The slot is not the buffer's any more.
            mem::forget(mem::replace(&mut self.custody, Custody::Nothing));
        }
        recycled
    }

    /// Gives the payload, if the lease still has one, to the next owner. The caller has proof that
    /// the kernel does not read the payload any more, or never took a byte.
    #[inline(always)]
    pub(crate) fn release(self) -> Option<Payload> {
        // Nothing will be left for the drop to keep.
        let mut lease = ManuallyDrop::new(self);
        if let Some(slot) = lease.slot().map(SlotRef::word) {
            if lease.quarantined { slot.quarantine_released() } else { slot.end_lease() }
        }
        lease.take()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let wakers = self.quarantine();
        mem::forget(mem::replace(&mut self.custody, Custody::Nothing));
        wake_all(wakers);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Wake},
    };

    use super::*;
    use crate::{
        backing::{Backing, Pages},
        error::AllocError,
        pool::Pool,
        sync::{AtomicUsize, Ordering},
    };

    #[test]
    fn every_type_comes_back_as_what_went_in() {
        fn check<P: IntoPayload + PartialEq + Clone + fmt::Debug>(buf: P, len: usize) {
            let payload = buf.clone().into_payload();
            assert_eq!((buf.io_vec().len(), payload.len()), (len, len));
            assert_eq!(P::from_payload(payload), buf);
        }
        check(&b"array"[..], 5);
        check(b"array", 5);
        check("text", 4);
        check(String::from("text"), 4);
        check(vec![7; 10], 10);
        check(vec![7; 10].into_boxed_slice(), 10);
        check(Arc::<[u8]>::from([7; 3]), 3);
    }

    #[test]
    fn a_dropped_lease_keeps_its_memory_for_ever() {
        let bytes: Arc<[u8]> = Arc::from([7; 100]);
        drop(Lease::new(Arc::clone(&bytes), 0, 1));
        assert_eq!(Arc::strong_count(&bytes), 2);
        let pool = Pool::new(4096, 2).unwrap();
        drop(Lease::new(pool.try_alloc(1).unwrap(), 0, 1));
        drop(Lease::new(pool.try_alloc(1).unwrap().freeze(), 1, 1));
        assert_eq!((pool.stats().free(), pool.stats().quarantined()), (0, 2));
    }

    #[test]
    fn a_dropped_lease_of_the_last_slot_wakes_the_waiters() {
        struct Woken(AtomicUsize);

        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }

        let pool = Pool::new(4096, 1).unwrap();
        let lease = Lease::new(pool.try_alloc(1).unwrap(), 0, 1);
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut waiter = pin!(pool.alloc_async(1));
        let mut cx = Context::from_waker(&waker);
        assert!(waiter.as_mut().poll(&mut cx).is_pending());
        drop(lease);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(matches!(waiter.poll(&mut cx), Poll::Ready(Err(AllocError::Exhausted))));
    }

    #[test]
    fn new_pages_free_the_slot_of_a_quarantined_lease() {
        const LEN: usize = 64 << 10;
        let backing = Backing::Require(Pages::Base);
        let pool = Pool::builder().class(LEN, 8).backing(backing).build().unwrap();
        let buf = || pool.try_alloc(LEN).unwrap();
        for payload in [Payload::Pinned(buf()), Payload::Shared(buf().freeze())] {
            let mut lease = Lease::new(payload, 0, 1);
            assert!(lease.replace_pages().is_none(), "it is in flight");
            assert!(lease.quarantine().is_empty(), "no task waits for a slot");
            drop(lease.replace_pages().expect("the lease is the only holder"));
            assert_eq!((pool.stats().quarantined(), pool.stats().replaced_bytes), (0, LEN));
            assert!(lease.release().is_none(), "the payload left before");
            assert_eq!(pool.stats().replaced_bytes, 0);
        }
        assert_eq!(pool.stats().free(), 8);
    }

    #[test]
    fn a_quarantined_lease_is_counted_until_its_release() {
        let pool = Pool::new(4096, 1).unwrap();
        let mut lease = Lease::new(pool.try_alloc(1).unwrap(), 0, 1);
        for _ in 0..2 {
            assert!(lease.quarantine().is_empty(), "no task waits for a slot");
            assert_eq!(pool.stats().quarantined(), 1);
            assert!(!lease.try_recycle());
        }
        drop(lease.release());
        assert_eq!(pool.stats().free(), 1);
    }
}
