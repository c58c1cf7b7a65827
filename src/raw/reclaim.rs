//! What a pool knows about the holders of its slots.

use std::time::Duration;

use crate::sync::Arc;

/// Somebody who holds slots in flight and can find out which of them are released.
///
/// A sender's shared part registers itself, weakly, with each pool whose slots it holds. Whoever
/// waits for a slot queues first, then drives everyone registered, then asks to be helped by
/// [`watch`](Self::watch), then sleeps. So a waiter never sleeps on buffers that only it could
/// reap.
///
/// The other half of that promise is the implementor's: after registering, and with each lease it
/// begins, it looks whether somebody waits for such a slot and, if so, has itself watched. `drive`
/// and the beginning of a lease exclude one another (by the implementor's lock), so one of the two
/// sees the other.
pub trait Reclaim: Send + Sync {
    /// Flushes the unsent rest and reads the error queue, so that released slots go home.
    ///
    /// Never blocks, and runs no user code while it holds a lock.
    fn drive(&self);

    /// [`drive`](Self::drive) as the watching thread does it. Returns when that is to be done
    /// again although there is no news.
    fn attend(&self) -> Option<Duration> {
        self.drive();
        None
    }

    /// Has a thread of the library call [`drive`](Self::drive) whenever there is news, for as long
    /// as that is of use to someone.
    ///
    /// `false`: no thread can be had; the caller has to drive from time to time.
    fn watch(self: Arc<Self>) -> bool;
}
