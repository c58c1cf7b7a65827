//! The floor: the least code that sends with `MSG_ZEROCOPY` and reads its notifications.
//!
//! Fixed buffers in a ring, ids assumed to be released in order, no fate, no second thread, no
//! error but "not now". A reference for the cost of the library's promises, not a way to send.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr,
    rc::Rc,
};

use crate::{common::enable_zerocopy, contestant::Contestant, memory::Memory, way::FarEnd};

/// The number of sends between two reads of the error queue, the same as the library's.
const READ_EVERY: u32 = 32;

/// Messages read by one call.
const MESSAGES: usize = 32;

/// Room for the control data of one message, in bytes.
const CONTROL: usize = 128;

/// A socket, a ring of buffers, and the number of ids in flight.
pub(crate) struct Floor {
    near: OwnedFd,
    zero_copy: bool,
    memory: Rc<Memory>,
    len: usize,
    next: usize,
    sent: u32,
    released: u32,
    unread: u32,
    headers: Box<[libc::mmsghdr; MESSAGES]>,
    control: Box<[[u64; CONTROL / 8]; MESSAGES]>,
}

impl Floor {
    /// Sends the parts of `memory`, of `len` bytes each, in turn.
    pub(crate) fn new(near: OwnedFd, zero_copy: bool, memory: Rc<Memory>, len: usize) -> Self {
        if zero_copy {
            enable_zerocopy(&near);
        }
        Self {
            near,
            zero_copy,
            memory,
            len,
            next: 0,
            sent: 0,
            released: 0,
            unread: 0,
            // SAFETY: all zero bytes are a value of `mmsghdr`: integers and raw pointers.
            headers: Box::new(unsafe { mem::zeroed() }),
            control: Box::new([[0; CONTROL / 8]; MESSAGES]),
        }
    }

    fn wait(&mut self, events: i16) {
        let mut entry = libc::pollfd { fd: self.near.as_raw_fd(), events, revents: 0 };
        // SAFETY: poll(2) reads and writes one entry, alive during the call.
        let ready = unsafe { libc::poll(&raw mut entry, 1, 10_000) };
        assert!(ready == 1, "{}", io::Error::last_os_error());
        if self.zero_copy {
            self.read();
        }
    }

    /// Reads the error queue once: up to 32 notifications.
    fn read(&mut self) {
        self.unread = 0;
        for (header, control) in self.headers.iter_mut().zip(self.control.iter_mut()) {
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
        }
        // SAFETY: recvmmsg(2) writes to the headers and their control rooms, which outlive the
        // call.
        let read = unsafe {
            libc::recvmmsg(
                self.near.as_raw_fd(),
                self.headers.as_mut_ptr(),
                MESSAGES as _,
                libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        for control in self.control.iter().take(usize::try_from(read).unwrap_or(0)) {
            // A control message's header takes 16 bytes; ee_info and ee_data are at 8 and 12 of the
            // record behind it.
            let range = control[3];
            let (lo, hi) = (range as u32, (range >> 32) as u32);
            self.released = self.released.wrapping_add(hi.wrapping_sub(lo) + 1);
        }
    }
}

impl Contestant for Floor {
    fn send(&mut self, _: &mut FarEnd) {
        if self.zero_copy && self.unread == READ_EVERY {
            self.read();
        }
        let parts = self.memory.len() / self.len;
        // A buffer is sent again only after its release, here assumed to be in order.
        while self.zero_copy && (self.sent - self.released) as usize == parts {
            self.wait(0);
        }
        let start = self.memory.start().wrapping_add(self.next * self.len);
        self.next = if self.next + 1 == parts { 0 } else { self.next + 1 };
        let mut at = 0;
        let flags = libc::MSG_DONTWAIT
            | libc::MSG_NOSIGNAL
            | if self.zero_copy { libc::MSG_ZEROCOPY } else { 0 };
        while at < self.len {
            // SAFETY: send(2) reads `len - at` bytes of the memory, which has no writers.
            let sent = unsafe {
                libc::send(
                    self.near.as_raw_fd(),
                    start.wrapping_add(at).cast(),
                    self.len - at,
                    flags,
                )
            };
            if sent >= 0 {
                at += sent as usize;
                self.sent += u32::from(self.zero_copy);
                self.unread += 1;
                continue;
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN) => self.wait(libc::POLLOUT),
                Some(libc::ENOBUFS) => self.read(),
                _ => panic!("{error}"),
            }
        }
    }

    fn drain(&mut self) {
        self.read();
        while self.zero_copy && self.sent != self.released {
            self.wait(0);
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.near.as_fd()
    }
}
