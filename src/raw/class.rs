//! The slots of one size.

use std::{ptr::NonNull, task::Waker};

use super::{
    freelist::{BUNDLE, Diverted, FreeList, Link},
    magazine::Magazine,
    pool::RawPool,
    rack::Place,
    record::Record,
    roster::{Bound, Roster},
    slot::SlotState,
    waiters::{Joined, WaitTicket, Waiters},
};
use crate::{
    sync::CachePadded,
    sys::{barrier, process::Process},
};

/// Equal slots in a row: their records, the free ones, and who waits for one.
///
/// A free slot is on the free list, in a magazine, or granted to a waiter. In between, in nobody's
/// sight, it is only while its magazine's owner is busy or the roster's lock is held. So whoever
/// finds the list empty, takes the lock, recalls the magazines and finds it empty again may say
/// that no slot is free.
#[derive(Debug)]
pub(crate) struct SizeClass {
    pool: NonNull<RawPool>,
    capacity: usize,
    stride: usize,
    zero_on_recycle: bool,
    process: Process,
    /// What a magazine holds at most; 0: there are no magazines.
    magazine_limit: u32,
    place: Place,
    records: Box<[Record]>,
    links: Box<[Link]>,
    /// On a cache line of its own: it is written again and again, what stands above never.
    free: CachePadded<FreeList>,
    roster: CachePadded<Roster>,
    waiters: Waiters,
}

/// What became of a slot that went home.
#[derive(Debug)]
pub(crate) enum Home {
    Free,
    /// Handed to a waiter, who is to be woken.
    Granted(Option<Waker>),
    /// The class is closed: the slot's hold on the pool is the caller's to give up.
    Closed,
}

impl SizeClass {
    /// A class that will lie at `at` and whose memory starts at `memory`.
    pub(crate) fn new(
        at: NonNull<Self>,
        pool: NonNull<RawPool>,
        memory: NonNull<u8>,
        capacity: usize,
        stride: usize,
        count: usize,
        zero_on_recycle: bool,
    ) -> Self {
        let record = |index: u32| {
            let start = memory.as_ptr().wrapping_add(index as usize * stride);
            Record::new(index, at, NonNull::new(start).expect("no mapping lies at address 0"))
        };
        let records: Box<[Record]> = (0..count as u32).map(record).collect();
        // To zero a slot takes so long that nothing is to be gained.
        let magazines = !zero_on_recycle && barrier::is_available();
        let magazine_limit = if magazines { Magazine::limit(count) } else { 0 };
        let links: Box<[Link]> = (0..count).map(|_| Link::default()).collect();
        Self {
            pool,
            capacity,
            stride,
            zero_on_recycle,
            process: Process::this(),
            magazine_limit,
            place: if magazine_limit > 0 { Place::next() } else { Place::default() },
            free: CachePadded::new(FreeList::new(&links, Magazine::batch(magazine_limit))),
            records,
            links,
            roster: CachePadded::default(),
            waiters: Waiters::default(),
        }
    }

