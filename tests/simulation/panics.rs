//! User code that panics inside calls of the library.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Wake,
};

use pinbuf::__internals::{self, Record};

use crate::world::Shared;

/// The payload of these panics.
struct Panic;

/// Panics without a message.
fn misbehave() {
    if !std::thread::panicking() {
        panic::resume_unwind(Box::new(Panic));
    }
}

/// Runs a call that may run user code; `None` after a panic.
pub(crate) fn guarded<R>(body: impl FnOnce() -> R) -> Option<R> {
    match panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => Some(result),
        Err(panic) if panic.is::<Panic>() => None,
        Err(panic) => panic::resume_unwind(panic),
    }
}

/// A message of the error queue that is not about zero copy: an ICMP error.
pub(crate) fn foreign() -> Record {
    let mut bytes = Vec::new();
    // A control message of IP_RECVERR with a `sock_extended_err` of origin 2.
    bytes.extend((size_of::<usize>() + 8 + 16).to_ne_bytes());
    bytes.extend([0_i32, 11, 111].map(i32::to_ne_bytes).concat());
    bytes.extend([2, 3, 3, 0]);
    bytes.extend([0; 8]);
    let mut record = None;
    __internals::decode(&bytes, &mut |decoded| record = Some(decoded));
    record.expect("one message")
}

/// The owner of a block of mapped memory.
pub(crate) struct Owner {
    pub(crate) world: Shared,
    pub(crate) block: usize,
    pub(crate) misbehaves: bool,
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Locks the world: the library holds no lock of its own while it drops a user's payload.
        self.world.lock().environment.memory.give_block(self.block);
        if self.misbehaves {
            misbehave();
        }
    }
}

/// Counts its wake-ups.
#[derive(Default)]
pub(crate) struct CountingWaker {
    rung: AtomicUsize,
    misbehaves: bool,
}

impl CountingWaker {
    pub(crate) fn new(misbehaves: bool) -> Arc<Self> {
        Arc::new(Self { rung: AtomicUsize::new(0), misbehaves })
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.rung.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn reset(&self) {
        self.rung.store(0, Ordering::Relaxed);
    }
}

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.rung.fetch_add(1, Ordering::Relaxed);
        if self.misbehaves {
            misbehave();
        }
    }
}
