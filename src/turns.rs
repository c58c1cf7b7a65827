//! Members that take turns in rounds: a stream that waits for a release is looked at from time to time.

use std::{collections::VecDeque, mem};

use crate::{
    lock::{Mutex, lock},
    panics::Panics,
    sync::{Arc, AtomicU32, Ordering, Weak},
};

/// Most turns of a round. The members behind have theirs in the next rounds.
const MOST: usize = 64;

/// A member of a list of [`Turns`].
pub trait Member: Send + Sync {
    /// The mark of the list.
    fn listed(&self) -> &Listed;

    /// Returns `true` if the member wants a turn, or a further one. What makes the answer `true` and the answer
    /// itself are under one lock.
    fn wants_turn(&self) -> bool;

    /// The turn of the member, with no lock held.
    fn take_turn(&self);

    /// Wakes the tasks that wait for the member, with no lock held: each waits anew.
    fn wake(&self);
}

/// 1 while a member is on the list.
#[derive(Debug, Default)]
pub struct Listed(AtomicU32);

/// The list.
///
/// | thread that comes to want a turn | round |
/// |---|---|
/// | 1. changes the member, with the lock of [`Member::wants_turn`] | 1. clears the mark |
/// | 2. reads the mark: listed already? | 2. asks whether the member wants a further turn |
/// | 3. sets the mark, and adds the member if this set it | 3. if so, as on the left |
///
/// The lock orders the two: the round sees the change, or the thread sees the cleared mark.
#[derive(Debug)]
pub struct Turns<M: ?Sized>(Mutex<Queue<M>>);

#[derive(Debug)]
struct Queue<M: ?Sized> {
    members: VecDeque<Weak<M>>,
    /// A task makes the rounds.
    is_served: bool,
}

impl<M: ?Sized> Default for Turns<M> {
    fn default() -> Self {
        Self(Mutex::new(Queue { members: VecDeque::new(), is_served: false }))
    }
}

impl<M: Member + ?Sized> Turns<M> {
    /// Returns `true` if a member wants a turn and is not on the list.
    #[inline]
    pub fn is_missing(member: &M) -> bool {
        // Relaxed: the lock of `wants_turn` orders this load and the store of a round.
        member.listed().0.load(Ordering::Relaxed) == 0 && member.wants_turn()
    }

    /// Puts a missing member on the list. Returns `true` if no task makes the rounds: the caller has one begin.
    #[must_use]
    pub fn add(&self, member: &Arc<M>) -> bool {
        let mut queue = lock(&self.0);
        // Relaxed: changed from 0 with the lock held only.
        if member.listed().0.swap(1, Ordering::Relaxed) == 1 {
            return false;
        }
        queue.members.push_back(Arc::downgrade(member));
        !mem::replace(&mut queue.is_served, true)
    }

    /// Makes a round. Returns `false` if no member is left and the rounds are over.
    pub fn round(&self) -> bool {
        let due: Vec<_> = {
            let mut queue = lock(&self.0);
            let turns = queue.members.len().min(MOST);
            queue.members.drain(..turns).collect()
        };
        Panics::default().catch_each(due.into_iter(), |member| {
            let Some(member) = member.upgrade() else { return };
            member.take_turn();
            // Relaxed: as in `is_missing`.
            member.listed().0.store(0, Ordering::Relaxed);
            if Self::is_missing(&member) {
                let begins = self.add(&member);
                debug_assert!(!begins, "this is the task that makes the rounds");
            }
            // The last owner of the member may be here, and its drop runs user code.
        });
        let mut queue = lock(&self.0);
        queue.is_served = !queue.members.is_empty();
        queue.is_served
    }

    /// The task that makes the rounds is gone. The tasks of the members are woken, and the first that waits anew
    /// has the rounds begin in its own runtime.
    pub fn abandon(&self) {
        let members = {
            let mut queue = lock(&self.0);
            queue.is_served = false;
            mem::take(&mut queue.members)
        };
        Panics::default().catch_each(members.into_iter(), |member| {
            let Some(member) = member.upgrade() else { return };
            // Relaxed: as in `is_missing`. Before the wake-ups: their lock orders the two as in a round.
            member.listed().0.store(0, Ordering::Relaxed);
            member.wake();
            // The last owner of the member may be here, as in a round.
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::resume_unwind;

    use super::*;

    /// Its turn or its wake-up drops its only owner outside the list.
    struct Stream {
        listed: Listed,
        owner: Mutex<Option<Arc<Self>>>,
        calls: Arc<AtomicU32>,
    }

    impl Stream {
        fn end(&self) {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let owner = lock(&self.owner).take();
            drop(owner);
        }
    }

    impl Member for Stream {
        fn listed(&self) -> &Listed {
            &self.listed
        }

        fn wants_turn(&self) -> bool {
            true
        }

        fn take_turn(&self) {
            self.end();
        }

        fn wake(&self) {
            self.end();
        }
    }

    impl Drop for Stream {
        fn drop(&mut self) {
            resume_unwind(Box::new("a drop"));
        }
    }

    fn three(turns: &Turns<Stream>) -> Arc<AtomicU32> {
        let calls = Arc::<AtomicU32>::default();
        for _ in 0..3 {
            let (listed, owner) = Default::default();
            let stream = Arc::new(Stream { listed, owner, calls: Arc::clone(&calls) });
            *lock(&stream.owner) = Some(Arc::clone(&stream));
            let _ = turns.add(&stream);
        }
        calls
    }

    #[test]
    fn a_panicking_drop_costs_no_other_member_its_turn() {
        let turns = Turns::default();
        let calls = three(&turns);
        while turns.round() && calls.load(Ordering::Relaxed) < 100 {}
        assert!(calls.load(Ordering::Relaxed) >= 3);
    }

    #[test]
    fn a_panicking_drop_costs_no_other_member_its_wake_up() {
        let turns = Turns::default();
        let calls = three(&turns);
        turns.abandon();
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }
}
