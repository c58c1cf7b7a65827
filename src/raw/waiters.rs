//! The queue of the waiters for a slot of a class.

use std::{collections::VecDeque, task::Waker};

use super::freelist::FreeList;
use crate::{
    lock::{Mutex, lock},
    panics::Panics,
};

/// The name of a waiter in the queue of a class.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct WaitTicket(u64);

/// The outcome of joining the queue.
#[derive(Debug)]
pub(crate) enum Joined {
    /// A slot was free after all.
    Slot(u32),
    Queued(WaitTicket),
}

#[derive(Debug)]
enum Entry {
    /// `None`: woken, and not polled since.
    Waiting(Option<Waker>),
    Granted(u32),
}

/// A queue of wakers to which slots are granted directly, in the order of arrival.
///
/// | an entry | becomes | in | by |
/// |---|---|---|---|
/// | none | waiting | `join` | a waiter that finds no slot |
/// | waiting | granted a slot | `grant` | a thread that recycles a slot |
/// | granted | none, the slot is the waiter's | `claim`, `leave` | the waiter |
/// | waiting | none | `leave` | the waiter |
///
/// # Invariants (while the lock is not held)
///
/// 1. Tickets ascend along the queue.
/// 2. The first `granted` entries are `Granted`, the rest are `Waiting`.
/// 3. The free list's `WAITERS` flag is set exactly if there is a `Waiting` entry, unless the list
///    is closed.
///
/// No waker is cloned, woken or dropped under the lock, because all three are user code.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    next_ticket: u64,
    granted: usize,
    entries: VecDeque<(WaitTicket, Entry)>,
}

impl Waiters {
    /// Joins the queue with the waker, unless `pop` has a slot of the list.
    pub(crate) fn join(
        &self,
        free: &FreeList,
        pop: impl Fn() -> Option<u32>,
        waker: &mut Option<Waker>,
    ) -> Joined {
        let mut queue = lock(&self.queue);
        // The flag means that the list is empty, and stays set while this lock is held. Without the
        // flag a slot may be pushed between the two calls. Then the flag is refused, and the pop is
        // tried again, since another thread may pop that slot first.
        while !free.has_waiters() {
            if let Some(index) = pop() {
                return Joined::Slot(index);
            }
            if free.set_waiters() {
                break;
            }
        }
        let ticket = WaitTicket(queue.next_ticket);
        queue.next_ticket += 1;
        queue.entries.push_back((ticket, Entry::Waiting(waker.take())));
        Joined::Queued(ticket)
    }

    /// Grants slot `index` to the first waiter and returns the waiter's waker, to be woken. `Err`:
    /// there is no waiter any more.
    pub(crate) fn grant(&self, free: &FreeList, index: u32) -> Result<Option<Waker>, ()> {
        let mut queue = lock(&self.queue);
        if !free.has_waiters() {
            return Err(());
        }
        let first = queue.granted;
        let (_, entry) = queue.entries.get_mut(first).ok_or(())?;
        let Entry::Waiting(waker) = std::mem::replace(entry, Entry::Granted(index)) else {
            unreachable!("the entries after the granted ones wait");
        };
        queue.granted += 1;
        queue.update_flag(free);
        Ok(waker)
    }

    /// The granted slot of this waiter. The waiter leaves the queue. `None`: the waiter stays
    /// queued, with this waker.
    pub(crate) fn claim(&self, ticket: WaitTicket, waker: &Waker) -> Option<u32> {
        let mut replaced = Some(waker.clone());
        let mut queue = lock(&self.queue);
        let at = queue.find(ticket);
        match &mut queue.entries[at].1 {
            Entry::Granted(index) => {
                let index = *index;
                queue.granted -= 1;
                queue.entries.remove(at);
                Some(index)
            }
            Entry::Waiting(current) => {
                std::mem::swap(current, &mut replaced);
                None
            }
        }
        // The lock is released before `replaced` is dropped: locals drop in reverse order.
    }

