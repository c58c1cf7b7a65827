//! One simulated history: pools, senders, random calls of their owners, and the end.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use pinbuf::{
    __internals::{self, Config, Core, MemlockBudget, NotificationId, Record},
    AllocError, MappedSlice, Payload, PinnedBuf, Pool, SharedBuf,
    pool::{Backing, Pages},
    sender::OnRelease,
};

use crate::{
    choices::Choices,
    datagrams::{Datagrams, ECONNREFUSED},
    environment::{Environment, FOR_EVER, MILLISECOND, SECOND, Weather},
    kernel::SimKernel,
    memory::{BLOCK_BYTES, Memory, Text},
    notifications::{Notifications, User},
    owner::{Owner, Patience},
    panics::{self, CountingWaker, Owner as BlockOwner},
    socket::{Linger, Socket, Wire},
    stream::{ECONNRESET, Stream},
    world::{Shared, World},
};

const MAX_OWNERS: usize = 3;

type Allocation = Pin<Box<dyn Future<Output = Result<PinnedBuf, AllocError>>>>;

pub(crate) struct Episode {
    world: Shared,
    pool: Option<Pool>,
    slots: usize,
    capacity: usize,
    budget: Arc<MemlockBudget>,
    owners: Vec<Owner>,
    buffers: Vec<PinnedBuf>,
    frozen: Vec<(SharedBuf, Text)>,
    allocations: Vec<(Allocation, Arc<CountingWaker>)>,
    /// Slots with forgotten handles.
    forgotten: usize,
    misbehaves: bool,
    pub(crate) steps: u64,
}

impl Episode {
    pub(crate) fn new(mut choices: Choices) -> Self {
        let weather = Weather::new(&mut choices);
        let limit_pages = choices.pick(&[None, None, Some(64), Some(16), Some(4)]);
        let environment = Environment {
            now: 0,
            memory: Memory::new(),
            user: User { limit_pages, charged_pages: 0, others_pages: 0 },
            weather,
            // A small number of slots causes much pressure; one more slot is the witness.
            choices,
        };
        let world = Shared::new(environment);
        let (slots, capacity, quota, budget, misbehaves) = {
            let mut guard = world.lock();
            let choices = &mut guard.environment.choices;
            (
                // The last count is enough for magazines.
                choices.pick(&[1, 2, 6, 12, 64]),
                choices.pick(&[4096, 4096, 16 << 10]),
                choices.pick(&[None, None, None, Some(2)]),
                choices.pick(&[None, None, Some(32 << 10), Some(256 << 10)]),
                choices.once_in(4),
            )
        };
        let builder =
            Pool::builder().class(capacity, slots + 1).backing(Backing::Require(Pages::Base));
        let builder = match quota {
            Some(quota) => builder.sender_quota(quota),
            None => builder,
        };
        let pool = builder.build().expect("a small pool");
        let witness = pool.try_alloc(1).expect("a slot is free");
        world.lock().environment.memory.add_pool(witness);
        Self {
            world,
            pool: Some(pool),
            slots,
            capacity,
            budget: Arc::new(MemlockBudget::new(budget)),
            owners: Vec::new(),
            buffers: Vec::new(),
            frozen: Vec::new(),
            allocations: Vec::new(),
            forgotten: 0,
            misbehaves,
            steps: 0,
        }
    }

    fn choose<R>(&self, choice: impl FnOnce(&mut Choices) -> R) -> R {
        choice(&mut self.world.lock().environment.choices)
    }

    fn below(&self, end: usize) -> usize {
        self.choose(|choices| choices.below(end))
    }

    fn once_in(&self, times: usize) -> bool {
        self.choose(|choices| choices.once_in(times))
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.choose(|choices| choices.is_exhausted())
    }

    pub(crate) fn into_choices(self) -> Choices {
        std::mem::replace(&mut self.world.lock().environment.choices, Choices::random(0))
    }

