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
        socket::{IoVec, Ready, SendFlags},
    },
};

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
}

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
    taken: VecDeque<u32>,
    notes: VecDeque<Record>,
    seen: Vec<Seen>,
    now: Instant,
    pub(super) shut_down: bool,
    /// So many reads of the error queue fail, or tell of more.
    pub(super) unreadable: usize,
    pub(super) unfinished: usize,
    /// Zero-copy calls taken before the sender was watched.
    pub(super) watched_after: Option<u32>,
    /// Happens during the next call.
    pub(super) meanwhile: Option<Box<dyn FnOnce() + Send>>,
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
            shut_down: false,
            unreadable: 0,
            unfinished: 0,
            watched_after: None,
            meanwhile: None,
        };
        Self { transport, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn sender(&self, config: Config) -> Arc<Core<Self>> {
        self.sender_within(None, config)
    }

    /// A sender with a memlock budget of so many bytes.
    pub(super) fn sender_within(&self, bytes: Option<usize>, config: Config) -> Arc<Core<Self>> {
        let budget = Arc::new(MemlockBudget::new(bytes));
        Core::new(self.clone(), config, None, budget, 1 << 20, NotificationId(0))
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
        self.with(|state| state.taken.pop_front().expect("something is taken"))
    }

    /// Posts a notification for these ids.
    pub(super) fn note(&self, lo: u32, hi: u32) {
        self.with(|state| {
            state.taken.retain(|id| !(lo..=hi).contains(id));
            state.notes.push_back(Record::Released { lo, hi, copied: false });
        });
    }

    /// Posts a foreign message.
    pub(super) fn foreign(&self) {
        let event = ErrorQueueEvent {
            origin: 1,
            error: OsError::from_raw(1),
            kind: 0,
            code: 0,
            info: 0,
            data: 0,
            timestamps: None,
        };
        self.with(|state| state.notes.push_back(Record::Foreign(event)));
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
        state.seen.push(Seen { elements: memory.len(), bytes, zero_copy });
        let answer = state.answers.pop_front().unwrap_or(state.otherwise);
        let id = state.next_id;
        if zero_copy && !matches!(answer, Answer::Fail(_) | Answer::Ignore) {
            state.next_id += 1;
            let copied = matches!(answer, Answer::Note(true));
            match answer {
                Answer::Take | Answer::Part(_) => state.taken.push_back(id),
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

    fn read_batch(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch> {
        let mut state = lock(&self.state);
        if let Some(left) = state.unreadable.checked_sub(1) {
            state.unreadable = left;
            const ENOMEM: i32 = 12;
            return Err(io::Error::from_raw_os_error(ENOMEM));
        }
        if let Some(left) = state.unfinished.checked_sub(1) {
            state.unfinished = left;
            return Ok(Batch { messages: 32, truncated: false, drained: false });
        }
        let notes = std::mem::take(&mut state.notes);
        drop(state);
        let messages = notes.len();
        notes.into_iter().for_each(on_record);
        Ok(Batch { messages, truncated: false, drained: true })
    }

    fn wait(&self, _: Interest, _: Option<Duration>) -> io::Result<Ready> {
        yield_now();
        Ok(Ready::default())
    }

    fn edges(&self) -> io::Result<Option<Arc<dyn Edges>>> {
        Ok(None)
    }

    fn optmem(&self) -> io::Result<u32> {
        let state = lock(&self.state);
        Ok(832 * (state.taken.len() + state.notes.len()) as u32)
    }

    fn unacked(&self) -> io::Result<usize> {
        Ok(lock(&self.state).taken.len())
    }

    fn is_over(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.with(|state| state.shut_down = true);
        Ok(())
    }

    fn abort(&self) -> io::Result<()> {
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
        lock(&self.state).now
    }

    fn watch(&self, _: Weak<dyn Reclaim>) -> Option<reaper::Token> {
        self.with(|state| state.watched_after = Some(state.next_id));
        Some(reaper::Token::default())
    }

    fn adopt(&self, _: Arc<dyn Reclaim>) -> (reaper::Token, bool) {
        (reaper::Token::default(), true)
    }

    fn unwatch(&self, _: reaper::Token) {}
}
