//! Sends against reaps, over a fake kernel: register before the call, roll back after a failure,
//! release exactly the notified ids, wake the waiting threads.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use loom_tests::{
    Alive, block_on,
    fake::{
        Answer, EAGAIN, ECONNRESET, ENOBUFS, FakeKernel, PAGE, assert_home, filled, overwrite,
        page_pool,
    },
    model, thread,
};
use pinbuf::{
    __internals::{Core, MemlockBudget},
    Fate, Pool, SendError,
};

/// Too few bytes for a zero-copy send.
static BYTES: [u8; 64] = [1; 64];

/// Drives a sender once, on a new thread.
fn reaping(sender: &Arc<Core<FakeKernel>>) -> thread::JoinHandle<()> {
    let sender = Arc::clone(sender);
    thread::spawn(move || _ = sender.step().unwrap())
}

/// Drives a sender late enough for a look for lost notifications.
fn doubt(kernel: &FakeKernel, sender: &Core<FakeKernel>) {
    kernel.pass_second();
    sender.step().unwrap();
}

#[test]
fn an_early_notification_finds_its_lease() {
    model(|| {
        let pool = page_pool(1);
        let sender = FakeKernel::new([Answer::TakeAndNotify(PAGE)]).sender();
        let reaper = reaping(&sender);
        let ticket = sender.try_send(filled(&pool, 1)).unwrap();
        reaper.join().unwrap();
        sender.step().unwrap();
        assert!(matches!(
            sender.fate(ticket).unwrap(),
            Some(Fate::Released { accepted: PAGE, .. })
        ));
        // By the notification: an unknown notification would poison, even if a proof made up for
        // it.
        assert!(sender.capabilities().supported);
        assert_home(&pool);
    });
}

/// A sender with a next call that needs a grant only, and leaves the end to the next holder of the
/// lock.
fn granted(kernel: &FakeKernel, pool: &Pool) -> Arc<Core<FakeKernel>> {
    let sender = kernel.sender();
    sender.try_send(filled(pool, 1)).unwrap();
    assert!(kernel.deliver());
    sender.step().unwrap();
    sender
}

/// The caller leaves the end of its call, and a visitor comes meanwhile: one of the two settles the
/// call.
#[test]
fn a_left_call_is_settled_once() {
    model(|| {
        let (pool, kernel) = (page_pool(1), FakeKernel::default());
        let sender = granted(&kernel, &pool);
        let visitor = reaping(&sender);
        let ticket = sender.try_send(filled(&pool, 2)).unwrap();
        visitor.join().unwrap();
        assert_eq!(sender.fate(ticket).unwrap(), None, "no call is delivered yet");
        assert!(!sender.is_drained());
        assert!(kernel.deliver());
        sender.step().unwrap();
        assert!(sender.is_drained() && sender.capabilities().supported);
        assert_home(&pool);
    });
}

/// As `option_memory_proves_nothing_while_a_call_is_out`, for a left call: the settling thread has
/// to see the caller's changes.
#[test]
fn option_memory_proves_nothing_of_a_left_call() {
    model(|| {
        let (pool, kernel) = (page_pool(1), FakeKernel::default());
        let sender = granted(&kernel, &pool);
        let doubter = {
            let (kernel, sender) = (kernel.clone(), Arc::clone(&sender));
            thread::spawn(move || doubt(&kernel, &sender))
        };
        let ticket = sender.try_send(filled(&pool, 2)).unwrap();
        doubter.join().unwrap();
        assert_eq!(sender.fate(ticket).unwrap(), None, "no call is delivered yet");
        assert!(kernel.deliver());
        sender.step().unwrap();
        assert_home(&pool);
    });
}

