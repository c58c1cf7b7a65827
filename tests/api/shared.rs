//! Frozen buffers: one buffer, many handles, many sockets.

use std::{
    collections::{BTreeSet, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Duration,
};

use pinbuf::{Fate, Payload, Policy, SendError, Sender, sender::OnRelease};

use crate::common::{
    self, STALLED, assert_all_free, assert_same, census, filled, pair_at, pattern, pool, reader,
    soon,
};

const LEN: usize = 64 << 10;

#[test]
fn clones_and_slices_name_the_same_bytes() {
    let pool = pool(4096, 1);
    let mut buf = pool.try_alloc(1).unwrap();
    buf.extend_from_slice(b"0123456789");
    let start = buf.as_ptr();
    let all = buf.freeze();
    let part = all.clone().slice(2..=7).slice(1..5);
    assert_eq!(&part[..], b"3456");
    assert_eq!(format!("{part:?}"), "SharedBuf { len: 4, .. }");
    assert_eq!(part.as_ptr(), start.wrapping_add(3));
    assert_eq!(census(&pool), [0, 1, 0, 0]);
    drop(all);
    assert_eq!(census(&pool), [0, 1, 0, 0]);
    let mut buf = part.try_into_pinned().unwrap();
    assert_eq!(&buf[..], b"0123456", "up to the end of the slice");
    buf.extend_from_slice(b"x");
    drop(buf);
    assert_all_free(&pool);
}

#[test]
#[should_panic(expected = "3..11 is outside of 10 bytes")]
fn a_slice_does_not_reach_beyond_the_bytes_written() {
    let mut buf = pool(4096, 1).try_alloc(1).unwrap();
    buf.resize(10, 0);
    let _ = buf.freeze().slice(3..11);
}

#[test]
fn one_buffer_goes_to_many_sockets_with_a_lease_each() {
    let pool = pool(LEN, 1);
    let shared = filled(pool.try_alloc(1).unwrap(), LEN, 5).freeze();
    let mut senders = Vec::new();
    let mut peers = Vec::new();
    for _ in 0..4 {
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
        // More than the peer's window: unread bytes stay in flight.
        let tickets: Vec<_> = (0..4).map(|_| sender.send(shared.clone()).unwrap()).collect();
        senders.push((sender, tickets));
        peers.push(far);
    }
    assert_eq!(census(&pool), [0, 0, 1, 0], "in flight while any lease is left");
    let shared = shared.try_into_pinned().expect_err("the buffer is in flight");
    drop(shared);
    assert_eq!(census(&pool), [0, 0, 1, 0]);

    for ((mut sender, tickets), far) in senders.into_iter().zip(peers) {
        assert_eq!(census(&pool), [0, 0, 1, 0], "the others are in flight");
        let peer = reader(far, Duration::ZERO);
        for ticket in tickets {
            let fate = sender.wait(ticket, soon()).unwrap();
            assert!(matches!(fate, Fate::Released { accepted: LEN, .. }), "{fate:?}");
        }
        assert!(sender.close(soon()).drained);
        assert_same(&peer.join().unwrap(), &pattern(LEN, 5).repeat(4));
    }
    assert_all_free(&pool);
}

#[test]
fn a_slice_is_sent_in_place_and_returned() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 1);
    let peer = reader(far, Duration::from_millis(20));
    let mut sender = Sender::builder()
        .policy(Policy::Require)
        .on_release(OnRelease::Return)
        .adopt(near)
        .unwrap();
    let all = filled(pool.try_alloc(1).unwrap(), LEN, 6).freeze();
    let ticket = sender.send(all.slice(1000..40_000)).unwrap();
    assert!(sender.wait(ticket, soon()).unwrap().is_released());
    let Payload::Shared(back) = sender.next_returned().unwrap().payload else { panic!() };
    assert_eq!((back.as_ptr(), back.len()), (all[1000..].as_ptr(), 39_000));
    drop(back);
    assert_eq!(all.try_into_pinned().unwrap().len(), LEN, "no other handle is left");
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &pattern(LEN, 6)[1000..40_000]);
    assert_all_free(&pool);
}

