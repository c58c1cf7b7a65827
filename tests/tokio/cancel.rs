//! Futures dropped at each of their polls: no byte is lost or sent twice, and no buffer is lost.

use std::{future::poll_fn, pin::Pin, time::Duration};

use futures_sink::Sink;
use pinbuf::{Payload, Pool, tokio::Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    LEN,
    common::{
        STALLED, TIGHT, closed_window, corrupt, eventually, filled, pattern, pool, reader,
        wait_until_all_free, zero_copy,
    },
    dropped_after, one_thread, runtimes, soon, stream, stream_of,
};

/// The most polls after which a future is dropped. No future of a stream has as many by itself.
const MOST: usize = 6;

/// The seeds of the buffers of a stream, each a whole one.
fn seeds(arrived: &[u8]) -> Vec<usize> {
    assert_eq!(arrived.len() % LEN, 0, "a buffer was cut");
    let seed = |chunk: &[u8]| {
        (0..500).find(|&seed| *pattern(LEN, seed) == *chunk).expect("a buffer was torn")
    };
    arrived.chunks(LEN).map(seed).collect()
}

#[test]
fn a_dropped_send_leaves_its_buffer_whole_or_unsent() {
    for runtime in runtimes() {
        for polls in 1..=MOST {
            let pool = pool(LEN, 8);
            runtime.block_on(soon(drops_sends(pool.clone(), polls)));
            wait_until_all_free(&pool);
        }
    }
}

/// Drops each send after so many polls, unless the send is over by then.
async fn drops_sends(pool: Pool, polls: usize) {
    let (mut stream, far) = stream(TIGHT);
    let peer = reader(far, Duration::from_millis(1));
    let (mut whole, mut refused) = (Vec::new(), Vec::new());
    for seed in 0..60 {
        let buf = filled(pool.alloc_async(LEN).await.unwrap(), LEN, seed);
        let sent = if seed % 3 < 2 {
            dropped_after(polls, stream.send(buf)).await.transpose().unwrap()
        } else {
            let mut bufs = vec![buf.into()];
            let sent = dropped_after(polls, stream.send_vectored(&mut bufs)).await;
            if !bufs.is_empty() {
                refused.push(seed);
            }
            sent.transpose().unwrap()
        };
        whole.extend(sent.map(|ticket| (ticket.sequence() as usize, seed)));
        dropped_after(polls, stream.flush()).await.transpose().unwrap();
    }
    dropped_after(polls, stream.drain()).await.transpose().unwrap();
    stream.drain().await.unwrap();
    // The first poll begins the end, which goes on in the background.
    let _ = dropped_after(polls, stream.close(None)).await;
    let arrived = tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
    let arrived = seeds(&arrived);
    assert!(arrived.is_sorted_by(|one, next| one < next), "{arrived:?}");
    for (place, seed) in whole {
        assert_eq!(arrived[place], seed, "a send before was lost, or sent twice");
    }
    assert!(!refused.iter().any(|seed| arrived.contains(seed)), "{refused:?} {arrived:?}");
}

#[test]
fn a_dropped_release_can_be_awaited_anew() {
    one_thread().block_on(async {
        let (mut stream, far) = stream(STALLED);
        let ticket = soon(stream.send(pattern(LEN, 0))).await.unwrap();
        for polls in 1..=MOST {
            let released = stream.released(ticket);
            // Woken by itself, since nothing else happens.
            let woken = tokio::time::timeout(Duration::from_millis(1), released);
            assert!(dropped_after(polls, woken).await.is_none_or(|fate| fate.is_err()));
        }
        let _peer = reader(far, Duration::ZERO);
        assert!(soon(stream.released(ticket)).await.unwrap().is_released());
        drop(stream);
    });
}

