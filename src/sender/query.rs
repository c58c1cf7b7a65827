//! The state and the results of a sender, as the public handles ask for them.

use std::time::Duration;

#[cfg(feature = "histogram")]
use super::release_times::ReleaseTimes;
use super::{
    driver::Core,
    kernel::{Interest, Kernel},
    machine::Goal,
    report::{Capabilities, Fate, Returned, SenderStats},
};
use crate::{
    error::{CopyReason, OsError, WaitError},
    id::{NotificationId, Ticket},
    sys::{ErrorQueueEvent, errno},
};

impl<K: Kernel> Core<K> {
    /// Forgets why the owner's last buffer was refused: only the owner can try the buffer again.
    pub fn forget_refused(&self) {
        if let Some(mut machine) = self.enter_own() {
            machine.forget_refused();
        }
    }

    /// Reads the error queue for the first time, as proof that reading works. Returns the reason if
    /// sends go by copy.
    pub(super) fn try_reading(&self) -> Option<CopyReason> {
        // A passing error will show again when it matters.
        let machine = self.advance(self.enter(), Goal::Read).0;
        let reason = machine.in_flight.copy_reason;
        self.tidy(machine);
        reason
    }

    /// The events that the owner should wait for.
    pub fn interest(&self) -> Interest {
        let Some(machine) = self.enter_own() else { return Interest::default() };
        let released = machine.in_flight.expects_notifications();
        Interest { writable: machine.wants_room(), released }
    }

    /// Returns `true` if everything is accepted.
    pub(super) fn is_flushed(&self) -> bool {
        !self.enter().is_unsent()
    }

    /// Returns `true` if everything is accepted and released.
    pub fn is_drained(&self) -> bool {
        self.enter().is_drained()
    }

    /// Returns `true` if notifications prove nothing any more.
    pub fn is_poisoned(&self) -> bool {
        self.enter().in_flight.poisoned().is_some()
    }

    /// The fate of a send, or `None` while the send is open.
    pub fn fate(&self, ticket: Ticket) -> Result<Option<Fate>, WaitError> {
        self.check_ticket(ticket)?;
        Ok(self.enter().fate(ticket))
    }

    /// Refuses a ticket of another sender, and every ticket in a forked child.
    pub(super) fn check_ticket(&self, ticket: Ticket) -> Result<(), WaitError> {
        if self.is_forked() {
            Err(WaitError::Forked)
        } else if !ticket.is_of(self.id) {
            Err(WaitError::ForeignTicket)
        } else {
            Ok(())
        }
    }

    /// The first error of a failed or ended connection. A call that is out may have learnt of the error:
    /// the kernel tells it only once.
    pub fn connection_error(&self) -> Option<OsError> {
        self.await_call(self.enter_own()?).connection_error()
    }

    /// The error that has cut the peer's stream, if the kernel told a call of the sender.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code, reason = "only its readers ask"))]
    pub(super) fn cut(&self) -> Option<OsError> {
        self.connection_error().filter(|error| errno::cuts_stream(error.raw()))
    }

    /// The error that cut a send short, if any.
    pub(super) fn truncation(&self, ticket: Ticket) -> Option<OsError> {
        self.enter().in_flight.done.ledger.truncation(ticket)
    }

    /// The next foreign message of the error queue.
    pub fn next_event(&self) -> Option<ErrorQueueEvent> {
        self.enter_own()?.changed_cold()?.events.pop_front()
    }

    /// The next payload handed back.
    pub fn next_returned(&self) -> Option<Returned> {
        self.enter_own()?.next_returned()
    }

    /// Returns whether sends can go without copy, and if not, the reason.
    pub fn capabilities(&self) -> Capabilities {
        let forked = Capabilities { supported: false, reason: None };
        self.enter_own().map_or(forked, |machine| machine.capabilities())
    }

    /// Counters and state.
    pub fn stats(&self) -> SenderStats {
        self.enter_own().map_or_else(SenderStats::default, |machine| machine.stats())
    }

    /// A snapshot of the histogram, if there is one.
    #[cfg(feature = "histogram")]
    pub fn release_times(&self) -> Option<ReleaseTimes> {
        self.enter_own()?.in_flight.timer.times()
    }

    /// The id of the socket's next zero-copy call.
    pub fn next_id(&self) -> NotificationId {
        self.enter().in_flight.tracker.next_id()
    }

    /// The time since the last acknowledgement while the sender holds anything. For datagrams, the
    /// age of the oldest call in flight.
    pub fn held_for(&self) -> Option<Duration> {
        let mut machine = self.await_call(self.enter_own()?);
        let unacked = self.kernel.unacked().ok();
        machine.held(self.kernel.now(), unacked).map(|held| held.age)
    }
}
