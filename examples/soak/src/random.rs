//! Choices, repeatable by a seed.

use std::{
    ops::RangeInclusive,
    time::{Duration, SystemTime},
};

/// A sequence of choices (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

pub(crate) fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Short enough for typing.
    Random(now.as_nanos() as u64).next() % 1_000_000_000
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// A new sequence for a new thread.
    pub(crate) fn branch(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn within(&mut self, range: RangeInclusive<usize>) -> usize {
        range.start() + (self.next() % (range.end() - range.start() + 1) as u64) as usize
    }

    /// As [`within`](Self::within), with equal chances for every order of magnitude.
    pub(crate) fn magnitude(&mut self, range: RangeInclusive<usize>) -> usize {
        let bits = |value: usize| (usize::BITS - value.leading_zeros()) as usize;
        let bits = self.within(bits(*range.start())..=bits(*range.end()));
        let value = self.next() as usize & ((1 << bits) - 1);
        value.clamp(*range.start(), *range.end())
    }

    pub(crate) fn percent(&mut self, chance: usize) -> bool {
        self.within(1..=100) <= chance
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.within(0..=choices.len() - 1)]
    }

    pub(crate) fn millis(&mut self, range: RangeInclusive<usize>) -> Duration {
        Duration::from_millis(self.within(range) as u64)
    }
}
