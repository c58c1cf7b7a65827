//! The value of zero copy on this route: the judgement of [`Policy::Auto`](crate::Policy::Auto).
//!
//! Some routes end in a copy (loopback, a virtual Ethernet pair, a card without scatter-gather, an
//! open packet capture). There zero copy costs half as much again as copying. The kernel's
//! notification says so, but notifications merge, and a merged notification carries the flag of its
//! first part only. So the flags of ordinary traffic are no more than a hint.
//!
//! # Evidence
//!
//! Evidence is the notification of a *probe*: a zero-copy call made while no id is outstanding.
//! After a probe every call goes by copy until the notification is read. So the notification is
//! about the probe alone:
//!
//! - A notification merges only with the unread notification before it. There is none, because an
//!   id with an unread notification is outstanding.
//! - TCP lets a call join the notification of the call queued before it. There is none, because its
//!   id would be outstanding. No call joins the probe, because no call has the flag until the
//!   notification is read.
//!
//! Nothing waits for a probe: further sends are copied meanwhile, at a cost too small to matter.
//! The alternative, to look for notifications that happen to name one id, finds none under load.
//!
//! # Modes
//!
//! ```text
//!   Trying --one that is true--> ZeroCopy --three copied, on suspicion--> Copied
//!      `-------three copied in a row---------------------------------------^  |
//!                                ^-------three true in a row, far apart-------'
//! ```
//!
//! `ZeroCopy` probes on suspicion only: when copied flags outweigh the rest by four. `Copied`
//! probes once per interval of bytes *and* time. The interval doubles with every failure and every
//! leave, from 4 MiB and 20 ms to 4 GiB and 20 s. Only a stay of 4 GiB in zero copy resets the
//! interval. So a route that keeps changing makes the sender change about ten times for 4 GiB sent,
//! at worst.

use std::time::{Duration, Instant};

use super::super::report::{RouteMode, RouteStats};
use crate::id::{IdRange, NotificationId};

/// Pieces of evidence in a row after which the sender leaves zero copy.
const LEAVE_AFTER: u32 = 3;

/// Pieces of evidence in a row after which the sender returns.
const RETURN_AFTER: u32 = 3;

/// Surplus of copied notifications that makes zero copy suspect.
const SUSPECT_AFTER: u32 = 4;

/// The first interval between probes on a copied route; later intervals double.
const INTERVAL_BYTES: u64 = 4 << 20;
const INTERVAL_TIME: Duration = Duration::from_millis(20);

/// The time is looked at once in this fraction of an interval of bytes, when only the time is
/// missing: reading the clock costs as much as a small part of a call.
const LOOKS: u64 = 16;

/// The most doublings of an interval.
const MAX_LEVEL: u32 = 10;

/// The judgement of one sender. Pure: knows only bytes, ids and the given time.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Route {
    /// When the last probe was let through.
    probed_at: Option<Instant>,
    /// Evidence in a row against the present mode.
    streak: u32,
    /// Doublings of the interval.
    level: u32,
    stats: RouteStats,
    /// A probe without a judgement yet.
    probe: Option<Probe>,
    /// Surplus of copied notifications, in zero copy.
    suspicion: u32,
    /// Calls that asked while ids were outstanding, since the last probe began or was judged.
    waited: u32,
    /// Bytes accepted since the mode changed or, on a copied route, since the last evidence.
    bytes: u64,
}

/// A zero-copy call made to try the route.
#[derive(Clone, Copy, Debug)]
struct Probe {
    id: NotificationId,
    /// The call has not returned: it may yet fail, and its notification would be no evidence.
    is_out: bool,
    /// The evidence of a notification that came before the call returned.
    early: Option<Evidence>,
}

/// The evidence of a probe's notification: `true` if the kernel copied, `None` if it says nothing.
type Evidence = Option<bool>;

impl Route {
    /// For [`Policy::Auto`](crate::Policy::Auto) if `observed`; otherwise every call is let through.
    pub(super) fn new(observed: bool) -> Self {
        let mode = if observed { RouteMode::Trying } else { RouteMode::Ignored };
        Self { stats: RouteStats { mode, ..RouteStats::default() }, ..Self::default() }
    }

    pub(crate) fn stats(&self) -> RouteStats {
        self.stats
    }

    /// Returns `true` if sends go by copy because the kernel copies anyway.
    #[inline]
    pub(crate) fn is_copied(&self) -> bool {
        self.stats.mode == RouteMode::Copied
    }

    /// Returns `true` if a send needs to ask for each of its calls. `false` if all calls go by copy
    /// and no probe is out: the interval before a probe ends with the probe's notification.
    #[inline]
    pub(super) fn concerns(&self) -> bool {
        !self.is_copied() || self.bytes >= self.interval_bytes()
    }

    /// Bytes that go by copy before the route is asked again, with nothing outstanding.
    pub(super) fn copied_bytes_to_come(&self) -> u64 {
        if self.is_copied() { self.interval_bytes().saturating_sub(self.bytes) } else { 0 }
    }

    /// Returns `true` if the error queue should be read before a call asks to be let through: while
    /// calls go by copy, no other code may read it. The interval in calls doubles, so a
    /// notification is read after at most twice its time, and hardly a read is in vain.
    #[inline]
    pub(super) fn wants_notifications(&mut self, outstanding: usize) -> bool {
        if !self.is_exclusive() || outstanding == 0 {
            return false;
        }
        self.waited = self.waited.saturating_add(1);
        self.waited.is_power_of_two()
    }

    /// Returns `true` if [`admits`](Self::admits) looks at the time.
    #[inline]
    pub(super) fn asks_time(&self, outstanding: usize) -> bool {
        self.is_exclusive() && outstanding == 0 && self.concerns()
    }

