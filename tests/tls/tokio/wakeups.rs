//! Wake-ups, counted: one for each event that a task waits for, and none while nothing changes.

use std::{
    future::poll_fn,
    io::Write,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use ::tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use rustls::version::TLS13;

use super::{PATIENCE, counted, dropped_after, join, runtimes, soon};
use crate::{
    common::{STALLED, TIGHT, pair_at, pattern, pool},
    peer::{Role, SetUp},
};

#[test]
fn a_buffer_of_a_send_wakes_its_task_three_times_at_most() {
    for runtime in runtimes() {
        runtime.block_on(soon(async {
            let pool = pool(64 << 10, 2);
            let set_up = SetUp::new(Role::Server, &TLS13);
            let (mut stream, mut peer) =
                set_up.over_in_task(pair_at("127.0.0.1:0", TIGHT), &pool).await;
            let reading = thread::spawn(move || peer.fetch(4 << 20));
            let data = pattern(4 << 20, 0);
            let (tickets, polls) = counted(stream.send(&data)).await;
            let tickets = tickets.unwrap();
            // For each: a buffer, room. For the last: the acceptance. The turns of a full budget are few.
            let most = 3 * tickets.len() + 2;
            assert!(polls <= most, "{polls} of {most}");
            join(reading).await;
        }));
    }
}

#[test]
fn neither_half_is_woken_while_the_peer_stalls() {
    for runtime in runtimes() {
        runtime.block_on(soon(async {
            let pool = pool(64 << 10, 4);
            let set_up = SetUp::new(Role::Client, &TLS13);
            let (stream, mut peer) =
                set_up.over_in_task(pair_at("127.0.0.1:0", STALLED), &pool).await;
            let (mut read, mut write) = split(stream);
            let polls = Arc::new(AtomicUsize::new(0));
            let writing = ::tokio::spawn(telling(Arc::clone(&polls), async move {
                write.write_all(&pattern(8 << 20, 0)).await
            }));
            let reading = counted(async move { read.read_u8().await.unwrap() });
            let reading = ::tokio::spawn(telling(Arc::clone(&polls), reading));
            // A timer of one second would leave no pause.
            let mut before = usize::MAX;
            while before != polls.load(Ordering::Relaxed) {
                before = polls.load(Ordering::Relaxed);
                ::tokio::time::sleep(Duration::from_millis(1500)).await;
            }
            peer.write_all(b"x").unwrap();
            let (byte, polls) = reading.await.unwrap();
            assert_eq!(byte, b'x');
            // At first, for room while the write had to wait, and for the byte.
            assert!(polls <= 5, "{polls}");
            writing.abort();
        }));
    }
}

/// A write waits for room, a read of another task then has to send too, and is given up.
#[test]
fn a_dropped_read_takes_no_wake_up_of_a_write_along() {
    for runtime in runtimes() {
        runtime.block_on(soon(async {
            let pool = pool(64 << 10, 4);
            let set_up = SetUp::new(Role::Client, &TLS13);
            let (stream, mut peer) =
                set_up.over_in_task(pair_at("127.0.0.1:0", TIGHT), &pool).await;
            let (mut read, mut write) = split(stream);
            let polls = Arc::new(AtomicUsize::new(0));
            let writing = ::tokio::spawn(telling(Arc::clone(&polls), async move {
                write.write_all(&pattern(200_000, 0)).await.unwrap();
                write.flush().await.unwrap();
                write
            }));
            while polls.load(Ordering::Relaxed) == 0 {
                ::tokio::task::yield_now().await;
            }
            assert!(dropped_after(1, read.read_u8()).await.is_none());
            let peer = thread::spawn(move || {
                peer.fetch(200_000);
                peer
            });
            let stream = read.unsplit(writing.await.unwrap());
            let mut peer = join(peer).await;
            peer.close();
            assert!(stream.close(PATIENCE).await.drained);
        }));
    }
}

/// Tells the polls of a future while the future is pending.
async fn telling<F: Future>(polls: Arc<AtomicUsize>, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        polls.fetch_add(1, Ordering::Relaxed);
        future.as_mut().poll(cx)
    })
    .await
}
