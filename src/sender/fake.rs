//! A kernel with scripted answers, for tests of the sender's reactions.

use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use super::{
    budget::MemlockBudget,
    config::Config,
    driver::Core,
    kernel::{Edges, Interest, Kernel},
    transport::Transport,
};
use crate::{
    error::OsError,
    id::NotificationId,
    lock::{Mutex, lock},
    raw::Reclaim,
    reaper,
    sync::{Arc, Weak, yield_now},
    sys::{
        Batch, ErrorQueueEvent, Record,
        message::Header,
        socket::{IoVec, News, Ready, SendFlags},
    },
};

/// Of Linux.
const ENOMEM: i32 = 12;

/// The answer to a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// Takes all bytes.
    Take,
    /// Takes so many bytes.
    Part(usize),
    /// Takes all bytes and releases at once; the notification says whether the kernel copied.
    Note(bool),
    /// Takes all bytes by copy, despite the flag.
    Ignore,
    /// Fails with an error number.
    Fail(i32),
    /// Fails with an error number after having used the id; the notification is on the queue.
    FailWithNote(i32),
}

/// One call as the kernel saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    pub(super) elements: usize,
    pub(super) bytes: usize,
    pub(super) zero_copy: bool,
    /// More is to come at once.
    pub(super) more: bool,
}

/// One wait of a thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waited {
    /// For room; `None` if the wait is for edges.
    pub(super) writable: Option<bool>,
    pub(super) timeout: Option<Duration>,
}

pub(super) type OnWait = Arc<dyn Fn(&FakeKernel, Waited) -> Ready + Send + Sync>;

/// The fake socket; clones share their state.
#[derive(Clone)]
pub(super) struct FakeKernel {
    transport: Transport,
    state: Arc<Mutex<State>>,
}

pub(super) struct State {
    /// Answers to come, and the answer to every later call.
    answers: VecDeque<Answer>,
    otherwise: Answer,
    next_id: u32,
    /// Calls in flight, with their bytes.
    taken: VecDeque<(u32, usize)>,
    notes: VecDeque<Record>,
    seen: Vec<Seen>,
    now: Instant,
    /// Calls with a header.
    pub(super) headers: usize,
    pub(super) shut_down: bool,
    /// So many reads of the error queue fail with the error number, or tell of more.
    pub(super) unreadable: usize,
    pub(super) read_errno: i32,
    pub(super) unfinished: usize,
    /// Unacknowledged bytes that no call in flight has.
    pub(super) unacked: usize,
    /// The connection is over.
    pub(super) is_over: bool,
    /// The news to be taken by a loop of the program, if there is a loop.
    pub(super) news: Option<News>,
    /// The present state was told to the loop so often.
    pub(super) renewals: usize,
    /// So many aborts are refused.
    pub(super) refused_aborts: usize,
    pub(super) aborts: usize,
    /// Zero-copy calls taken before the sender was watched, and how often it was.
    pub(super) watched_after: Option<u32>,
    pub(super) watches: usize,
    /// The reaper has no thread.
    pub(super) unserved: bool,
    /// Batches read from the error queue, and questions for the option memory.
    pub(super) reads: usize,
    pub(super) optmem_asked: usize,
    /// Questions for unacknowledged bytes, and for the time.
    pub(super) unacked_asked: usize,
    pub(super) clocks: usize,
    /// Waits for edges: the error number for want of descriptors, or `None` for waits by levels.
    pub(super) edges: Option<Result<(), i32>>,
    pub(super) edges_made: usize,
    /// Wake-ups of waits for edges.
    pub(super) wakes: usize,
    /// Happens during every wait, and is its result.
    pub(super) on_wait: Option<OnWait>,
    /// Happens during the next call.
    pub(super) meanwhile: Option<Box<dyn FnOnce() + Send>>,
    /// Happens at the end of the next reading of the error queue.
    pub(super) on_read: Option<Box<dyn FnOnce() + Send>>,
    /// Happens at a reading of the clock, after so many readings with this one.
    pub(super) at_clock: Option<(usize, Box<dyn FnOnce() + Send>)>,
}

impl State {
    /// Returns `true` if no call is in flight.
    pub(super) fn is_all_released(&self) -> bool {
        self.taken.is_empty()
    }
}

