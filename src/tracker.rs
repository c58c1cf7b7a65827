//! Which notification ids cover which leases, and which of them the kernel has released.
//!
//! Pure bookkeeping: no I/O, no synchronisation, no clock. A lease is entered once and covered by
//! any number of ids (a send accepted in parts); an id covers any number of leases (a vectored
//! send). The lease leaves with its last count, whatever the order of the notes.
//!
//! ```text
//!   ring, indexed by id & mask         lease table
//!   ... | 7: a | 8: a | 9: b | ...     a: holds 3            b: holds 2, link c    c: holds 2
//!         `------`- two parts of a           `- the sender's own hold, until all is accepted
//! ```
//!
//! The ring holds eight bytes per id. It grows with the ids in flight and spans at most four
//! windows; an older id that is still outstanding (a straggler) moves to a bounded side list, so
//! that one send that a peer never acknowledges costs no memory however many follow it.

use std::fmt;

use crate::id::{IdRange, NotificationId};

/// No lease: the id of this ring place is released, or was never issued.
const NONE: u32 = u32::MAX;

/// What one id covers: the first lease of its run, and the bytes of its call.
#[derive(Clone, Copy)]
struct Place {
    head: u32,
    bytes: u32,
}

const VACANT: Place = Place { head: NONE, bytes: 0 };

/// Ring places of a tracker that has issued its first id.
const MIN_RING: usize = 16;

/// Bound of the side list, for windows larger than this.
const MAX_STRAGGLERS: usize = 1024;

/// Names a lease in a [`CompletionTracker`] while the tracker has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseKey(u32);

/// The ids of one note, all released by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Released {
    /// The ids.
    pub ids: IdRange,
    /// Bytes of their calls.
    pub bytes: usize,
}

/// A note named ids that are not outstanding; nothing of it was released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownIds;

/// Maps outstanding notification ids to the leases they cover.
///
/// # Invariants
///
/// 1. `ring_base <= next`, `next - ring_base <= ring.len()`, and `ring.len()` is 0 or a power of
///    two.
/// 2. An id in `ring_base..next` is outstanding exactly if its ring place is not `NONE`; an id
///    below `ring_base` exactly if it is in `stragglers`, which is sorted by id. `ring_base` is
///    outstanding or equals `next`.
/// 3. `holds` of a lease is the number of outstanding ids that cover it, plus one until the
///    sender [settles](Self::settle) it.
/// 4. Following `link` from the lease in an id's place gives exactly the leases of that id. Only
///    the last lease of a run can be covered by further ids, each on its own, so one link per
///    lease is enough.
pub struct CompletionTracker<T> {
    ring: Vec<Place>,
    table: Vec<Entry<T>>,
    /// Head of the list of vacant table entries, linked by `link`.
    vacant: u32,
    stragglers: Vec<(u64, Place)>,
    ring_base: u64,
    next: u64,
    outstanding: usize,
    leases: usize,
    window: usize,
}

struct Entry<T> {
    lease: Option<T>,
    holds: u32,
    link: u32,
}

impl<T> CompletionTracker<T> {
    /// A tracker for up to `window` ids in flight, whose first id is `first`.
    ///
    /// More ids may be issued; the window only sizes the ring's span and the side list. Allocates
    /// nothing until the first lease is entered.
    pub fn new(window: usize, first: NotificationId) -> Self {
        Self {
            ring: Vec::new(),
            table: Vec::new(),
            vacant: NONE,
            stragglers: Vec::new(),
            ring_base: first.0,
            next: first.0,
            outstanding: 0,
            leases: 0,
            window: window.max(1),
        }
    }

    /// The id that the next [`issue`](Self::issue) gives out.
    #[inline]
    pub fn next_id(&self) -> NotificationId {
        NotificationId(self.next)
    }

    /// The oldest outstanding id.
    pub fn oldest(&self) -> Option<NotificationId> {
        (self.outstanding > 0).then(|| NotificationId(self.base()))
    }

    /// Number of outstanding ids.
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Number of leases entered and not yet given back.
    pub fn leases(&self) -> usize {
        self.leases
    }

    /// Ring places now allocated, and ids on the side list.
    pub fn footprint(&self) -> (usize, usize) {
        (self.ring.len(), self.stragglers.len())
    }

    /// Enters a lease, with one hold for the sender that has yet to send all of it.
    ///
    /// # Panics
    ///
    /// With 2^32 - 1 leases entered.
    #[inline]
    pub fn insert(&mut self, lease: T) -> LeaseKey {
        let entry = Entry { lease: Some(lease), holds: 1, link: NONE };
        let key = self.vacant;
        if key == NONE {
            let key = u32::try_from(self.table.len()).ok().filter(|key| *key != NONE);
            let key = key.expect("fewer than 2^32 - 1 leases");
            self.table.push(entry);
            self.leases += 1;
            return LeaseKey(key);
        }
        let place = &mut self.table[key as usize];
        self.vacant = place.link;
        *place = entry;
        self.leases += 1;
        LeaseKey(key)
    }

