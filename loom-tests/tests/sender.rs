//! Sending against reaping, over a fake kernel: register before the call, roll back after a
//! failure, the rest, the pool's end, the sender's end.

use std::sync::Arc;

use loom_tests::{
    Alive,
    fake::{Answer, EAGAIN, FakeKernel, PAGE, page_pool},
    model, thread,
};
use pinbuf::{__internals::Core, Fate, PinnedBuf, Pool, SendError};

fn filled(pool: &Pool, value: u8) -> PinnedBuf {
    let mut buf = pool.try_alloc(PAGE).unwrap();
    buf.resize(PAGE, value);
    buf
}

/// Drives a sender on a thread of its own, once.
fn reaping(sender: &Arc<Core<FakeKernel>>) -> thread::JoinHandle<()> {
    let sender = Arc::clone(sender);
    thread::spawn(move || _ = sender.step().unwrap())
}

#[test]
fn a_note_that_comes_before_the_call_returns_finds_its_lease() {
    model(|| {
        let pool = page_pool(1);
        let sender = FakeKernel::new([Answer::TakeAndNote(PAGE)]).sender();
        let reaper = reaping(&sender);
        let ticket = sender.try_send(filled(&pool, 1)).unwrap();
        reaper.join().unwrap();
        sender.step().unwrap();
        assert!(matches!(sender.fate(ticket), Some(Fate::Released { accepted: PAGE, .. })));
        // By the note: one that is not understood poisons, though a proof may make up for it.
        assert!(sender.capabilities().zero_copy);
        assert_eq!(pool.stats().free(), 1);
    });
}

#[test]
fn a_buffer_is_not_reused_before_its_note() {
    model(|| {
        let pool = page_pool(1);
        let kernel = FakeKernel::default();
        let sender = kernel.sender();
        sender.try_send(filled(&pool, 1)).unwrap();
        let network = {
            let kernel = kernel.clone();
            thread::spawn(move || assert!(kernel.deliver()))
        };
        sender.step().unwrap();
        if pool.stats().free() == 1 {
            // Overwrites the slot: `deliver` must have read it before.
            drop(filled(&pool, 2));
        }
        network.join().unwrap();
        sender.step().unwrap();
        assert_eq!(pool.stats().free(), 1);
    });
}

#[test]
fn option_memory_proves_nothing_while_a_call_is_under_way() {
    model(|| {
        let pool = page_pool(1);
        let kernel = FakeKernel::default();
        let sender = kernel.sender();
        let doubter = {
            let sender = Arc::clone(&sender);
            thread::spawn(move || sender.check_overdue())
        };
        let ticket = sender.try_send(filled(&pool, 1)).unwrap();
        doubter.join().unwrap();
        assert_eq!(sender.fate(ticket), None, "nothing is delivered yet");
        assert!(kernel.deliver());
        sender.step().unwrap();
        assert_eq!(pool.stats().free(), 1);
    });
}

#[test]
fn a_failed_call_is_rolled_back_while_another_thread_reaps() {
    model(|| {
        let pool = page_pool(1);
        let kernel = FakeKernel::new([Answer::Fail(EAGAIN), Answer::TakeAndNote(PAGE)]);
        let sender = kernel.sender();
        let reaper = reaping(&sender);
        let Err(SendError::WouldBlock(buf)) = sender.try_send(filled(&pool, 1)) else {
            panic!("the first answer is EAGAIN");
        };
        assert_eq!(buf[0], 1);
        let ticket = sender.try_send(buf).unwrap();
        reaper.join().unwrap();
        sender.step().unwrap();
        assert!(matches!(sender.fate(ticket), Some(Fate::Released { accepted: PAGE, .. })));
        assert!(sender.capabilities().zero_copy, "by the note, not by a proof");
        assert_eq!(pool.stats().free(), 1);
    });
}

#[test]
fn the_rest_of_a_buffer_goes_out_once_whoever_flushes() {
    model(|| {
        let pool = page_pool(1);
        let kernel = FakeKernel::new([Answer::TakeAndNote(100), Answer::TakeAndNote(PAGE)]);
        let sender = kernel.sender();
        let ticket = sender.try_send(filled(&pool, 1)).unwrap();
        assert_eq!(sender.fate(ticket), None, "a part is not accepted yet");
        let flusher = reaping(&sender);
        sender.step().unwrap();
        flusher.join().unwrap();
        sender.step().unwrap();
        assert_eq!(kernel.accepted(), PAGE);
        assert!(sender.fate(ticket).is_some());
        assert_eq!(pool.stats().free(), 1);
    });
}

#[test]
fn a_pool_dropped_with_a_send_in_flight_lives_until_the_note() {
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

#[test]
fn a_sender_left_in_flight_ends_in_the_reapers_care() {
    model(|| {
        let pool = page_pool(1);
        let kernel = FakeKernel::default();
        let sender = kernel.sender();
        sender.try_send(filled(&pool, 1)).unwrap();
        let network = {
            let kernel = kernel.clone();
            thread::spawn(move || {
                assert!(kernel.deliver());
                kernel.attend();
            })
        };
        sender.leave(false);
        network.join().unwrap();
        kernel.attend();
        assert!(!kernel.has_orphan(), "it is over");
        assert_eq!(pool.stats().free(), 1);
    });
}

#[test]
fn an_abort_keeps_what_a_packet_in_a_queue_still_carries() {
    model(|| {
        let pool = page_pool(1);
        let kernel = FakeKernel::default().queued_below();
        let sender = kernel.sender();
        sender.try_send(filled(&pool, 1)).unwrap();
        let network = {
            let kernel = kernel.clone();
            thread::spawn(move || assert!(kernel.deliver()))
        };
        sender.abort();
        sender.leave(false);
        if pool.stats().free() == 1 {
            drop(filled(&pool, 2));
        }
        network.join().unwrap();
        kernel.attend();
        assert!(!kernel.has_orphan());
        assert_eq!(pool.stats().free(), 1);
    });
}

#[test]
fn halves_that_leave_at_once_end_the_sender_once() {
    model(|| {
        let pool = page_pool(1);
        let kernel = FakeKernel::default();
        let sender = kernel.sender();
        sender.try_send(filled(&pool, 1)).unwrap();
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
        assert_eq!(pool.stats().free(), 1);
    });
}
