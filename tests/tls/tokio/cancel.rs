//! Futures dropped at each of their polls: the stream goes on in order, and no buffer is lost.

use std::{
    io::{Read, Write},
    thread,
    time::Duration,
};

use ::tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use pinbuf::{Pool, rustls::tokio::TlsStream, tokio::Stream};
use rustls::version::TLS13;

use super::{PATIENCE, dropped_after, join, one_thread, runtimes, soon};
use crate::{
    common::{
        TIGHT, assert_all_free, assert_same, pair, pair_at, pattern, pool, wait_until_all_free,
    },
    peer::{Peer, Role, SetUp, server_name},
};

/// The most polls after which a future is dropped. A handshake has as many at least.
const MOST: usize = 6;

const ROLES: [Role; 2] = [Role::Client, Role::Server];

/// Reads to the end, slowly at first.
fn reader(mut peer: Box<dyn Peer>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut read = vec![0; 20_000];
        for part in read.chunks_mut(1000) {
            peer.read_exact(part).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        peer.read_to_end(&mut read).unwrap();
        read
    })
}

/// Waits for the end of the peer's reading.
async fn read_by(reading: thread::JoinHandle<Vec<u8>>, stream: TlsStream) -> Vec<u8> {
    // A client of plain `rustls` ends with the connection, and `close` waits for its end.
    let closing = stream.close(PATIENCE);
    let (report, read) = ::tokio::join!(closing, join(reading));
    assert!(report.drained, "{report:?}");
    read
}

/// A message whose first byte is in no other place.
fn message(len: usize, seed: usize) -> Vec<u8> {
    let mut message: Vec<u8> = pattern(len, seed).iter().map(|byte| byte % 255).collect();
    message[0] = 255;
    message
}

#[test]
fn of_a_dropped_send_a_beginning_arrives() {
    const LEN: usize = 50_000;
    for role in ROLES {
        for runtime in runtimes() {
            for polls in 1..=MOST {
                let pool = pool(16 << 10, 3);
                runtime.block_on(soon(async {
                    let set_up = SetUp::new(role, &TLS13);
                    let (mut stream, peer) =
                        set_up.over_in_task(pair_at("127.0.0.1:0", TIGHT), &pool).await;
                    let reading = reader(peer);
                    let mut whole = Vec::new();
                    for seed in 0..30 {
                        let message = message(LEN, seed);
                        let sent = dropped_after(polls, stream.send(&message)).await;
                        whole.push(sent.transpose().unwrap().is_some());
                    }
                    stream.send(&message(LEN, 30)).await.unwrap();
                    whole.push(true);
                    let read = read_by(reading, stream).await;
                    let mut arrived = read.split(|byte| *byte == 255).skip(1).peekable();
                    for (seed, whole) in whole.into_iter().enumerate() {
                        let message = &message(LEN, seed)[1..];
                        let got = arrived.next_if(|got| message.starts_with(got));
                        assert!(!whole || got.is_some_and(|got| got.len() == LEN - 1), "{seed}");
                    }
                    assert_eq!(arrived.next(), None, "no message out of order");
                    assert_all_free(&pool);
                }));
            }
        }
    }
}

#[test]
fn a_dropped_write_has_written_nothing() {
    for role in ROLES {
        for runtime in runtimes() {
            for polls in 1..=MOST {
                let pool = pool(16 << 10, 2);
                runtime.block_on(soon(async {
                    let set_up = SetUp::new(role, &TLS13);
                    let (mut stream, peer) =
                        set_up.over_in_task(pair_at("127.0.0.1:0", TIGHT), &pool).await;
                    let reading = reader(peer);
                    let data = pattern(500_000, polls);
                    let mut left = &data[..];
                    let mut refreshed = false;
                    while !left.is_empty() {
                        let part = &left[..left.len().min(30_000)];
                        let written = dropped_after(polls, stream.write(part)).await;
                        left = &left[written.transpose().unwrap().unwrap_or(0)..];
                        let flushed = dropped_after(polls, stream.flush()).await;
                        flushed.transpose().unwrap();
                        if !refreshed && left.len() < 250_000 {
                            let new_keys = dropped_after(polls, stream.refresh_keys()).await;
                            new_keys.transpose().unwrap();
                            refreshed = true;
                        }
                        dropped_after(polls, stream.drain()).await.transpose().unwrap();
                        // Polls without a pause use up the budget of the task.
                        ::tokio::task::yield_now().await;
                    }
                    dropped_after(polls, stream.finish()).await.transpose().unwrap();
                    dropped_after(polls, stream.shutdown()).await.transpose().unwrap();
                    assert_same(&read_by(reading, stream).await, &data);
                    assert_all_free(&pool);
                }));
            }
        }
    }
}

