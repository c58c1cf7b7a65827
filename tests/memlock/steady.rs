//! A busy sender: one system call per buffer, a rare one for many notifications, and no allocation.
//!
//! The binary counts allocations per thread. Datagrams to a group without members complete at once,
//! without a copy and without privileges.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::Write,
    net::{Ipv4Addr, UdpSocket},
};

use pinbuf::{
    PinnedBuf, Policy, Pool, Sender,
    sender::{IntoPayload, SenderBuilder},
};

use crate::{
    calls::{self, Calls},
    common::{pool, turn, zero_copy},
};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system allocator does the work. Counting does not allocate: the count has a constant
// initial value and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

const LEN: usize = 16 << 10;
/// The number of buffers, and so the most in flight at once.
const DEPTH: usize = 64;
const SENDS_COUNTED: usize = 10_000;

fn sender(builder: SenderBuilder) -> Sender<UdpSocket> {
    let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    near.set_multicast_ttl_v4(0).unwrap();
    near.set_multicast_loop_v4(false).unwrap();
    near.connect((Ipv4Addr::new(239, 255, 255, 250), 9)).unwrap();
    builder.adopt(near).unwrap()
}

fn buffer(pool: &Pool) -> PinnedBuf {
    let mut buf =
        pool.try_alloc(LEN).expect("notifications are read before the last buffer is used");
    buf.resize(LEN, 7);
    buf
}

/// Sends until all structures have their size, then counts allocations and calls.
fn counted(mut send: impl FnMut()) -> (usize, Calls) {
    let mut sends = || (0..SENDS_COUNTED).for_each(|_| send());
    sends();
    let before = ALLOCATIONS.get();
    let calls = calls::during(sends);
    (ALLOCATIONS.get() - before, calls)
}

fn assert_steady<P: IntoPayload>(what: &str, mut payload: impl FnMut() -> P) {
    let mut sender = sender(zero_copy());
    let (allocations, calls) = counted(|| assert!(sender.try_send(payload()).is_ok()));
    let Calls { sends, looks, clocks, .. } = calls;
    assert_eq!(sender.stats().copied_calls, 0, "{what}: all sends are zero-copy");
    assert_eq!((allocations, calls.options, calls.questions), (0, 0, 0), "{what}");
    assert_eq!(sends, SENDS_COUNTED, "{what}");
    assert!(looks > 0 && looks * 10 < sends, "{what}: {looks} reads of the error queue");
    assert!(clocks > 0 && clocks * 10 < sends, "{what}: {clocks} readings of the clock");
    let mut sender = self::sender(Sender::builder().policy(Policy::Never));
    let (allocations, calls) = counted(|| assert!(sender.try_send(payload()).is_ok()));
    let sends = SENDS_COUNTED;
    assert_eq!((allocations, calls), (0, Calls { sends, ..Calls::default() }), "{what} by copy");
}

#[test]
fn a_busy_sender_makes_one_call_per_buffer() {
    let _turn = turn();
    let pool = pool(LEN, DEPTH);
    assert_steady("buffers of a pool", || buffer(&pool));
    let shared = buffer(&pool).freeze();
    assert_steady("a shared buffer", || shared.clone());
    static BYTES: [u8; LEN] = [7; LEN];
    assert_steady("static bytes", || &BYTES[..]);
    let bytes: std::sync::Arc<[u8]> = BYTES[..].into();
    assert_steady("counted bytes", || std::sync::Arc::clone(&bytes));
}

#[test]
fn a_write_and_its_flush_make_one_call() {
    let _turn = turn();
    for (builder, len) in [(zero_copy(), 100), (zero_copy(), LEN), (Sender::builder(), 100)] {
        let mut sender = sender(builder);
        let bytes = vec![7; len];
        let (allocations, calls) = counted(|| {
            assert_eq!(sender.write(&bytes).unwrap(), len);
            sender.flush().unwrap();
        });
        let sends = SENDS_COUNTED;
        assert_eq!((allocations, calls), (0, Calls { sends, ..Calls::default() }), "{len}");
    }
}
