//! The state word of a slot: a count of the slot's holders.

use std::fmt;

use crate::sync::{AtomicU64, Ordering, Witness};

/// The state of a slot of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum SlotState {
    /// In the pool, ready to be allocated.
    Free,
    /// With the program, as a buffer.
    Owned,
    /// The kernel may still read it.
    InFlight,
    /// Cannot be proven released; not allocated again until proof comes.
    Quarantined,
}

impl fmt::Display for SlotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The holders of a slot: three counts, packed into the state word. All 0 is Free.
///
/// The sum never exceeds the room of one count. So a holder can always change its kind.
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

/// The state of one slot: the counts of its holders in one atomic word, of which [`SlotState`] is
/// derived.
///
/// ```text
///   bits    62..42: quarantined leases | 41..21: leases | 20..0: handles
/// ```
///
/// | from | to | method | by |
/// |---|---|---|---|
/// | nothing | one handle | `claim` | the thread that took the Free slot |
/// | one handle alone | nothing | `recycle`, `try_recycle` | that handle, an exclusive buffer |
/// | one lease alone | nothing | `try_recycle_leased` | the sender, with the proof of release |
/// | handle | handle, handle | `share` | a handle |
/// | handle | - | `unshare` | that handle; the last holder frees the slot |
/// | handle | lease | `begin_lease` | the sender, before the first call |
/// | lease | handle | `end_lease` | the sender, with the proof of release |
/// | lease | quarantined lease | `quarantine` | the sender, if no proof can come |
/// | quarantined lease | handle | `quarantine_released` | the sender, with the late proof |
///
/// # Invariants
///
/// 1. The word is 0 exactly while the slot is free, or on its way into or out of a magazine, the
///    depot, or a grant. Then one thread at most may touch the word.
/// 2. Every handle, lease and quarantined lease that exists is counted in the word.
#[derive(Debug)]
pub struct StateWord {
    state: AtomicU64,
    index: u32,
    contents: Witness,
}

impl StateWord {
    /// The word of a free slot.
    pub fn new(index: u32) -> Self {
        Self { state: AtomicU64::new(FREE), index, contents: Witness::default() }
    }

    #[inline]
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// The state that the word says now.
    pub fn state(&self) -> SlotState {
        Holders::unpack(self.word()).state()
    }

    /// Returns `true` if the caller's handle is the only holder.
    #[inline]
    pub(crate) fn is_alone(&self) -> bool {
        // Acquire: partner of the Release in `unshare`. All accesses of former holders come
        // before the accesses of a sole holder.
        self.state.load(Ordering::Acquire) == OWNED
    }

    /// Returns `true` if the caller's quarantined lease is the only holder.
    pub(crate) fn is_quarantined_alone(&self) -> bool {
        // Acquire: as in `is_alone`.
        self.state.load(Ordering::Acquire) == QUARANTINED
    }

    fn word(&self) -> u64 {
        // Relaxed: a snapshot for reports.
        self.state.load(Ordering::Relaxed)
    }

    // A sole holder may use plain loads and stores, because new holders are made only from existing
    // handles. Reading "one holder" is proof: by coherence the load cannot return a value older
    // than this holder's own arrival, and if others joined since, only their Release decrement
    // could bring the count back. The Acquire load in `is_alone` pairs with it.

    /// Free to Owned, after the caller took the slot out of a magazine, the depot or a grant.
    #[inline]
    pub fn claim(&self) {
        self.step(FREE, OWNED, "handed out");
    }

    /// Owned to Free, by the only holder.
    #[inline]
    pub fn recycle(&self) {
        self.step(OWNED, FREE, "recycled");
    }

    /// As [`recycle`](Self::recycle), for a holder that may not be alone: then nothing
    /// happens, and the answer is `false`.
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

