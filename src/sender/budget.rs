//! Share of the locked memory that the senders of the process may charge at once.

use crate::{
    sync::{Arc, AtomicUsize, Ordering},
    sys::{limits, memory::page_bytes, process::PerProcess},
};

/// Least bytes of one call, however small the budget is. Calls are cut before their way is known,
/// and pieces of a few pages cost more calls than they save.
const MIN_CALL_BYTES: usize = 16 << 10;

/// Locked memory that the senders of the process may have charged at once.
///
/// The kernel charges `bytes / page size + 2` pages of every zero-copy call against
/// `RLIMIT_MEMLOCK`, per user id over all processes, until the call is released. Here a call costs
/// its bytes and two pages, never less than the kernel's charge. The budget is half of the limit,
/// to leave room for the user's remaining programs. A process without a limit has no budget.
#[derive(Debug)]
pub struct MemlockBudget {
    limit_bytes: Option<usize>,
    charged_bytes: AtomicUsize,
}

impl MemlockBudget {
    /// The budget of all senders of this process.
    pub(crate) fn of_process() -> Arc<Self> {
        // A child has nothing in flight from its parent.
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

    /// Returns `true` if charges can be refused.
    pub(crate) fn is_limited(&self) -> bool {
        self.limit_bytes.is_some()
    }

    /// Bytes charged now.
    pub fn charged_bytes(&self) -> usize {
        // Relaxed: a statistic.
        self.charged_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of one call: no more than a quarter of the budget, where a quarter leaves calls worth
    /// making.
    pub(crate) fn max_call_bytes(&self) -> usize {
        self.limit_bytes.map_or(usize::MAX, |limit| (limit / 4).max(MIN_CALL_BYTES))
    }

    /// The charge for `calls` calls of `bytes` in all.
    #[inline]
    fn cost(calls: usize, bytes: usize) -> usize {
        bytes + 2 * page_bytes() * calls
    }

    /// Charges a call of `bytes`. Returns `false`, with nothing charged, if the budget is used up.
    #[inline(always)]
    pub(crate) fn charge(&self, bytes: usize) -> bool {
        let Some(limit) = self.limit_bytes else { return true };
        let cost = Self::cost(1, bytes);
        // Relaxed (partner: `refund`): a count; no memory is published through this atomic.
        self.charged_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |charged| {
                charged.checked_add(cost).filter(|sum| *sum <= limit)
            })
            .is_ok()
    }

    /// Ends the charge of `calls` calls of `bytes` in all.
    pub(crate) fn refund(&self, calls: usize, bytes: usize) {
        if self.limit_bytes.is_some() && calls > 0 {
            // Relaxed (partner: `charge`): a count; no memory is published through this atomic.
            self.charged_bytes.fetch_sub(Self::cost(calls, bytes), Ordering::Relaxed);
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
    fn a_used_up_budget_refuses_a_call_until_a_refund() {
        let page = page_bytes();
        let budget = MemlockBudget::new(Some(10 * page));
        assert!(budget.charge(6 * page));
        assert!(!budget.charge(page));
        budget.refund(1, 6 * page);
        assert!(budget.charge(page));
    }
}