    /// The lease under `key`.
    ///
    /// # Panics
    ///
    /// When the lease has been given back.
    #[inline]
    pub fn get(&self, key: LeaseKey) -> &T {
        self.table[key.0 as usize].lease.as_ref().expect("a key names an entered lease")
    }

    /// The lease under `key`, to be changed.
    ///
    /// # Panics
    ///
    /// When the lease has been given back.
    #[inline]
    pub fn get_mut(&mut self, key: LeaseKey) -> &mut T {
        self.table[key.0 as usize].lease.as_mut().expect("a key names an entered lease")
    }

    /// Gives out the next id, covering `run` in order with a call of `bytes`. To be called *before* the system call: the
    /// note can be there before the call returns.
    ///
    /// A lease that an outstanding id covers already may only be issued on its own (invariant 4).
    /// `None`, with nothing changed, when a straggler stands in the way and the side list is
    /// full, or when it is 2^32 ids old: send by copy until it is released.
    #[inline]
    pub fn issue(&mut self, run: &[LeaseKey], bytes: u32) -> Option<NotificationId> {
        debug_assert!(!run.is_empty());
        debug_assert!(
            run.len() == 1 || run.iter().all(|key| self.table[key.0 as usize].holds == 1)
        );
        if self.next - self.ring_base == self.ring.len() as u64 && !self.make_room() {
            return None;
        }
        if self.next - self.base() >= u64::from(u32::MAX) {
            return None;
        }
        let mut link = NONE;
        for key in run.iter().rev() {
            let entry = &mut self.table[key.0 as usize];
            entry.holds += 1;
            entry.link = link;
            link = key.0;
        }
        let id = self.next;
        let place = self.place(id);
        self.ring[place] = Place { head: link, bytes };
        self.next += 1;
        self.outstanding += 1;
        Some(NotificationId(id))
    }

    /// Takes back `id`, which the kernel did not use: the system call failed.
    ///
    /// `false`, with nothing changed, when a note has released the id in the meantime: then it was
    /// used after all.
    ///
    /// # Panics
    ///
    /// When `id` is not the last one issued.
    pub fn cancel(&mut self, id: NotificationId) -> bool {
        assert_eq!(id.0 + 1, self.next, "only the last id issued can be taken back");
        if id.0 < self.ring_base || self.ring[self.place(id.0)].head == NONE {
            return false;
        }
        let place = self.place(id.0);
        let run = std::mem::replace(&mut self.ring[place], VACANT);
        self.unhold(run.head);
        self.next -= 1;
        self.outstanding -= 1;
        true
    }

    /// Limits `id` to the first `keep` leases of its run: the kernel accepted no byte of the
    /// others. Nothing to do when the id is released already.
    pub fn trim(&mut self, id: NotificationId, keep: usize) {
        debug_assert!(keep > 0);
        if id.0 < self.ring_base || self.ring[self.place(id.0)].head == NONE {
            return;
        }
        let mut last = self.ring[self.place(id.0)].head;
        for _ in 1..keep {
            last = self.table[last as usize].link;
        }
        let rest = std::mem::replace(&mut self.table[last as usize].link, NONE);
        self.unhold(rest);
    }

    /// Ends the sender's hold on a lease: all of it is accepted. Gives the lease back if every id
    /// that covers it is released.
    #[inline]
    pub fn settle(&mut self, key: LeaseKey) -> Option<T> {
        self.let_go(key.0)
    }

    /// Releases the ids `lo..=hi` of a note, as the kernel wrote them, and gives each lease that
    /// lost its last hold to `on_released`.
    ///
    /// # Errors
    ///
    /// [`UnknownIds`], and nothing is released, when any id of the range is not outstanding.
    pub fn release(
        &mut self,
        lo: u32,
        hi: u32,
        mut on_released: impl FnMut(T),
    ) -> Result<Released, UnknownIds> {
        let base = NotificationId(self.base());
        let range = IdRange::extend(lo, hi, base, self.next_id()).ok_or(UnknownIds)?;
        let in_ring = range.start.0.max(self.ring_base)..range.end.0.max(self.ring_base);
        if in_ring.clone().any(|id| self.ring[self.place(id)].head == NONE) {
            return Err(UnknownIds);
        }
        let mut bytes = 0;
        if range.start.0 < self.ring_base {
            bytes += self.release_stragglers(
                range.start.0..range.end.0.min(self.ring_base),
                &mut on_released,
            )?;
        }
        for id in in_ring.clone() {
            let place = self.place(id);
            let run = std::mem::replace(&mut self.ring[place], VACANT);
            self.release_run(run.head, &mut on_released);
            bytes += run.bytes as usize;
        }
        self.outstanding -= (in_ring.end - in_ring.start) as usize;
        if in_ring.start == self.ring_base {
            self.advance();
        }
        Ok(Released { ids: range, bytes })
    }