/// The caller reports a failed call, even after a choice to leave the end.
#[test]
fn a_left_call_that_fails_gives_its_buffer_back() {
    model(|| {
        let pool = page_pool(1);
        let kernel = FakeKernel::new([Answer::Take(PAGE), Answer::Fail(EAGAIN)]);
        let sender = granted(&kernel, &pool);
        let visitor = reaping(&sender);
        let Err(SendError::WouldBlock(buf)) = sender.try_send(filled(&pool, 2)) else {
            panic!("the second answer is EAGAIN");
        };
        drop(buf);
        visitor.join().unwrap();
        assert!(sender.is_drained());
        assert_home(&pool);
    });
}

/// The same, with a notification before the return of the call.
#[test]
fn an_early_notification_of_a_left_call_finds_its_lease() {
    model(|| {
        let pool = page_pool(1);
        let kernel = FakeKernel::new([Answer::Take(PAGE), Answer::TakeAndNotify(PAGE)]);
        let sender = granted(&kernel, &pool);
        let visitor = reaping(&sender);
        let ticket = sender.try_send(filled(&pool, 2)).unwrap();
        visitor.join().unwrap();
        sender.step().unwrap();
        let fate = sender.fate(ticket).unwrap();
        assert!(matches!(fate, Some(Fate::Released { accepted: PAGE, .. })), "{fate:?}");
        assert!(sender.is_drained() && sender.capabilities().supported);
        assert_home(&pool);
    });
}

#[test]
fn a_buffer_is_not_reused_before_its_notification() {
    model(|| {
        let kernel = FakeKernel::default();
        let (pool, sender, _) = kernel.with_one_in_flight();
        let network = kernel.delivering(|_| ());
        sender.step().unwrap();
        // `deliver` must have read the free slots.
        overwrite(&pool);
        network.join().unwrap();
        sender.step().unwrap();
        assert_home(&pool);
    });
}

#[test]
fn option_memory_proves_nothing_while_a_call_is_out() {
    model(|| {
        let pool = page_pool(1);
        let kernel = FakeKernel::default();
        let sender = kernel.sender();
        let doubter = {
            let (kernel, sender) = (kernel.clone(), Arc::clone(&sender));
            thread::spawn(move || doubt(&kernel, &sender))
        };
        let ticket = sender.try_send(filled(&pool, 1)).unwrap();
        doubter.join().unwrap();
        assert_eq!(sender.fate(ticket).unwrap(), None, "no call is delivered yet");
        assert!(kernel.deliver());
        sender.step().unwrap();
        assert_home(&pool);
    });
}

#[test]
fn a_failed_call_is_rolled_back_while_another_thread_reaps() {
    model(|| {
        let pool = page_pool(1);
        let kernel = FakeKernel::new([Answer::Fail(EAGAIN), Answer::TakeAndNotify(PAGE)]);
        let sender = kernel.sender();
        let reaper = reaping(&sender);
        let Err(SendError::WouldBlock(buf)) = sender.try_send(filled(&pool, 1)) else {
            panic!("the first answer is EAGAIN");
        };
        assert_eq!(buf[0], 1);
        let ticket = sender.try_send(buf).unwrap();
        reaper.join().unwrap();
        sender.step().unwrap();
        assert!(matches!(
            sender.fate(ticket).unwrap(),
            Some(Fate::Released { accepted: PAGE, .. })
        ));
        assert!(sender.capabilities().supported, "by the notification, not by a proof");
        assert_home(&pool);
    });
}

#[test]
fn the_unsent_part_is_sent_once() {
    model(|| {
        let kernel = FakeKernel::new([
            Answer::TakeAndNotify(100),
            Answer::Fail(EAGAIN),
            Answer::TakeAndNotify(PAGE),
        ]);
        let (pool, sender) = (page_pool(1), kernel.sender());
        // Before the send: the thread may read the notification of the first part before its call
        // returns.
        let flusher = reaping(&sender);
        let ticket = sender.try_send(filled(&pool, 1)).unwrap();
        flusher.join().unwrap();
        sender.step().unwrap();
        sender.step().unwrap();
        assert_eq!(kernel.accepted(), PAGE);
        assert!(sender.fate(ticket).unwrap().is_some());
        assert_home(&pool);
    });
}

