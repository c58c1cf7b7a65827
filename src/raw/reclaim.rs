//! The pool's view of the holders of slots.

use std::time::Duration;

use crate::sync::Arc;

/// A holder of slots in flight, which can find the released ones: a sender.
///
/// A holder registers itself, weakly, with the pool of each slot. A waiter and a holder
/// then cannot miss one another:
///
/// | waiter | holder |
/// |---|---|
/// | 1. queues | 1. registers |
/// | 2. drives all registered holders | 2. begins a lease, under its lock |
/// | 3. has the reaper [watch](Self::watch) them | 3. looks for waiters, and has itself watched |
/// | 4. sleeps | |
///
/// `drive` and the beginning of a lease exclude one another by the holder's lock, so that one of
/// the two sees the other. So no waiter sleeps on buffers that only the waiter's thread would reap.
pub trait Reclaim: Send + Sync {
    /// Sends what is unsent and reads the error queue, so that released slots are recycled.
    ///
    /// Never blocks, and runs no user code while a lock is held.
    fn drive(&self);

    /// [`drive`](Self::drive), called by the reaper. Returns the time until the next call if no
    /// event comes first.
    fn attend(&self) -> Option<Duration> {
        self.drive();
        None
    }

    /// Has the reaper call [`attend`](Self::attend) at every event, as long as a waiter needs a
    /// slot.
    ///
    /// `false`: no thread can be had, and the caller has to drive from time to time.
    fn watch(self: Arc<Self>) -> bool;
}
