//! A connected UDP socket over a device with two queues:
//! `docs/Kernel.md#a-udp-call-that-fails-may-have-taken-a-number`,
//! `docs/Kernel.md#notifications-come-in-any-order`.

use std::{collections::VecDeque, io};

use pinbuf::__internals::{IoVec, SendFlags};

use crate::{
    environment::{Environment, FOR_EVER},
    memory::{Memory, Piece},
    notifications::{ENOBUFS, GroupKey, Notifications},
    socket::{Events, Expected},
    stream::{EFAULT, ENOMEM, EPERM},
};

const EINVAL: i32 = 22;
pub(crate) const EMSGSIZE: i32 = 90;
pub(crate) const ECONNREFUSED: i32 = 111;

const MAX_BYTES: usize = 65_507;
const MAX_PAGES: usize = 17;

#[derive(Debug)]
struct Datagram {
    pieces: Vec<Piece>,
    group: Option<GroupKey>,
    cost: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Datagrams {
    /// Datagrams can leave one queue while the other waits.
    queues: [VecDeque<Datagram>; 2],
    /// The time until which the second queue is stuck.
    stuck_until: u64,
    used: usize,
    send_room: usize,
    no_space: bool,
    /// The number of datagrams taken.
    count: u64,
    pub(crate) pending_error: Option<i32>,
}

impl Datagrams {
    pub(crate) fn new(send_room: usize) -> Self {
        Self { send_room, ..Self::default() }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn stick(&mut self, until: u64) {
        self.stuck_until = until;
    }

    fn has_room(&self) -> bool {
        self.used < self.send_room
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.used * 2 <= self.send_room
    }

    pub(crate) fn send(
        &mut self,
        memory: &[IoVec],
        flags: SendFlags,
        environment: &mut Environment,
        notifications: &mut Notifications,
        expected: &mut Expected,
        events: &mut Events,
    ) -> io::Result<usize> {
        let fail = io::Error::from_raw_os_error;
        if let Some(error) = self.pending_error.take() {
            return Err(fail(error));
        }
        let bytes: usize = memory.iter().map(IoVec::len).sum();
        assert_eq!(bytes, expected.pending(), "a datagram is one call");
        if bytes > MAX_BYTES {
            return Err(fail(EMSGSIZE));
        }
        if !self.has_room() {
            self.no_space = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if memory.iter().any(|range| environment.memory.readable(range) < range.len()) {
            return Err(fail(EFAULT));
        }
        let pages = |range: &IoVec| {
            let (start, len) = (range.start().addr(), range.len());
            if len == 0 { 0 } else { (start + len - 1) / 4096 - start / 4096 + 1 }
        };
        if flags.zerocopy && memory.iter().map(pages).sum::<usize>() > MAX_PAGES {
            return Err(fail(EMSGSIZE));
        }
        let fails = environment.choices.permille(environment.weather.errors);
        if fails && environment.choices.once_in(4) {
            return Err(fail(ENOMEM));
        }
        let group = match flags.zerocopy {
            true => {
                let key = notifications
                    .take_id(&mut environment.user, None, bytes, self.count)
                    .map_err(fail)?;
                notifications.hold(key, self.count + 1);
                Some(key)
            }
            false => None,
        };
        if fails {
            // The layer that frees the packet reports the drop: the id is used.
            if group.is_some_and(|group| notifications.release_holder(&mut environment.user, group))
            {
                events.notification();
            }
            return Err(fail(environment.choices.pick(&[EPERM, EINVAL, ENOBUFS])));
        }
        let mut pieces = Vec::new();
        for range in memory {
            let mut start = 0;
            while start < range.len() {
                let text = expected.take(range.len() - start);
                if flags.zerocopy {
                    pieces.push(environment.memory.begin(range, start, text));
                } else {
                    Memory::copy(range, start, text);
                }
                start += text.len;
            }
        }
        expected.skip_empty();
        let cost = bytes + 256;
        self.used += cost;
        self.count += 1;
        self.queues[environment.choices.below(2)].push_back(Datagram { pieces, group, cost });
        Ok(bytes)
    }

    /// A datagram leaves. Returns `false` if none can now.
    pub(crate) fn turn(
        &mut self,
        environment: &mut Environment,
        notifications: &mut Notifications,
        events: &mut Events,
    ) -> bool {
        let first = environment.choices.below(2);
        let stuck = environment.now < self.stuck_until;
        let mut queues = [first, 1 - first].into_iter().filter(|queue| *queue == 0 || !stuck);
        let queue = queues.find(|queue| !self.queues[*queue].is_empty());
        let Some(queue) = queue else { return false };
        let datagram = self.queues[queue].pop_front().expect("just seen");
        let Datagram { pieces, group, cost } = datagram;
        for piece in pieces {
            environment.memory.end(&piece);
        }
        if let Some(group) = group {
            if environment.choices.permille(environment.weather.copied) {
                notifications.copied(group);
            }
            if notifications.release_holder(&mut environment.user, group) {
                events.notification();
            }
        }
        self.used -= cost;
        if self.no_space && self.is_writable() {
            self.no_space = false;
            events.room();
        }
        true
    }

    pub(crate) fn next_time(&self) -> u64 {
        if self.queues[1].is_empty() { FOR_EVER } else { self.stuck_until }
    }
}
