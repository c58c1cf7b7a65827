//! The order of events, over a scripted kernel.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use super::{
    config::Config,
    driver::Core,
    fake::{
        Answer::{self, Fail, Part},
        FakeKernel,
    },
    transport::Transport,
};
use crate::{
    Fate, PinnedBuf, Pool, SendError,
    pool::{Backing, Pages},
    raw::Reclaim,
};

mod accounts;
mod care;
#[cfg(feature = "histogram")]
mod release_times;
mod silence;
mod tasks;
#[cfg(feature = "tracing")]
mod telemetry;
mod waits;

/// Of Linux.
const EAGAIN: i32 = 11;

/// Of small buffers too everything goes without copy.
fn config() -> Config {
    Config { threshold_bytes: 1, ..Config::default() }
}

/// A stream with these answers, followed by full acceptance.
fn stream(answers: impl IntoIterator<Item = Answer>) -> FakeKernel {
    let kernel = FakeKernel::new(Transport::Stream, Answer::Take);
    kernel.will(answers);
    kernel
}

fn pool() -> Pool {
    Pool::builder().class(4096, 1).backing(Backing::Require(Pages::Base)).build().unwrap()
}

fn filled(pool: &Pool) -> PinnedBuf {
    let mut buf = pool.try_alloc(4096).unwrap();
    buf.resize(4096, 1);
    buf
}

/// Runs `body`, which must not hang.
fn promptly(body: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = thread::spawn(move || {
        body();
        done.send(()).unwrap();
    });
    assert_ne!(
        ended.recv_timeout(Duration::from_secs(10)),
        Err(mpsc::RecvTimeoutError::Timeout),
        "it hangs"
    );
    thread.join().unwrap();
}

/// Asks the sender something when woken, and when dropped.
struct Nosy(Arc<Core<FakeKernel>>, Arc<AtomicBool>);

impl Wake for Nosy {
    fn wake(self: Arc<Self>) {
        self.0.stats();
        self.1.store(true, Ordering::Relaxed);
    }
}

impl Drop for Nosy {
    fn drop(&mut self) {
        self.0.stats();
    }
}

#[test]
fn poison_wakes_a_hopeless_waiter_outside_the_locks() {
    promptly(|| {
        let pool = pool();
        let kernel = stream([]);
        let sender = kernel.sender(config());
        sender.try_send(filled(&pool)).unwrap();
        let woken = Arc::new(AtomicBool::new(false));
        let waker = Waker::from(Arc::new(Nosy(Arc::clone(&sender), Arc::clone(&woken))));
        let mut alloc = std::pin::pin!(pool.alloc_async(1));
        assert!(alloc.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        kernel.note(7, 7);
        sender.step().unwrap();
        assert!(sender.capabilities().reason.is_some(), "poisoned");
        assert!(woken.load(Ordering::Relaxed));
    });
}

#[test]
fn a_waker_is_replaced_with_no_lock_held() {
    promptly(|| {
        let kernel = stream([]);
        let sender = kernel.sender(config());
        let ticket = sender.try_send(filled(&pool())).unwrap();
        let woken = Arc::new(AtomicBool::new(false));
        let waker = Waker::from(Arc::new(Nosy(Arc::clone(&sender), woken)));
        let poll = |waker: &Waker| sender.poll_fate(&mut Context::from_waker(waker), ticket);
        assert!(poll(&waker).is_pending());
        drop(waker);
        assert!(poll(Waker::noop()).is_pending());
        kernel.note(0, 0);
        assert!(matches!(poll(Waker::noop()), Poll::Ready(Ok(_))));
    });
}

#[test]
fn dropping_an_idle_sender_keeps_the_stream_open() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    let waiter = Arc::clone(&sender);
    sender.leave(false);
    waiter.drive();
    assert!(!kernel.with(|state| state.shut_down), "the socket may have other handles");
}

#[test]
fn max_hold_watches_a_sender_that_holds_bytes() {
    let kernel = stream([]);
    let max_hold = Some(Duration::from_secs(1));
    let sender = kernel.sender(Config { max_hold, ..config() });
    sender.try_send(filled(&pool())).unwrap();
    // Before, the reaper could have come by, seen nothing in flight, and gone.
    assert_eq!(kernel.with(|state| state.watched_after), Some(1));
}

