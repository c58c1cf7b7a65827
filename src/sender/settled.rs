//! What was let go of, until no lock is held.

use std::{cell::Cell, mem};

use super::rare::Rare;
use crate::{buf::PinnedBuf, lease::Payload, panics::Panics, sync::per_thread};

per_thread! {
    /// Room for buffers, of whichever sender the thread reads the notes: a note is read, and what
    /// it released dropped, by one thread as a rule. Ten thousand senders with a list each would
    /// find none of them in the cache.
    static ROOM: Cell<Vec<PinnedBuf>> = Cell::new(Vec::new());
}

/// Payloads to be dropped. That is user code for some, and wakes others for the rest.
#[derive(Default)]
pub(super) struct Settled {
    /// The usual ones by themselves: each is one word, and they go home together.
    bufs: Vec<PinnedBuf>,
    others: Rare<Vec<Payload>>,
}

impl Settled {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.bufs.is_empty() && self.others.is_empty()
    }

    #[inline(always)]
    pub(super) fn push_buf(&mut self, buf: PinnedBuf) {
        if self.bufs.capacity() == 0 {
            self.take_room();
        }
        self.bufs.push(buf);
    }

    #[cold]
    fn take_room(&mut self) {
        // A thread that is ending has none.
        self.bufs = ROOM.try_with(Cell::take).unwrap_or_default();
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
        let room = mem::take(&mut self.bufs);
        if room.capacity() > 0 {
            let _ = ROOM.try_with(|kept| kept.set(room));
        }
        if !self.others.is_empty() {
            panics.catch_each(self.others.drain(..), drop);
        }
    }

    /// Takes back the room of those that were dropped, unless there is room already.
    pub(super) fn put_back(&mut self, empty: Self) {
        if self.others.get().is_none() {
            self.others = empty.others;
        }
    }
}
