//! The end of a sender: flush, drain, abort and proof.

use std::time::{Duration, Instant};

use super::{
    super::{report::CloseReport, telemetry::Event},
    cold::{MIN_LOOK, Progress},
    question::{Known, Question},
    state::{Closing, Machine, Phase},
};
use crate::{error::OsError, sys::errno};

/// Time for an abort to bring the last notifications before unreleased leases are Quarantined. A
/// packet in a queue below TCP keeps its ids for longer.
const GRACE: Duration = Duration::from_millis(10);

/// Time between looks at the option memory of an ended connection, least time between attempts to
/// abort one, and the most time between looks at an ending sender without news.
const LOOK_EVERY_UNPROVEN: Duration = Duration::from_secs(1);

impl Closing {
    /// Returns `true` while an abort still makes a difference.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.phase, Phase::Flushing | Phase::Draining)
    }

    /// Everything is released. A failing connection releases even bytes that never arrived, so an
    /// orderly end with unacknowledged bytes asks whether the connection is over. A connection that
    /// ended in order meanwhile cannot be shut down either. The unacknowledged bytes of a failed
    /// connection stay unacknowledged.
    fn finish(&mut self, known: Known) -> Result<(), Question> {
        if self.orderly && !self.is_confirmed {
            let unacked = known.unacked()?;
            self.is_confirmed = true;
            if unacked.is_some_and(|bytes| bytes > 0) {
                return Err(Question::Shutdown);
            }
        }
        if self.is_confirmed && !self.orderly && known.unacked()? == Some(0) {
            (self.orderly, self.error) = (true, None);
        }
        self.phase = Phase::Over;
        Ok(())
    }

    /// Unacknowledged bytes, less the end of the stream, which counts as one.
    fn without_end(&self, unacked: Option<usize>) -> Option<usize> {
        Some(unacked?.saturating_sub(usize::from(self.orderly)))
    }
}

/// The end.
impl Machine {
    /// Begins the end, unless it has begun. `lingers`: abort it when it makes no progress. Returns
    /// `true` if it begins now.
    pub(crate) fn begin_end(&mut self, lingers: bool, now: Instant) -> bool {
        if let Some(closing) = &mut self.closing {
            closing.lingers |= lingers;
            return false;
        }
        let given_up = self.cold().and_then(|cold| cold.hold.given_up);
        self.closing = Some(Box::new(Closing {
            phase: Phase::Flushing,
            lingers,
            progress: now,
            acknowledged: Progress::default(),
            orderly: false,
            is_confirmed: false,
            aborted: given_up.is_some_and(|given_up| given_up.aborted),
            unacked: given_up.and_then(|given_up| given_up.unacked),
            refused: None,
            error: None,
        }));
        true
    }

    /// Brings the end nearer, if it has begun; after the error queue is read and what could be sent
    /// is sent.
    pub(super) fn close(&mut self) -> Result<(), Question> {
        let (is_flushed, is_drained) = (self.is_flushed(), self.is_drained());
        let has_failed = self.connection_error().is_some();
        let Some(closing) = &mut self.closing else { return Ok(()) };
        if closing.phase == Phase::Flushing && is_flushed {
            if !has_failed {
                return Err(Question::Shutdown);
            }
            closing.phase = Phase::Draining;
        }
        if closing.phase != Phase::Flushing && is_drained {
            let was_over = closing.phase == Phase::Over;
            closing.finish(self.known)?;
            if !was_over {
                self.in_flight.done.changed();
                let report = self.report(self.known.unacked.flatten());
                self.in_flight.done.tell(Event::Closed(report));
            }
            return Ok(());
        }
        let look_again = match closing.phase {
            Phase::Over => return Ok(()),
            // Every reading of the error queue asks the option memory too.
            Phase::Unproven { since, quarantined: true } => {
                if closing.refused.is_some()
                    && self.transport.has_end()
                    && self.known.time()?.duration_since(since) >= LOOK_EVERY_UNPROVEN
                {
                    closing.phase = Phase::Draining;
                    self.abort = closing.refused;
                    return self.aborting();
                }
                LOOK_EVERY_UNPROVEN
            }
            Phase::Unproven { since, quarantined: false } => {
                if self.known.time()?.duration_since(since) < GRACE {
                    GRACE
                } else {
                    let optmem = self.known.optmem()?;
                    if optmem == Some(0) {
                        self.prove(optmem);
                        return self.close();
                    }
                    closing.phase = Phase::Unproven { since, quarantined: true };
                    debug_assert!(is_flushed, "an abort gives the unsent part up");
                    self.in_flight.quarantine();
                    return Err(Question::ReplacePages);
                }
            }
            Phase::Flushing | Phase::Draining if closing.lingers => return self.linger(),
            Phase::Flushing | Phase::Draining => look_after(self.config.linger),
        };
        self.known.look_again = Some(look_again);
        Ok(())
    }