    /// One participant acts.
    pub(crate) fn step(&mut self) {
        self.steps += 1;
        match self.below(64) {
            0..24 => self.pass_time(),
            24..44 => self.send(1),
            44..48 => {
                let count = 2 + self.below(4);
                self.send(count);
            }
            48..52 => self.owned(|owner, _| owner.reap()),
            52..55 => self.owned(Owner::ask),
            55 => self.owned(|owner, _| owner.flush()),
            56 => self.owned(|owner, _| owner.fetch(4)),
            57 => {
                let misbehaves = self.misbehaves && self.once_in(4);
                if self.once_in(4) {
                    self.owned(|owner, _| owner.poll_drain(misbehaves));
                } else {
                    self.owned(|owner, which| owner.poll(which, misbehaves));
                }
            }
            58 => self.hold_buffers(),
            59 => self.allocate(),
            60 => self.wait(),
            61 => self.disturb(),
            62 => self.owned(|owner, _| owner.look()),
            _ => self.begin_or_end(),
        }
        self.world.lock().environment.memory.check();
        if self.steps.is_multiple_of(64) {
            self.audit();
        }
    }

    fn pass_time(&mut self) {
        self.world.lock().begin_call();
        for _ in 0..=self.below(8) {
            if !self.world.advance(FOR_EVER) {
                break;
            }
        }
    }

    /// A random owner acts on a random send.
    fn owned(&mut self, body: impl FnOnce(&mut Owner, usize)) {
        if self.owners.is_empty() {
            return self.open();
        }
        let at = self.below(self.owners.len());
        let which = self.below(256);
        body(&mut self.owners[at], which);
    }

    fn audit(&self) {
        let Some(pool) = &self.pool else { return };
        let audit = pool.audit();
        assert!(audit.is_clean(), "{audit}");
    }

    /// A new connection.
    fn open(&mut self) {
        if self.owners.len() == MAX_OWNERS {
            return;
        }
        let (socket, config, optmem_max, id) = self.choose(|choices| {
            let first = choices.pick(&[0, 0, u32::MAX, u32::MAX - 10, 1 << 31]);
            let first = first.wrapping_sub(choices.below(20) as u32);
            let optmem_max = choices.pick(&[128 << 10, 20 << 10, 832 * 4, 832]);
            let believed = choices.pick(&[optmem_max, 128 << 10]);
            let notifications = Notifications::new(first, optmem_max);
            let send_room = choices.pick(&[16 << 10, 64 << 10, 256 << 10, 1 << 20]);
            let wire = if choices.once_in(4) {
                Wire::Datagrams(Datagrams::new(send_room))
            } else {
                let receive_room = choices.pick(&[4 << 10, 64 << 10, 1 << 20]);
                let mut stream = Stream::new(send_room, receive_room);
                let pause = choices.pick(&[MILLISECOND, 5 * MILLISECOND, 200 * MILLISECOND]);
                let pace = Some((choices.pick(&[1000, 4096, 64 << 10]), pause));
                stream.pace(pace.filter(|_| choices.once_in(4)));
                match choices.below(32) {
                    30 => stream.refuses = true,
                    31 => stream.ignores = true,
                    _ => {}
                }
                Wire::Stream(stream)
            };
            let config = Config {
                threshold_bytes: choices.pick(&[1, 4096, 16 << 10]),
                max_in_flight_bytes: choices.pick(&[64 << 20, 64 << 10, 10_000]),
                max_in_flight_sends: choices.pick(&[4096, 8, 1]),
                on_release: choices.pick(&[
                    OnRelease::Recycle,
                    OnRelease::Recycle,
                    OnRelease::Return,
                ]),
                observe_route: choices.once_in(4),
                linger: Duration::from_millis(choices.pick(&[10, 1000, 30_000])),
                max_hold: choices.pick(&[None, None, None, Some(Duration::from_millis(100))]),
                release_times: choices.once_in(4),
            };
            let wraps = choices.pick(&[0_u64, 1, 2]) << 32;
            let mut socket = Socket::new(wire, notifications);
            socket.linger = choices.pick(&[Linger::Off, Linger::Users]);
            (socket, config, believed as u32, u64::from(first) + wraps)
        });
        let kernel = SimKernel::open(&self.world, socket);
        self.adopt(kernel, config, optmem_max, id);
    }

    fn adopt(&mut self, kernel: SimKernel, config: Config, optmem_max: u32, id: u64) {
        let place = (kernel.number(), __internals::Kernel::transport(&kernel));
        let budget = Arc::clone(&self.budget);
        let core = Core::new(kernel, config, None, budget, optmem_max, NotificationId(id));
        self.owners.push(Owner::new(&self.world, core, place, &config));
    }

