//! A finding, and the advice for it.

use std::fmt;

/// The outcome of one [`Check`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Status {
    /// As it should be.
    Pass,
    /// Unknown.
    Unknown,
    /// Zero copy works, but less well than it could.
    Warn,
    /// Zero copy does not work.
    Fail,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "PASS",
            Self::Unknown => "UNKNOWN",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        })
    }
}

/// One condition of zero copy: its state, and the change to make.
///
/// Its `Display` is for people: a line with the status, and a line with the advice, if any.
///
/// ```
/// use pinbuf::probe::{Environment, Status};
///
/// for check in Environment::probe().checks() {
///     if check.status >= Status::Warn {
///         eprintln!("{check}");
///     }
/// }
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Check {
    /// The subject of the check: a fixed name for each check.
    pub name: &'static str,
    /// The outcome.
    pub status: Status,
    /// The finding.
    pub found: String,
    /// The change to make, and its effect; present unless the status is [`Pass`](Status::Pass).
    pub advice: Option<String>,
}

impl Check {
    pub(super) fn pass(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Pass, found: found.into(), advice: None }
    }

    pub(super) fn unknown(
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { status: Status::Unknown, advice: Some(advice.into()), ..Self::pass(name, found) }
    }

    pub(super) fn warn(
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { status: Status::Warn, ..Self::unknown(name, found, advice) }
    }

    pub(super) fn fail(
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { status: Status::Fail, ..Self::unknown(name, found, advice) }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<7} {}: {}", self.status, self.name, self.found)?;
        match &self.advice {
            Some(advice) => write!(f, "\n        {advice}"),
            None => Ok(()),
        }
    }
}
