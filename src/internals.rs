//! What the models in `loom-tests` and the simulation in `tests/simulation` need beyond the public
//! interface. Not covered by any promise of stability.

use std::task::Waker;

use crate::{buf::PinnedBuf, pool::Pool, shared::SharedBuf, sync::Witness, sys::errqueue};

pub use crate::{
    lock::mutex::Mutex,
    raw::{RawPool, Reclaim, Replaced, Slot, SlotRef, SlotState},
    reaper::Token,
    sender::{
        Config,
        core::Core,
        kernel::{Edges, Interest, Kernel},
        transport::Transport,
        window::MemlockBudget,
    },
    sys::{
        Batch, Record,
        socket::{IoVec, Ready, SendFlags},
    },
    tracker::{ALONE, CompletionTracker, LeaseKey, UnknownIds},
};

/// Calls `on_record` for each record in the control data of one message of the error queue.
pub fn decode(control: &[u8], on_record: &mut dyn FnMut(Record)) {
    errqueue::decode(control, on_record);
}

/// Tells a model about a change of what a lock guards.
#[derive(Debug, Default)]
pub struct Guarded(Witness);

impl Guarded {
    /// The caller has the lock.
    pub fn change(&self) {
        self.0.write();
    }
}

/// The machinery behind a pool.
pub fn raw(pool: &Pool) -> &RawPool {
    pool.raw()
}

/// Where the memory of each slot of a pool begins, and the slot's state.
pub fn slots(pool: &RawPool) -> impl Iterator<Item = (*const u8, SlotState)> + '_ {
    let records = pool.classes().iter().flat_map(|class| class.records());
    records.map(|record| (record.memory().as_ptr().cast_const(), record.slot().state()))
}

/// What a sender does with a buffer and its slot.
pub trait Lease {
    /// The slot, of which the buffer is a holder.
    fn slot(&self) -> &SlotRef;

    /// The buffer's handle becomes a lease.
    fn begin_lease(&mut self) {
        self.slot().slot().begin_lease();
    }

    /// The lease becomes a handle.
    fn end_lease(&mut self) {
        self.slot().slot().end_lease();
    }

    /// The lease becomes a quarantined one.
    fn quarantine(&mut self) {
        self.slot().quarantine().into_iter().for_each(Waker::wake);
    }

    /// The quarantined lease becomes a handle.
    fn quarantine_released(&mut self) {
        self.slot().slot().quarantine_released();
    }

    /// New pages for the quarantined lease's memory; it becomes a handle.
    fn replace_pages(&mut self) -> Option<Replaced>;

    /// The kernel reads the memory now.
    fn kernel_reads(&self) {
        self.slot().slot().contents_read();
    }

    /// The machinery behind the buffer's pool.
    fn pool(&self) -> &RawPool {
        self.slot().pool()
    }
}

impl Lease for PinnedBuf {
    fn slot(&self) -> &SlotRef {
        self.slot()
    }

    fn replace_pages(&mut self) -> Option<Replaced> {
        self.replace_pages()
    }
}

impl Lease for SharedBuf {
    fn slot(&self) -> &SlotRef {
        self.slot()
    }

    fn replace_pages(&mut self) -> Option<Replaced> {
        self.replace_pages()
    }
}
