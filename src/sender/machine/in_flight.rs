//! The calls given to the kernel and not yet released: their leases, ids, ages and fates.

use std::{
    mem,
    time::{Duration, Instant},
};

use super::{
    super::{
        budget::MemlockBudget,
        config::{Config, OnRelease},
        release_times::Timer,
        report::Fate,
        telemetry::{Cause, Event},
    },
    ages::Ages,
    cold::{Cold, HandedBack, Lazy},
    disposal::Disposal,
    ledger::Ledger,
    quota::{Quotas, with_quota},
    route::Route,
};
use crate::{
    error::{CopyReason, OsError, Poison},
    id::{IdRange, NotificationId, Ticket},
    lease::{IntoPayload, Lease, Memory, Payload},
    sync::Arc,
    tracker::{CompletionTracker, Heir, LeaseKey},
};

/// Leases, the ids that cover them, and the fates of released leases.
#[repr(C)]
pub(crate) struct InFlight {
    /// The judgement of zero copy on this route.
    pub(crate) route: Route,
    pub(crate) done: Done,
    pub(crate) tracker: CompletionTracker<Lease>,
    /// The reason for permanent copies, if any.
    pub(crate) copy_reason: Option<CopyReason>,
    pub(super) ages: Ages,
    /// Aside: no send without a histogram looks at it.
    pub(crate) timer: Timer,
}

/// The further way of released leases.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) ledger: Ledger,
    pub(crate) counts: Counts,
    pub(super) disposal: Disposal,
    /// Threads that are dropping payloads at the moment.
    pub(super) dropping: u32,
    pub(super) cold: Lazy<Cold>,
    /// Something has changed that a waiting task or a sleeping thread has yet to be told.
    pub(super) news: bool,
    on_release: OnRelease,
    pub(super) quotas: Quotas,
    /// The locked memory of all senders, where it has a limit.
    pub(super) budget: Option<Arc<MemlockBudget>>,
}

/// The counters of every sender, as in [`SenderStats`](crate::sender::SenderStats).
#[derive(Default)]
pub(crate) struct Counts {
    // No byte counter stands beside its call counter: two neighbours that change together are added
    // as a vector, which takes longer than two additions. Bench row: `send`, "user space".
    pub(crate) zero_copy_calls: u64,
    pub(crate) copied_calls: u64,
    pub(crate) zero_copy_bytes: u64,
    pub(crate) copied_bytes: u64,
    pub(crate) notifications: u64,
    pub(crate) released_calls: u64,
    pub(crate) deferred_copies: u64,
    pub(crate) in_flight_bytes: usize,
}

impl Counts {
    /// Bytes accepted by the socket, including the bytes of a call that is out.
    pub(super) fn accepted_bytes(&self) -> u64 {
        self.zero_copy_bytes + self.copied_bytes
    }
}

impl InFlight {
    pub(super) fn new(
        config: &Config,
        first: NotificationId,
        copy_reason: Option<CopyReason>,
        budget: Arc<MemlockBudget>,
    ) -> Self {
        Self {
            tracker: CompletionTracker::new(config.max_in_flight_sends, first),
            done: Done {
                on_release: config.on_release,
                budget: Some(budget).filter(|budget| budget.is_limited()),
                ..Done::default()
            },
            copy_reason,
            route: Route::new(config.observe_route && copy_reason.is_none()),
            ages: Ages::default(),
            timer: Timer::new(config.release_times),
        }
    }

    /// Takes custody of a buffer.
    pub(crate) fn enter(&mut self, buf: impl IntoPayload, sequence: u64) -> LeaseKey {
        self.make_room(&buf);
        self.tracker.insert(Lease::new(buf, sequence, 0))
    }

    /// Makes room for a buffer to be entered, and counts the buffer.
    pub(crate) fn make_room(&mut self, buf: &impl Memory) {
        self.make_room_for_return();
        if with_quota(buf).is_some() {
            self.done.quotas.hold(buf);
        }
    }

    /// Makes room for one more returned buffer, and for every lease that can return, so that no
    /// notification is lost for want of memory.
    #[inline(always)]
    pub(crate) fn make_room_for_return(&mut self) {
        if self.done.on_release == OnRelease::Return {
            self.done.cold.make().returned.reserve(self.tracker.leases() + 1);
        }
    }

    /// Ends the sender's hold on a lease: the kernel has accepted all bytes, or the sender has given
    /// the rest up.
    #[inline(always)]
    pub(super) fn settle(&mut self, key: LeaseKey) {
        let mut lease = self.tracker.settle(key);
        self.done.on_released(false).take(&mut lease);
    }

    /// Gives back a lease without an accepted byte.
    pub(super) fn withdraw(&mut self, key: LeaseKey) -> Payload {
        let lease = self.tracker.settle(key).expect("no id covers what was not accepted");
        let payload = lease.release().expect("only what was accepted is ever quarantined");
        self.done.quotas.release(&payload);
        payload
    }