#[test]
fn max_hold_watches_a_sender_with_an_unsent_part() {
    let kernel = stream([Part(1000), Fail(EAGAIN), Fail(EAGAIN)]);
    let max_hold = Some(Duration::from_secs(1));
    let sender = kernel.sender(Config { max_hold, ..config() });
    sender.try_send(filled(&pool())).unwrap();
    kernel.note(0, 0);
    assert!(sender.attend().is_some(), "the rest will be in flight without another send");
    sender.step().unwrap();
    kernel.note(1, 1);
    assert_eq!(sender.attend(), None);
}

#[test]
fn a_change_during_another_threads_send_is_not_lost() {
    let pool = pool();
    let kernel = stream([Part(1000), Fail(EAGAIN)]);
    let sender = kernel.sender(config());
    let ticket = sender.try_send(filled(&pool)).unwrap();
    kernel.will([Fail(EAGAIN)]);
    let (news, reaper) = mpsc::channel();
    let driver = Arc::clone(&sender);
    kernel.with(|state| {
        state.meanwhile = Some(Box::new(move || {
            // Room comes between the kernel's answer and the end of the call.
            news.send(thread::spawn(move || _ = driver.attend())).unwrap();
            thread::sleep(Duration::from_millis(100));
        }));
    });
    sender.step().unwrap();
    reaper.recv().unwrap().join().unwrap();
    assert!(!sender.enter().is_unsent());
    kernel.note(0, 1);
    sender.step().unwrap();
    assert!(matches!(sender.fate(ticket).unwrap(), Some(Fate::Released { accepted: 4096, .. })));
}

#[test]
fn a_blocking_send_ends_when_its_unsent_part_is_refused() {
    promptly(|| {
        const EPERM: i32 = 1;
        let pool = pool();
        let kernel = stream([Part(1000)].into_iter().chain([Fail(EPERM); 50]));
        let sender = kernel.sender(config());
        let Err(SendError::Truncated { ticket, error }) = sender.send(filled(&pool)) else {
            panic!("the rest is refused");
        };
        assert_eq!(error.raw(), EPERM);
        kernel.note(0, 0);
        sender.step().unwrap();
        let fate = sender.fate(ticket).unwrap();
        assert!(matches!(fate, Some(Fate::Truncated { accepted: 1000, .. })), "{fate:?}");
    });
}

#[test]
fn a_failed_datagrams_id_waits_for_the_read() {
    const EPERM: i32 = 1;
    for (unreadable, unfinished) in [(1, 0), (0, 1000)] {
        let pool = pool();
        let kernel = FakeKernel::new(Transport::Datagram, Answer::Take);
        kernel.will([Answer::FailWithNote(EPERM)]);
        let sender = kernel.sender(config());
        kernel.with(|state| (state.unreadable, state.unfinished) = (unreadable, unfinished));
        let Err(SendError::Dropped { buf, .. }) = sender.try_send(filled(&pool)) else {
            panic!("it was dropped");
        };
        sender.try_send(buf).unwrap();
        let zero_copy = sender.stats().zero_copy_bytes > 0;
        assert_eq!(zero_copy, unreadable == 0, "after an error everything goes by copy");
        kernel.with(|state| (state.unreadable, state.unfinished) = (0, 0));
        sender.step().unwrap();
        assert_eq!(pool.stats().free(), usize::from(!zero_copy), "no note has come for it");
    }
}

/// Counts its wake-ups, and the free slots at the last one.
struct Told(Pool, AtomicUsize, AtomicUsize);

impl Told {
    fn new(pool: &Pool) -> Arc<Self> {
        Arc::new(Self(pool.clone(), AtomicUsize::new(0), AtomicUsize::new(0)))
    }

    fn woken(&self) -> (usize, usize) {
        (self.1.load(Ordering::Relaxed), self.2.load(Ordering::Relaxed))
    }
}

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        self.2.store(self.0.stats().free(), Ordering::Relaxed);
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_told_release_finds_the_slot_free() {
    let pool = pool();
    let kernel = stream([]);
    let sender = kernel.sender(config());
    let ticket = sender.try_send(filled(&pool)).unwrap();
    let told = Told::new(&pool);
    let waker = Waker::from(Arc::clone(&told));
    assert!(sender.poll_fate(&mut Context::from_waker(&waker), ticket).is_pending());
    kernel.note(0, 0);
    sender.step().unwrap();
    assert_eq!(told.woken(), (1, 1));
}

