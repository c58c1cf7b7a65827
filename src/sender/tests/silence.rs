//! The limit of the peer's silence, the end of a connection, and the end of a sender.

use super::*;
use crate::{
    lease::Payload,
    sender::{kernel::Kernel, report::CloseReport},
    sys::socket::Ready,
};

const ECONNRESET: i32 = 104;
const ENOTCONN: i32 = 107;
const ETIMEDOUT: i32 = 110;
const ECANCELED: i32 = 125;

const LIMIT: Duration = Duration::from_secs(1);
const BEYOND: Duration = Duration::from_millis(1100);

fn limited() -> Config {
    Config { max_hold: Some(LIMIT), ..config() }
}

fn error(sender: &Core<FakeKernel>) -> Option<i32> {
    sender.connection_error().map(|error| error.raw())
}

#[test]
fn a_look_during_a_call_does_not_take_its_bytes_for_acknowledged() {
    let kernel = stream([]);
    let sender = kernel.sender(limited());
    sender.try_send(&PAGE[..]).unwrap();
    sender.step().unwrap();
    kernel.pass(LIMIT / 2);
    let visitor = Arc::clone(&sender);
    kernel.with(|state| state.meanwhile = Some(Box::new(move || _ = visitor.step().unwrap())));
    sender.try_send(&PAGE[..]).unwrap();
    kernel.pass(BEYOND - LIMIT / 2);
    sender.step().unwrap();
    assert_eq!(error(&sender), Some(ETIMEDOUT));
}

#[test]
fn an_acknowledgement_makes_all_that_is_held_young() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    for _ in 0..2 {
        sender.try_send(&PAGE[..]).unwrap();
        sender.step().unwrap();
    }
    kernel.pass(BEYOND);
    kernel.release();
    assert_eq!(sender.held_for(), Some(Duration::ZERO), "the first look finds an acknowledgement");
    kernel.pass(LIMIT);
    assert_eq!(sender.held_for(), Some(LIMIT));
    kernel.release();
    sender.step().unwrap();
    assert_eq!(sender.held_for(), None);
    sender.try_send(&PAGE[..]).unwrap();
    assert_eq!(sender.held_for(), Some(Duration::ZERO), "nothing was held in between");
}

#[test]
fn an_unsent_part_is_held_though_all_else_is_acknowledged() {
    let kernel = FakeKernel::new(Transport::Stream, Fail(EAGAIN));
    kernel.will([Part(1000)]);
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap();
    kernel.release();
    sender.step().unwrap();
    sender.held_for();
    kernel.pass(LIMIT);
    assert_eq!(sender.held_for(), Some(LIMIT));
}

#[test]
fn a_notification_that_another_user_has_read_is_found_out_at_the_limit() {
    let kernel = stream([]);
    let max_hold = Some(Duration::from_millis(10));
    let sender = kernel.sender(Config { max_hold, ..config() });
    let ticket = sender.try_send(&PAGE[..]).unwrap();
    kernel.steal();
    for _ in 0..2 {
        assert!(!sender.is_poisoned());
        sender.step().unwrap();
        kernel.pass(Duration::from_millis(11));
    }
    sender.step().unwrap();
    assert!(matches!(sender.fate(ticket).unwrap(), Some(Fate::Released { .. })));
    assert!(sender.is_poisoned());
}

#[test]
fn a_connection_that_is_over_holds_nothing_and_is_not_aborted() {
    for looks_before in [false, true] {
        let kernel = stream([]);
        let sender = kernel.sender(limited());
        sender.try_send(&PAGE[..100]).unwrap();
        kernel.with(|state| (state.unacked, state.is_over) = (100, !looks_before));
        if looks_before {
            // The end comes after the beginning of the silence.
            sender.step().unwrap();
            kernel.with(|state| state.is_over = true);
        }
        kernel.pass(BEYOND);
        sender.reap().unwrap();
        assert_eq!(error(&sender), Some(ENOTCONN));
        assert_eq!(sender.held_for(), None, "the socket goes on telling of unacknowledged bytes");
        sender.step().unwrap();
        assert_eq!(kernel.with(|state| state.aborts), 0);
    }
}

