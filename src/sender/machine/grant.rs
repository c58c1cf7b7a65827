//! Permission for the sends to come to skip the questions of admission.

use super::call::Way;

/// Calls of lone buffers that need not ask, all going the same way.
///
/// A grant is the answer to one question of admission, extended to the calls behind it. A change of
/// anything behind the answer revokes the grant. A release does not, because a release only makes
/// more room.
#[derive(Debug, Default)]
pub(super) struct Grant {
    calls: usize,
    /// Largest call, in bytes.
    max_bytes: usize,
    /// Number of the only pool with granted buffers; 0 for memory outside pools.
    pool: u64,
    way: Way,
}

impl Grant {
    /// A grant for `calls` calls of at most `max_bytes` each.
    pub(super) fn new(calls: usize, max_bytes: usize, pool: u64, way: Way) -> Self {
        Self { calls, max_bytes, pool, way }
    }

    /// Uses the grant for a call of `bytes`. Returns the call's way, or `None` if the call has to
    /// ask.
    #[inline(always)]
    pub(super) fn take(&mut self, bytes: usize, pool: u64) -> Option<Way> {
        let covers = self.calls > 0 && bytes <= self.max_bytes && pool == self.pool;
        self.calls -= usize::from(covers);
        covers.then_some(self.way)
    }

    /// From here on every call asks.
    #[inline]
    pub(super) fn revoke(&mut self) {
        self.calls = 0;
    }
}
