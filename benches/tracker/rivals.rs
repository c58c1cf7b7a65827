//! The tracker and its rivals.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    num::NonZeroU64,
};

use pinbuf::__internals::{ALONE, CompletionTracker};
use rustc_hash::FxBuildHasher;
use slab::Slab;

/// A tracked value: as large as a sender's lease, with an impossible value for `Option`.
#[derive(Clone, Copy)]
pub(crate) struct Lease {
    pub(crate) number: NonZeroU64,
    _rest: [u64; 9],
}

impl Lease {
    pub(crate) fn new(number: NonZeroU64) -> Self {
        Self { number, _rest: [0; 9] }
    }
}

/// The record of an id: its lease, and the bytes of its call.
pub(crate) type Place = (Lease, u32);

/// Bytes of every call.
const BYTES: u32 = 1460;

/// Knows the leases of outstanding ids.
pub(crate) trait Tracker {
    /// `true` if the tracker returns the leases.
    const KEEPS_LEASES: bool = true;

    fn new(window: usize) -> Self;

    fn issue(&mut self, id: u32, lease: Lease);

    /// Removes the record of one outstanding id.
    fn remove(&mut self, id: u32) -> Place;

    /// Releases the ids of a notification. Returns their bytes.
    fn release(&mut self, lo: u32, hi: u32, mut released: impl FnMut(Lease)) -> usize {
        let mut sum = 0;
        for offset in 0..=hi.wrapping_sub(lo) {
            let (lease, bytes) = self.remove(lo.wrapping_add(offset));
            released(lease);
            sum += bytes as usize;
        }
        sum
    }
}

impl Tracker for CompletionTracker<Lease> {
    fn new(window: usize) -> Self {
        Self::new(window, pinbuf::__internals::NotificationId(0))
    }

    #[inline(always)]
    fn issue(&mut self, _: u32, lease: Lease) {
        assert!(self.has_place(), "no straggler is that old");
        self.insert_issued(|| lease, BYTES);
        assert!(self.settle(ALONE).is_none(), "the lease's id holds it");
    }

    fn remove(&mut self, _: u32) -> Place {
        unreachable!("the tracker releases notifications");
    }

    #[inline(always)]
    fn release(&mut self, lo: u32, hi: u32, mut released: impl FnMut(Lease)) -> usize {
        let released = |lease: &mut Option<Lease>| lease.take().into_iter().for_each(&mut released);
        Self::release(self, lo, hi, released).expect("the ids are outstanding").bytes
    }
}

/// The floor: a place for each id of two windows, without checks.
pub(crate) struct Ring {
    places: Box<[Option<Place>]>,
}

impl Tracker for Ring {
    fn new(window: usize) -> Self {
        Self { places: vec![None; 2 * window].into() }
    }

    #[inline]
    fn issue(&mut self, id: u32, lease: Lease) {
        let mask = self.places.len() - 1;
        self.places[id as usize & mask] = Some((lease, BYTES));
    }

    #[inline]
    fn remove(&mut self, id: u32) -> Place {
        let mask = self.places.len() - 1;
        self.places[id as usize & mask].take().expect("the id is outstanding")
    }
}

/// The cost of the loop around the trackers.
pub(crate) struct Nothing;

impl Tracker for Nothing {
    const KEEPS_LEASES: bool = false;

    fn new(_: usize) -> Self {
        Self
    }

    #[inline]
    fn issue(&mut self, _: u32, lease: Lease) {
        std::hint::black_box(lease);
    }

    #[inline]
    fn remove(&mut self, id: u32) -> Place {
        (Lease::new(NonZeroU64::MIN), id)
    }
}

/// A hash map, with a choice of hashers.
pub(crate) struct Map<S>(HashMap<u32, Place, S>);

impl<S: BuildHasher + Default> Tracker for Map<S> {
    fn new(window: usize) -> Self {
        Self(HashMap::with_capacity_and_hasher(window, S::default()))
    }

    #[inline]
    fn issue(&mut self, id: u32, lease: Lease) {
        self.0.insert(id, (lease, BYTES));
    }

    #[inline]
    fn remove(&mut self, id: u32) -> Place {
        self.0.remove(&id).expect("the id is outstanding")
    }
}

pub(crate) type Std = Map<RandomState>;
pub(crate) type Fx = Map<FxBuildHasher>;
pub(crate) type Foldhash = Map<hashbrown::DefaultHashBuilder>;

/// Maps from ids to leases, and from leases to the number of their ids: folly's shape.
pub(crate) struct TwoMaps {
    leases: HashMap<u32, Lease>,
    counts: HashMap<NonZeroU64, (u32, u32)>,
}

impl Tracker for TwoMaps {
    fn new(window: usize) -> Self {
        let counts = HashMap::with_capacity(window);
        Self { leases: HashMap::with_capacity(window), counts }
    }

