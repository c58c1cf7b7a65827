//! Where the simulation's decisions come from: a seed, or the bytes of a fuzzer.

/// A source of small numbers.
#[derive(Debug)]
pub(crate) enum Choices {
    /// Random ones, without end, from this state.
    Random(u64),
    /// The fuzzer's, then zeros.
    Bytes { bytes: Vec<u8>, at: usize },
}

impl Choices {
    pub(crate) fn random(seed: u64) -> Self {
        Self::Random(seed)
    }

    /// Returns `true` if no choice is left.
    pub(crate) fn is_exhausted(&self) -> bool {
        matches!(self, Self::Bytes { bytes, at } if at >= &bytes.len())
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        debug_assert!(end > 0);
        match self {
            Self::Random(state) => {
                // SplitMix64.
                *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                ((u128::from(mixed ^ (mixed >> 31)) * end as u128) >> 64) as usize
            }
            Self::Bytes { bytes, at } => {
                let wanted = (usize::BITS - (end - 1).leading_zeros()).div_ceil(8) as usize;
                let mut number = 0;
                for _ in 0..wanted {
                    number = number << 8 | usize::from(bytes.get(*at).copied().unwrap_or(0));
                    *at += 1;
                }
                number % end
            }
        }
    }

    /// True once in so many times.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        // The last number, not the first: exhausted bytes are to make an uneventful run.
        self.below(times) == times - 1
    }

    /// True with so many chances in a thousand.
    pub(crate) fn permille(&mut self, chances: usize) -> bool {
        chances > 0 && self.below(1000) >= 1000 - chances
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}
