//! Settings of a sender.

use std::time::Duration;

use crate::{error::CopyReason, id::NotificationId};

/// When sends go without copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Policy {
    /// Where that pays: as `Prefer`, but a route on which the kernel copies in the end (loopback, a
    /// virtual Ethernet pair, a network card without scatter-gather) is noticed and left, and
    /// looked at again from time to time.
    ///
    /// The first large call of a sender finds out; until its note is read, which takes a round
    /// trip, the others go by copy. [`SenderStats::route`](crate::SenderStats::route) tells what
    /// was found.
    #[default]
    Auto,
    /// Whenever they are large enough and the kernel accepts it, also on a route where the kernel
    /// copies in the end.
    Prefer,
    /// As `Prefer`, but a socket that has no zero copy is refused. A kernel short of memory
    /// (`ENOBUFS`) still makes single calls go by copy; [`SenderStats`](crate::SenderStats) counts
    /// them.
    Require,
    /// Never: everything goes by copy, and is released at once.
    Never,
}

/// What becomes of a payload once the kernel has released it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum HandBack {
    /// It is dropped: a pool buffer is recycled, an owner let go of.
    #[default]
    Recycle,
    /// It waits for [`Sender::next_returned`](crate::Sender::next_returned), contents unchanged. The caller must fetch it, or
    /// payloads pile up.
    Return,
}

/// Settings of a core.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// [`SenderBuilder::threshold_bytes`](crate::SenderBuilder::threshold_bytes)
    pub threshold_bytes: usize,
    /// [`SenderBuilder::max_in_flight_bytes`](crate::SenderBuilder::max_in_flight_bytes)
    pub max_in_flight_bytes: usize,
    /// [`SenderBuilder::max_in_flight_sends`](crate::SenderBuilder::max_in_flight_sends)
    pub max_in_flight_sends: usize,
    /// [`SenderBuilder::hand_back`](crate::SenderBuilder::hand_back)
    pub hand_back: HandBack,
    /// [`Policy::Auto`](crate::Policy::Auto)
    pub observe_route: bool,
    /// [`SenderBuilder::linger`](crate::SenderBuilder::linger)
    pub linger: Duration,
    /// [`SenderBuilder::max_hold`](crate::SenderBuilder::max_hold)
    pub max_hold: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            threshold_bytes: 16 << 10,
            max_in_flight_bytes: 64 << 20,
            max_in_flight_sends: 4096,
            hand_back: HandBack::Recycle,
            observe_route: false,
            linger: Duration::from_secs(30),
            max_hold: None,
        }
    }
}

/// The id that a socket's next zero-copy call takes, from [`Sender::into_parts`](crate::Sender::into_parts), unless the ids
/// are no longer known: then everything goes by copy, for the reason there was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResumeIds(pub(super) Result<NotificationId, CopyReason>);
