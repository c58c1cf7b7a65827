//! A sender as a pure state machine: no lock, no system call, no clock of its own.
//!
//! The driver tells the machine what happened and asks for the next thing to do. An [`Act`] is
//! carried out without the lock. A [`Question`] is an act that cannot be chosen yet: the driver answers
//! under the lock, and asks again. The answers are facts, which are forgotten when the lock is released.
//! The machine decides anew from the top with one fact more. So it has no states such as "about to read".
//!
//! | file | what |
//! |---|---|
//! | `state` | the data of a sender, and what it says |
//! | `call` | one system call, and how it can end |
//! | `question` | questions to the kernel, and the facts of one hold of the lock |
//! | `admission` | whether a call may be made, and which way it goes |
//! | `sending` | calls: what is entered before one, and what its answer changes |
//! | `failed` | what can be done for a call that failed |
//! | `reading` | what the error queue and the option memory say |
//! | `closing` | the end: flush, shut down, drain, abort |
//! | `hold` | how long the peer has acknowledged nothing, and the limit of that time |
//! | `outbox` | the unsent part of a send, cut into calls |
//! | `window` | how much may be in flight |
//! | `route` | whether zero copy is worth it |
//! | `quota` | slots of each pool that may be in flight, and the pools that know the sender |
//! | `in_flight` | the calls that the kernel has: leases, ids, fates |
//! | `ages` | the ages of the calls in flight |
//! | `ledger` | the fate of every send |
//! | `disposal` | released payloads, until no lock is held |
//! | `tasks` | the tasks that wait for the sender |
//! | `cold` | state that few senders have |

mod admission;
mod ages;
mod call;
mod closing;
mod cold;
mod disposal;
mod failed;
mod hold;
mod in_flight;
mod ledger;
mod outbox;
mod question;
mod quota;
mod reading;
mod route;
mod sending;
mod state;
mod tasks;
mod window;

use std::{mem, task::Waker, time::Duration};

use self::{call::RunCall, question::Known};
pub(super) use self::{
    call::{LoneCall, Offered, Stop},
    cold::{Awaited, look_after},
    disposal::Disposal,
    outbox::Way,
    question::Question,
    state::{Machine, OVERDUE, Read},
};
use super::{kernel::Edges, telemetry::Event};
use crate::{lease::Memory, raw::PoolHead, sync::Arc};

/// The purpose of a run of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Goal {
    /// Read the error queue, and nothing else.
    Read,
    /// A thread that does not send looks after the sender: read, send what is unsent, end.
    Visit,
    /// As `Visit`, for the owner, which waits until the call of a visitor is over.
    Flush,
    /// As `Flush`, without reading.
    Push,
    /// Let a lone buffer in, behind what is unsent.
    Admit(Item),
    /// Bring the send just entered as far as it goes.
    Settle,
    /// Dispose of what was released, and have the sender watched if it is to be.
    Tidy,
}

/// A lone buffer before its admission, as the machine sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Item {
    pub(super) len: usize,
    /// Number of its pool; 0 for memory outside pools.
    pub(super) pool: u64,
    /// The quota of its pool. With one every buffer has to ask.
    pub(super) quota: Option<usize>,
}

impl Item {
    pub(super) fn of(buf: &impl Memory) -> Self {
        let pool = buf.pool();
        Self {
            len: buf.io_vec().len(),
            pool: pool.map_or(0, PoolHead::id),
            quota: pool.and_then(PoolHead::sender_quota),
        }
    }
}

/// An act without the lock.
pub(super) enum Act {
    Send(RunCall),
    /// Wait until the call of another thread is over.
    AwaitCall,
    /// Drop payloads, then wake tasks and threads, then tell events.
    Dispose(Disposal, Vec<Waker>),
    /// Have the reaper watch the sender.
    Watch,
    /// Nothing is left to do for the goal. A buffer that was let in goes this way; without copy its
    /// call is charged for.
    Done(Option<Way>),
}

impl Machine {
    /// A thread has taken the lock: what was learned before says nothing any more.
    pub(super) fn forget(&mut self) {
        self.known = Known::default();
    }

    /// A run of the driver begins.
    pub(super) fn begin_run(&mut self, goal: Goal) {
        match goal {
            Goal::Settle | Goal::Tidy | Goal::Read => {}
            _ if self.is_calling() => self.again = true,
            // Every run tries what is unsent once.
            _ => self.blocked = None,
        }
        if matches!(goal, Goal::Visit | Goal::Flush) {
            self.unread = 0;
        }
    }

