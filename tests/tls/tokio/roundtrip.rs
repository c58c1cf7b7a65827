//! All bytes arrive, in both directions, over all boundaries.

use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use ::tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use pinbuf::{Fate, Policy, rustls::TlsError};
use rustls::version::TLS13;

use super::{PATIENCE, dropped_after, in_all_runtimes, join, one_thread, runtimes, soon};
use crate::{
    common::{
        STALLED, TIGHT, assert_all_free, assert_arrived, assert_same, pair_at, pattern, pool,
        wait_until_all_free,
    },
    peer::{Peer, Role, SetUp},
};

const LENGTHS: [usize; 10] = [1, 17, 16_383, 16_384, 16_385, 40_000, 65_400, 65_600, 200_000, 3];

/// Sends back what it reads, on a thread, up to the end.
fn echo(mut peer: Box<dyn Peer>) -> thread::JoinHandle<Box<dyn Peer>> {
    thread::spawn(move || {
        let mut piece = vec![0; 50_000];
        loop {
            match peer.read(&mut piece).unwrap() {
                0 => peer.close(),
                len => {
                    peer.write_all(&piece[..len]).unwrap();
                    continue;
                }
            }
            return peer;
        }
    })
}

#[test]
fn sends_of_every_length_arrive_and_are_released() {
    in_all_runtimes(async |set_up| {
        let pool = pool(64 << 10, 4);
        let (mut stream, mut peer) = set_up.connect_in_task(&pool).await;
        let reader = thread::spawn(move || {
            for len in LENGTHS {
                assert_same(&peer.fetch(len), &pattern(len, len));
            }
            peer.close();
            peer
        });
        for len in LENGTHS {
            let tickets = stream.send(&pattern(len, len)).await.unwrap();
            let sent: usize = tickets.iter().map(|ticket| ticket.len()).sum();
            assert!(sent > len, "{sent}");
            for ticket in tickets {
                assert!(stream.released(ticket).await.unwrap().is_released());
            }
        }
        assert_eq!(stream.send(b"").await.unwrap(), []);
        assert!(stream.close(PATIENCE).await.drained);
        join(reader).await;
        assert_all_free(&pool);
    });
}

#[test]
fn written_and_read_bytes_arrive_in_pieces_of_any_length() {
    in_all_runtimes(async |set_up| {
        let pool = pool(64 << 10, 4);
        let (mut stream, peer) = set_up.connect_in_task(&pool).await;
        let echo = echo(peer);
        for len in LENGTHS {
            let piece = pattern(len, len);
            stream.write_all(&piece).await.unwrap();
            // The read sends first.
            let mut answer = vec![0; len];
            stream.read_exact(&mut answer).await.unwrap();
            assert_same(&answer, &piece);
        }
        stream.finish().await.unwrap();
        assert_eq!(stream.read(&mut [0; 10]).await.unwrap(), 0);
        join(echo).await;
        assert!(stream.close(PATIENCE).await.drained);
        assert_all_free(&pool);
    });
}

#[test]
fn a_single_slot_suffices() {
    in_all_runtimes(async |set_up| {
        let pool = pool(16 << 10, 1);
        let (mut stream, mut peer) =
            set_up.over_in_task(pair_at("127.0.0.1:0", TIGHT), &pool).await;
        let data = pattern(300_000, 3);
        let reader = thread::spawn(move || peer.fetch(600_000));
        stream.write_all(&data).await.unwrap();
        let tickets = stream.send(&data).await.unwrap();
        assert!(tickets.len() > 18);
        let read = join(reader).await;
        assert_same(&read[..300_000], &data);
        assert_same(&read[300_000..], &data);
        stream.drain().await.unwrap();
        assert_all_free(&pool);
    });
}

/// The data goes both ways at once through small sockets, and the peer asks for new keys meanwhile, so that
/// both tasks have something to send.
#[test]
fn halves_in_two_tasks_send_and_read_at_once() {
    const LEN: usize = 2 << 20;
    for role in [Role::Client, Role::Server] {
        for runtime in runtimes() {
            let pool = pool(32 << 10, 2);
            runtime.block_on(soon(async {
                let set_up = SetUp::new(role, &TLS13);
                let (stream, mut peer) =
                    set_up.over_in_task(pair_at("127.0.0.1:0", TIGHT), &pool).await;
                let echo = thread::spawn(move || {
                    for round in 0..LEN / 10_000 {
                        let bytes = peer.fetch(10_000);
                        if round % 5 == 0 {
                            peer.refresh_keys();
                        }
                        peer.write_all(&bytes).unwrap();
                    }
                    peer
                });
                let (mut read, mut write) = split(stream);
                let data = pattern(LEN / 10_000 * 10_000, 9);
                let expected = data.clone();
                let writing = ::tokio::spawn(async move {
                    for piece in data.chunks(70_000) {
                        write.write_all(piece).await.unwrap();
                    }
                    write.flush().await.unwrap();
                    write
                });
                let mut arrived = vec![0; expected.len()];
                read.read_exact(&mut arrived).await.unwrap();
                assert_same(&arrived, &expected);
                let stream = read.unsplit(writing.await.unwrap());
                let mut peer = join(echo).await;
                peer.close();
                assert!(stream.close(PATIENCE).await.drained);
            }));
            wait_until_all_free(&pool);
        }
    }
}