#[test]
fn a_refused_abort_is_tried_again_until_it_is_made_and_then_no_more() {
    let kernel = stream([]);
    let sender = kernel.sender(limited());
    sender.try_send(&PAGE[..]).unwrap();
    kernel.with(|state| (state.unacked, state.refused_aborts) = (1000, 2));
    sender.step().unwrap();
    for left in [1, 0] {
        kernel.pass(BEYOND);
        sender.step().unwrap();
        let looked = kernel.with(|state| (state.refused_aborts, state.aborts));
        assert_eq!(looked, (left, 0), "one attempt at a time");
        kernel.with(|state| state.unacked = 500);
    }
    for _ in 0..3 {
        kernel.pass(BEYOND);
        sender.step().unwrap();
        assert_eq!(kernel.with(|state| state.aborts), 1);
    }
    let report = sender.close(Some(kernel.now() + LIMIT));
    assert!(report.aborted && !report.drained);
    assert_eq!(report.unacked_bytes, Some(5096), "before the first attempt");
}

#[test]
fn datagrams_under_a_limit_are_looked_after_while_in_flight() {
    let kernel = FakeKernel::new(Transport::Datagram, Answer::Take);
    let sender = kernel.sender(limited());
    sender.try_send(&PAGE[..]).unwrap();
    assert!(sender.attend().is_some());
    kernel.release();
    assert_eq!(sender.attend(), None);
}

#[test]
fn many_short_messages_under_a_limit_are_watched_once() {
    let kernel = stream([]);
    let sender = kernel.sender(limited());
    for _ in 0..100 {
        sender.try_send(&PAGE[..100]).unwrap();
        kernel.pass(LIMIT / 8);
        sender.try_send(&PAGE[..100]).unwrap();
        assert!(sender.attend().is_some());
        kernel.pass(LIMIT / 8);
    }
    assert_eq!(kernel.with(|state| state.watches), 1);
    let looks = (0..10).take_while(|_| sender.attend().is_some()).count();
    assert!(looks < 3, "nothing is sent any more, and everything is acknowledged");
}

#[test]
fn the_end_of_the_connection_is_no_error_once_the_sender_ends_in_order() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.share();
    sender.try_send(&PAGE[..]).unwrap();
    Arc::clone(&sender).leave(true);
    kernel.with(|state| state.is_over = true);
    sender.reap().unwrap();
    assert_eq!(error(&sender), None);
}

/// An end at its deadline.
fn close_now(kernel: &FakeKernel, sender: &Arc<Core<FakeKernel>>) -> CloseReport {
    Arc::clone(sender).close(Some(kernel.now()))
}

#[test]
fn the_close_of_a_failed_connection_does_not_wait() {
    promptly(|| {
        let kernel = stream([Fail(ECONNRESET)]);
        let sender = kernel.sender(config());
        sender.try_send(&PAGE[..]).unwrap_err();
        let report = sender.close(None);
        assert_eq!(report.error.map(|error| error.raw()), Some(ECONNRESET));
        assert!(!report.drained && !report.aborted);
    });
}

#[test]
fn an_aborted_end_is_not_drained_though_everything_was_accepted_and_shut_down() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap();
    let report = close_now(&kernel, &sender);
    assert!(kernel.with(|state| state.shut_down && state.aborts == 1));
    assert!(report.aborted && !report.drained);
    assert_eq!((report.unacked_bytes, report.quarantined), (Some(4095), 0));
    assert_eq!(report.error, None, "an abort is told as such");
}

#[test]
fn an_abort_proves_the_release_of_a_call_whose_notification_was_stolen() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap();
    kernel.steal();
    assert_eq!(close_now(&kernel, &sender).quarantined, 0);
}

#[test]
fn a_send_that_was_cut_short_is_told_of_by_the_end() {
    let kernel = FakeKernel::new(Transport::Stream, Fail(EAGAIN));
    kernel.will([Part(1000)]);
    let sender = kernel.sender(config());
    let mut bufs = vec![Payload::from(&PAGE[..])];
    let ticket = sender.try_send_vectored(&mut bufs).unwrap();
    let report = close_now(&kernel, &sender);
    assert!(report.aborted && !report.drained);
    let fate = sender.fate(ticket).unwrap();
    assert!(matches!(fate, Some(Fate::Truncated { accepted: 1000, .. })), "{fate:?}");
}

