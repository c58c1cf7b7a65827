//! Orders of released ids, and the loop that issues and releases in such an order.

use std::{hint::black_box, num::NonZeroU64, rc::Rc};

use super::rivals::{Lease, Tracker};

/// The order of a window's notifications.
pub(crate) struct Order {
    pub(crate) window: usize,
    pub(crate) name: &'static str,
    /// First id from the start of the window, and number of ids.
    notifications: Vec<(u32, u32)>,
}

impl Order {
    fn new(window: usize, name: &'static str, len: usize) -> Self {
        let notifications = (0..window as u32).step_by(len).map(|at| (at, len as u32)).collect();
        Self { window, name, notifications }
    }

    /// Shuffles the notifications at `places`, an ascending list.
    fn shuffle(mut self, places: &[usize]) -> Self {
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        for at in (1..places.len()).rev() {
            self.notifications.swap(places[at], places[random.below(at + 1)]);
        }
        self
    }

    pub(crate) fn ranges(window: usize) -> Self {
        Self::new(window, "ranges of 32", 32)
    }

    pub(crate) fn singles(window: usize) -> Self {
        Self::new(window, "in order", 1)
    }

    /// Shuffles a tenth of the ids, over any distance.
    pub(crate) fn a_tenth_astray(window: usize) -> Self {
        let mut random = Random(0xD1B5_4A32_D192_ED03);
        let places: Vec<usize> = (0..window).filter(|_| random.below(10) == 0).collect();
        Self::new(window, "10 % out of order", 1).shuffle(&places)
    }

    pub(crate) fn random(window: usize) -> Self {
        let places: Vec<usize> = (0..window).collect();
        Self::new(window, "random order", 1).shuffle(&places)
    }

    pub(crate) fn is_scattered(&self) -> bool {
        !self.notifications.is_sorted()
    }
}

/// Xorshift: the same order in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Keeps a tracker's window full: for the ids released by a notification of the oldest window, as
/// many are issued.
pub(crate) struct Driver<T> {
    tracker: T,
    order: Rc<Order>,
    /// The next notification of `order`.
    at: usize,
    /// The first id of the present window.
    base: u32,
    next: u32,
    /// The sum over the leases released in this window.
    sum: u64,
}

impl<T: Tracker> Driver<T> {
    pub(crate) fn new(order: Rc<Order>) -> Self {
        let mut tracker = T::new(order.window);
        (0..order.window as u32).for_each(|id| tracker.issue(id, lease(id)));
        let next = order.window as u32;
        Self { tracker, order, at: 0, base: 0, next, sum: 0 }
    }

    /// Releases and issues `ids` ids.
    pub(crate) fn run(&mut self, ids: usize) {
        let end = self.next.wrapping_add(ids as u32);
        while self.next != end {
            let (first, count) = self.order.notifications[self.at];
            let lo = self.base.wrapping_add(first);
            let Self { tracker, sum, .. } = self;
            let released = |lease: Lease| *sum = sum.wrapping_add(black_box(lease).number.get());
            tracker.release(lo, lo.wrapping_add(count - 1), released);
            for _ in 0..count {
                self.tracker.issue(self.next, lease(self.next));
                self.next = self.next.wrapping_add(1);
            }
            self.at += 1;
            if self.at == self.order.notifications.len() {
                self.end_window();
            }
        }
    }

    /// Checks the leases of the window, and continues with the next window.
    fn end_window(&mut self) {
        let (first, count) = (u64::from(self.base), self.order.window as u64);
        let end = self.base.wrapping_add(self.order.window as u32);
        // The sum is known, unless the ids wrap in between.
        if T::KEEPS_LEASES && end > self.base {
            let expected = count * lease(self.base).number.get() + count * (count - 1) / 2;
            assert_eq!(self.sum, expected, "the leases of {count} ids from {first} on");
        }
        self.at = 0;
        self.base = end;
        self.sum = 0;
    }
}

/// The lease of an id.
fn lease(id: u32) -> Lease {
    Lease::new(NonZeroU64::MIN.saturating_add(u64::from(id)))
}
