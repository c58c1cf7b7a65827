//! Sends released before earlier sends: datagrams with different routes, and retransmitted packets
//! of streams in a queue below TCP.

use std::{
    collections::BTreeSet,
    io::Write,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::BorrowedFd,
    thread,
    time::{Duration, Instant},
};

use pinbuf::{
    Policy, Pool, Sender, SharedBuf,
    pool::{Backing, Pages},
};

use crate::{
    common::{
        after, assert_all_free, disconnect, eventually, filled,
        namespace::in_a_namespace,
        optmem, pattern, pool, retransmissions,
        road::{FAR, FAST, Road, SLOW, report, wrong},
        set_option,
        source::{Library, Loop, Rule, SCRIBBLE, Source},
        unacked, within,
    },
    fake_peer,
    sniffer::sniff_arrivals,
};

pub(crate) const LEN: usize = 4096;

/// The order in which the messages of a source are overwritten. Messages seen at the same time are
/// in the order of their numbers.
#[derive(Default)]
struct Order(Vec<usize>);

impl Order {
    fn look(&mut self, source: &mut dyn Source) {
        self.add(source.reuse());
    }

    fn add(&mut self, reused: impl IntoIterator<Item = usize>) {
        for seed in reused {
            if !self.0.contains(&seed) {
                self.0.push(seed);
            }
        }
    }

    /// Messages overwritten before an earlier message.
    fn overtaken(&self) -> usize {
        self.0.windows(2).filter(|pair| pair[0] > pair[1]).count()
    }
}

// Datagrams.

const DATAGRAMS: usize = 16;

