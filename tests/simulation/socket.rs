//! A simulated socket: the given bytes, the events, and the reaper.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use pinbuf::__internals::{Core, IoVec, Ready, Reclaim, SendFlags, Transport};

use crate::{
    datagrams::Datagrams, environment::Environment, kernel::SimKernel, memory::Text,
    notifications::Notifications, stream::Stream,
};

/// Bytes that the owner has sent and the kernel has not taken, in order.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    parts: VecDeque<Text>,
    /// Taken bytes of the first part.
    used: usize,
    accepted: u64,
}

impl Expected {
    pub(crate) fn push(&mut self, parts: &[Text]) {
        self.parts.extend(parts);
    }

    /// The owner got its last send back: no byte of it may be taken.
    pub(crate) fn withdraw(&mut self, parts: &[Text]) {
        let untouched =
            self.parts.len() > parts.len() || (self.parts.len() == parts.len() && self.used == 0);
        assert!(untouched, "refused as a whole, but partly accepted");
        self.parts.truncate(self.parts.len() - parts.len());
    }

    /// Bytes not taken yet never will be.
    pub(crate) fn forget(&mut self) {
        self.parts.clear();
        self.used = 0;
    }

    /// The next bytes, at most `most`.
    pub(crate) fn take(&mut self, most: usize) -> Text {
        self.skip_empty();
        let front = self.parts.front().expect("the library sends only the owner's bytes");
        let len = most.min(front.len - self.used);
        let text = front.part(self.used, len);
        self.used += len;
        self.accepted += len as u64;
        if self.used == front.len {
            self.parts.pop_front();
            self.used = 0;
        }
        text
    }

    pub(crate) fn skip_empty(&mut self) {
        while self.parts.front().is_some_and(|part| part.len == 0) {
            self.parts.pop_front();
        }
    }

    /// Bytes not taken yet.
    pub(crate) fn pending(&self) -> usize {
        self.parts.iter().map(|part| part.len).sum::<usize>() - self.used
    }

    /// Bytes taken so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }
}

/// Events since the last look of a waiting thread, and of the reaper.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Events {
    pub(crate) writable: bool,
    pub(crate) error: bool,
    pub(crate) hangup: bool,
    pub(crate) to_reaper: bool,
}

impl Events {
    pub(crate) const ALL: Self =
        Self { writable: true, error: true, hangup: true, to_reaper: true };

    pub(crate) fn room(&mut self) {
        (self.writable, self.to_reaper) = (true, true);
    }

    pub(crate) fn notification(&mut self) {
        (self.error, self.to_reaper) = (true, true);
    }

    /// Returns `true` if there is an event for waiting threads.
    pub(crate) fn is_any(self) -> bool {
        self.writable || self.error || self.hangup
    }

    pub(crate) fn end(&mut self) {
        *self = Self::ALL;
    }
}

/// The reaper's reference to the sender.
#[derive(Clone)]
pub(crate) enum Keeper {
    Watched(Weak<dyn Reclaim>),
    Owned(Arc<dyn Reclaim>),
}

impl Keeper {
    pub(crate) fn sender(&self) -> Option<Arc<dyn Reclaim>> {
        match self {
            Self::Watched(sender) => sender.upgrade(),
            Self::Owned(sender) => Some(Arc::clone(sender)),
        }
    }
}

/// `SO_LINGER`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Linger {
    Off,
    /// The user's setting: the close blocks, or resets.
    Users,
    /// The close resets.
    Reset,
}

pub(crate) enum Wire {
    Stream(Stream),
    Datagrams(Datagrams),
}

pub(crate) struct Socket {
    pub(crate) wire: Wire,
    pub(crate) notifications: Notifications,
    pub(crate) expected: Expected,
    pub(crate) events: Events,
    pub(crate) keeper: Option<Keeper>,
    /// The time of the reaper's next look without an event.
    pub(crate) due: Option<u64>,
    /// The reaper has a thread.
    pub(crate) served: bool,
    /// The sender, which another thread may drive during every call.
    pub(crate) core: Weak<Core<SimKernel>>,
    /// `true` if a thread has descriptors to wait with, and was woken since its last wait.
    pub(crate) has_edges: bool,
    pub(crate) is_woken: bool,
    /// The limit of silence of the peer; `true` if the owner ends the sender itself.
    pub(crate) max_hold: Option<Duration>,
    pub(crate) ends: bool,
    /// `true` during an owner's send, and during a call with waits.
    pub(crate) sends: bool,
    pub(crate) waits: bool,
    /// `true` if a call found no room since the start of the owner's last send.
    pub(crate) was_full: bool,
    /// Error numbers of failed calls since the last look.
    pub(crate) failures: Vec<i32>,
    /// Cause of poison: another user read or caused a notification, a message was truncated, or a
    /// read of the error queue failed.
    pub(crate) deaf: bool,
    /// A foreign user has taken ids, and a notification on the error queue tells of them. Later
    /// notifications name other calls than the sender assumes.
    pub(crate) is_shifted: bool,
    pub(crate) linger: Linger,
    /// The linger time of a dropped sender, and the time of the drop.
    pub(crate) dropped: Option<(u64, u64)>,
    /// A system-call filter forbids reads of the error queue.
    pub(crate) refused: bool,
}

