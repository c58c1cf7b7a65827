//! Who sends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pinbuf::{PinnedBuf, Policy, Pool, Sender};

use crate::{memory::backing, way::FarEnd};

/// Sends the same buffers in turn, of one length each.
pub(crate) trait Contestant {
    /// Sends the next buffer whole, once a former use of it is released.
    fn send(&mut self, far: &mut FarEnd);
    /// Waits until everything is released.
    fn drain(&mut self);
    fn fd(&self) -> BorrowedFd<'_>;
}

/// The library: a pool's buffers go round.
pub(crate) struct Pinbuf {
    sender: Sender,
    /// Sent in turn, so that each was filled long ago.
    filled: Box<[Option<PinnedBuf>]>,
    next: usize,
    pool: Pool,
    len: usize,
}

impl Pinbuf {
    pub(crate) fn new(
        near: OwnedFd,
        policy: Policy,
        data: usize,
        len: usize,
        huge: bool,
    ) -> Result<Self, String> {
        // A tenth more than is sent in turn, so that there is always one to be had.
        let count = data / len;
        let pool =
            Pool::builder().class(len, count + count / 10 + 2).backing(backing(huge)).build();
        let pool = pool.map_err(|error| error.to_string())?;
        // With `Prefer` everything goes without copy, so that it compares with the loop; `Auto`
        // decides as it does for a user.
        let mut builder = Sender::builder().policy(policy);
        if policy == Policy::Prefer {
            builder = builder.threshold_bytes(1);
        }
        let sender = builder.adopt(near).map_err(|error| error.to_string())?;
        let filled = (0..count).map(|_| {
            let mut buf = pool.try_alloc(len).expect("the pool is larger");
            buf.resize(len, 1);
            Some(buf)
        });
        Ok(Self { filled: filled.collect(), next: 0, sender, pool, len })
    }
}

impl Contestant for Pinbuf {
    fn send(&mut self, _: &mut FarEnd) {
        let count = self.filled.len();
        let place = &mut self.filled[self.next];
        self.next = if self.next + 1 == count { 0 } else { self.next + 1 };
        let buf = place.take().expect("one comes for each that goes");
        self.sender.send(buf).expect("the connection lasts");
        let mut buf = self.pool.alloc(self.len).expect("slots come home");
        // SAFETY: every slot of the pool was written to its end: those that were alloced at first,
        // in `new`; the others are handed out as zeroes by the kernel, which are initialized.
        unsafe { buf.set_len(self.len) };
        *place = Some(buf);
    }

    fn drain(&mut self) {
        self.sender.drain(None).expect("the error queue can be read");
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }
}
