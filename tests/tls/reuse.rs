//! The corruption that the library prevents: a TLS writer with one ciphertext buffer, and the library.
//!
//! As in `kernel/negative_control.rs` the peer pauses, and its window is small, so the kernel reads the
//! records after the pause.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::fd::AsFd,
    sync::Arc,
    thread,
    time::Duration,
};

use pinbuf::{Fate, Policy};
use rustls::{ClientConnection, Error, ServerConnection, version::TLS13};

use crate::{
    common::{
        Buffers, STALLED, assert_all_free, assert_arrived, enable_zerocopy, fill, pair_at, pattern,
        pool, send_raw, soon,
    },
    peer::{Role, SetUp},
};

const LEN: usize = 16 << 10;
/// A record of the suites of TLS 1.3: header, plaintext, type, tag.
const RECORD: usize = 5 + LEN + 1 + 16;
const MESSAGES: usize = 96;
/// Messages that the socket holds.
const HELD: usize = 10;
const BUFFERS: Buffers = Buffers { send: Some(200_000), ..STALLED };
const PAUSE: Duration = Duration::from_millis(200);

#[test]
fn records_in_a_reused_buffer_arrive_corrupt() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let set_up = SetUp::new(Role::Client, &TLS13);
        let (mut near, mut far) = pair_at(address, BUFFERS);
        let mut server = set_up.server;
        server.send_tls13_tickets = 0;
        let peer = thread::spawn(move || {
            let mut connection = ServerConnection::new(Arc::new(server)).unwrap();
            while connection.is_handshaking() {
                connection.complete_io(&mut far).unwrap();
            }
            (connection, far)
        });
        let name = "localhost".try_into().unwrap();
        let mut connection = ClientConnection::new(Arc::new(set_up.client), name).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut near).unwrap();
        }
        let (connection_of_peer, far) = peer.join().unwrap();
        let records = send_from_one_buffer(&mut connection, &near);
        drop(near);
        let (arrived, failed) = receive(connection_of_peer, far);
        let differing = arrived.chunks(RECORD).zip(&records).filter(|(got, sent)| got != sent);
        let differing = differing.count();
        assert_eq!(arrived.len(), HELD * RECORD);
        assert!(differing > HELD / 2, "only {differing} of {HELD}");
        assert!(matches!(failed, Some(Error::DecryptError)), "{failed:?}");
    }
}

/// Encrypts messages into one buffer and sends each with `MSG_ZEROCOPY`. Returns the records.
fn send_from_one_buffer(connection: &mut ClientConnection, near: &TcpStream) -> Vec<Vec<u8>> {
    enable_zerocopy(near);
    // Leaked: without the library no one can tell the end of the kernel's reads.
    let memory = &raw mut *vec![0; RECORD].leak();
    (0..HELD)
        .map(|seed| {
            connection.writer().write_all(&pattern(LEN, seed)).unwrap();
            let mut record = Vec::new();
            connection.write_tls(&mut record).unwrap();
            // SAFETY: the buffer was leaked, and no other reference is left.
            unsafe { &mut *memory }.copy_from_slice(&record);
            // SAFETY: the buffer was leaked. A read by the kernel during the next rewrite is the point.
            assert_eq!(unsafe { send_raw(near.as_fd(), memory) }.unwrap(), RECORD);
            record
        })
        .collect()
}

/// Reads the stream to its end. Returns the stream, and the first error of TLS about it.
fn receive(mut connection: ServerConnection, mut far: TcpStream) -> (Vec<u8>, Option<Error>) {
    let mut arrived = Vec::new();
    far.read_to_end(&mut arrived).unwrap();
    let mut left = &arrived[..];
    let error = loop {
        if left.is_empty() {
            break None;
        }
        connection.read_tls(&mut left).unwrap();
        if let Err(error) = connection.process_new_packets() {
            break Some(error);
        }
        let mut plaintext = Vec::new();
        let _ = connection.reader().read_to_end(&mut plaintext);
    };
    (arrived, error)
}

#[test]
fn records_of_a_tls_stream_arrive_intact() {
    for role in [Role::Client, Role::Server] {
        for (address, slots) in [("127.0.0.1:0", 1), ("127.0.0.1:0", 4), ("[::1]:0", 4)] {
            let mut set_up = SetUp::new(role, &TLS13);
            set_up.policy = Policy::Require;
            let pool = pool(RECORD, slots);
            let (mut stream, mut peer) = set_up.over(pair_at(address, STALLED), &pool);
            let peer = thread::spawn(move || {
                thread::sleep(PAUSE);
                let mut arrived = Vec::new();
                peer.read_to_end(&mut arrived).unwrap();
                arrived
            });
            let mut tickets = Vec::new();
            let mut message = vec![0; LEN];
            for seed in 0..MESSAGES {
                fill(&mut message, seed);
                tickets.extend(stream.send(&message).unwrap());
            }
            assert_eq!(tickets.len(), MESSAGES, "a record in each buffer");
            for ticket in tickets {
                let fate = stream.sender_mut().wait(ticket, soon()).unwrap();
                assert!(matches!(fate, Fate::Released { accepted: RECORD, .. }), "{fate:?}");
            }
            let stats = stream.sender().stats();
            assert!(stats.zero_copy_calls >= MESSAGES as u64, "{stats:?}");
            assert!(stream.close(soon()).drained);
            assert_arrived(&peer.join().unwrap(), LEN, MESSAGES);
            assert_all_free(&pool);
        }
    }
}
