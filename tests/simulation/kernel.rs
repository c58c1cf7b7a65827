//! The library's interface to the kernel, implemented by the simulation.

use std::{
    io, mem,
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use pinbuf::__internals::{
    Batch, Edges, Interest, IoVec, Kernel, Ready, Reclaim, Record, SendFlags, Token, Transport,
};

use crate::{
    environment::Environment,
    socket::{Events, Keeper, Linger, Socket, Wire},
    stream::{EMFILE, ENOMEM, EPERM},
    world::Shared,
};

/// A socket of the simulation; dropping it closes the socket.
pub(crate) struct SimKernel {
    world: Shared,
    number: usize,
    transport: Transport,
}

impl SimKernel {
    pub(crate) fn open(world: &Shared, socket: Socket) -> Self {
        let transport = socket.transport();
        let mut guard = world.lock();
        let number = guard.sockets.iter().position(Option::is_none).unwrap_or(guard.sockets.len());
        if number == guard.sockets.len() {
            guard.sockets.push(None);
        }
        guard.sockets[number] = Some(socket);
        drop(guard);
        Self { world: world.clone(), number, transport }
    }

    pub(crate) fn number(&self) -> usize {
        self.number
    }

    fn with<R>(&self, body: impl FnOnce(&mut Socket, &mut Environment) -> R) -> R {
        let mut world = self.world.lock();
        let (socket, environment) = world.socket(self.number);
        body(socket, environment)
    }

    fn set_keeper(&self, keeper: Option<Keeper>) -> Option<Keeper> {
        self.with(|socket, _| mem::replace(&mut socket.keeper, keeper))
    }
}

impl Kernel for SimKernel {
    fn transport(&self) -> Transport {
        self.transport
    }

    fn send(&self, memory: &[IoVec], flags: SendFlags) -> io::Result<usize> {
        let mut world = self.world.lock();
        let (socket, environment) = world.socket(self.number);
        let result = socket.send(memory, flags, environment);
        drop(world);
        // A thread that visits meanwhile counts the offered bytes as given.
        let is_met = self.world.meet(self.number);
        if flags.zerocopy && (result.is_ok() || is_met) {
            self.world.lock().environment.memory.give(memory);
        }
        result
    }

    fn read_batch(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch> {
        let mut world = self.world.lock();
        let (socket, environment) = world.socket(self.number);
        if socket.refused {
            return Err(io::Error::from_raw_os_error(EPERM));
        }
        let mut batch = Batch { messages: 0, truncated: false, drained: true };
        let cut = environment.choices.permille(environment.weather.cut);
        if cut && environment.choices.once_in(2) {
            socket.failures.push(ENOMEM);
            socket.deaf = true;
            return Err(io::Error::from_raw_os_error(ENOMEM));
        }
        while let Some(record) = socket.notifications.pop() {
            batch.messages += 1;
            socket.deaf |= cut;
            if cut && batch.messages == 1 {
                // The message is lost, or fitted into the smaller room.
                batch.truncated = true;
                if !socket.is_shifted && environment.choices.once_in(2) {
                    continue;
                }
            }
            on_record(record);
            if batch.messages == 32 {
                batch.drained = false;
                break;
            }
        }
        Ok(batch)
    }

    fn wait(&self, interest: Interest, timeout: Option<Duration>) -> io::Result<Ready> {
        let deadline = self.world.deadline(timeout);
        loop {
            let mut ready = self.with(|socket, _| socket.state());
            ready.writable &= interest.writable;
            if ready != Ready::default() || !self.world.waits(deadline) {
                return Ok(ready);
            }
        }
    }

    fn edges(&self) -> io::Result<Option<Arc<dyn Edges>>> {
        self.with(|socket, environment| {
            if environment.choices.permille(environment.weather.errors) {
                socket.failures.push(EMFILE);
                return Err(io::Error::from_raw_os_error(EMFILE));
            }
            assert!(!mem::replace(&mut socket.has_edges, true), "a second set of descriptors");
            // The first wait reports the present state.
            socket.events = Events { to_reaper: socket.events.to_reaper, ..Events::ALL };
            socket.is_woken = false;
            Ok(())
        })?;
        Ok(Some(Arc::new(SimEdges { world: self.world.clone(), number: self.number })))
    }

    fn optmem(&self) -> io::Result<u32> {
        self.with(|socket, _| Ok(socket.notifications.optmem() as u32))
    }

    fn unacked(&self) -> io::Result<usize> {
        self.with(|socket, _| match &socket.wire {
            Wire::Stream(stream) => Ok(stream.unacked()),
            Wire::Datagrams(_) => Err(io::ErrorKind::Unsupported.into()),
        })
    }

    fn is_over(&self) -> io::Result<bool> {
        self.with(|socket, _| Ok(socket.is_over()))
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.with(|socket, _| {
            let Wire::Stream(stream) = &mut socket.wire else { return Ok(()) };
            assert_eq!(socket.expected.pending(), 0, "the stream ends before all is sent");
            stream.shut_down()
        })
    }

    fn abort(&self) -> io::Result<()> {
        self.with(|socket, environment| {
            socket.check_patience(environment.now);
            socket.check_abort(environment.now);
            let Socket { wire, notifications, events, .. } = socket;
            let Wire::Stream(stream) = wire else {
                return Err(io::ErrorKind::Unsupported.into());
            };
            if environment.choices.permille(environment.weather.errors) {
                return Err(io::Error::from_raw_os_error(ENOMEM));
            }
            stream.abort(environment, notifications, events);
            Ok(())
        })
    }

    fn reset_on_close(&self) -> io::Result<()> {
        self.with(|socket, _| {
            socket.linger = Linger::Reset;
            Ok(())
        })
    }

    fn linger_off(&self) -> io::Result<()> {
        self.with(|socket, _| {
            socket.linger = Linger::Off;
            Ok(())
        })
    }

    fn now(&self) -> Instant {
        self.world.lock().instant()
    }

    fn watch(&self, sender: Weak<dyn Reclaim>) -> Option<Token> {
        let (watched, sends) = self.with(|socket, environment| {
            assert!(socket.keeper.is_none(), "watched twice");
            if environment.choices.permille(environment.weather.errors) {
                return (None, socket.sends);
            }
            socket.keeper = Some(Keeper::Watched(sender));
            // Looked at once in any case.
            socket.due = Some(environment.now);
            (Some(Token::default()), socket.sends)
        });
        // A waiter for a slot gets an error; the owner of a send does not.
        self.world.lock().is_unwatched |= watched.is_none() && sends;
        watched
    }

    fn adopt(&self, sender: Arc<dyn Reclaim>) -> (Token, bool) {
        self.with(|socket, environment| {
            assert!(socket.keeper.is_none(), "watched and adopted");
            let served = !environment.choices.permille(environment.weather.errors);
            socket.keeper = Some(Keeper::Owned(sender));
            (socket.served, socket.due) = (served, Some(environment.now));
            (Token::default(), served)
        })
    }

    fn unwatch(&self, _: Token) {
        // May drop the last reference to a sender, so not under the lock.
        drop(self.set_keeper(None));
    }
}

/// The descriptors of a thread that waits for changes of a socket.
struct SimEdges {
    world: Shared,
    number: usize,
}

impl SimEdges {
    fn with<R>(&self, body: impl FnOnce(&mut Socket) -> R) -> R {
        body(self.world.lock().socket(self.number).0)
    }

    /// Returns whether the sender waits for room, and its progress.
    fn progress(&self) -> Option<(bool, [u64; 2])> {
        let (core, accepted, has_unsent) = self.with(|socket| {
            let Socket { core, expected, .. } = socket;
            (core.upgrade(), expected.accepted(), expected.pending() > 0)
        });
        let core = core?;
        Some((has_unsent && core.interest().writable, [accepted, core.stats().released_calls]))
    }
}

impl Edges for SimEdges {
    fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        let deadline = self.world.deadline(timeout);
        let before = self.progress();
        loop {
            let (ready, is_woken) = self.with(|socket| {
                let events = mem::take(&mut socket.events);
                socket.events.to_reaper = events.to_reaper;
                // The state is read when the wait ends: an earlier event may be over.
                let ready = if events.is_any() { socket.state() } else { Ready::default() };
                (ready, mem::take(&mut socket.is_woken))
            });
            if ready != Ready::default() || is_woken {
                return Ok(ready);
            }
            if !self.world.waits(deadline) {
                break;
            }
            self.world.meet(self.number);
        }
        if timeout == Some(Duration::from_secs(1))
            && let (Some((_, before)), Some((wants_room, after))) = (before, self.progress())
        {
            let has_room = self.with(|socket| socket.is_writable());
            assert!(!(wants_room && has_room), "the thread sleeps although there is room");
            assert_eq!(before, after, "the thread sleeps through another thread's progress");
        }
        Ok(Ready::default())
    }

    fn wake(&self) -> io::Result<()> {
        self.with(|socket| {
            assert!(socket.waits, "woken, but no thread waits");
            socket.is_woken = true;
        });
        Ok(())
    }
}

impl Drop for SimEdges {
    fn drop(&mut self) {
        // The socket may be closed before its descriptors.
        if let Some(socket) = &mut self.world.lock().sockets[self.number] {
            socket.has_edges = false;
        }
    }
}

impl Drop for SimKernel {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        let Some(socket) = world.sockets[self.number].take() else { return };
        world.closed += 1;
        world.last_cut = match &socket.wire {
            Wire::Stream(stream) => stream.cut_at().map(|at| (at, stream.acknowledged_at)),
            Wire::Datagrams(_) => None,
        };
        drop(world);
        if thread::panicking() {
            return;
        }
        assert!(!socket.notifications.has_live(), "closed while the kernel may read sent bytes");
        assert_ne!(socket.linger, Linger::Users, "closed with the user's linger time");
        if socket.ends_in_order() {
            assert_eq!(socket.expected.pending(), 0, "an orderly end of a truncated stream");
        }
    }
}
