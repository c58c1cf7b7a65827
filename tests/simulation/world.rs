//! All sockets, their reaper and the time: what happens when nobody calls the library.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use pinbuf::__internals::Reclaim;

use crate::{
    mischief,
    nature::{FOR_EVER, MILLISECOND, Nature, SECOND},
    socket::Socket,
};

pub(crate) struct World {
    pub(crate) nature: Nature,
    pub(crate) sockets: Vec<Option<Socket>>,
    /// Time and turns since the present one began.
    began: u64,
    turns: u64,
    epoch: Instant,
    pub(crate) closed: u64,
    /// When the stream of the socket that was closed last was cut short, if it was, and when its
    /// peer had last acknowledged something.
    pub(crate) last_cut: Option<(u64, u64)>,
    /// Whether the reaper once had no thread for a sender that was to be watched.
    pub(crate) is_unwatched: bool,
}

/// A handle of the one world.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

/// What happened in one turn.
enum Turn {
    Moved,
    /// The reaper looks after this socket's sender.
    Attends(usize, Arc<dyn Reclaim>),
    /// Nothing will ever happen.
    Idle,
}

impl World {
    fn new(nature: Nature) -> Self {
        Self {
            nature,
            sockets: Vec::new(),
            began: 0,
            turns: 0,
            epoch: Instant::now(),
            closed: 0,
            last_cut: None,
            is_unwatched: false,
        }
    }

    pub(crate) fn socket(&mut self, number: usize) -> (&mut Socket, &mut Nature) {
        let socket = self.sockets[number].as_mut().expect("open as long as its kernel is there");
        (socket, &mut self.nature)
    }

    /// An owner calls the library.
    pub(crate) fn begin_call(&mut self) {
        self.began = self.nature.now;
        self.turns = 0;
    }

    pub(crate) fn instant(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.nature.now)
    }

    fn turn(&mut self, until: u64) -> Turn {
        self.nature.now += self.nature.choices.below(20_000) as u64;
        self.count_turn();
        assert!(self.nature.now - self.began < 4000 * SECOND, "a call waits for ever");
        if self.nature.choices.once_in(4)
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
            let due = socket.due.filter(|_| socket.care.is_some()).unwrap_or(FOR_EVER);
            due.min(socket.next_time())
        });
        match times.min().unwrap_or(FOR_EVER).min(until) {
            FOR_EVER => Turn::Idle,
            next => {
                self.nature.now = self.nature.now.max(next);
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
        let first = self.nature.choices.below(count);
        (first..first + count).any(|at| {
            self.sockets[at % count].as_mut().is_some_and(|socket| socket.turn(&mut self.nature))
        })
    }

    fn reaper_turn(&mut self, with_unserved: bool) -> Option<Turn> {
        let now = self.nature.now;
        let mut sockets = self.sockets.iter_mut().enumerate();
        let (number, sender) = sockets.find_map(|(number, socket)| {
            let socket = socket.as_mut()?;
            let due = socket.due.is_some_and(|due| due <= now);
            if !(due || socket.news.to_reaper) || !(socket.served || with_unserved) {
                return None;
            }
            let sender = socket.care.as_ref()?.sender();
            (socket.due, socket.news.to_reaper) = (None, false);
            Some((number, sender?))
        })?;
        Some(Turn::Attends(number, sender))
    }
}

impl Shared {
    pub(crate) fn new(nature: Nature) -> Self {
        Self(Arc::new(Mutex::new(World::new(nature))))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a wait that begins now ends.
    pub(crate) fn deadline(&self, timeout: Option<Duration>) -> u64 {
        let timeout = timeout.expect("every wait is limited");
        let mut world = self.lock();
        // One that ends at once may be repeated at once, for ever.
        world.count_turn();
        world.nature.now + timeout.as_nanos() as u64
    }

    /// Something happens, unless the time is up.
    pub(crate) fn waits(&self, deadline: u64) -> bool {
        let is_waiting = self.lock().nature.now < deadline;
        if is_waiting {
            self.advance(deadline);
        }
        is_waiting
    }

    /// Another thread may drive a sender while this one is in a call or asleep. Returns `true` if
    /// it does.
    pub(crate) fn meet(&self, number: usize) -> bool {
        let mut world = self.lock();
        let (socket, nature) = world.socket(number);
        let core = nature.choices.once_in(16).then(|| socket.core.clone());
        drop(world);
        let core = core.as_ref().and_then(Weak::upgrade);
        if let Some(core) = &core {
            mischief::guarded(|| core.step());
        }
        core.is_some()
    }

    /// Something happens; `false`: nothing will, before or after `until`.
    pub(crate) fn advance(&self, until: u64) -> bool {
        let turn = self.lock().turn(until);
        match turn {
            Turn::Moved => true,
            Turn::Idle => false,
            Turn::Attends(number, sender) => {
                let next = match mischief::guarded(|| sender.attend()) {
                    Some(next) => next.map(|next| next.as_nanos() as u64),
                    None => Some(100 * MILLISECOND),
                };
                let mut world = self.lock();
                let now = world.nature.now;
                if let Some(socket) = world.sockets[number].as_mut()
                    && let Some(next) = next
                {
                    socket.due = Some(socket.due.map_or(now + next, |due| due.min(now + next)));
                }
                drop(world);
                // It may be the last of it.
                mischief::guarded(|| drop(sender));
                true
            }
        }
    }
}
