//! A kernel small enough for a model: it takes what it is given, reads it when it is told to, and
//! posts notes.

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
        Batch, Config, Core, Edges, Interest, IoVec, Kernel, MemlockBudget, NotificationId, Ready,
        Reclaim, Record, SendFlags, Token, Transport,
    },
    PinnedBuf, Pool, Ticket,
};

use crate::{AtomicU32, Condvar, Mutex, thread};

/// `EAGAIN` of Linux.
pub const EAGAIN: i32 = 11;
/// `ENOBUFS` of Linux.
pub const ENOBUFS: i32 = 105;

/// What a call is answered.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// Takes so many bytes, and reads them when [`FakeKernel::deliver`] says so.
    Take(usize),
    /// Takes so many bytes, reads them at once, and posts the note before the call returns.
    TakeAndNote(usize),
    /// Fails with an error number.
    Fail(i32),
    /// As a datagram fails that is dropped below the socket: the id is used, and its note there.
    FailAndNote(i32),
}

/// Bytes that the kernel has taken and not released.
#[derive(Debug)]
struct Taken {
    id: u32,
    memory: IoVec,
    /// What stood there when it was taken.
    first: u8,
}

impl Taken {
    /// Reads the memory as a retransmit does.
    fn read(&self) {
        assert_eq!(first_byte(&self.memory), self.first, "id {} was reused early", self.id);
    }
}

/// The first byte of a range that its pool keeps mapped.
fn first_byte(memory: &IoVec) -> u8 {
    // SAFETY: `start` points to `len > 0` bytes of a pool that the model keeps alive; loom runs one
    // thread at a time, so nobody writes meanwhile.
    unsafe { memory.start().read() }
}

#[derive(Default)]
struct State {
    transport: Option<Transport>,
    next_id: u32,
    answers: VecDeque<Answer>,
    taken: VecDeque<Taken>,
    notes: VecDeque<Record>,
    /// Every byte taken, by call.
    accepted: usize,
    /// How many were when the stream was shut down.
    shut_down: Option<usize>,
    aborted: bool,
    /// Whether calls without an answer of their own are refused until there is room.
    full: bool,
    /// Whether an abort leaves what is taken where it is: packets in a queue below.
    queued_below: bool,
    care: Option<Care>,
    /// Those who sleep until there is news.
    sleepers: Vec<Arc<dyn Edges>>,
}

/// In what way the reaper has the sender in its care.
enum Care {
    Watched(Weak<dyn Reclaim>),
    Adopted(Arc<dyn Reclaim>),
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something for the reaper to do, or nothing ever again.
    news: Condvar,
    /// Ids that are taken and whose notes are unread, and notes that are unread. As in the kernel,
    /// both are looked at without a lock: who sees a call has to be ordered after it by the sender.
    held: AtomicU32,
    unread: AtomicU32,
    /// Seconds since the model began. Not loom's: threads do not meet at the clock.
    seconds: AtomicU64,
}

/// The fake socket; clones are the same one. Calls for which no answer is left are taken whole.
#[derive(Clone, Default)]
pub struct FakeKernel(Arc<Shared>);

impl std::fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeKernel")
    }
}

impl FakeKernel {
    /// A socket that answers so.
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

    /// The same socket, full once it has given its answers.
    pub fn full(self) -> Self {
        self.with(|state| state.full = true);
        self
    }

    /// The same socket, whose packets wait in a queue below that an abort does not reach.
    pub fn queued_below(self) -> Self {
        self.with(|state| state.queued_below = true);
        self
    }

    /// A sender over this socket.
    pub fn sender(&self) -> Arc<Core<Self>> {
        self.sender_with(Config::default(), MemlockBudget::new(None))
    }

    /// A sender over this socket, and the pool whose only slot it has been given.
    pub fn with_one_in_flight(&self) -> (Pool, Arc<Core<Self>>, Ticket) {
        let (pool, sender) = (page_pool(1), self.sender());
        let ticket = sender.try_send(filled(&pool, 1)).unwrap();
        (pool, sender, ticket)
    }