    /// Takes the waiter off the queue. A slot granted in the meantime is the caller's.
    pub(crate) fn leave(&self, free: &FreeList, ticket: WaitTicket) -> Option<u32> {
        let mut queue = lock(&self.queue);
        let at = queue.find(ticket);
        let (_, entry) = queue.entries.remove(at).expect("`find` found it");
        match entry {
            Entry::Granted(index) => {
                queue.granted -= 1;
                Some(index)
            }
            Entry::Waiting(waker) => {
                queue.update_flag(free);
                drop(queue);
                drop(waker);
                None
            }
        }
    }

    /// Takes the wakers of all waiting entries, to be woken. The entries stay.
    pub(crate) fn wakers(&self) -> Vec<Waker> {
        let mut queue = lock(&self.queue);
        let granted = queue.granted;
        let waiting = queue.entries.iter_mut().skip(granted);
        waiting
            .filter_map(|(_, entry)| match entry {
                Entry::Waiting(waker) => waker.take(),
                Entry::Granted(_) => None,
            })
            .collect()
    }

    /// The granted slots without a claim.
    pub(crate) fn granted(&self) -> Vec<u32> {
        let queue = lock(&self.queue);
        let entries = queue.entries.iter().take(queue.granted);
        entries
            .filter_map(|(_, entry)| match entry {
                Entry::Granted(index) => Some(*index),
                Entry::Waiting(_) => None,
            })
            .collect()
    }

    /// The number of waiting entries.
    pub(crate) fn waiting(&self) -> usize {
        let queue = lock(&self.queue);
        queue.entries.len() - queue.granted
    }
}

/// Wakes all of them. If a waker panics, the rest are woken first, and then the panic resumes.
pub(crate) fn wake_all(wakers: Vec<Waker>) {
    let mut panics = Panics::default();
    panics.catch_each(wakers.into_iter(), Waker::wake);
    panics.resume();
}

impl Queue {
    fn find(&self, ticket: WaitTicket) -> usize {
        self.entries
            .binary_search_by_key(&ticket, |(ticket, _)| *ticket)
            .expect("a ticket is used until it leaves the queue")
    }

    /// Keeps invariant 3 after an entry stopped waiting.
    fn update_flag(&self, free: &FreeList) {
        if self.granted == self.entries.len() {
            free.clear_waiters();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{panic, task::Wake};

    use super::{super::freelist::Link, *};
    use crate::sync::{Arc, AtomicUsize, Ordering};

    #[test]
    fn a_closed_list_grants_no_slot() {
        let links = [Link::default()];
        let (free, waiters) = (FreeList::new(&links, 1), Waiters::default());
        let pop = || free.pop_single(&links).ok();
        assert_eq!(pop(), Some(0));
        let joined = waiters.join(&free, pop, &mut Some(Waker::noop().clone()));
        assert!(matches!(joined, Joined::Queued(_)));
        assert_eq!(free.close(&links), 0);
        assert!(waiters.grant(&free, 0).is_err(), "nothing would drop the slot's hold");
        assert_eq!((waiters.granted(), waiters.waiting()), (vec![], 1));
    }

    #[test]
    fn a_waiter_with_a_slot_waits_no_more() {
        let links = [Link::default()];
        let (free, waiters) = (FreeList::new(&links, 1), Waiters::default());
        let pop = || free.pop_single(&links).ok();
        assert_eq!(pop(), Some(0));
        for _ in 0..2 {
            waiters.join(&free, pop, &mut Some(Waker::noop().clone()));
        }
        assert_eq!(waiters.waiting(), 2);
        assert!(waiters.grant(&free, 0).is_ok());
        assert_eq!(waiters.waiting(), 1);
    }

    #[test]
    fn a_waker_that_panics_keeps_no_other_asleep() {
        struct Woken(AtomicUsize);

        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                let before = self.0.fetch_add(1, Ordering::Relaxed);
                assert_ne!(before, 0, "the first wake-up");
            }
        }

        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let wakers = (0..3).map(|_| Waker::from(Arc::clone(&woken))).collect();
        assert!(panic::catch_unwind(|| wake_all(wakers)).is_err());
        assert_eq!(woken.0.load(Ordering::Relaxed), 3);
    }
}
