//! What the kernel has been given and not yet released: the side of a sender that reads notes.

use std::{
    collections::VecDeque,
    io, mem,
    task::Waker,
    time::{Duration, Instant},
};

use super::{
    Config, HandBack, Returned,
    call::Call,
    kernel::Kernel,
    ledger::{Fate, Ledger},
    rare::{Extras, Rare},
    route::Route,
    settled::Settled,
    window::{MemlockBudget, Passes},
};
use crate::{
    error::{CopyReason, OsError, Poison},
    id::{NotificationId, Ticket, short_sequence},
    lease::{IntoPayload, Lease, Memory, Payload},
    raw::PoolHead,
    sync::Arc,
    sys::{Record, errno},
    tracker::{ALONE, CompletionTracker, Heir, LeaseKey, Released},
};

/// Foreign messages of the error queue kept for the caller.
const MAX_EVENTS: usize = 64;

/// How old the oldest call in flight is when reading no note for it raises the question whether one
/// went astray.
pub(super) const OVERDUE: Duration = Duration::from_secs(1);

/// Batches of notes read in one go, so that a busy peer cannot keep a reader for ever.
const MAX_BATCHES: usize = 64;

/// Leases, the ids that cover them, and what became of those released. Lives under one lock.
#[repr(C)]
pub(super) struct InFlight {
    /// Whether zero copy is worth it.
    pub(super) route: Route,
    /// Why everything goes by copy, for good, if it does.
    pub(super) copy_reason: Option<CopyReason>,
    /// Whether a zero-copy call is under way, so that option memory reading 0 proves nothing.
    pub(super) in_call: bool,
    /// Whether the socket has not taken all of a send, as the last to try has left it.
    pub(super) has_rest: bool,
    /// Calls of lone buffers that need not ask for anything.
    pub(super) passes: Passes,
    ages: Ages,
    pub(super) done: Done,
    pub(super) tracker: CompletionTracker<Lease>,
}

/// Where released leases go.
pub(super) struct Done {
    pub(super) ledger: Ledger,
    pub(super) stats: Counts,
    pub(super) settled: Settled,
    /// How many threads are dropping some at this moment.
    pub(super) dropping: u32,
    pub(super) extras: Rare<Extras>,
    /// Whether anything has changed that a sleeper may wait for.
    pub(super) news: bool,
    hand_back: HandBack,
    budget: Arc<MemlockBudget>,
}

/// What every sender counts; as in [`SenderStats`](super::SenderStats).
#[derive(Default)]
pub(super) struct Counts {
    // Not bytes beside their calls: two neighbours that change together are added as a vector,
    // which takes longer than two additions.
    pub(super) zero_copy_calls: u64,
    pub(super) copied_calls: u64,
    pub(super) zero_copy_bytes: u64,
    pub(super) copied_bytes: u64,
    pub(super) notes: u64,
    pub(super) released_calls: u64,
    pub(super) deferred_copies: u64,
    pub(super) in_flight_bytes: usize,
}

impl Counts {
    /// Bytes that the socket has accepted, those of a call that is still out included.
    pub(super) fn accepted_bytes(&self) -> u64 {
        self.zero_copy_bytes + self.copied_bytes
    }
}

/// What one reading of the error queue brought.
#[derive(Clone, Copy, Debug, Default)]
pub struct Read {
    /// Messages, foreign ones included.
    pub messages: usize,
    /// Ids released.
    pub ids: u64,
    /// Whether the queue was seen empty, or is not to be read.
    pub drained: bool,
    /// The error that forbids reading a note that is still to come.
    pub refused: Option<OsError>,
}

