//! Violations of the protocol.

use std::{fmt, io};

use super::frame::VERSION;

/// A message from the other end outside the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProtocolError {
    Magic,
    Version(u16),
    Kind(u8),
    TooLarge,
    RunOutOfBounds,
    RunNotPages,
    RunOverlap,
    ChunkTwice { offset: usize },
    WrongLength,
    NoDeviceState,
    WrongRound { got: u32, expected: u32 },
    Unexpected(&'static str),
    Hello(&'static str),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("protocol error: ")?;
        match self {
            Self::Magic => f.write_str("the other end is not a migration_sender"),
            Self::Version(v) => write!(
                f,
                "the other end speaks version {v}, this one {VERSION}; use the same build on both"
            ),
            Self::Kind(kind) => write!(f, "unknown kind of frame {kind}"),
            Self::TooLarge => f.write_str("a count or length is out of its range"),
            Self::RunOutOfBounds => f.write_str("a run lies outside the guest memory"),
            Self::RunNotPages => f.write_str("a run is not whole pages"),
            Self::RunOverlap => f.write_str("the runs of a table overlap or cross a chunk"),
            Self::ChunkTwice { offset } => {
                write!(f, "two channels sent pages of the chunk at {offset:#x} in one round")
            }
            Self::WrongLength => f.write_str("a run table does not add up to its header"),
            Self::NoDeviceState => {
                f.write_str("the last round came without the state of the devices")
            }
            Self::WrongRound { got, expected } => {
                write!(f, "a frame of round {got} came during round {expected}")
            }
            Self::Unexpected(name) => write!(f, "a {name} frame came where none may come"),
            Self::Hello(why) => f.write_str(why),
        }
    }
}

impl From<ProtocolError> for io::Error {
    fn from(error: ProtocolError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error.to_string())
    }
}
