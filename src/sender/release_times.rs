//! The histogram of the time from a zero-copy call to its release: the feature `histogram`.
//!
//! [`Timer`] keeps the start of each call in flight, aside from the state of every send, and is empty
//! without the feature.

use std::time::Instant;
#[cfg(feature = "histogram")]
use std::{collections::HashMap, fmt, ops::AddAssign, time::Duration};

#[cfg(feature = "histogram")]
use hdrhistogram::Histogram;

use crate::id::{IdRange, NotificationId};

/// The times from zero-copy calls of a sender to their releases: a snapshot of a histogram with an
/// error of 1 %.
///
/// Switched on by [`SenderBuilder::release_times`](crate::sender::SenderBuilder::release_times). A time
/// begins just before the system call, and ends when the sender has read the notification: until then
/// no buffer can be used again. So a time is at least the round trip, and the time until a send, a wait
/// or an allocation reads notifications counts too. Copied sends are not counted, nor are releases
/// without a notification.
///
/// Snapshots of several senders add up. The feature `serde` serializes counts and nanoseconds,
/// each as a `u64`: a total of more than 584 years is the largest number.
///
/// ```
/// # use std::{io, net::{TcpListener, TcpStream}, time::Duration};
/// use pinbuf::{Policy, Sender, sender::ReleaseTimes};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let socket = TcpStream::connect(listener.local_addr()?)?;
/// # let mut far = listener.accept()?.0;
/// # let _peer = std::thread::spawn(move || io::copy(&mut far, &mut io::sink()));
/// let mut sender = Sender::builder().policy(Policy::Prefer).release_times(true).adopt(socket)?;
/// let ticket = sender.send(vec![7; 64 << 10])?;
/// let _fate = sender.wait(ticket, None)?;
///
/// let times = sender.release_times().expect("switched on");
/// assert_eq!(times.count(), sender.stats().released_calls);
/// assert!(times.quantile(0.99) <= times.max());
///
/// let mut all = ReleaseTimes::default();
/// all += &times;
/// assert_eq!(all.count_within(times.max()), times.count());
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "histogram")]
#[cfg_attr(docsrs, doc(cfg(feature = "histogram")))]
#[derive(Clone)]
pub struct ReleaseTimes {
    nanoseconds: Histogram<u64>,
    total: Duration,
}

/// Longer times count as this long.
#[cfg(feature = "histogram")]
const LONGEST: Duration = Duration::from_secs(3600);

#[cfg(feature = "histogram")]
impl ReleaseTimes {
    /// Number of releases.
    pub fn count(&self) -> u64 {
        self.nanoseconds.len()
    }

    /// Number of releases within a time, as for the buckets of Prometheus.
    pub fn count_within(&self, bound: Duration) -> u64 {
        self.nanoseconds.count_between(0, nanoseconds(bound))
    }

    /// Sum of all times.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// The longest time. Zero without a release.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.max())
    }

    /// The time within which this share of the releases came, from 0 to 1. Zero without a release.
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.nanoseconds.value_at_quantile(share)).min(self.max())
    }

    fn record(&mut self, time: Duration) {
        self.nanoseconds.saturating_record(nanoseconds(time));
        self.total += time;
    }
}

#[cfg(feature = "histogram")]
fn nanoseconds(time: Duration) -> u64 {
    time.min(LONGEST).as_nanos() as u64
}

/// Without a release.
#[cfg(feature = "histogram")]
impl Default for ReleaseTimes {
    fn default() -> Self {
        // From a microsecond on, with two digits: 27 KiB.
        let nanoseconds = Histogram::new_with_bounds(1000, nanoseconds(LONGEST), 2);
        Self { nanoseconds: nanoseconds.expect("the bounds are in order"), total: Duration::ZERO }
    }
}

/// The releases of one more sender.
#[cfg(feature = "histogram")]
impl AddAssign<&Self> for ReleaseTimes {
    fn add_assign(&mut self, other: &Self) {
        self.nanoseconds.add(&other.nanoseconds).expect("all have the same bounds");
        self.total += other.total;
    }
}

#[cfg(feature = "histogram")]
impl fmt::Debug for ReleaseTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReleaseTimes")
            .field("count", &self.count())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish_non_exhaustive()
    }
}

#[cfg(all(feature = "histogram", feature = "serde"))]
impl serde::Serialize for ReleaseTimes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("ReleaseTimes", 7)?;
        fields.serialize_field("count", &self.count())?;
        for (name, share) in
            [("p50_ns", 0.5), ("p90_ns", 0.9), ("p99_ns", 0.99), ("p999_ns", 0.999)]
        {
            fields.serialize_field(name, &nanoseconds(self.quantile(share)))?;
        }
        fields.serialize_field("max_ns", &nanoseconds(self.max()))?;
        let total_ns = u64::try_from(self.total.as_nanos()).unwrap_or(u64::MAX);
        fields.serialize_field("total_ns", &total_ns)?;
        fields.end()
    }
}

/// The starts of the calls in flight, and the times of the released calls, if the sender keeps them.
#[derive(Default)]
pub(super) struct Timer {
    #[cfg(feature = "histogram")]
    timed: Option<Box<Timed>>,
}

#[cfg(feature = "histogram")]
#[derive(Default)]
struct Timed {
    starts: HashMap<NotificationId, Instant>,
    times: ReleaseTimes,
}

#[cfg(feature = "histogram")]
impl Timer {
    pub(super) fn new(is_on: bool) -> Self {
        Self { timed: is_on.then(Box::default) }
    }

    /// The call of `id` is about to be made. The id of a failed call is given out again, with a new
    /// start.
    pub(super) fn began(&mut self, id: NotificationId, now: Instant) {
        if let Some(timed) = &mut self.timed {
            timed.starts.insert(id, now);
        }
    }

    /// A notification released these calls.
    pub(super) fn released(&mut self, ids: IdRange, now: Option<Instant>) {
        let (Some(timed), Some(now)) = (&mut self.timed, now) else { return };
        for id in ids.start.0..ids.end.0 {
            if let Some(start) = timed.starts.remove(&NotificationId(id)) {
                timed.times.record(now.saturating_duration_since(start));
            }
        }
    }

    /// Every call in flight was released some time ago.
    pub(super) fn clear(&mut self) {
        if let Some(timed) = &mut self.timed {
            timed.starts.clear();
        }
    }

    pub(super) fn times(&self) -> Option<ReleaseTimes> {
        Some(self.timed.as_ref()?.times.clone())
    }
}

#[cfg(not(feature = "histogram"))]
impl Timer {
    pub(super) fn new(_: bool) -> Self {
        Self {}
    }

    pub(super) fn began(&mut self, _: NotificationId, _: Instant) {}

    pub(super) fn released(&mut self, _: IdRange, _: Option<Instant>) {}

    pub(super) fn clear(&mut self) {}
}