/// What a call that failed has left behind.
#[derive(Clone, Copy, Debug)]
pub(super) struct FailedCall {
    /// The kernel used the id, and has released it.
    pub(super) took_id: bool,
    /// Other ids found released.
    pub(super) freed: u64,
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
                ledger: Ledger::default(),
                stats: Counts::default(),
                settled: Settled::default(),
                dropping: 0,
                extras: Rare::default(),
                news: false,
                hand_back: config.hand_back,
                budget,
            },
            passes: Passes::default(),
            in_call: false,
            has_rest: false,
            copy_reason,
            route: Route::new(config.observe_route && copy_reason.is_none()),
            ages: Ages::default(),
        }
    }

    /// So many bytes were accepted by a copied call.
    #[inline]
    pub(super) fn copied(&mut self, accepted: usize) {
        self.route.accepted(accepted);
        self.done.stats.copied_calls += 1;
        self.done.stats.copied_bytes += accepted as u64;
    }

    /// Takes custody of a buffer; tells also whether somebody waits for its slot.
    pub(super) fn enter(&mut self, buf: impl IntoPayload, ticket: u64) -> (LeaseKey, bool) {
        self.make_room(&buf);
        let awaited = buf.is_awaited();
        (self.tracker.insert(Lease::new(buf, ticket, 0)), awaited)
    }

    /// Takes custody of a buffer, for which the tracker has a place, under [`ALONE`], and gives out
    /// the id of a call that is about to be made with its first `bytes`.
    #[inline(always)]
    pub(super) fn enter_call(
        &mut self,
        kernel: &impl Kernel,
        buf: impl IntoPayload,
        ticket: u64,
        bytes: usize,
    ) -> NotificationId {
        if self.tracker.is_idle() {
            self.begins_anew(kernel, self.tracker.next_id());
        }
        self.begins(bytes);
        self.tracker.insert_issued(move || Lease::new(buf, ticket, 1), call_bytes(bytes))
    }

    /// Makes room for a buffer to be entered, and counts it.
    pub(super) fn make_room(&mut self, buf: &impl Memory) {
        self.make_room_for_return();
        if buf.pool().is_some_and(|pool| pool.sender_quota().is_some()) {
            self.done.hold(buf);
        }
    }

    /// Makes room for one more buffer that comes back, and for every lease that can, so that no
    /// note is lost for want of it.
    #[inline(always)]
    pub(super) fn make_room_for_return(&mut self) {
        if self.done.hand_back == HandBack::Return {
            self.done.extras.returned.reserve(self.tracker.leases() + 1);
        }
    }

    /// Whether the quotas of their pools let buffers of these in; reads the notes if not. Who
    /// copies has nothing in flight for long, and a poisoned sender could wait for ever.
    #[inline]
    pub(super) fn quotas_allow<'a>(
        &mut self,
        pools: impl Iterator<Item = &'a PoolHead> + Clone,
        kernel: &impl Kernel,
    ) -> bool {
        self.done.extras.get().is_none_or(|extras| extras.held.is_empty())
            || self.some_quotas_allow(pools, kernel)
    }

    #[cold]
    fn some_quotas_allow<'a>(
        &mut self,
        pools: impl Iterator<Item = &'a PoolHead> + Clone,
        kernel: &impl Kernel,
    ) -> bool {
        if self.copy_reason.is_some() || self.done.quotas_allow(pools.clone()) {
            return true;
        }
        // A failure shows when the owner reaps.
        let _ = self.read_notes(kernel);
        self.copy_reason.is_some() || self.done.quotas_allow(pools)
    }

    /// Ends the sender's hold on a lease that the kernel has wholly accepted, or that will not be
    /// sent any further.
    #[inline(always)]
    pub(super) fn settle(&mut self, key: LeaseKey) {
        let mut lease = self.tracker.settle(key);
        if lease.is_some() {
            self.done.heir(false).take(&mut lease);
        }
    }

    /// Settles the call of a lone buffer that took all, in place of its sender.
    #[inline(always)]
    pub(super) fn settle_left(&mut self) {
        self.in_call = false;
        let released = self.tracker.settle(ALONE);
        debug_assert!(released.is_none(), "who meets its note has come upon the call before");
        mem::forget(released);
    }

    /// Gives back a lease of which the kernel accepted nothing.
    pub(super) fn withdraw(&mut self, key: LeaseKey) -> Payload {
        let lease = self.tracker.settle(key).expect("no id covers what was not accepted");
        let payload = lease.release().expect("only what was accepted is ever quarantined");
        self.done.let_go(&payload);
        payload
    }

    /// Whether it is worth asking for each call whether it goes without copy.
    #[inline]
    pub(super) fn tries_zero_copy(&self) -> bool {
        self.copy_reason.is_none() && self.route.concerns(self.tracker.outstanding())
    }

    /// How often such lone buffers as the one that is about to go by copy may do so unasked. Until
    /// then nobody reads notes for them, so none must be to come.
    pub(super) fn copies(&self, pool: Option<&PoolHead>, bytes: usize) -> Passes {
        if !self.tracker.is_idle() || pool.is_some_and(|pool| pool.sender_quota().is_some()) {
            return Passes::default();
        }
        let calls = match self.copy_reason {
            Some(_) => usize::MAX,
            // The one to come is not counted yet.
            None => (self.route.copied_bytes_to_come() / bytes as u64).saturating_sub(1) as usize,
        };
        Passes::new(calls, bytes, pool)
    }

    /// Gives out the id of a call that is about to be made, and charges its leases for it.
    pub(super) fn begin_call(
        &mut self,
        kernel: &impl Kernel,
        call: Call<'_>,
    ) -> Option<NotificationId> {
        self.passes.revoke();
        let is_first = self.tracker.is_idle();
        let id = self.tracker.issue(call.keys, call_bytes(call.bytes))?;
        for key in call.keys {
            self.tracker.get_mut(*key).offers += 1;
        }
        if is_first {
            self.begins_anew(kernel, id);
        }
        self.begins(call.bytes);
        Some(id)
    }

    /// The call of `id` is about to be made, with no other outstanding.
    #[cold]
    fn begins_anew(&mut self, kernel: &impl Kernel, id: NotificationId) {
        self.ages.mark(id, NotificationId(id.0 + 1), kernel.now());
        // Probes go alone.
        self.route.began(id);
    }

    /// A call is about to be made.
    #[inline(always)]
    fn begins(&mut self, bytes: usize) {
        self.in_call = true;
        // Counted already: after the call nobody may have the lock.
        self.route.accepted(bytes);
        let Counts { zero_copy_calls, zero_copy_bytes, in_flight_bytes, .. } = &mut self.done.stats;
        *zero_copy_calls += 1;
        *zero_copy_bytes += bytes as u64;
        *in_flight_bytes += bytes;
    }

    /// The kernel did not accept the last `bytes` of a call.
    pub(super) fn not_accepted(&mut self, bytes: usize) {
        self.route.not_accepted(bytes);
        self.done.stats.zero_copy_bytes -= bytes as u64;
    }

    /// The call of `id` failed. Takes the id back unless the kernel used it.
    pub(super) fn fail_call(
        &mut self,
        kernel: &impl Kernel,
        id: NotificationId,
        call: Call<'_>,
    ) -> FailedCall {
        let is_probe = self.route.cancelled(id);
        let may_have_taken = kernel.transport().failures_take_ids();
        // Under the lock: the id must not be taken back while its note is on the queue, or the
        // next call would be released by it.
        let read = match may_have_taken {
            true => self.read_to_the_end(kernel),
            false => Read::default(),
        };
        self.in_call = false;
        self.passes.revoke();
        self.ages.cancelled(id);
        self.not_accepted(call.bytes);
        let is_taken = !self.tracker.cancel(id);
        self.done.stats.zero_copy_calls -= u64::from(!(is_taken && may_have_taken));
        if is_taken {
            return FailedCall { took_id: may_have_taken, freed: read.ids.saturating_sub(1) };
        }
        if is_probe {
            self.route.retract_probe();
        }
        for key in call.keys {
            self.tracker.get_mut(*key).offers -= 1;
        }
        self.done.uncharge(1, call.bytes);
        FailedCall { took_id: false, freed: read.ids }
    }

    /// Reads the error queue until it is empty. If that cannot be done, no note that is still there
    /// can be trusted to be about the id it names.
    fn read_to_the_end(&mut self, kernel: &impl Kernel) -> Read {
        let mut all = Read::default();
        while !all.drained {
            let Ok(read) = self.read_notes(kernel) else {
                self.poison(Poison::Unread);
                break;
            };
            all.messages += read.messages;
            all.ids += read.ids;
            all.drained = read.drained;
        }
        all
    }

    /// Reads the error queue until it is empty, or for a good while. Whoever waits for a note comes
    /// here from time to time, so here it is asked whether one is still to come.
    pub(super) fn read_notes(&mut self, kernel: &impl Kernel) -> io::Result<Read> {
        let mut read = Read::default();
        for _ in 0..MAX_BATCHES {
            let batch = kernel.read_notes(&mut |record| read.ids += self.on_record(record));
            let batch = match batch.map_err(|error| OsError::from(&error)) {
                Err(error) if !errno::may_pass(error.raw()) => {
                    read.refused = self.cannot_read(error);
                    read.drained = true;
                    break;
                }
                batch => batch?,
            };
            read.messages += batch.messages;
            if batch.truncated {
                self.poison(Poison::Truncated);
            }
            read.drained = batch.drained;
            if batch.drained {
                break;
            }
        }
        if self.tracker.outstanding() > 0 {
            let age = self.oldest(kernel.now());
            let is_overdue = read.ids == 0 && age >= Some(OVERDUE);
            if is_overdue || self.poisoned().is_some() {
                read.ids += self.prove(kernel);
            }
        }
        Ok(read)
    }

    /// Handles one record; returns how many ids it released.
    fn on_record(&mut self, record: Record) -> u64 {
        let (lo, hi, copied) = match record {
            Record::Released { lo, hi, copied } => (lo, hi, copied),
            Record::Foreign(event) => {
                let extras = &mut *self.done.extras;
                if extras.events.len() == MAX_EVENTS {
                    extras.events.pop_front();
                    extras.events_dropped += 1;
                }
                extras.events.push_back(event);
                return 0;
            }
        };
        self.done.stats.notes += 1;
        if self.poisoned().is_some() {
            return 0;
        }
        let Self { tracker, done, route, passes, .. } = self;
        match tracker.release(lo, hi, done.heir(copied)) {
            Ok(Released { ids, bytes }) => {
                route.note(ids, copied);
                if route.is_exclusive() {
                    passes.revoke();
                }
                let ids = ids.count();
                done.news = true;
                done.uncharge(ids as usize, bytes);
                done.stats.released_calls += ids;
                done.stats.deferred_copies += if copied { ids } else { 0 };
                ids
            }
            Err(_) => {
                self.poison(Poison::UnknownIds { lo, hi });
                0
            }
        }
    }

    /// Why notes prove nothing any more, if so.
    pub(super) fn poisoned(&self) -> Option<Poison> {
        match self.copy_reason {
            Some(CopyReason::Poisoned(poison)) => Some(poison),
            _ => None,
        }
    }

    /// Notes prove nothing from here on: no zero copy, no release but by [`prove`](Self::prove).
    fn poison(&mut self, poison: Poison) {
        if self.poisoned().is_none() {
            self.copy_reason = Some(CopyReason::Poisoned(poison));
            self.passes.revoke();
            self.done.news = true;
            self.quarantine();
        }
    }

    /// The error queue cannot be read, and no note ever will be. Returns the error if one is to
    /// come.
    #[cold]
    fn cannot_read(&mut self, error: OsError) -> Option<OsError> {
        if self.tracker.outstanding() == 0 {
            self.copy_reason.get_or_insert(CopyReason::Unprovable(error));
            self.passes.revoke();
            return None;
        }
        self.poison(Poison::Unread);
        Some(error)
    }

    /// Marks every lease that the kernel was given as unproven.
    pub(super) fn quarantine(&mut self) {
        for lease in self.tracker.iter_mut().filter(|lease| lease.offers > 0) {
            let roused = lease.quarantine();
            if !roused.is_empty() {
                self.done.extras.roused.extend(roused);
            }
        }
    }

    /// Frees the memory of what is Quarantined where new pages can take the place of those that the
    /// kernel may still read. The caller sees to it that nothing is left to send.
    pub(super) fn replace_pages(&mut self) {
        let Self { tracker, done, .. } = self;
        for payload in tracker.iter_mut().filter_map(Lease::replace_pages) {
            done.let_go(&payload);
            done.settled.push(payload);
        }
    }

    /// Ends the waits of others: what they wait for may have come.
    pub(super) fn rouse_sleepers(&self) {
        // Cannot fail for descriptors of our own; if it did, every wait ends by itself.
        self.done.extras.sleepers.iter().for_each(|sleeper| _ = sleeper.rouse());
    }

    /// Who is to be woken once no lock is held.
    pub(super) fn take_woken(&mut self) -> Vec<Waker> {
        if !self.done.has_woken() {
            return Vec::new();
        }
        let mut woken = mem::take(&mut self.done.extras.roused);
        let mut wakers = mem::take(&mut self.done.extras.wakers);
        let resolved = wakers.extract_if(.., |(ticket, _)| self.fate(*ticket).is_some());
        woken.extend(resolved.map(|(_, waker)| waker));
        self.done.extras.wakers = wakers;
        woken
    }

    /// Asks the option memory of the socket: reading 0, while no call is under way, means that
    /// every id is released. Returns how many ids that released.
    ///
    /// If notes were still trusted, somebody else must have read one of ours: that poisons.
    pub(super) fn prove(&mut self, kernel: &impl Kernel) -> u64 {
        let ids = self.tracker.outstanding() as u64;
        if ids == 0 || self.in_call || !matches!(kernel.optmem(), Ok(0)) {
            return 0;
        }
        self.release_all();
        self.poison(Poison::NoteStolen);
        ids
    }

    /// Every id is released: the option memory says so.
    pub(super) fn release_all(&mut self) {
        let Self { tracker, done, .. } = self;
        done.news = true;
        done.stats.released_calls += tracker.outstanding() as u64;
        done.uncharge(tracker.outstanding(), done.stats.in_flight_bytes);
        tracker.release_all(done.heir(false));
    }

    /// How long the oldest call in flight has been there, at least.
    pub(super) fn oldest(&mut self, now: Instant) -> Option<Duration> {
        self.mark(now);
        Some(now.saturating_duration_since(self.oldest_issued()?))
    }

    /// The latest time at which the oldest call in flight can have been made.
    pub(super) fn oldest_issued(&mut self) -> Option<Instant> {
        self.ages.latest(self.tracker.oldest()?)
    }

    fn mark(&mut self, now: Instant) {
        if let Some(oldest) = self.tracker.oldest() {
            self.ages.mark(oldest, self.tracker.next_id(), now);
        }
    }

    /// Returns `true` if something is held, or may be, that the reaper has to look at;
    /// `acknowledges`: the peer of such a socket does.
    pub(super) fn may_hold(&self, acknowledges: bool) -> bool {
        let Done { stats, extras, .. } = &self.done;
        self.has_rest
            || self.tracker.outstanding() > 0
            || acknowledges && extras.hold.needs_look(stats.accepted_bytes())
    }

    /// Whether somebody waits for a fate, or for a slot of what is in flight.
    pub(super) fn is_awaited(&mut self) -> bool {
        !self.done.extras.wakers.is_empty()
            || self.tracker.iter_mut().any(|lease| lease.is_awaited())
    }

    /// The fate of a send.
    pub(super) fn fate(&self, ticket: Ticket) -> Option<Fate> {
        let Done { ledger, .. } = &self.done;
        let fate = ledger.fate(ticket);
        let is_sending = self.has_rest && ledger.is_last(ticket);
        if fate.is_none() && self.poisoned().is_some() && !is_sending {
            return ledger.is_open(ticket).then_some(Fate::Quarantined);
        }
        fate
    }
}