    /// The call of `id` is about to be made. `is_first`: no other id is outstanding.
    #[cold]
    pub(super) fn begins(&mut self, id: NotificationId, now: Instant, is_first: bool) {
        if is_first {
            self.ages.mark(id, NotificationId(id.0 + 1), now);
            // Probes go alone.
            self.route.began(id);
        }
        self.timer.began(id, now);
    }

    /// The kernel did not accept the last `bytes` of a call without copy.
    pub(super) fn not_accepted(&mut self, bytes: usize) {
        self.route.not_accepted(bytes);
        self.done.counts.zero_copy_bytes -= bytes as u64;
    }

    /// The reason against notifications as proof, if any.
    pub(crate) fn poisoned(&self) -> Option<Poison> {
        match self.copy_reason {
            Some(CopyReason::Poisoned(poison)) => Some(poison),
            _ => None,
        }
    }

    /// Everything goes by copy from here on.
    #[cold]
    pub(super) fn copy_because(&mut self, reason: CopyReason) {
        self.copy_reason = Some(reason);
        self.done.tell(Event::Mode(Some(reason)));
    }

    /// The route has changed its mode.
    #[cold]
    pub(super) fn mode_changed(&mut self) {
        self.done.tell(Event::Mode(self.route.is_copied().then_some(CopyReason::Route)));
    }

    /// Notifications prove nothing from here on: no zero copy, and no release except by the option
    /// memory.
    pub(super) fn poison(&mut self, poison: Poison) {
        if self.poisoned().is_none() {
            self.copy_reason = Some(CopyReason::Poisoned(poison));
            self.done.tell(Event::Poisoned(poison));
            self.done.changed();
            self.quarantine();
        }
    }

    /// Marks every lease given to the kernel as unproven.
    pub(super) fn quarantine(&mut self) {
        let mut payloads = 0;
        for lease in self.tracker.iter_mut().filter(|lease| lease.offers > 0) {
            payloads += usize::from(!lease.is_quarantined());
            let hopeless = lease.quarantine();
            if !hopeless.is_empty() {
                self.done.cold.make().hopeless.extend(hopeless);
            }
        }
        if payloads > 0 {
            self.done.tell(Event::Quarantined { payloads });
        }
    }

    /// Frees Quarantined memory where new pages can take the place of the kernel's pages. Nothing
    /// must be left to send, and no call be out.
    pub(crate) fn replace_pages(&mut self) {
        for payload in self.tracker.iter_mut().filter_map(Lease::replace_pages) {
            self.done.disposal.push(payload);
        }
    }

    /// Every id is released, according to the option memory. Returns the number of ids.
    pub(super) fn release_all(&mut self) -> u64 {
        let Self { tracker, done, timer, .. } = self;
        // A proof comes long after the release.
        timer.clear();
        let calls = tracker.outstanding();
        done.changed();
        done.counts.released_calls += calls as u64;
        done.refund(calls, done.counts.in_flight_bytes);
        tracker.release_all(done.on_released(false));
        calls as u64
    }

    /// The least age of the oldest call in flight.
    pub(crate) fn oldest(&mut self, now: Instant) -> Option<Duration> {
        let oldest = self.tracker.oldest()?;
        self.ages.mark(oldest, self.tracker.next_id(), now);
        Some(now.saturating_duration_since(self.ages.latest()?))
    }

    /// Returns `true` if a task waits for a fate, or for a slot in flight.
    pub(super) fn is_awaited(&mut self) -> bool {
        self.done.cold.get().is_some_and(|cold| !cold.wakers.is_empty())
            || self.tracker.iter_mut().any(|lease| lease.is_awaited())
    }

    /// The fate of a send. `unsent`: the last send is not wholly accepted.
    pub(super) fn fate(&self, ticket: Ticket, unsent: bool) -> Option<Fate> {
        let ledger = &self.done.ledger;
        let fate = ledger.fate(ticket);
        let is_sending = unsent && ledger.is_last(ticket);
        if fate.is_none() && self.poisoned().is_some() && !is_sending {
            return ledger.is_open(ticket).then_some(Fate::Quarantined);
        }
        fate
    }

    /// Returns `true` if notifications are worth being awaited.
    pub(crate) fn expects_notifications(&self) -> bool {
        self.tracker.outstanding() > 0 && self.poisoned().is_none()
    }
}

impl Done {
    /// Returns `true` if there is nothing to drop and nothing to tell waiting tasks and threads.
    #[inline(always)]
    pub(super) fn is_quiet(&self) -> bool {
        !self.news
            && self.disposal.is_empty()
            && self.cold.get().is_none_or(|cold| cold.hopeless.is_empty())
    }

    /// Something has changed for which a task or a thread may wait.
    #[inline]
    pub(super) fn changed(&mut self) {
        if let Some(cold) = self.cold.get_mut() {
            cold.changes += 1;
            self.news |= !cold.wakers.is_empty() || !cold.asleep.is_empty();
        }
    }

    /// Keeps an event for a subscriber until no lock is held.
    #[inline(always)]
    pub(super) fn tell(&mut self, event: Event) {
        if cfg!(feature = "tracing") {
            self.cold.make().untold.push(event);
            self.news = true;
        }
    }

