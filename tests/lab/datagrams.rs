//! Trains of datagrams from few slots, each refilled as soon as the library hands it out, over a slow queue,
//! with and without losses. The peer knows each datagram by its numbers, and compares every byte.
//!
//! A slot reused too early would carry a later train twice. The control, one buffer overwritten after each
//! send, arrives corrupt.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    thread::{self, JoinHandle},
    time::Duration,
};

use pinbuf::{
    Policy, SendError, Sender,
    sender::{Datagram, DropStats, SenderStats},
};

use crate::common::{
    enable_zerocopy, eventually,
    namespace::in_a_namespace,
    pool, read_notification_ids,
    road::{FAR, Road, Side, report},
    send_raw, set_option, soon,
    source::SCRIBBLE,
    wait_until_all_free,
};

const SIZE: usize = 1200;
const SEGMENTS: usize = 40;
const LEN: usize = SIZE * SEGMENTS;
const TRAINS: usize = 60;
const SLOTS: usize = 4;
/// Holds many trains, and cuts none.
const QUEUE: &str = "tbf rate 40mbit burst 80kb limit 8mb";

/// The numbers of the train and of the segment.
type Numbers = (u32, u32);

/// The content of a segment after its numbers.
fn content((train, segment): Numbers) -> u8 {
    train.wrapping_mul(7).wrapping_add(segment) as u8 % 200
}

fn train(number: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LEN);
    for segment in 0..SEGMENTS {
        let numbers = (number as u32, segment as u32);
        bytes.extend(numbers.0.to_ne_bytes());
        bytes.extend(numbers.1.to_ne_bytes());
        bytes.resize(SIZE * (segment + 1), content(numbers));
    }
    bytes
}

/// The datagrams that have arrived.
#[derive(Default)]
struct Arrived {
    intact: BTreeMap<Numbers, usize>,
    corrupt: usize,
}

impl Arrived {
    fn take(&mut self, datagram: &[u8]) {
        let number = |at: usize| {
            datagram.get(at..at + 4).map(|bytes| u32::from_ne_bytes(bytes.try_into().unwrap()))
        };
        match (number(0), number(4), datagram.get(8..)) {
            (Some(train), Some(segment), Some(rest))
                if datagram.len() == SIZE
                    && rest.iter().all(|byte| *byte == content((train, segment))) =>
            {
                *self.intact.entry((train, segment)).or_default() += 1;
            }
            _ => self.corrupt += 1,
        }
    }
}

/// A road, for a user who may have socket buffers beyond the limits of the host.
fn road() -> Result<Road, String> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    let (fd, bytes): (_, libc::c_int) = (socket.as_fd().as_raw_fd(), 32 << 20);
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
    // SAFETY: setsockopt(2) reads one int, alive during the call.
    match unsafe { libc::setsockopt(fd, level, name, (&raw const bytes).cast(), len) } {
        0 => Road::build(),
        _ => Err(format!("large socket buffers: {}", io::Error::last_os_error())),
    }
}

/// Receives at the far end of a road, until an empty datagram.
struct Peer {
    address: SocketAddr,
    thread: JoinHandle<Arrived>,
}

impl Peer {
    fn start(road: &Road) -> Self {
        let far = road.at_far_end(|| UdpSocket::bind((FAR, 0)).unwrap());
        set_option(&far, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(32 << 20));
        far.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let address = far.local_addr().unwrap();
        let thread = thread::spawn(move || {
            let (mut arrived, mut room) = (Arrived::default(), [0; 2048]);
            loop {
                match far.recv(&mut room).unwrap() {
                    0 => return arrived,
                    len => arrived.take(&room[..len]),
                }
            }
        });
        Self { address, thread }
    }

    /// Everything that has arrived, once the queue is empty.
    fn arrived(self) -> Arrived {
        let end = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        eventually("the end arrives", || {
            end.send_to(&[], self.address).unwrap();
            self.thread.is_finished()
        });
        self.thread.join().unwrap()
    }
}

/// Sends all trains from few slots; returns the numbers of the accepted trains.
fn send_all(address: SocketAddr) -> (Vec<usize>, SenderStats) {
    let near = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
    let pool = pool(LEN, SLOTS);
    let to = Datagram::to(address).segment_size(SIZE as u16);
    let mut accepted = Vec::new();
    for number in 0..TRAINS {
        let mut buf = pool.alloc(LEN).unwrap();
        buf.extend_from_slice(&train(number));
        match sender.send_to(buf, to) {
            Ok(_) => accepted.push(number),
            Err(SendError::Dropped { error, .. }) => assert_eq!(error.raw(), libc::EPERM),
            Err(error) => panic!("{error:?}"),
        }
    }
    sender.drain(soon()).unwrap();
    wait_until_all_free(&pool);
    let stats = sender.stats();
    assert_eq!((stats.zero_copy_calls, stats.copied_calls), (TRAINS as u64, 0), "{stats:?}");
    assert_eq!((stats.released_calls, stats.leases), (TRAINS as u64, 0));
    assert!(sender.close(soon()).drained);
    (accepted, stats)
}

