//! A block of the stream.

use std::io::{self, Read};

use pinbuf::{PinnedBuf, SharedBuf};

use crate::wire::{Kind, Message, Position, invalid};

/// A block with its header, in one frozen buffer. A clone is a handle of the same bytes.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    record: SharedBuf,
    /// The place behind the block.
    pub(crate) position: Position,
}

impl Block {
    /// Freezes a buffer that has room for the header, and then the data of the block after `before`.
    pub(crate) fn seal(mut buf: PinnedBuf, before: Position) -> Self {
        let (head, data) = buf.split_at_mut(Message::LEN);
        let position = before.behind(data);
        let number = data.len().try_into().expect("a block is at most 16 MiB");
        head.copy_from_slice(&Message { kind: Kind::Block, number, position }.encode());
        Self { record: buf.freeze(), position }
    }

    /// Block `number`, from a buffer with its record.
    pub(crate) fn parse(buf: PinnedBuf, number: u64) -> io::Result<Self> {
        let damaged = || invalid(format!("the log is damaged at block {number}"));
        let (head, data) = buf.split_first_chunk().ok_or_else(damaged)?;
        let Message { number: len, position, .. } = Message::decode(head, &[Kind::Block])?;
        if (len as usize, position.blocks) != (data.len(), number + 1) {
            return Err(damaged());
        }
        Ok(Self { record: buf.freeze(), position })
    }

    /// Header and data.
    pub(crate) fn record(&self) -> &SharedBuf {
        &self.record
    }

    /// The data alone, in the same buffer.
    pub(crate) fn data(&self) -> SharedBuf {
        self.record.slice(Message::LEN..)
    }
}

/// Reads until the buffer has `len` bytes, or to the end of the input.
pub(crate) fn fill(buf: &mut PinnedBuf, input: &mut impl Read, len: usize) -> io::Result<()> {
    while buf.len() < len && buf.read_from(input, len - buf.len())? > 0 {}
    Ok(())
}