    /// InFlight to Free, by a lease that is the only holder. Otherwise nothing happens, and the
    /// answer is `false`.
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
        // Relaxed: the caller is the sole holder, as an Acquire has shown.
        let word = self.state.load(Ordering::Relaxed);
        if word != from {
            self.wrong(word, what);
        }
        // Relaxed: as the load; the hand-over afterwards publishes the word.
        self.state.store(to, Ordering::Relaxed);
    }

    // A holder changes its kind. No hold ends here, so nothing has to be published.

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

    /// A lease without a proof of release becomes a quarantined lease.
    pub fn quarantine(&self) {
        self.turn(LEASED, QUARANTINED, "quarantined", |holders| {
            let leases = holders.leases.checked_sub(1)?;
            Some(Holders { leases, quarantined: holders.quarantined + 1, ..holders })
        });
    }

    /// A quarantined lease becomes a handle, with the late proof.
    pub fn quarantine_released(&self) {
        self.turn(QUARANTINED, OWNED, "released from quarantine", |holders| {
            let quarantined = holders.quarantined.checked_sub(1)?;
            Some(Holders { handles: holders.handles + 1, quarantined, ..holders })
        });
    }

    /// Changes the kind of the only holder, or of one of several.
    #[inline]
    fn turn(&self, from: u64, to: u64, what: &str, step: impl Fn(Holders) -> Option<Holders>) {
        // Acquire: as in `is_alone`. The store that follows ends the release sequences of former
        // holders' `unshare`, so this load has to synchronise with them.
        if self.state.load(Ordering::Acquire) == from {
            // Relaxed: the caller is alone.
            self.state.store(to, Ordering::Relaxed);
        } else {
            // Relaxed: continues the release sequences of `unshare`.
            self.count(Ordering::Relaxed, what, step);
        }
    }

    // A holder arrives or leaves.

    /// One handle more, made from a handle.
    ///
    /// # Panics
    ///
    /// With 2^21 - 1 holders.
    pub fn share(&self) {
        // Relaxed: the new handle is made from a handle, which already sees the contents.
        self.count(Ordering::Relaxed, "shared", |holders| {
            (holders.handles > 0 && holders.sum() < MAX_HOLDERS)
                .then_some(Holders { handles: holders.handles + 1, ..holders })
        });
    }

    /// One handle less. Returns `true` if the handle was the last holder: then the slot is Free,
    /// and the caller's to push.
    #[must_use]
    pub fn unshare(&self) -> bool {
        // AcqRel: Release partners with the Acquire of the last holder, here or in `is_alone`. So
        // the next use of the slot comes after the last access of every holder.
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
        // Relaxed (failure): the word is only the input of the next attempt. Success: the order of
        // the caller, where a comment names the partner.
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

    fn owned() -> StateWord {
        let word = StateWord::new(7);
        word.claim();
        word
    }

    #[test]
    fn the_state_is_derived_from_the_counts() {
        let word = StateWord::new(0);
        assert_eq!(word.state(), SlotState::Free);
        word.claim();
        assert_eq!(word.state(), SlotState::Owned);
        word.begin_lease();
        assert_eq!(word.state(), SlotState::InFlight);
        word.quarantine();
        assert_eq!(word.state(), SlotState::Quarantined);
        word.quarantine_released();
        assert_eq!(word.state(), SlotState::Owned);
        word.recycle();
        assert_eq!(word.state(), SlotState::Free);
    }

    #[test]
    fn the_last_holder_frees_the_slot_in_any_order() {
        let word = owned();
        word.share();
        word.share();
        word.begin_lease();
        word.begin_lease();
        word.end_lease();
        assert!(!word.unshare());
        assert!(!word.unshare());
        assert_eq!(word.state(), SlotState::InFlight);
        word.end_lease();
        assert!(word.is_alone());
        assert!(word.unshare());
        assert_eq!(word.state(), SlotState::Free);
    }

    #[test]
    fn one_unproven_lease_keeps_a_shared_slot_quarantined() {
        let word = owned();
        word.share();
        word.share();
        word.begin_lease();
        word.begin_lease();
        word.quarantine();
        assert_eq!(word.state(), SlotState::Quarantined, "a handle and a lease hold it too");
        word.end_lease();
        assert!(!word.unshare());
        assert!(!word.unshare());
        assert_eq!(word.state(), SlotState::Quarantined);
        word.quarantine_released();
        assert!(word.unshare());
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be recycled: it is Free")]
    fn a_double_recycle_panics() {
        let word = owned();
        word.recycle();
        word.recycle();
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be recycled: it is InFlight (0 handles, 1 leases")]
    fn a_slot_in_flight_cannot_be_recycled() {
        let word = owned();
        word.begin_lease();
        word.recycle();
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be handed out: it is Owned")]
    fn a_slot_is_not_handed_out_twice() {
        owned().claim();
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be given back: it is Owned")]
    fn a_lease_ends_once() {
        let word = owned();
        word.begin_lease();
        word.end_lease();
        word.end_lease();
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be unshared: it is InFlight")]
    fn a_handle_ends_once() {
        let word = owned();
        word.begin_lease();
        let _ = word.unshare();
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be shared: it is InFlight (0 handles, 1 leases")]
    fn only_a_handle_is_shared() {
        let word = owned();
        word.begin_lease();
        word.share();
    }

    #[test]
    fn all_counted_holders_can_be_of_one_kind() {
        let word = owned();
        (1..MAX_HOLDERS).for_each(|_| word.share());
        (0..MAX_HOLDERS).for_each(|_| word.begin_lease());
        (0..MAX_HOLDERS).for_each(|_| word.quarantine());
        assert_eq!(Holders::unpack(word.word()).quarantined, MAX_HOLDERS);
    }

    #[test]
    fn only_a_sole_lease_is_recycled_in_place() {
        let [handle, two, quarantined, lease] = [owned(), owned(), owned(), owned()];
        two.share();
        two.begin_lease();
        [&two, &quarantined, &lease].into_iter().for_each(StateWord::begin_lease);
        quarantined.quarantine();
        assert!([&handle, &two, &quarantined].iter().all(|word| !word.try_recycle_leased()));
        assert!(lease.try_recycle_leased());
        let states = [&handle, &two, &quarantined, &lease].map(StateWord::state);
        let [owned, in_flight] = [SlotState::Owned, SlotState::InFlight];
        assert_eq!(states, [owned, in_flight, SlotState::Quarantined, SlotState::Free]);
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be shared: it is Owned (2097151 handles")]
    fn a_handle_too_many_is_refused() {
        let word = owned();
        (0..MAX_HOLDERS).for_each(|_| word.share());
    }

    #[test]
    #[should_panic(expected = "slot 7 cannot be shared: it is Quarantined (1048575 handles")]
    fn a_holder_that_does_not_fit_is_refused() {
        let word = owned();
        (1..MAX_HOLDERS).for_each(|_| word.share());
        (0..MAX_HOLDERS / 2).for_each(|_| word.begin_lease());
        word.begin_lease();
        word.quarantine();
        word.share();
    }
}
