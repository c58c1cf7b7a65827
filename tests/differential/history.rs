//! One history: owners of senders, and the events of the network.

use std::{
    fmt::{Debug, Write},
    mem,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::Duration,
};

use pinbuf::{
    __internals::{Config, Core, MemlockBudget, NotificationId, Transport},
    Fate, Payload, Pool, SendError, Ticket,
    pool::{Backing, Pages},
    sender::OnRelease,
};

use crate::{
    choices::Choices,
    datagrams::{Datagrams, ECONNREFUSED},
    environment::{Environment, MILLISECOND, SECOND, Weather},
    kernel::SimKernel,
    memory::{Memory, Text},
    notifications::{Notifications, User},
    socket::{Socket, Wire},
    stream::{ECONNRESET, Stream},
    world::Shared,
};

const STEPS: usize = 500;
const MAX_OWNERS: usize = 3;
const SLOTS: usize = 6;
const CAPACITY: usize = 16 << 10;

/// The variant and the error number: not every revision shows an error in the same words.
fn in_short(error: &SendError<()>) -> String {
    let number = match error {
        SendError::Connection { error, .. }
        | SendError::Dropped { error, .. }
        | SendError::Os { error, .. } => Some(error.raw()),
        _ => None,
    };
    let shown = format!("{error:?}");
    let name = shown.split(|letter: char| !letter.is_alphanumeric()).next();
    format!("{} {number:?}", name.unwrap_or_default())
}

fn fate_in_short(fate: Option<Fate>) -> String {
    match fate {
        Some(Fate::Truncated { accepted, len, error }) => {
            format!("Truncated {accepted} of {len} {}", error.raw())
        }
        fate => format!("{fate:?}"),
    }
}

/// The error without the buffer.
fn without_buf(error: SendError<Payload>) -> SendError<()> {
    match error {
        SendError::WouldBlock(_) => SendError::WouldBlock(()),
        SendError::TimedOut(_) => SendError::TimedOut(()),
        SendError::Unfinished { ticket } => SendError::Unfinished { ticket },
        SendError::Connection { error, .. } => SendError::Connection { error, buf: () },
        SendError::BadAddress(_) => SendError::BadAddress(()),
        SendError::Truncated { ticket, error } => SendError::Truncated { ticket, error },
        SendError::Dropped { error, .. } => SendError::Dropped { error, buf: () },
        SendError::Os { error, .. } => SendError::Os { error, buf: () },
        SendError::Forked(_) => SendError::Forked(()),
        other => panic!("{other:?}"),
    }
}

/// The answer to a question for a fate; an earlier revision answers without an error.
trait Told {
    fn told(self) -> Option<Fate>;
}

impl Told for Option<Fate> {
    fn told(self) -> Option<Fate> {
        self
    }
}

impl<E: Debug> Told for Result<Option<Fate>, E> {
    fn told(self) -> Option<Fate> {
        self.expect("the ticket is this sender's")
    }
}

struct Owner {
    number: usize,
    core: Arc<Core<SimKernel>>,
    is_datagram: bool,
    tickets: Vec<Ticket>,
    returned: Vec<String>,
}

struct History {
    world: Shared,
    choices: Choices,
    pool: Pool,
    budget: Arc<MemlockBudget>,
    owners: Vec<Owner>,
    /// Option memory, the user's locked memory or the budget is scarce. Unread notifications take a
    /// part of each, and a sender's reaction to a refusal depends on earlier reads. So all
    /// notifications are read before each send, and none comes during a call.
    is_tight: bool,
    /// Calls may wait. The events during a wait depend on the sender's number of looks.
    may_wait: bool,
    /// The fates and hand-backs of senders.
    ends: String,
}