    /// The next act for a goal.
    pub(super) fn next(&mut self, goal: Goal) -> Result<Act, Question> {
        if let Some(failed) = self.failed.take() {
            self.recover(failed)?;
        }
        if self.verifies && !self.is_calling() {
            self.verify()?;
        }
        let reads = matches!(goal, Goal::Read | Goal::Visit | Goal::Flush);
        if reads || self.known.wants_read {
            self.reading()?;
        }
        self.heed_releases();
        if goal == Goal::Read {
            return Ok(Act::Done(None));
        }
        self.aborting()?;
        if goal != Goal::Tidy
            && let Some(call) = self.send_unsent()?
        {
            return Ok(Act::Send(call));
        }
        match goal {
            Goal::Settle => return Ok(Act::Done(None)),
            Goal::Flush | Goal::Push | Goal::Admit(_) if self.is_calling() => {
                return Ok(Act::AwaitCall);
            }
            Goal::Admit(item) => return Ok(Act::Done(self.admit(item)?)),
            Goal::Visit | Goal::Flush | Goal::Push => {
                if self.asks_for_room() {
                    return Err(Question::Room);
                }
                self.holding()?;
                self.close()?;
            }
            Goal::Tidy | Goal::Read => {}
        }
        self.hanging_up()?;
        if let Some((disposal, woken)) = self.take_disposal() {
            return Ok(Act::Dispose(disposal, woken));
        }
        if mem::take(&mut self.wants_watch) && !self.watched {
            return Ok(Act::Watch);
        }
        Ok(Act::Done(None))
    }

    /// The reads since the last question.
    pub(super) fn take_read(&mut self) -> Read {
        mem::take(&mut self.read)
    }

    /// Returns `true` if the reaper has to go on watching, and tells how often it looks again.
    pub(super) fn keeps_watch(&mut self) -> Option<Duration> {
        self.look_at_hold().or_else(|| self.in_flight.is_awaited().then_some(OVERDUE))
    }
}

/// Released payloads, and the tasks and threads that wait.
impl Machine {
    /// The changes for which a thread may wait, so far.
    pub(super) fn changes(&self) -> u64 {
        self.cold().map_or(0, |cold| cold.changes)
    }

    /// A thread is about to sleep until the next change. Returns `false` if something has changed
    /// that the thread has not `seen`: then the thread looks again.
    pub(super) fn falls_asleep(&mut self, seen: u64, thread: &Arc<dyn Edges>) -> bool {
        let cold = self.cold_mut();
        let has_seen_all = cold.changes == seen;
        if has_seen_all {
            cold.asleep.push(Arc::clone(thread));
        }
        has_seen_all
    }

    /// The thread is awake.
    pub(super) fn is_awake(&mut self, thread: &Arc<dyn Edges>) {
        self.cold_mut().asleep.retain(|asleep| !Arc::ptr_eq(asleep, thread));
    }

    /// Returns `true` if nothing is left to do after a send.
    #[inline(always)]
    pub(super) fn is_tidy(&self) -> bool {
        self.in_flight.done.is_quiet() && !self.wants_watch
    }

    /// The payloads to drop and the tasks to wake, with no lock held. `None` if there are none;
    /// threads that wait for news are woken then.
    fn take_disposal(&mut self) -> Option<(Disposal, Vec<Waker>)> {
        if self.in_flight.done.is_quiet() {
            return None;
        }
        let woken = self.take_woken();
        let done = &mut self.in_flight.done;
        done.news = false;
        let has_untold = done.cold.get().is_some_and(|cold| !cold.untold.is_empty());
        if done.disposal.is_empty() && woken.is_empty() && !has_untold {
            done.wake_threads();
            return None;
        }
        done.dropping += 1;
        Some((mem::take(&mut done.disposal), woken))
    }

    /// The events to be told with no lock held.
    pub(super) fn take_untold(&mut self) -> Vec<Event> {
        self.changed_cold().map_or_else(Vec::new, |cold| cold.untold.take())
    }

    /// The payloads of [`take_disposal`](Self::take_disposal) are dropped.
    pub(super) fn disposed(&mut self, disposal: Disposal) {
        let done = &mut self.in_flight.done;
        done.disposal.put_back(disposal);
        done.dropping -= 1;
        done.changed();
        done.wake_threads();
    }

    /// Returns `true` if no released payload has yet to be dropped, by any thread.
    pub(super) fn is_disposed(&self) -> bool {
        let done = &self.in_flight.done;
        done.disposal.is_empty() && done.dropping == 0
    }
}
