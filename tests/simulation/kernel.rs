//! The library's one seam to the kernel, answered by the simulation.

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
    nature::Nature,
    socket::{Care, Linger, News, Socket, Wire},
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

    fn with<R>(&self, body: impl FnOnce(&mut Socket, &mut Nature) -> R) -> R {
        let mut world = self.world.lock();
        let (socket, nature) = world.socket(self.number);
        body(socket, nature)
    }

    fn set_care(&self, care: Option<Care>) -> Option<Care> {
        self.with(|socket, _| mem::replace(&mut socket.care, care))
    }
}

impl Kernel for SimKernel {
    fn transport(&self) -> Transport {
        self.transport
    }

    fn send(&self, memory: &[IoVec], flags: SendFlags) -> io::Result<usize> {
        let mut world = self.world.lock();
        let (socket, nature) = world.socket(self.number);
        let result = socket.send(memory, flags, nature);
        drop(world);
        // A thread that comes meanwhile takes for given what is offered.
        let is_met = self.world.meet(self.number);
        if flags.zerocopy && (result.is_ok() || is_met) {
            self.world.lock().nature.memory.give(memory);
        }
        result
    }

    fn read_notes(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch> {
        let mut world = self.world.lock();
        let (socket, nature) = world.socket(self.number);
        if socket.refused {
            return Err(io::Error::from_raw_os_error(EPERM));
        }
        let mut batch = Batch { messages: 0, truncated: false, drained: true };
        let cut = nature.choices.permille(nature.weather.cut);
        if cut && nature.choices.once_in(2) {
            socket.failures.push(ENOMEM);
            socket.deaf = true;
            return Err(io::Error::from_raw_os_error(ENOMEM));
        }
        while let Some(record) = socket.notes.pop() {
            batch.messages += 1;
            socket.deaf |= cut;
            if cut && batch.messages == 1 {
                // The message is gone, or what it says was in the room there was.
                batch.truncated = true;
                if !socket.is_shifted && nature.choices.once_in(2) {
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
        self.with(|socket, nature| {
            if nature.choices.permille(nature.weather.errors) {
                socket.failures.push(EMFILE);
                return Err(io::Error::from_raw_os_error(EMFILE));
            }
            assert!(!mem::replace(&mut socket.has_edges, true), "descriptors beside those it has");
            // Its present state is what the first wait reports.
            socket.news = News { to_reaper: socket.news.to_reaper, ..News::ALL };
            socket.is_rung = false;
            Ok(())
        })?;
        Ok(Some(Arc::new(SimEdges { world: self.world.clone(), number: self.number })))
    }

    fn optmem(&self) -> io::Result<u32> {
        self.with(|socket, _| Ok(socket.notes.optmem() as u32))
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
        self.with(|socket, nature| {
            socket.check_patience(nature.now);
            socket.check_abort(nature.now);
            let Socket { wire, notes, news, .. } = socket;
            let Wire::Stream(stream) = wire else {
                return Err(io::ErrorKind::Unsupported.into());
            };
            if nature.choices.permille(nature.weather.errors) {
                return Err(io::Error::from_raw_os_error(ENOMEM));
            }
            stream.abort(nature, notes, news);
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
        let (watched, sends) = self.with(|socket, nature| {
            assert!(socket.care.is_none(), "watched twice");
            if nature.choices.permille(nature.weather.errors) {
                return (None, socket.sends);
            }
            socket.care = Some(Care::Watched(sender));
            // Looked at once in any case.
            socket.due = Some(nature.now);
            (Some(Token::default()), socket.sends)
        });
        // A thread that waits for a slot is told; the owner of a send is not.
        self.world.lock().is_unwatched |= watched.is_none() && sends;
        watched
    }

    fn adopt(&self, sender: Arc<dyn Reclaim>) -> (Token, bool) {
        self.with(|socket, nature| {
            assert!(socket.care.is_none(), "watched and adopted");
            let served = !nature.choices.permille(nature.weather.errors);
            socket.care = Some(Care::Owned(sender));
            (socket.served, socket.due) = (served, Some(nature.now));
            (Token::default(), served)
        })
    }

    fn unwatch(&self, _: Token) {
        // What this drops may be the last of a sender: not under the lock.
        drop(self.set_care(None));
    }
}

/// What a thread waits by for changes of a socket.
struct SimEdges {
    world: Shared,
    number: usize,
}

impl SimEdges {
    fn with<R>(&self, body: impl FnOnce(&mut Socket) -> R) -> R {
        body(self.world.lock().socket(self.number).0)
    }

    /// Whether the sender waits for room, and how far it has come.
    fn progress(&self) -> Option<(bool, [u64; 2])> {
        let (core, accepted, has_rest) = self.with(|socket| {
            let Socket { core, expected, .. } = socket;
            (core.upgrade(), expected.accepted(), expected.pending() > 0)
        });
        let core = core?;
        Some((has_rest && core.interest().writable, [accepted, core.stats().released_calls]))
    }
}

impl Edges for SimEdges {
    fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        let deadline = self.world.deadline(timeout);
        let before = self.progress();
        loop {
            let (ready, is_rung) = self.with(|socket| {
                let news = mem::take(&mut socket.news);
                socket.news.to_reaper = news.to_reaper;
                // The news is looked at anew when it is told: it may be over.
                let ready = if news.is_any() { socket.state() } else { Ready::default() };
                (ready, mem::take(&mut socket.is_rung))
            });
            if ready != Ready::default() || is_rung {
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
            assert!(!(wants_room && has_room), "sleeps beside the room that it waits for");
            assert_eq!(before, after, "sleeps through what another thread has done");
        }
        Ok(Ready::default())
    }

    fn wake(&self) -> io::Result<()> {
        self.with(|socket| {
            assert!(socket.waits, "woken, but no thread waits");
            socket.is_rung = true;
        });
        Ok(())
    }
}

impl Drop for SimEdges {
    fn drop(&mut self) {
        // The socket may be closed before.
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
        assert!(!socket.notes.has_live(), "closed while the kernel may read what was sent");
        assert_ne!(socket.linger, Linger::Users, "closed with the user's linger time");
        if socket.ends_in_order() {
            assert_eq!(socket.expected.pending(), 0, "an orderly end of what was cut short");
        }
    }
}
