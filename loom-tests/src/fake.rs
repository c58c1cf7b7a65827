//! A kernel small enough for a model: calls are taken, read at a delivery, and notified.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pinbuf::{
    __internals::{
        Batch, Config, Core, Edges, Interest, IoVec, Kernel, MemlockBudget, News, NotificationId,
        Ready, Reclaim, Record, SendFlags, Token, Transport,
    },
    PinnedBuf, Pool, Ticket,
};

use crate::{AtomicU32, Condvar, Mutex, thread};

/// `EAGAIN` of Linux.
pub const EAGAIN: i32 = 11;
/// `ECONNRESET` of Linux.
pub const ECONNRESET: i32 = 104;
/// `ENOBUFS` of Linux.
pub const ENOBUFS: i32 = 105;

/// The answer to a call.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// Takes this many bytes, and reads them at [`FakeKernel::deliver`].
    Take(usize),
    /// Takes this many bytes, reads them at once, and posts the notification before the call
    /// returns.
    TakeAndNotify(usize),
    /// Fails with an error number.
    Fail(i32),
    /// Fails like a datagram dropped below the socket: the id is used, and its notification posted.
    FailAndNotify(i32),
}

/// Bytes taken by the kernel and not released.
#[derive(Debug)]
struct Taken {
    id: u32,
    memory: IoVec,
    /// The first byte at the time of the call.
    first: u8,
}

impl Taken {
    /// Reads the memory as a retransmit does.
    fn read(&self) {
        assert_eq!(first_byte(&self.memory), self.first, "id {} was reused early", self.id);
    }
}

/// The first byte of a range in a pool that keeps its memory mapped.
fn first_byte(memory: &IoVec) -> u8 {
    // SAFETY: `start` points to `len > 0` bytes of a pool that the model keeps alive. loom runs a
    // single thread at a time, so there is no concurrent write.
    unsafe { memory.start().read() }
}

#[derive(Default)]
struct State {
    transport: Option<Transport>,
    next_id: u32,
    answers: VecDeque<Answer>,
    taken: VecDeque<Taken>,
    notifications: VecDeque<Record>,
    /// All bytes taken, by calls.
    accepted: usize,
    /// The bytes taken at the shutdown of the stream.
    shut_down: Option<usize>,
    aborted: bool,
    /// Refuse calls without a prepared answer until there is room.
    full: bool,
    /// Room was made.
    has_room_again: bool,
    /// Keep taken bytes at an abort: their packets wait in a queue below.
    queued_below: bool,
    reaper: Option<Held>,
    /// Threads that sleep until a change.
    waiting: Vec<Arc<dyn Edges>>,
    /// A loop of the program watches the socket, and has news to take.
    has_loop: bool,
    news: bool,
    /// The connection is over, and so the news tells of a hangup.
    hung_up: bool,
}

/// The reaper's relation to the sender.
enum Held {
    Watched(Weak<dyn Reclaim>),
    Adopted(Arc<dyn Reclaim>),
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when the reaper has work, or will never have work again.
    changed: Condvar,
    /// Taken ids with unread notifications, and unread notifications. As in the kernel, both are
    /// read without a lock. The sender has to order a thread that sees a call after the call.
    held: AtomicU32,
    unread: AtomicU32,
    /// Seconds since the model began. Not a loom atomic: threads do not synchronise at the clock.
    seconds: AtomicU64,
}

/// The fake socket; clones are the same socket. Calls without a prepared answer are taken whole.
#[derive(Clone, Default)]
pub struct FakeKernel(Arc<Shared>);

impl std::fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeKernel")
    }
}

