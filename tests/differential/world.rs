//! Sockets, time and the trace.
//!
//! Time passes in slots. In each slot every socket may do one thing, and the pause behind the slot
//! depends on the number of the slot alone. Each event of the network has a random generator of its
//! own, seeded by the socket and the number of the event. So neither a read of a queue nor the
//! moment of a sender's close shifts the events of other sockets.

use std::{
    env,
    fmt::{Debug, Write},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use pinbuf::__internals::{IoVec, SendFlags};

use crate::{
    choices::Choices,
    environment::{Environment, FOR_EVER, MICROSECOND, MILLISECOND},
    socket::{Socket, Wire},
};

/// A call with a wait ends with the last of this many slots. A look more or less of a sender then
/// shifts no later event.
const SLOTS_OF_A_WAIT: u64 = 64;

pub(crate) struct World {
    seed: u64,
    epoch: Instant,
    pub(crate) environment: Environment,
    pub(crate) sockets: Vec<Option<Socket>>,
    /// Calls and events of each socket.
    counts: Vec<[u64; 2]>,
    slot: u64,
    waits: u64,
    /// No event happens during a call.
    is_calm: bool,
    pub(crate) trace: String,
    /// The trace has reads too, for a search for the cause of a difference.
    tells_reads: bool,
}

/// A handle of the world.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

impl World {
    pub(crate) fn socket(&mut self, number: usize) -> &mut Socket {
        self.sockets[number].as_mut().expect("open as long as its kernel is there")
    }

    pub(crate) fn instant(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.environment.now)
    }

    /// Adds the answer to a read to the trace, if reads are traced.
    pub(crate) fn read<T: Debug>(&mut self, number: usize, what: &str, answer: T) -> T {
        if self.tells_reads {
            _ = writeln!(self.trace, "{number} reads {what}: {answer:?}");
        }
        answer
    }

    /// The generator for the event with this number of a kind.
    fn choices(&self, source: usize, kind: u64, count: u64) -> Choices {
        let name = (source as u64) << 40 | kind << 32 | count;
        let mut choices = Choices::random(self.seed ^ name.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        choices.below(2);
        choices
    }

    pub(crate) fn send(
        &mut self,
        number: usize,
        memory: &[IoVec],
        flags: SendFlags,
    ) -> io::Result<usize> {
        self.environment.choices = self.choices(number, 0, self.counts[number][0]);
        self.counts[number][0] += 1;
        let Self { environment, sockets, trace, is_calm, .. } = self;
        let socket = sockets[number].as_mut().expect("open");
        let id = socket.notifications.next_id();
        let result = if *is_calm {
            socket.call(memory, flags, environment)
        } else {
            socket.send(memory, flags, environment)
        };
        if flags.zerocopy && result.is_ok() {
            environment.memory.give(memory);
        }
        let lens: Vec<_> = memory.iter().map(IoVec::len).collect();
        let result_text = match &result {
            Ok(accepted) => accepted.to_string(),
            Err(error) => error.raw_os_error().map_or("would block".into(), |it| it.to_string()),
        };
        let way = if flags.zerocopy { "zero-copy" } else { "copy" };
        let more = if flags.more { " more" } else { "" };
        _ = writeln!(trace, "{number} calls {way}{more} id {id} of {lens:?}: {result_text}");
        result
    }

    pub(crate) fn abort(&mut self, number: usize) -> io::Result<()> {
        let Self { environment, sockets, .. } = self;
        let Socket { wire, notifications, events, .. } = sockets[number].as_mut().expect("open");
        let Wire::Stream(stream) = wire else { return Err(io::ErrorKind::Unsupported.into()) };
        stream.abort(environment, notifications, events);
        Ok(())
    }

    /// One slot of time. Returns `false` if no event happened or will happen.
    fn advance(&mut self) -> bool {
        let mut pauses = self.choices(0, 2, self.slot);
        self.slot += 1;
        self.environment.now += match pauses.below(256) {
            0 => 300 * MILLISECOND,
            1..16 => MILLISECOND,
            _ => 10 * MICROSECOND,
        };
        let mut moved = false;
        for number in 0..self.sockets.len() {
            self.environment.choices = self.choices(number, 1, self.counts[number][1]);
            let Some(socket) = &mut self.sockets[number] else { continue };
            if socket.turn(&mut self.environment) {
                self.counts[number][1] += 1;
                moved = true;
            }
        }
        moved || self.sockets.iter().flatten().any(|socket| socket.next_time() < FOR_EVER)
    }
}

impl Shared {
    pub(crate) fn new(seed: u64, environment: Environment, is_calm: bool) -> Self {
        Self(Arc::new(Mutex::new(World {
            seed,
            epoch: Instant::now(),
            environment,
            sockets: Vec::new(),
            counts: Vec::new(),
            slot: 0,
            waits: 0,
            is_calm,
            trace: String::new(),
            tells_reads: env::var_os("PINBUF_TRACE_READS").is_some(),
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self, socket: Socket) -> usize {
        let mut world = self.lock();
        world.sockets.push(Some(socket));
        world.counts.push([0; 2]);
        world.sockets.len() - 1
    }

    pub(crate) fn deadline(&self, timeout: Option<Duration>) -> u64 {
        let mut world = self.lock();
        world.waits += 1;
        assert!(world.waits < 10_000_000, "a wait spins");
        world.environment.now + timeout.map_or(FOR_EVER / 2, |timeout| timeout.as_nanos() as u64)
    }

    /// Lets events happen until the deadline.
    pub(crate) fn waits(&self, deadline: u64) -> bool {
        let mut world = self.lock();
        let waits = world.environment.now < deadline;
        if waits {
            world.advance();
        }
        waits
    }

    pub(crate) fn advance(&self) -> bool {
        self.lock().advance()
    }

    /// Ends a call that may have waited.
    pub(crate) fn waited(&self) {
        let mut world = self.lock();
        while !world.slot.is_multiple_of(SLOTS_OF_A_WAIT) {
            world.advance();
        }
    }

    /// The reaper drives every sender in the table, at any time.
    pub(crate) fn attend_all(&self) {
        let count = self.lock().sockets.len();
        for number in 0..count {
            let sender = {
                let world = self.lock();
                let socket = world.sockets[number].as_ref();
                socket.and_then(|socket| socket.keeper.as_ref()?.sender())
            };
            if let Some(sender) = sender {
                sender.attend();
            }
        }
    }
}
