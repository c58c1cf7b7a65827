//! Sockets, time and the trace. Each event of the network is drawn by a generator of its own, seeded
//! by the socket and the number of the event, so a read of a queue shifts no later choice.

use std::{
    fmt::Write,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use pinbuf::__internals::{IoVec, SendFlags};

use crate::{
    choices::Choices,
    environment::{Environment, FOR_EVER, MICROSECOND},
    socket::{Socket, Wire},
};

pub(crate) struct World {
    seed: u64,
    epoch: Instant,
    pub(crate) environment: Environment,
    pub(crate) sockets: Vec<Option<Socket>>,
    /// Calls and events of each socket so far.
    counts: Vec<[u64; 2]>,
    /// The socket that has the next turn.
    turn: usize,
    waits: u64,
    pub(crate) trace: String,
}

/// A handle of the one world.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

impl World {
    pub(crate) fn socket(&mut self, number: usize) -> &mut Socket {
        self.sockets[number].as_mut().expect("open as long as its kernel is there")
    }

    pub(crate) fn instant(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.environment.now)
    }

    /// Seeds the generator for the next event of this kind of a socket.
    fn draw(&mut self, number: usize, kind: usize) {
        let count = self.counts[number][kind];
        let name = (number as u64) << 40 | (kind as u64) << 32 | count;
        let mut choices = Choices::random(self.seed ^ name.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        choices.below(2);
        self.environment.choices = choices;
    }

    pub(crate) fn send(
        &mut self,
        number: usize,
        memory: &[IoVec],
        flags: SendFlags,
    ) -> io::Result<usize> {
        self.draw(number, 0);
        self.counts[number][0] += 1;
        let Self { environment, sockets, trace, .. } = self;
        let socket = sockets[number].as_mut().expect("open");
        let id = socket.notifications.next_id();
        let result = socket.send(memory, flags, environment);
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

    /// One event of the network, or the passing of time up to the next; `false`: none to come.
    fn advance(&mut self, until: u64) -> bool {
        self.environment.now += 10 * MICROSECOND;
        for _ in 0..self.sockets.len() {
            let number = self.turn % self.sockets.len();
            self.turn = number + 1;
            self.draw(number, 1);
            let Some(socket) = &mut self.sockets[number] else { continue };
            if socket.turn(&mut self.environment) {
                self.counts[number][1] += 1;
                return true;
            }
        }
        let next = self.sockets.iter().flatten().map(Socket::next_time).min();
        match next.unwrap_or(FOR_EVER).min(until) {
            FOR_EVER => false,
            next => {
                self.environment.now = self.environment.now.max(next);
                true
            }
        }
    }
}

impl Shared {
    pub(crate) fn new(seed: u64, environment: Environment) -> Self {
        Self(Arc::new(Mutex::new(World {
            seed,
            epoch: Instant::now(),
            environment,
            sockets: Vec::new(),
            counts: Vec::new(),
            turn: 0,
            waits: 0,
            trace: String::new(),
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

    /// Something happens, unless the time is up.
    pub(crate) fn waits(&self, deadline: u64) -> bool {
        let mut world = self.lock();
        let waits = world.environment.now < deadline;
        if waits {
            world.advance(deadline);
        }
        waits
    }

    pub(crate) fn advance(&self) -> bool {
        self.lock().advance(FOR_EVER)
    }

    /// The reaper looks after every sender that it knows, whatever they said of their time.
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
