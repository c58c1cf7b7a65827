//! The reason for the end of a migration: an exit code and a sentence.

use std::{error::Error, fmt, io};

/// The exit codes other than 0. Scripts depend on these numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Code {
    /// A file, a socket or the other end failed.
    Io = 1,
    /// The command line makes no sense (clap exits with the same code).
    Usage = 2,
    /// Both ends hold different bytes.
    Mismatch = 3,
    /// Zero copy was required and is unavailable here.
    Environment = 4,
    /// The memory was dirtied faster than sent, or the time was up.
    NotConverged = 5,
    /// A buffer of the pool is not Free at the end.
    Unaccounted = 6,
    /// The guest was handed over, and may or may not run at the destination.
    Undecided = 7,
}

impl Code {
    /// The code reported by the other end; an unknown number is an I/O error.
    pub fn from_wire(code: u8) -> Self {
        match code {
            3 => Self::Mismatch,
            4 => Self::Environment,
            5 => Self::NotConverged,
            6 => Self::Unaccounted,
            7 => Self::Undecided,
            _ => Self::Io,
        }
    }
}

/// An exit code with a reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub code: Code,
    pub message: String,
    /// The other end is gone, so a reason from the other end is better.
    pub hearsay: bool,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hearsay: false }
    }

    /// An I/O error with the failed action.
    pub fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        Self::new(Code::Io, format!("{doing}: {error}"))
    }

    /// The other end went away.
    pub fn peer_gone(message: impl Into<String>) -> Self {
        Self { code: Code::Io, message: message.into(), hearsay: true }
    }

    pub fn interrupted() -> Self {
        Self::new(Code::Io, "interrupted by a signal; nothing was migrated")
    }

    /// Of two failures, the one that explains the other; the first if neither does.
    pub fn explaining(self, other: Option<Failure>) -> Self {
        match other {
            Some(other) if self.hearsay && !other.hearsay => other,
            _ => self,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_wins_over_a_lost_connection() {
        let lost = Failure::peer_gone("gone");
        let reason = Failure::new(Code::Mismatch, "different");
        assert_eq!(lost.clone().explaining(Some(reason.clone())), reason);
        assert_eq!(reason.clone().explaining(Some(lost.clone())), reason);
        assert_eq!(lost.clone().explaining(None), lost);
    }
}