impl FakeKernel {
    /// Creates a socket with these answers.
    pub fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let kernel = Self::default();
        kernel.with(|state| state.answers = answers.into_iter().collect());
        kernel
    }

    /// The same socket, for datagrams.
    pub fn datagrams(self) -> Self {
        self.with(|state| state.transport = Some(Transport::Datagram));
        self
    }

    /// The same socket, full after its answers.
    pub fn full(self) -> Self {
        self.with(|state| state.full = true);
        self
    }

    /// The same socket with a queue below for its packets, out of an abort's reach.
    pub fn queued_below(self) -> Self {
        self.with(|state| state.queued_below = true);
        self
    }

    /// The same socket, watched by a loop of the program.
    pub fn looped(self) -> Self {
        self.with(|state| state.has_loop = true);
        self
    }

    /// Ends the connection, which no call tells.
    pub fn hang_up(&self) {
        self.with(|state| (state.hung_up, state.news) = (true, true));
    }

    /// A sender over this socket.
    pub fn sender(&self) -> Arc<Core<Self>> {
        self.sender_with(Config::default(), MemlockBudget::new(None))
    }

    /// A sender over this socket, and the pool with its only slot in flight.
    pub fn with_one_in_flight(&self) -> (Pool, Arc<Core<Self>>, Ticket) {
        let (pool, sender) = (page_pool(1), self.sender());
        let ticket = sender.try_send(filled(&pool, 1)).unwrap();
        (pool, sender, ticket)
    }

    /// A sender over this socket with a limit of one call in flight.
    pub fn sender_of_one(&self) -> Arc<Core<Self>> {
        let config = Config { max_in_flight_sends: 1, ..Config::default() };
        self.sender_with(config, MemlockBudget::new(None))
    }

    /// A sender over this socket, with its share of a budget.
    pub fn sender_within(&self, budget: &Arc<MemlockBudget>) -> Arc<Core<Self>> {
        self.sender_with(Config::default(), Arc::clone(budget))
    }

    fn sender_with(
        &self,
        config: Config,
        budget: impl Into<Arc<MemlockBudget>>,
    ) -> Arc<Core<Self>> {
        let config = Config { threshold_bytes: 1, ..config };
        Core::new(self.clone(), config, None, budget.into(), 1 << 20, NotificationId(0))
    }

    /// Changes the socket; every change counts as an event.
    fn with<R>(&self, body: impl FnOnce(&mut State) -> R) -> R {
        let result = body(&mut self.0.state.lock().unwrap());
        self.0.changed.notify_all();
        result
    }

    /// Reads the oldest unreleased call, then posts its notification. Returns `false` if there is
    /// none.
    pub fn deliver(&self) -> bool {
        self.deliver_ids(VecDeque::pop_front)
    }

    /// Delivers on a new thread, then runs `then` there.
    pub fn delivering(&self, then: impl FnOnce(&Self) + Send + 'static) -> thread::JoinHandle<()> {
        let kernel = self.clone();
        thread::spawn(move || {
            assert!(kernel.deliver());
            then(&kernel);
        })
    }

    /// As [`deliver`](Self::deliver), the youngest call first.
    pub fn deliver_youngest(&self) -> bool {
        self.deliver_ids(VecDeque::pop_back)
    }

    fn deliver_ids(&self, next: impl FnOnce(&mut VecDeque<Taken>) -> Option<Taken>) -> bool {
        let waiting = self.with(|state| {
            let taken = next(&mut state.taken)?;
            taken.read();
            self.post(state, taken.id, false);
            state.news = true;
            Some(state.waiting.clone())
        });
        waiting.inspect(|waiting| waiting.iter().for_each(wake)).is_some()
    }

    fn post(&self, state: &mut State, id: u32, copied: bool) {
        state.notifications.push_back(Record::Released { lo: id, hi: id, copied });
        // Release: partner of the Acquire in `take_notifications`.
        self.0.unread.fetch_add(1, Ordering::Release);
    }

    fn take_notifications(&self) -> VecDeque<Record> {
        // Acquire: partner of the Release in `post`.
        if self.0.unread.load(Ordering::Acquire) == 0 {
            return VecDeque::new();
        }
        self.with(|state| {
            let notifications = std::mem::take(&mut state.notifications);
            // Relaxed, both: under the lock.
            self.0.unread.fetch_sub(notifications.len() as u32, Ordering::Relaxed);
            self.0.held.fetch_sub(notifications.len() as u32, Ordering::Relaxed);
            notifications
        })
    }

    /// Makes room, so that the socket takes bytes again.
    pub fn make_room(&self) {
        let waiting = self.with(|state| {
            state.full = false;
            state.has_room_again = true;
            state.waiting.clone()
        });
        waiting.iter().for_each(wake);
    }

    /// Reads the notifications, like another user of the socket.
    pub fn steal_notifications(&self) {
        self.take_notifications();
    }

    /// Passes a second; the clock never advances by itself.
    pub fn pass_second(&self) {
        self.0.seconds.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns `true` if all taken bytes are released.
    pub fn is_idle(&self) -> bool {
        self.with(|state| state.taken.is_empty())
    }

    /// Drives the reaper's sender, like its thread. Returns `false` if there is none.
    pub fn attend(&self) -> bool {
        let sender = self.with(|state| state.held());
        sender.inspect(|sender| _ = sender.attend()).is_some()
    }

    /// Acts as the reaper's thread: drives the sender at notifications, until all bytes are
    /// released and all notifications read.
    pub fn reap(&self) {
        let mut state = self.0.state.lock().unwrap();
        while !(state.taken.is_empty() && state.notifications.is_empty()) {
            match state.held().filter(|_| !state.notifications.is_empty()) {
                None => state = self.0.changed.wait(state).unwrap(),
                Some(sender) => {
                    drop(state);
                    sender.attend();
                    state = self.0.state.lock().unwrap();
                }
            }
        }
    }

    /// Acts as the loop of a program: drives the sender at news, until all bytes are released.
    pub fn run_loop(&self, sender: &Core<Self>) {
        let mut state = self.0.state.lock().unwrap();
        while state.news || !state.taken.is_empty() {
            if state.news {
                drop(state);
                sender.reap().unwrap();
                state = self.0.state.lock().unwrap();
            } else {
                state = self.0.changed.wait(state).unwrap();
            }
        }
    }

    /// Returns `true` if the reaper has a sender without an owner.
    pub fn has_orphan(&self) -> bool {
        self.with(|state| matches!(state.reaper, Some(Held::Adopted(_))))
    }

    /// Returns `true` if the reaper has no sender.
    pub fn is_unwatched(&self) -> bool {
        self.with(|state| state.reaper.is_none())
    }

    /// Returns `true` if calls have had all prepared answers.
    pub fn has_told(&self) -> bool {
        self.with(|state| state.answers.is_empty())
    }

    /// Bytes accepted so far.
    pub fn accepted(&self) -> usize {
        self.with(|state| state.accepted)
    }

    /// Bytes accepted before the end of the stream, after a shutdown.
    pub fn shut_down(&self) -> Option<usize> {
        self.with(|state| state.shut_down)
    }
}