    /// Whether the pool is that of the process which this one was forked from. Then its memory is
    /// not here and its locks may be taken for ever: only records and free lists, of which this
    /// process has a copy, may be touched. Alloc and the drop of a buffer ask only when a magazine
    /// does not serve them, since a child finds no magazine bound.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        !self.process.is_this()
    }

    #[inline]
    pub(crate) fn pool(&self) -> NonNull<RawPool> {
        self.pool
    }

    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of memory that belong to each slot, the unused rest of its last page included.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    pub(crate) fn zero_on_recycle(&self) -> bool {
        self.zero_on_recycle
    }

    pub(crate) fn magazine_limit(&self) -> u32 {
        self.magazine_limit
    }

    /// How many slots make a bundle of the free list.
    pub(crate) fn bundle(&self) -> usize {
        Magazine::batch(self.magazine_limit)
    }

    #[inline]
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }

    pub(crate) fn record(&self, index: u32) -> &Record {
        &self.records[index as usize]
    }

    pub(crate) fn links(&self) -> &[Link] {
        &self.links
    }

    #[inline]
    pub(crate) fn free(&self) -> &FreeList {
        &self.free
    }

    pub(crate) fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Binds the caller's own magazine, unless it is bound already. `false`: it cannot or should
    /// not be now.
    pub(crate) fn bind(&self, magazine: &Magazine) -> bool {
        self.roster.bind(self, magazine)
    }

    /// Takes a free slot, by the caller's own magazine if that is bound. It is the caller's, and
    /// still Free.
    pub(crate) fn take(&self, magazine: Option<&Magazine>) -> Option<&Record> {
        if let Some(record) = magazine.and_then(|own| own.take(self).or_else(|| own.refill(self))) {
            return Some(record);
        }
        match self.free.pop_single(&self.links) {
            Ok(index) => Some(self.record(index)),
            Err(_) if self.magazine_limit == 0 || self.free.has_waiters() => None,
            Err(_) => {
                let mut bound = self.roster.lock();
                self.pop_one().or_else(|| {
                    let recalled = self.recall(&mut bound, magazine);
                    recalled.then(|| self.pop_one())?
                })
            }
        }
    }

    /// Takes one slot of the bundle on top. Under the roster's lock.
    fn pop_one(&self) -> Option<&Record> {
        let mut slots = [0; BUNDLE];
        let mut count = 0;
        self.free.pop(&self.links, |index| {
            slots[count] = index;
            count += 1;
        });
        let (first, rest) = slots[..count].split_first()?;
        self.put_back(rest.iter().copied());
        Some(self.record(*first))
    }

    /// Brings the slots of all magazines but `own` onto the free list. Answers whether there were
    /// such magazines.
    fn recall(&self, bound: &mut Bound, own: Option<&Magazine>) -> bool {
        let mut slots = Vec::new();
        let recalled = self.roster.recall(bound, self, own, |record| slots.push(record.index()));
        self.put_back(slots);
        recalled
    }

    /// Puts slots onto the free list that were there or in a magazine, while the roster's lock is
    /// held: so there are no flags.
    fn put_back(&self, slots: impl IntoIterator<Item = u32>) {
        let put = self.free.push_all(&self.links, slots, self.bundle());
        debug_assert_eq!(put, Ok(()));
    }

    /// Takes the caller's own magazine, which has been bound to this class, off the roster and
    /// sends its slots home, unless others did so.
    pub(crate) fn dismiss(&self, magazine: &Magazine) {
        let mut bound = self.roster.lock();
        self.put_back(bound.leave(self, magazine).map(Record::index));
    }

    /// Queues for a slot. From then on none goes into a magazine.
    pub(crate) fn join(&self, waker: Waker) -> Joined {
        // Dropped after the lock is let go of, if it is of no use.
        let mut waker = Some(waker);
        let mut bound = self.roster.lock();
        self.recall(&mut bound, None);
        self.waiters.join(&self.free, || self.pop_one().map(Record::index), &mut waker)
    }

    /// Leaves the queue; a slot that was handed over in the meantime is the caller's.
    pub(crate) fn leave(&self, ticket: WaitTicket) -> Option<u32> {
        self.waiters.leave(&self.free, ticket)
    }

    /// Sends a Free slot home although a push was diverted.
    pub(crate) fn home(&self, record: &Record) -> Home {
        let index = record.index();
        loop {
            match self.free.push(index, &self.links[index as usize]) {
                Ok(()) => return Home::Free,
                Err(Diverted::Closed) => return Home::Closed,
                Err(Diverted::Waiters) => {
                    if let Ok(waker) = self.waiters.grant(&self.free, index) {
                        return Home::Granted(waker);
                    }
                }
            }
        }
    }

    /// Whether no slot can come home before a late proof: waiting would wait for what may never
    /// come.
    pub(crate) fn is_wholly_quarantined(&self) -> bool {
        self.records.iter().all(|record| record.slot().state() == SlotState::Quarantined)
    }

    /// Called after a slot became Quarantined: if it was the last that was not, nobody may go on
    /// waiting. The queue's lock orders this with `join`: either the waiter sees the state, or
    /// this sees the waiter.
    pub(crate) fn slot_quarantined(&self) -> Vec<Waker> {
        // The lock comes first, also for a second thread here: the later one sees both slots.
        if self.waiters.waiting() > 0 && self.is_wholly_quarantined() {
            self.waiters.rouse()
        } else {
            Vec::new()
        }
    }

    /// The numbers of the slots at home: on the free list, in magazines, handed to waiters. Exact
    /// only while nothing moves. Not in a forked child.
    pub(crate) fn at_home(&self) -> Vec<u32> {
        let bound = self.roster.lock();
        let mut indices = self.free.indices(&self.links);
        let in_magazines = bound.magazines().flat_map(|magazine| magazine.look(self));
        indices.extend(in_magazines.map(Record::index));
        indices.extend(self.waiters.granted());
        indices
    }

    /// Ends the class with its pool's handle; returns how many slots were at home. Slots handed to
    /// waiters are at home too: every waiter borrows the handle, so these were forgotten.
    pub(crate) fn close(&self) -> usize {
        let mut in_magazines = 0;
        let mut bound = self.roster.lock();
        self.roster.recall(&mut bound, self, None, |_| in_magazines += 1);
        bound.close();
        drop(bound);
        in_magazines + self.free.close(&self.links) + self.waiters.granted().len()
    }
}

#[cfg(loom)]
impl Drop for SizeClass {
    /// The memory goes with the class: nobody may be using it.
    fn drop(&mut self) {
        self.records.iter().for_each(|record| record.slot().contents_written());
    }
}
