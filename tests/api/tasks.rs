//! Senders in tasks: the library's thread or a loop of the program wakes each task once, a stalled
//! peer wakes none, and a dropped future leaves a usable sender.

use std::{
    future::poll_fn,
    io::{Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use pinbuf::{Fate, Policy, SendError, Sender, Ticket, WaitError, sender::IntoPayload};

use crate::common::{
    STALLED, TIGHT, assert_arrived, block_on, closed_window, eventually, filled, pair, pair_at,
    pattern, pool, process::alone, reader, reset, soon, wait_until_all_free, zero_copy,
};

const LEN: usize = 64 << 10;
const COUNT: usize = 50;

/// A task that polls when told to, and counts its wake-ups.
#[derive(Default)]
struct Task(Arc<Count>);

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Task {
    fn poll<T>(&self, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        poll(&mut Context::from_waker(&Waker::from(Arc::clone(&self.0))))
    }

    fn woken(&self) -> usize {
        self.0.0.load(Ordering::Relaxed)
    }
}

async fn send<P: IntoPayload + std::fmt::Debug>(
    sender: &mut Sender<TcpStream>,
    mut buf: P,
) -> Ticket {
    loop {
        match sender.try_send(buf) {
            Err(SendError::WouldBlock(refused)) => buf = refused,
            sent => return sent.unwrap(),
        }
        poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
    }
}

fn senders() -> [pinbuf::sender::SenderBuilder; 4] {
    [
        zero_copy(),
        zero_copy().max_in_flight_sends(2),
        Sender::builder(),
        Sender::builder().policy(Policy::Never),
    ]
}

#[test]
fn a_task_sends_everything_without_a_runtime() {
    for builder in senders() {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let peer = reader(far, Duration::from_millis(20));
        let pool = pool(LEN, 4);
        let mut sender = builder.adopt(near).unwrap();
        let (report, polls) = block_on(async {
            for seed in 0..COUNT {
                let buf = pool.alloc_async(LEN).await.unwrap();
                let ticket = send(&mut sender, filled(buf, LEN, seed)).await;
                poll_fn(|cx| sender.poll_flush(cx)).await.unwrap();
                assert_eq!(ticket.sequence(), seed as u64);
            }
            poll_fn(|cx| sender.poll_drain(cx)).await.unwrap();
            assert_eq!(sender.stats().in_flight_calls, 0);
            poll_fn(|cx| sender.poll_close(cx)).await.unwrap()
        });
        assert!(report.drained, "{report:?}");
        // Each wait ends with one wake-up, and each send has four.
        assert!(polls <= 5 * COUNT, "{polls}");
        assert_arrived(&peer.join().unwrap(), LEN, COUNT);
        wait_until_all_free(&pool);
    }
}

/// The loop of a program: waits for the descriptor, and then reaps or polls again.
fn readable(fd: &impl AsRawFd, timeout_ms: i32) -> bool {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: poll(2) reads and writes one entry, which outlives the call.
    unsafe { libc::poll(&raw mut entry, 1, timeout_ms) == 1 }
}

/// Polls a task in a loop that watches the descriptor, and returns the number of polls.
fn in_loop<T>(
    sender: &mut Sender<TcpStream>,
    mut poll: impl FnMut(&mut Sender<TcpStream>, &mut Context<'_>) -> Poll<T>,
) -> (T, usize) {
    let task = Task::default();
    for polls in 1.. {
        if let Poll::Ready(value) = task.poll(|cx| poll(sender, cx)) {
            assert_eq!(task.woken(), 0, "the polls read all news");
            return (value, polls);
        }
        assert!(readable(&sender.event_fd().unwrap(), 60_000), "news was missed: {sender:?}");
    }
    unreachable!()
}

#[test]
fn a_task_in_a_loop_needs_no_thread_of_the_library() {
    for builder in senders() {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let peer = reader(far, Duration::from_millis(20));
        let mut sender = builder.adopt(near).unwrap();
        sender.event_fd().unwrap();
        let mut turns = 0;
        for seed in 0..COUNT {
            let mut buf = pattern(LEN, seed);
            while let Err(error) = sender.try_send(buf) {
                let SendError::WouldBlock(refused) = error else { panic!("{error}") };
                buf = refused;
                turns += in_loop(&mut sender, |sender, cx| sender.poll_ready(cx)).1;
            }
        }
        let flushed = in_loop(&mut sender, |sender, cx| sender.poll_flush(cx));
        let drained = in_loop(&mut sender, |sender, cx| sender.poll_drain(cx));
        assert!(flushed.0.is_ok() && drained.0.is_ok());
        let (report, _) = in_loop(&mut sender, |sender, cx| sender.poll_close(cx));
        assert!(report.unwrap().drained);
        assert!(turns < COUNT * LEN / 1000, "{turns}");
        assert_arrived(&peer.join().unwrap(), LEN, COUNT);
    }
}

/// Fills a socket of [`TIGHT`] for a peer that reads nothing. A part of a send is unsent then, and the
/// next is refused. A larger socket would hold the locked memory of the tests beside this one.
fn stalled(sender: &mut Sender<TcpStream>) -> Ticket {
    let last = sender.try_send(pattern(1 << 20, 0)).unwrap();
    for _ in 0..3 {
        closed_window(sender);
        assert!(sender.reap().unwrap().unsent);
    }
    sender.try_send(&[0; 1][..]).unwrap_err();
    last
}

/// Four tasks that wait: to send, for the flush, for the fate of `last`, and for the drain.
fn waiting(sender: &mut Sender<TcpStream>, last: Ticket) -> [Task; 4] {
    let [ready, flush, fate, drain] = [(); 4].map(|()| Task::default());
    assert!(ready.poll(|cx| sender.poll_ready(cx)).is_pending());
    assert!(flush.poll(|cx| sender.poll_flush(cx)).is_pending());
    assert!(fate.poll(|cx| sender.poll_fate(cx, last)).is_pending());
    assert!(drain.poll(|cx| sender.poll_drain(cx)).is_pending());
    [ready, flush, fate, drain]
}

#[test]
fn a_stalled_peer_wakes_no_task() {
    for in_loop in [false, true] {
        let (near, _far) = pair_at("127.0.0.1:0", TIGHT);
        let mut sender = zero_copy().adopt(near).unwrap();
        if in_loop {
            sender.event_fd().unwrap();
        }
        let last = stalled(&mut sender);
        let tasks = waiting(&mut sender, last);
        // The reaper looks once a second for a lost notification.
        for _ in 0..25 {
            thread::sleep(Duration::from_millis(100));
            if in_loop && readable(&sender.event_fd().unwrap(), 0) {
                sender.reap().unwrap();
            }
        }
        assert_eq!(tasks.map(|task| task.woken()), [0; 4], "{in_loop}");
        let _ = sender.abort();
    }
}

#[test]
fn a_dropped_future_leaves_a_usable_sender() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let pool = pool(LEN, 4);
    let mut sender = zero_copy().adopt(near).unwrap();
    let dropped = Task::default();
    let mut seed = 0;
    // Before the acceptance of a byte the buffer is recycled with the future.
    loop {
        let Ok(buf) = pool.try_alloc(LEN) else { break };
        let mut sending = Box::pin(send(&mut sender, filled(buf, LEN, seed)));
        match dropped.poll(|cx| sending.as_mut().poll(cx)) {
            Poll::Ready(_) => seed += 1,
            Poll::Pending => {
                let owned = pool.stats().owned();
                drop(sending);
                assert_eq!(pool.stats().owned(), owned - 1, "recycled");
                break;
            }
        }
    }
    let last = sender.try_send(&[0; 1][..]).unwrap_err();
    assert!(last.is_backpressure(), "the part of a send stays queued before it");
    for _ in 0..3 {
        // Each is dropped after one poll.
        let _ = dropped.poll(|cx| sender.poll_flush(cx));
        let _ = dropped.poll(|cx| sender.poll_drain(cx));
        let _ = dropped.poll(|cx| sender.poll_ready(cx));
    }
    let peer = reader(far, Duration::ZERO);
    block_on(async {
        while seed < COUNT {
            let buf = pool.alloc_async(LEN).await.unwrap();
            send(&mut sender, filled(buf, LEN, seed)).await;
            seed += 1;
        }
        let mut closing = Box::pin(poll_fn(|cx| sender.poll_close(cx)));
        let _ = dropped.poll(|cx| closing.as_mut().poll(cx));
        drop(closing);
        assert!(poll_fn(|cx| sender.poll_close(cx)).await.unwrap().drained);
    });
    assert_arrived(&peer.join().unwrap(), LEN, COUNT);
    wait_until_all_free(&pool);
}

#[test]
fn a_task_that_gives_up_a_close_aborts_or_drops_the_sender() {
    alone(|| {
        for aborts in [true, false] {
            let (near, far) = pair_at("127.0.0.1:0", TIGHT);
            let mut sender = zero_copy().linger(Duration::from_millis(200)).adopt(near).unwrap();
            stalled(&mut sender);
            let task = Task::default();
            assert!(task.poll(|cx| sender.poll_close(cx)).is_pending());
            if aborts {
                assert!(sender.abort().aborted);
            } else {
                drop(sender);
                assert!(pinbuf::reaper::wait_idle(soon()), "the linger ends it");
            }
            drop(far);
        }
    });
}

#[test]
fn a_send_behind_the_end_of_the_stream_fails_alone() {
    let (near, far) = pair();
    let peer = reader(far, Duration::ZERO);
    let mut sender = zero_copy().adopt(near).unwrap();
    sender.try_send(pattern(LEN, 0)).unwrap();
    let task = Task::default();
    let _ = task.poll(|cx| sender.poll_close(cx));
    for len in [100, LEN] {
        let error = sender.try_send(pattern(len, 1)).unwrap_err();
        assert!(matches!(&error, SendError::Connection { .. }), "{error}");
        assert_eq!(error.into_buf().unwrap().len(), len);
    }
    let (report, _) = block_on(poll_fn(|cx| sender.poll_close(cx)));
    assert!(report.unwrap().drained);
    assert_arrived(&peer.join().unwrap(), LEN, 1);
}

/// A task for each half, and one of the halves' loop.
#[test]
fn halves_in_two_tasks_share_a_loop() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let peer = reader(far, Duration::from_millis(20));
    let sender = zero_copy().adopt(near).unwrap();
    let (mut send, reap) = sender.split();
    let fd = send.event_fd().unwrap().try_clone_to_owned().unwrap();
    assert_eq!(send.event_fd().unwrap().as_raw_fd(), reap.event_fd().unwrap().as_raw_fd());
    let is_over = AtomicBool::new(false);
    let (tickets, awaits) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                if readable(&fd, 10) {
                    reap.reap().unwrap();
                }
            }
        });
        scope.spawn(|| {
            let (_, polls) = block_on(async {
                for ticket in awaits {
                    let fate = poll_fn(|cx| reap.poll_fate(cx, ticket)).await.unwrap();
                    assert!(matches!(fate, Fate::Released { accepted: LEN, .. }), "{fate:?}");
                }
            });
            assert!(polls <= COUNT + 1, "{polls}");
            is_over.store(true, Ordering::Relaxed);
        });
        block_on(async {
            for seed in 0..COUNT {
                let mut buf = pattern(LEN, seed);
                let ticket = loop {
                    match send.try_send(buf) {
                        Err(SendError::WouldBlock(refused)) => buf = refused,
                        sent => break sent.unwrap(),
                    }
                    poll_fn(|cx| send.poll_ready(cx)).await.unwrap();
                };
                tickets.send(ticket).unwrap();
            }
            drop(tickets);
            poll_fn(|cx| send.poll_flush(cx)).await.unwrap();
            assert!(poll_fn(|cx| send.poll_close(cx)).await.unwrap().drained);
        });
    });
    assert_arrived(&peer.join().unwrap(), LEN, COUNT);
}

