//! A kernel that answers as it is told, for tests of what a sender makes of the answers.

use std::{
    collections::VecDeque,
    io,
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
    id::NotificationId,
    raw::Reclaim,
    reaper,
    sync::{Arc, Mutex, Weak, lock},
    sys::{
        Batch, Record,
        epoll::EdgeWait,
        socket::{IoVec, Ready, SendFlags},
    },
};

/// What a call is answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// Takes all of it.
    Take,
    /// Takes all of it and lets go at once; the note says whether it was copied.
    Note(bool),
    /// Fails with an error number.
    Fail(i32),
    /// Fails with an error number after having used the id; the note is on the queue.
    FailWithNote(i32),
}

/// One call as the kernel saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    pub(super) elements: usize,
    pub(super) bytes: usize,
    pub(super) zero_copy: bool,
}

/// The fake socket; clones are the same one.
#[derive(Clone)]
pub(super) struct FakeKernel {
    transport: Transport,
    state: Arc<Mutex<State>>,
}

struct State {
    /// Answers to come, and what every call is answered after that.
    answers: VecDeque<Answer>,
    otherwise: Answer,
    next_id: u32,
    taken: VecDeque<u32>,
    notes: VecDeque<Record>,
    seen: Vec<Seen>,
    now: Instant,
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

    /// Lets go of the oldest call.
    pub(super) fn release(&self) {
        let mut state = lock(&self.state);
        let id = state.taken.pop_front().expect("something is taken");
        state.notes.push_back(Record::Released { lo: id, hi: id, copied: false });
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
        let mut state = lock(&self.state);
        let bytes = memory.iter().map(IoVec::len).sum();
        let zero_copy = flags.zerocopy;
        state.seen.push(Seen { elements: memory.len(), bytes, zero_copy });
        let answer = state.answers.pop_front().unwrap_or(state.otherwise);
        let id = state.next_id;
        if zero_copy && !matches!(answer, Answer::Fail(_)) {
            state.next_id += 1;
            let copied = matches!(answer, Answer::Note(true));
            match answer {
                Answer::Take => state.taken.push_back(id),
                _ => state.notes.push_back(Record::Released { lo: id, hi: id, copied }),
            }
        }
        match answer {
            Answer::Take | Answer::Note(_) => Ok(bytes),
            Answer::Fail(errno) | Answer::FailWithNote(errno) => {
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }

    fn read_notes(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch> {
        let notes = std::mem::take(&mut lock(&self.state).notes);
        let messages = notes.len();
        notes.into_iter().for_each(on_record);
        Ok(Batch { messages, truncated: false, drained: true })
    }

    fn wait(&self, _: Interest, _: Option<Duration>, _: Option<&EdgeWait>) -> io::Result<Ready> {
        unreachable!("these tests do not block")
    }

    fn edges(&self, _: Interest) -> io::Result<Option<EdgeWait>> {
        Ok(None)
    }

    fn optmem(&self) -> io::Result<u32> {
        let state = lock(&self.state);
        Ok(832 * (state.taken.len() + state.notes.len()) as u32)
    }

    fn unacked(&self) -> io::Result<usize> {
        Ok(lock(&self.state).taken.len())
    }

    fn shutdown_write(&self) -> io::Result<()> {
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
        Some(reaper::Token::default())
    }

    fn adopt(&self, _: Arc<dyn Reclaim>) -> (reaper::Token, bool) {
        (reaper::Token::default(), true)
    }

    fn unwatch(&self, _: reaper::Token) {}
}
