//! Looks for overdue notifications, counted in the paused time of tokio: at most one round a second and process.

use std::{io::Read, net::TcpStream as StdStream, os::fd::AsFd, time::Duration};

use pinbuf::tokio::{Released, Stream};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
    time::sleep,
};

use crate::{
    LEN, calls,
    common::{
        STALLED, closed_window, eventually, has_error, pattern, process::alone, read_error_queue,
        reader,
    },
    counted, one_thread, soon, stream,
};

/// The most looks of a round.
const MOST: usize = 64;

/// A runtime whose time goes on by itself when no task can run.
fn paused() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// A stream with a send that stays in flight.
async fn stalled() -> (Stream, StdStream, Released<StdStream>) {
    let (mut stream, far) = stream(STALLED);
    let ticket = stream.send(pattern(LEN, 0)).await.unwrap();
    closed_window(stream.get_ref());
    let released = stream.released(ticket);
    (stream, far, released)
}

/// The looks of this thread in so many seconds of the runtime.
async fn looks_in(seconds: u64) -> usize {
    let before = calls::of_this_thread();
    sleep(Duration::from_secs(seconds)).await;
    (calls::of_this_thread() - before).looks
}

#[test]
fn a_stream_is_looked_at_once_a_second_while_a_task_waits_for_a_release() {
    alone(|| {
        paused().block_on(async {
            let (stream, far, released) = stalled().await;
            // The present state is news at first.
            looks_in(1).await;
            assert_eq!(looks_in(100).await, 0, "no task waits");
            let waiting = tokio::spawn(counted(released));
            // The poll of the task itself looks too.
            let looks = looks_in(100).await;
            assert!((99..=101).contains(&looks), "{looks}");
            let peer = reader(far, Duration::ZERO);
            let (fate, polls) = waiting.await.unwrap();
            assert!(fate.unwrap().is_released());
            assert_eq!(polls, 2, "a look without news wakes no task");
            // A round that was due finds nothing in flight.
            looks_in(2).await;
            assert_eq!(looks_in(100).await, 0, "nothing is in flight");
            drop(stream);
            assert_eq!(peer.join().unwrap().len(), LEN);
        });
    });
}

#[test]
fn many_streams_share_the_looks_of_a_second() {
    alone(|| {
        paused().block_on(async {
            const STREAMS: usize = 3 * MOST / 2;
            let mut streams = Vec::new();
            let mut waiting: Vec<JoinHandle<_>> = Vec::new();
            for _ in 0..STREAMS {
                let (stream, far, released) = stalled().await;
                waiting.push(tokio::spawn(counted(released)));
                streams.push((stream, far));
            }
            sleep(Duration::from_millis(500)).await;
            let parks = || tokio::runtime::Handle::current().metrics().worker_park_count(0);
            let before = parks();
            // With little locked memory some sends went by copy.
            let holds = |stream: &Stream| stream.stats().in_flight_calls > 0;
            let holders = streams.iter().filter(|(stream, _)| holds(stream)).count();
            assert!(holders > 20, "{holders} of {STREAMS} streams hold something");
            assert_eq!(looks_in(30).await, 30 * holders.min(MOST));
            // Paused time parks the thread some three times for each timer.
            assert!(parks() - before <= 4 * 31, "{}", parks() - before);
            // Each had its turn.
            for ((stream, far), waiting) in streams.into_iter().zip(waiting) {
                let polls = if holds(&stream) { 2 } else { 1 };
                let _peer = reader(far, Duration::ZERO);
                drop(stream);
                let (fate, polled) = waiting.await.unwrap();
                assert!(fate.unwrap().is_released() && polled == polls);
            }
        });
    });
}

/// Has the peer read, and reads the notifications like another user of the socket. The runtime has no turn.
fn steal(stream: &Stream, mut far: &StdStream) {
    let mut left = LEN;
    while left > 0 {
        left -= far.read(&mut vec![0; LEN]).unwrap();
    }
    let near = stream.get_ref().as_fd();
    eventually("the last notification is on the queue", || has_error(&near));
    assert!(read_error_queue(near) > 0);
}

#[test]
fn a_stolen_notification_is_discovered_while_a_task_waits() {
    alone(|| {
        one_thread().block_on(soon(async {
            let (stream, far, released) = stalled().await;
            // The driver has no turn in between.
            steal(&stream, &far);
            assert!(released.await.unwrap().is_released());
            assert!(!stream.capabilities().supported, "poisoned");
        }));
    });
}

#[test]
fn the_looks_of_a_waiting_task_go_on_in_its_own_runtime() {
    alone(|| {
        let [first, second] = [(); 2].map(|()| paused());
        let (_first_stream, _first_far, released) = first.block_on(async {
            let (stream, far, released) = stalled().await;
            let waiting = tokio::spawn(released);
            assert!(looks_in(10).await >= 9);
            (stream, far, waiting)
        });
        second.block_on(async {
            let (_stream, _far, released) = stalled().await;
            tokio::spawn(released);
            assert!(looks_in(10).await <= 1, "the rounds are in the first runtime");
            first.shutdown_background();
            assert!(looks_in(10).await >= 9);
        });
        drop(released);
    });
}

#[test]
#[should_panic(expected = "timer")]
fn a_runtime_without_a_timer_is_refused() {
    let runtime = Builder::new_current_thread().enable_io().build().unwrap();
    let _entered = runtime.enter();
    let _ = stream(STALLED);
}
