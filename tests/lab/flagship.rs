//! A stalled peer, lost or queued packets, and then the end of the sender; every slot that the pool
//! calls Free is overwritten at once. The peer's stream, compared byte for byte, must show none of
//! that. The same traffic without the library, closed or aborted and overwritten at once, arrives
//! corrupt.
//!
//! Both ends are in private network namespaces, joined by two devices (`common/road.rs`).
//!
//! An abort without queued packets has no control: the kernel drops all data before `connect`
//! returns, and no later contents can leave.

#![cfg(target_os = "linux")]

use std::{
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use pinbuf::{
    PinnedBuf, Policy, Pool, Sender,
    pool::{Backing, Pages},
    sender::CloseReport,
};

use crate::common::{
    assert_all_free, disconnect, eventually, filled,
    namespace::in_a_namespace,
    option, plays,
    reserve::Reserve,
    reset,
    road::{Peer, Road, Side, report, wrong},
    set_option,
    source::{Loop, Rule, Source},
    test_of, unacked, within,
};

// The library's side.

/// Takes every available slot at once, overwrites it, and keeps it.
struct Scribbler {
    taken: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<PinnedBuf>>,
}

impl Scribbler {
    fn on(pool: &Pool) -> Self {
        let (taken, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (pool, count, stopped) = (pool.clone(), Arc::clone(&taken), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut bufs = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                while let Ok(mut buf) = pool.try_alloc(1) {
                    buf.resize(buf.capacity(), 0xDD);
                    bufs.push(buf);
                    count.store(bufs.len(), Ordering::Relaxed);
                }
                thread::sleep(Duration::from_micros(100));
            }
            bufs
        });
        Self { taken, stop, thread }
    }

    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Returns all slots.
    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.join().unwrap());
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// With enough time.
    Close,
    /// With a deadline during the peer's stall.
    CloseInHaste,
    Abort,
    /// The peer continues within the linger time.
    Drop,
    /// The peer does not.
    DropInHaste,
}

impl End {
    /// Returns `true` if the connection is aborted.
    fn aborts(self) -> bool {
        !matches!(self, Self::Close | Self::Drop)
    }

    fn linger(self) -> Duration {
        if self == Self::DropInHaste { Duration::from_millis(20) } else { Duration::from_secs(30) }
    }

    fn bring_about(self, sender: Sender<TcpStream>) -> Option<CloseReport> {
        match self {
            Self::Close => Some(sender.close(within(60_000))),
            Self::CloseInHaste => Some(sender.close(within(20))),
            Self::Abort => Some(sender.abort()),
            Self::Drop | Self::DropInHaste => {
                drop(sender);
                None
            }
        }
    }
}

fn sender(near: TcpStream, end: End) -> Sender<TcpStream> {
    set_option(&near, libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"reno");
    Sender::builder().policy(Policy::Require).linger(end.linger()).adopt(near).unwrap()
}

fn pool(len: usize, slots: usize, pages: Pages) -> Result<Pool, String> {
    let pool = Pool::builder().class(len, slots).backing(Backing::Require(pages)).build();
    pool.map_err(|error| error.to_string())
}

/// Sends `count` messages from as many slots, without copies.
fn send_all(sender: &mut Sender<TcpStream>, pool: &Pool, len: usize, count: usize) {
    for seed in 0..count {
        sender.send(filled(pool.try_alloc(len).unwrap(), len, seed)).unwrap();
    }
    let stats = sender.stats();
    assert_eq!((stats.zero_copy_bytes, stats.copied_bytes), ((len * count) as u64, 0));
}

// The same without the library.

/// Sends messages without copies, ends the connection, and overwrites their memory at once.
fn raw(near: TcpStream, len: usize, count: usize, end: impl FnOnce(TcpStream)) {
    set_option(&near, libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"reno");
    let mut control = Loop::over(near, Rule::Sent);
    (0..count).for_each(|seed| control.send(seed, len));
    control.end(end);
}

// Loss.

const SMALL: usize = 16 << 10;
const MESSAGES: usize = 32;
/// The receive buffer of a stalled peer: a few KiB.
const LITTLE: i32 = 20_000;
const STALL: Duration = Duration::from_millis(300);

