//! Peers that are no migration_sender, or a dishonest one.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

use crate::process::{STUCK, receive};

#[test]
fn foreign_protocols_get_a_clear_error() {
    for (bytes, message) in [
        (
            &b"GET / HTTP/1.1\r\nHost: here\r\nAccept: everything\r\n\r\n"[..],
            "not a migration_sender",
        ),
        (&frame(3, 0, 1, 4096, 0), "a Pages frame came where none may come"),
        (&hello(0, 1, 0), "out of range"),
        (&hello(3, 2, 1 << 20), "out of range"),
        (&hello(0, 1, u64::MAX), "--max-memory"),
        (&b"Pb"[..], "closed the connection"),
    ] {
        let (receiver, target) = receive("127.0.0.1", &[]);
        let mut stream = TcpStream::connect(target.strip_prefix("tcp:").unwrap()).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let done = receiver.wait(STUCK);
        done.expect(1);
        assert!(done.stderr.contains(message), "{message}: {}", done.stderr);
        assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
    }
}

#[test]
fn a_source_outside_the_protocol_is_refused() {
    let run = |offset: u64, len: u64| [offset.to_le_bytes(), len.to_le_bytes()].concat();
    let memory = (2 << 20) + 4096;
    let pages = |round, offset, len| [frame(3, round, 1, len, 0), run(offset, len)].concat();
    for (bytes, message) in [
        (pages(0, memory, 4096), "outside the guest memory"),
        (pages(0, u64::MAX - 4095, 4096), "outside the guest memory"),
        (pages(0, 1 << 63, 4096), "outside the guest memory"),
        (pages(0, 5, 4096), "not whole pages"),
        (pages(1, 0, 4096), "a frame of round 1 came during round 0"),
        (pages(0, 0, u64::MAX), "out of its range"),
        ([frame(4, 0, 2, 8192, 0), run(0, 4096), run(0, 4096)].concat(), "overlap"),
        ([frame(3, 0, 1, 8192, 0), run(0, 4096)].concat(), "does not add up"),
        (frame(5, 7, 0, 0, 0), "a frame of round 7 came during round 0"),
        (frame(7, 0, 0, u64::MAX, 0), "out of its range"),
        (frame(1, 0, 1, 1, 4096), "a Hello frame came where none may come"),
        (frame(99, 0, 0, 0, 0), "unknown kind of frame 99"),
    ] {
        let (receiver, target) = receive("127.0.0.1", &[]);
        let mut stream = TcpStream::connect(target.strip_prefix("tcp:").unwrap()).unwrap();
        stream.write_all(&hello(0, 1, memory)).unwrap();
        let mut welcome = [0; 48];
        stream.read_exact(&mut welcome).unwrap();
        stream.write_all(&bytes).unwrap();
        let done = receiver.wait(STUCK);
        done.expect(1);
        assert!(done.stderr.contains(message), "{message}: {}", done.stderr);
        assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains(message), "the source is told: {answer}");
    }
}

/// A header in the layout of `protocol.rs`, made by hand: the layout is a promise between builds.
fn frame(kind: u8, round: u32, count: u32, first: u64, second: u64) -> Vec<u8> {
    let mut bytes = b"PbMg\x01\x00".to_vec();
    bytes.extend([kind, 0]);
    bytes.extend(round.to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend(u128::from(first).to_le_bytes());
    bytes.extend(u128::from(second).to_le_bytes());
    bytes
}

fn hello(channel: u32, channels: u32, memory: u64) -> Vec<u8> {
    frame(1, channel, channels, 42, memory)
}
