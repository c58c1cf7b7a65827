//! A TCP connection, seen from the end that sends: in order, with loss and retransmits that read
//! the memory again, clones in queues below, resets (KERNEL 1, 4).

use std::{collections::VecDeque, io};

use pinbuf::__internals::{IoVec, SendFlags};

use crate::{
    memory::{Memory, Piece},
    nature::{FOR_EVER, MICROSECOND, MILLISECOND, Nature, SECOND},
    notes::{GroupKey, Notes},
    socket::{Expected, News},
};

pub(crate) const EPERM: i32 = 1;
pub(crate) const ENOMEM: i32 = 12;
pub(crate) const EFAULT: i32 = 14;
pub(crate) const EMFILE: i32 = 24;
pub(crate) const EPIPE: i32 = 32;
pub(crate) const ENOTCONN: i32 = 107;
pub(crate) const EOPNOTSUPP: i32 = 95;
pub(crate) const ECONNRESET: i32 = 104;
pub(crate) const ETIMEDOUT: i32 = 110;

/// What one call brought, until all its bytes are acknowledged.
#[derive(Debug)]
struct Packet {
    from: u64,
    to: u64,
    /// Where each piece begins; none if the bytes were copied.
    pieces: Vec<(u64, Piece)>,
    group: Option<GroupKey>,
    /// The queue of the connection, and clones below.
    holders: u32,
}

/// A packet on its way out, in a queue below TCP.
#[derive(Debug)]
struct Clone {
    packet: usize,
    from: u64,
    to: u64,
    leaves_at: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Stream {
    packets: Vec<Option<Packet>>,
    queue: VecDeque<usize>,
    spare: Vec<Vec<(u64, Piece)>>,
    clones: Vec<Clone>,
    /// Sequence numbers: the peer has acknowledged up to the first, was sent up to the second,
    /// and is to be sent up to the last.
    acknowledged: u64,
    sent: u64,
    end: u64,
    /// What the peer has, and how much of it its program has not read.
    received: u64,
    unread: u64,
    receive_room: u64,
    send_room: usize,
    /// The peer's program reads nothing before.
    stalled_until: u64,
    /// How long the peer's program pauses after each read, and how much it reads at most.
    pace: Option<(u64, u64)>,
    /// When the peer last acknowledged something.
    pub(crate) acknowledged_at: u64,
    /// When the peer last acknowledged something, or was given something to acknowledge.
    held_since: u64,
    acknowledges: bool,
    retransmits_at: u64,
    /// Retransmits since the last acknowledgement.
    tries: u32,
    vanished: bool,
    dies_at: Option<u64>,
    /// Somebody found no room and is to be told when there is.
    no_space: bool,
    error: Option<i32>,
    over: bool,
    shut: bool,
    /// The end of the stream is lost on the way, each time.
    pub(crate) loses_end: bool,
    end_received: bool,
    /// When the connection failed, if the peer had not acknowledged everything, its end included.
    cut_at: Option<u64>,
    /// The socket has the option, and sends without copy are refused all the same.
    pub(crate) refuses: bool,
    /// The socket has the option and ignores the flag.
    pub(crate) ignores: bool,
}

impl Stream {
    pub(crate) fn new(send_room: usize, receive_room: u64) -> Self {
        Self { send_room, receive_room, ..Self::default() }
    }

    pub(crate) fn stall(&mut self, until: u64) {
        self.stalled_until = until;
    }

    /// The peer's program reads so many bytes at most, and pauses for so long after each read.
    pub(crate) fn pace(&mut self, pace: Option<(u64, u64)>) {
        self.pace = pace;
    }

    pub(crate) fn is_stalled_for_ever(&self) -> bool {
        self.stalled_until == FOR_EVER && !self.over
    }

    pub(crate) fn vanish(&mut self, now: u64) {
        self.vanished = true;
        self.dies_at.get_or_insert(now + 5 * SECOND);
    }