#[test]
fn a_dropped_pool_lives_until_the_notification() {
    model(|| {
        let pool = page_pool(1);
        let alive = Alive::probe(&pool);
        let kernel = FakeKernel::default();
        let sender = kernel.sender();
        sender.try_send(filled(&pool, 1)).unwrap();
        let dropper = thread::spawn(move || drop(pool));
        assert!(alive.get(), "the kernel may still read");
        assert!(kernel.deliver());
        sender.step().unwrap();
        dropper.join().unwrap();
        assert!(!alive.get(), "the last slot home frees the pool");
    });
}

/// The kernel used the id of the failed call. The reader of the notification must not take it for
/// the id of the next call.
#[test]
fn a_datagram_dropped_below_the_socket_keeps_its_id() {
    model(|| {
        let pool = page_pool(1);
        let kernel = FakeKernel::new([Answer::FailAndNotify(ENOBUFS)]).datagrams();
        let sender = kernel.sender();
        let reaper = reaping(&sender);
        let Err(SendError::Dropped { buf, .. }) = sender.try_send(filled(&pool, 1)) else {
            panic!("the first answer is ENOBUFS");
        };
        let ticket = sender.try_send(buf).unwrap();
        reaper.join().unwrap();
        sender.step().unwrap();
        assert_eq!(sender.fate(ticket).unwrap(), None, "no call is delivered yet");
        assert!(kernel.deliver());
        sender.step().unwrap();
        assert!(sender.fate(ticket).unwrap().is_some() && sender.capabilities().supported);
        assert_home(&pool);
    });
}

/// One frozen buffer over two sockets, released in any order.
#[test]
fn two_sends_of_one_buffer_hold_it_until_both_are_released() {
    model(|| {
        let pool = page_pool(1);
        let one = filled(&pool, 1).freeze();
        let two = one.clone();
        let other = thread::spawn(move || {
            let kernel = FakeKernel::default();
            let sender = kernel.sender();
            sender.try_send(two).unwrap();
            assert!(kernel.deliver());
            sender.step().unwrap();
        });
        let kernel = FakeKernel::default();
        let sender = kernel.sender();
        sender.try_send(one).unwrap();
        assert!(kernel.deliver());
        sender.step().unwrap();
        overwrite(&pool);
        other.join().unwrap();
        assert_home(&pool);
    });
}

/// The second call is released before the first. Free slots are overwritten at once.
#[test]
fn a_notification_out_of_order_releases_its_ids() {
    model(|| {
        let pool = page_pool(2);
        let kernel = FakeKernel::default();
        let sender = kernel.sender();
        for value in [1, 2] {
            sender.try_send(filled(&pool, value)).unwrap();
        }
        let network = {
            let kernel = kernel.clone();
            thread::spawn(move || {
                assert!(kernel.deliver_youngest());
                assert!(kernel.deliver());
            })
        };
        sender.step().unwrap();
        overwrite(&pool);
        network.join().unwrap();
        sender.step().unwrap();
        assert_home(&pool);
    });
}

#[test]
fn a_drain_ends_with_the_last_notification() {
    model(|| {
        let kernel = FakeKernel::default();
        let (pool, sender, _) = kernel.with_one_in_flight();
        let network = kernel.delivering(|_| ());
        sender.drain(None).unwrap();
        assert!(kernel.is_idle(), "the kernel may still read");
        assert_home(&pool);
        network.join().unwrap();
    });
}

