//! The ids in flight: the leases of each, and the release of both.
//!
//! Pure bookkeeping: no I/O, no synchronisation, no clock. A lease is entered once and covered by
//! any number of ids (a send accepted in parts). An id covers any number of leases (a vectored
//! send). The tracker returns a lease at its last hold, in any order of notifications.
//!
//! ```text
//!   ring, indexed by id & mask             table of leases
//!   ... | 7: A | 8: A | 9: -> b | 10: -> b | b: holds 3 | c: holds 2, link d | d: holds 2
//!         |             `--------`- parts    `- the sender's own hold, until all is accepted
//!         `- a lease of one id, and alone on it
//! ```
//!
//! The lease of the current send waits in the place of the next id. Nearly always the lease has
//! this id only, and shares the id with no other lease: then the lease stays in the place. Its
//! notification finds the lease with one access to memory instead of a table's two. With a million
//! ids in flight these accesses are the cost of a release. All other leases move to the table.
//!
//! The ring grows with the ids in flight and spans at most four windows. An older outstanding id (a
//! straggler) moves to a bounded side list. So a send without acknowledgement costs no memory,
//! however many sends follow.

use std::{fmt, mem, ops::Range};

use crate::id::{IdRange, NotificationId};

mod heir;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use heir::Heir;
use table::{NONE, Table};

/// Ring places after the first lease.
const FIRST_RING: usize = 2;

/// Ring places below which no straggler is set aside.
const MIN_RING: usize = 4;

/// Bound of the side list, for windows larger than this.
const MAX_STRAGGLERS: usize = 1024;

/// Names a lease in a [`CompletionTracker`] until the lease is settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseKey(u32);

/// The key of a lease entered while all others were settled.
pub const ALONE: LeaseKey = LeaseKey(NONE);

/// In place of an id: no lease is under [`ALONE`].
const NO_LEASE: u64 = u64::MAX;

/// In place of an id: the lease under [`ALONE`] is in the table.
const IN_TABLE: u64 = u64::MAX - 1;

/// The ids released by one notification.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Released {
    /// The ids.
    pub ids: IdRange,
    /// Bytes of their calls.
    pub bytes: usize,
}

/// The notification named ids that are not outstanding. Nothing was released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownIds;

/// Maps outstanding notification ids to their leases.
///
/// # Invariants
///
/// 1. `ring_base <= next`, `next - ring_base <= ring.len()`, and `ring.len()` is 0 or a power of
///    two.
/// 2. An id in `ring_base..next` is outstanding exactly if its ring place is not vacant; `holes` of
///    them are not. An id below `ring_base` is outstanding exactly if it is in `stragglers`, which
///    is sorted by id. `ring_base` is outstanding or equals `next`. All other places are vacant,
///    except the place of `next` if `alone` is `next`.
/// 3. A lease in a place is covered by the id of the place only, and is settled unless the id is
///    `alone`. The holds of a lease in the table are its outstanding ids, plus one until the sender
///    [settles](Self::settle) the lease. `linked` outstanding ids cover leases in the table.
/// 4. The links from the head in an id's place lead to exactly the leases of the id. Only the last
///    lease of a run can be covered by further ids, each on its own, so one link per lease is
///    enough.
#[repr(C)]
pub struct CompletionTracker<T> {
    // First in memory: the fields for every id.
    ring: Vec<Place<T>>,
    ring_base: u64,
    next: u64,
    holes: u64,
    /// The first id without room: `ring_base` plus the ring's length, or 0 while there are
    /// stragglers.
    limit: u64,
    /// The id from `ring_base` to `next` with the lease under [`ALONE`] in its place.
    alone: u64,
    stragglers: Vec<(u64, Place<T>)>,
    linked: usize,
    window: usize,
    /// The key in the table of the lease under [`ALONE`], if the lease is there.
    alone_key: u32,
    table: Table<T>,
}

/// The leases of one id, and the bytes of its call.
struct Place<T> {
    /// The only lease, unless in the table.
    lease: Option<T>,
    /// Otherwise the first lease of the run, in the table.
    head: u32,
    bytes: u32,
}

impl<T> Place<T> {
    const VACANT: Self = Self { lease: None, head: NONE, bytes: 0 };

