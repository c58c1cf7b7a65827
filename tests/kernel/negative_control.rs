//! The corruption that the library prevents, without and with the library.
//!
//! The peer pauses, and its window is small. So sent messages wait in the socket, and the kernel
//! reads the sender's pages after the peer's pause, not at the time of the send. (With a fast peer
//! loopback copies at once, and early reuse stays invisible.)

use std::{os::fd::AsFd, time::Duration};

use pinbuf::{Fate, Policy, Sender};

use crate::common::{
    Buffers, STALLED, assert_all_free, assert_arrived, corrupt, enable_zerocopy, filled, pair_at,
    pool, reader, soon, source::Reused,
};

const LEN: usize = 16 << 10;
const MESSAGES: usize = 96;
/// Messages that the socket holds, in the largest buffer that Linux allows without further settings.
const HELD: usize = 10;
const BUFFERS: Buffers = Buffers { send: Some(200_000), ..STALLED };
const PAUSE: Duration = Duration::from_millis(200);

#[test]
fn a_buffer_reused_at_once_arrives_corrupt() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (near, far) = pair_at(address, BUFFERS);
        enable_zerocopy(&near);
        let message = Reused::new(LEN);
        (0..HELD).for_each(|seed| message.send(near.as_fd(), seed));
        drop(near);
        let stream = reader(far, Duration::ZERO).join().unwrap();
        assert_eq!(stream.len(), HELD * LEN);
        let corrupt = corrupt(&stream, LEN);
        assert!(corrupt.len() > HELD / 2, "only {} of {HELD}", corrupt.len());
    }
}

#[test]
fn the_same_traffic_through_a_sender_arrives_intact() {
    for (address, slots) in [("127.0.0.1:0", 1), ("127.0.0.1:0", 4), ("[::1]:0", 4)] {
        let (near, far) = pair_at(address, STALLED);
        let pool = pool(LEN, slots);
        let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
        let peer = reader(far, PAUSE);
        let mut tickets = Vec::new();
        for message in 0..MESSAGES {
            let buf = filled(pool.alloc(LEN).unwrap(), LEN, message);
            tickets.push(sender.send(buf).unwrap());
        }
        for ticket in tickets {
            let fate = sender.wait(ticket, soon()).unwrap();
            assert!(matches!(fate, Fate::Released { accepted: LEN, .. }), "{fate:?}");
        }
        assert!(sender.stats().zero_copy_calls >= MESSAGES as u64, "{:?}", sender.stats());
        assert!(sender.close(soon()).drained);
        assert_arrived(&peer.join().unwrap(), LEN, MESSAGES);
        assert_all_free(&pool);
    }
}
