//! Vectored sends truncated by the kernel at every kind of place.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::time::Duration;

use pinbuf::{Fate, Payload};

use crate::{
    calls,
    common::{
        self, STALLED, assert_all_free, assert_arrived, assert_same, census, filled, pair_at,
        pattern, pool, reader, soon, turn,
    },
};

const LEN: usize = 8 << 10;
const COUNT: usize = 5;

#[test]
fn a_truncated_send_keeps_every_started_buffer() {
    let _turn = turn();
    let whole = LEN * COUNT;
    let ends = (1..=COUNT).map(|count| count * LEN);
    for end in ends.flat_map(|end| [end - 1, end, end + 1]).filter(|end| *end <= whole) {
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(LEN, COUNT);
        let mut sender = common::zero_copy().adopt(near).unwrap();
        // The peer takes no more after the first send.
        sender.send(pattern(256 << 10, 1)).unwrap();
        let full = |seed| Payload::from(filled(pool.try_alloc(1).unwrap(), LEN, seed));
        let mut bufs: Vec<_> = (0..COUNT).map(full).collect();
        calls::cut_sends([end, 0, 1, 0, LEN, 0]);
        let ticket = sender.try_send_vectored(&mut bufs).unwrap();
        assert_eq!(census(&pool), [0, 0, COUNT, 0], "cut at {end}");
        while sender.reap().unwrap().unsent {
            assert_eq!(census(&pool), [0, 0, COUNT, 0], "cut at {end}");
        }
        calls::cut_sends([]);
        assert_eq!(census(&pool), [0, 0, COUNT, 0], "cut at {end}: the peer has no byte");
        let peer = reader(far, Duration::ZERO);
        let fate = sender.wait(ticket, soon()).unwrap();
        assert!(matches!(fate, Fate::Released { accepted, .. } if accepted == whole), "{fate:?}");
        assert_all_free(&pool);
        let stats = sender.stats();
        assert_eq!((stats.in_flight_bytes, stats.leases), (0, 0));
        assert!(sender.close(soon()).drained);
        let mut want = pattern(256 << 10, 1).to_vec();
        (0..COUNT).for_each(|seed| want.extend_from_slice(&pattern(LEN, seed)));
        assert_same(&peer.join().unwrap(), &want);
    }
}

#[test]
fn a_full_socket_returns_every_buffer() {
    let _turn = turn();
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, COUNT);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let full = |seed| Payload::from(filled(pool.try_alloc(1).unwrap(), LEN, seed));
    let mut bufs: Vec<_> = (0..COUNT).map(full).collect();
    for _ in 0..3 {
        calls::cut_sends([0]);
        assert!(sender.try_send_vectored(&mut bufs).unwrap_err().is_backpressure());
        assert_eq!(census(&pool), [0, COUNT, 0, 0]);
        let stats = sender.stats();
        assert_eq!((stats.in_flight_calls, stats.in_flight_bytes, stats.leases), (0, 0, 0));
    }
    let peer = reader(far, Duration::ZERO);
    let ticket = sender.send_vectored(&mut bufs).unwrap();
    assert_eq!(ticket.sequence(), 0);
    assert!(sender.wait(ticket, soon()).is_ok());
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, COUNT);
    assert_all_free(&pool);
}