#[test]
fn poison_does_not_wake_waiters_of_a_partial_send() {
    let pool = pool();
    let kernel = stream([Part(1000), Fail(EAGAIN), Fail(EAGAIN), Fail(EAGAIN), Fail(EAGAIN)]);
    let sender = kernel.sender(config());
    let ticket = sender.try_send(filled(&pool)).unwrap();
    kernel.note(7, 7);
    sender.step().unwrap();
    assert!(sender.capabilities().reason.is_some(), "poisoned");
    let told = Told::new(&pool);
    let waker = Waker::from(Arc::clone(&told));
    let mut cx = Context::from_waker(&waker);
    assert!(sender.poll_fate(&mut cx, ticket).is_pending());
    sender.step().unwrap();
    assert_eq!(told.woken().0, 0, "it would ask, and be woken, again and again");
    sender.step().unwrap();
    assert_eq!(told.woken().0, 1);
    assert!(matches!(sender.poll_fate(&mut cx, ticket), Poll::Ready(Ok(Fate::Quarantined))));
}

#[test]
fn a_stolen_notification_still_wakes_its_task() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    let ticket = sender.try_send(filled(&pool())).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(sender.poll_fate(&mut cx, ticket).is_pending());
    assert!(sender.attend().is_some(), "to look again, as no news may come");
    kernel.steal();
    kernel.pass(Duration::from_secs(1));
    // A message about something else is no answer.
    kernel.foreign(0);
    sender.attend();
    assert!(sender.fate(ticket).unwrap().is_some());
    assert_eq!(sender.attend(), None, "no thread waits any more");
}

#[test]
fn a_tiny_limit_does_not_make_the_reaper_spin() {
    let kernel = stream([]);
    let max_hold = Some(Duration::from_nanos(3));
    let sender = kernel.sender(Config { max_hold, ..config() });
    sender.try_send(filled(&pool())).unwrap();
    let next = sender.attend();
    assert!(next.is_some_and(|next| next >= Duration::from_millis(1)), "{next:?}");
}

#[test]
fn a_blocking_send_without_a_wait_is_truncated() {
    promptly(|| {
        let pool = pool();
        let kernel = stream([Part(1000), Fail(EAGAIN), Fail(EAGAIN)]);
        let sender = kernel.sender(config());
        kernel.with(|state| state.unreadable = 1);
        let Err(SendError::Truncated { ticket, error }) = sender.send(filled(&pool)) else {
            panic!("the error queue cannot be read");
        };
        assert_eq!(sender.connection_error(), Some(error), "as the error says");
        kernel.note(0, 0);
        sender.step().unwrap();
        let fate = sender.fate(ticket).unwrap();
        assert!(matches!(fate, Some(Fate::Truncated { accepted: 1000, .. })), "{fate:?}");
    });
}

#[test]
fn an_end_with_a_stuck_part_is_aborted() {
    let kernel = FakeKernel::new(Transport::Stream, Fail(EAGAIN));
    kernel.will([Part(1000)]);
    let config = config();
    let sender = kernel.sender(config);
    let ticket = sender.try_send(filled(&pool())).unwrap();
    kernel.release();
    Arc::clone(&sender).leave(true);
    assert_eq!(sender.fate(ticket).unwrap(), None, "there is time left");
    kernel.pass(config.linger);
    sender.attend();
    let fate = sender.fate(ticket).unwrap();
    assert!(matches!(fate, Some(Fate::Truncated { accepted: 1000, .. })), "{fate:?}");
}

#[test]
fn a_sender_remembers_a_few_pools_and_is_known_to_all() {
    let kernel = FakeKernel::new(Transport::Stream, Answer::Note(false));
    let sender = kernel.sender(config());
    let pools = [(); 16].map(|()| pool());
    for _ in 0..100 {
        for pool in &pools {
            sender.try_send(filled(pool)).unwrap();
            sender.drive();
        }
    }
    // Told again and again, each pool knows the one sender a few times at most.
    assert!(pools.iter().all(|pool| (1..10).contains(&pool.raw().reclaimers().len())));
}

