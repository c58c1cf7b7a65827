//! Wake-ups, counted: one for each event that a task waits for, and none while nothing changes.

use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use pinbuf::sender::SenderBuilder;
use tokio::io::AsyncReadExt;

use crate::{
    LEN, calls,
    common::{
        STALLED, TIGHT, assert_arrived, eventually, pattern, process::alone, reader, zero_copy,
    },
    counted, one_thread, runtimes, soon, stream, stream_of,
};

const COUNT: usize = 20;

#[test]
fn a_send_wakes_its_task_twice_at_most() {
    // The end of a runtime of another test would wake these tasks too.
    alone(|| {
        for runtime in runtimes() {
            for builder in [zero_copy(), zero_copy().max_in_flight_sends(1)] {
                runtime.block_on(sends(builder));
            }
        }
    });
}

async fn sends(builder: SenderBuilder) {
    let (mut stream, far) = stream_of(builder, TIGHT);
    let peer = reader(far, Duration::ZERO);
    // Each is accepted in many parts.
    const LEN: usize = 16 * crate::LEN;
    for seed in 0..COUNT {
        // One for room, and one for the acceptance of the last byte.
        let (sent, polls) = counted(soon(stream.send(pattern(LEN, seed)))).await;
        sent.unwrap();
        assert!(polls <= 3, "{polls}");
    }
    let (drained, polls) = counted(soon(stream.drain())).await;
    drained.unwrap();
    assert!(polls <= 2, "{polls}");
    let (report, polls) = counted(soon(stream.close(None))).await;
    assert!(report.drained);
    assert!(polls <= 2, "{polls}");
    assert_arrived(&peer.join().unwrap(), LEN, COUNT);
}

/// The length of a send that goes without copy.
const PART: usize = 8000;

#[test]
fn a_notification_wakes_only_the_task_of_its_send() {
    // The end of a runtime of another test would wake these tasks too.
    alone(|| {
        for runtime in runtimes() {
            runtime.block_on(async {
                let (stream, mut far) = stream_of(zero_copy().threshold_bytes(4096), STALLED);
                let (mut read, mut write) = stream.into_split();
                let reading =
                    tokio::spawn(counted(async move { soon(read.read_u8()).await.unwrap() }));
                let mut releases = Vec::new();
                for seed in 0..COUNT {
                    let ticket = soon(write.send(pattern(PART, seed))).await.unwrap();
                    releases.push(tokio::spawn(counted(soon(write.released(ticket)))));
                }
                // Every task waits before the first release.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let peer = thread::spawn(move || {
                    for _ in 0..COUNT {
                        far.read_exact(&mut [0; PART]).unwrap();
                        // So that many notifications come.
                        thread::sleep(Duration::from_millis(2));
                    }
                    far
                });
                for released in releases {
                    let (fate, polls) = released.await.unwrap();
                    assert!(fate.unwrap().is_released());
                    assert!(polls <= 2, "{polls}");
                }
                let mut far = peer.join().unwrap();
                far.write_all(&[7]).unwrap();
                assert_eq!(reading.await.unwrap(), (7, 2));
            });
        }
    });
}

#[test]
fn nothing_is_woken_while_all_peers_stall() {
    alone(|| {
        for runtime in runtimes() {
            const STREAMS: usize = 20;
            let waiting = Arc::new(AtomicUsize::new(0));
            let mut peers = Vec::new();
            let mut tasks = Vec::new();
            for _ in 0..STREAMS {
                let (stream, far) = {
                    let _entered = runtime.enter();
                    stream(STALLED)
                };
                peers.push(far);
                let waiting = Arc::clone(&waiting);
                tasks.push(runtime.spawn(async move {
                    let (mut read, mut write) = stream.into_split();
                    let first = write.send(pattern(LEN, 0)).await.unwrap();
                    let released = write.released(first);
                    let sent = async {
                        waiting.fetch_add(1, Ordering::Relaxed);
                        write.send(pattern(8 << 20, 1)).await
                    };
                    let (fate, sent, _) =
                        tokio::join!(counted(released), counted(sent), counted(read.read_u8()));
                    [fate.1, sent.1]
                }));
            }
            let (over, ends) = tokio::sync::oneshot::channel();
            let driving = thread::spawn(move || {
                runtime.block_on(ends).unwrap();
                runtime
            });
            eventually("all wait", || waiting.load(Ordering::Relaxed) == STREAMS);
            // At first there are notifications, and some room. Then the looks for overdue notifications are
            // left: the wait of the timer, and for each stream the news, a try of the unsent part, and the queue before
            // and after.
            let mut calls = calls::of_all();
            eventually("only looks are left, at most one a second and stream", || {
                thread::sleep(Duration::from_millis(2500));
                let before = std::mem::replace(&mut calls, calls::of_all());
                let new = calls - before;
                new.questions == 0
                    && new.sends <= 3 * STREAMS
                    && new.looks <= 6 * STREAMS
                    && new.waits <= 3 * (STREAMS + 5)
            });
            drop(peers);
            over.send(()).unwrap();
            let runtime = driving.join().unwrap();
            for task in tasks {
                let polls = runtime.block_on(soon(task)).unwrap();
                assert!(polls.iter().all(|polls| *polls <= 3), "{polls:?}");
            }
        }
    });
}