#[test]
fn an_end_that_cannot_read_its_notifications_says_why() {
    const ENOMEM: i32 = 12;
    promptly(|| {
        let kernel = stream([]);
        let sender = kernel.sender(config());
        sender.try_send(&PAGE[..]).unwrap();
        kernel.with(|state| state.unreadable = usize::MAX);
        let report = sender.close(None);
        assert_eq!(report.error.map(|error| error.raw()), Some(ENOMEM));
        assert!(!report.drained);
    });
}

#[test]
fn a_question_for_the_age_waits_for_the_call_of_another_thread() {
    promptly(|| {
        let kernel = stream([]);
        let sender = kernel.sender(config());
        sender.try_send(&PAGE[..]).unwrap();
        sender.held_for();
        kernel.pass(LIMIT);
        let asking = Arc::clone(&sender);
        let (started, thread) = mpsc::channel();
        kernel.with(|state| {
            state.meanwhile = Some(Box::new(move || {
                started.send(thread::spawn(move || asking.held_for())).unwrap();
                thread::sleep(Duration::from_millis(100));
            }));
        });
        sender.try_send(&PAGE[..]).unwrap();
        let age = thread.recv().unwrap().join().unwrap();
        assert_eq!(age, Some(LIMIT), "the call's bytes are not acknowledged");
    });
}

#[test]
fn an_aborted_connection_holds_nothing() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..100]).unwrap();
    kernel.with(|state| state.unacked = 100);
    assert!(sender.held_for().is_some());
    sender.abort();
    assert_eq!(sender.held_for(), None, "the socket goes on telling of unacknowledged bytes");
}

#[test]
fn a_half_that_leaves_shuts_the_stream_down() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.share();
    sender.try_send(&PAGE[..]).unwrap();
    Arc::clone(&sender).leave(true);
    assert!(kernel.with(|state| state.shut_down));
}

#[test]
fn an_end_that_has_come_is_not_aborted() {
    let kernel = FakeKernel::new(Transport::Stream, Answer::Note(false));
    let sender = kernel.sender(config());
    sender.share();
    sender.try_send(&PAGE[..]).unwrap();
    Arc::clone(&sender).leave(true);
    assert!(sender.is_over());
    sender.abort();
    assert_eq!(kernel.with(|state| state.aborts), 0);
}

#[test]
fn an_abort_asked_for_during_a_call_is_made_after_it() {
    let kernel = FakeKernel::new(Transport::Stream, Fail(EAGAIN));
    kernel.will([Part(1000)]);
    let config = config();
    let sender = kernel.sender(config);
    sender.share();
    let ticket = sender.try_send(&PAGE[..]).unwrap();
    Arc::clone(&sender).leave(true);
    let (reaper, clock) = (Arc::clone(&sender), kernel.clone());
    kernel.with(|state| {
        state.meanwhile = Some(Box::new(move || {
            for _ in 0..2 {
                clock.pass(config.linger);
                reaper.attend();
            }
            assert_eq!(clock.with(|state| state.aborts), 0, "a call is out");
        }));
    });
    sender.step().unwrap();
    assert_eq!(kernel.with(|state| state.aborts), 1);
    let fate = sender.fate(ticket).unwrap();
    assert!(matches!(fate, Some(Fate::Truncated { accepted: 1000, .. })), "{fate:?}");
}

#[test]
fn the_close_of_the_second_half_keeps_the_time_limit_of_the_end() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.share();
    sender.try_send(&PAGE[..]).unwrap();
    Arc::clone(&sender).leave(true);
    let waits = AtomicUsize::new(0);
    kernel.with(|state| {
        state.on_wait = Some(Arc::new(move |kernel, _| {
            assert!(waits.fetch_add(1, Ordering::Relaxed) < 1000, "the end never comes");
            kernel.pass(LIMIT);
            Ready::default()
        }));
    });
    let report = sender.close(None);
    assert!(report.aborted && !report.drained);
}

