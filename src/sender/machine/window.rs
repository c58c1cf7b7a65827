//! Limits on the calls and bytes that one sender may have in flight.

/// The window of one sender, in bytes and in calls in flight.
///
/// The window shrinks by half when the kernel refuses memory (`ENOBUFS`), and grows back by an
/// eighth of the configured size for every window's worth of successful calls.
#[derive(Debug)]
pub(super) struct Window {
    max_bytes: usize,
    max_calls: usize,
    bytes: usize,
    calls: usize,
    calls_since_change: usize,
}

impl Window {
    pub(super) fn new(max_bytes: usize, max_calls: usize) -> Self {
        Self { max_bytes, max_calls, bytes: max_bytes, calls: max_calls, calls_since_change: 0 }
    }

    pub(super) fn calls(&self) -> usize {
        self.calls
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number and the bytes of calls that fit beside the calls in flight as long as no call
    /// changes the window's size.
    pub(super) fn room(&self, calls: usize, in_flight_bytes: usize) -> (usize, usize) {
        if !self.is_whole() {
            return (0, 0);
        }
        (self.calls.saturating_sub(calls), self.bytes.saturating_sub(in_flight_bytes))
    }

    #[inline(always)]
    fn is_whole(&self) -> bool {
        self.calls == self.max_calls && self.bytes == self.max_bytes
    }

    /// Returns `true` if a call of `bytes` fits beside `calls` calls of `in_flight_bytes`.
    ///
    /// A single call always fits, so that no configuration can stop a sender.
    #[inline]
    pub(super) fn fits(&self, bytes: usize, calls: usize, in_flight_bytes: usize) -> bool {
        calls == 0 || calls < self.calls && in_flight_bytes.saturating_add(bytes) <= self.bytes
    }

    /// The kernel refused memory with `calls` calls of `in_flight_bytes` in flight.
    pub(super) fn shrink(&mut self, calls: usize, in_flight_bytes: usize) {
        self.calls = (self.calls.min(calls) / 2).max(1);
        self.bytes = (self.bytes.min(in_flight_bytes) / 2).max(1);
        self.calls_since_change = 0;
    }

    /// A call went well.
    #[inline(always)]
    pub(super) fn went_well(&mut self) {
        if !self.is_whole() {
            self.grow_back();
        }
    }

    #[cold]
    fn grow_back(&mut self) {
        self.calls_since_change += 1;
        if self.calls_since_change >= self.calls {
            self.calls_since_change = 0;
            let grown = |size: usize, max: usize| size.saturating_add(max / 8 + 1).min(max);
            self.calls = grown(self.calls, self.max_calls);
            self.bytes = grown(self.bytes, self.max_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_larger_than_the_window_goes_alone() {
        let window = Window::new(100, 4);
        assert!(window.fits(1000, 0, 0));
        assert!(!window.fits(1, 1, 1000));
        assert!(!window.fits(10, 4, 40));
        assert!(window.fits(60, 3, 40));
        assert!(!window.fits(61, 3, 40));
    }

    #[test]
    fn a_shrunken_window_grows_back_to_its_size() {
        let mut window = Window::new(1 << 20, 64);
        window.shrink(64, 1 << 20);
        assert_eq!((window.calls(), window.bytes()), (32, 1 << 19));
        assert_eq!(window.room(0, 0), (0, 0), "every call changes its size");
        for _ in 0..1000 {
            window.went_well();
        }
        assert_eq!((window.calls(), window.bytes()), (64, 1 << 20));
        window.shrink(0, 0);
        assert_eq!((window.calls(), window.bytes()), (1, 1));
    }

    #[test]
    fn a_window_grows_by_an_eighth_after_as_many_calls_as_it_has() {
        let mut window = Window::new(64 << 10, 64);
        let mut go_well = |shrinks: bool, calls: usize| {
            if shrinks {
                window.shrink(64, 64 << 10);
            }
            (0..calls).for_each(|_| window.went_well());
            (window.calls(), window.bytes() >> 10)
        };
        // Shrinking and growing both begin the count anew.
        for (shrinks, calls, size) in [
            (true, 31, (32, 32)),
            (true, 15, (16, 16)),
            (true, 7, (8, 8)),
            (false, 1, (17, 16)),
            (false, 16, (17, 16)),
            (false, 1, (26, 24)),
        ] {
            assert_eq!(go_well(shrinks, calls), size, "{calls} calls");
        }
    }

    #[test]
    fn a_window_without_a_limit_grows_back_too() {
        let mut window = Window::new(usize::MAX, 64);
        window.shrink(8, 1 << 20);
        for _ in 0..1000 {
            window.went_well();
        }
        assert_eq!((window.calls(), window.bytes()), (64, usize::MAX));
    }
}