    /// Looks whether the peer has acknowledged anything, and aborts an end without progress.
    fn linger(&mut self) -> Result<(), Question> {
        let now = self.known.time()?;
        let unacked = self.known.unacked()?;
        let is_flushed = self.is_flushed();
        let Some(closing) = &mut self.closing else { return Ok(()) };
        let unacked = closing.without_end(unacked);
        if closing.acknowledged.look(self.in_flight.done.counts.accepted_bytes(), unacked) {
            closing.progress = now;
        }
        if now.duration_since(closing.progress) < self.config.linger {
            self.known.look_again = Some(look_after(self.config.linger));
            return Ok(());
        }
        if unacked == Some(0) && is_flushed {
            // The peer has everything; a reset would only spoil the end.
            closing.phase = Phase::Unproven { since: now, quarantined: false };
            self.known.look_again = Some(GRACE);
            return Ok(());
        }
        // If a call is out, its thread does the abort.
        self.abort = Some(OsError::from_raw(errno::ETIMEDOUT));
        self.aborting()
    }

    /// Has the connection broken, because of `why`, as soon as no call is out.
    pub(crate) fn ask_abort(&mut self, why: OsError) {
        self.abort.get_or_insert(why);
    }

    /// Breaks the connection if that was asked for: what is not accepted is given up, and the kernel
    /// releases every id except those of packets in a queue below.
    pub(super) fn aborting(&mut self) -> Result<(), Question> {
        if self.abort.is_none() || self.is_calling() {
            return Ok(());
        }
        // Before the end begins only a silent peer is a reason.
        if self.closing.as_ref().is_some_and(|closing| !closing.is_under_way()) {
            self.abort = None;
            return Ok(());
        }
        self.known.time()?;
        self.known.unacked()?;
        self.cut_short(OsError::from_raw(errno::ECANCELED));
        Err(Question::Abort)
    }

    /// The connection is broken, or that failed.
    pub(crate) fn aborted(&mut self, succeeded: bool) {
        let why = self.abort.take().expect("asked for");
        let Known { time, unacked, .. } = self.known;
        if let Some(closing) = &mut self.closing {
            closing.unacked = closing.unacked.or(closing.without_end(unacked.flatten()));
            closing.aborted = succeeded;
            closing.orderly = false;
            // The ids stay out then, and the sends in flight become Quarantined.
            closing.refused = (!succeeded).then_some(why);
            let since = time.expect("asked before");
            closing.phase = Phase::Unproven { since, quarantined: false };
        } else {
            self.gave_up(succeeded);
        }
        // The ids that it released are read next, and the option memory tells of the others.
        self.known = Known {
            wants_read: true,
            wants_proof: true,
            has_looked_at_hold: true,
            ..Known::default()
        };
    }

    /// The result of a shutdown of the stream. A second shutdown fails if the connection is over,
    /// and otherwise changes nothing.
    pub(crate) fn shut_down(&mut self, result: Result<(), OsError>) {
        // The peer may have acknowledged more since it was asked.
        self.known.unacked = None;
        if let Some(closing) = &mut self.closing {
            closing.orderly = result.is_ok();
            closing.error = result.err();
            closing.phase = Phase::Draining;
        }
    }

    /// An error made the caller of the end give up before its deadline.
    pub(crate) fn end_failed(&mut self, error: OsError) {
        if let Some(closing) = &mut self.closing {
            closing.error.get_or_insert(error);
        }
    }

    /// Returns `true` if the end has begun.
    pub(crate) fn is_ending(&self) -> bool {
        self.closing.is_some()
    }

    /// Returns `true` if the end has come.
    pub(crate) fn is_over(&self) -> bool {
        self.closing.as_ref().is_some_and(|closing| closing.phase == Phase::Over)
    }

    /// The report of the end so far; `unacked` is the peer's backlog now.
    pub(crate) fn report(&self, unacked: Option<usize>) -> CloseReport {
        let closing = self.closing.as_ref().expect("asked after the end has begun");
        let error = self.connection_error().filter(|error| error.raw() != errno::ECANCELED);
        let error = error.or(closing.error).or(closing.refused);
        let unacked_bytes =
            if closing.aborted { closing.unacked } else { closing.without_end(unacked) };
        CloseReport {
            drained: closing.orderly && self.is_over(),
            aborted: closing.aborted,
            unacked_bytes,
            quarantined: self.in_flight.tracker.leases(),
            error,
        }
    }
}

/// Time until the next look at an end of this linger.
fn look_after(linger: Duration) -> Duration {
    (linger / 10).clamp(MIN_LOOK, LOOK_EVERY_UNPROVEN)
}
