//! How much may be in flight: the window of one sender, the memlock budget of the process.

use crate::{
    raw::PoolHead,
    sync::{Arc, AtomicUsize, Ordering},
    sys::{limits, memory::page_bytes, process::PerProcess},
};

/// What one call may cover under the smallest of budgets, in bytes: calls are cut before it is
/// known which way they go, and pieces of a few pages cost more calls than they save.
const MIN_CALL_BYTES: usize = 16 << 10;

/// Locked memory that all senders of the process may have charged at once.
///
/// The kernel charges `bytes / page size + 2` pages of every zero-copy call against
/// `RLIMIT_MEMLOCK`, per user id over all processes, until the call is released; here a call costs
/// its bytes and two pages, which is never less. The budget is half of the limit, so that other
/// users of the id get on; a process that may lock without limit has no budget.
#[derive(Debug)]
pub struct MemlockBudget {
    limit_bytes: Option<usize>,
    charged_bytes: AtomicUsize,
}

impl MemlockBudget {
    /// The budget that all senders of this process share.
    pub(crate) fn of_process() -> Arc<Self> {
        // A child has nothing in flight of what its parent charged.
        static BUDGET: PerProcess<Arc<MemlockBudget>> = PerProcess::new();
        let new = || {
            let bytes = limits::memlock_bytes();
            Arc::new(Self::new(bytes.map(|bytes| (bytes / 2) as usize)))
        };
        Arc::clone(BUDGET.get(new))
    }

    /// A budget of so many bytes, or without limit.
    pub fn new(limit_bytes: Option<usize>) -> Self {
        Self { limit_bytes, charged_bytes: AtomicUsize::new(0) }
    }

    /// Bytes charged now.
    pub fn charged_bytes(&self) -> usize {
        // Relaxed: a statistic.
        self.charged_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that one call may cover: no more than a quarter of the budget, where that leaves
    /// calls worth making.
    pub(crate) fn max_call_bytes(&self) -> usize {
        self.limit_bytes.map_or(usize::MAX, |limit| (limit / 4).max(MIN_CALL_BYTES))
    }

    /// What `calls` calls of `bytes` in all cost.
    #[inline]
    fn cost(calls: usize, bytes: usize) -> usize {
        bytes + 2 * page_bytes() * calls
    }

    #[inline(always)]
    pub(crate) fn charge(&self, bytes: usize) -> bool {
        let Some(limit) = self.limit_bytes else { return true };
        let cost = Self::cost(1, bytes);
        // Relaxed (partner: `refund`): a count; no memory is published through it.
        self.charged_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |charged| {
                charged.checked_add(cost).filter(|sum| *sum <= limit)
            })
            .is_ok()
    }

    pub(crate) fn refund(&self, calls: usize, bytes: usize) {
        if self.limit_bytes.is_some() && calls > 0 {
            // Relaxed (partner: `charge`): a count; no memory is published through it.
            self.charged_bytes.fetch_sub(Self::cost(calls, bytes), Ordering::Relaxed);
        }
    }
}

/// What may happen to the next zero-copy call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Admission {
    /// It may go, and is charged for.
    ZeroCopy,
    /// It must wait for releases of this sender.
    Full,
    /// It goes by copy: the limit is used up by others, so no release of ours would help.
    Copy,
}

/// Calls that may go unasked: an answer that holds for those like the one it was given to.
///
/// Whoever changes what it rests on revokes it, but for releases, which only make more room.
#[derive(Debug, Default)]
pub(crate) struct Passes {
    calls: usize,
    /// No larger ones.
    most_bytes: usize,
    /// Only of buffers of this pool; 0 for memory in none.
    pool: u64,
}

impl Passes {
    /// So many calls, of so many bytes each at most.
    pub(crate) fn new(calls: usize, most_bytes: usize, pool: Option<&PoolHead>) -> Self {
        Self { calls, most_bytes, pool: Self::id(pool) }
    }

    #[inline(always)]
    fn id(pool: Option<&PoolHead>) -> u64 {
        pool.map_or(0, PoolHead::id)
    }

    /// Whether a call of `bytes` may go unasked; it has done so then.
    #[inline(always)]
    pub(crate) fn take(&mut self, bytes: usize, pool: Option<&PoolHead>) -> bool {
        let passes = self.calls > 0 && bytes <= self.most_bytes && Self::id(pool) == self.pool;
        if passes {
            self.calls -= 1;
        }
        passes
    }

    pub(crate) fn revoke(&mut self) {
        self.calls = 0;
    }
}

/// The window of one sender, in bytes and in sends in flight.
///
/// Shrinks by half when the kernel refuses memory (`ENOBUFS`), and grows back by an eighth of the
/// configured size for every window's worth of calls that went well.
#[derive(Debug)]
pub(crate) struct Window {
    max_bytes: usize,
    max_sends: usize,
    bytes: usize,
    sends: usize,
    calls_since_change: usize,
}

