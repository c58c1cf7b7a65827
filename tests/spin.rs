//! Nothing spins: waits are counted where `poll(2)` would return at once for ever.
//!
//! This binary has its own `ppoll`, `epoll_wait`, `recvmmsg` and `ioctl`, which the library calls
//! instead of the C library's: they count per thread, and can pretend that no note is there.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

mod common;

use std::{
    cell::Cell,
    io::{self, Read},
    net::TcpStream,
    os::fd::{AsFd, AsRawFd},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{
    STALLED, TIGHT, after, again, assert_all_home, assert_arrived, assert_same, block_on,
    duplicate, eventually, filled, must_succeed, network_namespace, pair, pair_at, pattern, plays,
    pool,
    process::{alone, hoard_descriptors},
    raise_loopback, reader, reset, skip, soon,
};
use libc::{c_int, c_uint, c_void};
use pinbuf::{Fate, Policy, SendError, Sender, SenderBuilder, WaitError, wait_idle};

thread_local! {
    /// Waits of this thread.
    static WAITS: Cell<usize> = const { Cell::new(0) };
    /// Looks of this thread for notes.
    static LOOKS: Cell<usize> = const { Cell::new(0) };
    /// Until when this thread finds no note.
    static BLIND_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Waits of the library's own thread.
static REAPER_WAITS: AtomicUsize = AtomicUsize::new(0);

/// Questions of the library's own thread about unacknowledged bytes: one for each look at a sender
/// that ends.
static REAPER_QUESTIONS: AtomicUsize = AtomicUsize::new(0);

fn count_for_the_reaper(counter: &AtomicUsize) {
    if thread::current().name() == Some("pinbuf-reaper") {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn count() {
    WAITS.set(WAITS.get() + 1);
    count_for_the_reaper(&REAPER_WAITS);
}

/// Instead of the C library's.
///
/// # Safety
///
/// As ppoll(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn ppoll(
    fds: *mut libc::pollfd,
    nfds: libc::nfds_t,
    timeout: *const libc::timespec,
    mask: *const libc::sigset_t,
) -> c_int {
    count();
    // SAFETY: null or a timespec, says the caller.
    let mut left = unsafe { timeout.as_ref() }.copied();
    // The bare system call writes back what is left.
    let left = left.as_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut);
    // SAFETY: the caller's promises, and a timeout of our own.
    unsafe { libc::syscall(libc::SYS_ppoll, fds, nfds, left, mask, 8) as c_int }
}

/// Instead of the C library's.
///
/// # Safety
///
/// As epoll_wait(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut libc::epoll_event,
    room: c_int,
    timeout_ms: c_int,
) -> c_int {
    count();
    let none = std::ptr::null::<c_void>();
    // SAFETY: the caller's promises; no mask.
    unsafe {
        libc::syscall(libc::SYS_epoll_pwait, epoll, events, room, timeout_ms, none, 8) as c_int
    }
}

/// Instead of the C library's.
///
/// # Safety
///
/// As recvmmsg(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn recvmmsg(
    fd: c_int,
    messages: *mut libc::mmsghdr,
    room: c_uint,
    flags: c_int,
    timeout: *mut libc::timespec,
) -> c_int {
    LOOKS.set(LOOKS.get() + 1);
    if BLIND_UNTIL.get().is_some_and(|until| Instant::now() < until) {
        // SAFETY: always a valid address.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: as above, and this thread's own.
        unsafe { *errno = libc::EAGAIN };
        return -1;
    }
    // SAFETY: the caller's promises.
    unsafe { libc::syscall(libc::SYS_recvmmsg, fd, messages, room, flags, timeout) as c_int }
}

/// Instead of the C library's.
///
/// # Safety
///
/// As ioctl(2) with a pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: usize, value: *mut c_void) -> c_int {
    count_for_the_reaper(&REAPER_QUESTIONS);
    // SAFETY: the caller's promises.
    unsafe { libc::syscall(libc::SYS_ioctl, fd, request, value) as c_int }
}

/// How often this thread waited in `body`.
fn waits(body: impl FnOnce()) -> usize {
    let before = WAITS.get();
    body();
    WAITS.get() - before
}

