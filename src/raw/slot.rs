//! One slot's record: who holds it, and its link in the free list.

use std::fmt;

use crate::sync::{AtomicU32, AtomicU64, Ordering, Witness};

/// What state a slot of a pool is in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SlotState {
    /// In the pool, ready to be handed out.
    Free,
    /// With the program, as a buffer.
    Owned,
    /// The kernel may still read it.
    InFlight,
    /// Cannot be proven released; not handed out until proof comes.
    Quarantined,
}

impl fmt::Display for SlotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Who holds a slot: three counts, packed into its state word. All 0 is Free.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Holders {
    handles: u64,
    leases: u64,
    quarantined: u64,
}

const HANDLE_BITS: u32 = 24;
const LEASE_BITS: u32 = 20;

const FREE: u64 = 0;
/// One handle and nothing else: a unique owner.
const OWNED: u64 = 1;
/// One lease and nothing else: a unique owner's buffer in flight.
const LEASED: u64 = 1 << HANDLE_BITS;

impl Holders {
    fn unpack(word: u64) -> Self {
        Self {
            handles: word & ((1 << HANDLE_BITS) - 1),
            leases: (word >> HANDLE_BITS) & ((1 << LEASE_BITS) - 1),
            quarantined: word >> (HANDLE_BITS + LEASE_BITS),
        }
    }

    /// `None` when a count does not fit.
    fn pack(self) -> Option<u64> {
        let fits = self.handles < 1 << HANDLE_BITS
            && self.leases < 1 << LEASE_BITS
            && self.quarantined < 1 << (64 - HANDLE_BITS - LEASE_BITS);
        fits.then_some(
            self.handles
                | self.leases << HANDLE_BITS
                | self.quarantined << (HANDLE_BITS + LEASE_BITS),
        )
    }

    fn state(self) -> SlotState {
        match self {
            Self { quarantined: 1.., .. } => SlotState::Quarantined,
            Self { leases: 1.., .. } => SlotState::InFlight,
            Self { handles: 1.., .. } => SlotState::Owned,
            _ => SlotState::Free,
        }
    }
}

/// The record of one slot. It lies outside the mapped memory, so that no child process and no
/// stray write to a buffer reaches it.
///
/// # Invariants
///
/// 1. The word is 0 exactly while the slot is at home, being handed home or being handed out: then
///    one thread at most may touch it.
/// 2. Every handle, lease and quarantined lease that exists is counted in the word.
///
/// Each record has a cache line of its own: neighbours are with other threads.
#[derive(Debug)]
#[cfg_attr(not(loom), repr(align(64)))]
pub struct Slot {
    state: AtomicU64,
    next: AtomicU32,
    index: u32,
    contents: Witness,
}

#[cfg(not(loom))]
static_assertions::assert_eq_size!(Slot, [u8; 64]);

impl Slot {
    /// A free slot that is on no list.
    pub fn new(index: u32) -> Self {
        Self {
            state: AtomicU64::new(FREE),
            next: AtomicU32::new(0),
            index,
            contents: Witness::default(),
        }
    }

    /// The state the word says now.
    pub fn state(&self) -> SlotState {
        Holders::unpack(self.word()).state()
    }

    /// Whether there is one handle and nothing else.
    pub(crate) fn is_owned_uniquely(&self) -> bool {
        self.word() == OWNED
    }

    fn word(&self) -> u64 {
        // Relaxed: a snapshot for reports, or the word of a slot that this thread holds alone.
        self.state.load(Ordering::Relaxed)
    }

    // A unique owner's transitions. The caller holds the slot alone, so they are a plain load and
    // store; whoever hands the slot on orders them.

    /// Free to Owned, by whoever took the slot off the free list.
    #[inline]
    pub fn claim(&self) {
        self.step(FREE, OWNED, "handed out");
    }

    /// Owned to Free; the caller puts the slot onto the free list.
    #[inline]
    pub fn recycle(&self) {
        self.step(OWNED, FREE, "recycled");
    }

    /// Owned to InFlight: the handle becomes a lease.
    #[inline]
    pub fn begin_lease(&self) {
        self.step(OWNED, LEASED, "leased");
    }

    /// InFlight to Owned: the lease becomes a handle.
    #[inline]
    pub fn end_lease(&self) {
        self.step(LEASED, OWNED, "given back");
    }

    #[inline]
    fn step(&self, from: u64, to: u64, what: &str) {
        // Relaxed: the caller holds the slot alone (see above).
        let word = self.state.load(Ordering::Relaxed);
        if word != from {
            self.wrong(word, what);
        }
        // Relaxed: as the load; the hand-over that follows publishes it.
        self.state.store(to, Ordering::Relaxed);
    }

    // Counted transitions: several threads may hold the slot.

    /// One handle more, made from a handle.
    pub fn share(&self) {
        // Relaxed: the new handle is made from one that already sees the contents.
        self.count(Ordering::Relaxed, "shared", |holders| {
            (holders.handles > 0).then_some(Holders { handles: holders.handles + 1, ..holders })
        });
    }

    /// One handle less. `true`: it was the last of all; the caller recycles the slot.
    #[must_use]
    pub fn unshare(&self) -> bool {
        // AcqRel: Release partners with the Acquire of the last one out, which hands the slot
        // home and so must come after every holder's last access.
        self.count(Ordering::AcqRel, "unshared", |holders| {
            let handles = holders.handles.checked_sub(1)?;
            Some(Holders { handles, ..holders })
        }) == FREE
    }

