//! The end of a sender, over a fake kernel: flush, drain, hand-over to the reaper, and whom it
//! watches for.

use std::{future::poll_fn, sync::Arc, time::Duration};

use loom_tests::{
    block_on,
    fake::{Answer, EAGAIN, FakeKernel, PAGE, assert_home, overwrite},
    model, thread,
};
use pinbuf::__internals::{Kernel, Reclaim};

#[test]
fn a_sender_left_in_flight_ends_in_the_reapers_care() {
    model(|| {
        let kernel = FakeKernel::default();
        let (pool, sender, _) = kernel.with_one_in_flight();
        let network = kernel.delivering(|kernel| _ = kernel.attend());
        sender.leave(false);
        network.join().unwrap();
        kernel.attend();
        assert!(!kernel.has_orphan(), "it is over");
        assert_home(&pool);
    });
}

#[test]
fn an_abort_keeps_what_a_packet_in_a_queue_still_carries() {
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
fn halves_that_leave_at_once_end_the_sender_once() {
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
        assert!(!kernel.has_orphan(), "it is over");
        assert_home(&pool);
    });
}

/// The owner closes while a thread that waits for a slot drives the sender too.
#[test]
fn a_close_ends_with_the_last_note_whoever_drives() {
    model(|| {
        let kernel = FakeKernel::default();
        let (pool, sender, _) = kernel.with_one_in_flight();
        let waiter = Arc::clone(&sender);
        let network = kernel.delivering(move |_| waiter.drive());
        let report = sender.close(kernel.now() + Duration::from_secs(1));
        assert!(report.drained && kernel.is_idle());
        assert_eq!(kernel.shut_down(), Some(PAGE));
        network.join().unwrap();
        // Not before: whoever read the note sends the slot home.
        assert_home(&pool);
        assert!(kernel.is_unwatched());
    });
}

#[test]
fn a_stream_ends_behind_the_rest_whoever_sends_it() {
    model(|| {
        let kernel = FakeKernel::new([
            Answer::TakeAndNote(100),
            // To the send, the waiting thread and the thread that leaves.
            Answer::Fail(EAGAIN),
            Answer::Fail(EAGAIN),
            Answer::Fail(EAGAIN),
            Answer::TakeAndNote(PAGE),
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
        assert!(!kernel.has_orphan(), "it is over");
        assert_home(&pool);
    });
}

/// Somebody who waits for a slot has the sender watched while its owner hands it over: the reaper
/// gets it once, and lets go of it once.
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
        assert!(kernel.is_unwatched(), "it is over");
        assert_home(&pool);
    });
}

/// The reaper looks once while nothing has come, and goes on when something has.
fn letting_go(kernel: &FakeKernel) -> thread::JoinHandle<()> {
    let kernel = kernel.clone();
    thread::spawn(move || {
        kernel.attend();
        assert!(kernel.deliver());
        kernel.reap();
    })
}

/// The reaper finds that nobody waits any more, and stops watching, just as somebody comes.
#[test]
fn who_waits_while_the_reaper_lets_go_is_not_forgotten() {
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
fn who_awaits_a_fate_while_the_reaper_lets_go_is_not_forgotten() {
    model(|| {
        let kernel = FakeKernel::default();
        let (_pool, sender, ticket) = kernel.with_one_in_flight();
        assert!(Arc::clone(&sender).watch());
        let reaper = letting_go(&kernel);
        block_on(poll_fn(|cx| sender.poll_fate(cx, ticket))).unwrap();
        reaper.join().unwrap();
    });
}
