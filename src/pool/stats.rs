//! Counting slots, and accounting for them.

use std::fmt;

use crate::raw::{RawPool, SizeClass, SlotState};

/// The number of slots of a pool in each state; from [`Pool::stats`](crate::Pool::stats).
///
/// ```
/// let pool = pinbuf::Pool::builder().class(4096, 4).class(65536, 2).build()?;
/// let _buf = pool.try_alloc(10_000)?;
/// let stats = pool.stats();
/// assert_eq!(stats.free(), 5);
/// assert_eq!((stats.classes[1].capacity, stats.classes[1].owned), (65536, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PoolStats {
    /// One entry per size class, in ascending order of capacity.
    pub classes: Vec<ClassStats>,
    /// Bytes of former pages in the hands of the kernel, for sends without proof of release. The
    /// slots have new pages. At most a quarter of the pool.
    pub replaced_bytes: usize,
}

/// The number of slots of one size class in each state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ClassStats {
    /// Capacity of each slot in bytes.
    pub capacity: usize,
    /// Number of slots, in whatever state.
    pub slots: usize,
    /// Slots ready to be handed out.
    pub free: usize,
    /// Slots with the program, as buffers.
    pub owned: usize,
    /// Slots that the kernel may still read.
    pub in_flight: usize,
    /// Slots that cannot be proven released; not allocated until proof comes.
    pub quarantined: usize,
    /// Waiters for a slot of this class.
    pub waiting: usize,
}

impl PoolStats {
    pub(super) fn read(pool: &RawPool) -> Self {
        Self {
            classes: pool.classes().iter().map(ClassStats::read).collect(),
            replaced_bytes: pool.replaced_bytes(),
        }
    }

    /// Free slots of all classes.
    pub fn free(&self) -> usize {
        self.classes.iter().map(|class| class.free).sum()
    }

    /// Owned slots of all classes.
    pub fn owned(&self) -> usize {
        self.classes.iter().map(|class| class.owned).sum()
    }

    /// Slots in flight, of all classes.
    pub fn in_flight(&self) -> usize {
        self.classes.iter().map(|class| class.in_flight).sum()
    }

    /// Quarantined slots of all classes.
    pub fn quarantined(&self) -> usize {
        self.classes.iter().map(|class| class.quarantined).sum()
    }
}

impl ClassStats {
    fn read(class: &SizeClass) -> Self {
        let mut stats = Self {
            capacity: class.capacity(),
            slots: class.slots().len(),
            waiting: if class.is_forked() { 0 } else { class.depot().waiting() },
            ..Self::default()
        };
        for slot in class.slots() {
            match slot.word().state() {
                SlotState::Free => stats.free += 1,
                SlotState::Owned => stats.owned += 1,
                SlotState::InFlight => stats.in_flight += 1,
                SlotState::Quarantined => stats.quarantined += 1,
            }
        }
        stats
    }
}

/// An account of every slot of a pool; from [`Pool::audit`](crate::Pool::audit).
///
/// ```
/// let pool = pinbuf::Pool::new(4096, 4)?;
/// let audit = pool.audit();
/// for mismatch in &audit.mismatches {
///     println!("{mismatch}");
/// }
/// assert_eq!(audit.to_string(), "4 free, 0 owned, 0 in flight, 0 quarantined; 0 mismatches");
/// # Ok::<(), pinbuf::BuildError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Audit {
    /// The states of all slots.
    pub stats: PoolStats,
    /// The slots with contradictory records.
    pub mismatches: Vec<Mismatch>,
}

/// A slot with contradictory records in the pool.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Mismatch {
    /// Capacity of its size class in bytes.
    pub capacity: usize,
    /// The slot's number within the class.
    pub slot: u32,
    /// The state of the slot's own state word.
    pub state: SlotState,
    /// The contradiction.
    pub kind: MismatchKind,
}

