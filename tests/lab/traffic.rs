//! A stream from few slots, each refilled as soon as the library hands it out, over networks with
//! loss, queues or a listener. The peer compares every byte.
//!
//! The control overwrites a message after its send, but not before a round trip of an undisturbed
//! network: only the disturbance makes the kernel read late.

use std::{
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd},
    thread,
    time::Duration,
};

use pinbuf::{Policy, Sender};

use crate::{
    common::{
        enable_zerocopy, filled,
        namespace::in_a_namespace,
        pool, read_notification_ids,
        road::{FAST, Peer, Road, SLOW, Side, report, wrong},
        set_option, soon,
        source::Reused,
        wait_until_all_free,
    },
    sniffer::Sniffer,
};

const LEN: usize = 16 << 10;
const SLOTS: usize = 4;
const FEW: usize = 50;
/// Receive buffers of a reading and of a stalled peer.
const MUCH: i32 = 1 << 20;
const LITTLE: i32 = 20_000;
/// Many round trips between the two namespaces.
const PACE: Duration = Duration::from_micros(300);

/// The disturbance of a stream.
struct Course {
    name: String,
    /// Bytes that the peer takes before its first read, and the time of this read.
    receive: i32,
    stall: Duration,
    messages: usize,
    /// Percentage of lost packets, and the side of the loss.
    loss: Option<(Side, u32)>,
    /// An action before the send of each message.
    before: fn(usize, BorrowedFd<'_>),
}

impl Course {
    fn new(name: impl Into<String>) -> Self {
        let (stall, before) = (Duration::ZERO, |_, _: BorrowedFd<'_>| {});
        Self { name: name.into(), receive: MUCH, stall, messages: FEW, loss: None, before }
    }

    fn losing(name: impl Into<String>, side: Side, percent: u32) -> Self {
        let messages = 1000 / percent as usize;
        Self { messages, loss: Some((side, percent)), ..Self::new(name) }
    }

    /// A connection.
    fn begin(&self, road: &Road) -> (TcpStream, TcpStream) {
        let ends = road.connect(self.receive);
        if let Some((side, percent)) = self.loss {
            road.lose(side, percent).unwrap();
        }
        ends
    }

    fn peer(&self, far: TcpStream) -> Peer {
        Peer::of(far, self.stall, Duration::from_secs(30))
    }

    /// The whole stream.
    fn end(&self, road: &Road, peer: Peer) -> Vec<u8> {
        if let Some((side, _)) = self.loss {
            assert!(road.lost(side) > 0, "{}: no packet was lost", self.name);
            road.lose_nothing();
        }
        peer.stream()
    }

    fn through_the_library(&self, road: &Road) -> String {
        let (near, far) = self.begin(road);
        let peer = self.peer(far);
        let pool = pool(LEN, SLOTS);
        let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
        for seed in 0..self.messages {
            let buf = filled(pool.alloc(LEN).unwrap(), LEN, seed);
            (self.before)(seed, sender.as_fd());
            sender.send(buf).unwrap();
        }
        sender.drain(soon()).unwrap();
        let (stats, sent) = (sender.stats(), LEN * self.messages);
        assert_eq!((stats.zero_copy_bytes, stats.copied_bytes), (sent as u64, 0));
        assert!(sender.close(soon()).drained);
        wait_until_all_free(&pool);
        let stream = self.end(road, peer);
        let (messages, bytes) = wrong(&stream, LEN);
        assert_eq!((stream.len(), messages, bytes), (sent, 0, 0), "{}", self.name);
        format!("0 of {} corrupt", self.messages)
    }

    fn reusing_at_once(&self, road: &Road) -> String {
        let (near, far) = self.begin(road);
        // A stalled peer stays stalled until all messages are sent.
        let mut far = Some(far);
        let peer = far.take_if(|_| self.stall.is_zero()).map(|far| self.peer(far));
        enable_zerocopy(&near);
        let message = Reused::new(LEN);
        // More messages: by chance none might be read late.
        let sent = 2 * self.messages;
        for seed in 0..sent {
            (self.before)(seed, near.as_fd());
            message.send(near.as_fd(), seed);
            thread::sleep(PACE);
            // Otherwise option memory runs out.
            read_notification_ids(near.as_fd());
        }
        drop(near);
        let peer = peer.unwrap_or_else(|| self.peer(far.expect("it stalled")));
        let stream = self.end(road, peer);
        let (messages, bytes) = wrong(&stream, LEN);
        assert_eq!(stream.len(), LEN * sent, "the corrupt stream is delivered as valid data");
        assert!(messages > 0, "{}: the check cannot fail", self.name);
        let share = 100.0 * messages as f64 / sent as f64;
        format!("{messages} of {sent} corrupt ({share:.1} %), {bytes} bytes")
    }

    fn run(&self, road: &Road) {
        let library = self.through_the_library(road);
        let control = self.reusing_at_once(road);
        report(&format!("{:<38} {library}; reused at once {control}", self.name));
    }
}

fn losing(side: Side, percent: u32) -> Result<(), String> {
    let road = Road::build()?;
    road.lose(side, percent)?;
    road.lose_nothing();
    let name = format!("{percent} % lost on the {side:?}'s side");
    Course::losing(name, side, percent).run(&road);
    Ok(())
}

#[test]
fn a_loss_of_1_percent_by_the_sender_corrupts_no_byte() {
    in_a_namespace(|| losing(Side::Sender, 1));
}

#[test]
fn a_loss_of_5_percent_by_the_sender_corrupts_no_byte() {
    in_a_namespace(|| losing(Side::Sender, 5));
}

#[test]
fn a_loss_of_20_percent_by_the_sender_corrupts_no_byte() {
    in_a_namespace(|| losing(Side::Sender, 20));
}

#[test]
fn a_loss_of_1_percent_by_the_receiver_corrupts_no_byte() {
    in_a_namespace(|| losing(Side::Receiver, 1));
}

#[test]
fn a_loss_of_5_percent_by_the_receiver_corrupts_no_byte() {
    in_a_namespace(|| losing(Side::Receiver, 5));
}

#[test]
fn a_loss_of_20_percent_by_the_receiver_corrupts_no_byte() {
    in_a_namespace(|| losing(Side::Receiver, 20));
}

#[test]
fn a_stalled_peer_corrupts_no_byte() {
    in_a_namespace(|| {
        let stall = Duration::from_millis(300);
        let course = Course { receive: LITTLE, stall, ..Course::new("a peer that stalls") };
        course.run(&Road::build()?);
        Ok(())
    });
}

#[test]
fn a_queue_below_tcp_corrupts_no_byte() {
    in_a_namespace(|| {
        let road = Road::build()?;
        road.queue("tbf rate 20mbit burst 20kb limit 8mb")?;
        Course::new("a queue of 20 Mbit/s (tbf)").run(&road);
        Ok(())
    });
}

#[test]
fn a_slow_lane_for_every_second_message_corrupts_no_byte() {
    in_a_namespace(|| {
        let road = Road::build()?;
        road.part_lanes("20mbit")?;
        let before = |seed, near: BorrowedFd<'_>| {
            let lane = if seed % 2 == 0 { FAST } else { SLOW };
            set_option(&near, libc::SOL_SOCKET, libc::SO_PRIORITY, &lane);
        };
        let course = Course { before, ..Course::new("every second message at 20 Mbit/s (htb)") };
        course.run(&road);
        Ok(())
    });
}

#[test]
fn a_tap_during_losses_corrupts_no_byte() {
    in_a_namespace(|| {
        let road = Road::build()?;
        road.lose(Side::Receiver, 5)?;
        road.lose_nothing();
        let tap = Sniffer::on(road.near_device());
        Course::losing("5 % lost behind an open tap", Side::Receiver, 5).run(&road);
        let seen = tap.stop();
        assert!(seen.packets > FEW, "{seen:?}");
        Ok(())
    });
}
