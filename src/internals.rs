//! What the models in `loom-tests` need beyond the public interface. Not covered by any promise of
//! stability.

use crate::{buf::PinnedBuf, pool::Pool};

pub use crate::{
    raw::{RawPool, Reclaim, Slot, SlotState},
    reaper::Token,
    sender::{
        Config,
        core::Core,
        kernel::{Interest, Kernel},
        window::MemlockBudget,
    },
    sys::{
        Batch, Record,
        epoll::EdgeWait,
        socket::{IoVec, Ready, SendFlags},
    },
    tracker::{CompletionTracker, LeaseKey, UnknownIds},
};

/// The machinery behind a pool.
pub fn raw(pool: &Pool) -> &RawPool {
    pool.raw()
}

/// What a sender does with a buffer and its slot.
pub trait Lease {
    /// Owned to InFlight.
    fn begin_lease(&mut self);
    /// InFlight to Owned.
    fn end_lease(&mut self);
    /// InFlight to Quarantined.
    fn quarantine(&mut self);
    /// Quarantined to Owned.
    fn quarantine_released(&mut self);
    /// The kernel reads the memory now.
    fn kernel_reads(&self);
    /// Address and length of the bytes written.
    fn as_raw(&self) -> (*const u8, usize);
    /// The machinery behind the buffer's pool.
    fn pool(&self) -> &RawPool;
}

impl Lease for PinnedBuf {
    fn begin_lease(&mut self) {
        self.begin_lease();
    }

    fn end_lease(&mut self) {
        self.end_lease();
    }

    fn quarantine(&mut self) {
        self.quarantine();
    }

    fn quarantine_released(&mut self) {
        self.quarantine_released();
    }

    fn kernel_reads(&self) {
        self.kernel_reads();
    }

    fn as_raw(&self) -> (*const u8, usize) {
        self.as_raw()
    }

    fn pool(&self) -> &RawPool {
        self.pool()
    }
}