    /// Returns `true` if a call may go without copy. The caller then calls [`began`](Self::began),
    /// with no notification in between, or does not make the call.
    #[inline]
    pub(super) fn admits(&mut self, outstanding: usize, now: impl FnOnce() -> Instant) -> bool {
        if !self.is_exclusive() {
            return true;
        }
        if outstanding > 0 || !self.concerns() {
            return false;
        }
        let now = now();
        let waited = self.probed_at.map(|probed_at| now.saturating_duration_since(probed_at));
        let due = !self.is_copied() || waited.is_none_or(|waited| waited >= self.interval_time());
        if due {
            self.probed_at = Some(now);
        } else {
            self.bytes = self.interval_bytes() - self.interval_bytes() / LOOKS;
        }
        due
    }

    /// A call that was let through while no id was outstanding has this id.
    #[inline]
    pub(super) fn began(&mut self, id: NotificationId) {
        if self.is_exclusive() {
            debug_assert!(self.probe.is_none(), "probes go alone");
            self.probe = Some(Probe { id, is_out: true, early: None });
            self.waited = 0;
            self.stats.probes += 1;
        }
    }

    /// The kernel accepted the call that was out. Returns `true` if the mode has changed.
    #[inline]
    pub(super) fn returned(&mut self) -> bool {
        let Some(probe) = &mut self.probe else { return false };
        probe.is_out = false;
        let early = probe.early;
        early.is_some_and(|evidence| self.judge(evidence))
    }

    /// The call of `id` failed. A notification for the call says nothing about the route. Returns
    /// `true` if the call was a probe.
    pub(super) fn cancelled(&mut self, id: NotificationId) -> bool {
        self.probe.take_if(|probe| probe.id == id).is_some()
    }

    /// The probe just cancelled does not count.
    pub(super) fn retract_probe(&mut self) {
        self.stats.probes -= 1;
    }

    /// The kernel accepted so many bytes, either way.
    #[inline]
    pub(super) fn accepted(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// The kernel did not accept so many of the bytes told before.
    pub(super) fn not_accepted(&mut self, bytes: usize) {
        // A change of the mode since has forgotten the bytes.
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }

    /// A notification released these ids, with the flag of the first. Returns `true` if the mode has
    /// changed.
    pub(super) fn notified(&mut self, ids: IdRange, copied: bool) -> bool {
        let of_probe = |probe: &&mut Probe| (ids.start..ids.end).contains(&probe.id);
        if let Some(probe) = self.probe.as_mut().filter(of_probe) {
            // A probe's notification has no further ids; with further ids it is no evidence.
            let evidence = (ids.count() == 1).then_some(copied);
            if probe.is_out {
                probe.early = Some(evidence);
            } else {
                return self.judge(evidence);
            }
        } else if self.stats.mode == RouteMode::ZeroCopy && !self.is_exclusive() {
            self.suspicion =
                if copied { self.suspicion + 1 } else { self.suspicion.saturating_sub(1) };
        }
        false
    }

    /// The notification of the probe is read, and its call accepted. Returns `true` if the mode has
    /// changed.
    fn judge(&mut self, evidence: Evidence) -> bool {
        self.probe = None;
        self.waited = 0;
        let before = self.stats.mode;
        if let Some(copied) = evidence {
            self.evidence(copied);
        }
        self.stats.mode != before
    }

    /// A probe came back.
    fn evidence(&mut self, copied: bool) {
        let against = copied != self.is_copied();
        self.streak = if against { self.streak + 1 } else { 0 };
        match self.stats.mode {
            RouteMode::Ignored => {}
            RouteMode::Trying if !copied => self.change(RouteMode::ZeroCopy),
            RouteMode::Trying | RouteMode::ZeroCopy if self.streak == LEAVE_AFTER => {
                self.stats.leaves += 1;
                let stayed = self.bytes >= INTERVAL_BYTES << MAX_LEVEL;
                let tried = self.stats.mode == RouteMode::Trying;
                self.level = if tried || stayed { 0 } else { (self.level + 1).min(MAX_LEVEL) };
                self.change(RouteMode::Copied);
            }
            RouteMode::Trying => {}
            RouteMode::ZeroCopy => {
                if !copied {
                    self.suspicion = 0;
                }
            }
            RouteMode::Copied if self.streak == RETURN_AFTER => {
                self.stats.returns += 1;
                self.change(RouteMode::ZeroCopy);
            }
            RouteMode::Copied => {
                self.bytes = 0;
                if copied {
                    self.level = (self.level + 1).min(MAX_LEVEL);
                }
            }
        }
    }

    fn change(&mut self, mode: RouteMode) {
        self.stats.mode = mode;
        self.streak = 0;
        self.suspicion = 0;
        self.bytes = 0;
    }

    /// Returns `true` if only probes go without copy now, each alone.
    #[inline]
    pub(super) fn is_exclusive(&self) -> bool {
        // Nothing is suspected but in zero copy.
        self.suspicion >= SUSPECT_AFTER
            || matches!(self.stats.mode, RouteMode::Trying | RouteMode::Copied)
    }

    /// Bytes between two probes on a copied route.
    #[inline]
    fn interval_bytes(&self) -> u64 {
        INTERVAL_BYTES << self.interval_level()
    }

    /// And in time.
    fn interval_time(&self) -> Duration {
        INTERVAL_TIME * (1 << self.interval_level())
    }

    /// Short once a probe came back true: two more decide.
    #[inline]
    fn interval_level(&self) -> u32 {
        if self.streak > 0 { 0 } else { self.level }
    }
}

#[cfg(test)]
mod tests;