/// When ids were issued, as marks.
///
/// The clock is not read for every call: the first one in flight is marked, and every reading of
/// the notes, which a busy sender does after every 32 calls, marks those before it.
#[derive(Default)]
struct Ages {
    /// The first mark by itself: a sender that is hardly used has no other.
    first: Option<Mark>,
    later: Rare<VecDeque<Mark>>,
}

/// All ids below were issued by then.
type Mark = (NotificationId, Instant);

impl Ages {
    /// Marks closer together than this are one, but for the last.
    const APART: Duration = Duration::from_millis(10);
    const MAX_LATER: usize = 127;

    /// All ids below `next` are issued; the oldest in flight is `oldest`.
    fn mark(&mut self, oldest: NotificationId, next: NotificationId, now: Instant) {
        self.forget_before(oldest);
        let Some(first) = self.first else {
            self.first = Some((next, now));
            return;
        };
        let last = *self.later.back().unwrap_or(&first);
        if last.0 >= next {
            return;
        }
        let later = &mut *self.later;
        let before = later.len().checked_sub(2).map_or(first, |at| later[at]);
        if !later.is_empty() && now.duration_since(before.1) < Self::APART {
            later.pop_back();
        } else if later.len() == Self::MAX_LATER {
            // Those of the oldest ids stay exact.
            let mut at = 0;
            later.retain(|_| {
                at += 1;
                at % 2 == 1
            });
        }
        later.push_back((next, now));
    }

