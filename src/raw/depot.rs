//! The depot: the free slots of a class that all threads share.

use std::task::Waker;

use super::{
    freelist::{Diverted, FreeList, Link},
    waiters::{Joined, WaitTicket, Waiters},
};
use crate::sync::CachePadded;

/// The free list of a class, and the queue of the waiters: threads and tasks in need of a slot.
///
/// ```text
///    magazines of threads ---- bundles of slots ----+        +---- single slots ---- other threads
///                                                   v        v
///   depot:  free list  [ closed? waiters? | tag | top ] -> bundle -> bundle -> bundle
///           waiters    [ granted slot 7 | waiting | waiting ]    only while the list is empty
/// ```
///
/// The flags of the free list decide where a pushed slot goes:
///
/// | flags | the list | a pushed slot |
/// |---|---|---|
/// | none | any | lies on top of the list |
/// | `WAITERS` | empty | is granted to the first waiter |
/// | `CLOSED` | empty for good | is given up together with its hold on the pool |
#[derive(Debug)]
pub(crate) struct Depot {
    links: Box<[Link]>,
    /// Slots in a bundle.
    bundle: usize,
    /// On a cache line of its own: the fields above are never written.
    free: CachePadded<FreeList>,
    waiters: Waiters,
}

/// The place of a pushed slot.
#[derive(Debug)]
pub(crate) enum Pushed {
    /// The free list.
    Listed,
    /// A waiter, to be woken.
    Granted(Option<Waker>),
    /// None, since the depot is closed: the slot's hold on the pool is the caller's to drop.
    Closed,
}

impl Depot {
    /// A depot with the slots 0 to `count - 1`, in bundles of `bundle`.
    pub(crate) fn new(count: usize, bundle: usize) -> Self {
        let links: Box<[Link]> = (0..count).map(|_| Link::default()).collect();
        let free = CachePadded::new(FreeList::new(&links, bundle));
        Self { links, bundle, free, waiters: Waiters::default() }
    }

    /// The number of slots in a bundle.
    pub(crate) fn bundle(&self) -> usize {
        self.bundle
    }

    /// Takes the slot on top of the free list. `None`: the list is empty, or a bundle is on top.
    pub(crate) fn pop_single(&self) -> Option<u32> {
        self.free.pop_single(&self.links).ok()
    }

    /// Takes the bundle on top of the free list, and gives the slots to `take`.
    #[inline]
    pub(crate) fn pop_bundle(&self, take: impl FnMut(u32)) {
        self.free.pop(&self.links, take);
    }

    /// Puts `slots` on the free list, in bundles. `false`, and nothing has happened: a flag is set.
    /// The caller keeps the pool alive.
    pub(crate) fn push_all(&self, slots: impl IntoIterator<Item = u32>) -> bool {
        self.free.push_all(&self.links, slots, self.bundle).is_ok()
    }

    /// Puts a slot on the free list. `false`, and nothing has happened: a flag is set.
    ///
    /// After the push the caller may not touch the pool, unless another hold keeps the pool alive.
    /// So the push uses nothing but `free` and `link`, two [`parts`](Self::parts) of the depot.
    #[inline]
    pub(crate) fn push(free: &FreeList, link: &Link, slot: u32) -> bool {
        free.push(slot, link).is_ok()
    }

    /// The arguments of [`push`](Self::push).
    pub(crate) fn parts(&self, slot: u32) -> (&FreeList, &Link) {
        (&self.free, &self.links[slot as usize])
    }

    /// Puts a slot in the place of the flags' table. The caller keeps the pool alive.
    pub(crate) fn push_or_grant(&self, slot: u32) -> Pushed {
        loop {
            match self.free.push(slot, &self.links[slot as usize]) {
                Ok(()) => return Pushed::Listed,
                Err(Diverted::Closed) => return Pushed::Closed,
                Err(Diverted::Waiters) => {
                    if let Ok(waker) = self.waiters.grant(&self.free, slot) {
                        return Pushed::Granted(waker);
                    }
                }
            }
        }
    }