impl FakeKernel {
    pub(super) fn new(transport: Transport, otherwise: Answer) -> Self {
        let state = State {
            answers: VecDeque::new(),
            otherwise,
            next_id: 0,
            taken: VecDeque::new(),
            notes: VecDeque::new(),
            seen: Vec::new(),
            now: Instant::now(),
            headers: 0,
            shut_down: false,
            unreadable: 0,
            read_errno: ENOMEM,
            unfinished: 0,
            unacked: 0,
            is_over: false,
            news: None,
            renewals: 0,
            refused_aborts: 0,
            aborts: 0,
            watched_after: None,
            watches: 0,
            unserved: false,
            reads: 0,
            optmem_asked: 0,
            unacked_asked: 0,
            clocks: 0,
            edges: None,
            edges_made: 0,
            wakes: 0,
            on_wait: None,
            meanwhile: None,
            on_read: None,
            at_clock: None,
        };
        Self { transport, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn sender(&self, config: Config) -> Arc<Core<Self>> {
        self.sender_within(None, config)
    }

    /// A sender with a memlock budget of so many bytes.
    pub(super) fn sender_within(&self, bytes: Option<usize>, config: Config) -> Arc<Core<Self>> {
        self.sender_of(Arc::new(MemlockBudget::new(bytes)), 1 << 20, config)
    }

    /// A sender with this memlock budget, on a socket with so much option memory at most.
    pub(super) fn sender_of(
        &self,
        budget: Arc<MemlockBudget>,
        optmem_max: u32,
        config: Config,
    ) -> Arc<Core<Self>> {
        Core::new(self.clone(), config, None, budget, optmem_max, NotificationId(0))
    }

    /// The next calls are answered so.
    pub(super) fn will(&self, answers: impl IntoIterator<Item = Answer>) {
        lock(&self.state).answers.extend(answers);
    }

    /// The calls since this was last asked.
    pub(super) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut lock(&self.state).seen)
    }

    pub(super) fn with<R>(&self, body: impl FnOnce(&mut State) -> R) -> R {
        body(&mut lock(&self.state))
    }

    /// Lets go of the oldest call.
    pub(super) fn release(&self) {
        let id = self.steal();
        self.note(id, id);
    }

    /// Releases the oldest call; another user of the socket reads the notification.
    pub(super) fn steal(&self) -> u32 {
        self.with(|state| state.taken.pop_front().expect("something is taken").0)
    }

    /// Posts a notification for these ids.
    pub(super) fn note(&self, lo: u32, hi: u32) {
        self.note_of(lo, hi, false);
    }

    /// As [`note`](Self::note); `copied`: the kernel copied.
    pub(super) fn note_of(&self, lo: u32, hi: u32, copied: bool) {
        self.with(|state| {
            state.taken.retain(|(id, _)| !(lo..=hi).contains(id));
            state.notes.push_back(Record::Released { lo, hi, copied });
        });
    }

    /// Posts a foreign message with this number.
    pub(super) fn foreign(&self, data: u32) {
        let event = ErrorQueueEvent {
            origin: 1,
            error: OsError::from_raw(1),
            kind: 0,
            code: 0,
            info: 0,
            data,
            timestamps: None,
        };
        self.with(|state| state.notes.push_back(Record::Foreign(event)));
    }

    /// A thread waits.
    fn waited(&self, waited: Waited) -> Ready {
        match self.with(|state| state.on_wait.clone()) {
            Some(on_wait) => on_wait(self, waited),
            None => {
                yield_now();
                Ready::default()
            }
        }
    }

    pub(super) fn pass(&self, time: Duration) {
        lock(&self.state).now += time;
    }
}

impl Kernel for FakeKernel {
    fn transport(&self) -> Transport {
        self.transport
    }