#[test]
fn a_refused_shared_buffer_comes_back_unchanged() {
    let (near, _far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 1);
    let shared = filled(pool.try_alloc(1).unwrap(), LEN, 7).freeze();
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let mut accepted = 0;
    let back = loop {
        match sender.try_send(shared.clone()) {
            Ok(_) => accepted += 1,
            Err(SendError::WouldBlock(back)) => break back,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(accepted > 0);
    assert_eq!((back.as_ptr(), back.len()), (shared.as_ptr(), LEN));
    let _ = sender.abort();
    drop((back, shared));
    common::eventually("the slot is free", || pool.stats().free() == 1);
}

#[test]
fn handles_on_many_threads_are_counted() {
    let pool = pool(4096, 1);
    let mut buf = pool.try_alloc(1).unwrap();
    buf.resize(4096, 9);
    let shared = buf.freeze();
    thread::scope(|scope| {
        for _ in 0..4 {
            let mut mine = shared.clone();
            scope.spawn(move || {
                for _ in 0..10_000 {
                    mine = mine.clone();
                    assert_eq!(mine[4095], 9);
                }
            });
        }
    });
    drop(shared.try_into_pinned().unwrap());
    assert_all_free(&pool);
}

#[test]
fn maps_find_a_shared_buffer_by_its_bytes() {
    let pool = pool(4096, 3);
    let frozen = |text: &str| {
        let mut buf = pool.try_alloc(1).unwrap();
        buf.extend_from_slice(text.as_bytes());
        buf.freeze()
    };
    let (pear, fig, also_fig) = (frozen("pear"), frozen("fig"), frozen("figs").slice(..3));
    let mut places = HashMap::from([(pear.clone(), 1), (fig.clone(), 2)]);
    assert_eq!(places.insert(also_fig.clone(), 3), Some(2), "equal contents are one key");
    assert_eq!(places[&b"fig"[..]], 3);
    let sorted = BTreeSet::from([pear.clone(), fig.clone(), also_fig]);
    assert!(sorted.iter().eq([&fig, &pear]));
    assert_eq!(sorted.get(&b"pear"[..]), Some(&pear));
}

#[cfg(feature = "bytes")]
#[test]
fn bytes_from_a_shared_buffer_need_no_copy() {
    let pool = pool(4096, 1);
    let mut buf = pool.try_alloc(1).unwrap();
    buf.extend_from_slice(b"0123456789");
    let start = buf.as_ptr();
    let bytes = bytes::Bytes::from(buf.freeze());
    let part = bytes.slice(4..);
    assert_eq!((bytes.as_ptr(), &part[..]), (start, &b"456789"[..]));
    drop(bytes);
    assert_eq!(census(&pool), [0, 1, 0, 0]);
    drop(part);
    assert_all_free(&pool);
}

#[cfg(feature = "bytes")]
#[test]
fn a_shared_buffer_read_from_the_front_is_a_slice_of_the_rest() {
    use bytes::Buf;
    let pool = pool(4096, 1);
    let mut buf = pool.try_alloc(1).unwrap();
    buf.extend_from_slice(b"\x00\x05hello, all");
    let (start, mut shared) = (buf.as_ptr(), buf.freeze());
    let clone = shared.clone();
    let len = usize::from(shared.get_u16());
    let word = shared.copy_to_bytes(len);
    assert_eq!((&word[..], word.as_ptr()), (&b"hello"[..], start.wrapping_add(2)), "no copy");
    assert_eq!((shared.remaining(), shared.chunk()), (5, &b", all"[..]));
    assert_eq!(clone.len(), 12, "a clone has a front of its own");
    shared.advance(5);
    assert!(!shared.has_remaining());
    let beyond = catch_unwind(AssertUnwindSafe(|| shared.advance(1)));
    assert!(beyond.is_err(), "no byte is left");
    drop((clone, shared));
    assert_eq!(census(&pool), [0, 1, 0, 0]);
    drop(word);
    assert_all_free(&pool);
}

#[test]
#[should_panic(expected = "5..4 is outside of 10 bytes")]
fn a_range_does_not_end_before_its_start() {
    let mut buf = pool(4096, 1).try_alloc(1).unwrap();
    buf.extend_from_slice(b"0123456789");
    let _ = buf.freeze().slice((std::ops::Bound::Included(5), std::ops::Bound::Excluded(4)));
}

#[test]
fn every_form_of_a_range_names_its_bytes() {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let mut buf = pool(4096, 1).try_alloc(1).unwrap();
    buf.extend_from_slice(b"0123456789");
    let all = buf.freeze();
    for (range, bytes) in [
        ((Unbounded, Unbounded), "0123456789"),
        ((Included(0), Excluded(10)), "0123456789"),
        ((Included(3), Included(9)), "3456789"),
        ((Excluded(3), Included(4)), "4"),
        ((Included(4), Excluded(4)), ""),
        ((Included(10), Unbounded), ""),
    ] {
        assert_eq!(&all.slice(range)[..], bytes.as_bytes(), "{range:?}");
    }
    for range in [
        (Included(0), Excluded(11)),
        (Included(0), Included(10)),
        (Included(0), Included(usize::MAX)),
        (Excluded(usize::MAX), Unbounded),
        (Included(11), Unbounded),
        (Included(5), Excluded(4)),
    ] {
        let slice = catch_unwind(AssertUnwindSafe(|| all.slice(range).len()));
        assert!(slice.is_err(), "{range:?} gives {slice:?} bytes");
    }
}