    /// Returns `true` if a thread or task waits for a slot. Exact if a lock orders the call after
    /// the waiter's queueing; see [`Reclaim`](super::reclaim::Reclaim).
    #[inline]
    pub(crate) fn has_waiters(&self) -> bool {
        self.free.has_waiters()
    }

    /// Queues with the waker, and takes the waker, unless `pop` has a slot.
    pub(crate) fn join(&self, pop: impl Fn() -> Option<u32>, waker: &mut Option<Waker>) -> Joined {
        self.waiters.join(&self.free, pop, waker)
    }

    /// The granted slot of a waiter. The waiter leaves the queue. `None`: the waiter stays queued,
    /// with this waker.
    pub(crate) fn claim(&self, ticket: WaitTicket, waker: &Waker) -> Option<u32> {
        self.waiters.claim(ticket, waker)
    }

    /// Takes a waiter off the queue. A slot granted in the meantime is the caller's.
    pub(crate) fn leave(&self, ticket: WaitTicket) -> Option<u32> {
        self.waiters.leave(&self.free, ticket)
    }

    /// The wakers of all waiters, to be woken, if `hopeless` returns `true`: then no slot may ever
    /// come. The queue's lock orders this with [`join`](Self::join).
    pub(crate) fn wake_if(&self, hopeless: impl FnOnce() -> bool) -> Vec<Waker> {
        // The lock comes first, also for a second thread here: the later thread sees both slots.
        if self.waiters.waiting() > 0 && hopeless() { self.waiters.wakers() } else { Vec::new() }
    }

    /// The number of waiters.
    pub(crate) fn waiting(&self) -> usize {
        self.waiters.waiting()
    }

    /// The slots on the free list and the granted slots. Exact only while nothing moves.
    pub(crate) fn slots(&self) -> Vec<u32> {
        let mut slots = self.free.indices(&self.links);
        slots.extend(self.waiters.granted());
        slots
    }

    /// Closes the depot, and returns the number of slots inside. Granted slots count: every waiter
    /// borrows the pool's handle, so the waiters of these were forgotten (`mem::forget`).
    pub(crate) fn close(&self) -> usize {
        self.free.close(&self.links) + self.waiters.granted().len()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn waiting(depot: &Depot) -> WaitTicket {
        match depot.join(|| depot.pop_single(), &mut Some(Waker::noop().clone())) {
            Joined::Queued(ticket) => ticket,
            Joined::Slot(slot) => panic!("slot {slot} is free"),
        }
    }

    #[test]
    fn the_flags_decide_the_way_of_a_pushed_slot() {
        let depot = Depot::new(1, 1);
        assert_eq!(depot.pop_single(), Some(0));
        assert!(matches!(depot.push_or_grant(0), Pushed::Listed));
        assert_eq!(depot.pop_single(), Some(0));
        let ticket = waiting(&depot);
        let (free, link) = depot.parts(0);
        assert!(!Depot::push(free, link, 0), "a waiter is queued");
        assert!(!depot.push_all([0]), "a waiter is queued");
        assert!(matches!(depot.push_or_grant(0), Pushed::Granted(Some(_))));
        assert_eq!(depot.slots(), [0]);
        assert_eq!(depot.claim(ticket, Waker::noop()), Some(0));
        assert_eq!(depot.close(), 0);
        assert!(matches!(depot.push_or_grant(0), Pushed::Closed));
    }

    #[test]
    fn closing_counts_listed_and_granted_slots() {
        let depot = Depot::new(3, 1);
        let popped = [(); 3].map(|()| depot.pop_single().unwrap());
        waiting(&depot);
        assert!(matches!(depot.push_or_grant(popped[0]), Pushed::Granted(_)));
        assert!(matches!(depot.push_or_grant(popped[1]), Pushed::Listed));
        assert_eq!(depot.close(), 2);
    }

    #[test]
    fn waiters_are_woken_if_no_slot_can_come() {
        let depot = Depot::new(1, 1);
        assert!(depot.wake_if(|| unreachable!("no waiter is queued")).is_empty());
        depot.pop_single();
        waiting(&depot);
        assert!(depot.wake_if(|| false).is_empty());
        assert_eq!(depot.wake_if(|| true).len(), 1);
    }
}