    /// Returns `true` if the id is released, or was never issued.
    #[inline]
    fn is_vacant(&self) -> bool {
        self.lease.is_none() && self.head == NONE
    }

    /// Puts the only lease here; the place is vacant.
    #[inline(always)]
    fn put(&mut self, lease: T) {
        let vacant = self.lease.replace(lease);
        debug_assert!(vacant.is_none());
        // Nothing to drop, but the compiler cannot know this.
        mem::forget(vacant);
    }

    fn take(&mut self) -> Self {
        mem::replace(self, Self::VACANT)
    }
}

impl<T> CompletionTracker<T> {
    /// Creates a tracker for up to `window` ids in flight, with `first` as its first id.
    ///
    /// More ids may be issued; the window only sizes the ring's span and the side list. Allocates
    /// nothing until the first lease is entered.
    pub fn new(window: usize, first: NotificationId) -> Self {
        Self {
            ring: Vec::new(),
            table: Table::new(),
            stragglers: Vec::new(),
            ring_base: first.0,
            next: first.0,
            holes: 0,
            linked: 0,
            limit: 0,
            alone: NO_LEASE,
            alone_key: NONE,
            window: window.max(1),
        }
    }

    /// The next id for [`issue`](Self::issue).
    #[inline]
    pub fn next_id(&self) -> NotificationId {
        NotificationId(self.next)
    }

    /// The oldest outstanding id.
    #[inline]
    pub fn oldest(&self) -> Option<NotificationId> {
        (self.outstanding() > 0).then(|| NotificationId(self.base()))
    }

    /// Number of outstanding ids.
    #[inline]
    pub fn outstanding(&self) -> usize {
        (self.next - self.ring_base - self.holes) as usize + self.stragglers.len()
    }

    /// Returns `true` if no id is outstanding.
    #[inline]
    pub fn is_idle(&self) -> bool {
        // Invariant 2.
        self.ring_base == self.next && self.stragglers.is_empty()
    }

    /// Number of leases entered and not yet given back.
    pub fn leases(&self) -> usize {
        // Derived: a counter would be changed twice by every send.
        let in_places = self.outstanding() - self.linked + usize::from(self.alone == self.next);
        in_places + self.table.len()
    }

    /// Ring places now allocated, and ids on the side list.
    pub fn footprint(&self) -> (usize, usize) {
        (self.ring.len(), self.stragglers.len())
    }

    /// Enters a lease, with one hold for the sender until all of the lease is sent.
    ///
    /// # Panics
    ///
    /// With 2^32 - 1 leases in the table.
    #[inline(always)]
    pub fn insert(&mut self, lease: T) -> LeaseKey {
        if !self.has_place() {
            return self.insert_in_table(lease);
        }
        self.place_mut(self.next).put(lease);
        self.alone = self.next;
        ALONE
    }

    /// Enters a lease under [`ALONE`] and [issues](Self::issue) an id for this lease only, with a
    /// call of `bytes`. `lease` constructs the value in its place. Requires
    /// [`has_place`](Self::has_place).
    #[inline(always)]
    pub fn insert_issued(&mut self, lease: impl FnOnce() -> T, bytes: u32) -> NotificationId {
        debug_assert!(self.alone == NO_LEASE);
        let id = self.next;
        let place = self.place_mut(id);
        place.put(lease());
        place.bytes = bytes;
        self.alone = id;
        self.next += 1;
        NotificationId(id)
    }

    /// Returns `true` if the next lease can have a place: all others are settled, and the place of
    /// the next id is available.
    #[inline(always)]
    pub fn has_place(&mut self) -> bool {
        self.alone == NO_LEASE && (self.next < self.limit || self.make_room())
    }

    #[cold]
    fn insert_in_table(&mut self, lease: T) -> LeaseKey {
        LeaseKey(self.table.insert(lease, 1))
    }

    /// The lease under `key`.
    ///
    /// # Panics
    ///
    /// If the lease is settled.
    #[inline]
    pub fn get_mut(&mut self, key: LeaseKey) -> &mut T {
        let lease = match key {
            ALONE if self.alone <= self.next => self.place_mut(self.alone).lease.as_mut(),
            _ => self.table.get_mut(self.table_key(key)),
        };
        lease.expect("a key names an entered lease")
    }

