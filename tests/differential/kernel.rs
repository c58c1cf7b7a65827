//! The interface to the kernel, without side effects of any call except sends.

use std::{
    fmt::Debug,
    io, mem,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use pinbuf::__internals::{
    Batch, Edges, Interest, IoVec, Kernel, Ready, Reclaim, Record, SendFlags, Token, Transport,
};

use crate::{
    socket::{Events, Keeper, Linger, Socket, Wire},
    world::Shared,
};

/// A socket of the simulation; dropping it closes the socket.
pub(crate) struct SimKernel {
    pub(crate) world: Shared,
    pub(crate) number: usize,
    pub(crate) transport: Transport,
}

impl SimKernel {
    fn with<R>(&self, body: impl FnOnce(&mut Socket) -> R) -> R {
        body(self.world.lock().socket(self.number))
    }

    /// The answer to a read, for the trace.
    fn tell<T: Debug>(&self, what: &str, answer: T) -> T {
        self.world.lock().read(self.number, what, answer)
    }

    fn set_keeper(&self, keeper: Option<Keeper>) -> Option<Keeper> {
        self.with(|socket| mem::replace(&mut socket.keeper, keeper))
    }
}

impl Kernel for SimKernel {
    fn transport(&self) -> Transport {
        self.transport
    }

    fn send(&self, memory: &[IoVec], flags: SendFlags) -> io::Result<usize> {
        self.world.lock().send(self.number, memory, flags)
    }

    fn read_batch(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch> {
        let mut messages = 0;
        while messages < 32 {
            let record = self.with(|socket| socket.notifications.pop());
            let Some(record) = self.tell("the queue", record) else { break };
            on_record(record);
            messages += 1;
        }
        Ok(Batch { messages, truncated: false, drained: messages < 32 })
    }

    fn wait(&self, interest: Interest, timeout: Option<Duration>) -> io::Result<Ready> {
        let deadline = self.world.deadline(timeout);
        loop {
            let mut ready = self.with(|socket| socket.state());
            ready.writable &= interest.writable;
            if ready != Ready::default() || !self.world.waits(deadline) {
                return Ok(ready);
            }
        }
    }

    fn edges(&self) -> io::Result<Option<Arc<dyn Edges>>> {
        self.with(|socket| socket.events = Events::ALL);
        Ok(Some(Arc::new(SimEdges { world: self.world.clone(), number: self.number })))
    }

    fn optmem(&self) -> io::Result<u32> {
        Ok(self.tell("option memory", self.with(|socket| socket.notifications.optmem() as u32)))
    }

    fn unacked(&self) -> io::Result<usize> {
        self.with(|socket| match &socket.wire {
            Wire::Stream(stream) => Ok(stream.unacked()),
            Wire::Datagrams(_) => Err(io::ErrorKind::Unsupported.into()),
        })
    }

    // newer: benches/differential.sh removes methods that an earlier revision lacks
    fn is_over(&self) -> io::Result<bool> {
        // An earlier sender does not look for an end by itself.
        Ok(false)
    }
    // newer end

    fn shutdown_write(&self) -> io::Result<()> {
        self.with(|socket| match &mut socket.wire {
            Wire::Stream(stream) => stream.shut_down(),
            Wire::Datagrams(_) => Ok(()),
        })
    }

    fn abort(&self) -> io::Result<()> {
        self.world.lock().abort(self.number)
    }

    fn reset_on_close(&self) -> io::Result<()> {
        self.with(|socket| socket.linger = Linger::Reset);
        Ok(())
    }

    fn linger_off(&self) -> io::Result<()> {
        self.with(|socket| socket.linger = Linger::Off);
        Ok(())
    }

    fn now(&self) -> Instant {
        self.world.lock().instant()
    }

    fn watch(&self, sender: Weak<dyn Reclaim>) -> Option<Token> {
        drop(self.set_keeper(Some(Keeper::Watched(sender))));
        Some(Token::default())
    }

    fn adopt(&self, sender: Arc<dyn Reclaim>) -> (Token, bool) {
        drop(self.set_keeper(Some(Keeper::Owned(sender))));
        (Token::default(), true)
    }

    fn unwatch(&self, _: Token) {
        // May drop the last handle of a sender, so not under the lock.
        drop(self.set_keeper(None));
    }
}

impl Drop for SimKernel {
    fn drop(&mut self) {
        let socket = self.world.lock().sockets[self.number].take();
        drop(socket);
    }
}

/// The descriptors of a thread that waits for changes of a socket.
struct SimEdges {
    world: Shared,
    number: usize,
}

impl Edges for SimEdges {
    fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        let deadline = self.world.deadline(timeout);
        loop {
            let ready = {
                let mut world = self.world.lock();
                let socket = world.socket(self.number);
                let events = mem::take(&mut socket.events);
                if events.is_any() { socket.state() } else { Ready::default() }
            };
            if ready != Ready::default() || !self.world.waits(deadline) {
                return Ok(ready);
            }
        }
    }

    /// The only thread cannot wake itself.
    fn wake(&self) -> io::Result<()> {
        Ok(())
    }
}
