//! What can be sent, and what the sender keeps of it while the kernel may read it.

use std::{mem, task::Waker};

use crate::{
    buf::PinnedBuf,
    mapped::MappedSlice,
    raw::{RawPool, Replaced, SlotRef, wake_all},
    shared::SharedBuf,
    sync::Arc,
    sys::socket::IoVec,
};

/// Memory that can be sent.
///
/// The sender owns it from the send until the kernel has released every byte of it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Payload {
    /// A buffer of a [`Pool`](crate::Pool).
    Pinned(PinnedBuf),
    /// A frozen buffer of a pool, which others may send at the same time.
    SharedBuf(SharedBuf),
    /// Memory the user mapped.
    Mapped(MappedSlice),
    /// Memory that lives as long as the process.
    Static(&'static [u8]),
    /// Bytes behind a shared reference count.
    Shared(Arc<[u8]>),
    /// Bytes of the `bytes` crate.
    #[cfg(feature = "bytes")]
    Bytes(bytes::Bytes),
}

impl Payload {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.as_raw().1
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn as_raw(&self) -> (*const u8, usize) {
        let slice: &[u8] = match self {
            Self::Pinned(buf) => return buf.as_raw(),
            Self::SharedBuf(buf) => return buf.as_raw(),
            Self::Mapped(slice) => return slice.as_raw(),
            Self::Static(slice) => slice,
            Self::Shared(slice) => slice,
            #[cfg(feature = "bytes")]
            Self::Bytes(bytes) => bytes,
        };
        (slice.as_ptr(), slice.len())
    }

    #[inline]
    pub(crate) fn io_vec(&self) -> IoVec {
        let (start, len) = self.as_raw();
        IoVec::new(start, len)
    }

    /// The slot of a pool that holds the bytes.
    #[inline]
    fn slot(&self) -> Option<&SlotRef> {
        match self {
            Self::Pinned(buf) => Some(buf.slot()),
            Self::SharedBuf(buf) => Some(buf.slot()),
            _ => None,
        }
    }

    /// Gives the bytes new pages, if they are in a pool and nothing speaks against it.
    fn replace_pages(&mut self) -> Option<Replaced> {
        match self {
            Self::Pinned(buf) => buf.replace_pages(),
            Self::SharedBuf(buf) => buf.replace_pages(),
            _ => None,
        }
    }

    /// The pool that the bytes are in.
    #[inline]
    pub(crate) fn pool(&self) -> Option<&RawPool> {
        self.slot().map(SlotRef::pool)
    }
}

mod sealed {
    pub trait Sealed {}
}

/// What `send` takes: a [`Payload`], or one of the types it can be made of.
///
/// The type comes back unchanged in a [`SendError`](crate::SendError). Sealed: memory of other
/// types is sent as a [`MappedSlice`], whose constructors state what that memory must promise.
pub trait IntoPayload: sealed::Sealed + Sized {
    /// Wraps the buffer.
    fn into_payload(self) -> Payload;
    /// Unwraps a payload made by [`into_payload`](Self::into_payload).
    ///
    /// # Panics
    ///
    /// When the payload is of another kind.
    fn from_payload(payload: Payload) -> Self;
}

macro_rules! into_payload {
    ($($(#[$attribute:meta])* $kind:ty => $variant:ident),+ $(,)?) => {$(
        $(#[$attribute])*
        impl sealed::Sealed for $kind {}

        $(#[$attribute])*
        impl IntoPayload for $kind {
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
    SharedBuf => SharedBuf,
    MappedSlice => Mapped,
    &'static [u8] => Static,
    Arc<[u8]> => Shared,
    #[cfg(feature = "bytes")]
    bytes::Bytes => Bytes,
}

impl sealed::Sealed for Payload {}

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
/// Holding a lease tells you: the kernel may read the payload's bytes, so nobody may write or
/// reuse them. It ends in one way only, [`release`](Self::release), which the sender calls after
/// the proof. Before that a quarantined one can part with its payload, when the kernel's pages are no
/// longer the payload's ([`replace_pages`](Self::replace_pages)). A lease that is dropped instead (a panic took its tracker away) leaves its memory
/// alone for ever and the slot Quarantined.
#[derive(Debug)]
pub(crate) struct Lease {
    /// `None` after `release`.
    custody: Option<Custody>,
    /// Sequence number of the send it belongs to.
    pub(crate) ticket: u64,
    /// Zero-copy calls that the kernel was offered it in.
    pub(crate) offers: u32,
    /// Whether a part of it went by copy, by the sender's own choice.
    pub(crate) copied: bool,
    quarantined: bool,
}

#[derive(Debug)]
enum Custody {
    Payload(Payload),
    /// The pages that the kernel may read though the payload has new ones.
    Replaced(#[expect(dead_code, reason = "its drop says that they are released")] Replaced),
}

#[cfg(all(not(loom), target_pointer_width = "64"))]
static_assertions::const_assert!(size_of::<Lease>() <= 56);

impl Lease {
    #[inline(always)]
    pub(crate) fn new(payload: Payload, ticket: u64) -> Self {
        if let Some(slot) = payload.slot() {
            slot.slot().begin_lease();
        }
        let custody = Some(Custody::Payload(payload));
        Self { custody, ticket, offers: 0, copied: false, quarantined: false }
    }

    fn payload(&self) -> Option<&Payload> {
        match &self.custody {
            Some(Custody::Payload(payload)) => Some(payload),
            _ => None,
        }
    }

    #[inline(always)]
    pub(crate) fn io_vec(&self) -> IoVec {
        self.payload().expect("present until released").io_vec()
    }

    /// Whether somebody waits for a slot of the pool this payload comes from.
    #[inline(always)]
    pub(crate) fn is_awaited(&self) -> bool {
        self.payload().and_then(Payload::pool).is_some_and(RawPool::has_waiters)
    }

    /// The bytes can no longer be proven released by a note. Returns the wakers of those who have
    /// nothing to wait for any more, to be woken with no lock held.
    #[must_use]
    pub(crate) fn quarantine(&mut self) -> Vec<Waker> {
        if mem::replace(&mut self.quarantined, true) {
            return Vec::new();
        }
        self.payload().and_then(Payload::slot).map(SlotRef::quarantine).unwrap_or_default()
    }

    /// Frees the memory of a quarantined lease early, if that is a pool's and nobody else holds it:
    /// it gets new pages, and the payload, now empty, is the caller's to drop. The lease lives on
    /// until the proof, for the old pages.
    ///
    /// The caller has sent all that it will ever send of the payload.
    pub(crate) fn replace_pages(&mut self) -> Option<Payload> {
        let Some(Custody::Payload(payload)) = &mut self.custody else { return None };
        let replaced = Custody::Replaced(payload.replace_pages()?);
        match self.custody.replace(replaced) {
            Some(Custody::Payload(payload)) => Some(payload),
            _ => unreachable!("as just seen"),
        }
    }

    /// Gives the payload, if the lease still has it, to its next owner. The caller has the proof
    /// that the kernel reads none of it any more, or never took any of it.
    #[inline(always)]
    pub(crate) fn release(mut self) -> Option<Payload> {
        let custody = self.custody.take();
        let quarantined = self.quarantined;
        // Nothing is left for the drop to keep.
        mem::forget(self);
        let Some(Custody::Payload(payload)) = custody else { return None };
        if let Some(slot) = payload.slot().map(SlotRef::slot) {
            if quarantined { slot.quarantine_released() } else { slot.end_lease() }
        }
        Some(payload)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let roused = self.quarantine();
        mem::forget(self.custody.take());
        wake_all(roused);
    }
}