fn losing(side: Side) -> Result<(), String> {
    let road = Road::build()?;
    road.lose(side, 10)?;
    for end in [End::Close, End::CloseInHaste, End::Abort, End::Drop, End::DropInHaste] {
        let (near, far) = road.connect(LITTLE);
        let pool = pool(SMALL, MESSAGES, Pages::Base).unwrap();
        let patience = Duration::from_millis(if end.aborts() { 1500 } else { 30_000 });
        let mut sender = sender(near, end);
        send_all(&mut sender, &pool, SMALL, MESSAGES);
        let scribbler = Scribbler::on(&pool);
        let in_flight = sender.stats().leases;
        assert!(in_flight > MESSAGES / 2, "only {in_flight} in flight");
        // Aborted sends are read afterwards: on a slow machine all bytes could arrive before.
        let peer = (!end.aborts()).then(|| Peer::of(far.try_clone().unwrap(), STALL, patience));
        let closed = end.bring_about(sender);
        eventually("every slot is free", || scribbler.taken() == MESSAGES);
        let peer = peer.unwrap_or_else(|| Peer::of(far, Duration::ZERO, patience));
        let stream = peer.stream();
        assert!(pinbuf::reaper::wait_idle(Some(Duration::from_secs(30))));
        scribbler.stop();
        assert_all_free(&pool);
        assert_eq!(pool.stats().replaced_bytes, 0);
        let (messages, bytes) = wrong(&stream, SMALL);
        report(&format!(
            "loss on the {side:?}'s side, {end:?}: {in_flight} in flight, {bytes} wrong of {} bytes",
            stream.len()
        ));
        assert_eq!((messages, bytes), (0, 0));
        if end.aborts() {
            assert!(stream.len() < SMALL * MESSAGES, "the stream is whole");
        } else {
            assert_eq!(stream.len(), SMALL * MESSAGES);
        }
        if let Some(closed) = closed {
            assert_eq!((closed.drained, closed.aborted), (!end.aborts(), end.aborts()));
        }
    }
    let (near, far) = road.connect(LITTLE);
    raw(near, SMALL, MESSAGES, drop);
    let stream = Peer::of(far, Duration::ZERO, Duration::from_secs(30)).stream();
    let (messages, bytes) = wrong(&stream, SMALL);
    report(&format!(
        "loss on the {side:?}'s side, close(2) without the library: {messages} of {MESSAGES} \
         messages corrupt, {bytes} wrong of {} bytes",
        stream.len()
    ));
    assert_eq!(stream.len(), SMALL * MESSAGES, "the corrupt stream is delivered as valid data");
    assert!(messages > MESSAGES / 2);
    Ok(())
}

#[test]
fn loss_at_the_sender_corrupts_no_byte_of_any_end() {
    in_a_namespace(|| losing(Side::Sender));
}

#[test]
fn loss_at_the_receiver_corrupts_no_byte_of_any_end() {
    in_a_namespace(|| losing(Side::Receiver));
}

// Packets in a queue below TCP.

const LARGE: usize = 64 << 10;
const SENT: usize = 12;
/// Enough slots for the former pages of all sends in flight.
const SLOTS: usize = 4 * SENT;
/// The receive buffer of a reading peer.
const MUCH: i32 = 1 << 20;

/// A sender with packets in a queue below TCP.
fn queued(road: &Road, pool: &Pool, end: End) -> (Sender<TcpStream>, Peer) {
    let (near, far) = road.connect(MUCH);
    road.block().unwrap();
    let mut sender = sender(near, end);
    let peer = Peer::of(far, Duration::ZERO, Duration::from_secs(5));
    send_all(&mut sender, pool, LARGE, SENT);
    assert_eq!(pool.stats().in_flight(), SENT);
    assert!(unacked(&sender) > LARGE as u64);
    assert_eq!(option(&sender, libc::SOL_SOCKET, libc::SO_ERROR), 0);
    (sender, peer)
}

/// Empties the queue: the peer gets the queued bytes, and they are right.
fn open_the_queue(road: &Road, what: &str, pool: &Pool, scribbler: Scribbler, peer: Peer) {
    let before = peer.received();
    road.unblock();
    assert!(pinbuf::reaper::wait_idle(Some(Duration::from_secs(30))));
    eventually("every slot is free", || scribbler.taken() == SLOTS);
    let stream = peer.stream();
    scribbler.stop();
    assert_all_free(pool);
    assert_eq!(pool.stats().replaced_bytes, 0);
    let (messages, bytes) = wrong(&stream, LARGE);
    report(&format!(
        "{what}: {bytes} wrong of {} bytes, {before} of them received before",
        stream.len()
    ));
    assert_eq!((messages, bytes), (0, 0));
    assert!(stream.len() > before, "the queue was empty");
}

