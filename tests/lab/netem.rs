//! Packets late, lost, doubled and out of order (`netem`), with a pool so small that every slot is
//! rewritten at its release. The peer compares byte for byte. The same traffic from one rewritten
//! buffer without the library arrives corrupt on each course.
//!
//! Devices without copies (`common/road.rs`) make all sends true zero copy, as the test checks.

#![cfg(target_os = "linux")]

use std::{
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    thread,
    time::Duration,
};

use pinbuf::{Fate, Policy, Sender, sender::SenderStats};

use crate::common::{
    again, become_ordinary, enable_zerocopy, filled, limit_memlock, must_succeed,
    namespace::in_a_namespace,
    pool, reset,
    road::{Peer, Road, Side, report, wrong},
    soon,
    source::Reused,
    test_of, wait_until_all_free,
};

/// The courses of the road. Without delay the kernel would read a buffer before any rewrite.
const COURSES: [&str; 5] = [
    "delay 20ms",
    "delay 10ms 5ms loss 3%",
    "delay 20ms 10ms duplicate 30%",
    "delay 10ms reorder 25% 50%",
    "delay 10ms 8ms loss 2% duplicate 20% reorder 20%",
];
const LEN: usize = 16 << 10;
const SLOTS: usize = 6;
const MESSAGES: usize = 64;
/// The receive buffer of a reading peer.
const MUCH: i32 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

fn sender(near: TcpStream) -> Sender<TcpStream> {
    Sender::builder().policy(Policy::Require).adopt(near).unwrap()
}

/// Sends as fast as slots are recycled.
fn send_all(sender: &mut Sender<TcpStream>) -> SenderStats {
    let pool = pool(LEN, SLOTS);
    for seed in 0..MESSAGES {
        sender.send(filled(pool.alloc(LEN).unwrap(), LEN, seed)).unwrap();
    }
    sender.drain(soon()).unwrap();
    wait_until_all_free(&pool);
    let stats = sender.stats();
    assert_eq!(stats.zero_copy_bytes + stats.copied_bytes, (LEN * MESSAGES) as u64);
    stats
}

/// Connects over every course of the road, to a peer that reads at once.
fn on_every_course(road: &Road, test: impl Fn(&str, TcpStream, Peer)) -> Result<(), String> {
    for course in COURSES {
        road.shape(course)?;
        let (near, far) = road.connect(MUCH);
        test(course, near, Peer::of(far, Duration::ZERO, PATIENCE));
    }
    Ok(())
}

#[test]
fn recycled_slots_arrive_intact_on_every_course() {
    in_a_namespace(|| {
        let road = Road::build()?;
        on_every_course(&road, |course, near, peer| {
            let mut sender = sender(near);
            let stats = send_all(&mut sender);
            assert!(sender.close(soon()).drained);
            let stream = peer.stream();
            let (messages, bytes) = wrong(&stream, LEN);
            report(&format!(
                "{course}: {messages} of {MESSAGES} messages corrupt, {bytes} wrong bytes; {} \
                 calls, {} copied late, {} notes",
                stats.zero_copy_calls, stats.deferred_copies, stats.notifications,
            ));
            assert_eq!((stream.len(), messages), (LEN * MESSAGES, 0));
            assert_eq!(stats.copied_calls, 0);
            assert!(road.copies() || stats.deferred_copies == 0, "{stats:?}");
        })
    });
}

#[test]
fn without_the_library_reused_buffers_arrive_corrupt() {
    in_a_namespace(|| {
        on_every_course(&Road::build()?, |course, near, peer| {
            enable_zerocopy(&near);
            let message = Reused::new(LEN);
            (0..MESSAGES).for_each(|seed| message.send(near.as_fd(), seed));
            drop(near);
            let stream = peer.stream();
            let (messages, bytes) = wrong(&stream, LEN);
            report(&format!(
                "{course}, reused at once: {messages} of {MESSAGES} messages corrupt, {bytes} \
                 wrong bytes"
            ));
            assert_eq!(
                stream.len(),
                LEN * MESSAGES,
                "the corrupt stream is delivered as valid data"
            );
            assert!(messages > MESSAGES / 2, "only {messages}");
        })
    });
}