/// Every datagram of these trains, once.
fn whole(trains: &[usize]) -> BTreeMap<Numbers, usize> {
    let segments =
        |&train: &usize| (0..SEGMENTS).map(move |segment| ((train as u32, segment as u32), 1));
    trains.iter().flat_map(segments).collect()
}

fn without_loss(road: &Road) {
    let peer = Peer::start(road);
    let (accepted, stats) = send_all(peer.address);
    let arrived = peer.arrived();
    assert_eq!((accepted.len(), stats.drops), (TRAINS, DropStats::default()));
    assert_eq!((arrived.corrupt, arrived.intact), (0, whole(&accepted)));
}

#[test]
fn trains_from_few_slots_arrive_once_and_intact() {
    in_a_namespace(|| {
        let road = road()?;
        road.queue(QUEUE)?;
        without_loss(&road);
        Ok(())
    });
}

#[test]
fn a_filter_of_the_sender_drops_whole_trains_and_says_so() {
    in_a_namespace(|| {
        let road = road()?;
        road.queue(QUEUE)?;
        without_loss(&road);
        road.lose(Side::Sender, 20)?;
        let peer = Peer::start(&road);
        let (accepted, stats) = send_all(peer.address);
        let lost = road.lost(Side::Sender);
        road.lose_nothing();
        let arrived = peer.arrived();
        let refused = (TRAINS - accepted.len()) as u64;
        report(&format!("20 % dropped by the sender's filter: {refused} of {TRAINS} trains"));
        assert!(lost > 0 && refused > 0, "nothing was dropped");
        assert_eq!(stats.drops, {
            let mut drops = DropStats::default();
            drops.filter = refused;
            drops
        });
        assert_eq!(stats.dropped_sends, refused);
        assert_eq!((arrived.corrupt, arrived.intact), (0, whole(&accepted)));
        Ok(())
    });
}

#[test]
fn a_loss_on_the_way_is_silent_and_corrupts_no_byte() {
    in_a_namespace(|| {
        let road = road()?;
        road.queue(QUEUE)?;
        without_loss(&road);
        road.lose(Side::Receiver, 20)?;
        losing(&road, "20 % dropped by the receiver's filter");
        Ok(())
    });
}

/// With the queue `netem`, which not every kernel has.
#[test]
fn trains_over_a_bad_road_arrive_intact_or_not_at_all() {
    in_a_namespace(|| {
        let road = road()?;
        for course in ["delay 10ms 5ms loss 10%", "delay 10ms 8ms loss 5% reorder 20%"] {
            // The courses lose packets: with delay alone, nothing is lost.
            road.shape_from(Side::Sender, "delay 10ms")?;
            without_loss(&road);
            road.shape_from(Side::Sender, course)?;
            losing(&road, course);
        }
        Ok(())
    });
}

/// Some datagrams are lost; the others arrive once and intact.
fn losing(road: &Road, course: &str) {
    let peer = Peer::start(road);
    let (accepted, stats) = send_all(peer.address);
    let arrived = peer.arrived();
    let (sent, got) = (accepted.len() * SEGMENTS, arrived.intact.len());
    report(&format!("{course}: {got} of {sent} datagrams arrived, 0 corrupt"));
    assert_eq!((accepted.len(), stats.drops), (TRAINS, DropStats::default()));
    assert_eq!(arrived.corrupt, 0);
    assert!(got < sent, "nothing was lost");
    assert!(got > 0, "all was lost");
    assert!(
        arrived.intact.values().all(|count| *count == 1),
        "a train was sent from reused memory"
    );
}

#[test]
fn without_the_library_overwritten_trains_arrive_corrupt() {
    in_a_namespace(|| {
        let road = road()?;
        road.queue(QUEUE)?;
        let peer = Peer::start(&road);
        let near = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        near.connect(peer.address).unwrap();
        enable_zerocopy(&near);
        // No send waits, with intact contents, for room.
        set_option(&near, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &(32 << 20));
        set_option(&near, libc::SOL_UDP, 103, &(SIZE as i32));
        let memory = vec![0; LEN].leak();
        let mut all = 0;
        for number in 0..TRAINS {
            memory.copy_from_slice(&train(number));
            // SAFETY: leaked memory stays mapped. Its contents on the wire are the subject.
            let sent = unsafe { send_raw(near.as_fd(), &raw const *memory) };
            memory.fill(SCRIBBLE);
            match sent {
                Ok(_) => all += SEGMENTS,
                // Kernels before 6.2 have option memory for 24 sends.
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS)),
            }
            // Otherwise option memory runs out.
            read_notification_ids(near.as_fd());
        }
        let arrived = peer.arrived();
        let corrupt = arrived.corrupt;
        report(&format!("overwritten at once: {corrupt} of {all} datagrams corrupt"));
        assert!(corrupt > all / 2, "only {corrupt}");
        Ok(())
    });
}