/// A thief reads the notification. A second thread finds the proof and drops the buffer. The socket
/// reports no event.
#[test]
fn a_drain_is_woken_by_another_threads_proof() {
    model(|| {
        let kernel = FakeKernel::default();
        let (pool, sender, _) = kernel.with_one_in_flight();
        let doubted = Arc::clone(&sender);
        let doubter = kernel.delivering(move |kernel| {
            kernel.steal_notifications();
            doubt(kernel, &doubted);
        });
        sender.drain(None).unwrap();
        assert_home(&pool);
        doubter.join().unwrap();
    });
}

/// A visitor reads the notification, and a task awaits the send too.
#[test]
fn a_drain_is_woken_when_a_visitor_drops_the_buffer() {
    model(|| {
        let kernel = FakeKernel::default();
        let (pool, sender, ticket) = kernel.with_one_in_flight();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(sender.poll_fate(&mut cx, ticket).is_pending());
        let visitor = reaping(&sender);
        assert!(kernel.deliver());
        sender.drain(None).unwrap();
        assert_home(&pool);
        visitor.join().unwrap();
    });
}

/// A second thread reads the notification and so makes room, while this thread falls asleep.
#[test]
fn a_blocked_send_is_woken_by_another_threads_read() {
    model(|| {
        let pool = page_pool(2);
        let kernel = FakeKernel::default();
        let sender = kernel.sender_of_one();
        sender.try_send(filled(&pool, 1)).unwrap();
        let reader = Arc::clone(&sender);
        let network = kernel.delivering(move |_| _ = reader.step().unwrap());
        sender.send(filled(&pool, 2)).unwrap();
        network.join().unwrap();
        assert_eq!(kernel.accepted(), 2 * PAGE);
        assert!(kernel.deliver());
        sender.step().unwrap();
        assert_home(&pool);
    });
}

/// The socket reports room once, to a thread that meets a call just after its refusal.
#[test]
fn room_is_used_after_another_threads_refusal() {
    model(|| {
        let pool = page_pool(1);
        let kernel = FakeKernel::new([Answer::TakeAndNotify(100)]).full();
        let sender = kernel.sender();
        let waiter = reaping(&sender);
        let network = {
            let kernel = kernel.clone();
            thread::spawn(move || kernel.make_room())
        };
        sender.send(filled(&pool, 1)).unwrap();
        waiter.join().unwrap();
        network.join().unwrap();
        assert_eq!(kernel.accepted(), PAGE);
    });
}

/// A sender with room for the unsent part of a send.
fn with_unsent(kernel: &FakeKernel) -> (Pool, Arc<Core<FakeKernel>>) {
    let (pool, sender) = (page_pool(1), kernel.sender());
    sender.try_send(filled(&pool, 1)).unwrap();
    (pool, sender)
}

#[test]
fn a_flush_ends_after_the_call_of_a_visitor() {
    model(|| {
        let kernel = FakeKernel::new([Answer::Take(100), Answer::Fail(EAGAIN)]);
        let (_pool, sender) = with_unsent(&kernel);
        let owner = {
            let (kernel, sender) = (kernel.clone(), Arc::clone(&sender));
            thread::spawn(move || {
                assert!(!sender.reap_and_flush().unwrap().unsent, "there is room");
                assert_eq!(kernel.accepted(), PAGE);
            })
        };
        sender.step().unwrap();
        owner.join().unwrap();
    });
}

#[test]
fn an_abort_comes_after_the_call_of_a_visitor() {
    model(|| {
        let kernel = FakeKernel::new([Answer::Take(100), Answer::Fail(EAGAIN)]);
        let (pool, sender) = with_unsent(&kernel);
        let visitor = reaping(&sender);
        assert!(sender.break_off().aborted);
        visitor.join().unwrap();
        assert_home(&pool);
    });
}