    /// A sender over this socket that may have one call in flight.
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

    /// Changes the socket; all that happens to it is news.
    fn with<R>(&self, body: impl FnOnce(&mut State) -> R) -> R {
        let result = body(&mut self.0.state.lock().unwrap());
        self.0.news.notify_all();
        result
    }

    /// Reads the oldest call not released, then posts its note. `false`: there is none.
    pub fn deliver(&self) -> bool {
        self.deliver_ids(VecDeque::pop_front)
    }

    /// Delivers on a thread of its own, which then does that.
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
        let sleepers = self.with(|state| {
            let taken = next(&mut state.taken)?;
            taken.read();
            self.post(state, taken.id, false);
            Some(state.sleepers.clone())
        });
        sleepers.inspect(|sleepers| sleepers.iter().for_each(wake)).is_some()
    }

    fn post(&self, state: &mut State, id: u32, copied: bool) {
        state.notes.push_back(Record::Released { lo: id, hi: id, copied });
        // Release: partner of the Acquire in `take_notes`.
        self.0.unread.fetch_add(1, Ordering::Release);
    }

    fn take_notes(&self) -> VecDeque<Record> {
        // Acquire: partner of the Release in `post`.
        if self.0.unread.load(Ordering::Acquire) == 0 {
            return VecDeque::new();
        }
        self.with(|state| {
            let notes = std::mem::take(&mut state.notes);
            // Relaxed, both: under the lock.
            self.0.unread.fetch_sub(notes.len() as u32, Ordering::Relaxed);
            self.0.held.fetch_sub(notes.len() as u32, Ordering::Relaxed);
            notes
        })
    }

    /// The socket takes bytes again.
    pub fn make_room(&self) {
        let sleepers = self.with(|state| {
            state.full = false;
            state.sleepers.clone()
        });
        sleepers.iter().for_each(wake);
    }

    /// Reads the notes, as somebody else may who shares the socket.
    pub fn steal_notes(&self) {
        self.take_notes();
    }

    /// A second passes; none does by itself.
    pub fn pass_second(&self) {
        self.0.seconds.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether everything taken is released.
    pub fn is_idle(&self) -> bool {
        self.with(|state| state.taken.is_empty())
    }

    /// Drives the sender in the reaper's care, as its thread does. `false`: there is none.
    pub fn attend(&self) -> bool {
        let sender = self.with(|state| state.cared_for());
        sender.inspect(|sender| _ = sender.attend()).is_some()
    }

    /// What the reaper's thread does: drives the sender in its care when there are notes, until all
    /// is released and every note read.
    pub fn reap(&self) {
        let mut state = self.0.state.lock().unwrap();
        while !(state.taken.is_empty() && state.notes.is_empty()) {
            match state.cared_for().filter(|_| !state.notes.is_empty()) {
                None => state = self.0.news.wait(state).unwrap(),
                Some(sender) => {
                    drop(state);
                    sender.attend();
                    state = self.0.state.lock().unwrap();
                }
            }
        }
    }

    /// Whether a sender is in the reaper's care that nobody owns.
    pub fn has_orphan(&self) -> bool {
        self.with(|state| matches!(state.care, Some(Care::Adopted(_))))
    }

    /// Whether the reaper has nothing in its care.
    pub fn is_unwatched(&self) -> bool {
        self.with(|state| state.care.is_none())
    }

    /// Bytes accepted so far.
    pub fn accepted(&self) -> usize {
        self.with(|state| state.accepted)
    }

    /// Bytes accepted before the end of the stream, if that has come.
    pub fn shut_down(&self) -> Option<usize> {
        self.with(|state| state.shut_down)
    }
}

impl State {
    fn cared_for(&self) -> Option<Arc<dyn Reclaim>> {
        match self.care.as_ref()? {
            Care::Watched(sender) => sender.upgrade(),
            Care::Adopted(sender) => Some(Arc::clone(sender)),
        }
    }

