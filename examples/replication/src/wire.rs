//! The messages, and their limits.

use std::{fmt::Display, io, ops::RangeInclusive};

use sha2::{Digest as _, Sha256};

/// The largest block in bytes.
pub const MAX_BLOCK: u32 = 16 << 20;
/// The longest text of a refusal in bytes.
pub const MAX_REASON: u32 = 1024;

/// A place in the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// The number of blocks before the place.
    pub blocks: u64,
    /// The digest of their history.
    pub digest: [u8; 32],
}

impl Position {
    /// The place behind one more block.
    #[must_use]
    pub fn behind(self, data: &[u8]) -> Self {
        let history = Sha256::new_with_prefix(self.digest).chain_update(data);
        Self { blocks: self.blocks + 1, digest: history.finalize().into() }
    }
}

/// The meaning of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Primary: blocks have so many bytes; only the last one may be shorter.
    Welcome,
    /// Replica: my number, and the end of my file.
    Hello,
    /// Primary: so many bytes of data follow, and then the stream is here.
    Block,
    /// Replica: my file has everything before.
    Acknowledgement,
    /// Primary: the stream ends here.
    End,
    /// Primary: go away; a text of so many bytes follows.
    Refusal,
}

impl Kind {
    /// Tags, and limits of the number.
    const TABLE: [(Self, [u8; 4], RangeInclusive<u32>); 6] = [
        (Self::Welcome, *b"PBR1", 1..=MAX_BLOCK),
        (Self::Hello, *b"HELO", 0..=u32::MAX),
        (Self::Block, *b"BLCK", 1..=MAX_BLOCK),
        (Self::Acknowledgement, *b"ACKN", 0..=0),
        (Self::End, *b"DONE", 0..=0),
        (Self::Refusal, *b"FAIL", 0..=MAX_REASON),
    ];
}

/// A message, but for the data or the text behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// The meaning.
    pub kind: Kind,
    /// A length, or the number of a replica.
    pub number: u32,
    /// The place in the stream, where the kind has one.
    pub position: Position,
}

impl Message {
    /// Bytes of a message.
    pub const LEN: usize = 48;

    /// The bytes of a message.
    pub fn encode(self) -> [u8; Self::LEN] {
        let (_, tag, _) = &Kind::TABLE[self.kind as usize];
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(tag);
        bytes[4..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.blocks.to_le_bytes());
        bytes[16..].copy_from_slice(&self.position.digest);
        bytes
    }

    /// Reads a message of one of `kinds`.
    ///
    /// # Errors
    ///
    /// `InvalidData` for a message of another kind, and for a number outside of the limits.
    pub fn decode(bytes: &[u8; Self::LEN], kinds: &[Kind]) -> io::Result<Self> {
        let mut left = &bytes[..];
        let tag: [u8; 4] = take(&mut left);
        let number = u32::from_le_bytes(take(&mut left));
        let blocks = u64::from_le_bytes(take(&mut left));
        let position = Position { blocks, digest: take(&mut left) };
        let found = Kind::TABLE.iter().find(|entry| entry.1 == tag && kinds.contains(&entry.0));
        let Some((kind, _, limits)) = found else {
            return Err(invalid(format!("{tag:02x?} is no message of {kinds:?}")));
        };
        if !limits.contains(&number) {
            return Err(invalid(format!("{kind:?}: {number} is outside of {limits:?}")));
        }
        Ok(Self { kind: *kind, number, position })
    }
}

/// The error for bytes against the protocol.
pub(crate) fn invalid(message: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.to_string())
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (field, left) = bytes.split_first_chunk().expect("the fields fill a message");
    *bytes = left;
    *field
}