/// A thread that spins waits about a hundred thousand times in the pauses below.
const MANY: usize = 2000;
const PAUSE: Duration = Duration::from_millis(400);

/// A peer that reads some, so that notes come, pauses, and then reads to the end.
fn fitful(mut far: TcpStream, first: usize) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut got = vec![0; first];
        far.read_exact(&mut got).unwrap();
        thread::sleep(PAUSE);
        far.read_to_end(&mut got).unwrap();
        got
    })
}

#[test]
fn waits_are_counted() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let ticket = sender.send(pattern(1 << 20, 1)).unwrap();
    let waits = waits(|| assert!(sender.wait(ticket, Some(after(20))).is_err()));
    assert!(waits > 0, "the library's calls are not those of this binary");
    drop(far);
}

#[test]
fn waiting_for_room_does_not_spin_on_notes() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let peer = fitful(far, 300_000);
    let data = pattern(1 << 20, 1);
    let waits = waits(|| {
        let _ = sender.send(data.clone()).unwrap();
    });
    assert!(waits > 0, "room enough: the test shows nothing");
    assert!(waits < MANY, "{waits}");
    // They may have been left to the next call.
    sender.reap().unwrap();
    assert!(sender.stats().notes > 0);
    assert!(sender.close(soon().unwrap()).drained);
    assert_same(&peer.join().unwrap(), &data);
}

#[test]
fn a_loop_over_interest_does_not_spin() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let mut sender = common::zero_copy().max_in_flight_sends(2).adopt(near).unwrap();
    let peer = fitful(far, 300_000);
    let mut rounds = 0;
    for seed in 0..30 {
        let mut buf = pattern(50_000, seed);
        loop {
            match sender.try_send(buf) {
                Ok(_) => break,
                Err(SendError::WouldBlock(back)) => buf = back,
                Err(error) => panic!("{error}"),
            }
            let interest = sender.interest();
            let events = if interest.writable { libc::POLLOUT } else { 0 };
            let mut entry = libc::pollfd { fd: sender.as_fd().as_raw_fd(), events, revents: 0 };
            // SAFETY: poll(2) reads and writes one entry, which outlives the call.
            assert_eq!(unsafe { libc::poll(&raw mut entry, 1, 10_000) }, 1, "{interest:?}");
            sender.reap().unwrap();
            rounds += 1;
        }
    }
    assert!(rounds > 0 && rounds < MANY, "{rounds}");
    assert!(sender.close(soon().unwrap()).drained);
    assert_arrived(&peer.join().unwrap(), 50_000, 30);
}

#[test]
fn waiting_for_the_window_does_not_spin_on_room() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = common::zero_copy().max_in_flight_sends(1).adopt(near).unwrap();
    let data = pattern(256 << 10, 1);
    let ticket = sender.send(data.clone()).unwrap();
    assert_eq!(sender.fate(ticket).unwrap(), None, "the window is full, the socket is not");
    assert!(!sender.interest().writable);
    let peer = reader(far, PAUSE);
    let waits = waits(|| {
        let _ = sender.send(data.clone()).unwrap();
    });
    assert!(waits > 0 && waits < MANY, "{waits}");
    assert!(sender.close(soon().unwrap()).drained);
    assert_same(&peer.join().unwrap(), &[&data[..], &data].concat());
}

#[test]
fn waiting_for_a_release_does_not_spin_on_room() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let ticket = sender.send(pattern(1 << 20, 1)).unwrap();
    let peer = reader(far, PAUSE);
    let waits = waits(|| {
        let fate = sender.wait(ticket, soon()).unwrap();
        assert!(matches!(fate, Fate::Released { .. }), "{fate:?}");
    });
    assert!(waits < MANY, "{waits}");
    assert!(sender.close(soon().unwrap()).drained);
    peer.join().unwrap();
}

#[test]
fn waiting_behind_a_hangup_does_not_spin() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(256 << 10, 2);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let ticket = sender.send(filled(pool.try_alloc(1).unwrap(), 256 << 10, 1)).unwrap();
    reset(far);
    // The notes of a reset come at once; make them late. All the while the socket hangs up.
    BLIND_UNTIL.set(soon());
    let waits = waits(|| {
        assert_eq!(sender.wait(ticket, Some(after(200))), Err(WaitError::TimedOut));
        BLIND_UNTIL.set(Some(after(200)));
        let fate = sender.wait(ticket, soon()).unwrap();
        assert!(matches!(fate, Fate::Released { .. }), "{fate:?}");
    });
    assert!(waits > 0 && waits < MANY, "{waits}");
    assert_all_home(&pool);
}

