//! Share of the locked memory that the senders of the process may charge at once.

use std::mem;

use crate::{
    sync::{Arc, AtomicUsize, Ordering},
    sys::{limits, memory::page_bytes, process::PerProcess},
};

/// Least bytes of one call, however small the budget is. Calls are cut before their way is known,
/// and pieces of a few pages cost more calls than they save.
const MIN_CALL_BYTES: usize = 16 << 10;

/// Calls that a sender charges for at once.
const CALLS_AHEAD: usize = 32;

/// The part of what is left of the budget that a sender may charge ahead: one of so many.
const SHARES: usize = 16;

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

    /// Charges `least_bytes`, and more while more than that is left: up to `most_bytes`, and no more
    /// than a sixteenth of what is left, so that no sender takes all of it. Returns the charge, or
    /// `None`, with nothing charged, if too little is left.
    fn charge(&self, least_bytes: usize, most_bytes: usize) -> Option<usize> {
        let limit = self.limit_bytes.unwrap_or(usize::MAX);
        let charge = |charged: usize| {
            let left = limit - charged;
            (least_bytes <= left).then(|| most_bytes.min(left / SHARES).max(least_bytes))
        };
        // Relaxed (partner: `refund`): a count; no memory is published through this atomic.
        let charged =
            self.charged_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |charged| {
                charge(charged).map(|bytes| charged + bytes)
            });
        charged.ok().and_then(charge)
    }

    fn refund(&self, bytes: usize) {
        // Relaxed (partner: `charge`): a count; no memory is published through this atomic.
        self.charged_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The amount charged to the budget for one sender.
///
/// A busy sender charges for some calls at once: each charge is a locked instruction on a word of
/// all senders. Unused charges are refunded when nothing is in flight. Bench row: `limited`.
pub(crate) struct Account {
    budget: Arc<MemlockBudget>,
    /// Charged, and not yet used by a call.
    ahead_bytes: usize,
}

impl Account {
    pub(crate) fn new(budget: Arc<MemlockBudget>) -> Self {
        Self { budget, ahead_bytes: 0 }
    }

    /// Charges a call of `bytes`. Returns `false`, with nothing charged, if the budget is used up.
    #[inline(always)]
    pub(crate) fn charge(&mut self, bytes: usize) -> bool {
        self.budget.limit_bytes.is_none() || self.charge_limited(bytes)
    }

    #[inline(never)]
    fn charge_limited(&mut self, bytes: usize) -> bool {
        let cost = MemlockBudget::cost(1, bytes);
        if cost > self.ahead_bytes {
            let missing = cost - self.ahead_bytes;
            let Some(charged) = self.budget.charge(missing, cost.saturating_mul(CALLS_AHEAD))
            else {
                return false;
            };
            self.ahead_bytes += charged;
        }
        self.ahead_bytes -= cost;
        true
    }

    /// Ends the charge of `calls` calls of `bytes` in all. `idle`: no other call is in flight.
    pub(crate) fn refund(&mut self, calls: usize, bytes: usize, idle: bool) {
        if self.budget.limit_bytes.is_some() {
            let ahead = if idle { mem::take(&mut self.ahead_bytes) } else { 0 };
            self.budget.refund(MemlockBudget::cost(calls, bytes) + ahead);
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

    fn account(budget: &Arc<MemlockBudget>) -> Account {
        Account::new(Arc::clone(budget))
    }

    #[test]
    fn a_used_up_budget_refuses_a_call_until_a_refund() {
        let page = page_bytes();
        let budget = Arc::new(MemlockBudget::new(Some(10 * page)));
        let (mut one, mut two) = (account(&budget), account(&budget));
        assert!(one.charge(6 * page));
        assert!(!two.charge(page));
        one.refund(1, 6 * page, true);
        assert!(two.charge(page));
        assert_eq!(budget.charged_bytes(), 3 * page);
    }

    #[test]
    fn an_idle_sender_refunds_its_charge() {
        let page = page_bytes();
        let budget = Arc::new(MemlockBudget::new(Some(160 * page)));
        let mut account = account(&budget);
        for _ in 0..3 {
            assert!(account.charge(page));
            assert_eq!(budget.charged_bytes(), 10 * page, "ten pages pay for three calls");
        }
        account.refund(2, 2 * page, false);
        assert_eq!(budget.charged_bytes(), 4 * page, "one call, and a page ahead");
        account.refund(1, page, true);
        assert_eq!(budget.charged_bytes(), 0);
    }

    #[test]
    fn a_lone_sender_can_use_the_whole_budget() {
        let page = page_bytes();
        let budget = Arc::new(MemlockBudget::new(Some(30 * page)));
        let mut account = account(&budget);
        assert_eq!((0..11).filter(|_| account.charge(page)).count(), 10);
    }
}
