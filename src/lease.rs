//! What can be sent, and what the sender keeps of it while the kernel may read it.

use std::{mem, task::Waker};

use crate::{
    buf::PinnedBuf,
    mapped::MappedSlice,
    raw::{RawPool, Replaced, SlotRef},
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

    /// The slot of a pool that holds the bytes.
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
    /// `None` after `replace_pages`, and after `release`.
    payload: Option<Payload>,
    /// The pages that the kernel may read though the payload has new ones.
    replaced: Option<Replaced>,
    /// Sequence number of the send it belongs to.
    pub(crate) ticket: u64,
    /// Bytes offered to zero-copy calls, each call's share counted.
    pub(crate) offered_bytes: usize,
    /// Whether a part of it went by copy, by the sender's own choice.
    pub(crate) copied: bool,
    quarantined: bool,
}

impl Lease {
    pub(crate) fn new(payload: Payload, ticket: u64) -> Self {
        if let Some(slot) = payload.slot() {
            slot.slot().begin_lease();
        }
        Self {
            payload: Some(payload),
            replaced: None,
            ticket,
            offered_bytes: 0,
            copied: false,
            quarantined: false,
        }
    }

    pub(crate) fn io_vec(&self) -> IoVec {
        let (start, len) = self.payload.as_ref().expect("present until released").as_raw();
        IoVec::new(start, len)
    }

    /// Whether somebody waits for a slot of the pool this payload comes from.
    pub(crate) fn is_awaited(&self) -> bool {
        self.payload.as_ref().and_then(Payload::pool).is_some_and(RawPool::has_waiters)
    }

    /// The bytes can no longer be proven released by a note. Returns the wakers of those who have
    /// nothing to wait for any more, to be woken with no lock held.
    #[must_use]
    pub(crate) fn quarantine(&mut self) -> Vec<Waker> {
        if mem::replace(&mut self.quarantined, true) {
            return Vec::new();
        }
        self.payload.as_ref().and_then(Payload::slot).map(SlotRef::quarantine).unwrap_or_default()
    }

    /// Frees the memory of a quarantined lease early, if that is a pool's and nobody else holds it:
    /// it gets new pages, and the payload, now empty, is the caller's to drop. The lease lives on
    /// until the proof, for the old pages.
    ///
    /// The caller has sent all that it will ever send of the payload.
    pub(crate) fn replace_pages(&mut self) -> Option<Payload> {
        self.replaced = Some(self.payload.as_mut()?.replace_pages()?);
        self.payload.take()
    }

    /// Gives the payload, if the lease still has it, to its next owner. The caller has the proof
    /// that the kernel reads none of it any more, or never took any of it.
    pub(crate) fn release(mut self) -> Option<Payload> {
        self.replaced = None;
        let payload = self.payload.take()?;
        if let Some(slot) = payload.slot().map(SlotRef::slot) {
            if self.quarantined { slot.quarantine_released() } else { slot.end_lease() }
        }
        // Nothing is left for the drop to keep.
        mem::forget(self);
        Some(payload)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let roused = self.quarantine();
        mem::forget((self.payload.take(), self.replaced.take()));
        roused.into_iter().for_each(Waker::wake);
    }
}