/// The kernel reads the memory of a copied call only during the call, and posts no notification.
#[test]
fn a_drain_ends_after_a_call_by_copy() {
    model(|| {
        let kernel = FakeKernel::new([Answer::Take(10)]);
        let sender = kernel.sender();
        let drain = {
            let (kernel, sender) = (kernel.clone(), Arc::clone(&sender));
            thread::spawn(move || {
                let has_begun = kernel.accepted() > 0;
                sender.drain(None).unwrap();
                assert!(!has_begun || kernel.accepted() == BYTES.len());
            })
        };
        sender.try_send(&BYTES[..]).unwrap();
        drain.join().unwrap();
    });
}

/// The owner reads the notification, and makes another call after the drain was woken and has
/// looked.
#[test]
fn a_drain_is_woken_by_the_end_of_a_later_call() {
    model(|| {
        let kernel = FakeKernel::default();
        let (_pool, sender, _) = kernel.with_one_in_flight();
        let owner = {
            let sender = Arc::clone(&sender);
            kernel.delivering(move |_| {
                sender.step().unwrap();
                thread::yield_now();
                sender.try_send(&BYTES[..]).unwrap();
            })
        };
        sender.drain(None).unwrap();
        owner.join().unwrap();
    });
}

#[test]
fn a_fate_is_told_to_its_task() {
    model(|| {
        let kernel = FakeKernel::default();
        let (_pool, sender, ticket) = kernel.with_one_in_flight();
        let reaper = kernel.delivering(FakeKernel::reap);
        let fate = block_on(poll_fn(|cx| sender.poll_fate(cx, ticket))).unwrap();
        assert!(matches!(fate, Fate::Released { accepted: PAGE, .. }));
        reaper.join().unwrap();
    });
}

#[test]
fn a_fate_found_by_another_thread_is_told() {
    model(|| {
        let kernel = FakeKernel::default();
        let (_pool, sender, ticket) = kernel.with_one_in_flight();
        let reaper = {
            let (kernel, sender) = (kernel.clone(), Arc::clone(&sender));
            thread::spawn(move || {
                assert!(kernel.deliver());
                sender.step().unwrap();
            })
        };
        let fate = block_on(poll_fn(|cx| sender.poll_fate(cx, ticket))).unwrap();
        assert!(matches!(fate, Fate::Released { accepted: PAGE, .. }));
        reaper.join().unwrap();
    });
}

/// The task comes to wait while the loop goes to sleep, and either may take the news.
#[test]
fn a_fate_is_told_by_a_loop() {
    model(|| {
        let kernel = FakeKernel::default().looped();
        let (_pool, sender, ticket) = kernel.with_one_in_flight();
        let driver = {
            let sender = Arc::clone(&sender);
            kernel.delivering(move |kernel| kernel.run_loop(&sender))
        };
        let fate = block_on(poll_fn(|cx| sender.poll_fate(cx, ticket))).unwrap();
        assert!(matches!(fate, Fate::Released { accepted: PAGE, .. }));
        driver.join().unwrap();
    });
}

/// A future is dropped between its polls, and another task comes to wait for the same send.
#[test]
fn a_fate_is_told_to_the_task_behind_a_dropped_future() {
    model(|| {
        let kernel = FakeKernel::default().looped();
        let (_pool, sender, ticket) = kernel.with_one_in_flight();
        let dropped = Arc::new(Told::default());
        let waker = Waker::from(Arc::clone(&dropped));
        let driver = {
            let sender = Arc::clone(&sender);
            kernel.delivering(move |kernel| kernel.run_loop(&sender))
        };
        let _ = sender.poll_fate(&mut Context::from_waker(&waker), ticket);
        assert!(block_on(poll_fn(|cx| sender.poll_fate(cx, ticket))).is_ok());
        driver.join().unwrap();
        assert!(dropped.0.load(Ordering::Relaxed) <= 1);
    });
}

