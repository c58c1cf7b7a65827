//! Admission: may a call be made, and which way does it go?

use std::mem;

use super::{
    super::telemetry::Cause,
    Item,
    call::Refused,
    in_flight::InFlight,
    outbox::Way,
    question::Question,
    state::{Grant, Machine},
};

impl Machine {
    /// Lets a lone buffer in without a question: by the grant, or because it is small. A call
    /// without copy is charged for. `None`: the buffer has to ask.
    #[inline(always)]
    pub(crate) fn granted(&mut self, len: usize, pool: u64, is_small: bool) -> Option<Way> {
        if self.is_calling() || self.sending.is_some() || self.error.is_some() {
            return None;
        }
        if is_small {
            return Some(Way::Copy);
        }
        let grant = &mut self.grant;
        if grant.calls == 0 || len > grant.max_bytes || pool != grant.pool {
            return None;
        }
        grant.calls -= 1;
        let way = grant.way;
        // No question told the time of this call.
        self.known.time = None;
        (way == Way::Copy || self.charge(len)).then_some(way)
    }

    /// Charges a call without copy. Returns `false`, with nothing charged, if the memlock budget is
    /// used up.
    #[inline]
    fn charge(&self, bytes: usize) -> bool {
        self.in_flight.done.budget.as_ref().is_none_or(|budget| budget.charge(bytes))
    }

    /// Refunds a call without copy that was let in and is not made, for a buffer of `len` bytes or
    /// a part of the buffer.
    #[cold]
    pub(crate) fn refund(&mut self, len: usize) {
        self.in_flight.done.end_charge(1, len.min(self.limits.bytes));
    }

    /// Returns the way of a lone buffer that has to ask, or `None` if the buffer has to wait.
    pub(super) fn admit(&mut self, item: Item) -> Result<Option<Way>, Question> {
        if self.error.is_some() || self.sending.is_some() {
            return Ok(None);
        }
        // A refusal from here on is no matter of room in the socket.
        self.refused = Refused::No;
        if !self.quotas_allow([(item.pool, item.quota)].into_iter()) {
            if !self.known.has_read {
                return Err(self.read_first());
            }
            self.in_flight.done.held_back(Cause::Quota);
            return Ok(None);
        }
        if !self.goes_without_copy(1, item.len) {
            return Ok(Some(Way::Copy));
        }
        let bytes = item.len.min(self.limits.bytes);
        let way = self.admission(bytes)?;
        if let Some(way) = way {
            self.grant = self.grant(item, bytes, way);
        }
        Ok(way)
    }

    /// Returns the way of a call of `bytes`; without copy the call is charged for. `None`: the call
    /// has to wait for releases of this sender.
    pub(super) fn admission(&mut self, bytes: usize) -> Result<Option<Way>, Question> {
        if !mem::replace(&mut self.known.has_looked, true) {
            let outstanding = self.in_flight.tracker.outstanding();
            if self.unread >= self.max_unread
                || self.in_flight.route.wants_notifications(outstanding)
            {
                return Err(self.read_first());
            }
        }
        loop {
            let outstanding = self.in_flight.tracker.outstanding();
            let is_timed = self.is_timed();
            let route = &mut self.in_flight.route;
            let is_first = outstanding == 0;
            if self.in_flight.copy_reason.is_some() {
                return Ok(Some(Way::Copy));
            }
            // The first call in flight is marked with the time, and so is every timed call.
            if is_first && !route.is_exclusive() || route.asks_time(outstanding) || is_timed {
                self.known.time()?;
            }
            let time = self.known.time;
            if !route.admits(outstanding, || time.expect("asked before")) {
                return Ok(Some(Way::Copy));
            }
            let held = self.in_flight.done.counts.in_flight_bytes;
            let fits = self.window.fits(bytes, outstanding, held);
            if fits && self.charge(bytes) {
                return Ok(Some(Way::ZeroCopy));
            }
            let cause = if fits { Cause::Budget } else { Cause::Window };
            if is_first {
                // The rest of the budget belongs to other senders, so no release of this sender
                // would help.
                self.in_flight.done.held_back(cause);
                return Ok(Some(Way::Copy));
            }
            // A full window is looked at again after the error queue is read, and once more after
            // the question whether a notification was lost.
            if !self.known.has_read {
                return Err(self.read_first());
            }
            let optmem = self.known.optmem()?;
            self.prove(optmem);
            if self.in_flight.tracker.outstanding() == outstanding {
                self.in_flight.done.held_back(cause);
                return Ok(None);
            }
        }
    }

    /// Has the error queue read before anything else.
    pub(super) fn read_first(&mut self) -> Question {
        self.unread = 0;
        self.known.wants_read = true;
        Question::Queue
    }

    /// The grant for calls like the one just let in.
    fn grant(&self, item: Item, bytes: usize, way: Way) -> Grant {
        let InFlight { route, tracker, done, copy_reason, .. } = &self.in_flight;
        if item.quota.is_some() || !done.recycles() && way == Way::ZeroCopy {
            return Grant::default();
        }
        let (calls, max_bytes) = match way {
            // Until the grant is used up the error queue is not read, so no notification must be to
            // come.
            Way::Copy if tracker.outstanding() > 0 => return Grant::default(),
            Way::Copy if copy_reason.is_some() => (usize::MAX, bytes),
            Way::Copy => {
                // The call to come is not counted yet.
                let calls = route.copied_bytes_to_come() / bytes.max(1) as u64;
                (calls.saturating_sub(1) as usize, bytes)
            }
            Way::ZeroCopy if route.is_exclusive() => return Grant::default(),
            Way::ZeroCopy => {
                let held = done.counts.in_flight_bytes + bytes;
                let (calls, held) = self.window.room(tracker.outstanding() + 1, held);
                let calls = calls.min((self.max_unread - 1).saturating_sub(self.unread));
                let most = self.limits.bytes.min(self.transport.most_without_copy());
                (calls, most.min(held / calls.max(1)))
            }
        };
        Grant { calls, max_bytes, pool: item.pool, way }
    }

    /// Returns `true` if neighbours of so many bytes should go without copy.
    #[inline]
    pub(super) fn goes_without_copy(&self, elements: usize, bytes: usize) -> bool {
        self.transport.goes_without_copy(self.config.threshold_bytes, elements, bytes)
    }

    /// Returns `true` if the quotas of the pools let these buffers in. A copying sender has nothing
    /// in flight for long, and a poisoned sender could wait for ever.
    #[inline]
    pub(crate) fn quotas_allow(
        &self,
        bufs: impl Iterator<Item = (u64, Option<usize>)> + Clone,
    ) -> bool {
        let InFlight { done, copy_reason, .. } = &self.in_flight;
        done.quotas.is_empty() || copy_reason.is_some() || done.quotas.allow(bufs)
    }
}