#[test]
fn a_queued_clone_releases_its_send_after_later_sends() {
    const SENDS: usize = 96;
    /// The smallest zero-copy send: three packets.
    const ONE: usize = 4096;
    in_a_namespace(|| {
        let road = Road::build()?;
        // Acknowledged at once, while the second copy of the packet still waits.
        road.shape_from(Side::Sender, "delay 40ms 39ms duplicate 60%")?;
        road.shape_from(Side::Receiver, "delay 0ms")?;
        let (near, far) = road.connect(MUCH);
        let peer = Peer::of(far, Duration::ZERO, PATIENCE);
        // No send waits for the acknowledgement of the previous send.
        near.set_nodelay(true).unwrap();
        let builder = Sender::builder().policy(Policy::Require).threshold_bytes(ONE);
        let mut sender = builder.adopt(near).unwrap();
        let pool = pool(ONE, SENDS);
        let (mut tickets, mut overtaken) = (Vec::new(), [false; SENDS]);
        for seed in 0..SENDS + 20 {
            if seed < SENDS {
                tickets.push(sender.send(filled(pool.alloc(ONE).unwrap(), ONE, seed)).unwrap());
            }
            thread::sleep(Duration::from_millis(10));
            sender.reap().unwrap();
            let released = |at: usize| sender.fate(tickets[at]).unwrap().is_some();
            let last = (0..tickets.len()).rfind(|at| released(*at)).unwrap_or(0);
            (0..last).filter(|at| !released(*at)).for_each(|at| overtaken[at] = true);
        }
        let overtaken = overtaken.iter().filter(|overtaken| **overtaken).count();
        sender.drain(soon()).unwrap();
        wait_until_all_free(&pool);
        let stats = sender.stats();
        assert!(sender.close(soon()).drained);
        let stream = peer.stream();
        report(&format!(
            "delay 40ms 39ms duplicate 60%: {overtaken} of {SENDS} sends released after a later \
             one; {} calls, {} copied late, {} notes",
            stats.zero_copy_calls, stats.deferred_copies, stats.notifications,
        ));
        assert_eq!((stream.len(), wrong(&stream, ONE).0), (ONE * SENDS, 0));
        assert_eq!(stats.copied_calls, 0);
        assert!(overtaken > 0, "the releases came in order");
        Ok(())
    });
}

#[test]
fn a_reset_settles_every_send_and_frees_every_slot() {
    in_a_namespace(|| {
        let road = Road::build()?;
        for (round, course) in COURSES.iter().enumerate() {
            road.shape(course)?;
            let (near, mut far) = road.connect(MUCH);
            let mut sender = sender(near);
            let pool = pool(LEN, SLOTS);
            let quota = (2 + 3 * round) * LEN;
            let peer = thread::spawn(move || {
                far.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut got = vec![0; quota];
                std::io::Read::read_exact(&mut far, &mut got).unwrap();
                reset(far);
                got
            });
            let mut tickets = Vec::new();
            for seed in 0..MESSAGES {
                match sender.send(filled(pool.alloc(LEN).unwrap(), LEN, seed)) {
                    Ok(ticket) => tickets.push(ticket),
                    Err(_) => break,
                }
            }
            let stream = peer.join().unwrap();
            let fates = tickets.iter().map(|ticket| sender.wait(*ticket, soon()).unwrap());
            let fates: Vec<_> = fates.collect();
            let released =
                fates.iter().filter(|fate| matches!(fate, Fate::Released { .. })).count();
            let truncated =
                fates.iter().filter(|fate| matches!(fate, Fate::Truncated { .. })).count();
            report(&format!("{course}, reset: {released} sends released, {truncated} truncated"));
            assert_eq!(released + truncated, tickets.len(), "{fates:?}");
            assert!(tickets.len() < MESSAGES, "no reset came");
            assert_eq!(wrong(&stream, LEN), (0, 0));
            drop(sender);
            assert!(pinbuf::reaper::wait_idle(soon()));
            wait_until_all_free(&pool);
        }
        Ok(())
    });
}

#[test]
fn an_ordinary_user_with_little_memlock_sends_all_bytes() {
    let name = test_of(&|| ());
    const LIMIT: u64 = 64 << 10;
    let part = std::env::var("PINBUF_TEST_PART").unwrap_or_default();
    if let Ok(address) = part.parse::<SocketAddr>() {
        // As root, other processes use up the same limit.
        let alone = become_ordinary();
        assert!(limit_memlock(LIMIT));
        let mut sender = sender(TcpStream::connect(address).unwrap());
        let stats = send_all(&mut sender);
        report(&format!(
            "an ordinary user with {LIMIT} bytes of locked memory: {} calls without copy, {} by copy, {} \
             refused",
            stats.zero_copy_calls, stats.copied_calls, stats.no_bufs_memlock,
        ));
        assert!(!alone || stats.zero_copy_calls > 0, "{stats:?}");
        assert!(sender.close(soon()).drained);
        return;
    }
    in_a_namespace(|| {
        let road = Road::build()?;
        road.shape(COURSES[0])?;
        let listener = road.listener();
        let address = listener.local_addr().unwrap();
        let peer = thread::spawn(move || {
            Peer::of(listener.accept().unwrap().0, Duration::ZERO, PATIENCE).stream()
        });
        must_succeed(again(&[], name, &address.to_string()));
        let stream = peer.join().unwrap();
        assert_eq!((stream.len(), wrong(&stream, LEN)), (LEN * MESSAGES, (0, 0)));
        Ok(())
    });
}