/// A contradiction in the records of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum MismatchKind {
    /// A Free slot, but neither on the free list nor handed to a waiter: lost.
    Lost,
    /// On the free list or handed to a waiter, but not Free: the slot can be handed out while in
    /// use.
    InUse,
    /// On the free list, or handed to waiters, more than once.
    Repeated,
}

impl Audit {
    pub(super) fn run(pool: &RawPool) -> Self {
        let mut mismatches = Vec::new();
        for class in pool.classes() {
            audit_class(class, &mut mismatches);
        }
        Self { stats: PoolStats::read(pool), mismatches }
    }

    /// Returns `true` if every slot is accounted for.
    pub fn is_clean(&self) -> bool {
        self.mismatches.is_empty()
    }
}

fn audit_class(class: &SizeClass, mismatches: &mut Vec<Mismatch>) {
    // In a child the magazines are empty and the locks may be taken for ever.
    if class.is_forked() {
        return;
    }
    let mut listed = vec![0_u32; class.slots().len()];
    for index in class.free_slots() {
        listed[index as usize] += 1;
    }
    for (index, (slot, listed)) in class.slots().iter().zip(listed).enumerate() {
        let state = slot.word().state();
        let kind = match (state, listed) {
            (SlotState::Free, 0) => MismatchKind::Lost,
            (_, 2..) => MismatchKind::Repeated,
            (SlotState::Owned | SlotState::InFlight | SlotState::Quarantined, 1) => {
                MismatchKind::InUse
            }
            _ => continue,
        };
        let (capacity, slot) = (class.capacity(), index as u32);
        mismatches.push(Mismatch { capacity, slot, state, kind });
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stats, mismatches } = self;
        write!(
            f,
            "{} free, {} owned, {} in flight, {} quarantined; {} mismatches",
            stats.free(),
            stats.owned(),
            stats.in_flight(),
            stats.quarantined(),
            mismatches.len(),
        )?;
        mismatches.iter().try_for_each(|mismatch| write!(f, "\n{mismatch}"))
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { capacity, slot, state, kind } = self;
        write!(f, "slot {slot} of the class of {capacity} bytes: {state}, but {kind}")
    }
}

impl fmt::Display for MismatchKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "neither on the free list nor handed to a waiter",
            Self::InUse => "on the free list or handed to a waiter",
            Self::Repeated => "listed more than once",
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::pool::Pool;

    fn mismatches(pool: &Pool) -> Vec<(u32, SlotState, MismatchKind)> {
        let audit = pool.audit();
        audit.mismatches.iter().map(|o| (o.slot, o.state, o.kind)).collect()
    }

    #[test]
    fn a_free_slot_that_is_nowhere_is_named() {
        let pool = Pool::new(4096, 2).unwrap();
        let class = &pool.raw().classes()[0];
        let lost = class.depot().pop_single().unwrap();
        assert_eq!(mismatches(&pool), [(lost, SlotState::Free, MismatchKind::Lost)]);
        assert!(pool.audit().to_string().contains("slot 0 of the class of 4096 bytes: Free, but"));
        assert!(class.depot().push_all([lost]));
        assert!(pool.audit().is_clean());
    }

    #[test]
    fn a_listed_slot_in_use_is_named() {
        let pool = Pool::new(4096, 2).unwrap();
        let slot = pool.raw().classes()[0].slot(1).word();
        slot.claim();
        assert_eq!(mismatches(&pool), [(1, SlotState::Owned, MismatchKind::InUse)]);
        slot.recycle();
    }

    #[test]
    fn a_slot_listed_twice_is_named() {
        let pool = Pool::new(4096, 1).unwrap();
        let class = &pool.raw().classes()[0];
        assert!(class.depot().push_all([0]));
        assert_eq!(mismatches(&pool), [(0, SlotState::Free, MismatchKind::Repeated)]);
        // The slot's hold on the pool would be dropped twice.
        std::mem::forget(pool);
    }
}
