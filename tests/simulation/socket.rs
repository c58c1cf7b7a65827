//! One simulated socket: what it was given, what it tells, and who looks after it.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use pinbuf::__internals::{Core, IoVec, Ready, Reclaim, SendFlags, Transport};

use crate::{
    datagrams::Datagrams, kernel::SimKernel, memory::Text, nature::Nature, notes::Notes,
    stream::Stream,
};

/// What the owner has sent and the kernel has not taken: the bytes to come, in order.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    parts: VecDeque<Text>,
    /// Bytes of the first part that are taken.
    used: usize,
    accepted: u64,
}

impl Expected {
    pub(crate) fn push(&mut self, parts: &[Text]) {
        self.parts.extend(parts);
    }

    /// The owner got back what it sent last, of which nothing may be taken.
    pub(crate) fn withdraw(&mut self, parts: &[Text]) {
        let untouched =
            self.parts.len() > parts.len() || (self.parts.len() == parts.len() && self.used == 0);
        assert!(untouched, "refused as a whole, but a part was accepted");
        self.parts.truncate(self.parts.len() - parts.len());
    }

    /// What is not taken never will be.
    pub(crate) fn forget(&mut self) {
        self.parts.clear();
        self.used = 0;
    }

    /// The next bytes, so many at most.
    pub(crate) fn take(&mut self, most: usize) -> Text {
        self.skip_empty();
        let front = self.parts.front().expect("no more is sent than the owner gave");
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

    /// Bytes to come.
    pub(crate) fn pending(&self) -> usize {
        self.parts.iter().map(|part| part.len).sum::<usize>() - self.used
    }

    /// Bytes taken so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }
}

/// What happened since somebody looked: to those who wait, and to the reaper.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct News {
    pub(crate) writable: bool,
    pub(crate) error: bool,
    pub(crate) hangup: bool,
    pub(crate) to_reaper: bool,
}

impl News {
    pub(crate) const ALL: Self =
        Self { writable: true, error: true, hangup: true, to_reaper: true };

    pub(crate) fn room(&mut self) {
        (self.writable, self.to_reaper) = (true, true);
    }

    pub(crate) fn note(&mut self) {
        (self.error, self.to_reaper) = (true, true);
    }

    /// Whether there is any for those who wait.
    pub(crate) fn is_any(self) -> bool {
        self.writable || self.error || self.hangup
    }

    pub(crate) fn end(&mut self) {
        *self = Self::ALL;
    }
}

/// Who drives the sender when its owner does not.
#[derive(Clone)]
pub(crate) enum Care {
    Watched(Weak<dyn Reclaim>),
    Owned(Arc<dyn Reclaim>),
}

impl Care {
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
    /// As the user left it: the close blocks, or resets.
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
    pub(crate) notes: Notes,
    pub(crate) expected: Expected,
    pub(crate) news: News,
    pub(crate) care: Option<Care>,
    /// When the reaper looks again without news.
    pub(crate) due: Option<u64>,
    /// The reaper has a thread.
    pub(crate) served: bool,
    /// The sender, which another thread may visit during every call.
    pub(crate) core: Weak<Core<SimKernel>>,
    /// Whether somebody has descriptors to wait by for news, and was roused since he last did.
    pub(crate) has_edges: bool,
    pub(crate) is_rung: bool,
    /// How long the peer may acknowledge nothing, and whether the owner ends the sender itself.
    pub(crate) max_hold: Option<Duration>,
    pub(crate) ends: bool,
    /// Whether the owner's call sends, and whether it may wait.
    pub(crate) sends: bool,
    pub(crate) waits: bool,
    /// Whether a call found no room, since the owner's last send began.
    pub(crate) was_full: bool,
    /// Error numbers of the calls that failed, since somebody asked.
    pub(crate) failures: Vec<i32>,
    /// Cause to poison: a note was read or sent by another user, a message was cut, or a read of
    /// the error queue failed.
    pub(crate) deaf: bool,
    /// Another user has taken ids, of which a note on the error queue tells. The notes behind it
    /// name other calls than the sender takes them for.
    pub(crate) is_shifted: bool,
    pub(crate) linger: Linger,
    /// The linger time of a sender that was dropped, and when that was.
    pub(crate) dropped: Option<(u64, u64)>,
    /// A filter for system calls forbids reading the error queue.
    pub(crate) refused: bool,
}

impl Socket {
    pub(crate) fn new(wire: Wire, notes: Notes) -> Self {
        Self {
            wire,
            notes,
            expected: Expected::default(),
            news: News::default(),
            care: None,
            due: None,
            served: true,
            core: Weak::new(),
            has_edges: false,
            is_rung: false,
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
        nature: &mut Nature,
    ) -> io::Result<usize> {
        let Self { wire, notes, expected, news, .. } = self;
        let result = match wire {
            Wire::Stream(stream) => stream.send(memory, flags, nature, notes, expected),
            Wire::Datagrams(all) => all.send(memory, flags, nature, notes, expected, news),
        };
        if let Err(error) = &result {
            self.was_full |= error.kind() == io::ErrorKind::WouldBlock;
            self.failures.extend(error.raw_os_error());
        } else if nature.choices.once_in(8) {
            // The note may be there before the call returns.
            for _ in 0..8 {
                self.turn(nature);
            }
        }
        result
    }

    /// Something happens by itself, if anything can now.
    pub(crate) fn turn(&mut self, nature: &mut Nature) -> bool {
        let Self { wire, notes, news, .. } = self;
        match wire {
            Wire::Stream(stream) => stream.turn(nature, notes, news),
            Wire::Datagrams(datagrams) => datagrams.turn(nature, notes, news),
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

    /// What a thread is told that looks now.
    pub(crate) fn state(&self) -> Ready {
        Ready {
            writable: self.is_writable(),
            error: self.notes.has_unread(),
            hangup: self.is_over(),
        }
    }

    /// Checks that a dropped sender has cause to break the connection: the peer has acknowledged
    /// nothing for the linger time, and does not have everything.
    pub(crate) fn check_patience(&self, now: u64) {
        let (Some((linger, since)), Wire::Stream(stream)) = (self.dropped, &self.wire) else {
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

    /// Whether closing the descriptor looks like the orderly end of a whole stream.
    pub(crate) fn ends_in_order(&self) -> bool {
        matches!(&self.wire, Wire::Stream(stream) if !stream.is_over())
            && self.linger != Linger::Reset
    }

    /// Whether the connection is over, or will be without anybody's doing.
    pub(crate) fn is_doomed(&self) -> bool {
        matches!(&self.wire, Wire::Stream(stream) if stream.is_over() || stream.is_vanished())
    }

    /// The library breaks the connection: if the owner has not asked for that, the peer must have
    /// been silent for too long.
    pub(crate) fn check_abort(&mut self, now: u64) {
        let (Some(limit), Wire::Stream(stream)) = (self.max_hold, &self.wire) else { return };
        if self.ends || stream.is_over() {
            return;
        }
        let silence = Duration::from_nanos(now - stream.held_since());
        assert!(silence > limit, "aborted, but the peer acknowledged something {silence:?} ago");
        let is_awaited = stream.unacked() > 0 || self.expected.pending() > 0;
        assert!(is_awaited, "aborted, but the peer has acknowledged everything");
        // An abort that the kernel refuses is tried again, whatever the peer does meanwhile.
        self.ends = true;
    }

    /// The connection fails.
    pub(crate) fn reset(&mut self, errno: i32, nature: &mut Nature) {
        let Self { wire, notes, news, .. } = self;
        if let Wire::Stream(stream) = wire {
            stream.reset(errno, nature, notes, news);
        }
    }
}