#[test]
fn a_dropped_read_has_read_nothing() {
    for role in ROLES {
        for polls in 1..=3 {
            one_thread().block_on(soon(async {
                let set_up = SetUp::new(role, &TLS13);
                let (mut stream, mut peer) = set_up.connect_in_task(&pool(16 << 10, 2)).await;
                let data = pattern(200_000, polls);
                let sent = data.clone();
                let writing = thread::spawn(move || {
                    for part in sent.chunks(10_000) {
                        peer.write_all(part).unwrap();
                        thread::sleep(Duration::from_millis(1));
                    }
                    peer.close();
                    peer
                });
                let mut arrived = Vec::new();
                let mut into = [0; 7000];
                loop {
                    ::tokio::task::yield_now().await;
                    match dropped_after(polls, stream.read(&mut into)).await.transpose().unwrap() {
                        None => {}
                        Some(0) => break,
                        Some(count) => arrived.extend(&into[..count]),
                    }
                }
                assert_same(&arrived, &data);
                join(writing).await;
            }));
        }
    }
}

#[test]
fn a_dropped_handshake_ends_the_connection() {
    for role in ROLES {
        for polls in 1..=MOST {
            one_thread().block_on(soon(async {
                let set_up = SetUp::new(role, &TLS13);
                let (near, far) = pair();
                let (stream, pool) = (Stream::new(near).unwrap(), pool(4096, 1));
                let peer = set_up.start_peer(far);
                let stream = match role {
                    Role::Client => {
                        let shaking =
                            TlsStream::connect(stream, &pool, set_up.client(), server_name());
                        dropped_after(polls, shaking).await
                    }
                    Role::Server => {
                        let shaking = TlsStream::accept(stream, &pool, set_up.server());
                        dropped_after(polls, shaking).await
                    }
                };
                match stream.transpose().unwrap() {
                    // The peer's side may be complete before this one's.
                    None => {
                        if let Ok(mut peer) = join(peer).await {
                            peer.read(&mut [0]).unwrap_err();
                        }
                    }
                    Some(stream) => {
                        let mut peer = join(peer).await.unwrap();
                        peer.close();
                        assert!(stream.close(PATIENCE).await.drained);
                    }
                }
            }));
        }
    }
}

#[test]
fn a_dropped_close_is_a_dropped_stream() {
    for role in ROLES {
        for polls in 1..=2 {
            let pool = pool(16 << 10, 2);
            one_thread().block_on(soon(async {
                let set_up = SetUp::new(role, &TLS13);
                let (mut stream, mut peer) = set_up.connect_in_task(&pool).await;
                stream.write_all(b"last").await.unwrap();
                let closing = timeout(Duration::from_millis(5), stream.close(None));
                assert!(dropped_after(polls, closing).await.is_none_or(|report| report.is_err()));
                // The socket had room, so the peer has it all, and the end.
                let mut read = Vec::new();
                peer.read_to_end(&mut read).unwrap();
                assert_eq!(read, b"last");
            }));
            wait_until_all_free(&pool);
        }
    }
}

/// The next in the queue for the only buffer.
async fn next(pool: &Pool) {
    drop(pool.alloc_async(1).await.unwrap());
}

#[test]
fn a_dropped_send_leaves_the_queue_of_the_pool() {
    one_thread().block_on(soon(async {
        let pool = pool(16 << 10, 1);
        let (mut stream, _peer) = SetUp::new(Role::Client, &TLS13).connect_in_task(&pool).await;
        let held = pool.try_alloc(1).unwrap();
        assert!(dropped_after(1, stream.send(b"waits")).await.is_none());
        drop(held);
        next(&pool).await;
    }));
}

#[test]
fn a_dropped_write_leaves_the_queue_of_the_pool_with_the_next_call() {
    one_thread().block_on(soon(async {
        let pool = pool(16 << 10, 1);
        let (mut stream, mut peer) = SetUp::new(Role::Client, &TLS13).connect_in_task(&pool).await;
        for round in 0..3 {
            let held = pool.try_alloc(1).unwrap();
            assert!(dropped_after(1, stream.write(b"waits")).await.is_none());
            drop(held);
            // The buffer is granted to the stream.
            pool.try_alloc(1).unwrap_err();
            match round {
                0 => stream.flush().await.unwrap(),
                1 => _ = stream.send(b"").await.unwrap(),
                _ => {
                    stream.write_all(b"written").await.unwrap();
                    stream.flush().await.unwrap();
                    assert_eq!(peer.fetch(7), b"written");
                }
            }
            next(&pool).await;
        }
    }));
}
