//! The end of a sender: what is flushed, drained, aborted, and proven.
//!
//! ```text
//!   Flushing --all accepted, shutdown--> Draining --all released--> Over
//!       |                                   |                        ^
//!       `------no progress: abort-----------+--> Unproven -----------'
//! ```
//!
//! One step at a time, by whoever drives the sender: the caller of `close`, the half that is left,
//! or the reaper. After a close no proof of release can come, so the descriptor lives until Over.

use std::time::{Duration, Instant};

use super::{
    core::Core,
    hold::{MIN_LOOK, Progress},
    in_flight::{InFlight, OVERDUE},
    kernel::Kernel,
};
use crate::{
    error::{OsError, WaitError},
    lock::lock,
    panics::Panics,
    sync::{Arc, Ordering},
    sys::errno,
};

/// How long an abort may take to bring the last notes before what is left is Quarantined: a packet
/// that waits in a queue below TCP keeps its ids for longer.
const GRACE: Duration = Duration::from_millis(10);

/// Time between looks at the option memory of a connection that is over.
const LOOK_EVERY_UNPROVEN: Duration = Duration::from_secs(1);

/// How far the end has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Flushing,
    Draining,
    Unproven { since: Instant, quarantined: bool },
    Over,
}

/// The end of a sender, once it has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    phase: Phase,
    /// Whether an end without progress is aborted.
    lingers: bool,
    /// When a look last found more acknowledged than the look before it.
    progress: Instant,
    acknowledged: Progress,
    /// Whether the stream was shut down behind all that was to be sent.
    orderly: bool,
    aborted: bool,
    /// Bytes unacknowledged before the abort.
    unacked: Option<usize>,
    /// Why the end is not in order, where neither an abort nor the connection's error tells.
    error: Option<OsError>,
}

/// How a sender ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct CloseReport {
    /// Whether everything was accepted, the stream ended in order (datagrams have no end), and
    /// every buffer released.
    ///
    /// What went by copy may still be on its way then: `unacked_bytes` tells. The kernel goes on
    /// sending it, unless received data was not read: then the close of the descriptor resets the
    /// peer, as with any TCP socket. So read what the peer sends up to its end before the close.
    pub drained: bool,
    /// Whether the connection was aborted: the peer saw a reset.
    pub aborted: bool,
    /// Bytes that the kernel had accepted and the peer had not acknowledged, at the end or before
    /// an abort; where that can be told.
    pub unacked_bytes: Option<usize>,
    /// Payloads whose release is not proven: packets that carry them wait in a queue below TCP.
    /// They stay untouched in the reaper's care until the proof comes.
    pub quarantined: usize,
    /// Why the end was not in order, if no abort was the cause. Either this or `aborted` is set
    /// wherever `drained` is `false`.
    ///
    /// | error | meaning |
    /// |---|---|
    /// | `ENOTCONN` | the connection was over before the end was: reset by the peer, or given up |
    /// | `ETIMEDOUT`, `ECANCELED` | `close` came to its deadline, or `abort` was called, on a socket that cannot be aborted, such as one for datagrams |
    /// | `EPERM` | the sender is that of a parent process |
    /// | another | the error of the system call that failed |
    pub error: Option<OsError>,
}

impl Ending {
    /// Returns `true` while an abort still makes a difference.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.phase, Phase::Flushing | Phase::Draining)
    }
}

impl CloseReport {
    /// In a forked child nothing is ended.
    fn of_forked() -> Self {
        Self {
            drained: false,
            aborted: false,
            unacked_bytes: None,
            quarantined: 0,
            error: Some(OsError::from_raw(errno::EPERM)),
        }
    }
}

impl<K: Kernel> Core<K> {
    /// Begins the end, unless it has begun. `lingers`: abort it when it makes no progress.
    pub(super) fn begin_end(&self, lingers: bool) {
        if self.is_forked() {
            return;
        }
        let mut ending = lock(&self.ending);
        match &mut *ending {
            Some(ending) => ending.lingers |= lingers,
            None => {
                // With the user's linger time the close of the descriptor would block, and with a
                // linger time of 0 it would lose what the peer has yet to get.
                let _ = self.kernel.linger_off();
                let given_up = self.in_flight().done.extras.hold.given_up;
                *ending = Some(Box::new(Ending {
                    phase: Phase::Flushing,
                    lingers,
                    progress: self.kernel.now(),
                    acknowledged: Progress::default(),
                    orderly: false,
                    aborted: given_up.is_some_and(|given_up| given_up.aborted),
                    unacked: given_up.and_then(|given_up| given_up.unacked),
                    error: None,
                }));
            }
        }
    }

