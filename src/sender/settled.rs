//! What was let go of, until no lock is held.

use crate::{buf::PinnedBuf, lease::Payload, panics::Panics};

/// Payloads to be dropped. That is user code for some, and wakes others for the rest.
#[derive(Default, Debug)]
pub(super) struct Settled {
    /// The usual ones by themselves: each is one word, and they go home together.
    bufs: Vec<PinnedBuf>,
    others: Vec<Payload>,
}

impl Settled {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.bufs.is_empty() && self.others.is_empty()
    }

    #[inline(always)]
    pub(super) fn push_buf(&mut self, buf: PinnedBuf) {
        if self.bufs.capacity() == 0 {
            // A sender that is hardly used has one at a time.
            self.bufs.reserve_exact(1);
        }
        self.bufs.push(buf);
    }

    pub(super) fn push(&mut self, payload: Payload) {
        match payload {
            Payload::Pinned(buf) => self.push_buf(buf),
            other => self.others.push(other),
        }
    }

    /// Drops them all, those behind one that panics too.
    pub(super) fn drop_all(&mut self, panics: &mut Panics) {
        while !self.bufs.is_empty() {
            panics.catch(|| PinnedBuf::recycle_all(&mut self.bufs));
        }
        panics.catch_each(self.others.drain(..), drop);
    }

    /// Takes back the room of those that were dropped, unless there is room already.
    pub(super) fn put_back(&mut self, empty: Self) {
        if self.bufs.capacity() == 0 {
            self.bufs = empty.bufs;
        }
        if self.others.capacity() == 0 {
            self.others = empty.others;
        }
    }
}