#[test]
fn records_wait_in_their_buffers_for_a_stalled_peer() {
    const LEN: usize = 16 << 10;
    const MESSAGES: usize = 40;
    for role in [Role::Client, Role::Server] {
        let mut set_up = SetUp::new(role, &TLS13);
        set_up.policy = Policy::Require;
        one_thread().block_on(soon(async {
            let pool = pool(20 << 10, 4);
            let (mut stream, mut peer) =
                set_up.over_in_task(pair_at("127.0.0.1:0", STALLED), &pool).await;
            let peer = thread::spawn(move || {
                thread::sleep(Duration::from_millis(100));
                let mut arrived = Vec::new();
                peer.read_to_end(&mut arrived).unwrap();
                arrived
            });
            let mut tickets = Vec::new();
            for seed in 0..MESSAGES {
                tickets.extend(stream.send(&pattern(LEN, seed)).await.unwrap());
            }
            for ticket in tickets {
                let fate = stream.released(ticket).await.unwrap();
                assert!(matches!(fate, Fate::Released { .. }), "{fate:?}");
            }
            assert!(stream.stream().stats().zero_copy_calls >= MESSAGES as u64);
            assert!(stream.close(PATIENCE).await.drained);
            assert_arrived(&join(peer).await, LEN, MESSAGES);
            assert_all_free(&pool);
        }));
    }
}

#[test]
fn slots_too_small_for_a_record_are_an_error() {
    in_all_runtimes(async |set_up| {
        let (mut stream, _peer) = set_up.connect_in_task(&pool(20, 4)).await;
        let error = stream.send(b"x").await.unwrap_err();
        assert!(matches!(error, TlsError::TooSmall { capacity: 20 }), "{error}");
        let error = stream.write(b"x").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    });
}

#[test]
fn protocol_and_certificates_are_shown() {
    in_all_runtimes(async |set_up| {
        let mut set_up = SetUp::with_client_certificate(set_up.role, set_up.version, true);
        set_up.client.alpn_protocols = vec![b"one".to_vec(), b"two".to_vec()];
        set_up.server.alpn_protocols = vec![b"two".to_vec()];
        let (stream, _peer) = set_up.connect_in_task(&pool(4096, 2)).await;
        let connection = stream.session().connection();
        assert_eq!(connection.alpn_protocol(), Some(&b"two"[..]));
        assert_eq!(connection.peer_certificates().unwrap().len(), 1);
        assert_eq!(connection.protocol_version(), Some(set_up.version.version));
    });
}

#[test]
fn a_request_for_new_keys_is_answered_without_a_write() {
    for role in [Role::Client, Role::Server] {
        one_thread().block_on(soon(async {
            let mut set_up = SetUp::new(role, &TLS13);
            // No bytes that look like an answer.
            set_up.server.send_tls13_tickets = 0;
            let (mut stream, mut peer) = set_up.connect_in_task(&pool(64 << 10, 2)).await;
            peer.refresh_keys();
            peer.write_all(b"request").unwrap();
            let answered = thread::spawn(move || {
                assert_eq!(peer.socket().peek(&mut [0]).unwrap(), 1, "an answer");
                peer.write_all(b"!").unwrap();
                peer
            });
            let mut request = [0; 8];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"request!");
            let mut peer = join(answered).await;
            stream.refresh_keys().await.unwrap();
            stream.send(b"after").await.unwrap();
            assert_eq!(peer.fetch(5), b"after");
        }));
    }
}

#[test]
fn a_full_buffer_is_sent_without_a_flush() {
    in_all_runtimes(async |set_up| {
        let (mut stream, mut peer) = set_up.connect_in_task(&pool(16 << 10, 2)).await;
        let taken = stream.write(&pattern(40_000, 0)).await.unwrap();
        assert!((1..16 << 10).contains(&taken), "{taken}");
        let arrived = thread::spawn(move || peer.fetch(taken));
        assert_same(&join(arrived).await, &pattern(40_000, 0)[..taken]);
        drop(stream);
    });
}

#[test]
fn written_records_are_sent_before_a_send_and_have_no_part_in_its_tickets() {
    in_all_runtimes(async |set_up| {
        let (mut stream, mut peer) = set_up.connect_in_task(&pool(16 << 10, 4)).await;
        let alone = stream.send(b"x").await.unwrap();
        stream.write_all(b"written").await.unwrap();
        let behind = stream.send(b"x").await.unwrap();
        assert_eq!((behind.len(), behind[0].len()), (1, alone[0].len()));
        assert_eq!(peer.fetch(9), b"xwrittenx");
    });
}