    fn send(&self, memory: &[IoVec], flags: SendFlags) -> io::Result<usize> {
        if let Some(meanwhile) = self.with(|state| state.meanwhile.take()) {
            meanwhile();
        }
        let mut state = lock(&self.state);
        let bytes = memory.iter().map(IoVec::len).sum();
        let zero_copy = flags.zerocopy;
        state.seen.push(Seen { elements: memory.len(), bytes, zero_copy, more: flags.more });
        let answer = state.answers.pop_front().unwrap_or(state.otherwise);
        let id = state.next_id;
        if zero_copy && !matches!(answer, Answer::Fail(_) | Answer::Ignore | Answer::Part(0)) {
            state.next_id += 1;
            let copied = matches!(answer, Answer::Note(true));
            match answer {
                Answer::Take => state.taken.push_back((id, bytes)),
                Answer::Part(part) => state.taken.push_back((id, part.min(bytes))),
                _ => state.notes.push_back(Record::Released { lo: id, hi: id, copied }),
            }
        }
        match answer {
            Answer::Take | Answer::Note(_) | Answer::Ignore => Ok(bytes),
            Answer::Part(part) => Ok(part.min(bytes)),
            Answer::Fail(errno) | Answer::FailWithNote(errno) => {
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }

    fn send_with(&self, memory: &[IoVec], flags: SendFlags, _: &Header) -> io::Result<usize> {
        self.with(|state| state.headers += 1);
        self.send(memory, flags)
    }

    fn read_batch(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch> {
        let mut state = lock(&self.state);
        state.reads += 1;
        if let Some(left) = state.unreadable.checked_sub(1) {
            state.unreadable = left;
            return Err(io::Error::from_raw_os_error(state.read_errno));
        }
        if let Some(left) = state.unfinished.checked_sub(1) {
            state.unfinished = left;
            return Ok(Batch { messages: 32, truncated: false, drained: false });
        }
        let notes = std::mem::take(&mut state.notes);
        drop(state);
        let messages = notes.len();
        notes.into_iter().for_each(on_record);
        if let Some(on_read) = self.with(|state| state.on_read.take()) {
            on_read();
        }
        Ok(Batch { messages, truncated: false, drained: true })
    }

    fn wait(&self, interest: Interest, timeout: Option<Duration>) -> io::Result<Ready> {
        Ok(self.waited(Waited { writable: Some(interest.writable), timeout }))
    }

    fn edges(&self) -> io::Result<Option<Arc<dyn Edges>>> {
        match self.with(|state| state.edges) {
            None => Ok(None),
            Some(Err(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Ok(())) => {
                self.with(|state| state.edges_made += 1);
                Ok(Some(Arc::new(self.clone())))
            }
        }
    }

    fn optmem(&self) -> io::Result<u32> {
        let mut state = lock(&self.state);
        state.optmem_asked += 1;
        Ok(832 * (state.taken.len() + state.notes.len()) as u32)
    }

    fn unacked(&self) -> io::Result<usize> {
        let mut state = lock(&self.state);
        state.unacked_asked += 1;
        Ok(state.unacked + state.taken.iter().map(|(_, bytes)| bytes).sum::<usize>())
    }

    fn is_over(&self) -> io::Result<bool> {
        Ok(lock(&self.state).is_over)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.with(|state| state.shut_down = true);
        Ok(())
    }

    fn abort(&self) -> io::Result<()> {
        self.with(|state| match state.refused_aborts.checked_sub(1) {
            Some(left) => {
                state.refused_aborts = left;
                Err(io::Error::from_raw_os_error(ENOMEM))
            }
            None => {
                state.aborts += 1;
                Ok(())
            }
        })?;
        while !lock(&self.state).taken.is_empty() {
            self.release();
        }
        Ok(())
    }

    fn reset_on_close(&self) -> io::Result<()> {
        Ok(())
    }

    fn linger_off(&self) -> io::Result<()> {
        Ok(())
    }

    fn now(&self) -> Instant {
        let due = self.with(|state| {
            state.clocks += 1;
            let (left, _) = state.at_clock.as_mut()?;
            *left -= 1;
            state.at_clock.take_if(|(left, _)| *left == 0)
        });
        if let Some((_, action)) = due {
            action();
        }
        lock(&self.state).now
    }

    fn watch(&self, _: Weak<dyn Reclaim>) -> Option<reaper::Token> {
        self.with(|state| {
            state.watched_after = Some(state.next_id);
            state.watches += 1;
            (!state.unserved).then(reaper::Token::default)
        })
    }

    fn adopt(&self, _: Arc<dyn Reclaim>) -> (reaper::Token, bool) {
        (reaper::Token::default(), true)
    }

    fn unwatch(&self, _: reaper::Token) {}

    fn has_loop(&self) -> bool {
        self.with(|state| state.news.is_some())
    }

    fn take_news(&self) -> io::Result<News> {
        Ok(self.with(|state| state.news.as_mut().map(std::mem::take)).unwrap_or_default())
    }

    fn renew_news(&self, _: bool) -> io::Result<()> {
        self.with(|state| state.renewals += 1);
        Ok(())
    }
}

impl Edges for FakeKernel {
    fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        Ok(self.waited(Waited { writable: None, timeout }))
    }

    fn wake(&self) -> io::Result<()> {
        self.with(|state| state.wakes += 1);
        Ok(())
    }
}