    /// A payload, its contents, and whether it ends in unreadable memory.
    fn payload(&mut self) -> (Payload, Text, bool) {
        let kind = self.below(16);
        let len = self.choose(|choices| {
            let full = choices.pick(&[4096, 4096, 4096, 8192, 16 << 10, 100, 1, 30_000, 0]);
            // Must show whether the send was accepted when user code panics.
            if full > 0 && choices.once_in(4) { 1 + choices.below(full) } else { full }
        });
        let len = if self.misbehaves { len.max(1) } else { len };
        match kind {
            0..10 => {
                let buffer = self.buffers.pop();
                let pool = self.pool.as_ref();
                let buffer = buffer.or_else(|| pool.and_then(|pool| pool.try_alloc(1).ok()));
                if let Some(mut buffer) = buffer {
                    let text =
                        self.choose(|choices| Text::new(choices, len.min(buffer.capacity())));
                    buffer.clear();
                    buffer.extend_from_slice(text.bytes());
                    return (buffer.into(), text, false);
                }
            }
            10..12 => {
                if let Some(at) = (!self.frozen.is_empty()).then(|| self.below(self.frozen.len())) {
                    let (shared, text) = &self.frozen[at];
                    let len = len.min(text.len);
                    return (shared.slice(..len).into(), text.part(0, len), false);
                }
            }
            12 => {
                let text = self.choose(|choices| Text::new(choices, len));
                return (Arc::<[u8]>::from(text.bytes()).into(), text, false);
            }
            13 | 14 => {
                if let Some(mapped) = self.mapped(len.min(BLOCK_BYTES)) {
                    return mapped;
                }
            }
            _ => {}
        }
        let text = self.choose(|choices| Text::new(choices, len));
        (text.bytes().into(), text, false)
    }

    fn mapped(&mut self, len: usize) -> Option<(Payload, Text, bool)> {
        let mut world = self.world.lock();
        let Environment { memory, choices, .. } = &mut world.environment;
        let text = Text::new(choices, len);
        let hole = (len > 0 && choices.once_in(16)).then(|| choices.below(len));
        let (block, start) = memory.take_block(text, hole)?;
        let misbehaves = self.misbehaves && choices.once_in(8);
        drop(world);
        let owner = Arc::new(BlockOwner { world: self.world.clone(), block, misbehaves });
        let start = std::ptr::with_exposed_provenance(start);
        // SAFETY: the block is mapped as long as the simulation lives, and unwritten until the drop
        // of its owner.
        let slice = unsafe { MappedSlice::from_raw_parts(owner, start, len) };
        Some((slice.into(), text, hole.is_some()))
    }

    fn send(&mut self, count: usize) {
        if self.owners.is_empty() {
            return self.open();
        }
        let at = self.below(self.owners.len());
        let (mut payloads, mut texts, mut has_hole) = (Vec::new(), Vec::new(), false);
        for _ in 0..count {
            let (payload, text, hole) = self.payload();
            payloads.push(payload);
            texts.push(text);
            has_hole |= hole;
        }
        let patience = match self.below(16) {
            15 if self.owners[at].is_cooperative() => Patience::Endless,
            14 => Patience::UpTo(
                self.choose(|choices| choices.pick(&[0, 1, 100, 5000].map(Duration::from_millis))),
            ),
            _ => Patience::None,
        };
        let back = self.owners[at].send(payloads, &texts, has_hole, patience);
        for payload in back {
            match payload {
                Payload::Pinned(buffer) => self.buffers.push(buffer),
                other => _ = panics::guarded(|| drop(other)),
            }
        }
    }

    /// Buffers are frozen, thawed, dropped and, rarely, forgotten.
    fn hold_buffers(&mut self) {
        match self.below(8) {
            0 => self.buffers.clear(),
            1 => self.frozen.clear(),
            2 if self.once_in(32) && self.forgotten + 1 < self.slots => {
                if let Some(buffer) = self.buffers.pop() {
                    std::mem::forget(buffer);
                    self.forgotten += 1;
                }
            }
            3 => {
                if let Some((shared, text)) = self.frozen.pop() {
                    match shared.try_into_pinned() {
                        Ok(buffer) => {
                            assert!(buffer.ends_with(text.bytes()));
                            self.buffers.push(buffer);
                        }
                        Err(shared) => self.frozen.push((shared, text)),
                    }
                }
            }
            4 => {
                if let Some((shared, text)) = self.frozen.last().cloned() {
                    assert!(shared[..] == *text.bytes(), "a frozen buffer changed");
                    self.frozen.push((shared, text));
                }
            }
            _ => {
                let Some(pool) = &self.pool else { return };
                let Ok(mut buffer) = pool.try_alloc(1) else { return };
                let text = self.choose(|choices| Text::new(choices, self.capacity));
                buffer.extend_from_slice(text.bytes());
                if self.frozen.len() < 4 {
                    self.frozen.push((buffer.freeze(), text));
                } else {
                    self.buffers.push(buffer);
                }
            }
        }
    }

