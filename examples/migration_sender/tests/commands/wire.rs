//! Peers that are no migration_sender, or a dishonest one.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use crate::process::{Process, STUCK, receive};

/// The number of the connection with the answers.
const ANSWERS: u32 = 0xffff;
/// The digest XXH3, and the comparison of both ends.
const ABILITIES: u64 = 1 | 8;
/// Bytes of guest memory.
const MEMORY: u64 = (2 << 20) + 4096;

#[test]
fn foreign_protocols_get_a_clear_error() {
    let region = |len: u64| offer(&[("ram", len)]);
    for (bytes, message) in [
        (
            &b"GET / HTTP/1.1\r\nHost: here\r\nAccept: everything\r\n\r\n"[..],
            "not a migration_sender",
        ),
        (&b"PbMg\x01\x00\x01\x00................................................"[..], "version 1"),
        (&frame(3, 0, 1, 4096, 0), "a Pages frame came where none may come"),
        (&hello(0, 0, &region(MEMORY)), "out of range"),
        (&hello(3, 2, &[]), "out of range"),
        (&hello(0, 65, &region(MEMORY)), "out of range"),
        (&hello(0, 1, &offer(&[("ram", 0)])), "region of the guest memory is empty"),
        (&hello(0, 1, &offer(&[("a", 1), ("a", 1)])), "of one name"),
        (&hello(0, 1, &offer(&[("a", 1 << 63)])), "too large"),
        (&hello(0, 1, &offer(&[])), "no region of memory"),
        (&hello(0, 1, &[0; 100]), "cut short"),
        (&hello(0, 1, &region(5)[..200]), "cut short"),
        (&frame(1, 0, 1, 42, 1 << 40), "out of its range"),
        (&b"Pb"[..], "closed the connection"),
    ] {
        let (receiver, target) = receive("127.0.0.1", &[]);
        let mut stream = connect(&target);
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        refused(receiver, message);
    }
}

#[test]
fn connections_that_do_not_belong_together_are_refused() {
    let region = |len: u64| offer(&[("ram", len)]);
    let mut other = hello(ANSWERS, 1, &[]);
    other[16] ^= 1;
    for (second, message) in [
        (hello(0, 1, &region(MEMORY)), "a channel twice"),
        (hello(ANSWERS, 2, &[]), "another source"),
        (hello(ANSWERS, 1, &region(MEMORY)), "a second offer"),
        (other, "another source"),
    ] {
        let (receiver, target) = receive("127.0.0.1", &[]);
        let mut streams = [connect(&target), connect(&target)];
        streams[0].write_all(&hello(0, 1, &region(MEMORY))).unwrap();
        streams[1].write_all(&second).unwrap();
        refused(receiver, message);
    }
    // No memory is mapped for a guest that is too large.
    let (receiver, _streams) = opened(u64::MAX >> 2, &[]);
    refused(receiver, "--max-memory");
}

#[test]
fn a_missing_channel_is_noticed() {
    let (receiver, target) = receive("127.0.0.1", &["--stall-timeout=3"]);
    let mut stream = connect(&target);
    stream.write_all(&hello(0, 2, &offer(&[("ram", MEMORY)]))).unwrap();
    refused(receiver, "did not open all its channels");
}

#[test]
fn a_source_that_greets_byte_by_byte_is_left() {
    let (receiver, target) = receive("127.0.0.1", &["--stall-timeout=3"]);
    let mut stream = connect(&target);
    let drip = thread::spawn(move || {
        for byte in hello(0, 1, &offer(&[("ram", MEMORY)])) {
            if stream.write_all(&[byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(500));
        }
    });
    refused(receiver, "was silent for 3 s");
    drip.join().unwrap();
}

#[test]
fn a_source_outside_the_protocol_is_refused() {
    let run = |offset: u64, len: u64| [offset.to_le_bytes(), len.to_le_bytes()].concat();
    let pages = |round, offset, len| [frame(3, round, 1, len, 0), run(offset, len)].concat();
    for (bytes, message) in [
        (pages(0, MEMORY, 4096), "outside the guest memory"),
        (pages(0, u64::MAX - 4095, 4096), "outside the guest memory"),
        (pages(0, 1 << 63, 4096), "outside the guest memory"),
        (pages(0, 5, 4096), "not whole pages"),
        (pages(1, 0, 4096), "a frame of round 1 came during round 0"),
        (pages(0, 0, u64::MAX), "out of its range"),
        ([frame(4, 0, 2, 8192, 0), run(0, 4096), run(0, 4096)].concat(), "overlap"),
        ([frame(3, 0, 1, 8192, 0), run(0, 4096)].concat(), "does not add up"),
        (frame(6, 7, 0, 0, 0), "a frame of round 7 came during round 0"),
        (frame(8, 0, 0, u64::MAX, 0), "out of its range"),
        (frame(5, 0, 1, 4096, 0), "a Digests frame came where none may come"),
        (hello(0, 1, &[]), "a Hello frame came where none may come"),
        (frame(11, 0, 0, 0, 0), "a Go frame came where none may come"),
        (frame(99, 0, 0, 0, 0), "unknown kind of frame 99"),
    ] {
        let (receiver, mut streams) = opened(MEMORY, &[]);
        let mut welcome = [0; 48];
        streams.iter_mut().for_each(|stream| stream.read_exact(&mut welcome).unwrap());
        streams[0].write_all(&bytes).unwrap();
        refused(receiver, message);
        let mut answer = Vec::new();
        streams[1].read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains(message), "the source is told: {answer}");
    }
}

