//! The zero copy of `io_uring`: `SEND_ZC`, with and without registered buffers.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

use io_uring::{IoUring, cqueue, opcode, types};

use crate::{contestant::Contestant, memory::Memory, way::FarEnd};

/// The most sends and releases in flight; a send takes two places of the queue.
const ENTRIES: u32 = 64;

pub(crate) struct Uring {
    near: OwnedFd,
    ring: IoUring,
    memory: Rc<Memory>,
    registered: bool,
    len: usize,
    next: usize,
    /// The number of expected releases.
    outstanding: usize,
}

impl Uring {
    pub(crate) fn new(
        near: OwnedFd,
        memory: Rc<Memory>,
        len: usize,
        registered: bool,
    ) -> Result<Self, String> {
        let ring = IoUring::builder().setup_cqsize(16 * ENTRIES).build(ENTRIES);
        let ring = ring.map_err(|error| format!("no io_uring: {error}"))?;
        if registered {
            let all =
                libc::iovec { iov_base: memory.start().cast_mut().cast(), iov_len: memory.len() };
            // SAFETY: the memory stays mapped longer than the ring lives: both are dropped here.
            let done = unsafe { ring.submitter().register_buffers(&[all]) };
            done.map_err(|error| format!("buffers cannot be registered: {error}"))?;
        }
        Ok(Self { near, ring, memory, registered, len, next: 0, outstanding: 0 })
    }

    /// Looks for completions. Returns the bytes of the send, if completed.
    fn reap(&mut self) -> Option<usize> {
        let mut sent = None;
        for entry in self.ring.completion() {
            if cqueue::notif(entry.flags()) {
                self.outstanding -= 1;
                continue;
            }
            self.outstanding += usize::from(cqueue::more(entry.flags()));
            assert!(entry.result() >= 0, "{}", io::Error::from_raw_os_error(-entry.result()));
            sent = Some(entry.result() as usize);
        }
        sent
    }

    /// Submits and waits for a completion, but not for long: the far end may have to act first.
    fn wait(&mut self) {
        let soon = types::Timespec::new().nsec(1_000_000);
        let soon = types::SubmitArgs::new().timespec(&soon);
        match self.ring.submitter().submit_with_args(1, &soon) {
            Err(error) if error.raw_os_error() != Some(libc::ETIME) => panic!("{error}"),
            _ => {}
        }
    }
}

impl Contestant for Uring {
    fn send(&mut self, far: &mut FarEnd) {
        let parts = self.memory.len() / self.len;
        let start = self.memory.start().wrapping_add(self.next * self.len);
        self.next = if self.next + 1 == parts { 0 } else { self.next + 1 };
        let index = self.registered.then_some(0);
        let entry = opcode::SendZc::new(types::Fd(self.near.as_raw_fd()), start, self.len as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .buf_index(index)
            .build();
        // SAFETY: the memory lives longer than the ring and is never written again.
        unsafe { self.ring.submission().push(&entry) }.expect("the queue was emptied");
        self.wait();
        let sent = loop {
            if let Some(sent) = self.reap() {
                break sent;
            }
            far.take_all(self.near.as_fd());
            self.wait();
        };
        assert_eq!(sent, self.len, "a send is whole");
        // A buffer is sent again only after its release.
        while self.outstanding + 1 >= parts {
            self.wait();
            self.reap();
        }
    }

    fn drain(&mut self) {
        while self.outstanding > 0 {
            self.wait();
            self.reap();
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.near.as_fd()
    }
}