    /// One lease more, made from a handle.
    pub fn lease_shared(&self) {
        // Relaxed: as in `share`.
        self.count(Ordering::Relaxed, "leased", |holders| {
            (holders.handles > 0).then_some(Holders { leases: holders.leases + 1, ..holders })
        });
    }

    /// One lease less. `true`: it was the last holder of all; the caller recycles the slot.
    #[must_use]
    pub fn release_shared(&self) -> bool {
        // AcqRel: as in `unshare`.
        self.count(Ordering::AcqRel, "released", |holders| {
            let leases = holders.leases.checked_sub(1)?;
            Some(Holders { leases, ..holders })
        }) == FREE
    }

    /// A lease of which nobody can prove the release.
    pub fn quarantine(&self) {
        // Relaxed: the slot stays out, so nothing is handed over.
        self.count(Ordering::Relaxed, "quarantined", |holders| {
            let leases = holders.leases.checked_sub(1)?;
            Some(Holders { leases, quarantined: holders.quarantined + 1, ..holders })
        });
    }

    /// The late proof for one quarantined lease, which becomes a handle.
    pub fn quarantine_released(&self) {
        // Relaxed: the slot stays out, so nothing is handed over.
        self.count(Ordering::Relaxed, "released from quarantine", |holders| {
            let quarantined = holders.quarantined.checked_sub(1)?;
            Some(Holders { handles: holders.handles + 1, quarantined, ..holders })
        });
    }

    /// Applies `step` to the word and returns the new word.
    fn count(&self, order: Ordering, what: &str, step: impl Fn(Holders) -> Option<Holders>) -> u64 {
        let step = |word| step(Holders::unpack(word)).and_then(Holders::pack);
        // Relaxed (failure): the word is only the input of the next attempt. Success: the
        // caller's, whose comment names the partner.
        match self.state.fetch_update(order, Ordering::Relaxed, step) {
            Ok(old) => step(old).expect("the step was just taken"),
            Err(word) => self.wrong(word, what),
        }
    }

    #[cold]
    fn wrong(&self, word: u64, what: &str) -> ! {
        let Holders { handles, leases, quarantined } = Holders::unpack(word);
        panic!(
            "slot {} cannot be {what}: it is {} ({handles} handles, {leases} leases, \
             {quarantined} quarantined)",
            self.index,
            self.state(),
        );
    }

    /// The link in the free list; the list's head orders it.
    pub(crate) fn next(&self) -> &AtomicU32 {
        &self.next
    }

    /// Tells a model about a read of the slot's memory.
    #[inline(always)]
    pub fn contents_read(&self) {
        self.contents.read();
    }

    /// Tells a model about a write to the slot's memory.
    #[inline(always)]
    pub fn contents_written(&self) {
        self.contents.write();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn owned() -> Slot {
        let slot = Slot::new(7);
        slot.claim();
        slot
    }

    #[test]
    fn the_state_is_derived_from_the_counts() {
        let slot = Slot::new(0);
        assert_eq!(slot.state(), SlotState::Free);
        slot.claim();
        assert_eq!(slot.state(), SlotState::Owned);
        slot.begin_lease();
        assert_eq!(slot.state(), SlotState::InFlight);
        slot.quarantine();
        assert_eq!(slot.state(), SlotState::Quarantined);
        slot.quarantine_released();
        assert_eq!(slot.state(), SlotState::Owned);
        slot.recycle();
        assert_eq!(slot.state(), SlotState::Free);
    }

    #[test]
    fn the_last_holder_out_is_told_so_whatever_the_order() {
        let slot = owned();
        slot.share();
        slot.lease_shared();
        slot.lease_shared();
        assert!(!slot.release_shared());
        assert!(!slot.unshare());
        assert!(!slot.unshare());
        assert_eq!(slot.state(), SlotState::InFlight);
        assert!(slot.release_shared());
        assert_eq!(slot.state(), SlotState::Free);
    }

    #[test]
    fn one_unproven_lease_keeps_a_shared_slot_quarantined() {
        let slot = owned();
        slot.lease_shared();
        slot.lease_shared();
        slot.quarantine();
        assert_eq!(slot.state(), SlotState::Quarantined, "whatever else holds it");
        assert!(!slot.release_shared());
        assert!(!slot.unshare());
        assert_eq!(slot.state(), SlotState::Quarantined);
        slot.quarantine_released();
        assert!(slot.unshare());
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be recycled: it is Free")]
    fn a_double_recycle_panics() {
        let slot = owned();
        slot.recycle();
        slot.recycle();
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be recycled: it is InFlight (0 handles, 1 leases")]
    fn a_slot_in_flight_cannot_be_recycled() {
        let slot = owned();
        slot.begin_lease();
        slot.recycle();
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be handed out: it is Owned")]
    fn a_slot_is_not_handed_out_twice() {
        owned().claim();
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be released")]
    fn a_lease_ends_once() {
        let slot = owned();
        slot.lease_shared();
        let _ = slot.release_shared();
        let _ = slot.release_shared();
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be leased")]
    fn a_count_that_does_not_fit_is_refused() {
        let slot = owned();
        for _ in 0..1 << LEASE_BITS {
            slot.lease_shared();
        }
    }
}