/// The trace of this seed's history, including a panic.
pub(crate) fn play(seed: u64) -> String {
    let mut history = History::new(seed);
    let world = history.world.clone();
    let played = panic::catch_unwind(AssertUnwindSafe(move || {
        for step in 0..STEPS {
            history.step();
            if step % 8 == 0 {
                history.world.attend_all();
            }
        }
        history.finish();
        history.ends
    }));
    let trace = mem::take(&mut world.lock().trace);
    let ends = played.unwrap_or_else(|panic| match panic.downcast_ref::<&str>() {
        Some(text) => format!("panics: {text}\n"),
        None => "panics\n".to_owned(),
    });
    format!("history {seed}\n{trace}{ends}")
}

impl History {
    fn new(seed: u64) -> Self {
        let mut choices = Choices::random(seed);
        let weather = Weather { cut: 0, ..Weather::new(&mut choices) };
        let limit_pages = choices.pick(&[None, None, Some(64), Some(16)]);
        let quota = choices.pick(&[None, None, Some(2)]);
        let budget = choices.pick(&[None, None, Some(32 << 10), Some(256 << 10)]);
        let is_tight = choices.once_in(2) || limit_pages.is_some() || budget.is_some();
        let user = User { limit_pages, charged_pages: 0, others_pages: 0 };
        let builder =
            Pool::builder().class(CAPACITY, SLOTS + 1).backing(Backing::Require(Pages::Base));
        let builder = match quota {
            Some(quota) => builder.sender_quota(quota),
            None => builder,
        };
        let pool = builder.build().expect("a small pool");
        let mut memory = Memory::new();
        memory.add_pool(pool.try_alloc(1).expect("a slot is free"));
        let environment =
            Environment { choices: Choices::random(0), now: 0, memory, user, weather };
        Self {
            world: Shared::new(seed, environment, is_tight),
            choices,
            pool,
            budget: Arc::new(MemlockBudget::new(budget)),
            owners: Vec::new(),
            is_tight,
            may_wait: seed.is_multiple_of(4),
            ends: String::new(),
        }
    }

    fn log(&self, number: usize, text: &str) {
        _ = writeln!(self.world.lock().trace, "{number} {text}");
    }

    fn step(&mut self) {
        if self.owners.is_empty() {
            return self.open();
        }
        let at = self.choices.below(self.owners.len());
        match self.choices.below(64) {
            0..20 => {
                let slots = 1 + self.choices.below(8);
                (0..slots).for_each(|_| _ = self.world.advance());
            }
            20..44 => self.send(at, 1),
            44..48 => {
                let count = 2 + self.choices.below(4);
                self.send(at, count);
            }
            48..54 => self.fetch(at),
            54..56 => _ = self.owners[at].core.reap_and_flush(),
            56 if self.may_wait => self.drain(at),
            57..61 => self.disturb(at),
            61 if self.choices.once_in(2) => self.end(at),
            _ => self.open(),
        }
    }

    fn open(&mut self) {
        if self.owners.len() == MAX_OWNERS {
            return;
        }
        let choices = &mut self.choices;
        let first = choices.pick(&[0, u32::MAX - 10, 1 << 31]);
        let optmem_max =
            if self.is_tight { choices.pick(&[20 << 10, 832 * 4, 832]) } else { 128 << 10 };
        let room = choices.pick(&[16 << 10, 64 << 10, 1 << 20]);
        let wire = if choices.once_in(4) {
            Wire::Datagrams(Datagrams::new(room))
        } else {
            let mut stream = Stream::new(room, choices.pick(&[4 << 10, 64 << 10, 1 << 20]));
            stream.refuses = choices.once_in(32);
            Wire::Stream(stream)
        };
        let config = Config {
            threshold_bytes: choices.pick(&[1, 4096, 16 << 10]),
            max_in_flight_bytes: choices.pick(&[64 << 20, 64 << 10, 10_000]),
            max_in_flight_sends: choices.pick(&[4096, 8, 1]),
            on_release: choices.pick(&[OnRelease::Recycle, OnRelease::Return]),
            observe_route: false,
            linger: Duration::from_millis(choices.pick(&[10, 1000])),
            max_hold: None,
            ..Config::default()
        };
        let socket = Socket::new(wire, Notifications::new(first, optmem_max));
        let transport = socket.transport();
        let number = self.world.open(socket);
        let kernel = SimKernel { world: self.world.clone(), number, transport };
        let (budget, id) = (Arc::clone(&self.budget), NotificationId(u64::from(first)));
        let core = Core::new(kernel, config, None, budget, optmem_max as u32, id);
        let is_datagram = transport == Transport::Datagram;
        let (tickets, returned) = (Vec::new(), Vec::new());
        self.owners.push(Owner { number, core, is_datagram, tickets, returned });
    }