    /// Waits for slots with futures.
    fn allocate(&mut self) {
        match self.below(4) {
            0 => self.queue(),
            1 => drop(self.allocations.pop()),
            _ => {}
        }
        self.poll_allocations();
    }

    fn queue(&mut self) {
        let Some(pool) = self.pool.clone().filter(|_| self.allocations.len() < 3) else { return };
        let future: Allocation = Box::pin(async move { pool.alloc_async(1).await });
        self.allocations.push((future, CountingWaker::new(false)));
    }

    fn poll_allocations(&mut self) {
        for at in (0..self.allocations.len()).rev() {
            let (future, counter) = &mut self.allocations[at];
            let waker = Waker::from(Arc::clone(counter));
            counter.reset();
            self.world.lock().begin_call();
            let context = &mut Context::from_waker(&waker);
            match panics::guarded(|| future.as_mut().poll(context)) {
                Some(Poll::Pending) => {}
                Some(Poll::Ready(result)) => {
                    drop(self.allocations.swap_remove(at));
                    self.buffers.extend(result.ok());
                }
                // The future may not be polled again.
                None => drop(self.allocations.swap_remove(at)),
            }
        }
    }

    fn wait(&mut self) {
        let limit = self.choose(|choices| choices.pick(&[0, 1, 100, 5000]));
        let mut limit = Some(Duration::from_millis(limit));
        let for_ever = self.once_in(4);
        let drains = self.once_in(2);
        self.owned(|owner, which| {
            if for_ever && owner.is_cooperative() {
                limit = None;
            }
            if drains { owner.drain(limit) } else { owner.wait(which, limit) }
        });
    }

    /// The network, the peer, or another user of this machine acts.
    fn disturb(&mut self) {
        if self.owners.is_empty() {
            return;
        }
        let number = self.owners[self.below(self.owners.len())].number;
        let mut world = self.world.lock();
        let what = world.environment.choices.below(32);
        let pages = world.environment.choices.below(64);
        let now = world.environment.now;
        match what {
            0..4 => world.environment.weather = Weather::new(&mut world.environment.choices),
            4..8 => world.environment.user.others_pages = pages,
            _ => {}
        }
        let (socket, environment) = world.socket(number);
        let until = now + environment.choices.pick(&[MILLISECOND, SECOND, 20 * SECOND]);
        match (&mut socket.wire, what) {
            (Wire::Stream(_), 8) => socket.reset(ECONNRESET, environment),
            (Wire::Stream(stream), 9) => stream.vanish(now),
            (Wire::Stream(stream), 10) => stream.stall(FOR_EVER),
            (Wire::Stream(stream), 11..16) => stream.stall(until),
            (Wire::Datagrams(datagrams), 8..12) => datagrams.stick(until),
            (Wire::Datagrams(datagrams), 12..16) => datagrams.pending_error = Some(ECONNREFUSED),
            // The notification of a foreign user's ids must arrive: the library has no further sign
            // of them.
            (_, 16) if !socket.is_shifted => socket.deaf |= socket.notifications.pop().is_some(),
            (_, 17) => {
                // The ids of another user, far ahead: closer ids would look like the sender's own.
                let lo = socket.notifications.next_id().wrapping_add(1 << 31);
                (socket.deaf, socket.is_shifted) = (true, true);
                socket.notifications.push(Record::Released { lo, hi: lo, copied: false });
                socket.notifications.skip_ids(environment.choices.pick(&[0, 1, 2]));
                socket.events.notification();
            }
            (_, 18) => socket.notifications.filter_bytes = environment.choices.pick(&[0, 64]),
            (_, 19..24) => {
                socket.notifications.push(panics::foreign());
                socket.events.notification();
            }
            (_, 24) => (socket.refused, socket.deaf) = (true, true),
            _ => {}
        }
    }