    /// `id` is not issued after all, and will be later.
    fn cancelled(&mut self, id: NotificationId) {
        let last = match self.later.is_empty() {
            true => self.first.as_mut(),
            false => self.later.back_mut(),
        };
        if let Some((next, _)) = last.filter(|(next, _)| *next > id) {
            *next = id;
        }
    }

    fn forget_before(&mut self, oldest: NotificationId) {
        while self.first.is_some_and(|(next, _)| next <= oldest) {
            self.first = if self.later.is_empty() { None } else { self.later.pop_front() };
        }
    }

    /// The latest time at which `oldest` can have been issued.
    fn latest(&mut self, oldest: NotificationId) -> Option<Instant> {
        self.forget_before(oldest);
        self.first.map(|(_, at)| at)
    }
}

/// What the tracker keeps of a call.
#[inline]
fn call_bytes(bytes: usize) -> u32 {
    debug_assert!(u32::try_from(bytes).is_ok(), "calls are cut below 4 GiB");
    bytes as u32
}

impl Done {
    /// Whether there is nothing to tell anybody and nothing to drop.
    #[inline(always)]
    pub(super) fn is_quiet(&self) -> bool {
        !self.news && self.settled.is_empty() && !self.has_woken()
    }

    /// Whether there is anybody to wake, or to look after.
    #[inline]
    pub(super) fn has_woken(&self) -> bool {
        let anybody = |extras: &Extras| !extras.wakers.is_empty() || !extras.roused.is_empty();
        self.extras.get().is_some_and(anybody)
    }