    /// Issues the next id, covering `run` in order with a call of `bytes`. Must come *before* the
    /// system call: the notification can arrive before the call returns.
    ///
    /// A lease with an outstanding id may only be issued on its own (invariant 4). Returns `None`,
    /// with nothing changed, if a straggler blocks the ring and the side list is full, or if the
    /// oldest straggler is 2^32 ids old. The sender then copies until the release of the straggler.
    #[inline]
    pub fn issue(&mut self, run: &[LeaseKey], bytes: u32) -> Option<NotificationId> {
        if run != [ALONE] || self.alone != self.next {
            return self.issue_run(run, bytes);
        }
        let id = self.next;
        self.place_mut(id).bytes = bytes;
        self.next += 1;
        Some(NotificationId(id))
    }

    /// Issues the next id for leases in the table.
    #[inline(never)]
    fn issue_run(&mut self, run: &[LeaseKey], bytes: u32) -> Option<NotificationId> {
        self.move_to_table();
        debug_assert!(!run.is_empty());
        debug_assert!(
            run.len() == 1 || run.iter().all(|key| self.table.holds(self.table_key(*key)) == 1)
        );
        if self.next >= self.limit && !self.make_room() {
            return None;
        }
        let mut head = NONE;
        for key in run.iter().rev() {
            let key = self.table_key(*key);
            self.table.hold(key, head);
            head = key;
        }
        let id = self.next;
        *self.place_mut(id) = Place { lease: None, head, bytes };
        self.linked += 1;
        self.next += 1;
        Some(NotificationId(id))
    }

    /// Takes back `id`, which the kernel did not use: the system call failed.
    ///
    /// Returns `false`, with nothing changed, if a notification has released the id in the
    /// meantime: then the kernel did use the id.
    ///
    /// # Panics
    ///
    /// If `id` is not the last one issued.
    pub fn cancel(&mut self, id: NotificationId) -> bool {
        assert_eq!(id.0 + 1, self.next, "only the last id issued can be taken back");
        if id.0 < self.ring_base || self.place(id.0).is_vacant() {
            return false;
        }
        // A lease under ALONE can stay: its place belongs to the next id again.
        if self.alone != id.0 {
            let run = self.place_mut(id.0).take();
            self.linked -= 1;
            self.unhold(run.head);
        }
        self.next -= 1;
        true
    }

    /// Limits `id` to the first `keep` leases of its run: the kernel accepted no byte of the
    /// others. Does nothing if the id is already released.
    pub fn trim(&mut self, id: NotificationId, keep: usize) {
        debug_assert!(keep > 0);
        if id.0 < self.ring_base || self.place(id.0).head == NONE {
            return;
        }
        let mut last = self.place(id.0).head;
        for _ in 1..keep {
            last = self.table.link(last);
        }
        let rest = self.table.cut(last);
        self.unhold(rest);
    }

    /// Ends the sender's hold on a lease: all of it is accepted. Returns the lease if all its ids
    /// are released.
    #[inline]
    pub fn settle(&mut self, key: LeaseKey) -> Option<T> {
        if key != ALONE || self.alone >= self.next {
            return self.settle_slow(key);
        }
        // From here on the lease has the hold of its id only.
        self.alone = NO_LEASE;
        None
    }

    /// Ends the sender's hold on a lease that has no id, or is in the table.
    #[inline(never)]
    fn settle_slow(&mut self, key: LeaseKey) -> Option<T> {
        let table_key = self.table_key(key);
        if key == ALONE && mem::replace(&mut self.alone, NO_LEASE) == self.next {
            return self.place_mut(self.next).lease.take();
        }
        self.table.drop_hold(table_key)
    }

