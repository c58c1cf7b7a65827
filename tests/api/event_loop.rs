//! A sender in an event loop: `event_fd` misses nothing and does not spin, by levels and by edges.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::{
    io::Read,
    net::TcpStream,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use pinbuf::{Policy, SendError, Sender};

use crate::{
    calls,
    common::{
        STALLED, TIGHT, assert_arrived, closed_window, eventually, has_error, pair, pair_at,
        pattern, reader, reset, soon, zero_copy,
    },
};

const LEN: usize = 50_000;
const COUNT: usize = 40;

/// The loop of a program.
trait Loop {
    fn new(watched: BorrowedFd<'_>) -> Self;

    /// Waits until the descriptor is readable. Returns `false` after `timeout_ms`.
    fn wait(&self, timeout_ms: i32) -> bool;
}

/// `poll(2)`.
struct Levels(OwnedFd);

impl Loop for Levels {
    fn new(watched: BorrowedFd<'_>) -> Self {
        Self(watched.try_clone_to_owned().unwrap())
    }

    fn wait(&self, timeout_ms: i32) -> bool {
        let mut entry = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: poll(2) reads and writes one entry, alive during the call.
        unsafe { libc::poll(&raw mut entry, 1, timeout_ms) == 1 }
    }
}

/// `epoll(7)` by edges, as mio and tokio.
struct Edges {
    epoll: OwnedFd,
    _watched: OwnedFd,
}

impl Loop for Edges {
    fn new(watched: BorrowedFd<'_>) -> Self {
        let watched = watched.try_clone_to_owned().unwrap();
        // SAFETY: epoll_create1(2) takes no pointers.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        assert!(epoll >= 0);
        // SAFETY: the descriptor is new, and has no owner yet.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        let events = (libc::EPOLLIN | libc::EPOLLET) as u32;
        let mut event = libc::epoll_event { events, u64: 0 };
        let (fd, add) = (watched.as_raw_fd(), libc::EPOLL_CTL_ADD);
        // SAFETY: epoll_ctl(2) reads one event, alive during the call.
        assert_eq!(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), add, fd, &raw mut event) }, 0);
        Self { epoll, _watched: watched }
    }

    fn wait(&self, timeout_ms: i32) -> bool {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: epoll_wait(2) writes at most one event, alive during the call.
        unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), &raw mut event, 1, timeout_ms) == 1 }
    }
}

/// The length of a wait that has missed the news.
const HANG_MS: i32 = 30_000;

/// Sends `COUNT` buffers, in a loop that waits for the descriptor alone, and then for all releases.
/// Returns the turns of the loop.
fn send_all<L: Loop>(sender: &mut Sender<TcpStream>) -> usize {
    let events = L::new(sender.event_fd().unwrap());
    let mut turns = 0;
    let mut turn = |sender: &mut Sender<TcpStream>| {
        assert!(events.wait(HANG_MS), "news was missed: {sender:?}");
        turns += 1;
        sender.reap().unwrap()
    };
    for seed in 0..COUNT {
        let mut buf = pattern(LEN, seed);
        while let Err(error) = sender.try_send(buf) {
            let SendError::WouldBlock(refused) = error else { panic!("{error}") };
            buf = refused;
            turn(sender);
        }
    }
    let mut is_unsent = sender.reap().unwrap().unsent;
    while is_unsent || sender.stats().in_flight_calls > 0 {
        is_unsent = turn(sender).unsent;
    }
    // No lasting state ends a wait.
    let mut rest = 0;
    while events.wait(0) {
        sender.reap().unwrap();
        rest += 1;
    }
    assert!(rest <= 3, "{rest} turns without news");
    turns
}

fn everything_arrives<L: Loop>() {
    for builder in [zero_copy().max_in_flight_sends(2), zero_copy(), Sender::builder()] {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let mut sender = builder.adopt(near).unwrap();
        let peer = reader(far, Duration::ZERO);
        let turns = send_all::<L>(&mut sender);
        // At most one for each acknowledgement and each notification; a loop that spins turns a
        // hundred thousand times a second.
        assert!(turns < COUNT * LEN / 1000, "{turns}");
        assert!(sender.close(soon()).drained);
        assert_arrived(&peer.join().unwrap(), LEN, COUNT);
    }
}

#[test]
fn a_loop_by_levels_sends_everything_without_spinning() {
    everything_arrives::<Levels>();
}

#[test]
fn a_loop_by_edges_sends_everything_without_spinning() {
    everything_arrives::<Edges>();
}

