//! The part of a TLS stream that no stream waits in: the session, and its records until they are sent.

use super::{error::TlsError, session::Session};
use crate::{buf::PinnedBuf, lease::Payload, pool::Pool};

/// A session, and the buffer that is being filled with its records.
///
/// To write, a stream asks [`wanted`](Self::wanted) for the buffer to get from the pool, gives the buffer by
/// [`put`](Self::put), and encrypts by [`fill`](Self::fill). Everything to be sent comes out of
/// [`take_written`](Self::take_written) and [`take_next`](Self::take_next), in order.
pub(super) struct Records {
    pub(super) session: Session,
    /// Capacity of the pool's largest class.
    largest: usize,
    /// Records that were not sent yet.
    filling: Option<PinnedBuf>,
}

/// The capacity of a new buffer.
#[derive(Clone, Copy)]
pub(super) enum Capacity {
    /// For all plaintext of the call, as far as the pool has such buffers.
    Sufficient,
    /// For later calls, too.
    Largest,
}

impl Records {
    pub(super) fn new(session: Session, pool: &Pool) -> Self {
        let classes = pool.stats().classes;
        let largest = classes.iter().map(|class| class.capacity).max().unwrap_or(0);
        Self { session, largest, filling: None }
    }

    /// The capacity of the buffer that `plaintext` needs, unless a buffer is being filled.
    pub(super) fn wanted(
        &mut self,
        plaintext: &[u8],
        capacity: Capacity,
    ) -> Result<Option<usize>, TlsError> {
        if self.filling.is_some() {
            return Ok(None);
        }
        let wanted = match capacity {
            Capacity::Largest => self.largest,
            Capacity::Sufficient => {
                let most = plaintext.len().min(self.largest);
                self.session.encrypted_len(&plaintext[..most])?.min(self.largest)
            }
        };
        Ok(Some(wanted))
    }

    /// Takes a new buffer to be filled.
    pub(super) fn put(&mut self, buf: PinnedBuf) {
        debug_assert!(self.filling.is_none(), "one buffer at a time");
        self.filling = Some(buf);
    }

    /// Encrypts the beginning of `plaintext` into the buffer that is being filled. Returns 0 if the buffer is
    /// full.
    pub(super) fn fill(&mut self, plaintext: &[u8]) -> Result<usize, TlsError> {
        let buf = self.filling.as_mut().expect("a wanted buffer was put");
        match self.session.encrypt(plaintext, buf)? {
            0 if buf.is_empty() => Err(TlsError::TooSmall { capacity: buf.capacity() }),
            taken => Ok(taken),
        }
    }

    /// The buffer that is being filled, to be sent.
    pub(super) fn take_written(&mut self) -> Option<PinnedBuf> {
        self.filling.take().filter(|buf| !buf.is_empty())
    }

    /// The next to be sent: written records, then the outgoing bytes of the session.
    pub(super) fn take_next(&mut self) -> Option<Payload> {
        if let Some(buf) = self.take_written() {
            return Some(buf.into());
        }
        let outgoing = self.session.take_outgoing();
        (!outgoing.is_empty()).then(|| outgoing.into())
    }
}
