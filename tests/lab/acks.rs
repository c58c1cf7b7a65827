//! The exact release of acknowledged bytes: a peer that answers on command, behind a device that
//! never copies.

use std::{
    io::Read,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use pinbuf::Sender;

use crate::{
    common::{
        after, eventually,
        namespace::in_a_namespace,
        pattern, random, retransmissions,
        road::{Road, report, wrong},
        seed, set_option,
        source::{Library, Loop, Rule, Source, expect, hold},
        unacked, unsent, within,
    },
    fake_peer::{self, DEVICE, FakePeer},
    sniffer::{Sniffer, sniff, sniff_arrivals, sniff_far},
};

const LEN: usize = 4096;
const MESSAGES: usize = 3;
const ALL: u64 = (LEN * MESSAGES) as u64;
/// The first retransmissions come after 200 ms; the end of a stream is retransmitted before others.
const RETRANSMITTED_MS: u64 = 700;

/// A course of events for a source. The error reports memory overwritten while its id was
/// outstanding, or not overwritten after its release.
type Course = fn(&mut dyn Source, &mut FakePeer) -> Result<(), String>;

fn send_all(source: &mut dyn Source) {
    (0..MESSAGES).for_each(|seed| source.send(seed, LEN));
}

fn library(course: Course) -> Library<TcpStream> {
    let (near, mut peer) = FakePeer::connect();
    let mut library = Library::over(near, Sender::builder(), LEN, MESSAGES);
    assert_eq!(course(&mut library, &mut peer), Ok(()));
    library
}

/// The control: a loop that overwrites sent memory must be seen to do so too early.
fn control(course: Course) {
    let (near, mut peer) = FakePeer::connect();
    let result = course(&mut Loop::over(near, Rule::Sent), &mut peer);
    report(&format!("without the library: {}", result.expect_err("the check cannot fail")));
}

/// Runs the library and the control.
fn library_and_control(course: Course) -> Library<TcpStream> {
    let library = library(course);
    control(course);
    library
}

#[test]
fn a_send_is_released_uncopied_with_its_last_byte() {
    fn course(source: &mut dyn Source, peer: &mut FakePeer) -> Result<(), String> {
        send_all(source);
        [(0, 0), (2048, 0), (4095, 0), (4096, 1), (12_287, 2), (12_288, 3)]
            .map(|(acked, released)| {
                peer.ack(acked);
                expect(source, released, &format!("{acked} bytes acknowledged"))
            })
            .into_iter()
            .collect()
    }
    in_a_namespace(|| {
        fake_peer::furnish()?;
        let stats = library_and_control(course).sender.stats();
        assert_eq!((stats.notifications, stats.zero_copy_calls, stats.deferred_copies), (3, 3, 0));
        Ok(())
    });
}

#[test]
fn a_send_of_several_calls_is_released_with_its_last_byte() {
    /// More than two of the sender's calls.
    const HUGE: usize = (5 << 20) / 2;
    fn course(source: &mut dyn Source, peer: &mut FakePeer) -> Result<(), String> {
        source.send(0, HUGE);
        let mut held = Ok(());
        let deadline = after(60_000);
        loop {
            let acked = peer.ack_sent(&source.socket());
            if acked == HUGE as u64 {
                return held.and(expect(source, 1, "all acknowledged"));
            }
            held = held.and(expect(source, 0, &format!("{acked} bytes acknowledged")));
            assert!(Instant::now() < deadline, "stuck at {acked}");
        }
    }
    in_a_namespace(|| {
        fake_peer::furnish()?;
        let (near, mut peer) = FakePeer::connect();
        let mut library = Library::over(near, Sender::builder(), HUGE, 1);
        assert_eq!(course(&mut library, &mut peer), Ok(()));
        let stats = library.sender.stats();
        assert!(stats.zero_copy_calls > 2 && stats.copied_calls == 0, "{stats:?}");
        control(course);
        Ok(())
    });
}

#[test]
fn a_reset_releases_everything_at_once() {
    fn course(source: &mut dyn Source, peer: &mut FakePeer) -> Result<(), String> {
        send_all(source);
        peer.ack(LEN as u64);
        let before = hold(source, 1, 100, "before the reset");
        peer.reset();
        before.and(expect(source, MESSAGES, "after the reset"))
    }
    in_a_namespace(|| {
        fake_peer::furnish()?;
        assert_eq!(library_and_control(course).sender.stats().deferred_copies, 0);
        Ok(())
    });
}

/// Acknowledges the first message, and takes no others.
fn send_into_closed_window(source: &mut dyn Source, peer: &mut FakePeer) {
    source.send(0, LEN);
    peer.ack_and_close_window(LEN as u64);
    eventually("the window is closed", || unacked(&source.socket()) == 0);
    (1..MESSAGES).for_each(|seed| source.send(seed, LEN));
    assert_eq!(unsent(&source.socket()), ALL - LEN as u64);
}

#[test]
fn a_closed_window_holds_sends_until_it_opens() {
    fn course(source: &mut dyn Source, peer: &mut FakePeer) -> Result<(), String> {
        send_into_closed_window(source, peer);
        let closed = hold(source, 1, 500, "the window closed");
        peer.ack(LEN as u64);
        let open = hold(source, 1, 100, "the window open, nothing acknowledged");
        peer.ack_sent(&source.socket());
        closed.and(open).and(expect(source, MESSAGES, "all acknowledged"))
    }
    in_a_namespace(|| {
        fake_peer::furnish()?;
        library_and_control(course);
        Ok(())
    });
}

/// Milliseconds until the kernel gives up the peer.
const USER_TIMEOUT: i32 = 1500;

fn set_user_timeout(source: &dyn Source) {
    set_option(&source.socket(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &USER_TIMEOUT);
}

fn assert_timed_out(library: &mut Library<TcpStream>) {
    library.sender.try_send(&b"more"[..]).unwrap_err();
    let error = library.sender.connection_error().expect("the connection is over");
    assert_eq!(error.raw(), libc::ETIMEDOUT);
}

#[test]
fn a_vanished_peer_holds_all_sends_until_the_user_timeout() {
    fn course(source: &mut dyn Source, _peer: &mut FakePeer) -> Result<(), String> {
        set_user_timeout(source);
        send_all(source);
        let held = hold(source, 0, 500, "nothing acknowledged");
        held.and(expect(source, MESSAGES, "given up"))
    }
    in_a_namespace(|| {
        fake_peer::furnish()?;
        assert_timed_out(&mut library_and_control(course));
        Ok(())
    });
}

#[test]
fn a_closed_window_holds_all_sends_until_the_user_timeout() {
    fn course(source: &mut dyn Source, peer: &mut FakePeer) -> Result<(), String> {
        set_user_timeout(source);
        send_into_closed_window(source, peer);
        let held = hold(source, 1, 500, "the window closed");
        // The peer answers every probe.
        for _ in 0..100 {
            peer.ack_and_close_window(LEN as u64);
            thread::sleep(Duration::from_millis(50));
            if source.reuse().len() == MESSAGES {
                break;
            }
        }
        held.and(expect(source, MESSAGES, "given up"))
    }
    in_a_namespace(|| {
        fake_peer::furnish()?;
        assert_timed_out(&mut library_and_control(course));
        Ok(())
    });
}

#[test]
fn max_hold_ends_an_undriven_connection_on_time() {
    in_a_namespace(|| {
        fake_peer::furnish()?;
        let limit = Duration::from_millis(400);
        let (near, _peer) = FakePeer::connect();
        let mut library = Library::over(near, Sender::builder().max_hold(limit), LEN, MESSAGES);
        let end = Instant::now() + limit;
        send_all(&mut library);
        eventually("a slot is overwritten", || !library.slots.reuse().is_empty());
        assert!(Instant::now() >= end, "the connection ended early");
        assert_eq!(expect(&mut library, MESSAGES, "given up"), Ok(()));
        assert_timed_out(&mut library);
        let (near, _peer) = FakePeer::connect();
        let mut control = Loop::over(near, Rule::Sent);
        send_all(&mut control);
        assert!(!control.reuse().is_empty(), "at once");
        Ok(())
    });
}

#[test]
fn retransmissions_under_a_tap_carry_the_sent_bytes() {
    fn course(source: &mut dyn Source, peer: &mut FakePeer) -> Result<(), String> {
        send_all(source);
        let held = hold(source, 0, RETRANSMITTED_MS, "nothing acknowledged");
        peer.ack(ALL);
        held.and(expect(source, MESSAGES, "all acknowledged"))
    }
    in_a_namespace(|| {
        fake_peer::furnish()?;
        let (library, seen) = sniff(DEVICE, || library(course));
        assert_eq!(library.sender.stats().deferred_copies, 3, "the tap has the kernel copy");
        assert!(seen.packets > MESSAGES, "no packet was sent twice: {seen:?}");
        assert_eq!(seen.overwritten, 0, "{seen:?}");
        let ((), early) = sniff(DEVICE, || control(course));
        report(&format!("a tap sees {seen:?}; without the library {early:?}"));
        assert!(early.overwritten > 0, "{early:?}");
        Ok(())
    });
}

#[test]
fn no_packet_is_sent_from_memory_freed_by_an_end() {
    in_a_namespace(|| {
        fake_peer::furnish()?;
        let ends: [fn(Sender<TcpStream>); 3] = [
            |sender| assert!(sender.abort().unacked_bytes == Some(ALL as usize)),
            |sender| assert!(sender.close(within(50)).aborted),
            drop,
        ];
        let ((), seen) = sniff(DEVICE, || {
            for end in ends {
                let (near, _peer) = FakePeer::connect();
                let linger = Sender::builder().linger(Duration::from_millis(50));
                let mut library = Library::over(near, linger, LEN, MESSAGES);
                send_all(&mut library);
                assert_eq!(hold(&mut library, 0, 50, "before the end"), Ok(()));
                assert!(library.sender.held_for() >= Some(Duration::from_millis(50)));
                let Library { sender, mut slots } = library;
                end(sender);
                assert!(pinbuf::reaper::wait_idle(within(60_000)), "{:?}", pinbuf::reaper::stats());
                assert_eq!(slots.reuse().len(), MESSAGES);
            }
            thread::sleep(Duration::from_millis(RETRANSMITTED_MS));
        });
        assert!(seen.packets >= 3 * MESSAGES && seen.overwritten == 0, "{seen:?}");
        // The control closes and overwrites: after a close no notification tells the release.
        let tap = Sniffer::on(DEVICE);
        let (near, peer) = FakePeer::connect();
        let mut control = Loop::over(near, Rule::Sent);
        send_all(&mut control);
        control.end(drop);
        eventually("the new contents are sent", || tap.seen().overwritten > 0);
        peer.reset();
        report(&format!("ended: a tap sees {seen:?}; without the library {:?}", tap.stop()));
        Ok(())
    });
}

/// Random sends and acknowledgements: no byte is free before its acknowledgement, and all are free
/// in the end.
#[test]
fn random_acknowledgements_release_exactly_their_bytes() {
    const SENDS: usize = 40;
    const MOST: usize = 80_000;
    fn course(source: &mut dyn Source, peer: &mut FakePeer, seed: u64) -> Result<(), String> {
        let mut random = random(seed);
        let mut below = move |bound: usize| (random() % bound as u64) as usize;
        // The end of each message in the stream.
        let mut ends = Vec::new();
        let mut acked = 0;
        let deadline = after(60_000);
        while ends.len() < SENDS || acked < ends[SENDS - 1] {
            assert!(Instant::now() < deadline, "stuck at {acked} of {ends:?}");
            if ends.len() < SENDS && below(2) == 0 {
                let len = 4096 + below(MOST - 4096);
                source.send(ends.len(), len);
                ends.push(ends.last().copied().unwrap_or(0) + len as u64);
            }
            let sent = ends.last().copied().unwrap_or(0) - unsent(&source.socket());
            // Often no new byte, often all bytes.
            acked = match below(4) {
                0 => acked,
                1 => sent,
                _ => acked + below((sent - acked) as usize + 1) as u64,
            };
            peer.ack(acked);
            let reused = source.reuse();
            if let Some(early) = reused.iter().find(|seed| ends[**seed] > acked) {
                let end = ends[*early];
                return Err(format!("message {early} ends at {end}, acknowledged {acked}"));
            }
        }
        expect(source, SENDS, "all acknowledged")
    }
    in_a_namespace(|| {
        fake_peer::furnish()?;
        let first = seed();
        for seed in first..first + 20 {
            let (near, mut peer) = FakePeer::connect();
            let mut library = Library::over(near, Sender::builder(), MOST, SENDS);
            assert_eq!(course(&mut library, &mut peer, seed), Ok(()), "seed {seed}");
            let stats = library.sender.stats();
            assert_eq!((stats.deferred_copies, stats.copied_calls), (0, 0), "seed {seed}");
        }
        let (near, mut peer) = FakePeer::connect();
        let control = course(&mut Loop::over(near, Rule::Sent), &mut peer, first);
        report(&format!("without the library: {}", control.expect_err("the check cannot fail")));
        Ok(())
    });
}

#[test]
fn lost_answers_hold_every_slot_unchanged() {
    fn course(road: &Road, source: &mut dyn Source) -> Result<(), String> {
        // The last packet of a message does not wait for an answer.
        set_option(&source.socket(), libc::IPPROTO_TCP, libc::TCP_NODELAY, &1_i32);
        road.lose_answers(100).unwrap();
        send_all(source);
        // The sent bytes arrive.
        thread::sleep(Duration::from_millis(100));
        let held = hold(source, 0, RETRANSMITTED_MS, "no answer arrives");
        road.lose_nothing();
        held.and(expect(source, MESSAGES, "answers arrive again"))
    }
    in_a_namespace(|| {
        let road = Road::build()?;
        road.lose_answers(100)?;
        road.lose_nothing();
        let (seen, stream) = sniff_arrivals(&road, |near, _| {
            let mut library = Library::over(near, Sender::builder(), LEN, MESSAGES);
            assert_eq!(course(&road, &mut library), Ok(()));
            assert!(retransmissions(&library.socket()) > 0);
        });
        assert_eq!(
            (stream.len(), wrong(&stream, LEN), seen.overwritten),
            (LEN * MESSAGES, (0, 0), 0)
        );
        let (early, stream) = sniff_arrivals(&road, |near, _| {
            course(&road, &mut Loop::over(near, Rule::Sent)).expect_err("the check cannot fail");
        });
        // All bytes had arrived before: the stream is right, and the packets are wrong.
        assert_eq!((stream.len(), wrong(&stream, LEN)), (LEN * MESSAGES, (0, 0)));
        report(&format!("answers lost: {seen:?} arrive; without the library {early:?}"));
        assert!(early.overwritten > 0, "{early:?}");
        Ok(())
    });
}

/// Enough retransmitted packets.
const ENOUGH: u32 = 3;

/// Loses `percent` of the answers. Sends messages singly, so that no later answer stands in for a
/// lost answer, and returns the number of messages. Slots are overwritten after their arrival, so
/// the stream is right in any case.
fn losing_answers(
    road: &Road,
    percent: u32,
    begin: impl FnOnce(TcpStream, usize) -> Box<dyn Source>,
) -> Result<usize, String> {
    let (near, mut far) = road.connect(1 << 20);
    near.set_nodelay(true).unwrap();
    // Ten times the average number.
    let most = 1000 * ENOUGH as usize / percent as usize;
    let mut source = begin(near, most);
    let (mut message, mut early) = (vec![0; LEN], Ok(()));
    road.lose_answers(percent).unwrap();
    let sent = (0..most).find(|seed| {
        source.send(*seed, LEN);
        far.read_exact(&mut message).unwrap();
        assert_eq!(message, *pattern(LEN, *seed));
        eventually("an answer gets through", || {
            // In this order: an answer may come meanwhile.
            let reused = source.reuse().contains(seed);
            let unacked = unacked(&source.socket());
            if reused && unacked > 0 {
                early = Err(format!("message {seed} written over, {unacked} bytes unanswered"));
            }
            unacked == 0
        });
        retransmissions(&source.socket()) >= ENOUGH
    });
    road.lose_nothing();
    let sent = sent.expect("no message is sent again") + 1;
    early.and(expect(&mut *source, sent, "all answered")).map(|()| sent)
}

/// After a lost answer the sender retransmits arrived bytes: in the control, after their
/// overwriting.
fn when_answers_get_lost(percent: u32) -> Result<(), String> {
    let road = Road::build()?;
    road.lose_answers(percent)?;
    road.lose_nothing();
    let (sent, seen) = sniff_far(&road, || {
        losing_answers(&road, percent, |near, most| {
            Box::new(Library::over(near, Sender::builder(), LEN, most))
        })
    });
    let sent = sent.unwrap_or_else(|early| panic!("{early}"));
    assert!(seen.packets > 0 && seen.overwritten == 0, "{seen:?}");
    let (control, early) = sniff_far(&road, || {
        losing_answers(&road, percent, |near, _| Box::new(Loop::over(near, Rule::Sent)))
    });
    let control = control.expect_err("the check cannot fail");
    report(&format!(
        "{percent} % of answers lost: {sent} messages, {seen:?} arrive; without the library \
         {early:?}, {control}"
    ));
    assert!(early.overwritten > 0, "{early:?}");
    Ok(())
}

#[test]
fn a_loss_of_1_percent_of_answers_releases_nothing_early() {
    in_a_namespace(|| when_answers_get_lost(1));
}

#[test]
fn a_loss_of_5_percent_of_answers_releases_nothing_early() {
    in_a_namespace(|| when_answers_get_lost(5));
}

#[test]
fn a_loss_of_20_percent_of_answers_releases_nothing_early() {
    in_a_namespace(|| when_answers_get_lost(20));
}
