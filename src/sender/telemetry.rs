//! Events of a sender for subscribers of `tracing`: rare changes, and nothing per send.
//!
//! The machine pushes an [`Event`] under the lock, and the driver tells it where tasks are woken: with
//! no lock held, so that a subscriber may use the sender through its other half. Without the feature
//! `tracing` the types are empty and no event is made.

#[cfg(feature = "tracing")]
use tracing::field::display;

use super::report::CloseReport;
use crate::{
    error::{CopyReason, OsError, Poison},
    id::SenderId,
};

/// A change that a subscriber is told.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "tracing"), allow(dead_code, reason = "no event is told"))]
pub(crate) enum Event {
    /// Large sends go by copy from here on, for this reason, or without.
    Mode(Option<CopyReason>),
    /// Calls were held back for this cause so many times.
    Backpressure(Cause, u64),
    /// So many payloads more have no proof of release.
    Quarantined { payloads: usize },
    /// Notifications are no longer believed.
    Poisoned(Poison),
    /// The connection is over.
    Failed(OsError),
    /// The end of the sender is over.
    Closed(CloseReport),
}

/// The shortage behind a call that waits, or goes by copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    SendBuffer,
    Window,
    Quota,
    Budget,
    Optmem,
    Memlock,
}

#[cfg(feature = "tracing")]
impl Cause {
    /// In the order of the variants.
    pub(super) const ALL: [Self; 6] =
        [Self::SendBuffer, Self::Window, Self::Quota, Self::Budget, Self::Optmem, Self::Memlock];

    /// The limit that was reached, by the name of its setting.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SendBuffer => "SO_SNDBUF",
            Self::Window => "max_in_flight",
            Self::Quota => "sender_quota",
            Self::Budget => "memlock budget",
            Self::Optmem => "net.core.optmem_max",
            Self::Memlock => "RLIMIT_MEMLOCK",
        }
    }
}

/// Events to be told once no lock is held, and the times of each cause.
#[derive(Default)]
pub(crate) struct Untold {
    #[cfg(feature = "tracing")]
    events: Vec<Event>,
    #[cfg(feature = "tracing")]
    times: [u64; Cause::ALL.len()],
}

#[cfg(feature = "tracing")]
impl Untold {
    pub(super) fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Counts a cause. Returns the event of the first, second, fourth, eighth ... time: a sender with a
    /// slow peer is held back at every send.
    pub(super) fn count(&mut self, cause: Cause) -> Option<Event> {
        let times = &mut self.times[cause as usize];
        *times += 1;
        times.is_power_of_two().then_some(Event::Backpressure(cause, *times))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(super) fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}

#[cfg(not(feature = "tracing"))]
impl Untold {
    pub(super) fn push(&mut self, _: Event) {}

    pub(super) fn count(&mut self, _: Cause) -> Option<Event> {
        None
    }

    pub(super) fn is_empty(&self) -> bool {
        true
    }

    pub(super) fn take(&mut self) -> Vec<Event> {
        Vec::new()
    }
}

/// The span of a sender's adoption, the parent of all its events.
pub(super) struct Scope {
    // The id alone: a held span would stay open, and its drop runs code of the subscriber, also in a
    // forked child.
    #[cfg(feature = "tracing")]
    span: Option<tracing::Id>,
}

#[cfg(not(feature = "tracing"))]
impl Scope {
    pub(super) fn current() -> Self {
        Self {}
    }

    pub(super) fn tell(&self, _: SenderId, _: Event) {}
}

#[cfg(feature = "tracing")]
impl Scope {
    pub(super) fn current() -> Self {
        Self { span: tracing::Span::current().id() }
    }

    /// Tells the subscriber of the thread. Each event has a row in the chapter `guide::telemetry`.
    pub(super) fn tell(&self, sender: SenderId, event: Event) {
        macro_rules! event {
            ($name:literal, $level:ident, { $($fields:tt)* }, $message:literal) => {
                tracing::event!(
                    name: $name,
                    target: "pinbuf::sender",
                    parent: self.span.clone(),
                    tracing::Level::$level,
                    { sender = sender.number(), $($fields)* },
                    $message
                )
            };
        }
        match event {
            Event::Mode(reason) => {
                let (zero_copy, reason) = (reason.is_none(), reason.map(display));
                event!("mode", DEBUG, { zero_copy, reason }, "the way of large sends has changed");
            }
            Event::Backpressure(cause, times) => {
                let limit = cause.name();
                event!("backpressure", DEBUG, { limit, times }, "a limit holds sends back");
            }
            Event::Quarantined { payloads } => {
                event!("quarantined", WARN, { payloads }, "payloads without proof of release");
            }
            Event::Poisoned(cause) => {
                event!("poisoned", ERROR, { %cause }, "notifications are no longer believed");
            }
            Event::Failed(error) => {
                event!("failed", DEBUG, { %error }, "the connection is over");
            }
            Event::Closed(CloseReport { drained, aborted, unacked_bytes, quarantined, error }) => {
                let error = error.map(display);
                event!(
                    "closed",
                    DEBUG,
                    { drained, aborted, unacked_bytes, quarantined, error },
                    "the sender has ended"
                );
            }
        }
    }
}
