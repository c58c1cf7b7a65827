//! Programs that forbid the library's thread: the calls of the program do the work. Nothing is lost
//! or recycled early.

use std::{
    io::Read,
    net::TcpStream,
    pin::pin,
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use pinbuf::{
    Fate, Pool, Sender, WaitError,
    reaper::{forbid_thread, serve, stats, wait_idle},
    sender::SenderBuilder,
};

use crate::{
    calls,
    common::{
        self, STALLED, again, assert_all_free, assert_arrived, census, eventually, filled,
        must_succeed, pair_at, plays, pool,
        process::{alone, open_files, reapers, thread_count},
        take_error, test_of, within, zero_copy,
    },
};

const LEN: usize = 64 << 10;
const COUNT: usize = 8;

/// Runs the calling test in a new process without the library's thread.
fn threadless<F: FnOnce()>(body: F) {
    let test = test_of(&body);
    if !plays(test) {
        return must_succeed(again(&[], test, test));
    }
    assert!(forbid_thread());
    let threads = thread_count();
    body();
    assert_eq!((thread_count(), reapers()), (threads, vec![]));
}

/// A sender whose sends are all held by the peer, which reads nothing yet.
fn held(builder: SenderBuilder, pool: &Pool) -> (Sender<TcpStream>, TcpStream) {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = builder.adopt(near).unwrap();
    for seed in 0..COUNT {
        sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
    }
    (sender, far)
}

/// Reads all that is there; the buffers of the sockets may not take everything at once.
fn read_on(far: &mut TcpStream, got: &mut Vec<u8>) {
    far.set_nonblocking(true).unwrap();
    let _ = far.read_to_end(got);
}

#[test]
fn a_dropped_sender_waits_for_the_calls_of_the_program() {
    threadless(|| {
        let pool = pool(LEN, COUNT);
        let (sender, mut far) = held(zero_copy(), &pool);
        let in_flight = census(&pool);
        assert!(in_flight[2] > 0, "{in_flight:?}");
        drop(sender);
        let served = calls::during(|| (0..100).for_each(|_| assert_eq!(serve(), 1)));
        assert_eq!(census(&pool), in_flight, "nothing is recycled early");
        assert!(served.all() <= 100 * 4, "{served:?}");
        let mut got = Vec::new();
        eventually("the end comes", || {
            read_on(&mut far, &mut got);
            serve() == 0
        });
        read_on(&mut far, &mut got);
        assert_arrived(&got, LEN, COUNT);
        assert_all_free(&pool);
        assert_eq!((stats().owned, stats().ended), (0, 1));
    });
}

#[test]
fn each_end_serves_the_senders_dropped_before() {
    threadless(|| {
        let files = open_files();
        let pool = pool(LEN, COUNT);
        let (sender, mut far) = held(zero_copy(), &pool);
        drop(sender);
        let mut got = Vec::new();
        eventually("the ends of idle senders end the first one", || {
            read_on(&mut far, &mut got);
            drop(Sender::new(common::pair().0).unwrap());
            stats().ended == 1
        });
        read_on(&mut far, &mut got);
        assert_arrived(&got, LEN, COUNT);
        assert_all_free(&pool);
        drop(far);
        assert_eq!(open_files(), files);
    });
}

#[test]
fn a_close_and_the_waits_work_in_the_calling_thread() {
    threadless(|| {
        let pool = pool(LEN, COUNT);
        let (mut sender, mut far) = held(zero_copy(), &pool);
        assert_eq!(sender.drain(within(1)), Err(WaitError::TimedOut));
        assert!(pool.alloc_timeout(LEN, Duration::from_millis(20)).is_err());
        let report = sender.close(within(20));
        assert!(report.aborted && !report.drained, "{report:?}");
        assert_all_free(&pool);
        let mut got = Vec::new();
        read_on(&mut far, &mut got);
        assert_eq!(common::road::wrong(&got, LEN), (0, 0));

        // Small enough for the sockets of both ends.
        let (near, mut far) = common::pair();
        let mut sender = zero_copy().adopt(near).unwrap();
        let ticket = sender.send(filled(pool.alloc(LEN).unwrap(), LEN, 0)).unwrap();
        assert_eq!(
            sender.wait(ticket, within(60_000)),
            Ok(Fate::Released { accepted: LEN, copied: Some(true) })
        );
        assert!(sender.close(within(60_000)).drained);
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        assert_arrived(&got, LEN, 1);
        assert!(wait_idle(within(60_000)));
    });
}

#[test]
fn a_task_needs_a_loop_for_its_waits() {
    threadless(|| {
        let pool = pool(LEN, COUNT);
        let (mut sender, mut far) = held(zero_copy(), &pool);
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Err(WaitError::NoThread)) = sender.poll_drain(&mut cx) else {
            panic!("no thread wakes the task");
        };
        sender.event_fd().unwrap();
        assert!(sender.poll_drain(&mut cx).is_pending());
        let last: Vec<_> = std::iter::from_fn(|| pool.try_alloc(LEN).ok()).collect();
        let mut alloc = pin!(pool.alloc_async(LEN));
        let mut got = Vec::new();
        eventually("a buffer is free", || {
            read_on(&mut far, &mut got);
            alloc.as_mut().poll(&mut cx).is_ready()
        });
        drop(last);
        drop(sender);
        assert!(wait_idle(within(60_000)));
    });
}

#[test]
fn a_silent_peer_is_given_up_by_the_calls_of_the_program() {
    const LINGER: Duration = Duration::from_millis(300);
    threadless(|| {
        let pool = pool(LEN, COUNT);
        let (sender, far) = held(zero_copy().linger(LINGER), &pool);
        drop(sender);
        thread::sleep(2 * LINGER);
        assert_eq!(stats().owned, 1, "time alone ends nothing");
        eventually("the end is an abort", || serve() == 0);
        assert_eq!(take_error(&far), libc::ECONNRESET);
        assert_all_free(&pool);
    });
}

#[test]
fn a_running_thread_stays() {
    alone(|| {
        let pool = pool(LEN, COUNT);
        let (sender, mut far) = held(zero_copy(), &pool);
        drop(sender);
        assert!(!forbid_thread(), "the drop has started the thread");
        let mut got = Vec::new();
        eventually("the thread ends the sender", || {
            read_on(&mut far, &mut got);
            stats().ended == 1
        });
        assert_eq!((reapers().len(), serve()), (1, 0));
        read_on(&mut far, &mut got);
        assert_arrived(&got, LEN, COUNT);
        assert_all_free(&pool);
    });
}