impl Window {
    pub(crate) fn new(max_bytes: usize, max_sends: usize) -> Self {
        Self { max_bytes, max_sends, bytes: max_bytes, sends: max_sends, calls_since_change: 0 }
    }

    pub(crate) fn sends(&self) -> usize {
        self.sends
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many calls, of how many bytes in all, may join those in flight, if no call changes the
    /// window's size.
    pub(crate) fn room(&self, sends: usize, in_flight: usize) -> (usize, usize) {
        if !self.is_whole() {
            return (0, 0);
        }
        (self.sends.saturating_sub(sends), self.bytes.saturating_sub(in_flight))
    }

    #[inline(always)]
    fn is_whole(&self) -> bool {
        self.sends == self.max_sends && self.bytes == self.max_bytes
    }

    /// Whether a call of `bytes` may join `sends` calls of `in_flight` bytes.
    ///
    /// A single call is always let through, so that no configuration can stop a sender.
    #[inline]
    pub(crate) fn admit(
        &self,
        budget: &MemlockBudget,
        bytes: usize,
        sends: usize,
        in_flight: usize,
    ) -> Admission {
        if sends == 0 {
            return if budget.charge(bytes) { Admission::ZeroCopy } else { Admission::Copy };
        }
        let fits = sends < self.sends && in_flight.saturating_add(bytes) <= self.bytes;
        if fits && budget.charge(bytes) { Admission::ZeroCopy } else { Admission::Full }
    }

    /// The kernel refused memory with `sends` calls of `in_flight` bytes in flight.
    pub(crate) fn shrink(&mut self, sends: usize, in_flight: usize) {
        self.sends = (self.sends.min(sends) / 2).max(1);
        self.bytes = (self.bytes.min(in_flight) / 2).max(1);
        self.calls_since_change = 0;
    }

    /// A call went well.
    #[inline(always)]
    pub(crate) fn went_well(&mut self) {
        if !self.is_whole() {
            self.grow_back();
        }
    }

    #[cold]
    fn grow_back(&mut self) {
        self.calls_since_change += 1;
        if self.calls_since_change >= self.sends {
            self.calls_since_change = 0;
            let grown = |size: usize, max: usize| size.saturating_add(max / 8 + 1).min(max);
            self.sends = grown(self.sends, self.max_sends);
            self.bytes = grown(self.bytes, self.max_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_cost_no_less_than_the_kernel_charges() {
        let page = page_bytes();
        for bytes in [1, page - 1, page, page + 1, 16 << 10, 1 << 20] {
            assert!(MemlockBudget::cost(1, bytes) >= (bytes / page + 2) * page, "{bytes}");
        }
    }

    #[test]
    fn a_budget_that_others_use_up_makes_a_lone_call_copy_and_a_further_one_wait() {
        let page = page_bytes();
        let budget = MemlockBudget::new(Some(10 * page));
        let window = Window::new(usize::MAX, 100);
        assert_eq!(window.admit(&budget, 6 * page, 0, 0), Admission::ZeroCopy);
        assert_eq!(window.admit(&budget, page, 0, 0), Admission::Copy);
        assert_eq!(window.admit(&budget, page, 1, 1), Admission::Full);
        budget.refund(1, 6 * page);
        assert_eq!(window.admit(&budget, page, 1, 1), Admission::ZeroCopy);
    }

    #[test]
    fn a_call_larger_than_the_window_goes_alone() {
        let window = Window::new(100, 4);
        let budget = MemlockBudget::new(None);
        assert_eq!(window.admit(&budget, 1000, 0, 0), Admission::ZeroCopy);
        assert_eq!(window.admit(&budget, 1, 1, 1000), Admission::Full);
        assert_eq!(window.admit(&budget, 10, 4, 40), Admission::Full);
    }

    #[test]
    fn a_shrunken_window_grows_back_to_its_size_and_no_further() {
        let mut window = Window::new(1 << 20, 64);
        window.shrink(64, 1 << 20);
        assert_eq!((window.sends(), window.bytes()), (32, 1 << 19));
        for _ in 0..1000 {
            window.went_well();
        }
        assert_eq!((window.sends(), window.bytes()), (64, 1 << 20));
        window.shrink(0, 0);
        assert_eq!((window.sends(), window.bytes()), (1, 1));
    }

    #[test]
    fn a_window_without_a_limit_grows_back_too() {
        let mut window = Window::new(usize::MAX, 64);
        window.shrink(8, 1 << 20);
        for _ in 0..1000 {
            window.went_well();
        }
        assert_eq!((window.sends(), window.bytes()), (64, usize::MAX));
    }
}
