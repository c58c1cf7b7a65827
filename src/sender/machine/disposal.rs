//! Released payloads, until they can be dropped with no lock held.

use std::{cell::Cell, mem};

use super::cold::Lazy;
use crate::{buf::PinnedBuf, lease::Payload, panics::Panics, sync::per_thread};

per_thread! {
    /// Room for buffers. The room belongs to the thread that reads the error queue, because the
    /// reader of a notification usually drops the released payloads. A list in each of ten thousand
    /// senders would never be in the cache.
    static ROOM: Cell<Vec<PinnedBuf>> = Cell::new(Vec::new());
}

/// Payloads to be dropped. A drop can run user code and wake tasks.
#[derive(Default)]
pub(crate) struct Disposal {
    /// The usual payloads apart: each is one word, and they are recycled together.
    bufs: Vec<PinnedBuf>,
    others: Lazy<Vec<Payload>>,
}

impl Disposal {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.bufs.is_empty() && self.others.get().is_none_or(Vec::is_empty)
    }

    pub(super) fn push(&mut self, payload: Payload) {
        match payload {
            Payload::Pinned(buf) => {
                if self.bufs.capacity() == 0 {
                    // A thread that is ending has none.
                    self.bufs = ROOM.try_with(Cell::take).unwrap_or_default();
                }
                self.bufs.push(buf);
            }
            other => self.others.make().push(other),
        }
    }

    /// Drops all payloads, even after a panic of one.
    pub(crate) fn drop_all(&mut self, panics: &mut Panics) {
        while !self.bufs.is_empty() {
            panics.catch(|| PinnedBuf::recycle_all(&mut self.bufs));
        }
        let room = mem::take(&mut self.bufs);
        if room.capacity() > 0 {
            let _ = ROOM.try_with(|kept| kept.set(room));
        }
        if let Some(others) = self.others.get_mut() {
            panics.catch_each(others.drain(..), drop);
        }
    }

    /// Takes back the room of dropped payloads, unless there is room already.
    pub(super) fn put_back(&mut self, empty: Self) {
        if self.others.get().is_none() {
            self.others = empty.others;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Pool, sync::Arc};

    #[test]
    fn the_buffers_of_a_disposal_are_recycled_together() {
        let pool = Pool::new(4096, 2).unwrap();
        let mut disposal = Disposal::default();
        for buf in [(); 2].map(|()| pool.try_alloc(1).unwrap()) {
            disposal.push(buf.into());
        }
        assert_eq!(pool.stats().free(), 0, "the lock may be held");
        disposal.drop_all(&mut Panics::default());
        assert_eq!(pool.stats().free(), 2);
    }

    #[test]
    fn room_that_comes_back_replaces_no_payload_of_meanwhile() {
        let payloads = [(); 2].map(|()| Arc::<[u8]>::from([1]));
        let [first, second] = payloads.each_ref().map(|payload| Payload::from(Arc::clone(payload)));
        let mut disposal = Disposal::default();
        disposal.push(first);
        let mut taken = mem::take(&mut disposal);
        taken.drop_all(&mut Panics::default());
        disposal.push(second);
        disposal.put_back(taken);
        assert_eq!(payloads.map(|payload| Arc::strong_count(&payload)), [1, 2]);
        assert!(!disposal.is_empty());
    }
}