#[test]
fn waiting_for_packets_stuck_below_a_dead_connection_does_not_spin() {
    const NAME: &str = "waiting_for_packets_stuck_below_a_dead_connection_does_not_spin";
    if !plays("queue") {
        let Some(way) = network_namespace() else {
            return skip(NAME, "no network namespace can be had");
        };
        return must_succeed(again(way, NAME, "queue"));
    }
    raise_loopback();
    let tc = "qdisc add dev lo root tbf rate 100kbit burst 20kb latency 30s";
    let made = Command::new("tc").args(tc.split(' ')).output();
    if !made.as_ref().is_ok_and(|made| made.status.success()) {
        return skip(NAME, &format!("no queue can be made: {made:?}"));
    }
    let (near, _far) = pair();
    let pool = pool(16 << 10, 4);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    for seed in 0..4 {
        sender.send(filled(pool.try_alloc(1).unwrap(), 16 << 10, seed)).unwrap();
    }
    // The first packet leaves at once, the next ones wait in the queue for about a second. The
    // connection ends; packets in the queue keep their ids until they leave it.
    thread::sleep(Duration::from_millis(150));
    disconnect(&duplicate(&sender));
    let waits = waits(|| {
        let early = sender.drain(Some(after(200)));
        assert_eq!(early, Err(WaitError::TimedOut), "nothing was stuck: the test shows nothing");
        let census = common::census(&pool);
        assert!(census[2] > 0, "no early release: {census:?}");
        sender.drain(soon()).unwrap();
    });
    assert!(waits < MANY, "{waits}");
    assert_all_home(&pool);
}