    pub(crate) fn is_vanished(&self) -> bool {
        self.vanished
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    pub(crate) fn held_since(&self) -> u64 {
        self.held_since
    }

    fn used(&self) -> usize {
        (self.end - self.acknowledged) as usize + 256 * self.queue.len()
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.over || self.used() * 3 <= self.send_room * 2
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub(crate) fn unacked(&self) -> usize {
        self.unacked_data()
            + usize::from(self.shut && !(self.end_received && self.acknowledged == self.end))
    }

    /// As [`unacked`](Self::unacked), without the end of the stream.
    pub(crate) fn unacked_data(&self) -> usize {
        (self.end - self.acknowledged) as usize
    }

    /// The user writes to the socket, past the sender.
    pub(crate) fn write(&mut self, bytes: u64) {
        self.end += bytes;
    }

    pub(crate) fn send(
        &mut self,
        memory: &[IoVec],
        flags: SendFlags,
        nature: &mut Nature,
        notes: &mut Notes,
        expected: &mut Expected,
    ) -> io::Result<usize> {
        let wanted: usize = memory.iter().map(IoVec::len).sum();
        assert!(wanted > 0 && memory.len() <= 1024, "a call that sends nothing, or too much");
        assert!(!self.shut, "a call after the end");
        if self.over {
            return Err(io::Error::from_raw_os_error(self.error.take().unwrap_or(EPIPE)));
        }
        if nature.choices.permille(nature.weather.errors) {
            return Err(io::Error::from_raw_os_error(ENOMEM));
        }
        let zero_copy = flags.zerocopy && !self.ignores;
        if zero_copy && self.refuses {
            return Err(io::Error::from_raw_os_error(EOPNOTSUPP));
        }
        let room = self.send_room.saturating_sub(self.used());
        if room == 0 {
            self.no_space = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut taken = 0;
        for range in memory {
            let part = range.len().min(room - taken);
            let readable = nature.memory.readable(range).min(part);
            taken += readable;
            if readable < range.len() {
                self.no_space |= readable == part;
                break;
            }
        }
        if taken == 0 {
            return Err(io::Error::from_raw_os_error(EFAULT));
        }
        let group = match zero_copy {
            false => None,
            true => {
                let tail = self.queue.back().filter(|_| self.sent < self.end);
                let tail = tail.and_then(|tail| self.packet(*tail).group);
                let key = notes.take_id(&mut nature.user, tail, wanted, self.end);
                let key = key.map_err(io::Error::from_raw_os_error)?;
                notes.hold(key, self.end + taken as u64);
                Some(key)
            }
        };
        let mut pieces = self.spare.pop().unwrap_or_default();
        let (from, mut left) = (self.end, taken);
        for range in memory {
            let mut start = 0;
            while start < range.len() && left > 0 {
                let text = expected.take((range.len() - start).min(left));
                if zero_copy {
                    let at = from + (taken - left) as u64;
                    pieces.push((at, nature.memory.begin(range, start, text)));
                } else {
                    Memory::copy(range, start, text);
                }
                start += text.len;
                left -= text.len;
            }
        }
        if self.acknowledged == self.end {
            self.held_since = nature.now;
        }
        self.end += taken as u64;
        let packet = Packet { from, to: self.end, pieces, group, holders: 1 };
        let key = self.packets.iter().position(Option::is_none).unwrap_or_else(|| {
            self.packets.push(None);
            self.packets.len() - 1
        });
        self.packets[key] = Some(packet);
        self.queue.push_back(key);
        Ok(taken)
    }

    fn packet(&self, key: usize) -> &Packet {
        self.packets[key].as_ref().expect("it has holders")
    }

    /// Something that happens by itself, of what can; `false`: nothing can now.
    pub(crate) fn turn(&mut self, nature: &mut Nature, notes: &mut Notes, news: &mut News) -> bool {
        const ACTIONS: usize = 7;
        let first = nature.choices.below(ACTIONS);
        (first..first + ACTIONS).any(|action| match action % ACTIONS {
            0 | 1 => self.transmit(nature, notes),
            2 => self.acknowledge(nature, notes, news),
            3 => self.leave(nature, notes, news),
            4 => self.read(nature),
            5 => self.retransmit(nature, notes),
            _ => self.finish(nature, notes, news),
        })
    }

    /// When something more can happen, if nothing can now.
    pub(crate) fn next_time(&self) -> u64 {
        let leaves = self.clones.iter().map(|clone| clone.leaves_at).min().unwrap_or(FOR_EVER);
        let retransmits = if self.is_outstanding() { self.retransmits_at } else { FOR_EVER };
        let reads = if self.unread > 0 && !self.over { self.stalled_until } else { FOR_EVER };
        let dies = self.dies_at.filter(|_| !self.over).unwrap_or(FOR_EVER);
        leaves.min(retransmits).min(reads).min(dies)
    }

    fn is_outstanding(&self) -> bool {
        !self.over && self.acknowledged < self.sent
    }

    fn transmit(&mut self, nature: &mut Nature, notes: &mut Notes) -> bool {
        let window = self.receive_room.saturating_sub(self.unread + (self.sent - self.received));
        let most = (self.end - self.sent).min(window);
        if self.over || most == 0 {
            return false;
        }
        let bytes = nature.choices.pick(&[64 << 10, 16 << 10, 1448, 1]).min(most);
        let from = self.sent;
        self.sent += bytes;
        self.retransmits_at = nature.now + MILLISECOND;
        self.emit(from, from + bytes, nature, notes);
        true
    }

    fn retransmit(&mut self, nature: &mut Nature, notes: &mut Notes) -> bool {
        if !self.is_outstanding() || nature.now < self.retransmits_at {
            return false;
        }
        self.tries += 1;
        self.retransmits_at = nature.now + (MILLISECOND << self.tries.min(10));
        let most = self.sent - self.acknowledged;
        let bytes = nature.choices.pick(&[64 << 10, 16 << 10, 1448]).min(most);
        self.acknowledges = true;
        let from = self.acknowledged;
        self.emit(from, from + bytes, nature, notes);
        true
    }

    /// The card reads the bytes and sends them, now or later.
    fn emit(&mut self, from: u64, to: u64, nature: &mut Nature, notes: &mut Notes) {
        let held = nature.choices.permille(nature.weather.held);
        let leaves_at = nature.now + nature.choices.pick(&[MICROSECOND, MILLISECOND, SECOND]);
        let first = self.queue.partition_point(|key| self.packet(*key).to <= from);
        for at in first..self.queue.len() {
            let packet = self.queue[at];
            if self.packet(packet).from >= to {
                break;
            }
            if held {
                self.clones.push(Clone { packet, from, to, leaves_at });
                self.packets[packet].as_mut().expect("it has holders").holders += 1;
            } else {
                self.read_packet(packet, from, to, nature, notes);
            }
        }
        if !held {
            self.arrive(from, to, nature);
        }
    }

    /// The card reads what of `from..to` is in this packet.
    fn read_packet(
        &mut self,
        packet: usize,
        from: u64,
        to: u64,
        nature: &mut Nature,
        notes: &mut Notes,
    ) {
        let packet = self.packets[packet].as_ref().expect("it has holders");
        for (start, piece) in &packet.pieces {
            let end = start + piece.len() as u64;
            let (from, to) = (from.max(*start), to.min(end));
            if from < to {
                nature.memory.read(piece, (from - start) as usize, (to - from) as usize);
            }
        }
        if let Some(group) = packet.group
            && nature.choices.permille(nature.weather.copied)
        {
            notes.copied(group);
        }
    }

    /// The bytes reach the peer, or not; what comes out of order it drops.
    fn arrive(&mut self, from: u64, to: u64, nature: &mut Nature) {
        if self.over || self.vanished || nature.choices.permille(nature.weather.loss) {
            return;
        }
        if from <= self.received && to > self.received {
            self.unread += to - self.received;
            self.received = to;
        }
        self.acknowledges = true;
    }

    fn acknowledge(&mut self, nature: &mut Nature, notes: &mut Notes, news: &mut News) -> bool {
        if self.over || self.vanished || !self.acknowledges {
            return false;
        }
        self.acknowledges = false;
        if nature.choices.permille(nature.weather.ack_loss) {
            return true;
        }
        self.tries = 0;
        let most = self.received - self.acknowledged;
        if most > 0 {
            self.acknowledged_at = nature.now;
            self.held_since = nature.now;
        }
        let cut = most > 1 && nature.choices.once_in(8);
        self.acknowledged +=
            if cut { 1 + nature.choices.below(most as usize) as u64 } else { most };
        while let Some(&key) = self.queue.front()
            && self.packet(key).to <= self.acknowledged
        {
            self.queue.pop_front();
            self.let_go(key, nature, notes, news);
        }
        if self.no_space && self.is_writable() {
            self.no_space = false;
            news.room();
        }
        true
    }

    /// A clone leaves the queue below.
    fn leave(&mut self, nature: &mut Nature, notes: &mut Notes, news: &mut News) -> bool {
        let at = self.clones.iter().position(|clone| clone.leaves_at <= nature.now);
        let Some(at) = at else { return false };
        let Clone { packet, from, to, .. } = self.clones.swap_remove(at);
        let (from, to) = (from.max(self.packet(packet).from), to.min(self.packet(packet).to));
        self.read_packet(packet, from, to, nature, notes);
        self.arrive(from, to, nature);
        self.let_go(packet, nature, notes, news);
        true
    }

    /// The peer's program reads.
    fn read(&mut self, nature: &mut Nature) -> bool {
        if self.over || self.unread == 0 || nature.now < self.stalled_until {
            return false;
        }
        let most = nature.choices.pick(&[u64::MAX, 64 << 10, 1000]);
        let (most, pause) = self.pace.unwrap_or((most, 0));
        self.unread -= self.unread.min(most);
        self.stalled_until = nature.now + pause;
        true
    }

    /// The end of the stream arrives; a peer that is gone is noticed.
    fn finish(&mut self, nature: &mut Nature, notes: &mut Notes, news: &mut News) -> bool {
        if self.over {
            return false;
        }
        if self.dies_at.is_some_and(|at| at <= nature.now) {
            self.reset(ETIMEDOUT, nature, notes, news);
            return true;
        }
        let arrives = self.shut && !self.end_received && !self.vanished && !self.loses_end;
        if arrives && self.received == self.end {
            self.end_received = true;
            self.acknowledges = true;
            return true;
        }
        false
    }

    /// One holder of a packet less.
    fn let_go(&mut self, key: usize, nature: &mut Nature, notes: &mut Notes, news: &mut News) {
        let packet = self.packets[key].as_mut().expect("it has holders");
        packet.holders -= 1;
        if packet.holders > 0 {
            return;
        }
        let Packet { mut pieces, group, .. } = self.packets[key].take().expect("just seen");
        for (_, piece) in pieces.drain(..) {
            nature.memory.end(&piece);
        }
        self.spare.push(pieces);
        if let Some(group) = group
            && notes.let_go(&mut nature.user, group)
        {
            news.note();
        }
    }

    /// The connection ends, from whichever side: what is queued is dropped, but for clones below.
    pub(crate) fn reset(
        &mut self,
        errno: i32,
        nature: &mut Nature,
        notes: &mut Notes,
        news: &mut News,
    ) {
        if self.over {
            return;
        }
        self.over = true;
        self.cut_at = (self.unacked() > 0).then_some(nature.now);
        self.error = Some(errno);
        while let Some(key) = self.queue.pop_front() {
            self.let_go(key, nature, notes, news);
        }
        self.acknowledged = self.end;
        news.end();
    }

    pub(crate) fn abort(&mut self, nature: &mut Nature, notes: &mut Notes, news: &mut News) {
        self.reset(EPIPE, nature, notes, news);
        self.error = None;
    }

    pub(crate) fn shut_down(&mut self) -> io::Result<()> {
        if self.over {
            return Err(io::Error::from_raw_os_error(ENOTCONN));
        }
        self.shut = true;
        Ok(())
    }

    /// When it was decided that the peer never gets all that was accepted.
    pub(crate) fn cut_at(&self) -> Option<u64> {
        self.cut_at
    }
}
