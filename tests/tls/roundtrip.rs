//! All bytes arrive, in both directions, over all boundaries.

use std::{
    io::{Read, Write},
    thread,
};

use pinbuf::{Pool, rustls::TlsError};

use crate::{
    common::{assert_all_free, assert_same, pattern, pool, soon},
    peer::{Role, SetUp, everywhere},
};

/// Lengths around one and two records, and around one and two buffers of 64 KiB.
fn lengths() -> impl Iterator<Item = usize> {
    let near = |len: usize| len - 70..len + 3;
    [near(1 << 14), near(1 << 15), near(1 << 16), near(1 << 17)].into_iter().flatten().chain(1..40)
}

#[test]
fn sends_of_every_length_arrive() {
    everywhere(|set_up| {
        let pool = pool(64 << 10, 4);
        let (mut stream, mut peer) = set_up.connect(&pool);
        let reader = thread::spawn(move || {
            for len in lengths() {
                assert_same(&peer.fetch(len), &pattern(len, len));
            }
            peer
        });
        for len in lengths() {
            let tickets = stream.send(&pattern(len, len)).unwrap();
            let sent: usize = tickets.iter().map(|ticket| ticket.len()).sum();
            assert!(sent > len, "{sent}");
            let last = *tickets.last().unwrap();
            let fate = stream.sender_mut().wait(last, soon()).unwrap();
            assert!(fate.is_released(), "{fate:?}");
        }
        let mut peer = reader.join().unwrap();
        peer.close();
        assert!(stream.close(soon()).drained);
        assert_all_free(&pool);
    });
}

#[test]
fn written_and_read_bytes_arrive_in_pieces_of_any_length() {
    everywhere(|set_up| {
        let pool = pool(64 << 10, 4);
        let (mut stream, mut peer) = set_up.connect(&pool);
        let data = pattern(1 << 20, 1);
        let echo = thread::spawn(move || {
            let mut piece = vec![0; 50_000];
            loop {
                match peer.read(&mut piece).unwrap() {
                    0 => break peer.close(),
                    len => peer.write_all(&piece[..len]).unwrap(),
                }
            }
        });
        let mut read = Vec::new();
        let pieces = [1, 17, 16_384, 40_000, 100_000, 3].into_iter().cycle();
        let mut left = &data[..];
        for len in pieces {
            let (piece, rest) = left.split_at(len.min(left.len()));
            stream.write_all(piece).unwrap();
            // The read sends first.
            let mut answer = vec![0; piece.len()];
            stream.read_exact(&mut answer).unwrap();
            read.extend(answer);
            left = rest;
            if left.is_empty() {
                break;
            }
        }
        assert_same(&read, &data);
        stream.finish().unwrap();
        assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
        echo.join().unwrap();
        assert!(stream.close(soon()).drained);
        assert_all_free(&pool);
    });
}

#[test]
fn buffers_are_filled_to_the_last_byte() {
    for (slot, fragment) in [(64 << 10, None), (4096, None), (10_000, Some(512)), (100, Some(32))] {
        everywhere(|set_up| {
            let mut set_up = set_up.copy();
            set_up.client.max_fragment_size = fragment;
            set_up.server.max_fragment_size = fragment;
            let pool = pool(slot, 4);
            let (mut stream, mut peer) = set_up.connect(&pool);
            let data = pattern(10 * slot, 0);
            let reader = thread::spawn(move || peer.fetch(1 + 10 * slot));
            let overhead = stream.send(b"x").unwrap()[0].len() - 1;
            let tickets = stream.send(&data).unwrap();
            let (_, full) = tickets.split_last().unwrap();
            assert!(full.len() >= 10);
            // Behind the last record there is no room for a record of one byte.
            assert!(full.iter().all(|ticket| slot - ticket.len() <= overhead), "{full:?}");
            assert_same(&reader.join().unwrap()[1..], &data);
        });
    }
}

#[test]
fn slots_too_small_for_a_record_are_an_error() {
    everywhere(|set_up| {
        let pool = pool(20, 4);
        let (mut stream, _peer) = set_up.connect(&pool);
        let error = stream.send(b"x").unwrap_err();
        assert!(matches!(error, TlsError::TooSmall { capacity: 20 }), "{error}");
        let error = stream.write(b"x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert_eq!(stream.send(b"").unwrap(), []);
        assert_eq!(stream.write(b"").unwrap(), 0);
    });
}

#[test]
fn a_single_slot_suffices() {
    everywhere(|set_up| {
        let pool = pool(16 << 10, 1);
        let (mut stream, mut peer) = set_up.connect(&pool);
        let data = pattern(1 << 20, 3);
        let reader = thread::spawn(move || peer.fetch(2 << 20));
        stream.write_all(&data).unwrap();
        let tickets = stream.send(&data).unwrap();
        assert!(tickets.len() > 64);
        let read = reader.join().unwrap();
        assert_same(&read[..1 << 20], &data);
        assert_same(&read[1 << 20..], &data);
        stream.drain(soon()).unwrap();
        assert_all_free(&pool);
    });
}

#[test]
fn a_small_send_takes_a_small_buffer() {
    let set_up = SetUp::new(Role::Client, &rustls::version::TLS13);
    let pool = Pool::builder().class(256, 1).class(64 << 10, 1).build().unwrap();
    let (mut stream, mut peer) = set_up.connect(&pool);
    // The class of large buffers is empty.
    let large = pool.try_alloc(64 << 10).unwrap();
    stream.send(b"small").unwrap();
    assert_eq!(peer.fetch(5), b"small");
    drop(large);
}

#[test]
fn a_full_buffer_is_sent_without_a_flush() {
    everywhere(|set_up| {
        let (mut stream, mut peer) = set_up.connect(&pool(16 << 10, 2));
        let data = pattern(40_000, 0);
        let taken = stream.write(&data).unwrap();
        assert!((1..16 << 10).contains(&taken), "{taken}");
        assert_same(&peer.fetch(taken), &data[..taken]);
    });
}

#[test]
fn written_records_are_sent_before_a_send_and_have_no_part_in_its_tickets() {
    everywhere(|set_up| {
        let (mut stream, mut peer) = set_up.connect(&pool(16 << 10, 4));
        let alone = stream.send(b"x").unwrap();
        stream.write_all(b"written").unwrap();
        let behind = stream.send(b"x").unwrap();
        assert_eq!((behind.len(), behind[0].len()), (1, alone[0].len()));
        assert_eq!(peer.fetch(9), b"xwrittenx");
    });
}

#[test]
fn a_drain_sends_written_records() {
    everywhere(|set_up| {
        let pool = pool(16 << 10, 2);
        let (mut stream, mut peer) = set_up.connect(&pool);
        stream.write_all(b"written").unwrap();
        stream.drain(soon()).unwrap();
        assert_all_free(&pool);
        assert_eq!(peer.fetch(7), b"written");
    });
}
