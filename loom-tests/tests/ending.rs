//! The end of a sender, over a fake kernel: flush, drain, hand-over to the reaper, and watches for
//! waiting tasks.

use std::{future::poll_fn, sync::Arc, time::Duration};

use loom_tests::{
    block_on,
    fake::{Answer, EAGAIN, FakeKernel, PAGE, assert_home, overwrite},
    model, thread,
};
use pinbuf::__internals::{Kernel, Reclaim};

#[test]
fn the_reaper_ends_a_sender_dropped_in_flight() {
    model(|| {
        let kernel = FakeKernel::default();
        let (pool, sender, _) = kernel.with_one_in_flight();
        let network = kernel.delivering(|kernel| _ = kernel.attend());
        sender.leave(false);
        network.join().unwrap();
        kernel.attend();
        assert!(!kernel.has_orphan(), "the sender is over");
        assert_home(&pool);
    });
}

#[test]
fn an_abort_keeps_the_bytes_of_queued_packets() {
    model(|| {
        let kernel = FakeKernel::default().queued_below();
        let (pool, sender, _) = kernel.with_one_in_flight();
        let network = kernel.delivering(|_| ());
        sender.abort();
        sender.leave(false);
        overwrite(&pool);
        network.join().unwrap();
        kernel.attend();
        assert!(!kernel.has_orphan());
        assert_home(&pool);
    });
}

#[test]
fn halves_dropped_together_end_the_sender_once() {
    model(|| {
        let kernel = FakeKernel::default();
        let (pool, sender, _) = kernel.with_one_in_flight();
        sender.share();
        let sending_half = {
            let sender = Arc::clone(&sender);
            thread::spawn(move || sender.leave(true))
        };
        sender.leave(false);
        sending_half.join().unwrap();
        assert!(kernel.deliver());
        kernel.attend();
        assert!(!kernel.has_orphan(), "the sender is over");
        assert_home(&pool);
    });
}

/// The owner closes while a thread that waits for a slot drives the sender too.
#[test]
fn a_close_ends_with_the_last_notification() {
    model(|| {
        let kernel = FakeKernel::default();
        let (pool, sender, _) = kernel.with_one_in_flight();
        let waiter = Arc::clone(&sender);
        let network = kernel.delivering(move |_| waiter.drive());
        let report = sender.close(Some(kernel.now() + Duration::from_secs(1)));
        assert!(report.drained && kernel.is_idle());
        assert_eq!(kernel.shut_down(), Some(PAGE));
        network.join().unwrap();
        // Not before: the thread that read the notification recycles the slot.
        assert_home(&pool);
        assert!(kernel.is_unwatched());
    });
}

#[test]
fn a_stream_ends_behind_its_unsent_part() {
    model(|| {
        let kernel = FakeKernel::new([
            Answer::TakeAndNotify(100),
            // For the send, the waiting thread and the dropping thread.
            Answer::Fail(EAGAIN),
            Answer::Fail(EAGAIN),
            Answer::Fail(EAGAIN),
            Answer::TakeAndNotify(PAGE),
        ]);
        let (pool, sender, _) = kernel.with_one_in_flight();
        let waiter = {
            let sender = Arc::clone(&sender);
            thread::spawn(move || sender.drive())
        };
        sender.leave(true);
        waiter.join().unwrap();
        kernel.attend();
        kernel.reap();
        assert_eq!(kernel.shut_down(), Some(PAGE));
        assert!(!kernel.has_orphan(), "the sender is over");
        assert_home(&pool);
    });
}

/// A waiter for a slot has the sender watched while the owner hands the sender over: the reaper
/// gets the sender once, and drops it once.
#[test]
fn a_watched_sender_is_handed_over_once() {
    model(|| {
        let kernel = FakeKernel::default();
        let (pool, sender, _) = kernel.with_one_in_flight();
        let waiter = {
            let sender = Arc::clone(&sender);
            thread::spawn(move || assert!(sender.watch()))
        };
        sender.leave(false);
        waiter.join().unwrap();
        assert!(kernel.has_orphan());
        assert!(kernel.deliver());
        kernel.attend();
        assert!(kernel.is_unwatched(), "the sender is over");
        assert_home(&pool);
    });
}

/// The reaper looks once while there is no event, and again at an event.
fn letting_go(kernel: &FakeKernel) -> thread::JoinHandle<()> {
    let kernel = kernel.clone();
    thread::spawn(move || {
        kernel.attend();
        assert!(kernel.deliver());
        kernel.reap();
    })
}

/// The reaper finds no waiter and stops watching, while a waiter arrives.
#[test]
fn a_waiter_is_served_while_the_reaper_unwatches() {
    model(|| {
        let kernel = FakeKernel::default();
        let (pool, sender, _) = kernel.with_one_in_flight();
        assert!(Arc::clone(&sender).watch());
        let reaper = letting_go(&kernel);
        drop(pool.alloc(PAGE).unwrap());
        reaper.join().unwrap();
    });
}

/// The same for a task that awaits a fate.
#[test]
fn a_fate_is_told_while_the_reaper_unwatches() {
    model(|| {
        let kernel = FakeKernel::default();
        let (_pool, sender, ticket) = kernel.with_one_in_flight();
        assert!(Arc::clone(&sender).watch());
        let reaper = letting_go(&kernel);
        assert!(block_on(poll_fn(|cx| sender.poll_fate(cx, ticket))).is_ok());
        reaper.join().unwrap();
    });
}
