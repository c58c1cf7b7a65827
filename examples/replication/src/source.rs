//! The thread that reads the input, and the generator.

use std::io::{self, Read};

use tokio::runtime::Handle;

use crate::{
    block::{Block, fill},
    shared::Shared,
    wire::{Message, Position},
};

/// Cuts the input into blocks, until the input or the stream ends.
///
/// A thread of its own, because reads of files and pipes block.
pub(crate) fn run(shared: &Shared, mut input: impl Read, runtime: &Handle) -> io::Result<()> {
    let mut position = Position::default();
    loop {
        let Some(mut buf) = runtime.block_on(shared.room(position.blocks))? else { return Ok(()) };
        buf.resize(Message::LEN, 0);
        fill(&mut buf, &mut input, shared.log.record_bytes())?;
        if buf.len() == Message::LEN {
            return Ok(());
        }
        let block = Block::seal(buf, position);
        position = block.position;
        // First the log, which must have every accepted block.
        shared.log.append(block)?;
        if !shared.ledger.accept() {
            return Ok(());
        }
    }
}

/// A stream of pseudo-random bytes, the same each time.
#[derive(Clone, Debug)]
pub struct Generator {
    word: u64,
    left: u64,
}

impl Generator {
    /// A stream of `len` bytes.
    pub fn new(len: u64) -> Self {
        Self { word: 0, left: len }
    }
}

impl Read for Generator {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.left.min(into.len() as u64) as usize;
        for bytes in into[..len].chunks_mut(8) {
            self.word += 1;
            let word = self.word.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            bytes.copy_from_slice(&(word ^ word >> 29).to_le_bytes()[..bytes.len()]);
        }
        self.left -= len as u64;
        Ok(len)
    }
}
