//! The reaper's care for a sender, wake-ups, grants, and the end.

use super::*;
use crate::lease::Payload;

const EPERM: i32 = 1;

#[test]
fn a_sender_that_takes_the_slot_of_a_waiting_task_has_itself_watched() {
    let lone: fn(&Core<FakeKernel>, PinnedBuf) = |sender, buf| _ = sender.try_send(buf).unwrap();
    let vectored: fn(&Core<FakeKernel>, PinnedBuf) =
        |sender, buf| _ = sender.try_send_vectored(&mut vec![buf.into()]).unwrap();
    let by_copy = Config::default();
    for (config, answers, send) in [
        (config(), vec![], lone),
        (config(), vec![], vectored),
        (config(), vec![Part(1000), Fail(EAGAIN)], lone),
        (by_copy, vec![Part(1000), Fail(EAGAIN)], lone),
        (by_copy, vec![Part(1000), Fail(EAGAIN)], vectored),
    ] {
        let kernel = stream(answers.clone());
        let sender = kernel.sender(config);
        let pool = pool();
        let buf = filled(&pool);
        let mut alloc = std::pin::pin!(pool.alloc_async(1));
        assert!(alloc.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        send(&sender, buf);
        assert!(kernel.with(|state| state.watched_after.is_some()), "{answers:?}");
        assert_eq!(pool.raw().reclaimers().len(), 1, "{answers:?}");
    }
}

#[test]
fn every_kind_of_send_under_a_limit_of_silence_has_the_sender_watched() {
    let max_hold = Some(Duration::from_secs(1));
    let without_copy: fn(&Core<FakeKernel>) = |sender| _ = sender.try_send(&PAGE[..]).unwrap();
    let by_copy: fn(&Core<FakeKernel>) = |sender| _ = sender.try_send(&PAGE[..100]).unwrap();
    let vectored: fn(&Core<FakeKernel>) =
        |sender| _ = sender.try_send_vectored(&mut vec![Payload::from(&PAGE[..])]).unwrap();
    for (row, send) in [without_copy, by_copy, vectored].into_iter().enumerate() {
        let kernel = stream([]);
        let sender = kernel.sender(Config { max_hold, ..config() });
        for _ in 0..3 {
            kernel.with(|state| state.watched_after = None);
            send(&sender);
            assert!(kernel.with(|state| state.watched_after.is_some()), "row {row}");
            while !kernel.with(|state| state.is_all_released()) {
                kernel.release();
            }
            // The care ends some looks after the last byte is acknowledged.
            while sender.attend().is_some() {
                kernel.pass(Duration::from_millis(250));
            }
        }
    }
}

#[test]
fn the_drop_of_a_copied_buffer_wakes_a_task_with_no_lock_held() {
    promptly(|| {
        let pool = pool();
        let kernel = stream([]);
        // The end of a call under a limit of silence is told of, with the lock.
        let max_hold = Some(Duration::from_secs(1));
        let sender = kernel.sender(Config { max_hold, ..Config::default() });
        let buf = filled(&pool);
        let woken = Arc::new(AtomicBool::new(false));
        let waker = Waker::from(Arc::new(Nosy(Arc::clone(&sender), Arc::clone(&woken))));
        let mut alloc = std::pin::pin!(pool.alloc_async(1));
        assert!(alloc.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        sender.try_send(buf).unwrap();
        assert!(woken.load(Ordering::Relaxed));
    });
}

#[test]
fn nothing_goes_without_copy_once_the_queue_cannot_be_read() {
    let kernel = FakeKernel::new(Transport::Stream, Answer::Note(false));
    let sender = kernel.sender(config());
    for _ in 0..2 {
        sender.try_send(&PAGE[..]).unwrap();
        sender.step().unwrap();
    }
    kernel.seen();
    kernel.with(|state| (state.unreadable, state.read_errno) = (usize::MAX, EPERM));
    sender.step().unwrap();
    sender.try_send(&PAGE[..]).unwrap();
    assert!(!kernel.seen()[0].zero_copy);
}

#[test]
fn a_send_of_nothing_forgets_the_refused_buffer() {
    let kernel = stream([Fail(EAGAIN)]);
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap_err();
    assert!(sender.interest().writable);
    sender.try_send_vectored(&mut Vec::new()).unwrap();
    assert!(!sender.interest().writable);
}

#[test]
fn a_buffer_left_from_a_failed_call_is_not_taken_for_one_in_flight() {
    const LEN: usize = 16 << 10;
    let pool =
        Pool::builder().class(LEN, 2).backing(Backing::Require(Pages::Base)).build().unwrap();
    let buf = || {
        let mut buf = pool.try_alloc(LEN).unwrap();
        buf.resize(LEN, 1);
        Payload::from(buf)
    };
    // One call for each buffer.
    let kernel = stream([Part(LEN), Fail(EAGAIN), Fail(EAGAIN), Fail(EAGAIN)]);
    let sender = kernel.sender_within(Some(4 * LEN), config());
    sender.try_send_vectored(&mut vec![buf(), buf()]).unwrap();
    kernel.note(7, 7);
    sender.step().unwrap();
    let stats = pool.stats();
    assert_eq!((stats.quarantined(), stats.in_flight()), (1, 1));
}

#[test]
fn a_sender_that_no_thread_could_watch_asks_to_be_watched_again() {
    let max_hold = Some(Duration::from_secs(1));
    let kernel = stream([]);
    let sender = kernel.sender(Config { max_hold, ..config() });
    kernel.with(|state| state.unserved = true);
    sender.try_send(&PAGE[..]).unwrap();
    assert_eq!(sender.attend(), None, "the reaper does not have it");
    kernel.with(|state| state.unserved = false);
    sender.try_send(&PAGE[..]).unwrap();
    assert_eq!(kernel.with(|state| state.watches), 2);
    assert!(sender.attend().is_some());
}

#[test]
fn a_retired_sender_needs_no_thread() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.retire();
    assert!(Arc::clone(&sender).watch());
    assert_eq!(kernel.with(|state| state.watches), 0);
}

#[test]
fn a_flush_forgets_the_refused_buffer() {
    let kernel = stream([Fail(EAGAIN)]);
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap_err();
    sender.reap_and_flush().unwrap();
    assert!(!sender.interest().writable);
}

#[test]
fn a_look_during_a_call_under_a_limit_keeps_the_watch() {
    let max_hold = Some(Duration::from_secs(1));
    let kernel = stream([]);
    let sender = kernel.sender(Config { max_hold, ..config() });
    sender.try_send(&PAGE[..100]).unwrap();
    // Two looks find everything acknowledged, and nothing sent in between.
    sender.step().unwrap();
    sender.step().unwrap();
    let (reaper, watched) = (Arc::clone(&sender), Arc::new(AtomicBool::new(false)));
    let kept = Arc::clone(&watched);
    let look = move || kept.store(reaper.attend().is_some(), Ordering::Relaxed);
    kernel.with(|state| state.meanwhile = Some(Box::new(look)));
    sender.try_send(&PAGE[..100]).unwrap();
    assert!(watched.load(Ordering::Relaxed));
}

#[test]
fn a_look_during_the_very_first_call_under_a_limit_keeps_the_watch() {
    let max_hold = Some(Duration::from_secs(1));
    let kernel = stream([]);
    let sender = kernel.sender(Config { max_hold, ..config() });
    assert!(Arc::clone(&sender).watch());
    let (reaper, watched) = (Arc::clone(&sender), Arc::new(AtomicBool::new(false)));
    let kept = Arc::clone(&watched);
    let look = move || kept.store(reaper.attend().is_some(), Ordering::Relaxed);
    kernel.with(|state| state.meanwhile = Some(Box::new(look)));
    sender.try_send(&PAGE[..100]).unwrap();
    assert!(watched.load(Ordering::Relaxed));
}

#[test]
fn a_refused_reading_is_told_though_the_run_goes_on() {
    let kernel = stream([Part(1000), Fail(EAGAIN)]);
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap();
    kernel.with(|state| (state.unreadable, state.read_errno) = (1, EPERM));
    let error = sender.reap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EPERM));
}

#[test]
fn a_poisoned_sender_tells_every_fate_but_that_of_the_unsent_send() {
    let kernel = stream([Answer::Take, Part(1000), Fail(EAGAIN), Fail(EAGAIN)]);
    let sender = kernel.sender(config());
    let [first, last] = [(); 2].map(|()| sender.try_send(&PAGE[..]).unwrap());
    kernel.note(7, 7);
    sender.step().unwrap();
    assert_eq!(sender.fate(first), Ok(Some(Fate::Quarantined)));
    assert_eq!(sender.fate(last), Ok(None));
}
