//! The end of a sender: flush, drain, abort and proof.

use std::time::{Duration, Instant};

use super::{
    hold::{MIN_LOOK, Progress},
    question::{Known, Question},
};
use crate::error::OsError;

/// Time for an abort to bring the last notifications before unreleased leases are Quarantined. A
/// packet in a queue below TCP keeps its ids for longer.
const GRACE: Duration = Duration::from_millis(10);

/// Time between looks at the option memory of an ended connection, and the most time between looks
/// at an ending sender without news.
const LOOK_EVERY_UNPROVEN: Duration = Duration::from_secs(1);

/// Progress of the end.
///
/// ```text
///   Flushing --all accepted, shutdown--> Draining --all released--> Over
///       |                                   |                        ^
///       `------no progress: abort-----------+--> Unproven -----------'
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Flushing,
    Draining,
    Unproven { since: Instant, quarantined: bool },
    Over,
}

/// The end of a sender, once begun.
///
/// After the descriptor is closed no proof of release can come, so the descriptor stays open until
/// `Over`.
#[derive(Clone, Copy, Debug)]
pub(in crate::sender) struct Closing {
    phase: Phase,
    /// An end without progress is aborted.
    pub(super) lingers: bool,
    /// The last time that a look found more acknowledged than the look before.
    progress: Instant,
    acknowledged: Progress,
    /// The stream was shut down behind all sent bytes.
    orderly: bool,
    /// A second shutdown has asked if the connection is over.
    is_confirmed: bool,
    pub(super) aborted: bool,
    /// Bytes unacknowledged before the abort.
    pub(super) unacked: Option<usize>,
    /// Why the end is not in order, where neither an abort nor the connection's error tells.
    pub(super) error: Option<OsError>,
}

/// The sender's state as the end needs it.
#[derive(Clone, Copy)]
pub(super) struct View {
    /// Everything is accepted, and no call is out.
    pub(super) is_flushed: bool,
    /// Everything is accepted and released.
    pub(super) is_drained: bool,
    pub(super) is_calling: bool,
    /// The connection is over.
    pub(super) has_failed: bool,
    /// Bytes accepted so far.
    pub(super) accepted: u64,
    pub(super) linger: Duration,
}

/// The next thing to do for an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Ask(Question),
    /// The option memory reads 0: everything is released.
    Prove,
    /// The remaining ids cannot be proven released for now.
    Quarantine,
    /// Break the connection, for want of progress.
    Abort,
    /// Nothing until there is news, or this time is up.
    Look(Duration),
    Over,
}

impl Closing {
    pub(super) fn new(lingers: bool, now: Instant) -> Self {
        Self {
            phase: Phase::Flushing,
            lingers,
            progress: now,
            acknowledged: Progress::default(),
            orderly: false,
            is_confirmed: false,
            aborted: false,
            unacked: None,
            error: None,
        }
    }

    /// Returns `true` while an abort still makes a difference.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.phase, Phase::Flushing | Phase::Draining)
    }

    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Returns `true` if everything was accepted, the stream ended in order, and all is released.
    pub(super) fn is_drained(&self) -> bool {
        self.orderly && self.is_over()
    }

    /// The next step, after the error queue is read and the unsent part was tried.
    pub(super) fn next(&mut self, view: View, known: &Known) -> Step {
        if self.phase == Phase::Flushing && view.is_flushed {
            if !view.has_failed {
                return Step::Ask(Question::Shutdown);
            }
            self.phase = Phase::Draining;
        }
        if self.phase != Phase::Flushing && view.is_drained {
            return self.finish(known);
        }
        match self.phase {
            Phase::Over => Step::Over,
            // Every reading of the error queue asks the option memory too.
            Phase::Unproven { quarantined: true, .. } => Step::Look(LOOK_EVERY_UNPROVEN),
            Phase::Unproven { since, quarantined: false } => {
                let Some(now) = known.time else { return Step::Ask(Question::Time) };
                if now.duration_since(since) < GRACE || view.is_calling {
                    return Step::Look(GRACE);
                }
                match known.optmem {
                    None => Step::Ask(Question::Optmem),
                    Some(Some(0)) => Step::Prove,
                    Some(_) => {
                        self.phase = Phase::Unproven { since, quarantined: true };
                        Step::Quarantine
                    }
                }
            }
            Phase::Flushing | Phase::Draining if self.lingers => self.linger(view, known),
            Phase::Flushing | Phase::Draining => Step::Look(look_after(view.linger)),
        }
    }

    /// Everything is released. A failing connection releases even bytes that never arrived, so an
    /// orderly end with unacknowledged bytes asks whether the connection is over. A connection that
    /// ended in order meanwhile cannot be shut down either. The unacknowledged bytes of a failed
    /// connection stay unacknowledged.
    fn finish(&mut self, known: &Known) -> Step {
        if self.orderly && !self.is_confirmed {
            let Some(unacked) = known.unacked else { return Step::Ask(Question::Unacked) };
            self.is_confirmed = true;
            if unacked.is_some_and(|bytes| bytes > 0) {
                return Step::Ask(Question::Shutdown);
            }
        }
        if self.is_confirmed && !self.orderly {
            let Some(unacked) = known.unacked else { return Step::Ask(Question::Unacked) };
            if unacked == Some(0) {
                (self.orderly, self.error) = (true, None);
            }
        }
        self.phase = Phase::Over;
        Step::Over
    }

    /// Looks whether the peer has acknowledged anything, and aborts an end without progress.
    fn linger(&mut self, view: View, known: &Known) -> Step {
        let Some(now) = known.time else { return Step::Ask(Question::Time) };
        let Some(unacked) = known.unacked else { return Step::Ask(Question::Unacked) };
        let unacked = self.without_end(unacked);
        if self.acknowledged.look(view.accepted, unacked) {
            self.progress = now;
        }
        if now.duration_since(self.progress) < view.linger {
            return Step::Look(look_after(view.linger));
        }
        if unacked == Some(0) && view.is_flushed {
            // The peer has everything; a reset would only spoil the end.
            self.phase = Phase::Unproven { since: now, quarantined: false };
            return Step::Look(GRACE);
        }
        Step::Abort
    }

    /// Unacknowledged bytes, less the end of the stream, which counts as one.
    pub(super) fn without_end(&self, unacked: Option<usize>) -> Option<usize> {
        Some(unacked?.saturating_sub(usize::from(self.orderly)))
    }

    /// The result of a shutdown of the stream. A second shutdown fails if the connection is over,
    /// and otherwise changes nothing.
    pub(super) fn shut_down(&mut self, result: Result<(), OsError>) {
        self.orderly = result.is_ok();
        self.error = result.err();
        if self.phase == Phase::Flushing {
            self.phase = Phase::Draining;
        }
    }

    /// The result of an abort at `now`. `why`: the reason to break the connection.
    pub(super) fn abort(&mut self, succeeded: bool, why: OsError, now: Instant) {
        self.aborted = succeeded;
        self.orderly = false;
        if !succeeded {
            // The ids stay out, and the sends in flight become Quarantined.
            self.error.get_or_insert(why);
        }
        self.phase = Phase::Unproven { since: now, quarantined: false };
    }
}

/// Time until the next look at an end of this linger.
fn look_after(linger: Duration) -> Duration {
    (linger / 10).clamp(MIN_LOOK, LOOK_EVERY_UNPROVEN)
}