    /// Brings the end nearer, if it has begun; after [`step`](Self::step) has read the notes and
    /// flushed. Returns when to look again though there is no news.
    pub(super) fn advance_end(&self) -> Option<Duration> {
        let mut guard = lock(&self.ending);
        let ending = guard.as_mut()?;
        let next = self.advance(ending);
        drop(guard);
        self.dispose();
        next
    }

    fn advance(&self, ending: &mut Ending) -> Option<Duration> {
        if ending.phase == Phase::Flushing && self.is_flushed() {
            if self.connection_error().is_none() {
                self.shut_down(ending);
            }
            ending.phase = Phase::Draining;
        }
        if ending.phase != Phase::Flushing && self.is_drained() {
            // A connection that fails releases what never arrived.
            let is_unacked = || self.kernel.unacked().is_ok_and(|bytes| bytes > 0);
            if ending.orderly && is_unacked() {
                self.shut_down(ending);
                // One that ended in order meanwhile cannot be shut down either. What a failed
                // connection left unacknowledged stays so.
                if !ending.orderly && !is_unacked() {
                    (ending.orderly, ending.error) = (true, None);
                }
            }
            ending.phase = Phase::Over;
        }
        match ending.phase {
            Phase::Over => None,
            // Whoever has read the notes has asked the option memory too.
            Phase::Unproven { quarantined: true, .. } => Some(LOOK_EVERY_UNPROVEN),
            Phase::Unproven { since, quarantined: false } => {
                if self.kernel.now().duration_since(since) < GRACE {
                    return Some(GRACE);
                }
                let flushed = self.is_flushed();
                let mut in_flight = self.in_flight();
                in_flight.prove(&self.kernel);
                if in_flight.tracker.outstanding() == 0 {
                    ending.phase = Phase::Over;
                    return None;
                }
                in_flight.quarantine();
                if flushed {
                    in_flight.replace_pages();
                }
                ending.phase = Phase::Unproven { since, quarantined: true };
                Some(LOOK_EVERY_UNPROVEN)
            }
            Phase::Flushing | Phase::Draining => {
                let now = self.kernel.now();
                // Before the question to the kernel: what another thread sends in between must not
                // seem to be acknowledged.
                let accepted = self.in_flight().done.stats.accepted_bytes();
                let unacked = self.unacked_data(ending);
                if ending.acknowledged.look(accepted, unacked) {
                    ending.progress = now;
                }
                let idle = now.duration_since(ending.progress);
                if ending.lingers && idle >= self.config.linger {
                    if unacked == Some(0) && self.is_flushed() {
                        // The peer has everything; a reset would only spoil that.
                        ending.phase = Phase::Unproven { since: now, quarantined: false };
                    } else {
                        self.abort_now(ending, errno::ETIMEDOUT);
                    }
                    return Some(GRACE);
                }
                // Reads the option memory too, hence the upper limit.
                Some((self.config.linger / 10).clamp(MIN_LOOK, OVERDUE))
            }
        }
    }

    /// Shuts the stream down. A second shutdown fails if the connection is over, and changes
    /// nothing if it is not.
    fn shut_down(&self, ending: &mut Ending) {
        let result = self.kernel.shutdown_write();
        ending.orderly = result.is_ok();
        ending.error = result.err().map(|error| OsError::from(&error));
    }

    /// Flushes, shuts down and drains; aborts what is left at the deadline.
    pub fn close(self: Arc<Self>, deadline: Instant) -> CloseReport {
        let owner = Owner(self);
        let core = &owner.0;
        core.begin_end(false);
        if let Err(error) = core.wait_over(deadline) {
            if let (WaitError::Os(error), Some(ending)) = (error, &mut *lock(&core.ending)) {
                // The deadline is still to come: this is why the end does not wait for it.
                ending.error.get_or_insert(error);
            }
            core.cut_off(errno::ETIMEDOUT);
        }
        core.report()
    }

    /// [Aborts](Self::abort), and lets go.
    pub fn break_off(self: Arc<Self>) -> CloseReport {
        let owner = Owner(self);
        owner.0.abort();
        owner.0.report()
    }

    /// Breaks the connection: what is not accepted is let go of, and the kernel hands back every
    /// id except those of packets in a queue below.
    pub fn abort(&self) {
        self.cut_off(errno::ECANCELED);
    }