/// Sends datagrams, each on the route that `choose` sets.
fn datagrams(source: &mut dyn Source, choose: &dyn Fn(usize, BorrowedFd<'_>)) -> Order {
    let mut order = Order::default();
    for seed in 0..DATAGRAMS {
        choose(seed, source.socket());
        source.send(seed, LEN);
        order.look(source);
    }
    let deadline = after(60_000);
    while order.0.len() < DATAGRAMS && Instant::now() < deadline {
        order.look(source);
    }
    order
}

/// The numbers of the arrived datagrams, and the number of corrupt datagrams.
pub(crate) fn received(far: &UdpSocket) -> (BTreeSet<usize>, usize) {
    far.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let (mut seeds, mut corrupt) = (BTreeSet::new(), 0);
    let mut datagram = [0; 2 * LEN];
    while let Ok(len) = far.recv(&mut datagram) {
        match (0..DATAGRAMS).find(|seed| datagram[..len] == *pattern(LEN, *seed)) {
            Some(seed) => assert!(seeds.insert(seed), "twice"),
            None => corrupt += 1,
        }
    }
    (seeds, corrupt)
}

/// `arrive`: numbers of the datagrams for the far end.
fn overtake(far: &UdpSocket, arrive: BTreeSet<usize>, choose: &dyn Fn(usize, BorrowedFd<'_>)) {
    let near = || {
        let near = UdpSocket::bind("0.0.0.0:0").unwrap();
        near.connect(far.local_addr().unwrap()).unwrap();
        near
    };
    let mut library = Library::over(near(), Sender::builder(), LEN, DATAGRAMS);
    let order = datagrams(&mut library, choose);
    report(&format!("released in the order {:?}", order.0));
    assert_eq!(order.0.len(), DATAGRAMS);
    assert!(order.overtaken() > 0, "no send overtook another");
    assert_eq!(library.sender.stats().copied_calls, 0);
    assert_eq!(received(far), (arrive.clone(), 0));
    // A program that counts notifications and releases the oldest sends is wrong.
    datagrams(&mut Loop::over(near(), Rule::Oldest), choose);
    let (intact, corrupt) = received(far);
    let total = arrive.len();
    report(&format!("oldest first, without the library: {corrupt} of {total} datagrams corrupt"));
    assert!(corrupt > 0 && intact.len() + corrupt == total, "{intact:?}");
}

pub(crate) fn far_socket(road: &Road) -> UdpSocket {
    road.at_far_end(|| UdpSocket::bind((FAR, 0)).unwrap())
}

fn prioritize(socket: BorrowedFd<'_>, priority: i32) {
    set_option(&socket, libc::SOL_SOCKET, libc::SO_PRIORITY, &priority);
}

#[test]
fn datagrams_to_a_fast_peer_overtake_datagrams_to_a_slow_peer() {
    in_a_namespace(|| {
        let road = Road::build()?;
        road.limit_packets(9000)?;
        road.queue("tbf rate 400kbit burst 10kb limit 1mb")?;
        // The device there releases sent packets at once.
        fake_peer::furnish_here()?;
        let far = far_socket(&road);
        let slow = far.local_addr().unwrap();
        let fast: SocketAddr = (fake_peer::FAR, 9).into();
        let even = (0..DATAGRAMS).step_by(2).collect();
        overtake(&far, even, &|seed, socket| {
            let socket = UdpSocket::from(socket.try_clone_to_owned().unwrap());
            socket.connect(if seed % 2 == 0 { slow } else { fast }).unwrap();
        });
        Ok(())
    });
}

#[test]
fn datagrams_in_a_fast_lane_overtake_slow_datagrams() {
    in_a_namespace(|| {
        let road = Road::build()?;
        road.limit_packets(9000)?;
        road.part_lanes("400kbit")?;
        let far = far_socket(&road);
        overtake(&far, (0..DATAGRAMS).collect(), &|seed, socket| {
            prioritize(socket, if (2..8).contains(&seed) { SLOW } else { FAST });
        });
        Ok(())
    });
}

/// Datagrams have no abort: a queued datagram leaves its queue some time.
#[test]
fn queued_datagrams_outlive_their_sender_unchanged() {
    const SENDS: usize = 6;
    in_a_namespace(|| {
        let road = Road::build()?;
        road.limit_packets(9000)?;
        let slow = "tbf rate 20kbit burst 10kb limit 1mb";
        let open_the_queue = || road.queue("tbf rate 2mbit burst 10kb limit 1mb").unwrap();
        road.queue(slow)?;
        let far = far_socket(&road);
        let near = || {
            let near = UdpSocket::bind("0.0.0.0:0").unwrap();
            near.connect(far.local_addr().unwrap()).unwrap();
            near
        };
        let mut control = Loop::over(near(), Rule::Sent);
        (0..SENDS).for_each(|seed| control.send(seed, LEN));
        control.end(drop);
        open_the_queue();
        let (_, corrupt) = received(&far);
        report(&format!("closed, without the library: {corrupt} of {SENDS} datagrams corrupt"));
        assert!(corrupt > 0);
        for pages in [Pages::Base, Pages::Thp] {
            // Enough slots for the former pages of all.
            let pool = Pool::builder().class(LEN, 4 * SENDS).backing(Backing::Require(pages));
            let pool = match pool.build() {
                Ok(pool) => pool,
                Err(error) => return Err(format!("{pages}: {error}")),
            };
            road.queue(slow).unwrap();
            let mut library = Library::with_pool(near(), Sender::builder(), pool);
            (0..SENDS).for_each(|seed| library.send(seed, LEN));
            let Library { sender, mut slots } = library;
            let closed = sender.close(within(20));
            assert!(closed.quarantined > 0 && !closed.aborted, "{closed:?}");
            eventually("every slot is overwritten", || slots.reuse().len() == SENDS);
            // On new pages, while the queue has the former pages.
            assert!(slots.pool.stats().replaced_bytes > 0);
            open_the_queue();
            assert_eq!(received(&far), ((0..SENDS).collect(), 0));
            assert!(pinbuf::reaper::wait_idle(within(60_000)));
            assert_eq!(slots.pool.stats().replaced_bytes, 0);
        }
        Ok(())
    });
}

// Streams.

/// Id 0 is retransmitted repeatedly, without an answer, the last time on the slow lane. Then ids 1
/// and 2 take the fast lane, and all three are acknowledged. Requires [`Road::lose_answers`].
fn all_acknowledged_but_a_clone_waits(road: &Road, source: &mut dyn Source, mut far: TcpStream) {
    road.part_lanes("16kbit").unwrap();
    prioritize(source.socket(), FAST);
    road.lose_answers(100).unwrap();
    source.send(0, LEN);
    prioritize(source.socket(), SLOW);
    // The slow lane lets a first packet pass at once.
    eventually("sent twice more", || retransmissions(&source.socket()) >= 2);
    road.lose_nothing();
    // Any packet of the peer acknowledges the received bytes.
    far.write_all(b"x").unwrap();
    prioritize(source.socket(), FAST);
    (1..3).for_each(|seed| source.send(seed, LEN));
    eventually("all bytes are acknowledged", || unacked(&source.socket()) == 0);
}

/// The order of the releases; the clone is gone afterwards.
fn held_by_a_clone(road: &Road, source: &mut dyn Source, far: TcpStream) -> Order {
    all_acknowledged_but_a_clone_waits(road, source, far);
    let mut order = Order::default();
    eventually("all sends are released", || {
        order.look(source);
        optmem(&source.socket()) == 0
    });
    order
}

#[test]
fn acknowledged_bytes_stay_in_flight_while_a_clone_waits() {
    in_a_namespace(|| {
        let road = Road::build()?;
        // A message is a packet.
        road.limit_packets(9000)?;
        road.part_lanes("16kbit")?;
        // A missing requirement shows before the first send.
        road.lose_answers(100)?;
        road.lose_nothing();
        let (seen, stream) = sniff_arrivals(&road, |near, far| {
            let mut library = Library::over(near, Sender::builder(), LEN, 3);
            let order = held_by_a_clone(&road, &mut library, far);
            report(&format!("acknowledged and released in the order {:?}", order.0));
            assert_eq!(order.0, [1, 2, 0]);
        });
        assert_eq!((seen.overwritten, stream.len(), wrong(&stream, LEN)), (0, 3 * LEN, (0, 0)));
        // The end of the sender does not release the id either: its address gets a new page.
        let (ended, stream) = sniff_arrivals(&road, |near, far| {
            let linger = Sender::builder().linger(Duration::from_millis(50));
            let mut library = Library::over(near, linger, LEN, 12);
            all_acknowledged_but_a_clone_waits(&road, &mut library, far);
            let Library { sender, mut slots } = library;
            drop(sender);
            eventually("every slot is overwritten", || slots.reuse().len() == 3);
            assert_eq!(slots.pool.stats().replaced_bytes, LEN);
            assert!(pinbuf::reaper::wait_idle(within(60_000)));
        });
        assert_eq!((ended.overwritten, stream.len(), wrong(&stream, LEN)), (0, 3 * LEN, (0, 0)));
        // A program that takes acknowledgements for releases leaks later contents.
        let (early, stream) = sniff_arrivals(&road, |near, far| {
            held_by_a_clone(&road, &mut Loop::over(near, Rule::Acknowledged), far);
        });
        report(&format!(
            "arriving packets: {seen:?}; acknowledged and written over, without the library: \
             {early:?}, {:?} wrong in the stream",
            wrong(&stream, LEN)
        ));
        assert!(early.overwritten > 0, "{early:?}");
        Ok(())
    });
}

/// The sends are released in two groups. The second group is unsent while the first waits in the
/// queue.
const LARGE: usize = 64 << 10;
const SENDS: usize = 12;

#[test]
fn an_abort_releases_unqueued_sends_first_and_keeps_clones() {
    in_a_namespace(|| {
        let road = Road::build()?;
        let blocked = |near: &TcpStream| {
            set_option(near, libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"reno");
            road.block().unwrap();
        };
        let open_the_queue = || {
            thread::sleep(Duration::from_millis(300));
            road.unblock();
        };
        road.block()?;
        road.unblock();
        let (seen, stream) = sniff_arrivals(&road, |near, _| {
            blocked(&near);
            let pool = pool(LARGE, 4 * SENDS);
            let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
            let mut clones: Vec<(usize, SharedBuf)> = Vec::new();
            for seed in 0..SENDS {
                let buf = filled(pool.try_alloc(LARGE).unwrap(), LARGE, seed).freeze();
                sender.send(buf.clone()).unwrap();
                clones.push((seed, buf));
            }
            let report_of_abort = sender.abort();
            assert!(report_of_abort.quarantined > 0, "{report_of_abort:?}");
            let mut order = Order::default();
            let mut scribbled = Vec::new();
            let mut look = |order: &mut Order| {
                for (seed, clone) in std::mem::take(&mut clones) {
                    // Only the last holder can thaw the buffer.
                    match clone.try_into_pinned() {
                        Ok(mut buf) => {
                            buf.fill(SCRIBBLE);
                            order.add([seed]);
                            scribbled.push(buf);
                        }
                        Err(clone) => {
                            assert_eq!(*clone, *pattern(LARGE, seed));
                            clones.push((seed, clone));
                        }
                    }
                }
                clones.len()
            };
            eventually("a send is released", || look(&mut order) < SENDS);
            let deadline = after(300);
            while Instant::now() < deadline {
                assert!(look(&mut order) > 0, "the queue is empty");
            }
            assert_eq!(pool.stats().replaced_bytes, 0);
            open_the_queue();
            eventually("all sends are released", || look(&mut order) == 0);
            report(&format!("after an abort released in the order {:?}", order.0));
            assert!(order.overtaken() > 0);
            assert!(pinbuf::reaper::wait_idle(within(60_000)));
            drop(scribbled);
            assert_all_free(&pool);
        });
        assert_eq!((seen.overwritten, wrong(&stream, LARGE)), (0, (0, 0)));
        let (early, stream) = sniff_arrivals(&road, |near, _| {
            blocked(&near);
            let mut control = Loop::over(near, Rule::Sent);
            (0..SENDS).for_each(|seed| control.send(seed, LARGE));
            disconnect(&control.socket());
            control.reuse();
            open_the_queue();
            eventually("the queue is empty", || {
                control.reuse();
                optmem(&control.socket()) == 0
            });
        });
        report(&format!(
            "arriving packets: {seen:?}; aborted and written over, without the library: {early:?}, \
             {:?} wrong in the stream",
            wrong(&stream, LARGE)
        ));
        assert!(early.overwritten > 0, "{early:?}");
        Ok(())
    });
}

#[test]
fn a_reset_by_the_peer_releases_no_queued_send() {
    /// Sends, gets a reset, and later empties the queue.
    fn course(road: &Road, source: &mut dyn Source, far: &TcpStream) -> Result<(), String> {
        road.block().unwrap();
        (0..SENDS).for_each(|seed| source.send(seed, LARGE));
        disconnect(far);
        eventually("a send is released", || !source.reuse().is_empty());
        let early = hold_some(source, 300);
        road.unblock();
        eventually("all sends are released", || {
            source.reuse().len() == SENDS && optmem(&source.socket()) == 0
        });
        early
    }
    fn hold_some(source: &mut dyn Source, ms: u64) -> Result<(), String> {
        let deadline = after(ms);
        while Instant::now() < deadline {
            if source.reuse().len() == SENDS {
                return Err("overwritten while queued".into());
            }
        }
        Ok(())
    }
    in_a_namespace(|| {
        let road = Road::build()?;
        road.block()?;
        road.unblock();
        let (seen, stream) = sniff_arrivals(&road, |near, far| {
            let mut library = Library::over(near, Sender::builder(), LARGE, SENDS);
            assert_eq!(course(&road, &mut library, &far), Ok(()));
            library.sender.try_send(&b"more"[..]).unwrap_err();
            assert!(library.sender.connection_error().is_some());
            assert_eq!(library.slots.pool.stats().replaced_bytes, 0);
        });
        assert_eq!((seen.overwritten, wrong(&stream, LARGE)), (0, (0, 0)));
        let (early, _) = sniff_arrivals(&road, |near, far| {
            let mut control = Loop::over(near, Rule::Sent);
            course(&road, &mut control, &far).expect_err("the check cannot fail");
        });
        report(&format!("reset: {seen:?} arrive; without the library {early:?}"));
        assert!(early.overwritten > 0, "{early:?}");
        Ok(())
    });
}