impl State {
    fn held(&self) -> Option<Arc<dyn Reclaim>> {
        match self.reaper.as_ref()? {
            Held::Watched(sender) => sender.upgrade(),
            Held::Adopted(sender) => Some(Arc::clone(sender)),
        }
    }

    /// Like `epoll_ctl(2)`, refuses a socket that is already in the set.
    fn hold(&mut self, held: Held) -> Token {
        assert!(self.reaper.is_none(), "the reaper has the sender twice");
        self.reaper = Some(held);
        Token::default()
    }
}

impl Kernel for FakeKernel {
    fn transport(&self) -> Transport {
        self.with(|state| state.transport.unwrap_or(Transport::Stream))
    }

    fn send(&self, memory: &[IoVec], flags: SendFlags) -> io::Result<usize> {
        self.with(|state| {
            if state.aborted || state.shut_down.is_some() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let offered = memory.iter().map(IoVec::len).sum::<usize>();
            let otherwise = if state.full { Answer::Fail(EAGAIN) } else { Answer::Take(offered) };
            let answer = state.answers.pop_front().unwrap_or(otherwise);
            let (result, at_once) = match answer {
                Answer::Take(len) => (Ok(len.min(offered)), false),
                Answer::TakeAndNotify(len) => (Ok(len.min(offered)), true),
                Answer::Fail(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Answer::FailAndNotify(errno) => (Err(io::Error::from_raw_os_error(errno)), true),
            };
            state.accepted += result.as_ref().unwrap_or(&0);
            if flags.zerocopy {
                let id = state.next_id;
                state.next_id += 1;
                // Relaxed: the sender orders later readers after the call.
                self.0.held.fetch_add(1, Ordering::Relaxed);
                if at_once {
                    self.post(state, id, true);
                } else {
                    let first = first_byte(&memory[0]);
                    state.taken.push_back(Taken { id, memory: memory[0], first });
                }
            }
            result
        })
    }

    fn read_batch(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch> {
        let notifications = self.take_notifications();
        let messages = notifications.len();
        notifications.into_iter().for_each(on_record);
        Ok(Batch { messages, truncated: false, drained: true })
    }

    /// Looks for room. Models wait by edges.
    fn wait(&self, _: Interest, _: Option<Duration>) -> io::Result<Ready> {
        thread::yield_now();
        Ok(Ready { writable: self.with(|state| !state.full), error: true, hangup: false })
    }

    /// The present state is an event, except room that was always there: it would end the first wait of
    /// every model.
    fn edges(&self) -> io::Result<Option<Arc<dyn Edges>>> {
        let edges = edges();
        let is_ready = self.with(|state| {
            state.waiting.extend(edges.clone());
            state.has_room_again || !state.notifications.is_empty()
        });
        edges.iter().filter(|_| is_ready).for_each(wake);
        Ok(edges)
    }

    fn optmem(&self) -> io::Result<u32> {
        // Relaxed: as in `send`.
        Ok(832 * self.0.held.load(Ordering::Relaxed))
    }

    fn unacked(&self) -> io::Result<usize> {
        self.with(|state| Ok(state.taken.len()))
    }

    fn is_over(&self) -> io::Result<bool> {
        self.with(|state| Ok(state.aborted || state.hung_up))
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.with(|state| state.shut_down = Some(state.accepted));
        Ok(())
    }

    fn abort(&self) -> io::Result<()> {
        let queued_below = self.with(|state| {
            state.aborted = true;
            state.queued_below
        });
        while !queued_below && self.deliver() {}
        Ok(())
    }

    fn reset_on_close(&self) -> io::Result<()> {
        Ok(())
    }

    fn linger_off(&self) -> io::Result<()> {
        Ok(())
    }

    fn now(&self) -> Instant {
        let seconds = self.0.seconds.load(Ordering::Relaxed);
        *EPOCH.get_or_init(Instant::now) + Duration::from_secs(seconds)
    }

    fn watch(&self, sender: Weak<dyn Reclaim>) -> Option<Token> {
        self.with(|state| Some(state.hold(Held::Watched(sender))))
    }

    fn adopt(&self, sender: Arc<dyn Reclaim>) -> (Token, bool) {
        self.with(|state| (state.hold(Held::Adopted(sender)), true))
    }

    fn unwatch(&self, _: Token) {
        let held = self.with(|state| state.reaper.take());
        drop(held.expect("the reaper has the sender"));
    }

    fn has_loop(&self) -> bool {
        self.with(|state| state.has_loop)
    }

    fn take_news(&self) -> io::Result<News> {
        self.with(|state| {
            let error = std::mem::take(&mut state.news);
            Ok(News { error, hangup: error && state.hung_up, ..News::default() })
        })
    }
}

#[cfg(loom)]
fn edges() -> Option<Arc<dyn Edges>> {
    /// A thread that sleeps until a change.
    struct Waiting(loom::sync::Notify);

    impl Edges for Waiting {
        /// Without a limit: no model relies on a timeout.
        fn wait(&self, _: Option<Duration>) -> io::Result<Ready> {
            self.0.wait();
            Ok(Ready { error: true, ..Ready::default() })
        }

        fn wake(&self) -> io::Result<()> {
            self.0.notify();
            Ok(())
        }
    }

    Some(Arc::new(Waiting(loom::sync::Notify::new())))
}

/// Threads look repeatedly.
#[cfg(not(loom))]
fn edges() -> Option<Arc<dyn Edges>> {
    None
}

fn wake(thread: &Arc<dyn Edges>) {
    thread.wake().unwrap();
}

static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();

/// Bytes of a slot of [`page_pool`].
pub const PAGE: usize = 4096;

/// A pool of `count` slots, each large enough for a zero-copy send.
pub fn page_pool(count: usize) -> Pool {
    Pool::builder()
        .class(PAGE, count)
        .backing(pinbuf::pool::Backing::Require(pinbuf::pool::Pages::Base))
        .build()
        .unwrap()
}

/// A slot of a page pool, filled with `value`.
pub fn filled(pool: &Pool, value: u8) -> PinnedBuf {
    let mut buf = pool.try_alloc(PAGE).unwrap();
    buf.resize(PAGE, value);
    buf
}

/// Fills all free slots with a value that no model sends.
pub fn overwrite(pool: &Pool) {
    let free: Vec<_> = std::iter::from_fn(|| pool.try_alloc(PAGE).ok()).collect();
    free.into_iter().for_each(|mut buf| buf.resize(PAGE, 0xee));
}

/// Asserts that every slot is free, once.
pub fn assert_home(pool: &Pool) {
    let audit = pool.audit();
    let stats = &audit.stats;
    let out = stats.owned() + stats.in_flight() + stats.quarantined();
    assert!(audit.is_clean() && out == 0, "{audit}");
}
