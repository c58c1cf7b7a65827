//! What can be sent, and what the sender keeps of it while the kernel may read it.

use crate::{buf::PinnedBuf, mapped::MappedSlice, sync::Arc, sys::socket::IoVec};

/// Memory that can be sent.
///
/// The sender owns it from the send until the kernel has released every byte of it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Payload {
    /// A buffer of a [`Pool`](crate::Pool).
    Pinned(PinnedBuf),
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
            Self::Mapped(slice) => return slice.as_raw(),
            Self::Static(slice) => slice,
            Self::Shared(slice) => slice,
            #[cfg(feature = "bytes")]
            Self::Bytes(bytes) => bytes,
        };
        (slice.as_ptr(), slice.len())
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
/// the proof. A lease that is dropped instead (a panic took its tracker away) leaves its memory
/// alone for ever and the slot Quarantined.
#[derive(Debug)]
pub(crate) struct Lease {
    /// `None` only after `release`.
    payload: Option<Payload>,
    /// Sequence number of the send it belongs to.
    pub(crate) ticket: u64,
    /// Bytes offered to zero-copy calls, each call's share counted.
    pub(crate) offered_bytes: usize,
    /// Whether a part of it went by copy, by the sender's own choice.
    pub(crate) copied: bool,
    quarantined: bool,
}

impl Lease {
    pub(crate) fn new(mut payload: Payload, ticket: u64) -> Self {
        if let Payload::Pinned(buf) = &mut payload {
            buf.begin_lease();
        }
        Self { payload: Some(payload), ticket, offered_bytes: 0, copied: false, quarantined: false }
    }

    pub(crate) fn io_vec(&self) -> IoVec {
        let (start, len) = self.payload.as_ref().expect("present until released").as_raw();
        IoVec::new(start, len)
    }

    /// Whether somebody waits for a slot of the pool this payload comes from.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(&self.payload, Some(Payload::Pinned(buf)) if buf.pool().has_waiters())
    }

    /// The bytes can no longer be proven released by a note.
    pub(crate) fn quarantine(&mut self) {
        if !self.quarantined {
            self.quarantined = true;
            if let Some(Payload::Pinned(buf)) = &mut self.payload {
                buf.quarantine();
            }
        }
    }

    /// Gives the payload to its next owner. The caller has the proof that the kernel reads none
    /// of it any more, or never took any of it.
    pub(crate) fn release(mut self) -> Payload {
        let mut payload = self.payload.take().expect("present until released");
        if let Payload::Pinned(buf) = &mut payload {
            if self.quarantined { buf.quarantine_released() } else { buf.end_lease() }
        }
        payload
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.quarantine();
        std::mem::forget(self.payload.take());
    }
}
