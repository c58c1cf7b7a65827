//! A busy sender: one system call per buffer, a rare one for many notifications, and no allocation.
//!
//! The binary counts allocations per thread. It has its own system calls, which the library calls
//! instead of the C library's. Datagrams to a group without members complete at once, without a
//! copy and without privileges.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::{Ipv4Addr, UdpSocket},
};

use common::{pool, zero_copy};
use libc::{c_int, c_long, c_uint, c_void};
use pinbuf::{
    PinnedBuf, Policy, Pool, Sender,
    sender::{IntoPayload, SenderBuilder},
};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static SENDS: Cell<usize> = const { Cell::new(0) };
    static READS: Cell<usize> = const { Cell::new(0) };
    static OTHERS: Cell<usize> = const { Cell::new(0) };
    /// Readings of the clock.
    static CLOCKS: Cell<usize> = const { Cell::new(0) };
}

fn count(counter: &'static std::thread::LocalKey<Cell<usize>>) {
    counter.set(counter.get() + 1);
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system allocator does the work. Counting does not allocate: the count has a constant
// initial value and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(&ALLOCATIONS);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// In place of the C library's.
///
/// # Safety
///
/// As send(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn send(fd: c_int, bytes: *const c_void, len: usize, flags: c_int) -> isize {
    count(&SENDS);
    // SAFETY: the caller's contract; no address.
    unsafe { libc::syscall(libc::SYS_sendto, fd, bytes, len, flags, 0_usize, 0) as isize }
}

/// Makes functions in place of the C library's: they count, and make the system call.
macro_rules! counted {
    ($($counter:ident: $name:ident($($argument:ident: $kind:ty),*) = $number:ident;)+) => {$(
        /// In place of the C library's.
        ///
        /// # Safety
        ///
        /// As the system call.
        #[allow(clippy::cast_lossless, reason = "pointers are cast by the same words")]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $kind),*) -> isize {
            count(&$counter);
            // SAFETY: the caller's contract.
            unsafe { libc::syscall(libc::$number, $($argument as c_long),*) as isize }
        }
    )+};
}

counted! {
    SENDS: sendmsg(fd: c_int, message: *const c_void, flags: c_int) = SYS_sendmsg;
    READS: recvmmsg(fd: c_int, messages: *mut c_void, room: c_uint, flags: c_int, timeout: *mut c_void)
        = SYS_recvmmsg;
    OTHERS: getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut c_void)
        = SYS_getsockopt;
    OTHERS: ioctl(fd: c_int, request: usize, value: *mut c_void) = SYS_ioctl;
    CLOCKS: clock_gettime(clock: c_int, time: *mut c_void) = SYS_clock_gettime;
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

/// The counts of a thread.
#[derive(Clone, Copy)]
struct Counts {
    allocations: usize,
    sends: usize,
    reads: usize,
    others: usize,
    clocks: usize,
}

/// Sends until all structures have their size, then counts.
fn counted<P: IntoPayload>(
    sender: &mut Sender<UdpSocket>,
    payload: &mut dyn FnMut() -> P,
) -> Counts {
    for _ in 0..SENDS_COUNTED {
        assert!(sender.try_send(payload()).is_ok());
    }
    let counters = [&ALLOCATIONS, &SENDS, &READS, &OTHERS, &CLOCKS];
    let before = counters.map(|counter| counter.get());
    for _ in 0..SENDS_COUNTED {
        assert!(sender.try_send(payload()).is_ok());
    }
    let after = counters.map(|counter| counter.get());
    let [allocations, sends, reads, others, clocks] =
        std::array::from_fn(|at| after[at] - before[at]);
    Counts { allocations, sends, reads, others, clocks }
}

fn assert_steady<P: IntoPayload>(what: &str, mut payload: impl FnMut() -> P) {
    let mut sender = sender(zero_copy());
    let Counts { allocations, sends, reads, others, clocks } = counted(&mut sender, &mut payload);
    assert_eq!(sender.stats().copied_calls, 0, "{what}: all sends are zero-copy");
    assert_eq!((allocations, others), (0, 0), "{what}");
    assert_eq!(sends, SENDS_COUNTED, "{what}");
    assert!(reads > 0 && reads * 10 < sends, "{what}: {reads} reads of the error queue");
    assert!(clocks > 0 && clocks * 10 < sends, "{what}: {clocks} readings of the clock");
    let mut sender = self::sender(Sender::builder().policy(Policy::Never));
    let Counts { allocations, sends, reads, others, clocks } = counted(&mut sender, &mut payload);
    assert_eq!(sends, SENDS_COUNTED, "{what} by copy");
    assert_eq!((allocations, reads, others, clocks), (0, 0, 0, 0), "{what} by copy");
}

#[test]
fn a_busy_sender_makes_one_call_per_buffer() {
    let pool = pool(LEN, DEPTH);
    assert_steady("buffers of a pool", || buffer(&pool));
    let shared = buffer(&pool).freeze();
    assert_steady("a shared buffer", || shared.clone());
    static BYTES: [u8; LEN] = [7; LEN];
    assert_steady("static bytes", || &BYTES[..]);
    let bytes: std::sync::Arc<[u8]> = BYTES[..].into();
    assert_steady("counted bytes", || std::sync::Arc::clone(&bytes));
}