impl Socket {
    pub(crate) fn new(wire: Wire, notifications: Notifications) -> Self {
        Self {
            wire,
            notifications,
            expected: Expected::default(),
            events: Events::default(),
            keeper: None,
            due: None,
            served: true,
            core: Weak::new(),
            has_edges: false,
            is_woken: false,
            max_hold: None,
            ends: false,
            sends: false,
            waits: false,
            was_full: false,
            failures: Vec::new(),
            deaf: false,
            is_shifted: false,
            linger: Linger::Off,
            dropped: None,
            refused: false,
        }
    }

    pub(crate) fn transport(&self) -> Transport {
        match self.wire {
            Wire::Stream(_) => Transport::Stream,
            Wire::Datagrams(_) => Transport::Datagram,
        }
    }

    pub(crate) fn send(
        &mut self,
        memory: &[IoVec],
        flags: SendFlags,
        environment: &mut Environment,
    ) -> io::Result<usize> {
        let result = self.call(memory, flags, environment);
        if result.is_ok() && environment.choices.once_in(8) {
            // The notification may come before the call returns.
            for _ in 0..8 {
                self.turn(environment);
            }
        }
        result
    }

    /// As [`send`](Self::send), with nothing else happening during the call.
    pub(crate) fn call(
        &mut self,
        memory: &[IoVec],
        flags: SendFlags,
        environment: &mut Environment,
    ) -> io::Result<usize> {
        let Self { wire, notifications, expected, events, .. } = self;
        let result = match wire {
            Wire::Stream(stream) => {
                stream.send(memory, flags, environment, notifications, expected)
            }
            Wire::Datagrams(all) => {
                all.send(memory, flags, environment, notifications, expected, events)
            }
        };
        if let Err(error) = &result {
            self.was_full |= error.kind() == io::ErrorKind::WouldBlock;
            self.failures.extend(error.raw_os_error());
        }
        result
    }

    /// Lets one event happen, if one is possible now.
    pub(crate) fn turn(&mut self, environment: &mut Environment) -> bool {
        let Self { wire, notifications, events, .. } = self;
        match wire {
            Wire::Stream(stream) => stream.turn(environment, notifications, events),
            Wire::Datagrams(datagrams) => datagrams.turn(environment, notifications, events),
        }
    }

    pub(crate) fn next_time(&self) -> u64 {
        match &self.wire {
            Wire::Stream(stream) => stream.next_time(),
            Wire::Datagrams(datagrams) => datagrams.next_time(),
        }
    }

    pub(crate) fn is_writable(&self) -> bool {
        match &self.wire {
            Wire::Stream(stream) => stream.is_writable(),
            Wire::Datagrams(datagrams) => datagrams.is_writable(),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(&self.wire, Wire::Stream(stream) if stream.is_over())
    }

    /// The state for a thread that looks now.
    pub(crate) fn state(&self) -> Ready {
        Ready {
            writable: self.is_writable(),
            error: self.notifications.has_unread(),
            hangup: self.is_over(),
        }
    }

    /// Checks the cause of a reset of a dropped sender: the peer has acknowledged nothing for the
    /// linger time, and lacks bytes. A reset refused by the kernel is tried again, even if the peer
    /// makes progress.
    pub(crate) fn check_patience(&mut self, now: u64) {
        let (Some((linger, since)), Wire::Stream(stream)) = (self.dropped.take(), &self.wire)
        else {
            return;
        };
        if stream.is_over() {
            return;
        }
        let idle = now - since.max(stream.acknowledged_at);
        assert!(idle >= linger, "reset {idle} ns after an acknowledgement, linger {linger} ns");
        let left = stream.unacked_data() + self.expected.pending();
        assert!(left > 0, "a peer that has everything is reset");
    }

    /// Returns `true` if closing the descriptor looks like the orderly end of a whole stream.
    pub(crate) fn ends_in_order(&self) -> bool {
        matches!(&self.wire, Wire::Stream(stream) if !stream.is_over())
            && self.linger != Linger::Reset
    }

    /// Returns `true` if the connection is over, or will be without further calls.
    pub(crate) fn is_doomed(&self) -> bool {
        matches!(&self.wire, Wire::Stream(stream) if stream.is_over() || stream.is_vanished())
    }

    /// The library breaks the connection: unless the owner has asked for the abort, the peer must
    /// have been silent for too long.
    pub(crate) fn check_abort(&mut self, now: u64) {
        let (Some(limit), Wire::Stream(stream)) = (self.max_hold, &self.wire) else { return };
        if self.ends || stream.is_over() {
            return;
        }
        let silence = Duration::from_nanos(now - stream.held_since());
        assert!(silence > limit, "aborted, but the peer acknowledged something {silence:?} ago");
        let is_awaited = stream.unacked() > 0 || self.expected.pending() > 0;
        assert!(is_awaited, "aborted, but the peer has acknowledged everything");
        // An abort refused by the kernel is tried again, even if the peer makes progress.
        self.ends = true;
    }

    /// The connection fails.
    pub(crate) fn reset(&mut self, errno: i32, environment: &mut Environment) {
        let Self { wire, notifications, events, .. } = self;
        if let Wire::Stream(stream) = wire {
            stream.reset(errno, environment, notifications, events);
        }
    }
}