    /// As `epoll_ctl(2)`, which refuses a socket that it has.
    fn take_care(&mut self, care: Care) -> Token {
        assert!(self.care.is_none(), "in the reaper's care twice");
        self.care = Some(care);
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
                Answer::TakeAndNote(len) => (Ok(len.min(offered)), true),
                Answer::Fail(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Answer::FailAndNote(errno) => (Err(io::Error::from_raw_os_error(errno)), true),
            };
            state.accepted += result.as_ref().unwrap_or(&0);
            if flags.zerocopy {
                let id = state.next_id;
                state.next_id += 1;
                // Relaxed: the sender orders those who ask after the call.
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

    fn read_notes(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch> {
        let notes = self.take_notes();
        let messages = notes.len();
        notes.into_iter().for_each(on_record);
        Ok(Batch { messages, truncated: false, drained: true })
    }

    /// Of no model, which waits by edges.
    fn wait(&self, _: Interest, _: Option<Duration>) -> io::Result<Ready> {
        thread::yield_now();
        Ok(Ready { error: true, ..Ready::default() })
    }

    /// The present state is news to a real one; here it has to be looked at without.
    fn edges(&self) -> io::Result<Option<Arc<dyn Edges>>> {
        let edges = edges();
        self.with(|state| state.sleepers.extend(edges.clone()));
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
        self.with(|state| Ok(state.aborted))
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
        self.with(|state| Some(state.take_care(Care::Watched(sender))))
    }

    fn adopt(&self, sender: Arc<dyn Reclaim>) -> (Token, bool) {
        self.with(|state| (state.take_care(Care::Adopted(sender)), true))
    }

    fn unwatch(&self, _: Token) {
        let care = self.with(|state| state.care.take());
        drop(care.expect("is in the reaper's care"));
    }
}

#[cfg(loom)]
fn edges() -> Option<Arc<dyn Edges>> {
    /// A thread that sleeps until there is news.
    struct Sleeper(loom::sync::Notify);

    impl Edges for Sleeper {
        /// However long: nobody is to be saved by a time that is up.
        fn wait(&self, _: Option<Duration>) -> io::Result<Ready> {
            self.0.wait();
            Ok(Ready { error: true, ..Ready::default() })
        }

        fn wake(&self) -> io::Result<()> {
            self.0.notify();
            Ok(())
        }
    }

    Some(Arc::new(Sleeper(loom::sync::Notify::new())))
}

/// Threads look again and again.
#[cfg(not(loom))]
fn edges() -> Option<Arc<dyn Edges>> {
    None
}

fn wake(sleeper: &Arc<dyn Edges>) {
    sleeper.wake().unwrap();
}

static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();

/// Bytes of a slot of [`page_pool`].
pub const PAGE: usize = 4096;

/// A pool of `count` slots that are large enough to be sent without copy.
pub fn page_pool(count: usize) -> Pool {
    Pool::builder()
        .class(PAGE, count)
        .backing(pinbuf::pool::Backing::Require(pinbuf::pool::Pages::Base))
        .build()
        .unwrap()
}

/// A slot of such a pool, full of `value`.
pub fn filled(pool: &Pool, value: u8) -> PinnedBuf {
    let mut buf = pool.try_alloc(PAGE).unwrap();
    buf.resize(PAGE, value);
    buf
}

/// Fills whatever is free with what nobody sends.
pub fn overwrite(pool: &Pool) {
    let free: Vec<_> = std::iter::from_fn(|| pool.try_alloc(PAGE).ok()).collect();
    free.into_iter().for_each(|mut buf| buf.resize(PAGE, 0xee));
}

/// Every slot is at home, once.
pub fn assert_home(pool: &Pool) {
    let audit = pool.audit();
    let stats = &audit.stats;
    let out = stats.owned() + stats.in_flight() + stats.quarantined();
    assert!(audit.is_clean() && out == 0, "{audit}");
}