#[test]
fn a_drain_sends_written_records() {
    in_all_runtimes(async |set_up| {
        let pool = pool(16 << 10, 2);
        let (mut stream, mut peer) = set_up.connect_in_task(&pool).await;
        stream.write_all(b"written").await.unwrap();
        stream.drain().await.unwrap();
        assert_all_free(&pool);
        assert_eq!(peer.fetch(7), b"written");
    });
}

/// The first buffer is accepted in parts, the second is refused, and the first goes to another user of the pool.
#[test]
fn a_write_that_waits_for_a_buffer_sends_a_refused_buffer() {
    const SLOT: usize = 256 << 10;
    for runtime in runtimes() {
        let pool = pool(SLOT, 2);
        runtime.block_on(soon(async {
            let set_up = SetUp::new(Role::Client, &TLS13);
            let (mut stream, mut peer) =
                set_up.over_in_task(pair_at("127.0.0.1:0", TIGHT), &pool).await;
            let data = pattern(4 * SLOT, 0);
            let mut written = 0;
            for _ in 0..2 {
                written += stream.write(&data[written..]).await.unwrap();
            }
            assert_eq!(pool.stats().free(), 0, "the second buffer is refused");
            let mut other = Box::pin(pool.alloc_async(SLOT));
            assert!(dropped_after(1, other.as_mut()).await.is_none());
            let peer = thread::spawn(move || {
                let read = peer.fetch(3 * SLOT);
                peer.close();
                (read, peer)
            });
            while written < 3 * SLOT {
                written += stream.write(&data[written..3 * SLOT]).await.unwrap();
            }
            stream.flush().await.unwrap();
            let (read, _peer) = join(peer).await;
            assert_same(&read, &data[..3 * SLOT]);
            drop(other.await.unwrap());
            assert!(stream.close(PATIENCE).await.drained);
        }));
        wait_until_all_free(&pool);
    }
}

#[test]
fn sends_and_flushes_wait_until_the_socket_has_accepted_every_byte() {
    in_all_runtimes(async |set_up| {
        let pool = pool(1 << 20, 2);
        for flushes in [false, true] {
            let (mut stream, _peer) =
                set_up.over_in_task(pair_at("127.0.0.1:0", TIGHT), &pool).await;
            let data = pattern(900_000, 0);
            let accepted = if flushes {
                stream.write_all(&data).await.unwrap();
                dropped_after(1, stream.flush()).await.is_some()
            } else {
                dropped_after(1, stream.send(&data)).await.is_some()
            };
            assert!(!accepted, "one buffer, of which the socket takes a part");
            assert!(stream.abort().aborted);
        }
    });
}

/// The first buffer is accepted in parts, and the second is refused. Nothing but the read can send it.
#[test]
fn a_read_sends_what_the_socket_refused_before() {
    const SLOT: usize = 256 << 10;
    in_all_runtimes(async |set_up| {
        let pool = pool(SLOT, 2);
        let (mut stream, mut peer) =
            set_up.over_in_task(pair_at("127.0.0.1:0", TIGHT), &pool).await;
        let data = pattern(2 * SLOT, 0);
        let mut written = 0;
        for _ in 0..2 {
            written += stream.write(&data[written..]).await.unwrap();
        }
        let echo = thread::spawn(move || {
            assert_same(&peer.fetch(written), &data[..written]);
            peer.write_all(b"answer").unwrap();
            peer
        });
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        join(echo).await;
    });
}

/// A task that never waits lets others run.
#[test]
fn a_busy_task_yields() {
    for sends in [false, true] {
        one_thread().block_on(soon(async {
            let pool = pool(64 << 10, 4);
            let mut set_up = SetUp::new(Role::Client, &TLS13);
            set_up.policy = Policy::Never;
            let (mut stream, mut peer) = set_up.connect_in_task(&pool).await;
            let peer = thread::spawn(move || while peer.read(&mut [0; 1000]).is_ok() {});
            let calls = Arc::new(AtomicUsize::new(0));
            let counting = Arc::clone(&calls);
            let busy = ::tokio::spawn(async move {
                for _ in 0..10_000 {
                    counting.fetch_add(1, Ordering::Relaxed);
                    if sends {
                        stream.send(b"x").await.unwrap();
                    } else {
                        stream.write_all(b"x").await.unwrap();
                    }
                }
            });
            ::tokio::task::yield_now().await;
            let calls = calls.load(Ordering::Relaxed);
            // The budget of a task, and the call that exceeds it.
            assert!(calls <= 129, "{calls}");
            busy.abort();
            join(peer).await;
        }));
    }
}
