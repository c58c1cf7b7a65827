//! Settings of a sender.

use std::time::Duration;

use crate::{error::CopyReason, id::NotificationId};

/// When sends go without copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Policy {
    /// Without copy where zero copy pays. As `Prefer`, but the sender leaves a route where the
    /// kernel copies after all (loopback, a virtual Ethernet pair, a network card without
    /// scatter-gather) and tries the route again from time to time.
    ///
    /// The first large call of a sender finds out. Until the notification of the call is read, one
    /// round trip later, further calls go by copy.
    /// [`SenderStats::route`](crate::sender::SenderStats::route) tells the result.
    #[default]
    Auto,
    /// Without copy whenever sends are large enough and the kernel accepts the flag, also on a
    /// route where the kernel copies after all.
    Prefer,
    /// As `Prefer`, but a socket without zero copy is refused. A kernel short of memory (`ENOBUFS`)
    /// still makes single calls go by copy; [`SenderStats`](crate::sender::SenderStats) counts them.
    Require,
    /// Never: everything goes by copy, and is released at once.
    Never,
}

/// The use of a payload after the kernel has released it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum OnRelease {
    /// The payload is dropped: a buffer is recycled by its pool.
    #[default]
    Recycle,
    /// The payload waits for [`Sender::next_returned`](crate::Sender::next_returned), contents
    /// unchanged. The caller must fetch payloads, or they pile up.
    Return,
}

/// The place of the data when it is sent, for [`SenderBuilder::data_hint`](crate::sender::SenderBuilder::data_hint).
///
/// Copying out of the processor's caches is cheap, so zero copy of cached data pays from a larger
/// size on. The library cannot see the place, and a look at it would cost more than a small copy.
///
/// ```
/// # use std::net::{TcpListener, TcpStream};
/// use pinbuf::{Sender, sender::DataHint};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let socket = TcpStream::connect(listener.local_addr()?)?;
/// // Serves files out of buffers filled long ago.
/// let sender = Sender::builder().data_hint(DataHint::Cold).adopt(socket)?;
/// # drop(sender);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum DataHint {
    /// Cold or cached.
    #[default]
    Unknown,
    /// Written or read long ago, with some megabytes touched since: a cache of files, a mapping.
    Cold,
    /// Written or read just now, or sent again and again out of a megabyte at most.
    Cached,
}

/// Settings of a core.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// [`SenderBuilder::threshold_bytes`](crate::sender::SenderBuilder::threshold_bytes)
    pub threshold_bytes: usize,
    /// [`SenderBuilder::max_in_flight_bytes`](crate::sender::SenderBuilder::max_in_flight_bytes)
    pub max_in_flight_bytes: usize,
    /// [`SenderBuilder::max_in_flight_sends`](crate::sender::SenderBuilder::max_in_flight_sends)
    pub max_in_flight_sends: usize,
    /// [`SenderBuilder::on_release`](crate::sender::SenderBuilder::on_release)
    pub on_release: OnRelease,
    /// [`Policy::Auto`](crate::Policy::Auto)
    pub observe_route: bool,
    /// [`SenderBuilder::linger`](crate::sender::SenderBuilder::linger)
    pub linger: Duration,
    /// [`SenderBuilder::max_hold`](crate::sender::SenderBuilder::max_hold)
    pub max_hold: Option<Duration>,
    /// `SenderBuilder::release_times`, with the feature `histogram`
    pub release_times: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            threshold_bytes: 16 << 10,
            max_in_flight_bytes: 64 << 20,
            max_in_flight_sends: 4096,
            on_release: OnRelease::Recycle,
            observe_route: false,
            linger: Duration::from_secs(30),
            max_hold: None,
            release_times: false,
        }
    }
}

/// The id that a socket's next zero-copy call takes, from [`Sender::into_parts`](crate::Sender::into_parts), unless the ids
/// are no longer known: then everything goes by copy, for the reason there was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZeroCopyState(pub(super) Result<NotificationId, CopyReason>);