#[test]
fn an_early_end_is_never_a_whole_memory() {
    let mut page =
        [frame(3, 0, 1, 4096, 0), 0_u64.to_le_bytes().into(), 4096_u64.to_le_bytes().into()];
    let page = {
        page[2].extend([7; 4096]);
        page.concat()
    };
    let end = |round, is_last: u8| {
        let mut end = frame(6, round, 0, 0, 0);
        end[7] = is_last;
        end
    };
    let steps = [
        page,
        end(0, 0),
        frame(8, 0, 0, 0, 0),
        end(1, 1),
        frame(9, 0, 0, 0, 0),
        frame(11, 0, 0, 0, 0),
    ];
    let dir = crate::lab::TempDir::new();
    let out = dir.file("out");
    for whole in 0..steps.len() {
        for part in [0, 1, 47] {
            let (receiver, mut streams) = opened(MEMORY, &["--memory-out", crate::lab::text(&out)]);
            let cut = part.min(steps[whole].len());
            let mut welcome = [0; 48];
            streams.iter_mut().for_each(|stream| stream.read_exact(&mut welcome).unwrap());
            for (number, step) in steps[..whole].iter().enumerate() {
                streams[0].write_all(step).unwrap();
                if number == 1 {
                    // The answer to the round.
                    streams[1].read_exact(&mut welcome).unwrap();
                }
            }
            streams[0].write_all(&steps[whole][..cut]).unwrap();
            streams[0].shutdown(Shutdown::Write).unwrap();
            let done = receiver.wait(STUCK);
            assert!(
                !matches!(done.status.and_then(|s| s.code()), None | Some(0)),
                "{}",
                done.stderr
            );
            assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
            dir.assert_holds(&[]);
        }
    }
}

/// Two connections, with good greetings.
fn opened(memory: u64, more: &[&str]) -> (Process, [TcpStream; 2]) {
    let (receiver, target) = receive("127.0.0.1", more);
    let mut streams = [connect(&target), connect(&target)];
    streams[0].write_all(&hello(0, 1, &offer(&[("ram", memory)]))).unwrap();
    streams[1].write_all(&hello(ANSWERS, 1, &[])).unwrap();
    (receiver, streams)
}

#[track_caller]
fn refused(receiver: Process, message: &str) {
    let done = receiver.wait(STUCK);
    done.expect(1);
    assert!(done.stderr.contains(message), "{message}: {}", done.stderr);
    assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
}

fn connect(target: &str) -> TcpStream {
    TcpStream::connect(target.strip_prefix("tcp:").unwrap()).unwrap()
}

/// A header in the layout of `PROTOCOL.md`, made by hand: the layout is a promise between builds.
fn frame(kind: u8, round: u32, count: u32, first: u64, second: u64) -> Vec<u8> {
    let mut bytes = b"PbMg\x02\x00".to_vec();
    bytes.extend([kind, 0]);
    bytes.extend(round.to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend((u128::from(first) | u128::from(ABILITIES) << 64).to_le_bytes());
    bytes.extend(u128::from(second).to_le_bytes());
    bytes
}

/// A greeting with an offer. Only channel 0 has one.
fn hello(channel: u32, channels: u32, offer: &[u8]) -> Vec<u8> {
    let mut bytes = frame(1, channel, channels, 42, offer.len() as u64);
    bytes.extend(offer);
    bytes
}

/// A secret, and the regions of the memory.
fn offer(regions: &[(&str, u64)]) -> Vec<u8> {
    let mut bytes = vec![9; 192];
    for (name, len) in regions {
        bytes.extend(len.to_le_bytes());
        bytes.push(name.len() as u8);
        bytes.extend(name.as_bytes());
    }
    bytes
}