fn a_dead_connection_is_told_once<L: Loop>() {
    for builder in [Sender::builder(), zero_copy(), Sender::builder().policy(Policy::Never)] {
        let (near, far) = pair();
        let mut sender = builder.adopt(near).unwrap();
        let events = L::new(sender.event_fd().unwrap());
        sender.try_send(pattern(LEN, 1)).unwrap();
        reset(far);
        let mut turns = 0;
        while sender.connection_error().is_none() {
            assert!(events.wait(HANG_MS), "the reset was missed");
            sender.reap().unwrap();
            turns += 1;
        }
        while sender.stats().in_flight_calls > 0 {
            assert!(events.wait(HANG_MS), "a release was missed");
            sender.reap().unwrap();
        }
        let mut rest = 0;
        while events.wait(0) {
            let _ = sender.reap();
            rest += 1;
        }
        assert!(turns < 10 && rest <= 2, "{turns} and {rest}");
        assert!(has_hangup(&sender), "the state of the socket lasts");
    }
}

fn has_hangup(socket: &impl AsFd) -> bool {
    let mut entry = libc::pollfd { fd: socket.as_fd().as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: poll(2) reads and writes one entry, alive during the call.
    unsafe { libc::poll(&raw mut entry, 1, 0) == 1 && entry.revents & libc::POLLHUP != 0 }
}

#[test]
fn a_dead_connection_does_not_keep_a_loop_busy() {
    a_dead_connection_is_told_once::<Levels>();
    a_dead_connection_is_told_once::<Edges>();
}

#[test]
fn an_unread_notification_makes_the_descriptor_readable_once() {
    let (near, far) = pair();
    let mut sender = zero_copy().adopt(near).unwrap();
    let events = Levels::new(sender.event_fd().unwrap());
    sender.reap().unwrap();
    assert!(!events.wait(0), "nothing is in flight");
    sender.try_send(pattern(LEN, 1)).unwrap();
    assert!(events.wait(HANG_MS));
    assert!(has_error(&sender));
    assert_eq!(sender.reap().unwrap().messages, 1);
    assert!(!events.wait(0), "the notification is read");
    drop(far);
}

static NEAR: AtomicI32 = AtomicI32::new(-1);
static FAR: AtomicI32 = AtomicI32::new(-1);

/// Reads the stalled peer's bytes until a notification has arrived.
fn let_a_notification_arrive(_: i32) {
    calls::after_empty_looks(None);
    // SAFETY: the test holds both descriptors.
    let near = unsafe { BorrowedFd::borrow_raw(NEAR.load(Ordering::Relaxed)) };
    // SAFETY: as above.
    let far = unsafe { BorrowedFd::borrow_raw(FAR.load(Ordering::Relaxed)) };
    let mut far = TcpStream::from(far.try_clone_to_owned().unwrap());
    far.set_nonblocking(true).unwrap();
    eventually("a notification", || {
        let _ = far.read(&mut [0; 64 << 10]);
        has_error(&near)
    });
}

/// The steps of a missed wake-up: `reap` finds the error queue empty, a notification arrives, and
/// only then the news is taken.
#[test]
fn a_notification_that_arrives_during_a_reap_ends_the_next_wait() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = zero_copy().adopt(near).unwrap();
    let events = Levels::new(sender.event_fd().unwrap());
    let len = 1 << 20;
    sender.try_send(pattern(len, 1)).unwrap();
    closed_window(&sender);
    // The part in the peer's buffer is released by now.
    while events.wait(100) {
        sender.reap().unwrap();
    }
    assert!(sender.stats().in_flight_calls > 0, "the stalled part is in flight");
    NEAR.store(sender.as_fd().as_raw_fd(), Ordering::Relaxed);
    FAR.store(far.as_raw_fd(), Ordering::Relaxed);
    calls::after_empty_looks(Some(let_a_notification_arrive));
    assert_eq!(sender.reap().unwrap().messages, 0, "the notification came too late");
    assert!(events.wait(0), "the notification is forgotten");
    assert!(sender.reap().unwrap().messages > 0);
    let _ = sender.abort();
}

/// A reading of the error queue is bounded. The remaining notifications are news again.
#[test]
fn notifications_beyond_one_reading_end_the_next_wait() {
    let (near, far) = pair();
    let mut sender = zero_copy().threshold_bytes(1).adopt(near).unwrap();
    let peer = reader(far, Duration::ZERO);
    let events = Levels::new(sender.event_fd().unwrap());
    for seed in 0..COUNT {
        sender.send(pattern(LEN, seed)).unwrap();
    }
    while sender.stats().in_flight_calls > 0 {
        assert!(events.wait(HANG_MS), "news was missed");
        sender.reap().unwrap();
    }
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, COUNT);
}

#[test]
fn the_descriptor_is_made_once_and_closed_on_exec() {
    let (near, _far) = pair();
    let sender = Sender::new(near).unwrap();
    let fd = sender.event_fd().unwrap().as_raw_fd();
    assert_eq!(sender.event_fd().unwrap().as_raw_fd(), fd);
    // SAFETY: F_GETFD of fcntl(2) takes no pointers.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, libc::FD_CLOEXEC);
}
