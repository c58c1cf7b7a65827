//! Tasks that wait for a sender.

use std::{mem, task::Waker};

use super::{
    super::transport::Transport,
    Goal,
    call::{Refused, Stop},
    cold::Awaited,
    state::Machine,
};
use crate::{error::WaitError, sys::socket::News};

impl Machine {
    /// Returns `true` if the owner's next buffer may be let in, or is told of the end of the
    /// connection.
    pub(crate) fn may_admit(&self) -> bool {
        let may_admit = match self.refused {
            Refused::No | Refused::RoomFound => true,
            Refused::ForRoom => false,
            Refused::ForRelease => {
                self.in_flight.tracker.outstanding() == 0 || self.in_flight.copy_reason.is_some()
            }
        };
        self.connection_error().is_some() || may_admit && !self.is_unsent()
    }

    /// Returns `true` if a thread that waits to send may try again.
    pub(crate) fn may_try(&self) -> bool {
        let is_stopped = matches!(self.blocked, Some(Stop::Blocked | Stop::Window));
        self.may_admit() || self.is_unsent() && !is_stopped
    }

    /// The owner's buffer is refused. Behind an unsent part its own admission was not asked.
    pub(crate) fn refuse(&mut self, stop: Stop) {
        self.refused = match stop {
            Stop::Blocked if !self.is_unsent() => Refused::ForRoom,
            Stop::Window if !self.is_unsent() => Refused::ForRelease,
            _ => Refused::No,
        };
    }

    /// The owner gives its refused buffer up, unless a task waits to send the buffer.
    pub(crate) fn forget_refused(&mut self) {
        if !self.is_awaited(Awaited::Admission) {
            self.refused = Refused::No;
        }
    }

    /// Returns `true` if a task waits for room in the socket, which only a question can tell.
    pub(super) fn asks_for_room(&self) -> bool {
        self.refused == Refused::ForRoom
            && !self.known.has_looked
            && self.is_awaited(Awaited::Admission)
    }

    /// The socket has room, or not.
    pub(crate) fn room_is(&mut self, found: bool) {
        self.known.has_looked = true;
        if found {
            self.refused = Refused::RoomFound;
            self.in_flight.done.changed();
        }
    }

    /// Releases of this hold of the lock let the refused buffer in.
    pub(super) fn heed_releases(&mut self) {
        if self.refused == Refused::ForRelease && self.known.freed > 0 {
            self.refused = Refused::No;
        }
    }

    /// Returns `true` if a task has asked for data to read.
    pub(crate) fn asks_for_data(&self) -> bool {
        self.cold().is_some_and(|cold| cold.asks_for_data)
    }

    /// From here on a task may ask for data.
    pub(crate) fn ask_for_data(&mut self) {
        self.cold_mut().asks_for_data = true;
    }

    /// Tells the machine the news of the socket, and returns the goal of the run behind the news. Data
    /// alone concerns only the task that reads: a visit of an idle sender would read an empty error queue.
    pub(crate) fn heed(&mut self, news: News, goal: Goal) -> Goal {
        // An error of an earlier datagram is for the next call, also for a read; of a stream it comes with
        // data. The same news tells of notifications, and only a read tells the two apart.
        let may_fail = news.error && self.transport == Transport::Datagram && self.asks_for_data();
        if news.readable || may_fail {
            self.cold_mut().has_data = true;
            self.in_flight.done.news = true;
        }
        if news.hangup {
            self.cold_mut().hung_up = true;
        }
        let is_idle = self.is_flushed() && !self.wants_room() && !self.is_ending();
        let concerns_sender = news.error || news.hangup || !is_idle;
        match goal {
            Goal::Visit if news.readable && !concerns_sender => Goal::Tidy,
            Goal::Tidy if concerns_sender => Goal::Visit,
            goal => goal,
        }
    }

    /// Returns `true` if data came since the last time.
    pub(crate) fn take_data(&mut self) -> bool {
        self.changed_cold().is_some_and(|cold| mem::take(&mut cold.has_data))
    }

    /// The result of a drain, if there is one. Otherwise the call that is out tells of its end.
    pub(crate) fn drained(&mut self) -> Option<Result<(), WaitError>> {
        if self.is_drained() {
            return self.is_disposed().then_some(Ok(()));
        }
        self.note_call();
        self.in_flight.poisoned().map(|_| Err(WaitError::Poisoned))
    }

    /// Returns `true` if the end is over, and every released payload is dropped.
    pub(crate) fn is_ended(&self) -> bool {
        self.is_over() && self.is_disposed()
    }

    /// Keeps the waker of a task for an event, or none. Returns the earlier waker, to be dropped with
    /// no lock held.
    #[must_use]
    pub(crate) fn replace_waker(&mut self, awaited: Awaited, kept: Option<Waker>) -> Option<Waker> {
        if kept.is_none() && self.cold().is_none() {
            return None;
        }
        let wakers = &mut self.cold_mut().wakers;
        let at = wakers.iter().position(|(waiting, _)| *waiting == awaited);
        let earlier = at.map(|at| wakers.swap_remove(at).1);
        wakers.extend(kept.map(|waker| (awaited, waker)));
        earlier
    }

    /// The wakers of all tasks that wait.
    pub(crate) fn take_wakers(&mut self) -> Vec<(Awaited, Waker)> {
        self.changed_cold().map_or_else(Vec::new, |cold| mem::take(&mut cold.wakers))
    }

    fn is_awaited(&self, awaited: Awaited) -> bool {
        self.cold().is_some_and(|cold| cold.wakers.iter().any(|(waiting, _)| *waiting == awaited))
    }

    /// The tasks to be woken once no lock is held.
    pub(crate) fn take_woken(&mut self) -> Vec<Waker> {
        let Some(cold) = self.changed_cold() else { return Vec::new() };
        let mut woken = mem::take(&mut cold.hopeless);
        let mut wakers = mem::take(&mut cold.wakers);
        let due = wakers.extract_if(.., |(awaited, _)| self.has_come(*awaited));
        woken.extend(due.map(|(_, waker)| waker));
        self.cold_mut().wakers = wakers;
        woken
    }

    fn has_come(&self, awaited: Awaited) -> bool {
        match awaited {
            Awaited::Admission => self.may_admit(),
            Awaited::Acceptance => !self.is_unsent(),
            Awaited::Fate(ticket) => self.fate(ticket).is_some(),
            Awaited::Releases => {
                let is_poisoned = self.in_flight.poisoned().is_some();
                if self.is_drained() { self.is_disposed() } else { is_poisoned }
            }
            Awaited::End => self.is_ended(),
            Awaited::Data => self.cold().is_some_and(|cold| cold.has_data),
        }
    }
}
