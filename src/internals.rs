//! The interface of the models in `loom-tests` and the simulation in `tests/simulation`, beyond the
//! public one. Without any promise of stability.

use std::{ptr::NonNull, task::Waker};

use crate::{
    buf::PinnedBuf,
    error::SendError,
    pool::Pool,
    raw::{BoundMagazines, Magazine},
    shared::SharedBuf,
    sync::Witness,
    sys::errqueue,
};

pub use crate::{
    id::{IdRange, NotificationId},
    lock::mutex::Mutex,
    raw::{PoolHead, RawPool, Reclaim, Replaced, SlotRef, SlotState, StateWord},
    reaper::Token,
    sender::{
        budget::MemlockBudget,
        config::Config,
        driver::Core,
        kernel::{Edges, Interest, Kernel},
        transport::Transport,
    },
    sys::{
        Batch, Record,
        socket::{IoVec, News, Ready, SendFlags},
    },
    tracker::{ALONE, CompletionTracker, LeaseKey, UnknownIds},
    turns::{Listed, Member, Turns},
};

/// Calls `on_record` for each record in the control data of one message of the error queue.
pub fn decode(control: &[u8], on_record: &mut dyn FnMut(Record)) {
    errqueue::decode(control, on_record);
}

/// Converts the buffer of an error.
pub fn map_buf<B, C>(error: SendError<B>, form: impl FnOnce(B) -> C) -> SendError<C> {
    error.map(form)
}

/// Tells a model about a change of data under a lock.
#[derive(Debug, Default)]
pub struct Guarded(Witness);

impl Guarded {
    /// Requires the lock.
    pub fn change(&self) {
        self.0.write();
    }
}

/// A magazine without a pool: a stack of the numbers from 0 on. One thread is the owner.
#[derive(Debug)]
pub struct LoneMagazine {
    /// The contents of each number.
    contents: Box<[Guarded]>,
    magazine: Box<Magazine<u64, Guarded>>,
    /// Two lists, each the key of its own.
    lists: [BoundMagazines<u64, Guarded>; 2],
    /// The places of the items.
    places: Witness,
    /// Something that the owner makes safe from the end of a list.
    held: Witness,
}

impl LoneMagazine {
    /// Creates an unbound magazine for the numbers 0 to `count - 1`.
    pub fn new(count: usize) -> Self {
        Self {
            contents: (0..count).map(|_| Guarded::default()).collect(),
            magazine: Box::default(),
            lists: Default::default(),
            places: Witness::default(),
            held: Witness::default(),
        }
    }

    fn key(&self, list: usize) -> NonNull<u64> {
        NonNull::from(&self.lists[list]).cast()
    }

    /// For the owner: binds the magazine to a list, unless it is bound, and may write to its places.
    pub fn bind(&self, list: usize) -> bool {
        let limit = self.contents.len() as u32;
        let may = || {
            self.places.write();
            true
        };
        // SAFETY: the caller is the owner, and the magazine lives as long as the lists.
        unsafe { self.lists[list].bind(self.key(list), &self.magazine, limit, may) }
    }

    /// For the owner: adds a number, if the magazine is bound to the first list.
    pub fn push(&self, number: usize) -> bool {
        self.magazine.push(self.key(0), NonNull::from(&self.contents[number]))
    }

    /// For the owner: takes the last number, if the magazine is bound to the first list.
    pub fn pop(&self) -> Option<usize> {
        self.magazine.pop(self.key(0)).map(|item| self.number(item))
    }

    /// For the owner: makes something safe from the end of the list that the magazine is bound to.
    pub fn hold(&self) {
        self.magazine.hold_key(|_| self.held.write());
    }

    /// For any thread: takes all numbers of the first list, and unbinds the magazine. Then the list
    /// could end.
    pub fn take(&self) -> Vec<usize> {
        let mut taken = Vec::new();
        let mut bound = self.lists[0].lock();
        self.lists[0].recall(&mut bound, self.key(0), None, |item| {
            self.places.read();
            taken.push(self.number(item));
        });
        self.held.read();
        taken
    }

    /// Changes the contents of a number that the caller has taken.
    pub fn change(&self, number: usize) {
        self.contents[number].change();
    }

    fn number(&self, item: NonNull<Guarded>) -> usize {
        let number = self.contents.iter().position(|contents| NonNull::from(contents) == item);
        number.expect("the item is one of the numbers")
    }
}

/// The machinery behind a pool.
pub fn raw(pool: &Pool) -> &RawPool {
    pool.raw()
}

/// The start of each slot's memory in a pool, and the slot's state.
pub fn slots(pool: &RawPool) -> impl Iterator<Item = (*const u8, SlotState)> + '_ {
    let slots = pool.classes().iter().flat_map(|class| class.slots());
    slots.map(|slot| (slot.memory().as_ptr().cast_const(), slot.word().state()))
}

/// The transitions that a sender makes on a buffer's slot.
pub trait Lease {
    /// The slot; the buffer is one of its holders.
    fn slot(&self) -> &SlotRef;

    /// Turns the buffer's handle into a lease.
    fn begin_lease(&mut self) {
        self.slot().word().begin_lease();
    }

    /// Turns the lease into a handle.
    fn end_lease(&mut self) {
        self.slot().word().end_lease();
    }

    /// Turns the lease into a quarantined one.
    fn quarantine(&mut self) {
        self.slot().quarantine().into_iter().for_each(Waker::wake);
    }

    /// Turns the quarantined lease into a handle.
    fn quarantine_released(&mut self) {
        self.slot().word().quarantine_released();
    }

    /// Replaces the pages of the quarantined lease's memory, and turns the lease into a handle.
    fn replace_pages(&mut self) -> Option<Replaced>;

    /// Tells the model that the kernel reads the memory now.
    fn kernel_reads(&self) {
        self.slot().word().contents_read();
    }

    /// The machinery behind the buffer's pool.
    fn pool(&self) -> &RawPool {
        RawPool::of(self.slot())
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
