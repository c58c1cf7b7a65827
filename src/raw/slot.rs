//! One slot's state word: who holds it.

use std::fmt;

use crate::sync::{AtomicU64, Ordering, Witness};

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
///
/// They never add up to more than one of them has room for, so that a holder which changes its
/// kind always fits.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Holders {
    handles: u64,
    leases: u64,
    quarantined: u64,
}

const COUNT_BITS: u32 = 21;
const MAX_HOLDERS: u64 = (1 << COUNT_BITS) - 1;

const FREE: u64 = 0;
/// One handle and nothing else.
const OWNED: u64 = 1;
/// One lease and nothing else.
const LEASED: u64 = 1 << COUNT_BITS;
/// One quarantined lease and nothing else.
const QUARANTINED: u64 = 1 << (2 * COUNT_BITS);

impl Holders {
    fn unpack(word: u64) -> Self {
        Self {
            handles: word & MAX_HOLDERS,
            leases: word >> COUNT_BITS & MAX_HOLDERS,
            quarantined: word >> (2 * COUNT_BITS),
        }
    }

    fn pack(self) -> u64 {
        self.handles | self.leases << COUNT_BITS | self.quarantined << (2 * COUNT_BITS)
    }

    fn sum(self) -> u64 {
        self.handles + self.leases + self.quarantined
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

/// The state of one slot. It lies outside the mapped memory, so that no child process and no
/// stray write to a buffer reaches it.
///
/// # Invariants
///
/// 1. The word is 0 exactly while the slot is at home, being handed home or being handed out: then
///    one thread at most may touch it.
/// 2. Every handle, lease and quarantined lease that exists is counted in the word.
#[derive(Debug)]
pub struct Slot {
    state: AtomicU64,
    index: u32,
    contents: Witness,
}

impl Slot {
    /// A free slot.
    pub fn new(index: u32) -> Self {
        Self { state: AtomicU64::new(FREE), index, contents: Witness::default() }
    }

    #[inline]
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// The state the word says now.
    pub fn state(&self) -> SlotState {
        Holders::unpack(self.word()).state()
    }

    /// Whether there is one handle and nothing else: the caller's, who so is alone.
    #[inline]
    pub(crate) fn is_alone(&self) -> bool {
        // Acquire: partner of the Release in `unshare`; what the others did to the contents comes
        // before what a holder does who is alone.
        self.state.load(Ordering::Acquire) == OWNED
    }

    /// Whether there is one quarantined lease and nothing else: the caller's, who so is alone.
    pub(crate) fn is_quarantined_alone(&self) -> bool {
        // Acquire: as in `is_alone`.
        self.state.load(Ordering::Acquire) == QUARANTINED
    }

    fn word(&self) -> u64 {
        // Relaxed: a snapshot for reports.
        self.state.load(Ordering::Relaxed)
    }

    // Who holds the slot alone changes the word with a plain load and store: nobody else may touch
    // it, and nobody comes to hold the slot but through a handle. It learns that it is alone from
    // the word: the oldest one that it can read is that of its own coming, and if others were there
    // since, only their going makes it read so.

    /// Free to Owned, by whoever took the slot off the free list.
    #[inline]
    pub fn claim(&self) {
        self.step(FREE, OWNED, "handed out");
    }

    /// Owned to Free, by the only holder, who sends the slot home.
    #[inline]
    pub fn recycle(&self) {
        self.step(OWNED, FREE, "recycled");
    }

    /// As [`recycle`](Self::recycle), for a holder who may not be the only one: then nothing
    /// happens.
    #[inline]
    #[must_use]
    pub(crate) fn try_recycle(&self) -> bool {
        let alone = self.is_alone();
        if alone {
            // Relaxed: as in `step`.
            self.state.store(FREE, Ordering::Relaxed);
        }
        alone
    }

    /// Ends a lease and sends the slot home, if there is nothing else.
    #[inline]
    #[must_use]
    pub(crate) fn try_recycle_leased(&self) -> bool {
        // Acquire: as in `is_alone`.
        let alone = self.state.load(Ordering::Acquire) == LEASED;
        if alone {
            // Relaxed: as in `step`.
            self.state.store(FREE, Ordering::Relaxed);
        }
        alone
    }

    #[inline]
    fn step(&self, from: u64, to: u64, what: &str) {
        // Relaxed: the caller holds the slot alone, and knows it from an Acquire.
        let word = self.state.load(Ordering::Relaxed);
        if word != from {
            self.wrong(word, what);
        }
        // Relaxed: as the load; the hand-over that follows publishes it.
        self.state.store(to, Ordering::Relaxed);
    }

    // A holder changes its kind. Nobody's hold ends here, so nothing has to be published.

    /// A handle becomes a lease.
    #[inline]
    pub fn begin_lease(&self) {
        self.turn(OWNED, LEASED, "leased", |holders| {
            let handles = holders.handles.checked_sub(1)?;
            Some(Holders { handles, leases: holders.leases + 1, ..holders })
        });
    }

    /// A lease becomes a handle.
    #[inline]
    pub fn end_lease(&self) {
        self.turn(LEASED, OWNED, "given back", |holders| {
            let leases = holders.leases.checked_sub(1)?;
            Some(Holders { handles: holders.handles + 1, leases, ..holders })
        });
    }

    /// A lease of which nobody can prove the release.
    pub fn quarantine(&self) {
        self.turn(LEASED, QUARANTINED, "quarantined", |holders| {
            let leases = holders.leases.checked_sub(1)?;
            Some(Holders { leases, quarantined: holders.quarantined + 1, ..holders })
        });
    }

    /// The late proof for one quarantined lease, which becomes a handle.
    pub fn quarantine_released(&self) {
        self.turn(QUARANTINED, OWNED, "released from quarantine", |holders| {
            let quarantined = holders.quarantined.checked_sub(1)?;
            Some(Holders { handles: holders.handles + 1, quarantined, ..holders })
        });
    }

    /// Turns the only holder, or one of several.
    #[inline]
    fn turn(&self, from: u64, to: u64, what: &str, step: impl Fn(Holders) -> Option<Holders>) {
        // Acquire: as in `is_alone`; the store that follows ends the release sequence of the
        // others' `unshare`, so their Release must have been met here.
        if self.state.load(Ordering::Acquire) == from {
            // Relaxed: the caller is alone.
            self.state.store(to, Ordering::Relaxed);
        } else {
            // Relaxed: continues the release sequences of `unshare`.
            self.count(Ordering::Relaxed, what, step);
        }
    }

    // Holders come and go.

    /// One handle more, made from a handle.
    ///
    /// # Panics
    ///
    /// With 2^21 - 1 holders.
    pub fn share(&self) {
        // Relaxed: the new handle is made from one that already sees the contents.
        self.count(Ordering::Relaxed, "shared", |holders| {
            (holders.handles > 0 && holders.sum() < MAX_HOLDERS)
                .then_some(Holders { handles: holders.handles + 1, ..holders })
        });
    }

    /// One handle less. `true`: it was the last holder of all, and the caller puts the slot onto
    /// the free list.
    #[must_use]
    pub fn unshare(&self) -> bool {
        // AcqRel: Release partners with the Acquire of the last one out, here or in `is_alone`,
        // which hands the slot home and so must come after every holder's last access.
        let word = self.state.fetch_sub(OWNED, Ordering::AcqRel);
        if Holders::unpack(word).handles == 0 {
            self.wrong(word, "unshared");
        }
        word == OWNED
    }

    /// Applies `step` to the word and returns the new word.
    #[inline(never)]
    fn count(&self, order: Ordering, what: &str, step: impl Fn(Holders) -> Option<Holders>) -> u64 {
        let step = |word| step(Holders::unpack(word)).map(Holders::pack);
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
            Holders::unpack(word).state(),
        );
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
        slot.share();
        slot.begin_lease();
        slot.begin_lease();
        slot.end_lease();
        assert!(!slot.unshare());
        assert!(!slot.unshare());
        assert_eq!(slot.state(), SlotState::InFlight);
        slot.end_lease();
        assert!(slot.is_alone());
        assert!(slot.unshare());
        assert_eq!(slot.state(), SlotState::Free);
    }

    #[test]
    fn one_unproven_lease_keeps_a_shared_slot_quarantined() {
        let slot = owned();
        slot.share();
        slot.share();
        slot.begin_lease();
        slot.begin_lease();
        slot.quarantine();
        assert_eq!(slot.state(), SlotState::Quarantined, "whatever else holds it");
        slot.end_lease();
        assert!(!slot.unshare());
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
    #[should_panic(expected = "slot 7 cannot be given back: it is Owned")]
    fn a_lease_ends_once() {
        let slot = owned();
        slot.begin_lease();
        slot.end_lease();
        slot.end_lease();
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be unshared: it is InFlight")]
    fn a_handle_ends_once() {
        let slot = owned();
        slot.begin_lease();
        let _ = slot.unshare();
    }

    #[test]
    fn as_many_holders_as_are_counted_can_all_be_of_one_kind() {
        let slot = owned();
        (1..MAX_HOLDERS).for_each(|_| slot.share());
        (0..MAX_HOLDERS).for_each(|_| slot.begin_lease());
        (0..MAX_HOLDERS).for_each(|_| slot.quarantine());
        assert_eq!(Holders::unpack(slot.word()).quarantined, MAX_HOLDERS);
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be shared: it is Quarantined (1048575 handles")]
    fn a_holder_that_does_not_fit_is_refused() {
        let slot = owned();
        (1..MAX_HOLDERS).for_each(|_| slot.share());
        (0..MAX_HOLDERS / 2).for_each(|_| slot.begin_lease());
        slot.begin_lease();
        slot.quarantine();
        slot.share();
    }
}