    /// Releases the ids `lo..=hi` of a notification, as the kernel wrote them, and passes each
    /// lease without a hold to `heir`.
    ///
    /// # Errors
    ///
    /// [`UnknownIds`], with nothing released, if any id of the range is not outstanding.
    #[inline]
    pub fn release(
        &mut self,
        lo: u32,
        hi: u32,
        mut heir: impl Heir<T>,
    ) -> Result<Released, UnknownIds> {
        // The usual notification: one id with a lease of its own. A straggler's distance from
        // `ring_base`, backwards, is beyond `next`, since all outstanding ids are less than 2^32
        // apart.
        let id = self.ring_base + u64::from(lo.wrapping_sub(self.ring_base as u32));
        if lo == hi && id < self.next && id != self.alone {
            let place = self.place_mut(id);
            if place.lease.is_some() {
                let bytes = place.bytes as usize;
                heir.take(&mut place.lease);
                debug_assert!(place.lease.is_none());
                self.leave_ring(id..id + 1);
                let ids = IdRange { start: NotificationId(id), end: NotificationId(id + 1) };
                return Ok(Released { ids, bytes });
            }
        }
        self.release_range(lo, hi, heir)
    }

    /// Releases the ids of any notification.
    #[inline(never)]
    fn release_range(
        &mut self,
        lo: u32,
        hi: u32,
        mut heir: impl Heir<T>,
    ) -> Result<Released, UnknownIds> {
        let base = NotificationId(self.base());
        let ids = IdRange::extend(lo, hi, base, self.next_id()).ok_or(UnknownIds)?;
        let in_ring = ids.start.0.max(self.ring_base)..ids.end.0.max(self.ring_base);
        if in_ring.contains(&self.alone) {
            self.move_to_table();
        }
        if self.holes > 0 && in_ring.clone().any(|id| self.place(id).is_vacant()) {
            return Err(UnknownIds);
        }
        let mut bytes = 0;
        if ids.start.0 < self.ring_base {
            let below = ids.start.0..ids.end.0.min(self.ring_base);
            bytes += self.release_stragglers(below, &mut heir)?;
        }
        let Self { ring, table, linked, .. } = self;
        // The places lie in one piece, or in two around the end of the ring.
        let start = in_ring.start as usize & (ring.len() - 1);
        let count = (in_ring.end - in_ring.start) as usize;
        let (front, back) = ring.split_at_mut(start);
        let in_back = count.min(back.len());
        for places in [&mut back[..in_back], &mut front[..count - in_back]] {
            for place in places {
                bytes += place.bytes as usize;
                if place.lease.is_some() {
                    heir.take(&mut place.lease);
                    debug_assert!(place.lease.is_none());
                } else {
                    *linked -= 1;
                    table.drop_holds(mem::replace(&mut place.head, NONE), &mut heir);
                }
            }
        }
        self.leave_ring(in_ring);
        Ok(Released { ids, bytes })
    }

    /// Releases every outstanding id: the socket's option memory read 0.
    pub fn release_all(&mut self, mut heir: impl Heir<T>) {
        self.move_to_table();
        let stragglers = mem::take(&mut self.stragglers).into_iter().map(|(_, place)| place);
        for place in stragglers.chain(mem::take(&mut self.ring)) {
            self.release_place(place, &mut heir);
        }
        self.ring_base = self.next;
        self.holes = 0;
        self.linked = 0;
        self.limit = 0;
    }

