//! The ids of a socket, their costs, and the error queue: `docs/Kernel.md#the-counter`,
//! `docs/Kernel.md#limits`, `docs/Kernel.md#the-copied-flag-is-the-first-members`,
//! `docs/Kernel.md#tcp-releases-in-groups`.

use std::collections::VecDeque;

use pinbuf::__internals::Record;

/// `ENOBUFS` of Linux.
pub(crate) const ENOBUFS: i32 = 105;

const OPTMEM_PER_NOTE: usize = 832;
/// TCP groups at most this many bytes or calls under one notification.
const MAX_GROUP_BYTES: usize = 512 << 10;
const MAX_GROUP_CALLS: u32 = 65534;

/// The locked memory charged to a user id, over all of its processes.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) limit_pages: Option<usize>,
    pub(crate) charged_pages: usize,
    pub(crate) others_pages: usize,
}

impl User {
    fn charge(&mut self, bytes: usize) -> Option<usize> {
        let Some(limit) = self.limit_pages else { return Some(0) };
        let pages = (bytes >> 12) + 2;
        if self.charged_pages + self.others_pages + pages > limit {
            return None;
        }
        self.charged_pages += pages;
        Some(pages)
    }
}

/// Calls with a common release: a `ubuf` of the kernel.
#[derive(Debug)]
struct Group {
    lo: u32,
    calls: u32,
    bytes: usize,
    pages: usize,
    /// Packets with bytes of the group, and their clones.
    packets: u32,
    copied: bool,
    /// Bytes of the stream, or datagrams, by number.
    from: u64,
    to: u64,
}

/// Names a group in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GroupKey(usize);

#[derive(Debug)]
pub(crate) struct Notifications {
    next_id: u32,
    groups: Vec<Option<Group>>,
    live: usize,
    queue: VecDeque<Record>,
    /// Unread notifications; messages of other kinds cost nothing here.
    unread: usize,
    pub(crate) optmem_max: usize,
    /// Option memory of another user: a socket filter.
    pub(crate) filter_bytes: usize,
}

impl Notifications {
    pub(crate) fn new(next_id: u32, optmem_max: usize) -> Self {
        Self {
            next_id,
            groups: Vec::new(),
            live: 0,
            queue: VecDeque::new(),
            unread: 0,
            optmem_max,
            filter_bytes: 0,
        }
    }

    /// Takes an id for a call of `bytes`, in the group `tail` if the call can join it.
    pub(crate) fn take_id(
        &mut self,
        user: &mut User,
        tail: Option<GroupKey>,
        bytes: usize,
        number: u64,
    ) -> Result<GroupKey, i32> {
        if let Some(key) = tail {
            let group = self.groups[key.0].as_mut().expect("a queued packet keeps its group");
            if group.lo.wrapping_add(group.calls) == self.next_id
                && group.bytes + bytes <= MAX_GROUP_BYTES
                && group.calls < MAX_GROUP_CALLS
            {
                group.pages += user.charge(bytes).ok_or(ENOBUFS)?;
                group.bytes += bytes;
                group.calls += 1;
                self.next_id = self.next_id.wrapping_add(1);
                return Ok(key);
            }
        }
        if self.optmem() + OPTMEM_PER_NOTE > self.optmem_max {
            return Err(ENOBUFS);
        }
        let group = Group {
            lo: self.next_id,
            calls: 1,
            bytes,
            pages: user.charge(bytes).ok_or(ENOBUFS)?,
            packets: 0,
            copied: false,
            from: number,
            to: number,
        };
        self.next_id = self.next_id.wrapping_add(1);
        self.live += 1;
        let key = self.groups.iter().position(Option::is_none).unwrap_or_else(|| {
            self.groups.push(None);
            self.groups.len() - 1
        });
        self.groups[key] = Some(group);
        Ok(GroupKey(key))
    }

    fn group(&mut self, key: GroupKey) -> &mut Group {
        self.groups[key.0].as_mut().expect("a packet keeps its group")
    }

    /// Another user of the socket has made `calls` calls, all released long ago.
    pub(crate) fn skip_ids(&mut self, calls: u32) {
        self.next_id = self.next_id.wrapping_add(calls);
    }

    /// A packet carries bytes of the group, up to byte `to`.
    pub(crate) fn hold(&mut self, key: GroupKey, to: u64) {
        let group = self.group(key);
        group.packets += 1;
        group.to = group.to.max(to);
    }

    /// The kernel copied bytes of the group after all.
    pub(crate) fn copied(&mut self, key: GroupKey) {
        self.group(key).copied = true;
    }

    /// A packet is gone; the last packet releases the group. Returns `true` if a notification was
    /// queued.
    pub(crate) fn release_holder(&mut self, user: &mut User, key: GroupKey) -> bool {
        let group = self.group(key);
        group.packets -= 1;
        if group.packets > 0 {
            return false;
        }
        let Group { lo, calls, pages, copied, .. } =
            self.groups[key.0].take().expect("the group exists");
        user.charged_pages -= pages;
        self.live -= 1;
        let hi = lo.wrapping_add(calls - 1);
        // The last notification keeps its flag; the flag of a merged one is lost.
        if let Some(Record::Released { hi: tail, .. }) = self.queue.back_mut()
            && tail.wrapping_add(1) == lo
        {
            *tail = hi;
        } else {
            self.push(Record::Released { lo, hi, copied });
        }
        true
    }

    /// Another message arrives on the error queue.
    pub(crate) fn push(&mut self, record: Record) {
        self.unread += usize::from(matches!(record, Record::Released { .. }));
        self.queue.push_back(record);
    }

    pub(crate) fn pop(&mut self) -> Option<Record> {
        let record = self.queue.pop_front()?;
        self.unread -= usize::from(matches!(record, Record::Released { .. }));
        Some(record)
    }

    pub(crate) fn has_unread(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(crate) fn has_live(&self) -> bool {
        self.live > 0
    }

    pub(crate) fn next_id(&self) -> u32 {
        self.next_id
    }

    /// Returns `true` if a byte in `from..to` is not released.
    pub(crate) fn is_live(&self, from: u64, to: u64) -> bool {
        from < to
            && self.live > 0
            && self.groups.iter().flatten().any(|group| group.from < to && from < group.to)
    }

    pub(crate) fn optmem(&self) -> usize {
        (self.live + self.unread) * OPTMEM_PER_NOTE + self.filter_bytes
    }
}
