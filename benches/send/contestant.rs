//! The contestants of the send bench.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pinbuf::{
    PinnedBuf, Pool, Sender,
    sender::{Datagram, SenderBuilder},
};

use crate::{
    memory::backing,
    way::{FarEnd, MOST_UNACKED},
};

/// Sends the same buffers in turn, all of the same length.
pub(crate) trait Contestant {
    /// Sends the next buffer whole, after the release of its former use.
    fn send(&mut self, far: &mut FarEnd);
    /// Waits for all releases.
    fn drain(&mut self);
    fn fd(&self) -> BorrowedFd<'_>;
}

/// The library: a pool's buffers in rotation.
pub(crate) struct Pinbuf {
    sender: Sender,
    /// Sent in turn, so that each was filled long ago.
    filled: Box<[Option<PinnedBuf>]>,
    next: usize,
    pool: Pool,
    len: usize,
    /// Sends by `send_to`.
    to: Option<Datagram>,
}

impl Pinbuf {
    pub(crate) fn new(
        near: OwnedFd,
        builder: SenderBuilder,
        data: usize,
        len: usize,
        huge: bool,
    ) -> Result<Self, String> {
        // A connection that speeds up holds so much more than the buffers in turn. Later the same few
        // of the additional slots are used again and again.
        let count = data / len;
        let spare = (2 * MOST_UNACKED as usize / len).max(count / 10) + 2;
        let pool = Pool::builder().class(len, count + spare).backing(backing(huge)).build();
        let pool = pool.map_err(|error| error.to_string())?;
        let sender = builder.adopt(near).map_err(|error| error.to_string())?;
        let filled = (0..count).map(|_| {
            let mut buf = pool.try_alloc(len).expect("the pool is larger");
            buf.resize(len, 1);
            Some(buf)
        });
        Ok(Self { filled: filled.collect(), next: 0, sender, pool, len, to: None })
    }

    /// Sends datagrams as told here, if so.
    pub(crate) fn in_trains(self, to: Option<Datagram>) -> Self {
        Self { to, ..self }
    }
}

impl Contestant for Pinbuf {
    fn send(&mut self, _: &mut FarEnd) {
        let count = self.filled.len();
        let place = &mut self.filled[self.next];
        self.next = if self.next + 1 == count { 0 } else { self.next + 1 };
        let buf = place.take().expect("each place has a buffer");
        let sent = match self.to {
            None => self.sender.send(buf),
            Some(to) => self.sender.send_to(buf, to),
        };
        sent.expect("the connection lasts");
        let mut buf = self.pool.alloc(self.len).expect("slots are recycled");
        // SAFETY: every slot of the pool is initialized to its end: the first ones in `new`, the
        // others by the kernel, as zeros.
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