/// Counts its wake-ups, past loom: the model looks after the join of all threads.
#[derive(Default)]
struct Told(AtomicUsize);

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The reaper calls the waker of a task that polls again, on another thread, at the same moment.
#[test]
fn a_task_that_migrates_is_told_by_its_last_waker() {
    model(|| {
        let kernel = FakeKernel::default();
        let (_pool, sender, ticket) = kernel.with_one_in_flight();
        let wakers = [(); 2].map(|()| Arc::new(Told::default()));
        let poll = |told: &Arc<Told>| {
            let waker = Waker::from(Arc::clone(told));
            sender.poll_fate(&mut Context::from_waker(&waker), ticket)
        };
        assert!(poll(&wakers[0]).is_pending());
        let network = {
            let sender = Arc::clone(&sender);
            kernel.delivering(move |_| _ = sender.step().unwrap())
        };
        let polled = poll(&wakers[1]);
        network.join().unwrap();
        let told = wakers.map(|told| told.0.load(Ordering::Relaxed));
        match polled {
            Poll::Pending => assert_eq!(told, [0, 1]),
            Poll::Ready(fate) => assert!(told[1] == 0 && fate.is_ok(), "{told:?}, {fate:?}"),
        }
    });
}

/// The kernel tells of a reset once, and tells the send. A reader that finds the end of the stream then has
/// to learn of the reset.
#[test]
fn a_reader_learns_of_a_reset_told_to_a_send() {
    model(|| {
        let kernel = FakeKernel::new([Answer::Fail(ECONNRESET)]);
        let sender = kernel.sender();
        let owner = {
            let sender = Arc::clone(&sender);
            thread::spawn(move || assert!(sender.try_send(&BYTES[..]).is_err()))
        };
        if kernel.has_told() {
            assert!(sender.connection_error().is_some());
        }
        owner.join().unwrap();
    });
}

/// A loop of the program takes the news of a hangup, possibly while a call is out. No more news comes.
#[test]
fn a_hangup_taken_during_a_call_is_noticed() {
    model(|| {
        let kernel = FakeKernel::default().looped();
        let sender = kernel.sender();
        let program = {
            let (kernel, sender) = (kernel.clone(), Arc::clone(&sender));
            thread::spawn(move || {
                kernel.hang_up();
                sender.reap().unwrap();
            })
        };
        sender.try_send(&BYTES[..]).unwrap();
        program.join().unwrap();
        assert!(sender.connection_error().is_some());
    });
}

/// The socket gets room, of which a visitor and the task itself can learn.
#[test]
fn room_is_told_to_the_task_with_a_refused_buffer() {
    model(|| {
        let kernel = FakeKernel::default().full();
        let sender = kernel.sender();
        assert!(matches!(sender.try_send(&BYTES[..]), Err(SendError::WouldBlock(_))));
        let visitor = {
            let (kernel, sender) = (kernel.clone(), Arc::clone(&sender));
            thread::spawn(move || {
                kernel.make_room();
                sender.step().unwrap();
            })
        };
        block_on(poll_fn(|cx| sender.poll_ready(cx))).unwrap();
        sender.try_send(&BYTES[..]).unwrap();
        visitor.join().unwrap();
    });
}

/// Two senders at once, and locked memory for one call.
#[test]
fn locked_memory_stays_within_the_budget() {
    model(|| {
        let pool = page_pool(3);
        let budget = Arc::new(MemlockBudget::new(Some(4 * PAGE)));
        let [one, two] = [(); 2].map(|()| FakeKernel::default());
        let buf = filled(&pool, 2);
        let other = {
            let (kernel, sender) = (two.clone(), two.sender_within(&budget));
            thread::spawn(move || _ = kernel.is_idle() && sender.try_send(buf).is_ok())
        };
        let sender = one.sender_within(&budget);
        sender.try_send(filled(&pool, 1)).unwrap();
        other.join().unwrap();
        assert!(one.is_idle() != two.is_idle(), "one of them copied");
        if one.deliver() {
            sender.step().unwrap();
            sender.try_send(filled(&pool, 1)).unwrap();
            assert!(!one.is_idle(), "the memory is refunded");
        }
    });
}