    /// Opens and ends connections, in every way.
    fn begin_or_end(&mut self) {
        let what = self.below(32);
        if what < 8 || self.owners.is_empty() {
            return self.open();
        }
        let at = self.below(self.owners.len());
        let limit = Duration::from_millis(self.choose(|choices| choices.pick(&[0, 10, 5000])));
        match what {
            8..14 => {
                let first = self.once_in(2);
                self.owners.swap_remove(at).drop(first);
            }
            14..18 if !self.owners[at].is_split => self.owners.swap_remove(at).close(limit, false),
            18 | 19 => self.owners[at].abort(),
            20..22 if !self.owners[at].is_split => self.owners[at].split(),
            22..26 => match self.owners.swap_remove(at).into_parts() {
                Ok((kernel, id)) => {
                    let config = Config { threshold_bytes: 1, ..Config::default() };
                    self.adopt(kernel, config, 128 << 10, id);
                }
                Err(owner) => self.owners.push(*owner),
            },
            26 if self.once_in(16) => {
                // The waiting futures keep the pool.
                self.pool = None;
            }
            _ => {}
        }
    }

    /// Tasks wait for slots that are all taken; then some of the slots are sent.
    fn crowd(&mut self) {
        self.run_to_idle();
        self.owners.iter().for_each(Owner::reap);
        let Some(pool) = &self.pool else { return };
        self.buffers.extend(std::iter::from_fn(|| pool.try_alloc(1).ok()));
        self.queue();
        self.poll_allocations();
        // The reaper has no sender left to drive.
        self.run_to_idle();
        for _ in 0..self.below(8) {
            let count = 1 + self.below(3);
            self.send(count);
        }
    }

    /// The network and the peers become fast, every sender is ended, and every slot must be free.
    pub(crate) fn finish(mut self) -> Choices {
        {
            let mut world = self.world.lock();
            let World { environment, sockets, .. } = &mut *world;
            environment.weather = Weather::default();
            environment.user.others_pages = 0;
            for socket in sockets.iter_mut().flatten() {
                socket.notifications.filter_bytes = 0;
                socket.refused = false;
                if let Wire::Stream(stream) = &mut socket.wire {
                    stream.stall(0);
                    stream.pace(None);
                }
            }
        }
        if self.once_in(2) {
            self.crowd();
        }
        self.run_to_idle();
        self.owners.iter().for_each(Owner::check_woken);
        self.check_waiters();
        self.allocations.clear();
        self.buffers.clear();
        self.frozen.clear();
        while let Some(mut owner) = self.owners.pop() {
            if self.once_in(2) && owner.is_cooperative() {
                owner.drain(None);
            }
            let first = self.once_in(2);
            if self.once_in(2) && !owner.is_split {
                owner.close(Duration::from_secs(1000), true);
            } else {
                owner.drop(first);
            }
        }
        self.run_to_idle();
        self.check_all_free();
        self.into_choices()
    }

    fn run_to_idle(&self) {
        self.world.lock().begin_call();
        while self.world.advance(FOR_EVER) {}
    }

    /// Checks that no waiter sleeps beside a free slot: each free slot belongs to a woken waiter.
    fn check_waiters(&self) {
        let woken = self.allocations.iter().filter(|(_, counter)| counter.is_woken()).count();
        let Some(pool) = self.pool.as_ref().filter(|_| woken < self.allocations.len()) else {
            return;
        };
        let stats = pool.stats();
        assert!(stats.free() <= woken, "a waiter sleeps beside a free slot");
        let is_unwatched = self.world.lock().is_unwatched;
        assert!(is_unwatched || stats.in_flight() == 0, "a waiter sleeps beside a released slot");
    }

    fn check_all_free(&mut self) {
        let mut world = self.world.lock();
        let open = world.sockets.iter().flatten().count();
        assert_eq!(open, 0, "a sender never ends");
        assert_eq!(world.environment.user.charged_pages, 0);
        let witnesses = world.environment.memory.take_witnesses();
        drop(world);
        drop(witnesses);
        assert_eq!(self.budget.charged_bytes(), 0, "the budget of locked memory");
        let Some(pool) = &self.pool else { return };
        let audit = pool.audit();
        assert!(audit.is_clean(), "{audit}");
        let stats = audit.stats;
        assert_eq!(
            [stats.free(), stats.owned(), stats.in_flight(), stats.quarantined()],
            [self.slots + 1 - self.forgotten, self.forgotten, 0, 0],
        );
        assert_eq!(self.world.lock().environment.memory.blocks_used(), 0);
    }
}