    fn cut_off(&self, why: i32) {
        if self.is_forked() {
            return;
        }
        self.begin_end(true);
        let mut guard = lock(&self.ending);
        if let Some(ending) = guard.as_mut()
            && ending.is_under_way()
        {
            self.abort_now(ending, why);
        }
        drop(guard);
        self.dispose();
    }

    pub(super) fn abort_now(&self, ending: &mut Ending, why: i32) {
        ending.unacked = self.unacked_data(ending);
        self.cut_short(OsError::from_raw(errno::ECANCELED));
        ending.aborted = self.kernel.abort().is_ok();
        if !ending.aborted {
            // The notes stay out, and what is in flight becomes Quarantined.
            ending.error.get_or_insert(OsError::from_raw(why));
        }
        ending.orderly = false;
        ending.phase = Phase::Unproven { since: self.kernel.now(), quarantined: false };
        let mut in_flight = self.in_flight();
        let _ = in_flight.read_notes(&self.kernel);
        in_flight.prove(&self.kernel);
        if in_flight.tracker.outstanding() == 0 {
            ending.phase = Phase::Over;
        }
    }

    /// Unacknowledged bytes, less the end of the stream, which counts as one.
    fn unacked_data(&self, ending: &Ending) -> Option<usize> {
        let unacked = self.kernel.unacked().ok()?;
        Some(unacked.saturating_sub(usize::from(ending.orderly)))
    }

    /// Whether the end has come.
    pub(super) fn is_over(&self) -> bool {
        lock(&self.ending).as_ref().is_some_and(|ending| ending.phase == Phase::Over)
    }

    /// How the end went so far.
    pub(super) fn report(&self) -> CloseReport {
        if self.is_forked() {
            return CloseReport::of_forked();
        }
        let error = self.connection_error().filter(|error| error.raw() != errno::ECANCELED);
        let ending = lock(&self.ending);
        let ending = ending.as_ref().expect("asked after the end has begun");
        let error = error.or(ending.error);
        let InFlight { tracker, .. } = &*self.in_flight();
        CloseReport {
            drained: ending.orderly && ending.phase == Phase::Over && error.is_none(),
            aborted: ending.aborted,
            unacked_bytes: if ending.aborted { ending.unacked } else { self.unacked_data(ending) },
            quarantined: tracker.leases(),
            error,
        }
    }

    /// Nobody drives the sender any more; its descriptor is about to be closed. If a send was cut
    /// short that must not look like the orderly end of a whole stream.
    pub(super) fn finish(&self) {
        if self.has_cut_short() {
            let _ = self.kernel.reset_on_close();
        }
        self.retire();
    }

    /// There are two owners from here on.
    pub fn share(&self) {
        // Relaxed: only this thread owns the core; the owners reach others by other means.
        self.owners.store(2, Ordering::Relaxed);
    }

    /// An owner lets go; `begin_end`: without this one there is no end but the last. What has not
    /// ended when the last one goes is the reaper's.
    ///
    /// A sender with nothing to do is closed without an end of the stream of its own: other handles
    /// of the socket may want to go on.
    pub fn leave(self: Arc<Self>, begin_end: bool) {
        // A child only closes its descriptor, with the core.
        if self.is_forked() {
            return;
        }
        if begin_end {
            self.begin_end(true);
        }
        // AcqRel: Release and Acquire partner with the other owner's, so that the last one sees the
        // end begun, and all that the other did.
        if self.owners.fetch_sub(1, Ordering::AcqRel) > 1 {
            if begin_end {
                // A failure shows in the other owner's calls.
                let _ = self.step();
            }
            return;
        }
        // A failure to read notes leaves the end to the reaper too, and so does a panic of what is
        // the user's: a descriptor that is closed now would bring no proof of release any more.
        let mut panics = Panics::default();
        panics.catch(|| _ = self.step());
        if lock(&self.ending).is_none() && self.is_drained() {
            // No end is begun: a thread that waits for a slot may yet drive this once.
            let _ = self.kernel.linger_off();
            self.finish();
        } else {
            self.begin_end(true);
            if self.is_over() {
                self.finish();
            } else {
                self.hand_over();
            }
        }
        panics.resume();
    }
}

/// The only owner of a sender that ends: lets go of it whatever happens on the way.
struct Owner<K: Kernel>(Arc<Core<K>>);

impl<K: Kernel> Drop for Owner<K> {
    fn drop(&mut self) {
        Arc::clone(&self.0).leave(false);
    }
}
