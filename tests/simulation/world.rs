//! All sockets, their reaper and the time: events between the calls of the library.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use pinbuf::__internals::Reclaim;

use crate::{
    environment::{Environment, FOR_EVER, MILLISECOND, SECOND},
    panics,
    socket::Socket,
};

pub(crate) struct World {
    pub(crate) environment: Environment,
    pub(crate) sockets: Vec<Option<Socket>>,
    /// Time and turns since the start of the present call.
    began: u64,
    turns: u64,
    epoch: Instant,
    pub(crate) closed: u64,
    /// The time at which the stream of the last closed socket was truncated, and the time of its
    /// peer's last acknowledgement.
    pub(crate) last_cut: Option<(u64, u64)>,
    /// `true` if the reaper once had no thread for a sender to watch.
    pub(crate) is_unwatched: bool,
}

/// A handle of the world.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

/// The outcome of a turn.
enum Turn {
    Moved,
    /// The reaper drives the sender of this socket.
    Drives(usize, Arc<dyn Reclaim>),
    /// No event will ever happen.
    Idle,
}

impl World {
    fn new(environment: Environment) -> Self {
        Self {
            environment,
            sockets: Vec::new(),
            began: 0,
            turns: 0,
            epoch: Instant::now(),
            closed: 0,
            last_cut: None,
            is_unwatched: false,
        }
    }

    pub(crate) fn socket(&mut self, number: usize) -> (&mut Socket, &mut Environment) {
        let socket =
            self.sockets[number].as_mut().expect("the socket is open as long as its kernel exists");
        (socket, &mut self.environment)
    }

    /// An owner calls the library.
    pub(crate) fn begin_call(&mut self) {
        self.began = self.environment.now;
        self.turns = 0;
    }

    pub(crate) fn instant(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.environment.now)
    }

    fn turn(&mut self, until: u64) -> Turn {
        self.environment.now += self.environment.choices.below(20_000) as u64;
        self.count_turn();
        assert!(self.environment.now - self.began < 4000 * SECOND, "a call waits for ever");
        if self.environment.choices.once_in(4)
            && let Some(turn) = self.reaper_turn(false)
        {
            return turn;
        }
        if self.socket_turn() {
            return Turn::Moved;
        }
        if let Some(turn) = self.reaper_turn(true) {
            return turn;
        }
        let times = self.sockets.iter().flatten().map(|socket| {
            let due = socket.due.filter(|_| socket.keeper.is_some()).unwrap_or(FOR_EVER);
            due.min(socket.next_time())
        });
        match times.min().unwrap_or(FOR_EVER).min(until) {
            FOR_EVER => Turn::Idle,
            next => {
                self.environment.now = self.environment.now.max(next);
                Turn::Moved
            }
        }
    }

    fn count_turn(&mut self) {
        self.turns += 1;
        assert!(self.turns < 2_000_000, "a call spins");
    }

    fn socket_turn(&mut self) -> bool {
        let count = self.sockets.len();
        if count == 0 {
            return false;
        }
        let first = self.environment.choices.below(count);
        (first..first + count).any(|at| {
            self.sockets[at % count]
                .as_mut()
                .is_some_and(|socket| socket.turn(&mut self.environment))
        })
    }

    fn reaper_turn(&mut self, with_unserved: bool) -> Option<Turn> {
        let now = self.environment.now;
        let mut sockets = self.sockets.iter_mut().enumerate();
        let (number, sender) = sockets.find_map(|(number, socket)| {
            let socket = socket.as_mut()?;
            let due = socket.due.is_some_and(|due| due <= now);
            if !(due || socket.events.to_reaper) || !(socket.served || with_unserved) {
                return None;
            }
            let sender = socket.keeper.as_ref()?.sender();
            (socket.due, socket.events.to_reaper) = (None, false);
            Some((number, sender?))
        })?;
        Some(Turn::Drives(number, sender))
    }
}

impl Shared {
    pub(crate) fn new(environment: Environment) -> Self {
        Self(Arc::new(Mutex::new(World::new(environment))))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of a wait that begins now.
    pub(crate) fn deadline(&self, timeout: Option<Duration>) -> u64 {
        let timeout = timeout.expect("every wait is limited");
        let mut world = self.lock();
        // A wait that ends at once may be repeated at once, for ever.
        world.count_turn();
        world.environment.now + timeout.as_nanos() as u64
    }

    /// Lets events happen until the deadline.
    pub(crate) fn waits(&self, deadline: u64) -> bool {
        let is_waiting = self.lock().environment.now < deadline;
        if is_waiting {
            self.advance(deadline);
        }
        is_waiting
    }

    /// Another thread may drive a sender while the present thread is in a call or asleep. Returns
    /// `true` if it does.
    pub(crate) fn meet(&self, number: usize) -> bool {
        let mut world = self.lock();
        let (socket, environment) = world.socket(number);
        let core = environment.choices.once_in(16).then(|| socket.core.clone());
        drop(world);
        let core = core.as_ref().and_then(Weak::upgrade);
        if let Some(core) = &core {
            panics::guarded(|| core.step());
        }
        core.is_some()
    }

    /// Lets one event happen. Returns `false` if none ever will, or none before `until`.
    pub(crate) fn advance(&self, until: u64) -> bool {
        let turn = self.lock().turn(until);
        match turn {
            Turn::Moved => true,
            Turn::Idle => false,
            Turn::Drives(number, sender) => {
                let next = match panics::guarded(|| sender.attend()) {
                    Some(next) => next.map(|next| next.as_nanos() as u64),
                    None => Some(100 * MILLISECOND),
                };
                let mut world = self.lock();
                let now = world.environment.now;
                if let Some(socket) = world.sockets[number].as_mut()
                    && let Some(next) = next
                {
                    socket.due = Some(socket.due.map_or(now + next, |due| due.min(now + next)));
                }
                drop(world);
                // May be the last reference.
                panics::guarded(|| drop(sender));
                true
            }
        }
    }
}