#[test]
fn a_reset_ends_every_wait() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let mut sender = zero_copy().adopt(near).unwrap();
    let last = stalled(&mut sender);
    let [ready, flush, fate, drain] = waiting(&mut sender, last);
    reset(far);
    let tasks = [&ready, &flush, &fate, &drain];
    eventually("the tasks are woken", || tasks.iter().all(|task| task.woken() == 1));
    let Poll::Ready(Err(_)) = flush.poll(|cx| sender.poll_flush(cx)) else { panic!("cut short") };
    let fate = fate.poll(|cx| sender.poll_fate(cx, last));
    assert!(matches!(fate, Poll::Ready(Ok(Fate::Truncated { .. }))), "{fate:?}");
    assert_eq!(drain.poll(|cx| sender.poll_drain(cx)), Poll::Ready(Ok::<(), WaitError>(())));
    assert!(ready.poll(|cx| sender.poll_ready(cx)).is_ready(), "the next send tells");
    assert!(matches!(sender.try_send(pattern(1, 0)), Err(SendError::Connection { .. })));
}

/// Has the loop look, for as long as there is news.
fn look(reap: &pinbuf::sender::ReapHalf<TcpStream>, fd: &impl AsRawFd) -> usize {
    let mut looks = 0;
    while readable(fd, 100) {
        reap.reap().unwrap();
        looks += 1;
    }
    looks
}