    /// A call has to wait, or goes by copy, for this cause.
    #[inline(always)]
    pub(crate) fn held_back(&mut self, cause: Cause) {
        if cfg!(feature = "tracing")
            && let Some(event) = self.cold.make().untold.count(cause)
        {
            self.tell(event);
        }
    }

    /// Ends the waits of sleeping threads: their event may have come.
    pub(super) fn wake_threads(&mut self) {
        if let Some(cold) = self.cold.get_mut() {
            // Cannot fail for descriptors of our own; even then every wait ends by itself.
            cold.asleep.drain(..).for_each(|thread| _ = thread.wake());
        }
    }

    /// A receiver of leases without a hold, for a notification that says `copied` or not.
    #[inline]
    pub(super) fn on_released(&mut self, copied: bool) -> OnReleased<'_> {
        OnReleased { recycles: self.recycles(), done: self, copied }
    }

    /// Returns `true` if released payloads are neither wanted back nor counted.
    #[inline]
    pub(super) fn recycles(&self) -> bool {
        self.on_release == OnRelease::Recycle && self.quotas.is_empty()
    }

    /// Counts the releases of a notification. Returns the number of ids.
    #[inline]
    pub(super) fn released(&mut self, ids: IdRange, bytes: usize, copied: bool) -> u64 {
        let ids = ids.count();
        self.changed();
        self.refund(ids as usize, bytes);
        self.counts.released_calls += ids;
        self.counts.deferred_copies += if copied { ids } else { 0 };
        ids
    }

    /// A released lease that is not recycled in place.
    #[inline(never)]
    fn finish(&mut self, place: &mut Option<Lease>) {
        let Some(lease) = place.take() else { return };
        let sequence = lease.ticket;
        let len = self.len_of_vectored(sequence);
        // A lease without a payload waited only for its former pages.
        let Some(payload) = lease.release() else { return };
        self.quotas.release(&payload);
        if let Some(payload) = self.hand_back(payload, sequence, len) {
            self.disposal.push(payload);
        }
    }

    /// Keeps a payload of a finished send for a caller that wants it back. Otherwise the payload is
    /// to be dropped.
    #[inline(always)]
    pub(crate) fn hand_back<P: IntoPayload>(
        &mut self,
        buf: P,
        sequence: u64,
        len: Option<usize>,
    ) -> Option<P> {
        match self.on_release {
            OnRelease::Recycle => Some(buf),
            OnRelease::Return => {
                let payload = buf.into_payload();
                let len = len.unwrap_or(payload.len());
                self.cold.make().returned.push_back(HandedBack { sequence, len, payload });
                None
            }
        }
    }

    /// Notes the length of a vectored send, if its payloads are to be handed back.
    pub(super) fn note_vectored(&mut self, sequence: u64, len: usize) {
        if self.on_release == OnRelease::Return {
            self.cold.make().vectored.push_back((sequence, len));
        }
    }

    /// The length of a vectored send, which is forgotten with the last lease of the send.
    fn len_of_vectored(&mut self, sequence: u64) -> Option<usize> {
        let vectored = &mut self.cold.get_mut()?.vectored;
        let at = vectored.binary_search_by_key(&sequence, |(sequence, _)| *sequence).ok()?;
        let (_, len) = vectored[at];
        if !self.ledger.is_open_at(sequence) {
            vectored.remove(at);
        }
        Some(len)
    }

    /// The send of the last ticket was taken back.
    pub(super) fn retract(&mut self, ticket: Ticket) {
        if let Some(cold) = self.cold.get_mut() {
            let sequence = self.ledger.sequence(ticket);
            if cold.vectored.back().is_some_and(|(vectored, _)| *vectored == sequence) {
                cold.vectored.pop_back();
            }
        }
        self.ledger.retract(ticket);
    }

    /// Ends the count of calls, of so many bytes in all: the kernel released them or never had
    /// them.
    #[inline]
    pub(super) fn refund(&mut self, calls: usize, bytes: usize) {
        self.counts.in_flight_bytes -= bytes;
        self.end_charge(calls, bytes);
    }

    #[inline]
    pub(super) fn end_charge(&self, calls: usize, bytes: usize) {
        if let Some(budget) = &self.budget {
            budget.refund(calls, bytes);
        }
    }

    /// The connection failed after `accepted` bytes of a send.
    pub(super) fn truncate(&mut self, ticket: Ticket, accepted: usize, error: OsError) {
        self.changed();
        self.ledger.truncate(ticket, accepted, error);
        self.cold.make().counts.truncated_sends += 1;
    }
}

/// Takes leases released by the kernel.
pub(super) struct OnReleased<'a> {
    done: &'a mut Done,
    recycles: bool,
    copied: bool,
}

impl Heir<Lease> for OnReleased<'_> {
    #[inline(always)]
    fn take(&mut self, place: &mut Option<Lease>) {
        let Some(lease) = place else { return };
        self.done.ledger.released(lease.ticket, self.copied | lease.copied);
        if self.recycles && lease.try_recycle() {
            // The lease has nothing left for its drop to keep.
            mem::forget(place.take());
        } else {
            self.done.finish(place);
        }
    }
}