#[test]
fn a_first_call_released_before_its_return_was_not_ignored() {
    let kernel = stream([Answer::Ignore]);
    let sender = kernel.sender(config());
    let (socket, visitor) = (kernel.clone(), Arc::clone(&sender));
    let visit = move || {
        socket.note(0, 0);
        visitor.step().unwrap();
    };
    kernel.with(|state| state.meanwhile = Some(Box::new(visit)));
    sender.try_send(&PAGE[..]).unwrap();
    assert_eq!(sender.capabilities().reason, None);
}

#[test]
fn an_ignored_flag_frees_the_buffer_at_once() {
    let pool = pool();
    let sender = stream([Answer::Ignore]).sender(config());
    let ticket = sender.try_send(filled(&pool)).unwrap();
    assert!(matches!(sender.fate(ticket).unwrap(), Some(Fate::Released { accepted: 4096, .. })));
    assert!(!sender.capabilities().supported);
    assert_eq!(pool.stats().free(), 1);
    sender.try_send(filled(&pool)).unwrap();
    assert_eq!(sender.stats().zero_copy_calls, 1);
}

#[test]
fn a_successful_send_clears_the_stuck_state() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    static LARGE: [u8; 4096] = [1; 4096];
    // By copy and without, in any order.
    for (refused, sent) in [(4096, 4096), (100, 100), (100, 4096), (4096, 100)] {
        sender.try_send(&LARGE[..]).unwrap();
        kernel.will([Fail(EAGAIN)]);
        assert!(sender.try_send(&LARGE[..refused]).unwrap_err().is_backpressure());
        assert!(sender.interest().writable);
        sender.try_send(&LARGE[..sent]).unwrap();
        assert!(!sender.interest().writable, "{refused} bytes refused, {sent} sent");
    }
}

static PAGE: [u8; 4096] = [1; 4096];

/// The answer to a call holds for some calls behind it, until something changes.
#[test]
fn stale_grants_are_revoked() {
    const EOPNOTSUPP: i32 = 95;
    let poisoned: fn(&FakeKernel, &Core<FakeKernel>) = |kernel, sender| {
        kernel.note(7, 7);
        sender.step().unwrap();
    };
    let refused: fn(&FakeKernel, &Core<FakeKernel>) = |kernel, _| kernel.will([Fail(EOPNOTSUPP)]);
    for (changed, most) in [(poisoned, 2), (refused, 3)] {
        let kernel = stream([]);
        let sender = kernel.sender(config());
        (0..2).for_each(|_| assert!(sender.try_send(&PAGE[..]).is_ok()));
        changed(&kernel, &sender);
        (0..3).for_each(|_| assert!(sender.try_send(&PAGE[..]).is_ok()));
        let without_copy = kernel.seen().iter().filter(|seen| seen.zero_copy).count();
        assert!(without_copy <= most, "{without_copy} calls");
    }
}

#[test]
fn no_window_is_exceeded_whatever_calls_are_made() {
    let pages = |count: usize| Config { max_in_flight_bytes: count * PAGE.len(), ..config() };
    let calls = |count| Config { max_in_flight_sends: count, ..config() };
    for (config, most) in [(pages(3), 3), (calls(3), 3), (calls(40), 40)] {
        let sender = stream([]).sender(config);
        sender.try_send(&PAGE[..]).unwrap();
        let mut bufs = vec![(&PAGE[..]).into()];
        sender.try_send_vectored(&mut bufs).unwrap();
        let sent = (2..100).take_while(|_| sender.try_send(&PAGE[..]).is_ok()).count() + 2;
        let stats = sender.stats();
        assert_eq!((sent, stats.in_flight_calls), (most, most));
        assert_eq!(stats.in_flight_bytes, most * PAGE.len());
    }
}

#[test]
fn notifications_are_read_after_32_calls() {
    let kernel = FakeKernel::new(Transport::Stream, Answer::Note(false));
    let sender = kernel.sender(config());
    for sent in 1..200 {
        sender.try_send(&PAGE[..]).unwrap();
        assert!(sender.stats().in_flight_calls <= 32, "{sent} sends");
    }
}