#[test]
fn a_failed_abort_wakes_the_task_that_waits_for_the_slot_in_vain() {
    let pool = pool();
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.share();
    sender.try_send(filled(&pool)).unwrap();
    let told = Told::new(&pool);
    let waker = Waker::from(Arc::clone(&told));
    let mut alloc = std::pin::pin!(pool.alloc_async(1));
    assert!(alloc.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    kernel.with(|state| state.refused_aborts = 1);
    sender.abort();
    kernel.pass(LIMIT);
    sender.step().unwrap();
    assert_eq!(told.woken().0, 1);
}

#[test]
fn an_end_gives_notifications_ten_milliseconds_before_it_quarantines() {
    let pool = pool();
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.share();
    sender.try_send(filled(&pool)).unwrap();
    kernel.with(|state| state.refused_aborts = 1);
    sender.abort();
    let moment = Duration::from_nanos(1);
    for (time, is_quarantined) in [(Duration::from_millis(10) - moment, false), (moment, true)] {
        kernel.pass(time);
        sender.step().unwrap();
        assert_eq!(pool.stats().classes[0].quarantined, usize::from(is_quarantined));
    }
}

/// Ends one half of a sender that has sent a buffer, `refused` attempts to abort being refused.
fn half_aborted(refused: usize) -> (FakeKernel, Arc<Core<FakeKernel>>) {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.share();
    sender.try_send(&PAGE[..]).unwrap();
    kernel.with(|state| state.refused_aborts = refused);
    sender.abort();
    (kernel, sender)
}

#[test]
fn the_reaper_tries_a_refused_abort_of_an_end_once_a_second() {
    const REFUSED: usize = 3;
    let (kernel, sender) = half_aborted(REFUSED);
    let began = kernel.now();
    let mut looks = 0;
    while let Some(next) = sender.attend() {
        // Other events make the reaper look as well.
        sender.attend();
        let left = kernel.with(|state| state.refused_aborts);
        let seconds = (kernel.now() - began).as_secs() as usize;
        assert!(REFUSED - left <= seconds + 1, "{left} refusals left after {seconds} s");
        kernel.pass(next);
        looks += 1;
        assert!(looks < 20, "a look takes time");
    }
    assert!(sender.is_over());
    kernel.pass(BEYOND);
    sender.step().unwrap();
    assert_eq!(kernel.with(|state| state.aborts), 1);
    let report = sender.report();
    assert!(report.aborted && report.error.is_none(), "{report:?}");
}

#[test]
fn a_drain_behind_a_refused_abort_comes_to_an_end() {
    promptly(|| {
        let (kernel, sender) = half_aborted(3);
        let waits = AtomicUsize::new(0);
        kernel.with(|state| {
            state.on_wait = Some(Arc::new(move |kernel, waited| {
                assert!(waits.fetch_add(1, Ordering::Relaxed) < 20, "the end never comes");
                kernel.pass(waited.timeout.expect("no wait is without a limit"));
                Ready::default()
            }));
        });
        sender.drain(None).unwrap();
    });
}

#[test]
fn a_refused_abort_is_not_tried_again_when_everything_is_released() {
    let (kernel, sender) = half_aborted(1);
    sender.attend();
    kernel.release();
    kernel.pass(BEYOND);
    sender.attend();
    assert!(sender.is_over());
    assert_eq!(kernel.with(|state| state.aborts), 0);
    assert_eq!(sender.report().error.map(|error| error.raw()), Some(ECANCELED));
}

#[test]
fn an_end_without_proof_frees_its_slot_on_new_pages() {
    let builder = Pool::builder().class(4096, 8).backing(Backing::Require(Pages::Base));
    let pool = builder.build().unwrap();
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.share();
    sender.try_send(filled(&pool)).unwrap();
    kernel.with(|state| state.refused_aborts = 1);
    sender.abort();
    kernel.pass(LIMIT / 10);
    sender.step().unwrap();
    assert_eq!((pool.stats().free(), pool.stats().replaced_bytes), (8, 4096));
    assert_eq!(sender.stats().leases, 1, "the kernel has the former page");
}

#[test]
fn a_thread_that_waits_for_a_call_is_told_of_the_end_of_the_next() {
    promptly(|| {
        let kernel = stream([]);
        let sender = kernel.sender(config());
        let (asking, next) = (Arc::clone(&sender), kernel.clone());
        let (started, thread) = mpsc::channel();
        kernel.with(|state| {
            state.meanwhile = Some(Box::new(move || {
                started.send(thread::spawn(move || asking.held_for())).unwrap();
                thread::sleep(Duration::from_millis(50));
                let while_woken = || thread::sleep(Duration::from_millis(50));
                next.with(|state| state.meanwhile = Some(Box::new(while_woken)));
            }));
        });
        (0..2).for_each(|_| assert!(sender.try_send(&PAGE[..]).is_ok()));
        assert!(thread.recv().unwrap().join().unwrap().is_some());
    });
}