#[test]
fn notifications_and_room_wake_no_task_that_reads() {
    let (near, mut far) = pair_at("127.0.0.1:0", TIGHT);
    near.set_nonblocking(true).unwrap();
    let (mut send, reap) = zero_copy().adopt(near).unwrap().split();
    let fd = reap.event_fd().unwrap().try_clone_to_owned().unwrap();
    let task = Task::default();
    assert!(task.poll(|cx| reap.poll_readable(cx)).is_pending());
    let mut into = vec![0; 8 << 20];
    for seed in 0..3 {
        send.try_send(pattern(1 << 20, seed)).unwrap();
        let mut arrived = 0;
        while arrived < 1 << 20 {
            arrived += far.read(&mut into).unwrap();
            look(&reap, &fd);
        }
    }
    eventually("everything is released", || {
        look(&reap, &fd);
        reap.stats().in_flight_calls == 0
    });
    assert!(reap.stats().released_calls >= 3, "{:?}", reap.stats());
    assert_eq!(task.woken(), 0);
    // The loop finds the data.
    far.write_all(b"data").unwrap();
    assert!(look(&reap, &fd) > 0);
    assert_eq!(task.woken(), 1);
    assert!(task.poll(|cx| reap.poll_readable(cx)).is_ready());
    assert_eq!(reap.get_ref().read(&mut into).unwrap(), 4);
    // The task's own poll finds the data, and the end, and wakes no task.
    assert!(task.poll(|cx| reap.poll_readable(cx)).is_pending());
    far.write_all(b"more").unwrap();
    assert!(readable(&fd, 60_000));
    assert!(task.poll(|cx| reap.poll_readable(cx)).is_ready());
    assert_eq!(reap.get_ref().read(&mut into).unwrap(), 4);
    assert!(task.poll(|cx| reap.poll_readable(cx)).is_pending());
    far.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(readable(&fd, 60_000));
    assert!(task.poll(|cx| reap.poll_readable(cx)).is_ready());
    assert_eq!(reap.get_ref().read(&mut into).unwrap(), 0);
    assert_eq!(task.woken(), 1);
}