#[test]
fn a_dropped_read_or_write_loses_nothing() {
    for runtime in runtimes() {
        for polls in 1..=3 {
            runtime.block_on(soon(async {
                let (near, far) = tokio::net::UnixStream::pair().unwrap();
                let (mut near, mut far) = (Stream::new(near).unwrap(), Stream::new(far).unwrap());
                let expected: Vec<u8> = pattern(1 << 20, polls).to_vec();
                let (mut sent, mut arrived) = (0, Vec::<u8>::new());
                // All that the socket holds, so that a write that waits has room after a read.
                let mut into = vec![0; 1 << 20];
                while arrived.len() < expected.len() {
                    // Polls without a pause use up the budget of the task.
                    tokio::task::yield_now().await;
                    let (write, read) = tokio::join!(
                        dropped_after(polls, near.write(&expected[sent..])),
                        dropped_after(polls, far.read(&mut into)),
                    );
                    sent += write.transpose().unwrap().unwrap_or(0);
                    let read = read.transpose().unwrap().unwrap_or(0);
                    arrived.extend(&into[..read]);
                }
                assert!(arrived == expected);
            }));
        }
    }
}

#[test]
fn a_payload_in_the_sink_outlives_a_dropped_flush() {
    for polls in 1..=MOST {
        one_thread().block_on(soon(async {
            let (mut stream, far) = stream_of(zero_copy().max_in_flight_sends(1), STALLED);
            let filled = 2;
            for seed in 0..filled {
                soon(poll_fn(|cx| Sink::poll_ready(Pin::new(&mut stream), cx))).await.unwrap();
                // The sink keeps the second, since the peer reads nothing yet.
                Pin::new(&mut stream).start_send(pattern(LEN, seed).into()).unwrap();
            }
            let peer = reader(far, Duration::from_millis(1));
            let flush = poll_fn(|cx| Sink::<Payload>::poll_flush(Pin::new(&mut stream), cx));
            dropped_after(polls, flush).await.transpose().unwrap();
            stream.write_all(&pattern(LEN, filled)).await.unwrap();
            dropped_after(polls, stream.shutdown()).await.transpose().unwrap();
            drop(stream);
            let arrived = tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
            assert_eq!(seeds(&arrived), Vec::from_iter(0..=filled));
        }));
    }
}

#[test]
fn a_dropped_close_ends_the_stream_in_the_background() {
    for polls in 1..=2 {
        let pool = pool(LEN, 1);
        one_thread().block_on(soon(async {
            let (mut stream, far) = stream(STALLED);
            let buf = filled(pool.alloc_async(LEN).await.unwrap(), LEN, 0);
            stream.send(buf).await.unwrap();
            closed_window(stream.get_ref());
            let close = tokio::time::timeout(Duration::from_millis(5), stream.close(None));
            assert!(dropped_after(polls, close).await.is_none_or(|report| report.is_err()));
            let peer = reader(far, Duration::ZERO);
            let arrived = tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
            assert!(corrupt(&arrived, LEN).is_empty() && arrived.len() == LEN);
        }));
        eventually("the buffer is back", || pool.stats().free() == 1);
    }
}

#[test]
fn a_wait_of_a_task_that_migrates_is_over_where_the_task_is() {
    // The future is polled by a thread of one runtime, and then by one of another.
    let [first, second] = [one_thread(), one_thread()];
    let (mut stream, far) = {
        let _entered = first.enter();
        stream(STALLED)
    };
    let ticket = first.block_on(stream.send(pattern(LEN, 0))).unwrap();
    let mut released = Box::pin(stream.released(ticket));
    assert!(first.block_on(dropped_after(1, released.as_mut())).is_none());
    // The driver is in the first runtime, which runs in a thread of its own.
    let (ended, ends) = tokio::sync::oneshot::channel::<()>();
    let driving = std::thread::spawn(move || first.block_on(ends));
    let peer = reader(far, Duration::ZERO);
    assert!(second.block_on(soon(released)).unwrap().is_released());
    second.block_on(soon(stream.send(pattern(LEN, 1)))).unwrap();
    drop(stream);
    ended.send(()).unwrap();
    driving.join().unwrap().unwrap();
    assert_eq!(seeds(&peer.join().unwrap()), [0, 1]);
}