    fn payload(&mut self, most: usize) -> (Payload, Text) {
        let full = self.choices.pick(&[4096, 4096, 8192, CAPACITY, 100, 1, 30_000]);
        let len = if self.choices.once_in(2) { full } else { 1 + self.choices.below(full) };
        let len = len.min(most);
        let kind = self.choices.below(4);
        let text = Text::new(&mut self.choices, if kind < 2 { len.min(CAPACITY) } else { len });
        let payload = match kind {
            0 | 1 => match self.buffer() {
                Some(mut buf) => {
                    buf.extend_from_slice(text.bytes());
                    buf.into()
                }
                None => text.bytes().into(),
            },
            2 => Arc::<[u8]>::from(text.bytes()).into(),
            _ => text.bytes().into(),
        };
        (payload, text)
    }

    /// A buffer, with a free slot that does not depend on reads of notifications.
    fn buffer(&mut self) -> Option<pinbuf::PinnedBuf> {
        self.world.attend_all();
        (0..self.owners.len()).for_each(|at| self.fetch(at));
        self.world.lock().environment.memory.check();
        self.pool.try_alloc(1).ok()
    }

    fn send(&mut self, at: usize, count: usize) {
        if self.is_tight {
            self.world.attend_all();
            (0..self.owners.len()).for_each(|at| self.fetch(at));
        }
        // The number of pages in a payload must not depend on the address.
        let (count, most) = if self.owners[at].is_datagram {
            (count.min(2), CAPACITY)
        } else {
            (count, usize::MAX)
        };
        let (mut payloads, mut texts) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (payload, text) = self.payload(most);
            payloads.push(payload);
            texts.push(text);
        }
        let waits = self.choices.once_in(16) && self.may_wait;
        let Self { world, owners, .. } = self;
        let Owner { number, core, tickets, .. } = &mut owners[at];
        world.lock().socket(*number).expected.push(&texts);
        let len: usize = texts.iter().map(|text| text.len).sum();
        let result = if count > 1 {
            core.try_send_vectored(&mut payloads)
        } else {
            let payload = payloads.pop().expect("there is one");
            // Without a time limit: earlier revisions report a timeout differently.
            let sent = if waits { core.send(payload) } else { core.try_send(payload) };
            sent.map_err(without_buf)
        };
        if waits {
            world.waited();
        }
        let text = match &result {
            Ok(ticket) => format!("takes {len} as {}", ticket.sequence()),
            Err(SendError::Truncated { ticket, error }) => {
                format!("takes a part of {len} as {}: {}", ticket.sequence(), error.raw())
            }
            Err(error) => format!("refuses {len}: {}", in_short(error)),
        };
        _ = writeln!(world.lock().trace, "{number} {text}");
        match result {
            Ok(ticket) | Err(SendError::Truncated { ticket, .. }) => tickets.push(ticket),
            Err(_) => world.lock().socket(*number).expected.withdraw(&texts),
        }
    }

    /// Reads notifications, and fetches returned payloads.
    fn fetch(&mut self, at: usize) {
        let Owner { core, returned, .. } = &mut self.owners[at];
        core.forget_refused();
        _ = core.reap();
        while let Some(back) = core.next_returned() {
            returned.push(format!(
                "hands {} of {} back",
                back.payload.len(),
                back.ticket.sequence()
            ));
        }
    }

    fn drain(&mut self, at: usize) {
        let Owner { number, core, .. } = &self.owners[at];
        let deadline = self.world.lock().instant() + Duration::from_secs(5);
        let result = core.drain(Some(deadline));
        self.world.waited();
        self.log(*number, &format!("drain: {result:?}"));
    }

    fn disturb(&mut self, at: usize) {
        let number = self.owners[at].number;
        let what = self.choices.below(20);
        let pages = self.choices.below(64);
        let pause = self.choices.pick(&[MILLISECOND, SECOND]);
        let mut world = self.world.lock();
        let until = world.environment.now + pause;
        let weather = Weather { cut: 0, ..Weather::new(&mut self.choices) };
        match what {
            0..4 => world.environment.weather = weather,
            4..8 => world.environment.user.others_pages = pages,
            _ => {}
        }
        let world = &mut *world;
        let socket = world.sockets[number].as_mut().expect("open");
        match (&mut socket.wire, what) {
            (Wire::Stream(_), 8) => socket.reset(ECONNRESET, &mut world.environment),
            (Wire::Stream(stream), 9) => stream.vanish(world.environment.now),
            (Wire::Stream(stream), 10..16) => stream.stall(until),
            (Wire::Datagrams(datagrams), 8..12) => datagrams.stick(until),
            (Wire::Datagrams(datagrams), 12) => datagrams.pending_error = Some(ECONNREFUSED),
            _ => {}
        }
    }

    fn end(&mut self, at: usize) {
        let closes = self.choices.once_in(2) && self.may_wait;
        self.fetch(at);
        self.tell(at);
        let Owner { number, core, .. } = self.owners.swap_remove(at);
        if closes {
            let deadline = self.world.lock().instant() + Duration::from_secs(5);
            let aborted = core.close(Some(deadline)).aborted;
            self.world.waited();
            self.log(number, &format!("closed, aborted: {aborted}"));
        } else {
            core.leave(false);
        }
    }

    /// Records the fates and hand-backs of a sender after a read of the queue.
    fn tell(&mut self, at: usize) {
        let Owner { number, core, tickets, returned, .. } = &self.owners[at];
        for ticket in tickets {
            let fate = core.fate(*ticket).told();
            _ = writeln!(
                self.ends,
                "{number} fate of {}: {}",
                ticket.sequence(),
                fate_in_short(fate)
            );
        }
        // A copied part is handed back at the call, all others at a read of the queue. So the order
        // depends on the reads.
        let mut returned = returned.clone();
        returned.sort_unstable();
        returned.iter().for_each(|line| _ = writeln!(self.ends, "{number} {line}"));
    }

    /// The network becomes fast, and every send is released.
    fn finish(&mut self) {
        {
            let mut world = self.world.lock();
            let world = &mut *world;
            world.environment.weather = Weather::default();
            world.environment.user.others_pages = 0;
            for socket in world.sockets.iter_mut().flatten() {
                if let Wire::Stream(stream) = &mut socket.wire {
                    stream.stall(0);
                }
            }
        }
        for _ in 0..10_000 {
            self.world.attend_all();
            (0..self.owners.len()).for_each(|at| self.fetch(at));
            if (0..64).filter(|_| self.world.advance()).count() == 0 {
                break;
            }
        }
        while !self.owners.is_empty() {
            self.fetch(0);
            self.tell(0);
            let Owner { core, .. } = self.owners.swap_remove(0);
            core.leave(false);
        }
        // Senders without an owner end after the linger time.
        for _ in 0..64 {
            self.world.lock().environment.now += SECOND;
            while self.world.advance() {}
            self.world.attend_all();
        }
        let open = self.world.lock().sockets.iter().flatten().count();
        _ = writeln!(self.ends, "senders that never ended: {open}");
        let witnesses = self.world.lock().environment.memory.take_witnesses();
        drop(witnesses);
    }
}
