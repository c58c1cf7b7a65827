//! The least code for the pool's job, written for the comparison: references, not proven minima. A
//! slot is a number, there is one pool, and no checks are made.

use std::{
    cell::Cell,
    sync::{Mutex, PoisonError},
};

use super::{
    COUNT,
    stock::{BULK, Stock},
};

/// The most slots of a thread: the size of DPDK's default cache.
const MAGAZINE: usize = 512;

/// A stack of slots for one thread.
struct Stack {
    len: Cell<usize>,
    slots: [Cell<u32>; MAGAZINE],
}

impl Stack {
    const fn new(len: usize) -> Self {
        Self { len: Cell::new(len), slots: [const { Cell::new(0) }; MAGAZINE] }
    }

    #[inline]
    fn pop(&self) -> Option<u32> {
        let len = self.len.get().checked_sub(1)?;
        self.len.set(len);
        Some(self.slots[len].get())
    }

    /// Returns the slot if there is no room.
    #[inline]
    fn push(&self, slot: u32) -> Result<(), u32> {
        let len = self.len.get();
        let Some(place) = self.slots.get(len) else { return Err(slot) };
        place.set(slot);
        self.len.set(len + 1);
        Ok(())
    }
}

thread_local! {
    static BARE: Stack = const { Stack::new(MAGAZINE / 2) };
    static LOADED: Stack = const { Stack::new(0) };
}

/// A bare thread-local stack: slots dropped on a second thread stay there.
pub(crate) struct BareStack;

impl Stock for BareStack {
    type Buf = u32;

    #[inline]
    fn alloc(&self) -> u32 {
        BARE.with(Stack::pop).expect("the stack of one thread is never empty")
    }

    #[inline]
    fn recycle(&self, slot: u32) {
        BARE.with(|stack| stack.push(slot)).expect("a popped slot has room");
    }

    #[inline]
    fn alloc_bulk(&self, slots: &mut Vec<u32>) {
        BARE.with(|stack| slots.extend((0..BULK).map_while(|_| stack.pop())));
    }

    #[inline]
    fn recycle_bulk(&self, slots: &mut Vec<u32>) {
        BARE.with(|stack| slots.drain(..).try_for_each(|slot| stack.push(slot)))
            .expect("a popped slot has room");
    }
}

/// Thread-local magazines over a locked stack, the depot. Half a magazine is exchanged at a time.
pub(crate) struct MagazineAndDepot(Mutex<Vec<u32>>);

impl MagazineAndDepot {
    pub(crate) fn new() -> Self {
        Self(Mutex::new((0..COUNT as u32).collect()))
    }

    #[cold]
    fn fill(&self, magazine: &Stack) {
        let mut depot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = depot.len().saturating_sub(MAGAZINE / 2);
        depot
            .drain(first..)
            .try_for_each(|slot| magazine.push(slot))
            .expect("the magazine was empty");
    }

    #[cold]
    fn spill(&self, magazine: &Stack) {
        let mut depot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        depot.extend((0..MAGAZINE / 2).map_while(|_| magazine.pop()));
    }
}

impl Stock for MagazineAndDepot {
    type Buf = u32;

    #[inline]
    fn alloc(&self) -> u32 {
        LOADED.with(|magazine| {
            loop {
                if let Some(slot) = magazine.pop() {
                    return slot;
                }
                self.fill(magazine);
            }
        })
    }

    #[inline]
    fn recycle(&self, slot: u32) {
        LOADED.with(|magazine| {
            if let Err(slot) = magazine.push(slot) {
                self.spill(magazine);
                magazine.push(slot).expect("half of the magazine is free");
            }
        });
    }
}

/// Always the same number: the cost of the workload.
pub(crate) struct Nothing;

impl Stock for Nothing {
    type Buf = u32;

    #[inline]
    fn alloc(&self) -> u32 {
        0
    }
}

/// [`MagazineAndDepot`] with slots as wide as addresses, so that a hand-over fills as many cache lines as the handles of the rivals.
pub(crate) struct Wide(pub(crate) MagazineAndDepot);

impl Stock for Wide {
    type Buf = u64;

    #[inline]
    fn alloc(&self) -> u64 {
        self.0.alloc().into()
    }

    #[inline]
    fn recycle(&self, slot: u64) {
        self.0.recycle(slot as u32);
    }
}
