//! The order of events, over a kernel that does as it is told.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use super::{
    Config,
    core::Core,
    kernel::{Interest, Kernel},
    transport::Transport,
    window::MemlockBudget,
};
use crate::{
    Backing, Fate, NotificationId, Pages, PinnedBuf, Pool, SendError,
    raw::Reclaim,
    reaper,
    sys::{
        Batch, Record,
        epoll::EdgeWait,
        socket::{IoVec, Ready, SendFlags},
    },
};

/// Of Linux.
const EAGAIN: i32 = 11;

#[derive(Default)]
struct State {
    answers: VecDeque<Result<usize, i32>>,
    notes: Vec<Record>,
    /// Zero-copy calls taken.
    calls: u32,
    shut_down: bool,
    /// A socket for datagrams, whose calls that fail use their ids, with notes.
    datagrams: bool,
    /// So many reads of the error queue fail, or tell of more.
    unreadable: usize,
    unfinished: usize,
    /// Zero-copy calls taken before the sender was watched.
    watched_after: Option<u32>,
    /// Happens during the next call.
    meanwhile: Option<Box<dyn FnOnce() + Send>>,
}

/// Takes what it is offered, unless there is an answer left that says otherwise.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<State>>);

impl Script {
    fn new(answers: impl IntoIterator<Item = Result<usize, i32>>) -> Self {
        let script = Self::default();
        script.with(|state| state.answers.extend(answers));
        script
    }

    fn with<R>(&self, body: impl FnOnce(&mut State) -> R) -> R {
        body(&mut self.0.lock().unwrap())
    }

    fn sender(&self, config: Config) -> Arc<Core<Self>> {
        let config = Config { threshold_bytes: 1, ..config };
        let budget = Arc::new(MemlockBudget::new(None));
        Core::new(self.clone(), config, None, budget, 1 << 20, NotificationId(0))
    }

    fn note(&self, lo: u32, hi: u32) {
        self.with(|state| state.notes.push(Record::Released { lo, hi, copied: false }));
    }
}

impl Kernel for Script {
    fn transport(&self) -> Transport {
        match self.with(|state| state.datagrams) {
            true => Transport::Datagram,
            false => Transport::Stream,
        }
    }

    fn send(&self, memory: &[IoVec], flags: SendFlags) -> io::Result<usize> {
        if let Some(meanwhile) = self.with(|state| state.meanwhile.take()) {
            meanwhile();
        }
        self.with(|state| {
            let offered = memory.iter().map(IoVec::len).sum();
            let taken = state.answers.pop_front().unwrap_or(Ok(offered));
            let id = state.calls;
            state.calls += u32::from(flags.zerocopy && (taken.is_ok() || state.datagrams));
            if state.calls > id && taken.is_err() {
                state.notes.push(Record::Released { lo: id, hi: id, copied: false });
            }
            Ok(taken.map_err(io::Error::from_raw_os_error)?.min(offered))
        })
    }