    /// Counts a lease against the quota of the memory's pool.
    #[cold]
    fn hold(&mut self, memory: &impl Memory) {
        if let Some(held) = self.held_of(memory) {
            *held += 1;
        }
    }

    /// Ends [`hold`](Self::hold).
    fn let_go(&mut self, payload: &Payload) {
        if !self.extras.held.is_empty()
            && let Some(held) = self.held_of(payload)
        {
            *held -= 1;
        }
    }

    fn held_of(&mut self, memory: &impl Memory) -> Option<&mut usize> {
        let pool = memory.pool().filter(|pool| pool.sender_quota().is_some())?;
        let held = &mut self.extras.held;
        let known = held.iter().position(|(id, _)| *id == pool.id());
        let at = known.unwrap_or_else(|| {
            held.push((pool.id(), 0));
            held.len() - 1
        });
        Some(&mut held[at].1)
    }

    /// Whether the quotas of their pools let buffers of these in. A pool of which nothing is held
    /// lets any number in, so that no quota can stop a sender.
    fn quotas_allow<'a>(&self, pools: impl Iterator<Item = &'a PoolHead> + Clone) -> bool {
        self.extras.held.iter().filter(|(_, held)| *held > 0).all(|(id, held)| {
            let mut of_pool = pools.clone().filter(|pool| pool.id() == *id);
            let quota = of_pool.next().and_then(PoolHead::sender_quota);
            quota.is_none_or(|quota| held + 1 + of_pool.count() <= quota)
        })
    }

    /// Takes leases that have lost their last hold, to a note that says `copied` or not.
    #[inline]
    fn heir(&mut self, copied: bool) -> Finisher<'_> {
        Finisher { drops_at_once: self.drops_at_once(), done: self, copied }
    }

    /// Whether nobody wants payloads back or counts them.
    #[inline]
    pub(super) fn drops_at_once(&self) -> bool {
        self.hand_back == HandBack::Recycle
            && self.extras.get().is_none_or(|extras| extras.held.is_empty())
    }

    #[inline(never)]
    fn finish_other(&mut self, place: &mut Option<Lease>) {
        let Some(lease) = place.take() else { return };
        let ticket = lease.ticket;
        // Without a payload only its former pages were waited for.
        let Some(payload) = lease.release() else { return };
        self.let_go(&payload);
        if let Some(payload) = self.hand_back(payload, ticket) {
            self.settled.push(payload);
        }
    }

    /// Gives a payload of a send that is over to the caller of the sender, if he wants it back;
    /// else it is to be dropped.
    #[inline(always)]
    pub(super) fn hand_back<P: IntoPayload>(&mut self, buf: P, ticket: u64) -> Option<P> {
        match self.hand_back {
            HandBack::Recycle => Some(buf),
            HandBack::Return => {
                let payload = buf.into_payload();
                self.extras
                    .returned
                    .push_back(Returned { sequence: short_sequence(ticket), payload });
                None
            }
        }
    }

    /// The kernel released so many calls of so many bytes in all, or never made them.
    #[inline]
    fn uncharge(&mut self, calls: usize, bytes: usize) {
        self.stats.in_flight_bytes -= bytes;
        self.budget.refund(calls, bytes);
    }

    /// The connection failed after `accepted` bytes of a send.
    pub(super) fn truncate(&mut self, ticket: Ticket, accepted: usize, error: OsError) {
        self.news = true;
        self.ledger.truncate(ticket, accepted, error);
        self.extras.truncated_sends += 1;
    }
}

/// Takes what the kernel has released.
struct Finisher<'a> {
    done: &'a mut Done,
    drops_at_once: bool,
    copied: bool,
}

impl Heir<Lease> for Finisher<'_> {
    #[inline(always)]
    fn take(&mut self, place: &mut Option<Lease>) {
        let Some(lease) = place else { return };
        self.done.ledger.released(lease.ticket, self.copied | lease.copied);
        if self.drops_at_once && lease.try_recycle() {
            // It has nothing left for its drop to keep.
            mem::forget(place.take());
        } else {
            self.done.finish_other(place);
        }
    }
}