    #[inline]
    fn issue(&mut self, id: u32, lease: Lease) {
        self.leases.insert(id, lease);
        let (count, bytes) = self.counts.entry(lease.number).or_default();
        *count += 1;
        *bytes += BYTES;
    }

    #[inline]
    fn remove(&mut self, id: u32) -> Place {
        let lease = self.leases.remove(&id).expect("the id is outstanding");
        let (count, bytes) =
            self.counts.get_mut(&lease.number).expect("a lease with an id has a count");
        *count -= 1;
        let bytes = *bytes;
        if *count == 0 {
            self.counts.remove(&lease.number);
        }
        (lease, bytes)
    }
}

pub(crate) struct Sorted(BTreeMap<u32, Place>);

impl Tracker for Sorted {
    fn new(_: usize) -> Self {
        Self(BTreeMap::new())
    }

    #[inline]
    fn issue(&mut self, id: u32, lease: Lease) {
        self.0.insert(id, (lease, BYTES));
    }

    #[inline]
    fn remove(&mut self, id: u32) -> Place {
        self.0.remove(&id).expect("the id is outstanding")
    }
}

/// A queue from the oldest outstanding id on.
pub(crate) struct IndexedDeque {
    first: u32,
    places: VecDeque<Option<Place>>,
}

impl Tracker for IndexedDeque {
    fn new(window: usize) -> Self {
        Self { first: 0, places: VecDeque::with_capacity(window) }
    }

    #[inline]
    fn issue(&mut self, _: u32, lease: Lease) {
        self.places.push_back(Some((lease, BYTES)));
    }

    #[inline]
    fn remove(&mut self, id: u32) -> Place {
        let at = id.wrapping_sub(self.first) as usize;
        let place = self.places[at].take().expect("the id is outstanding");
        while let Some(None) = self.places.front() {
            self.places.pop_front();
            self.first = self.first.wrapping_add(1);
        }
        place
    }
}

/// A queue, searched from the oldest on.
pub(crate) struct ScannedDeque(VecDeque<(u32, Place)>);

impl Tracker for ScannedDeque {
    fn new(window: usize) -> Self {
        Self(VecDeque::with_capacity(window))
    }

    #[inline]
    fn issue(&mut self, id: u32, lease: Lease) {
        self.0.push_back((id, (lease, BYTES)));
    }

    #[inline]
    fn remove(&mut self, id: u32) -> Place {
        let at = self.0.iter().position(|(other, _)| *other == id);
        self.0.remove(at.expect("the id is outstanding")).expect("the id was found there").1
    }
}

/// A linked list, searched from the oldest on: SPDK's shape. Its nodes come from a table, like
/// SPDK's requests.
pub(crate) struct ListScan {
    nodes: Slab<Node>,
}

struct Node {
    id: u32,
    place: Option<Place>,
    before: usize,
    behind: usize,
}

/// The node in front of the first and behind the last.
const ENDS: usize = 0;

impl Tracker for ListScan {
    fn new(window: usize) -> Self {
        let mut nodes = Slab::with_capacity(window + 1);
        nodes.insert(Node { id: 0, place: None, before: ENDS, behind: ENDS });
        Self { nodes }
    }

    #[inline]
    fn issue(&mut self, id: u32, lease: Lease) {
        let before = self.nodes[ENDS].before;
        let node = Node { id, place: Some((lease, BYTES)), before, behind: ENDS };
        let key = self.nodes.insert(node);
        self.nodes[before].behind = key;
        self.nodes[ENDS].before = key;
    }

    #[inline]
    fn remove(&mut self, id: u32) -> Place {
        let mut key = self.nodes[ENDS].behind;
        while self.nodes[key].id != id {
            assert_ne!(key, ENDS, "the id is outstanding");
            key = self.nodes[key].behind;
        }
        let node = self.nodes.remove(key);
        self.nodes[node.before].behind = node.behind;
        self.nodes[node.behind].before = node.before;
        node.place.expect("only the ends have no place")
    }
}

/// A slab, and a ring with the key of each id: the kernel keeps no key for the sender.
pub(crate) struct SlabBehindRing {
    keys: Box<[u32]>,
    places: Slab<Place>,
}

impl Tracker for SlabBehindRing {
    fn new(window: usize) -> Self {
        Self { keys: vec![0; 2 * window].into(), places: Slab::with_capacity(window) }
    }

    #[inline]
    fn issue(&mut self, id: u32, lease: Lease) {
        let mask = self.keys.len() - 1;
        self.keys[id as usize & mask] = self.places.insert((lease, BYTES)) as u32;
    }

    #[inline]
    fn remove(&mut self, id: u32) -> Place {
        let mask = self.keys.len() - 1;
        self.places.remove(self.keys[id as usize & mask] as usize)
    }
}