    fn read_notes(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch> {
        if self
            .with(|state| state.unreadable.checked_sub(1).map(|left| state.unreadable = left))
            .is_some()
        {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        if self
            .with(|state| state.unfinished.checked_sub(1).map(|left| state.unfinished = left))
            .is_some()
        {
            return Ok(Batch { messages: 32, truncated: false, drained: false });
        }
        let notes = self.with(|state| std::mem::take(&mut state.notes));
        let messages = notes.len();
        notes.into_iter().for_each(on_record);
        Ok(Batch { messages, truncated: false, drained: true })
    }

    fn wait(&self, _: Interest, _: Option<Duration>, _: Option<&EdgeWait>) -> io::Result<Ready> {
        thread::yield_now();
        Ok(Ready::default())
    }

    fn edges(&self, _: Interest) -> io::Result<Option<EdgeWait>> {
        Ok(None)
    }

    fn optmem(&self) -> io::Result<u32> {
        Ok(832)
    }

    fn unacked(&self) -> io::Result<usize> {
        Ok(1)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.with(|state| state.shut_down = true);
        Ok(())
    }

    fn abort(&self) -> io::Result<()> {
        Ok(())
    }

    fn reset_on_close(&self) -> io::Result<()> {
        Ok(())
    }

    fn linger_off(&self) -> io::Result<()> {
        Ok(())
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn watch(&self, _: Weak<dyn Reclaim>) -> Option<reaper::Token> {
        self.with(|state| state.watched_after = Some(state.calls));
        Some(reaper::Token::default())
    }

    fn adopt(&self, _: Arc<dyn Reclaim>) -> (reaper::Token, bool) {
        (reaper::Token::default(), true)
    }

    fn unwatch(&self, _: reaper::Token) {}
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

/// Asks something of the sender when it is woken, and when it is dropped.
struct Nosy(Arc<Core<Script>>, Arc<AtomicBool>);

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
fn a_waiter_that_poison_leaves_without_hope_is_woken_with_no_lock_held() {
    promptly(|| {
        let pool = pool();
        let script = Script::default();
        let sender = script.sender(Config::default());
        sender.try_send(filled(&pool)).unwrap();
        let woken = Arc::new(AtomicBool::new(false));
        let waker = Waker::from(Arc::new(Nosy(Arc::clone(&sender), Arc::clone(&woken))));
        let mut alloc = std::pin::pin!(pool.alloc_async(1));
        assert!(alloc.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        script.note(7, 7);
        sender.step().unwrap();
        assert!(sender.capabilities().reason.is_some(), "poisoned");
        assert!(woken.load(Ordering::Relaxed));
    });
}

#[test]
fn a_waker_is_replaced_with_no_lock_held() {
    promptly(|| {
        let script = Script::default();
        let sender = script.sender(Config::default());
        let ticket = sender.try_send(filled(&pool())).unwrap();
        let woken = Arc::new(AtomicBool::new(false));
        let waker = Waker::from(Arc::new(Nosy(Arc::clone(&sender), woken)));
        let poll = |waker: &Waker| sender.poll_fate(&mut Context::from_waker(waker), ticket);
        assert!(poll(&waker).is_pending());
        drop(waker);
        assert!(poll(Waker::noop()).is_pending());
        script.note(0, 0);
        assert!(matches!(poll(Waker::noop()), Poll::Ready(Ok(_))));
    });
}

#[test]
fn an_idle_sender_that_is_left_does_not_end_the_stream_whoever_still_drives_it() {
    let script = Script::default();
    let sender = script.sender(Config::default());
    let waiter = Arc::clone(&sender);
    sender.leave(false);
    waiter.drive();
    assert!(!script.with(|state| state.shut_down), "the socket may have other handles");
}

#[test]
fn a_sender_with_a_limit_is_watched_when_there_is_something_to_watch() {
    let script = Script::default();
    let max_hold = Some(Duration::from_secs(1));
    let sender = script.sender(Config { max_hold, ..Config::default() });
    sender.try_send(filled(&pool())).unwrap();
    // Before, the reaper could have come by, seen nothing in flight, and gone.
    assert_eq!(script.with(|state| state.watched_after), Some(1));
}

#[test]
fn news_that_comes_while_another_thread_sends_is_not_lost() {
    let pool = pool();
    let script = Script::new([Ok(1000), Err(EAGAIN)]);
    let sender = script.sender(Config::default());
    let ticket = sender.try_send(filled(&pool)).unwrap();
    script.with(|state| state.answers.push_back(Err(EAGAIN)));
    let (news, reaper) = mpsc::channel();
    let driver = Arc::clone(&sender);
    script.with(|state| {
        state.meanwhile = Some(Box::new(move || {
            // Room comes between the kernel's answer and the end of the call.
            news.send(thread::spawn(move || _ = driver.attend())).unwrap();
            thread::sleep(Duration::from_millis(100));
        }));
    });
    sender.step().unwrap();
    reaper.recv().unwrap().join().unwrap();
    script.note(0, 1);
    sender.step().unwrap();
    assert!(matches!(sender.fate(ticket), Some(Fate::Released { accepted: 4096, .. })));
}

#[test]
fn a_blocking_send_whose_rest_is_refused_ends() {
    promptly(|| {
        const EPERM: i32 = 1;
        let pool = pool();
        let script = Script::new([Ok(1000)].into_iter().chain([Err(EPERM); 50]));
        let sender = script.sender(Config::default());
        let Err(SendError::Truncated { ticket, error }) = sender.send(filled(&pool)) else {
            panic!("the rest is refused");
        };
        assert_eq!(error.raw(), EPERM);
        script.note(0, 0);
        sender.step().unwrap();
        let fate = sender.fate(ticket);
        assert!(matches!(fate, Some(Fate::Truncated { accepted: 1000, .. })), "{fate:?}");
    });
}

#[test]
fn the_id_of_a_failed_datagram_is_not_given_out_while_its_note_may_be_unread() {
    const EPERM: i32 = 1;
    for (unreadable, unfinished) in [(1, 0), (0, 1000)] {
        let pool = pool();
        let script = Script::new([Err(EPERM)]);
        script.with(|state| state.datagrams = true);
        let sender = script.sender(Config::default());
        script.with(|state| (state.unreadable, state.unfinished) = (unreadable, unfinished));
        let Err(SendError::Dropped { buf, .. }) = sender.try_send(filled(&pool)) else {
            panic!("it was dropped");
        };
        sender.try_send(buf).unwrap();
        let zero_copy = sender.stats().zero_copy_bytes > 0;
        assert_eq!(zero_copy, unreadable == 0, "after an error everything goes by copy");
        script.with(|state| (state.unreadable, state.unfinished) = (0, 0));
        sender.step().unwrap();
        assert_eq!(pool.stats().free(), usize::from(!zero_copy), "no note has come for it");
    }
}

/// Counts how often it is woken, and how many slots were free when it last was.
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
fn whoever_is_told_of_a_release_finds_the_slot_free() {
    let pool = pool();
    let script = Script::default();
    let sender = script.sender(Config::default());
    let ticket = sender.try_send(filled(&pool)).unwrap();
    let told = Told::new(&pool);
    let waker = Waker::from(Arc::clone(&told));
    assert!(sender.poll_fate(&mut Context::from_waker(&waker), ticket).is_pending());
    script.note(0, 0);
    sender.step().unwrap();
    assert_eq!(told.woken(), (1, 1));
}

#[test]
fn poison_wakes_nobody_who_awaits_a_send_with_a_rest_before_that_is_out() {
    let pool = pool();
    let script = Script::new([Ok(1000), Err(EAGAIN), Err(EAGAIN), Err(EAGAIN), Err(EAGAIN)]);
    let sender = script.sender(Config::default());
    let ticket = sender.try_send(filled(&pool)).unwrap();
    script.note(7, 7);
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
fn a_tiny_limit_does_not_make_the_reaper_spin() {
    let script = Script::default();
    let max_hold = Some(Duration::from_nanos(3));
    let sender = script.sender(Config { max_hold, ..Config::default() });
    sender.try_send(filled(&pool())).unwrap();
    let next = sender.attend();
    assert!(next.is_some_and(|next| next >= Duration::from_millis(1)), "{next:?}");
}

#[test]
fn a_blocking_send_that_cannot_wait_for_room_cuts_its_rest_short() {
    promptly(|| {
        let pool = pool();
        let script = Script::new([Ok(1000), Err(EAGAIN), Err(EAGAIN)]);
        let sender = script.sender(Config::default());
        script.with(|state| state.unreadable = 1);
        let Err(SendError::Truncated { ticket, error }) = sender.send(filled(&pool)) else {
            panic!("the error queue cannot be read");
        };
        assert_eq!(sender.connection_error(), Some(error), "as the error says");
        script.note(0, 0);
        sender.step().unwrap();
        let fate = sender.fate(ticket);
        assert!(matches!(fate, Some(Fate::Truncated { accepted: 1000, .. })), "{fate:?}");
    });
}
