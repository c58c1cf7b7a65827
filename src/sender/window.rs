//! How much may be in flight: the window of one sender, the memlock budget of the process.

use crate::{
    sync::{Arc, AtomicUsize, OnceLock, Ordering},
    sys::{limits, memory::page_bytes},
};

/// What one call may cover under the smallest of budgets, in bytes: calls are cut before it is
/// known which way they go, and pieces of a few pages cost more calls than they save.
const MIN_CALL_BYTES: usize = 16 << 10;

/// Pages of locked memory that all senders of the process may have charged at once.
///
/// The kernel charges `bytes / page size + 2` pages of every zero-copy call against
/// `RLIMIT_MEMLOCK`, per user id over all processes, until the call is released. The budget is
/// half of the limit, so that other users of the id get on; a process that may lock without limit
/// has no budget.
#[derive(Debug)]
pub struct MemlockBudget {
    limit_pages: Option<usize>,
    charged_pages: AtomicUsize,
}

impl MemlockBudget {
    /// The budget that all senders of this process share.
    pub(crate) fn of_process() -> Arc<Self> {
        static BUDGET: OnceLock<Arc<MemlockBudget>> = OnceLock::new();
        let new = || {
            let bytes = limits::memlock_bytes();
            Arc::new(Self::new(bytes.map(|bytes| (bytes / 2) as usize / page_bytes())))
        };
        Arc::clone(BUDGET.get_or_init(new))
    }

    /// A budget of so many pages, or without limit.
    pub fn new(limit_pages: Option<usize>) -> Self {
        Self { limit_pages, charged_pages: AtomicUsize::new(0) }
    }

    /// Pages the kernel charges for one call of `bytes`, as far as this part of the call goes.
    ///
    /// The sum over the parts of a call is never less than what the kernel charges: each part
    /// adds a page for the fraction that whole pages leave out, the first one more.
    pub(crate) fn pages(bytes: usize, first: bool) -> usize {
        bytes / page_bytes() + 1 + usize::from(first)
    }

    /// Bytes that one call may cover: no more than a quarter of the budget, where that leaves
    /// calls worth making.
    pub(crate) fn max_call_bytes(&self) -> usize {
        self.limit_pages.map_or(usize::MAX, |pages| (pages / 4 * page_bytes()).max(MIN_CALL_BYTES))
    }

    pub(crate) fn charge(&self, pages: usize) -> bool {
        let Some(limit) = self.limit_pages else { return true };
        // Relaxed (partner: `refund`): a count; no memory is published through it.
        self.charged_pages
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |charged| {
                charged.checked_add(pages).filter(|sum| *sum <= limit)
            })
            .is_ok()
    }

    pub(crate) fn refund(&self, pages: usize) {
        if self.limit_pages.is_some() && pages > 0 {
            // Relaxed (partner: `charge`): a count; no memory is published through it.
            self.charged_pages.fetch_sub(pages, Ordering::Relaxed);
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

    /// Whether a call of `bytes` may join `sends` calls of `in_flight` bytes.
    ///
    /// A single call is always let through, so that no configuration can stop a sender.
    pub(crate) fn admit(
        &self,
        budget: &MemlockBudget,
        bytes: usize,
        pages: usize,
        sends: usize,
        in_flight: usize,
    ) -> Admission {
        if sends == 0 {
            return if budget.charge(pages) { Admission::ZeroCopy } else { Admission::Copy };
        }
        let fits = sends < self.sends && in_flight.saturating_add(bytes) <= self.bytes;
        if fits && budget.charge(pages) { Admission::ZeroCopy } else { Admission::Full }
    }

    /// The kernel refused memory with `sends` calls of `in_flight` bytes in flight.
    pub(crate) fn shrink(&mut self, sends: usize, in_flight: usize) {
        self.sends = (self.sends.min(sends) / 2).max(1);
        self.bytes = (self.bytes.min(in_flight) / 2).max(1);
        self.calls_since_change = 0;
    }

    /// A call went well.
    pub(crate) fn went_well(&mut self) {
        if self.sends == self.max_sends && self.bytes == self.max_bytes {
            return;
        }
        self.calls_since_change += 1;
        if self.calls_since_change >= self.sends {
            self.calls_since_change = 0;
            self.sends = (self.sends + self.max_sends / 8 + 1).min(self.max_sends);
            self.bytes = (self.bytes + self.max_bytes / 8 + 1).min(self.max_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_call_charge_no_less_than_the_kernel() {
        let page = page_bytes();
        for parts in [vec![1], vec![page], vec![page - 1; 7], vec![4 * page + 1, 3, page]] {
            let kernel = parts.iter().sum::<usize>() / page + 2;
            let ours: usize = (parts.iter().enumerate())
                .map(|(at, bytes)| MemlockBudget::pages(*bytes, at == 0))
                .sum();
            assert!(ours >= kernel, "{parts:?}: {ours} < {kernel}");
        }
    }

    #[test]
    fn a_budget_that_others_use_up_makes_a_lone_call_copy_and_a_further_one_wait() {
        let budget = MemlockBudget::new(Some(10));
        let window = Window::new(usize::MAX, 100);
        assert_eq!(window.admit(&budget, 1, 8, 0, 0), Admission::ZeroCopy);
        assert_eq!(window.admit(&budget, 1, 3, 0, 0), Admission::Copy);
        assert_eq!(window.admit(&budget, 1, 3, 1, 1), Admission::Full);
        budget.refund(8);
        assert_eq!(window.admit(&budget, 1, 3, 1, 1), Admission::ZeroCopy);
    }

    #[test]
    fn a_call_larger_than_the_window_goes_alone() {
        let window = Window::new(100, 4);
        let budget = MemlockBudget::new(None);
        assert_eq!(window.admit(&budget, 1000, 2, 0, 0), Admission::ZeroCopy);
        assert_eq!(window.admit(&budget, 1, 2, 1, 1000), Admission::Full);
        assert_eq!(window.admit(&budget, 10, 2, 4, 40), Admission::Full);
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
}