#[test]
fn a_slot_with_queued_packets_is_reusable_at_once() {
    in_a_namespace(|| {
        let road = Road::build()?;
        road.block()?;
        for pages in [Pages::Base, Pages::Thp] {
            for end in [End::Abort, End::CloseInHaste, End::DropInHaste] {
                road.unblock();
                let pool = match pool(LARGE, SLOTS, pages) {
                    Ok(pool) => pool,
                    Err(error) => return Err(format!("{pages}: {error}")),
                };
                let (sender, peer) = queued(&road, &pool, end);
                let scribbler = Scribbler::on(&pool);
                let closed = end.bring_about(sender);
                eventually("every slot is free", || scribbler.taken() == SLOTS);
                let held = pool.stats().replaced_bytes;
                let owned = pinbuf::reaper::stats().owned;
                let what = format!("queue, {pages}, {end:?}");
                report(&format!("{what}: all usable, {held} bytes replaced"));
                // The queue still has packets: their ids are not released, and the reaper waits.
                assert!(held >= LARGE, "{held} bytes");
                assert_eq!(owned, 1);
                if let Some(closed) = closed {
                    assert!(closed.aborted && closed.quarantined > 0, "{closed:?}");
                }
                open_the_queue(&road, &what, &pool, scribbler, peer);
            }
        }
        Ok(())
    });
}

#[test]
fn queued_hugetlb_slots_stay_quarantined_until_the_proof() {
    // Of the first process: a user namespace has no right to change the reserve.
    let _reserve = (!plays(test_of(&|| ()))).then(|| Reserve::add(4));
    in_a_namespace(|| {
        let road = Road::build()?;
        road.block()?;
        for end in [End::Abort, End::DropInHaste] {
            road.unblock();
            let pool = pool(LARGE, SLOTS, Pages::HugeTlb { page_bytes: Reserve::PAGE })?;
            let (sender, peer) = queued(&road, &pool, end);
            let scribbler = Scribbler::on(&pool);
            end.bring_about(sender);
            eventually("a slot is quarantined", || pool.stats().quarantined() > 0);
            let quarantined = || pool.stats().quarantined();
            eventually("all other slots are overwritten", || {
                scribbler.taken() == SLOTS - quarantined()
            });
            // The slots stay quarantined.
            thread::sleep(Duration::from_millis(300));
            let (stats, quarantined) = (pool.stats(), quarantined());
            assert!(quarantined > 0);
            assert_eq!(stats.replaced_bytes, 0);
            assert_eq!((scribbler.taken(), stats.in_flight()), (SLOTS - quarantined, 0));
            let what = format!("queue, hugetlb, {end:?}");
            report(&format!("{what}: {quarantined} slots quarantined"));
            open_the_queue(&road, &what, &pool, scribbler, peer);
        }
        Ok(())
    });
}

#[test]
fn without_the_library_queued_packets_leave_corrupt() {
    in_a_namespace(|| {
        let road = Road::build()?;
        road.block()?;
        let end: fn(TcpStream) = |near| {
            disconnect(&near);
            // Keeping the descriptor does not help.
            std::mem::forget(near);
        };
        for (how, end) in [("disconnected", end), ("closed", drop), ("closed with a reset", reset)]
        {
            road.unblock();
            let (near, far) = road.connect(MUCH);
            road.block().unwrap();
            let peer = Peer::of(far, Duration::ZERO, Duration::from_secs(5));
            raw(near, LARGE, SENT, end);
            let before = peer.received();
            road.unblock();
            let stream = peer.stream();
            let (messages, bytes) = wrong(&stream, LARGE);
            report(&format!(
                "queue, {how} without the library: {messages} messages corrupt, {bytes} wrong of {} \
             bytes, {before} of them received before",
                stream.len()
            ));
            assert!(messages > 0, "{how}: {bytes} wrong bytes");
        }
        Ok(())
    });
}
