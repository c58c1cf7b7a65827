//! Those who wait for a slot of a class, in order.

use std::{collections::VecDeque, task::Waker};

use super::freelist::FreeList;
use crate::{
    lock::{Mutex, lock},
    panics::Panics,
};

/// Names one waiter of one class.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct WaitTicket(u64);

/// What became of joining the queue.
#[derive(Debug)]
pub(crate) enum Joined {
    /// A slot was free after all.
    Slot(u32),
    Queued(WaitTicket),
}

#[derive(Debug)]
enum Entry {
    /// `None`: woken, and not asked since.
    Waiting(Option<Waker>),
    Granted(u32),
}

/// A queue of wakers to which slots are handed directly, first come, first served.
///
/// # Invariants (while the lock is not held)
///
/// 1. Tickets ascend along the queue.
/// 2. The first `granted` entries are `Granted`, the others `Waiting`.
/// 3. The free list's `WAITERS` flag is set exactly if there is a `Waiting` entry, unless the list
///    is closed.
///
/// No waker is cloned, woken or dropped under the lock: all three are user code.
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
        // The flag says that the list is empty, and stays while the lock is held. Without it a
        // slot may come home between the two calls: then the flag is refused, and the pop, as
        // others pop too, is tried again.
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

    /// Hands slot `index` to the first waiter and returns its waker, to be woken. `Err`: nobody
    /// waits any more.
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
        queue.settle(free);
        Ok(waker)
    }

    /// The slot handed to this waiter, which leaves the queue with it; else the waiter goes on
    /// waiting, with this waker.
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

    /// Leaves the queue. A slot that was handed over in the meantime is the caller's.
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
                queue.settle(free);
                drop(queue);
                drop(waker);
                None
            }
        }
    }

    /// The wakers of all who still wait, to be woken: something they wait for has changed.
    pub(crate) fn rouse(&self) -> Vec<Waker> {
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

    /// The slots handed over and not yet claimed.
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

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        let queue = lock(&self.queue);
        queue.entries.len() - queue.granted
    }
}

/// Wakes all of them, those behind one that panics too; the panic goes on afterwards.
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
    fn settle(&self, free: &FreeList) {
        if self.granted == self.entries.len() {
            free.clear_waiters();
        }
    }
}
