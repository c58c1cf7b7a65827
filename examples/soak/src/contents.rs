//! Bytes that identify their origin.

/// A part of an endless pattern: `len` bytes from `at` on of the pattern of `seed`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) seed: u64,
    pub(crate) at: usize,
    pub(crate) len: usize,
}

fn word(seed: u64, index: usize) -> u64 {
    (seed.rotate_left(32) ^ index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Fills `bytes` with the start of a pattern.
pub(crate) fn fill(bytes: &mut [u8], seed: u64) {
    for (index, chunk) in bytes.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&word(seed, index).to_le_bytes()[..chunk.len()]);
    }
}

impl Piece {
    /// The start of a pattern.
    pub(crate) fn first(seed: u64, len: usize) -> Self {
        Self { seed, at: 0, len }
    }

    /// Without the first `count` bytes, limited to `len`.
    pub(crate) fn part(self, count: usize, len: usize) -> Self {
        Self { at: self.at + count, len: len.min(self.len - count), ..self }
    }

    /// Appends the bytes.
    pub(crate) fn write_to(self, bytes: &mut Vec<u8>) {
        let words = self.at / 8..(self.at + self.len).div_ceil(8);
        let start = bytes.len();
        words.for_each(|index| bytes.extend_from_slice(&word(self.seed, index).to_le_bytes()));
        bytes.drain(start..start + self.at % 8);
        bytes.truncate(start + self.len);
    }

    /// The first difference from `got`, which has the same length.
    pub(crate) fn differs(self, got: &[u8]) -> Option<usize> {
        let mut want = Vec::with_capacity(self.len + 16);
        self.write_to(&mut want);
        if want == got {
            return None;
        }
        want.iter().zip(got).position(|(want, got)| want != got)
    }
}
