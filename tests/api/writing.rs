//! Writes of borrowed bytes: in order with the sends, and behind what is unsent.

use std::{
    io::{self, Write},
    time::Duration,
};

use pinbuf::{Policy, SendError, Sender};

use crate::common::{
    TIGHT, assert_same, closed_window, eventually, pair, pair_at, pattern, reader, reset, soon,
    zero_copy,
};

const LEN: usize = 64 << 10;

#[test]
fn writes_and_sends_arrive_in_order() {
    for builder in [zero_copy(), Sender::builder(), Sender::builder().policy(Policy::Never)] {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let peer = reader(far, Duration::from_millis(20));
        let mut sender = builder.adopt(near).unwrap();
        let mut want = Vec::new();
        for seed in 0..20 {
            let head = format!("send {seed}\n");
            sender.write_all(head.as_bytes()).unwrap();
            want.extend_from_slice(head.as_bytes());
            let body = pattern(LEN, seed);
            want.extend_from_slice(&body);
            let ticket = match sender.try_send(body) {
                Err(SendError::WouldBlock(body)) => sender.send(body).unwrap(),
                sent => sent.unwrap(),
            };
            assert_eq!(ticket.len(), LEN);
            // Larger than the socket takes at once, and behind the unsent part of the send.
            let tail = vec![seed as u8; 3 * LEN];
            sender.write_all(&tail).unwrap();
            want.extend_from_slice(&tail);
            sender.flush().unwrap();
            assert!(!sender.reap().unwrap().unsent);
        }
        assert!(sender.close(soon()).drained);
        assert_same(&peer.join().unwrap(), &want);
    }
}

#[test]
fn a_write_behind_an_unsent_part_would_block() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let (mut send, reap) = zero_copy().adopt(near).unwrap().split();
    send.try_send(pattern(1 << 20, 0)).unwrap();
    closed_window(&send);
    assert!(send.reap().unwrap().unsent);
    let error = send.try_write(b"behind").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    let peer = reader(far, Duration::from_millis(50));
    send.write_all(b"behind").unwrap();
    assert!(!reap.reap().unwrap().unsent, "the write came behind the whole send");
    drop((send, reap));
    let got = peer.join().unwrap();
    assert_same(&got[got.len() - 6..], b"behind");
    assert_eq!(got.len(), (1 << 20) + 6);
}

#[test]
fn a_write_counts_as_a_send_by_copy() {
    let (near, _far) = pair();
    let mut sender = zero_copy().adopt(near).unwrap();
    assert_eq!(sender.write(&[]).unwrap(), 0);
    assert_eq!(sender.write(&[7; LEN]).unwrap(), LEN);
    let stats = sender.stats();
    assert_eq!((stats.copied_calls, stats.copied_bytes, stats.leases), (1, LEN as u64, 0));
    let ticket = sender.try_send(&b"third"[..]).unwrap();
    assert_eq!(ticket.sequence(), 2);
}

#[test]
fn a_write_to_a_dead_connection_fails_as_a_write_to_a_socket() {
    let (near, far) = pair();
    let mut sender = zero_copy().adopt(near).unwrap();
    reset(far);
    eventually("the reset arrives", || sender.write(b"?").is_err());
    let error = sender.write_all(b"?").unwrap_err();
    let kinds = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    assert!(kinds.contains(&error.kind()), "{error:?}");
    assert!(sender.flush().is_ok(), "no send was cut short");
}