/// The driver looks once for each edge, and an idle or busy task adds nothing.
#[test]
fn news_is_taken_once() {
    alone(|| {
        one_thread().block_on(async {
            let (mut stream, far) = stream(Default::default());
            let peer = reader(far, Duration::ZERO);
            for seed in 0..COUNT {
                let ticket = soon(stream.send(pattern(LEN, seed))).await.unwrap();
                assert!(soon(stream.released(ticket)).await.unwrap().is_released());
            }
            let before = calls::of_this_thread();
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let idle = calls::of_this_thread() - before;
            assert_eq!((idle.looks, idle.sends), (0, 0), "{idle:?}");
            let all = calls::of_this_thread();
            // A send, the wait of the runtime, the news, the queue: the polls of the task and the driver.
            assert!(all.looks <= 4 * COUNT, "{all:?}");
            assert!(all.waits <= 8 * COUNT, "{all:?}");
            drop(stream);
            assert_arrived(&peer.join().unwrap(), LEN, COUNT);
        });
    });
}

/// Data is news for the reader alone.
#[test]
fn data_costs_no_look_at_the_error_queue_or_the_connection() {
    alone(|| {
        one_thread().block_on(soon(async {
            let (mut stream, mut far) = stream(Default::default());
            let ticket = stream.send(pattern(LEN, 0)).await.unwrap();
            far.read_exact(&mut vec![0; LEN]).unwrap();
            assert!(stream.released(ticket).await.unwrap().is_released());
            let (bytes, mut read) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(async move {
                while let Ok(byte) = stream.read_u8().await {
                    bytes.send(byte).unwrap();
                }
            });
            let mut before = calls::of_this_thread();
            for round in 0..=COUNT as u8 {
                // The task waits by now.
                far.write_all(&[round]).unwrap();
                assert_eq!(read.recv().await, Some(round));
                tokio::task::yield_now().await;
                if round == 0 {
                    before = calls::of_this_thread();
                }
            }
            let calls = calls::of_this_thread() - before;
            assert_eq!((calls.looks, calls.options), (0, 0), "{calls:?}");
            // Three of the runtime, one of them for the pause of this test. The news for the driver, and again
            // for the next wait of the task.
            assert!(calls.waits <= 5 * COUNT, "{calls:?}");
        }));
    });
}

#[test]
fn a_stream_leaves_no_task_and_no_descriptor() {
    alone(|| {
        let runtime = one_thread();
        runtime.block_on(async {
            let tasks = tokio::runtime::Handle::current().metrics();
            let files = crate::common::process::open_files();
            for _ in 0..3 {
                let (mut stream, far) = stream(Default::default());
                let peer = reader(far, Duration::ZERO);
                let ticket = stream.send(pattern(LEN, 0)).await.unwrap();
                assert!(soon(stream.released(ticket)).await.unwrap().is_released());
                // The driver waits, and only the end of the stream can end it.
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert!((1..=2).contains(&tasks.num_alive_tasks()), "the driver, and the looks");
                drop(stream);
                tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
                soon(async {
                    while tasks.num_alive_tasks() > 0 {
                        tokio::task::yield_now().await;
                    }
                })
                .await;
            }
            assert!(pinbuf::reaper::wait_idle(crate::common::soon()));
            // The reaper's own two.
            assert!(crate::common::process::open_files() <= files + 2);
        });
    });
}
