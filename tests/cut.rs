//! Vectored sends truncated by the kernel at every kind of place.
//!
//! The binary has its own `send` and `sendmsg`, which the library calls instead of the C library's:
//! they pass only a limited number of bytes to the kernel.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

mod common;

use std::{cell::RefCell, collections::VecDeque, time::Duration};

use common::{
    STALLED, assert_all_free, assert_arrived, assert_same, census, filled, pair_at, pattern, pool,
    reader, soon, turn,
};
use libc::{c_int, c_void};
use pinbuf::{Fate, Payload};

thread_local! {
    /// The bytes that the next calls of this thread may send; 0: the socket is full.
    static CUTS: RefCell<VecDeque<usize>> = const { RefCell::new(VecDeque::new()) };
}

/// In place of the C library's.
///
/// # Safety
///
/// As sendmsg(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sendmsg(fd: c_int, message: *const libc::msghdr, flags: c_int) -> isize {
    let Some(mut left) = CUTS.with_borrow_mut(VecDeque::pop_front) else {
        // SAFETY: the caller's contract.
        return unsafe { libc::syscall(libc::SYS_sendmsg, fd, message, flags) as isize };
    };
    if left == 0 {
        // SAFETY: always a valid address.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: as above; the variable belongs to this thread.
        unsafe { *errno = libc::EAGAIN };
        return -1;
    }
    // SAFETY: the pointer leads to a message, by the caller's contract.
    let mut cut = unsafe { *message };
    // SAFETY: the message has as many ranges, by the caller's contract.
    let ranges = unsafe { std::slice::from_raw_parts(cut.msg_iov, cut.msg_iovlen) };
    let mut ranges = ranges.to_vec();
    ranges.retain_mut(|range| {
        range.iov_len = range.iov_len.min(left);
        left -= range.iov_len;
        range.iov_len > 0
    });
    cut.msg_iov = ranges.as_mut_ptr();
    cut.msg_iovlen = ranges.len();
    // SAFETY: the caller's contract; the ranges are parts of the caller's.
    unsafe { libc::syscall(libc::SYS_sendmsg, fd, &raw const cut, flags) as isize }
}

/// In place of the C library's.
///
/// # Safety
///
/// As send(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn send(fd: c_int, bytes: *const c_void, len: usize, flags: c_int) -> isize {
    let mut range = libc::iovec { iov_base: bytes.cast_mut(), iov_len: len };
    // SAFETY: all zero bytes are a value of `msghdr`: integers and raw pointers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut range;
    message.msg_iovlen = 1;
    // SAFETY: one range, readable by the caller's contract.
    unsafe { sendmsg(fd, &raw const message, flags) }
}

const LEN: usize = 8 << 10;
const COUNT: usize = 5;

#[test]
fn a_truncated_send_keeps_every_started_buffer() {
    let _turn = turn();
    let whole = LEN * COUNT;
    let ends = (1..=COUNT).map(|count| count * LEN);
    for end in ends.flat_map(|end| [end - 1, end, end + 1]).filter(|end| *end <= whole) {
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(LEN, COUNT);
        let mut sender = common::zero_copy().adopt(near).unwrap();
        // The peer takes no more after the first send.
        sender.send(pattern(256 << 10, 1)).unwrap();
        let full = |seed| Payload::from(filled(pool.try_alloc(1).unwrap(), LEN, seed));
        let mut bufs: Vec<_> = (0..COUNT).map(full).collect();
        CUTS.set([end, 0, 1, 0, LEN, 0].into());
        let ticket = sender.try_send_vectored(&mut bufs).unwrap();
        assert_eq!(census(&pool), [0, 0, COUNT, 0], "cut at {end}");
        while sender.reap().unwrap().unsent {
            assert_eq!(census(&pool), [0, 0, COUNT, 0], "cut at {end}");
        }
        CUTS.take();
        assert_eq!(census(&pool), [0, 0, COUNT, 0], "cut at {end}: the peer has no byte");
        let peer = reader(far, Duration::ZERO);
        let fate = sender.wait(ticket, soon()).unwrap();
        assert!(matches!(fate, Fate::Released { accepted, .. } if accepted == whole), "{fate:?}");
        assert_all_free(&pool);
        let stats = sender.stats();
        assert_eq!((stats.in_flight_bytes, stats.leases), (0, 0));
        assert!(sender.close(soon()).drained);
        let mut want = pattern(256 << 10, 1).to_vec();
        (0..COUNT).for_each(|seed| want.extend_from_slice(&pattern(LEN, seed)));
        assert_same(&peer.join().unwrap(), &want);
    }
}

#[test]
fn a_full_socket_returns_every_buffer() {
    let _turn = turn();
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, COUNT);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let full = |seed| Payload::from(filled(pool.try_alloc(1).unwrap(), LEN, seed));
    let mut bufs: Vec<_> = (0..COUNT).map(full).collect();
    for _ in 0..3 {
        CUTS.set([0].into());
        assert!(sender.try_send_vectored(&mut bufs).unwrap_err().is_backpressure());
        assert_eq!(census(&pool), [0, COUNT, 0, 0]);
        let stats = sender.stats();
        assert_eq!((stats.in_flight_calls, stats.in_flight_bytes, stats.leases), (0, 0, 0));
    }
    let peer = reader(far, Duration::ZERO);
    let ticket = sender.send_vectored(&mut bufs).unwrap();
    assert_eq!(ticket.sequence(), 0);
    assert!(sender.wait(ticket, soon()).is_ok());
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, COUNT);
    assert_all_free(&pool);
}
