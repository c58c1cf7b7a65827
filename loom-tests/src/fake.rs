//! A kernel small enough for a model: it takes what it is given, reads it when it is told to, and
//! posts notes.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use pinbuf::{
    __internals::{
        Batch, Config, Core, EdgeWait, Interest, IoVec, Kernel, MemlockBudget, Ready, Reclaim,
        Record, SendFlags, Token,
    },
    NotificationId, Pool,
};

use crate::Mutex;

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
    next_id: u32,
    answers: VecDeque<Answer>,
    taken: VecDeque<Taken>,
    notes: VecDeque<Record>,
    /// Every byte taken, by call.
    accepted: usize,
    aborted: bool,
    /// Whether an abort leaves what is taken where it is: packets in a queue below.
    queued_below: bool,
    adopted: Option<Arc<dyn Reclaim>>,
}

/// The fake socket; clones are the same one. Calls for which no answer is left are taken whole.
#[derive(Clone, Default)]
pub struct FakeKernel(Arc<Mutex<State>>);

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

    /// The same socket, whose packets wait in a queue below that an abort does not reach.
    pub fn queued_below(self) -> Self {
        self.with(|state| state.queued_below = true);
        self
    }

    /// A sender over this socket.
    pub fn sender(&self) -> Arc<Core<Self>> {
        let config = Config { threshold_bytes: 1, ..Config::default() };
        let budget = Arc::new(MemlockBudget::new(None));
        Core::new(self.clone(), config, None, budget, 1 << 20, NotificationId(0))
    }

    fn with<R>(&self, body: impl FnOnce(&mut State) -> R) -> R {
        body(&mut self.0.lock().unwrap())
    }

    /// Reads the oldest call not released, then posts its note. `false`: there is none.
    pub fn deliver(&self) -> bool {
        self.with(|state| {
            let Some(taken) = state.taken.pop_front() else { return false };
            taken.read();
            let (lo, hi) = (taken.id, taken.id);
            state.notes.push_back(Record::Released { lo, hi, copied: false });
            true
        })
    }

    /// Drives the sender that was handed over, as the reaper thread does. `false`: there is none.
    pub fn attend(&self) -> bool {
        let sender = self.with(|state| state.adopted.clone());
        sender.inspect(|sender| _ = sender.attend()).is_some()
    }

    /// Whether a sender is in the reaper's care.
    pub fn has_orphan(&self) -> bool {
        self.with(|state| state.adopted.is_some())
    }

    /// Bytes accepted so far.
    pub fn accepted(&self) -> usize {
        self.with(|state| state.accepted)
    }
}

impl Kernel for FakeKernel {
    fn send(&self, memory: &[IoVec], flags: SendFlags) -> io::Result<usize> {
        self.with(|state| {
            if state.aborted {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let offered = memory.iter().map(IoVec::len).sum::<usize>();
            let answer = state.answers.pop_front().unwrap_or(Answer::Take(offered));
            let (len, at_once) = match answer {
                Answer::Take(len) => (len.min(offered), false),
                Answer::TakeAndNote(len) => (len.min(offered), true),
                Answer::Fail(errno) => return Err(io::Error::from_raw_os_error(errno)),
            };
            state.accepted += len;
            if flags.zerocopy {
                let id = state.next_id;
                state.next_id += 1;
                if at_once {
                    state.notes.push_back(Record::Released { lo: id, hi: id, copied: true });
                } else {
                    let first = first_byte(&memory[0]);
                    state.taken.push_back(Taken { id, memory: memory[0], first });
                }
            }
            Ok(len)
        })
    }

    fn read_notes(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch> {
        let notes = self.with(|state| std::mem::take(&mut state.notes));
        let messages = notes.len();
        notes.into_iter().for_each(on_record);
        Ok(Batch { messages, truncated: false, drained: true })
    }

    fn wait(&self, _: Interest, _: Option<Duration>, _: Option<&EdgeWait>) -> io::Result<Ready> {
        unreachable!("models do not block")
    }

    fn edges(&self, _: Interest) -> io::Result<Option<EdgeWait>> {
        Ok(None)
    }

    fn optmem(&self) -> io::Result<u32> {
        self.with(|state| Ok(832 * (state.taken.len() + state.notes.len()) as u32))
    }

    fn unacked(&self) -> io::Result<usize> {
        self.with(|state| Ok(state.taken.len()))
    }

    fn shutdown_write(&self) -> io::Result<()> {
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

    /// Models have no clock.
    fn now(&self) -> Instant {
        *EPOCH.get_or_init(Instant::now)
    }

    fn watch(&self, _: Weak<dyn Reclaim>) -> Option<Token> {
        Some(Token::default())
    }

    fn adopt(&self, sender: Arc<dyn Reclaim>) -> (Token, bool) {
        self.with(|state| state.adopted = Some(sender));
        (Token::default(), true)
    }

    fn unwatch(&self, _: Token) {
        let sender = self.with(|state| state.adopted.take());
        drop(sender);
    }
}

static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();

/// Bytes of a slot of [`page_pool`].
pub const PAGE: usize = 4096;

/// A pool of `count` slots that are large enough to be sent without copy.
pub fn page_pool(count: usize) -> Pool {
    Pool::builder()
        .class(PAGE, count)
        .backing(pinbuf::Backing::Require(pinbuf::Pages::Base))
        .build()
        .unwrap()
}