    /// All leases, in no particular order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let stragglers = self.stragglers.iter_mut().map(|(_, place)| place);
        let places = self.ring.iter_mut().chain(stragglers);
        self.table.iter_mut().chain(places.filter_map(|place| place.lease.as_mut()))
    }

    #[inline]
    fn place(&self, id: u64) -> &Place<T> {
        &self.ring[id as usize & (self.ring.len() - 1)]
    }

    #[inline]
    fn place_mut(&mut self, id: u64) -> &mut Place<T> {
        let mask = self.ring.len() - 1;
        &mut self.ring[id as usize & mask]
    }

    /// The key of a lease in the table.
    fn table_key(&self, key: LeaseKey) -> u32 {
        if key == ALONE { self.alone_key } else { key.0 }
    }

    /// Moves the lease under ALONE to the table, before any change other than its release.
    #[cold]
    fn move_to_table(&mut self) {
        let id = self.alone;
        if id > self.next {
            return;
        }
        let lease = self.place_mut(id).lease.take().expect("the lease under ALONE is in its place");
        let is_issued = id < self.next;
        self.alone = IN_TABLE;
        self.alone_key = self.table.insert(lease, 1 + u32::from(is_issued));
        if is_issued {
            self.place_mut(id).head = self.alone_key;
            self.linked += 1;
        }
    }

    /// The oldest id that may be outstanding.
    #[inline]
    fn base(&self) -> u64 {
        self.stragglers.first().map_or(self.ring_base, |(id, _)| *id)
    }

    /// Removes `ids` of the ring from the outstanding ids.
    #[inline]
    fn leave_ring(&mut self, ids: Range<u64>) {
        if ids.start > self.ring_base {
            self.holes += ids.end - ids.start;
        } else {
            self.ring_base = ids.end;
            self.advance();
        }
    }

    /// Sets `limit` after a change of the ring or the stragglers.
    #[inline]
    fn set_limit(&mut self) {
        let end = self.ring_base + self.ring.len() as u64;
        self.limit = if self.stragglers.is_empty() { end } else { 0 };
    }

    /// Moves `ring_base` over the holes behind it.
    #[inline]
    fn advance(&mut self) {
        while self.holes > 0 && self.place(self.ring_base).is_vacant() {
            self.ring_base += 1;
            self.holes -= 1;
        }
        self.set_limit();
    }

    /// Makes room for a further id. A full ring grows while at least a quarter is in use; otherwise
    /// the oldest id, a straggler, moves to the side list.
    #[cold]
    fn make_room(&mut self) -> bool {
        let is_full = self.next - self.ring_base == self.ring.len() as u64;
        (!is_full || self.grow() || self.move_to_side_list())
            && self.next - self.base() < u64::from(u32::MAX)
    }

    fn grow(&mut self) -> bool {
        let in_ring = self.outstanding() - self.stragglers.len();
        let span = self.window.saturating_mul(4).max(MIN_RING).next_power_of_two();
        if !self.ring.is_empty() && (in_ring * 4 <= self.ring.len() || self.ring.len() >= span) {
            return false;
        }
        let len = (self.ring.len() * 2).max(FIRST_RING);
        let mut ring: Vec<_> = (0..len).map(|_| Place::VACANT).collect();
        for id in self.ring_base..self.next {
            ring[id as usize & (len - 1)] = self.place_mut(id).take();
        }
        self.ring = ring;
        self.set_limit();
        true
    }

    /// Moves the oldest id of the ring to the side list. Returns `false` if the list is full.
    fn move_to_side_list(&mut self) -> bool {
        if self.stragglers.len() == self.window.min(MAX_STRAGGLERS) {
            return false;
        }
        let place = self.place_mut(self.ring_base).take();
        self.stragglers.push((self.ring_base, place));
        self.ring_base += 1;
        self.advance();
        true
    }

    /// Releases `ids`, all below the ring; each must be on the side list. The caller sets `limit`.
    #[cold]
    fn release_stragglers(
        &mut self,
        ids: Range<u64>,
        heir: &mut impl Heir<T>,
    ) -> Result<usize, UnknownIds> {
        let first = self.stragglers.partition_point(|(id, _)| *id < ids.start);
        let last = self.stragglers.partition_point(|(id, _)| *id < ids.end);
        if (last - first) as u64 != ids.end - ids.start {
            return Err(UnknownIds);
        }
        let mut bytes = 0;
        for at in first..last {
            let place = self.stragglers[at].1.take();
            bytes += place.bytes as usize;
            self.linked -= usize::from(place.lease.is_none());
            self.release_place(place, heir);
        }
        self.stragglers.drain(first..last);
        Ok(bytes)
    }

    /// Drops one hold of each lease of a place; nothing if the place is vacant.
    fn release_place(&mut self, mut place: Place<T>, heir: &mut impl Heir<T>) {
        if place.lease.is_some() {
            heir.take(&mut place.lease);
        } else {
            self.table.drop_holds(place.head, heir);
        }
    }

    /// Drops one hold of each lease of a refused run; the sender's holds keep all of them.
    fn unhold(&mut self, head: u32) {
        let unreachable =
            |_: &mut Option<T>| unreachable!("the sender holds a lease it is sending");
        self.table.drop_holds(head, &mut { unreachable });
    }
}

impl<T> fmt::Debug for CompletionTracker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionTracker")
            .field("oldest", &self.oldest())
            .field("next", &self.next)
            .field("outstanding", &self.outstanding())
            .field("leases", &self.leases())
            .field("stragglers", &self.stragglers.len())
            .finish_non_exhaustive()
    }
}