/// A poll for data takes the news of the sender too, and must not keep the news to itself.
#[test]
fn a_poll_for_data_wakes_the_task_that_awaits_a_fate() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let (mut send, reap) = zero_copy().adopt(near).unwrap().split();
    let fd = reap.event_fd().unwrap().try_clone_to_owned().unwrap();
    let [reads, awaits] = [(); 2].map(|()| Task::default());
    assert!(reads.poll(|cx| reap.poll_readable(cx)).is_pending());
    let ticket = send.try_send(pattern(1 << 20, 0)).unwrap();
    assert!(awaits.poll(|cx| reap.poll_fate(cx, ticket)).is_pending());
    let _peer = reader(far, Duration::ZERO);
    while awaits.woken() == 0 {
        assert!(readable(&fd, 60_000), "news was missed");
        assert!(reads.poll(|cx| reap.poll_readable(cx)).is_pending());
    }
    assert!(awaits.poll(|cx| reap.poll_fate(cx, ticket)).is_ready());
    // The peer ends with the stream.
    drop(send);
    assert_eq!(reads.woken(), 0);
}

#[test]
fn a_reset_wakes_the_task_that_reads() {
    let (near, far) = pair();
    near.set_nonblocking(true).unwrap();
    let sender = zero_copy().adopt(near).unwrap();
    let task = Task::default();
    assert!(task.poll(|cx| sender.poll_readable(cx)).is_pending());
    reset(far);
    assert!(readable(&sender.event_fd().unwrap(), 60_000));
    assert!(task.poll(|cx| sender.poll_readable(cx)).is_ready());
    let error = sender.get_ref().read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_sending_half_that_aborts_leaves_the_fates_to_the_other_half() {
    let (near, _far) = pair_at("127.0.0.1:0", TIGHT);
    let (mut send, reap) = zero_copy().adopt(near).unwrap().split();
    let ticket = send.try_send(pattern(1 << 20, 0)).unwrap();
    assert!(send.abort().aborted);
    let (fate, _) = block_on(poll_fn(|cx| reap.poll_fate(cx, ticket)));
    assert!(matches!(fate, Ok(Fate::Truncated { .. })), "{fate:?}");
}