fn disconnect(socket: &impl AsFd) {
    let none = libc::sockaddr { sa_family: libc::AF_UNSPEC as _, sa_data: [0; 14] };
    let len = size_of_val(&none) as libc::socklen_t;
    // SAFETY: connect(2) reads `len` bytes of the address, which outlives the call.
    let done = unsafe { libc::connect(socket.as_fd().as_raw_fd(), &raw const none, len) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

#[test]
fn a_half_that_waits_sleeps_through_what_the_other_half_sends() {
    const SENDS: usize = 1000;
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let (mut send, mut reap) = Sender::new(near).unwrap().split();
    let held = send.send(pattern(256 << 10, 1)).unwrap();
    let sends = thread::spawn(move || {
        for _ in 0..SENDS {
            send.try_send(&[7; 10][..]).unwrap();
            thread::sleep(Duration::from_micros(20));
        }
        // Ends the wait.
        reset(far);
        send
    });
    let waits = waits(|| {
        let fate = reap.wait(held, soon()).unwrap();
        assert!(matches!(fate, Fate::Released { .. }), "{fate:?}");
    });
    let _send = sends.join().unwrap();
    assert!(waits < SENDS / 4, "{waits} for {SENDS} sends");
}

#[test]
fn a_waiter_for_whom_nobody_looks_sleeps_between_its_looks() {
    alone(|| {
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(256 << 10, 1);
        let mut sender = common::zero_copy().adopt(near).unwrap();
        sender.send(filled(pool.try_alloc(1).unwrap(), 256 << 10, 1)).unwrap();
        let peer = reader(far, PAUSE);
        // The reaper cannot start.
        let hoard = hoard_descriptors(0);
        let before = LOOKS.get();
        let buf = pool.alloc(1).unwrap();
        let looks = LOOKS.get() - before;
        // One or two every five milliseconds; a starved machine lets few through even of a loop.
        assert!(looks > 3 && looks < MANY / 5, "{looks}");
        drop((hoard, buf));
        assert!(sender.close(soon().unwrap()).drained);
        assert_same(&peer.join().unwrap(), &pattern(256 << 10, 1));
    });
}

#[test]
fn the_reaper_does_not_spin() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let (dead_near, dead_far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(256 << 10, 2);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let mut dead = common::zero_copy().adopt(dead_near).unwrap();
    let send = |sender: &mut Sender<TcpStream>, seed| {
        sender.send(filled(pool.alloc(1).unwrap(), 256 << 10, seed)).unwrap()
    };
    // One socket has room all the while, the other hangs up.
    send(&mut sender, 1);
    send(&mut dead, 2);
    let before = REAPER_WAITS.load(Ordering::Relaxed);
    let peer = reader(far, PAUSE);
    reset(dead_far);
    let (first, _) = block_on(pool.alloc_async(1));
    let (second, _) = block_on(pool.alloc_async(1));
    drop((first.unwrap(), second.unwrap()));
    let waits = REAPER_WAITS.load(Ordering::Relaxed) - before;
    assert!(waits > 0 && waits < MANY, "{waits}");
    eventually("all slots are home", || pool.stats().free() == 2);
    assert!(sender.close(soon().unwrap()).drained);
    assert_same(&peer.join().unwrap(), &pattern(256 << 10, 1));
}

/// Drops senders of which each has bytes left that its peer has no room for.
fn drop_stalled(builder: SenderBuilder, count: usize) -> Vec<TcpStream> {
    let builder = builder.policy(Policy::Never);
    let data = pattern(4 << 20, 1);
    let peers = (0..count).map(|_| {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        builder.adopt(near).unwrap().try_send(data.clone()).unwrap();
        far
    });
    peers.collect()
}

#[test]
fn a_stalled_ending_sender_is_looked_at_ten_times_per_linger() {
    alone(|| {
        const COUNT: usize = 10;
        // Twice the fixed time between two looks, times ten: many more looks would be made by that.
        let linger = Duration::from_secs(4);
        let _peers = drop_stalled(Sender::builder().linger(linger), COUNT);
        assert!(wait_idle(soon().unwrap()), "the reset comes");
        let looks = REAPER_QUESTIONS.load(Ordering::Relaxed);
        // Some more at the begin, at the reset, and for news of the first segments.
        assert!((COUNT..20 * COUNT).contains(&looks), "{looks} looks at {COUNT} senders");
    });
}

#[test]
fn a_stalled_ending_sender_is_looked_at_once_a_second_at_most() {
    alone(|| {
        const COUNT: usize = 100;
        let begun = Instant::now();
        let peers = drop_stalled(Sender::builder(), COUNT);
        thread::sleep(Duration::from_secs(3));
        let looks = REAPER_QUESTIONS.load(Ordering::Relaxed);
        let seconds = begun.elapsed().as_secs() as usize;
        // Some more at the begin.
        assert!(looks >= COUNT && looks < COUNT * (seconds + 5), "{looks} looks in {seconds} s");
        peers.into_iter().for_each(reset);
        assert!(wait_idle(soon().unwrap()));
    });
}

/// How often this thread has slept.
fn sleeps() -> i64 {
    // SAFETY: all zero bytes are a value of a struct of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: getrusage(2) writes one `rusage`, which outlives the call.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) }, 0);
    usage.ru_nvcsw
}

#[test]
fn threads_in_wait_idle_sleep_until_the_last_sender_ends() {
    alone(|| {
        let mut peers = drop_stalled(Sender::builder(), 2);
        let waits: Vec<_> = (0..2)
            .map(|_| {
                thread::spawn(|| {
                    let before = sleeps();
                    assert!(wait_idle(soon().unwrap()), "the wait is woken");
                    sleeps() - before
                })
            })
            .collect();
        thread::sleep(PAUSE);
        reset(peers.pop().unwrap());
        thread::sleep(PAUSE);
        assert!(waits.iter().all(|wait| !wait.is_finished()), "one sender goes on");
        reset(peers.pop().unwrap());
        for wait in waits {
            // One sleep, and a few for locks and the start of the thread.
            let sleeps = wait.join().unwrap();
            assert!((1..20).contains(&sleeps), "{sleeps}");
        }
        assert!(!wait_idle_of_one_stalled(), "the deadline ends the wait");
    });
}

fn wait_idle_of_one_stalled() -> bool {
    let peers = drop_stalled(Sender::builder(), 1);
    let idle = wait_idle(after(50));
    peers.into_iter().for_each(reset);
    idle
}