    /// Releases every outstanding id: the socket's option memory read 0.
    pub fn release_all(&mut self, mut on_released: impl FnMut(T)) {
        for (_, run) in std::mem::take(&mut self.stragglers) {
            self.release_run(run.head, &mut on_released);
        }
        for id in self.ring_base..self.next {
            let place = self.place(id);
            let run = std::mem::replace(&mut self.ring[place], VACANT);
            self.release_run(run.head, &mut on_released);
        }
        self.ring_base = self.next;
        self.outstanding = 0;
    }

    /// Every lease, in no particular order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.table.iter_mut().filter_map(|entry| entry.lease.as_mut())
    }

    #[inline]
    fn place(&self, id: u64) -> usize {
        id as usize & (self.ring.len() - 1)
    }

    /// The oldest id that may be outstanding.
    #[inline]
    fn base(&self) -> u64 {
        self.stragglers.first().map_or(self.ring_base, |(id, _)| *id)
    }

    /// Moves `ring_base` to the oldest outstanding id of the ring.
    #[inline]
    fn advance(&mut self) {
        while self.ring_base < self.next && self.ring[self.place(self.ring_base)].head == NONE {
            self.ring_base += 1;
        }
    }

    /// Makes room for one more id in a full ring: by growing while at least a quarter of it is
    /// in use, else by moving its oldest id, a straggler, to the side list.
    fn make_room(&mut self) -> bool {
        let in_ring = self.outstanding - self.stragglers.len();
        let span = self.window.saturating_mul(4).max(MIN_RING).next_power_of_two();
        if self.ring.is_empty() || (in_ring * 4 > self.ring.len() && self.ring.len() < span) {
            let mut ring = vec![VACANT; (self.ring.len() * 2).max(MIN_RING)];
            let mask = ring.len() - 1;
            for id in self.ring_base..self.next {
                ring[id as usize & mask] = self.ring[self.place(id)];
            }
            self.ring = ring;
            return true;
        }
        if self.stragglers.len() == self.window.min(MAX_STRAGGLERS) {
            return false;
        }
        let place = self.place(self.ring_base);
        let run = std::mem::replace(&mut self.ring[place], VACANT);
        self.stragglers.push((self.ring_base, run));
        self.advance();
        true
    }

    /// Releases `ids`, all below the ring; each must be on the side list.
    fn release_stragglers(
        &mut self,
        ids: std::ops::Range<u64>,
        on_released: &mut impl FnMut(T),
    ) -> Result<usize, UnknownIds> {
        let count = (ids.end - ids.start) as usize;
        let first = self.stragglers.partition_point(|(id, _)| *id < ids.start);
        let last = self.stragglers.partition_point(|(id, _)| *id < ids.end);
        if last - first != count {
            return Err(UnknownIds);
        }
        let mut bytes = 0;
        for at in first..last {
            let (_, run) = self.stragglers[at];
            self.release_run(run.head, on_released);
            bytes += run.bytes as usize;
        }
        self.stragglers.drain(first..last);
        self.outstanding -= count;
        Ok(bytes)
    }

    /// Drops one hold of each lease of the run that starts at `head`.
    #[inline]
    fn release_run(&mut self, head: u32, on_released: &mut impl FnMut(T)) {
        let mut key = head;
        while key != NONE {
            let link = self.table[key as usize].link;
            if let Some(lease) = self.let_go(key) {
                on_released(lease);
            }
            key = link;
        }
    }

    /// Drops one hold of each lease of a run that the kernel did not take; the sender's own hold
    /// keeps them all.
    fn unhold(&mut self, head: u32) {
        self.release_run(head, &mut |_| unreachable!("the sender holds a lease it is sending"));
    }

    #[inline]
    fn let_go(&mut self, key: u32) -> Option<T> {
        let entry = &mut self.table[key as usize];
        entry.holds = entry.holds.checked_sub(1).expect("a lease that is let go of has a hold");
        if entry.holds > 0 {
            return None;
        }
        entry.link = self.vacant;
        self.vacant = key;
        self.leases -= 1;
        entry.lease.take()
    }
}

impl<T> fmt::Debug for CompletionTracker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionTracker")
            .field("oldest", &self.oldest())
            .field("next", &self.next)
            .field("outstanding", &self.outstanding)
            .field("leases", &self.leases)
            .field("stragglers", &self.stragglers.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
