//! A TCP connection, from the sender's side: in order, with loss, retransmits that read the memory
//! again, clones in queues below, and resets: `docs/Kernel.md#release`, `docs/Kernel.md#ends`.

use std::{collections::VecDeque, io};

use pinbuf::__internals::{IoVec, SendFlags};

use crate::{
    environment::{Environment, FOR_EVER, MICROSECOND, MILLISECOND, SECOND},
    memory::{Memory, Piece},
    notifications::{GroupKey, Notifications},
    socket::{Events, Expected},
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

/// The bytes of one call, until all are acknowledged.
#[derive(Debug)]
struct Packet {
    from: u64,
    to: u64,
    /// The start of each piece; empty for copied bytes.
    pieces: Vec<(u64, Piece)>,
    group: Option<GroupKey>,
    /// The number of holders: the queue of the connection, and clones below.
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
    /// Sequence numbers: acknowledged by the peer, sent to the peer, and accepted from the sender.
    acknowledged: u64,
    sent: u64,
    end: u64,
    /// Bytes received by the peer, and the part that its program has not read.
    received: u64,
    unread: u64,
    receive_room: u64,
    send_room: usize,
    /// The peer's program reads nothing before this time.
    stalled_until: u64,
    /// The pause of the peer's program after each read, and the largest read.
    pace: Option<(u64, u64)>,
    /// The time of the peer's last acknowledgement.
    pub(crate) acknowledged_at: u64,
    /// The time of the peer's last acknowledgement, or of the first byte to acknowledge after it.
    held_since: u64,
    acknowledges: bool,
    retransmits_at: u64,
    /// Retransmits since the last acknowledgement.
    tries: u32,
    vanished: bool,
    dies_at: Option<u64>,
    /// A call found no room, and its thread is to be told of room.
    no_space: bool,
    error: Option<i32>,
    over: bool,
    shut: bool,
    /// The network loses the end of the stream, each time.
    pub(crate) loses_end: bool,
    end_received: bool,
    /// The time of the connection's failure, unless the peer had acknowledged everything, its end
    /// included.
    cut_at: Option<u64>,
    /// The socket has the option, but refuses zero-copy sends.
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

    /// Limits each read of the peer's program, and sets the pause after each read.
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
        environment: &mut Environment,
        notifications: &mut Notifications,
        expected: &mut Expected,
    ) -> io::Result<usize> {
        let wanted: usize = memory.iter().map(IoVec::len).sum();
        assert!(wanted > 0 && memory.len() <= 1024, "an empty call, or one with too many ranges");
        assert!(!self.shut, "a call after the end");
        if self.over {
            return Err(io::Error::from_raw_os_error(self.error.take().unwrap_or(EPIPE)));
        }
        if environment.choices.permille(environment.weather.errors) {
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
            let readable = environment.memory.readable(range).min(part);
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
                let key = notifications.take_id(&mut environment.user, tail, wanted, self.end);
                let key = key.map_err(io::Error::from_raw_os_error)?;
                notifications.hold(key, self.end + taken as u64);
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
                    pieces.push((at, environment.memory.begin(range, start, text)));
                } else {
                    Memory::copy(range, start, text);
                }
                start += text.len;
                left -= text.len;
            }
        }
        if self.acknowledged == self.end {
            self.held_since = environment.now;
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
        self.packets[key].as_ref().expect("the packet has holders")
    }

    /// Lets one of the possible events happen. Returns `false` if none is possible now.
    pub(crate) fn turn(
        &mut self,
        environment: &mut Environment,
        notifications: &mut Notifications,
        events: &mut Events,
    ) -> bool {
        const ACTIONS: usize = 7;
        let first = environment.choices.below(ACTIONS);
        (first..first + ACTIONS).any(|action| match action % ACTIONS {
            0 | 1 => self.transmit(environment, notifications),
            2 => self.acknowledge(environment, notifications, events),
            3 => self.leave(environment, notifications, events),
            4 => self.read(environment),
            5 => self.retransmit(environment, notifications),
            _ => self.finish(environment, notifications, events),
        })
    }

    /// The time of the next event, if none is possible now.
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

    fn transmit(
        &mut self,
        environment: &mut Environment,
        notifications: &mut Notifications,
    ) -> bool {
        let window = self.receive_room.saturating_sub(self.unread + (self.sent - self.received));
        let most = (self.end - self.sent).min(window);
        if self.over || most == 0 {
            return false;
        }
        let bytes = environment.choices.pick(&[64 << 10, 16 << 10, 1448, 1]).min(most);
        let from = self.sent;
        self.sent += bytes;
        self.retransmits_at = environment.now + MILLISECOND;
        self.emit(from, from + bytes, environment, notifications);
        true
    }

    fn retransmit(
        &mut self,
        environment: &mut Environment,
        notifications: &mut Notifications,
    ) -> bool {
        if !self.is_outstanding() || environment.now < self.retransmits_at {
            return false;
        }
        self.tries += 1;
        self.retransmits_at = environment.now + (MILLISECOND << self.tries.min(10));
        let most = self.sent - self.acknowledged;
        let bytes = environment.choices.pick(&[64 << 10, 16 << 10, 1448]).min(most);
        self.acknowledges = true;
        let from = self.acknowledged;
        self.emit(from, from + bytes, environment, notifications);
        true
    }

    /// The card reads the bytes and sends them, now or later.
    fn emit(
        &mut self,
        from: u64,
        to: u64,
        environment: &mut Environment,
        notifications: &mut Notifications,
    ) {
        let held = environment.choices.permille(environment.weather.held);
        let leaves_at =
            environment.now + environment.choices.pick(&[MICROSECOND, MILLISECOND, SECOND]);
        let first = self.queue.partition_point(|key| self.packet(*key).to <= from);
        for at in first..self.queue.len() {
            let packet = self.queue[at];
            if self.packet(packet).from >= to {
                break;
            }
            if held {
                self.clones.push(Clone { packet, from, to, leaves_at });
                self.packets[packet].as_mut().expect("the packet has holders").holders += 1;
            } else {
                self.read_packet(packet, from, to, environment, notifications);
            }
        }
        if !held {
            self.arrive(from, to, environment);
        }
    }

    /// The card reads the bytes of `from..to` in this packet.
    fn read_packet(
        &mut self,
        packet: usize,
        from: u64,
        to: u64,
        environment: &mut Environment,
        notifications: &mut Notifications,
    ) {
        let packet = self.packets[packet].as_ref().expect("the packet has holders");
        for (start, piece) in &packet.pieces {
            let end = start + piece.len() as u64;
            let (from, to) = (from.max(*start), to.min(end));
            if from < to {
                environment.memory.read(piece, (from - start) as usize, (to - from) as usize);
            }
        }
        if let Some(group) = packet.group
            && environment.choices.permille(environment.weather.copied)
        {
            notifications.copied(group);
        }
    }

    /// The bytes reach the peer, or are lost; the peer drops bytes out of order.
    fn arrive(&mut self, from: u64, to: u64, environment: &mut Environment) {
        if self.over || self.vanished || environment.choices.permille(environment.weather.loss) {
            return;
        }
        if from <= self.received && to > self.received {
            self.unread += to - self.received;
            self.received = to;
        }
        self.acknowledges = true;
    }

    fn acknowledge(
        &mut self,
        environment: &mut Environment,
        notifications: &mut Notifications,
        events: &mut Events,
    ) -> bool {
        if self.over || self.vanished || !self.acknowledges {
            return false;
        }
        self.acknowledges = false;
        if environment.choices.permille(environment.weather.ack_loss) {
            return true;
        }
        self.tries = 0;
        let most = self.received - self.acknowledged;
        if most > 0 {
            self.acknowledged_at = environment.now;
            self.held_since = environment.now;
        }
        let cut = most > 1 && environment.choices.once_in(8);
        self.acknowledged +=
            if cut { 1 + environment.choices.below(most as usize) as u64 } else { most };
        while let Some(&key) = self.queue.front()
            && self.packet(key).to <= self.acknowledged
        {
            self.queue.pop_front();
            self.release_holder(key, environment, notifications, events);
        }
        if self.no_space && self.is_writable() {
            self.no_space = false;
            events.room();
        }
        true
    }

    /// A clone leaves the queue below.
    fn leave(
        &mut self,
        environment: &mut Environment,
        notifications: &mut Notifications,
        events: &mut Events,
    ) -> bool {
        let at = self.clones.iter().position(|clone| clone.leaves_at <= environment.now);
        let Some(at) = at else { return false };
        let Clone { packet, from, to, .. } = self.clones.swap_remove(at);
        let (from, to) = (from.max(self.packet(packet).from), to.min(self.packet(packet).to));
        self.read_packet(packet, from, to, environment, notifications);
        self.arrive(from, to, environment);
        self.release_holder(packet, environment, notifications, events);
        true
    }

    /// The peer's program reads.
    fn read(&mut self, environment: &mut Environment) -> bool {
        if self.over || self.unread == 0 || environment.now < self.stalled_until {
            return false;
        }
        let most = environment.choices.pick(&[u64::MAX, 64 << 10, 1000]);
        let (most, pause) = self.pace.unwrap_or((most, 0));
        self.unread -= self.unread.min(most);
        self.stalled_until = environment.now + pause;
        true
    }

    /// The end of the stream arrives; a vanished peer is noticed.
    fn finish(
        &mut self,
        environment: &mut Environment,
        notifications: &mut Notifications,
        events: &mut Events,
    ) -> bool {
        if self.over {
            return false;
        }
        if self.dies_at.is_some_and(|at| at <= environment.now) {
            self.reset(ETIMEDOUT, environment, notifications, events);
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

    /// Removes a holder of a packet.
    fn release_holder(
        &mut self,
        key: usize,
        environment: &mut Environment,
        notifications: &mut Notifications,
        events: &mut Events,
    ) {
        let packet = self.packets[key].as_mut().expect("the packet has holders");
        packet.holders -= 1;
        if packet.holders > 0 {
            return;
        }
        let Packet { mut pieces, group, .. } = self.packets[key].take().expect("just seen");
        for (_, piece) in pieces.drain(..) {
            environment.memory.end(&piece);
        }
        self.spare.push(pieces);
        if let Some(group) = group
            && notifications.release_holder(&mut environment.user, group)
        {
            events.notification();
        }
    }

    /// The connection ends, from either side: queued packets are dropped, except clones below.
    pub(crate) fn reset(
        &mut self,
        errno: i32,
        environment: &mut Environment,
        notifications: &mut Notifications,
        events: &mut Events,
    ) {
        if self.over {
            return;
        }
        self.over = true;
        self.cut_at = (self.unacked() > 0).then_some(environment.now);
        self.error = Some(errno);
        while let Some(key) = self.queue.pop_front() {
            self.release_holder(key, environment, notifications, events);
        }
        self.acknowledged = self.end;
        events.end();
    }

    pub(crate) fn abort(
        &mut self,
        environment: &mut Environment,
        notifications: &mut Notifications,
        events: &mut Events,
    ) {
        self.reset(EPIPE, environment, notifications, events);
        self.error = None;
    }

    pub(crate) fn shut_down(&mut self) -> io::Result<()> {
        if self.over {
            return Err(io::Error::from_raw_os_error(ENOTCONN));
        }
        self.shut = true;
        Ok(())
    }

    /// The time from which the peer could no longer get all accepted bytes.
    pub(crate) fn cut_at(&self) -> Option<u64> {
        self.cut_at
    }
}
