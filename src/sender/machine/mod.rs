//! A sender as a pure state machine: no lock, no system call, no clock of its own.
//!
//! The driver tells the machine what happened and asks for the [`Next`] thing to do. Answers are of
//! two kinds. A [`Question`] is answered under the lock; an [`Act`] is carried out without it. The
//! answers to questions are facts, which are forgotten when the lock is released, and the machine
//! decides anew from the top with one fact more. So it has no states such as "about to read".
//!
//! | file | what |
//! |---|---|
//! | `call` | one system call, and how it can end |
//! | `question` | questions to the kernel, and the facts of one hold of the lock |
//! | `outbox` | the unsent part of a send, cut into calls |
//! | `grant` | permission for calls to skip the questions of admission |
//! | `window` | how much may be in flight |
//! | `route` | whether zero copy is worth it |
//! | `quota` | slots of each pool that may be in flight, and the pools that know the sender |
//! | `admission` | whether a call may be made, and which way it goes |
//! | `sending` | what is entered before a call, and what its answer changes |
//! | `reading` | what the error queue and the option memory say |
//! | `in_flight` | the calls that the kernel has: leases, ids, fates |
//! | `ages` | the ages of the calls in flight |
//! | `ledger` | the fate of every send |
//! | `disposal` | released payloads, until no lock is held |
//! | `closing` | flush, shut down, drain, abort |
//! | `cold` | state that few senders have |

mod admission;
mod ages;
mod call;
mod closing;
mod cold;
mod disposal;
mod grant;
mod hold;
mod holding;
mod in_flight;
mod ledger;
mod outbox;
mod question;
mod quota;
mod reading;
mod route;
mod sending;
mod window;

use std::{
    io, mem,
    ops::AddAssign,
    task::Waker,
    time::{Duration, Instant},
};

pub(super) use self::{
    call::{Blocked, Stop, Way},
    cold::Cold,
    hold::look_after,
    question::Question,
};
use self::{
    call::{Cut, Failed, Retry},
    closing::{Closing, Step, View},
    disposal::Disposal,
    grant::Grant,
    in_flight::InFlight,
    outbox::Outbox,
    question::Known,
    quota::KnownPools,
    window::Window,
};
use super::{
    budget::MemlockBudget,
    config::{Config, HandBack},
    report::{Capabilities, CloseReport, Fate, SenderStats},
    transport::{CallLimits, Transport},
};
use crate::{
    error::{CopyReason, OsError},
    id::{NotificationId, SenderId, Ticket},
    sync::Arc,
    sys::{
        errno,
        socket::{IoVec, SendFlags},
    },
    tracker::ALONE,
};

/// Option memory that the kernel takes for one call until its notification is read, in bytes: on
/// 6.1 and 6.18. On Debian's 6.12 it is 896. Only estimates and a statistic rest on the number.
const OPTMEM_PER_CALL: u32 = 832;

/// Zero-copy calls after which the error queue is read at the latest.
const MAX_UNREAD_CALLS: usize = 32;

/// The age of the oldest call in flight at which an empty error queue raises the question whether a
/// notification was lost.
pub(super) const OVERDUE: Duration = Duration::from_secs(1);

/// Calls that are told of after one was met.
const TELLS: u16 = 1024;

/// What a run of the driver is for.
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

/// What the machine knows of a lone buffer that asks to be let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Item {
    pub(super) len: usize,
    /// Number of its pool; 0 for memory outside pools.
    pub(super) pool: u64,
    /// The quota of its pool. With one every buffer has to ask.
    pub(super) quota: Option<usize>,
}

/// What to do next.
pub(super) enum Next {
    Ask(Question),
    Act(Act),
}

/// What to do without the lock.
pub(super) enum Act {
    Send(RunCall),
    /// Wait until the call of another thread is over.
    AwaitCall,
    /// Drop payloads, then wake tasks and threads.
    Dispose,
    /// Have the reaper watch the sender.
    Watch,
    Done(Outcome),
}

/// What a run came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Nothing is left to do for the goal.
    Idle,
    /// The buffer may go this way; without copy its call is charged for.
    Go(Way),
    /// The buffer may not go now.
    Refused,
}

use Act::{AwaitCall, Dispose, Done, Watch};
use Next::{Act as Do, Ask};

/// Whether a call is out: made, and its answer not yet told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Out {
    No,
    /// A call of a lone buffer. The next thread that takes the lock settles its end.
    Left(Way),
    /// The thread that made the call tells the machine of its end.
    Told,
}

/// A send of which a part is unsent.
#[derive(Clone, Copy, Debug)]
struct Sending {
    ticket: Ticket,
    accepted: usize,
}

/// A call for elements of the outbox, which is out with the call: the kernel reads the elements
/// while other threads change the machine.
#[must_use]
pub(super) struct RunCall {
    outbox: Box<Outbox>,
    cut: Cut,
    id: Option<NotificationId>,
}

impl RunCall {
    pub(super) fn memory(&self) -> &[IoVec] {
        self.outbox.memory(self.cut)
    }

    pub(super) fn flags(&self) -> SendFlags {
        // A call without copy carries much: no small packet would be spared.
        let zerocopy = self.id.is_some();
        SendFlags { zerocopy, more: self.cut.more && !zerocopy }
    }
}

/// A call for a lone buffer.
#[must_use]
#[derive(Clone, Copy)]
pub(super) struct LoneCall {
    pub(super) ticket: Ticket,
    pub(super) memory: IoVec,
    /// Bytes of the call: all of the memory, or what one call may cover.
    pub(super) bytes: usize,
    /// The id that was issued for a call without copy.
    id: Option<NotificationId>,
}

impl LoneCall {
    /// The memory of the call.
    #[inline(always)]
    pub(super) fn part(&self) -> IoVec {
        self.memory.part(0, self.bytes)
    }

    /// Returns `true` if the answer is that all of the buffer was accepted.
    #[inline(always)]
    pub(super) fn took_all(&self, sent: &io::Result<usize>) -> bool {
        matches!(sent, Ok(accepted) if *accepted == self.memory.len())
    }
}

/// The result of one reading of the error queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct Read {
    /// Messages, foreign ones included.
    pub messages: usize,
    /// Ids released.
    pub ids: u64,
    /// The error that forbids reading a notification that is still to come.
    pub refused: Option<OsError>,
}

impl AddAssign for Read {
    fn add_assign(&mut self, more: Self) {
        self.messages += more.messages;
        self.ids += more.ids;
        self.refused = more.refused.or(self.refused);
    }
}

/// A send of which at least a part was accepted.
pub(super) struct Offered {
    pub(super) ticket: Ticket,
    /// Whether all of it was.
    pub(super) whole: bool,
}

/// A sender without its socket.
#[repr(C)]
pub(super) struct Machine {
    out: Out,
    /// A visitor came while a call was out: what it came for is the caller's to do.
    again: bool,
    /// Ends of calls may be left.
    leaves: bool,
    /// So many calls more are told of, because other threads use the sender too.
    tells: u16,
    /// The kernel was seen to honour the flag, or is about to be asked.
    verified: bool,
    verifies: bool,
    /// Handles of the sender: 1, or 2 while split.
    pub(super) owners: u8,
    /// The reaper watches the sender. Changed under the lock of `watch` too.
    pub(super) watched: bool,
    pub(super) wants_watch: bool,
    retry: Retry,
    grant: Grant,
    /// Zero-copy calls since the error queue was last read, and after how many it is.
    unread: usize,
    max_unread: usize,
    /// Why the unsent part is not sent, and why the owner's last buffer was refused. Visitors try
    /// the first again; only calls of the owner forget the second.
    blocked: Option<Blocked>,
    refused: Option<Blocked>,
    /// The first error of a failed or ended connection.
    error: Option<OsError>,
    /// The connection was seen to be over, and no call has told why.
    is_over: bool,
    sending: Option<Sending>,
    known: Known,
    pub(super) in_flight: InFlight,
    window: Window,
    limits: CallLimits,
    transport: Transport,
    id: SenderId,
    optmem_max: u32,
    /// The pools that this sender has made itself known to.
    pub(super) pools: KnownPools,
    /// Threads that wait until a call is over.
    pub(super) awaiting: u32,
    config: Config,
    /// The elements of the send; `None` while a call has them, or before the first.
    outbox: Option<Box<Outbox>>,
    failed: Option<Failed>,
    /// Why the last call of this hold stopped, for the driver to take.
    stopped: Option<Stop>,
    read: Read,
    closing: Option<Box<Closing>>,
    /// An abort that was asked for, and why.
    abort: Option<OsError>,
}

impl Machine {
    /// `copy_reason` tells why nothing can go without copy, if so; `first` is the id that the
    /// socket's next zero-copy call takes.
    pub(super) fn new(
        id: SenderId,
        config: Config,
        transport: Transport,
        copy_reason: Option<CopyReason>,
        budget: Arc<MemlockBudget>,
        optmem_max: u32,
        first: NotificationId,
    ) -> Self {
        let max_unread = ((optmem_max / OPTMEM_PER_CALL / 2) as usize).clamp(1, MAX_UNREAD_CALLS);
        Self {
            out: Out::No,
            again: false,
            leaves: config.max_hold.is_none() && config.hand_back == HandBack::Recycle,
            tells: 0,
            verified: false,
            verifies: false,
            owners: 1,
            watched: false,
            wants_watch: false,
            retry: Retry::No,
            grant: Grant::default(),
            unread: 0,
            max_unread,
            blocked: None,
            refused: None,
            error: None,
            is_over: false,
            sending: None,
            known: Known::default(),
            limits: transport.call_limits(&budget),
            in_flight: InFlight::new(&config, first, copy_reason, budget),
            window: Window::new(config.max_in_flight_bytes, config.max_in_flight_sends),
            transport,
            id,
            optmem_max,
            pools: KnownPools::default(),
            awaiting: 0,
            config,
            outbox: None,
            failed: None,
            stopped: None,
            read: Read::default(),
            closing: None,
            abort: None,
        }
    }

    /// A thread has taken the lock: what an earlier one learned says nothing any more.
    #[inline(always)]
    pub(super) fn entered(&mut self) {
        self.known = Known::default();
    }

    /// Returns `true` if the end of the call that is out is left.
    #[inline(always)]
    pub(super) fn is_left(&self) -> bool {
        matches!(self.out, Out::Left(_))
    }

    /// A call with a left end is over.
    #[inline(always)]
    pub(super) fn settle_left(&mut self) {
        if mem::replace(&mut self.out, Out::No) == Out::Left(Way::ZeroCopy) {
            self.unread += 1;
            let released = self.in_flight.tracker.settle(ALONE);
            debug_assert!(released.is_none(), "its notification is read after its end is settled");
            // Nothing to drop, which the compiler cannot know.
            mem::forget(released);
        }
    }

    /// The caller of the call that is out will tell of its end.
    pub(super) fn tell(&mut self) {
        if self.is_left() {
            self.out = Out::Told;
        }
    }

    /// The call is not over. Its caller will tell of its end, and of the ends of the next calls: a
    /// thread that meets calls pays for a barrier.
    pub(super) fn meet_call(&mut self) {
        self.out = Out::Told;
        self.tells = TELLS;
    }

    /// Lets the end of the call that is about to be made be left, if that can be. It was let in by a
    /// grant, or is small.
    #[inline(always)]
    pub(super) fn leave_end(&mut self, way: Way) -> bool {
        if self.tells > 0 {
            self.tells -= 1;
            return false;
        }
        let leaves = self.leaves && !self.wants_watch;
        if leaves {
            self.out = Out::Left(way);
        }
        leaves
    }

    /// A run of the driver begins.
    pub(super) fn begin_run(&mut self, goal: Goal) {
        match goal {
            Goal::Settle | Goal::Tidy | Goal::Read => {}
            _ if self.out != Out::No => self.again = true,
            // Every run tries what is unsent once.
            _ => self.blocked = None,
        }
        if matches!(goal, Goal::Visit | Goal::Flush) {
            self.unread = 0;
        }
    }

    /// What to do next for a goal.
    pub(super) fn next(&mut self, goal: Goal) -> Next {
        if let Some(failed) = self.failed.take()
            && let Some(question) = self.recover(failed)
        {
            return Ask(question);
        }
        if self.verifies && self.out == Out::No {
            match self.known.optmem {
                None if self.in_flight.tracker.outstanding() > 0 => return Ask(Question::Optmem),
                optmem => self.verify(optmem.flatten()),
            }
        }
        let reads = matches!(goal, Goal::Read | Goal::Visit | Goal::Flush);
        if (reads || self.known.wants_read)
            && let Some(question) = self.reading()
        {
            return Ask(question);
        }
        if goal == Goal::Read {
            return Do(Done(Outcome::Idle));
        }
        if goal != Goal::Settle
            && let Some(question) = self.aborting()
        {
            return Ask(question);
        }
        if goal != Goal::Tidy
            && let Some(next) = self.send_unsent()
        {
            return next;
        }
        match goal {
            Goal::Settle => return Do(Done(Outcome::Idle)),
            Goal::Flush | Goal::Push | Goal::Admit(_) if self.out != Out::No => {
                return Do(AwaitCall);
            }
            Goal::Admit(item) => return self.admit(item),
            Goal::Visit | Goal::Flush | Goal::Push => {
                if let Some(question) = self.holding() {
                    return Ask(question);
                }
                if let Some(question) = self.close() {
                    return Ask(question);
                }
            }
            Goal::Tidy | Goal::Read => {}
        }
        if !self.in_flight.done.is_quiet() {
            return Do(Dispose);
        }
        if mem::take(&mut self.wants_watch) && !self.watched {
            return Do(Watch);
        }
        Do(Done(Outcome::Idle))
    }

    /// Why a call stopped since this was last asked.
    pub(super) fn take_stop(&mut self) -> Option<Stop> {
        self.stopped.take()
    }

    /// What was read since this was last asked.
    pub(super) fn take_read(&mut self) -> Read {
        mem::take(&mut self.read)
    }

    /// When to look again though nothing happens, as far as is known in this hold of the lock.
    pub(super) fn look_again(&self) -> Option<Duration> {
        self.known.look_again
    }
}

/// Released payloads, and the tasks and threads that wait.
impl Machine {
    /// Returns `true` if nothing is left to do after a send.
    #[inline(always)]
    pub(super) fn is_tidy(&self) -> bool {
        self.in_flight.done.is_quiet() && !self.wants_watch && self.abort.is_none()
    }

    /// The payloads to drop and the tasks to wake, with no lock held. `None` if there are none;
    /// waiting threads are woken then.
    pub(super) fn take_disposal(&mut self) -> Option<(Disposal, Vec<Waker>)> {
        let woken = self.in_flight.take_woken(self.sending.is_some());
        let done = &mut self.in_flight.done;
        let news = mem::take(&mut done.news);
        if done.disposal.is_empty() && woken.is_empty() {
            // Only if something changed: a thread that waits both as a task and by itself would
            // wake itself for ever.
            if news {
                done.wake_threads();
            }
            return None;
        }
        done.dropping += 1;
        Some((mem::take(&mut done.disposal), woken))
    }

    /// The payloads of [`take_disposal`](Self::take_disposal) are dropped.
    pub(super) fn disposed(&mut self, disposal: Disposal) {
        let done = &mut self.in_flight.done;
        done.disposal.put_back(disposal);
        done.dropping -= 1;
        done.wake_threads();
    }

    /// Returns `true` if no released payload has yet to be dropped, by any thread.
    pub(super) fn is_disposed(&self) -> bool {
        let done = &self.in_flight.done;
        done.disposal.is_empty() && done.dropping == 0
    }
}

/// The end.
impl Machine {
    /// Begins the end, unless it has begun. `lingers`: abort it when it makes no progress. Returns
    /// `true` if it begins now.
    pub(super) fn begin_end(&mut self, lingers: bool, now: Instant) -> bool {
        match &mut self.closing {
            Some(closing) => closing.lingers |= lingers,
            closing @ None => {
                let mut new = Closing::new(lingers, now);
                let cold = self.in_flight.done.cold.get();
                if let Some(given_up) = cold.and_then(|cold| cold.hold.given_up) {
                    (new.aborted, new.unacked) = (given_up.aborted, given_up.unacked);
                }
                *closing = Some(Box::new(new));
                return true;
            }
        }
        false
    }

    /// Brings the end nearer, if it has begun; after the error queue is read and what could be sent
    /// is sent.
    fn close(&mut self) -> Option<Question> {
        loop {
            let view = View {
                is_flushed: self.is_flushed(),
                is_drained: self.is_drained(),
                is_calling: self.is_calling(),
                has_failed: self.connection_error().is_some(),
                accepted: self.in_flight.done.counts.accepted_bytes(),
                linger: self.config.linger,
            };
            let known = self.known;
            match self.closing.as_mut()?.next(view, &known) {
                Step::Ask(question) => return Some(question),
                Step::Prove => self.prove(Some(0)),
                Step::Quarantine => {
                    self.in_flight.quarantine();
                    if view.is_flushed {
                        return Some(Question::ReplacePages);
                    }
                }
                Step::Abort => {
                    self.abort = Some(OsError::from_raw(errno::ETIMEDOUT));
                    match self.aborting() {
                        Some(question) => return Some(question),
                        // The thread with the call does the abort.
                        None if view.is_calling => return None,
                        None => {}
                    }
                }
                Step::Look(time) => {
                    self.known.look_again = Some(time);
                    return None;
                }
                Step::Over => return None,
            }
        }
    }

    /// Has the connection broken, because of `why`, as soon as no call is out.
    pub(super) fn ask_abort(&mut self, why: OsError) {
        self.abort.get_or_insert(why);
    }

    /// Breaks the connection if that was asked for: what is not accepted is given up, and the kernel
    /// releases every id except those of packets in a queue below.
    fn aborting(&mut self) -> Option<Question> {
        self.abort?;
        if self.is_calling() {
            return None;
        }
        // Before the end begins only a silent peer is a reason.
        if !self.closing.as_ref().is_none_or(|closing| closing.is_under_way()) {
            self.abort = None;
            return None;
        }
        if self.known.time.is_none() {
            return Some(Question::Time);
        }
        if self.known.unacked.is_none() {
            return Some(Question::Unacked);
        }
        self.cut_short(OsError::from_raw(errno::ECANCELED));
        Some(Question::Abort)
    }

    /// The connection is broken, or that failed.
    pub(super) fn aborted(&mut self, succeeded: bool) {
        let why = self.abort.take().expect("asked for");
        let now = self.known.time.expect("asked before");
        match &mut self.closing {
            Some(closing) => {
                closing.unacked = closing.without_end(self.known.unacked.flatten());
                closing.abort(succeeded, why, now);
            }
            None => self.gave_up(succeeded),
        }
        // The ids that it released are read next, and the option memory tells of the others.
        let time = self.known.time;
        self.known = Known {
            time,
            wants_read: true,
            wants_proof: true,
            has_looked_at_hold: true,
            ..Known::default()
        };
    }

    /// The stream was shut down, or that failed.
    pub(super) fn shut_down(&mut self, result: Result<(), OsError>) {
        // The peer may have acknowledged more since it was asked.
        self.known.unacked = None;
        if let Some(closing) = &mut self.closing {
            closing.shut_down(result);
        }
    }

    /// An error made the caller of the end give up before its deadline.
    pub(super) fn end_failed(&mut self, error: OsError) {
        if let Some(closing) = &mut self.closing {
            closing.error.get_or_insert(error);
        }
    }

    pub(super) fn is_ending(&self) -> bool {
        self.closing.is_some()
    }

    pub(super) fn is_over(&self) -> bool {
        self.closing.as_ref().is_some_and(|closing| closing.is_over())
    }

    /// The report of the end so far; `unacked` is the peer's backlog now.
    pub(super) fn report(&self, unacked: Option<usize>) -> CloseReport {
        let error = self.connection_error().filter(|error| error.raw() != errno::ECANCELED);
        let closing = self.closing.as_ref().expect("asked after the end has begun");
        let error = error.or(closing.error);
        CloseReport {
            drained: closing.is_drained() && error.is_none(),
            aborted: closing.aborted,
            unacked_bytes: match closing.aborted {
                true => closing.unacked,
                false => closing.without_end(unacked),
            },
            quarantined: self.in_flight.tracker.leases(),
            error,
        }
    }

    /// Returns `true` if the reaper has to go on watching, and tells how often it looks again.
    pub(super) fn keeps_watch(&mut self) -> Option<Duration> {
        self.look_at_hold().or_else(|| self.in_flight.is_awaited().then_some(OVERDUE))
    }
}

/// The state and results that the sender tells.
impl Machine {
    #[inline(always)]
    pub(super) fn is_calling(&self) -> bool {
        self.out != Out::No
    }

    /// A thread is about to wait for the end of the call that is out, if there is one.
    pub(super) fn note_call(&mut self) {
        self.again |= self.is_calling();
    }

    /// Returns `true` if a part of a send is not accepted.
    pub(super) fn is_unsent(&self) -> bool {
        self.sending.is_some()
    }

    /// Returns `true` if everything is accepted, and no call is out.
    pub(super) fn is_flushed(&self) -> bool {
        self.sending.is_none() && !self.is_calling()
    }

    /// Returns `true` if everything is accepted and released.
    pub(super) fn is_drained(&self) -> bool {
        self.is_flushed() && self.in_flight.tracker.outstanding() == 0
    }

    /// Returns `true` if it was not yet seen that the kernel honours the flag of the first call.
    #[inline(always)]
    pub(super) fn verifies(&self) -> bool {
        self.verifies
    }

    /// Why the connection is over, if it is.
    #[inline(always)]
    pub(super) fn connection_error(&self) -> Option<OsError> {
        self.error.or_else(|| self.is_over.then(|| OsError::from_raw(errno::ENOTCONN)))
    }

    /// What cut a send short, if so.
    pub(super) fn truncation(&self, ticket: Ticket) -> Option<OsError> {
        self.in_flight.done.ledger.truncation(ticket)
    }

    pub(super) fn fate(&self, ticket: Ticket) -> Option<Fate> {
        self.in_flight.fate(ticket, self.sending.is_some())
    }

    /// Returns `true` if the unsent part, or the owner's refused buffer, waits for room in the
    /// socket.
    pub(super) fn wants_room(&self) -> bool {
        [self.blocked, self.refused].contains(&Some(Blocked::Socket))
    }

    /// The owner looks at what there is to do anew.
    pub(super) fn forget_refused(&mut self) {
        self.refused = None;
    }

    /// State that few senders have, to be looked at.
    pub(super) fn cold(&self) -> Option<&Cold> {
        self.in_flight.done.cold.get()
    }

    /// State that few senders have, to be changed.
    pub(super) fn cold_mut(&mut self) -> &mut Cold {
        self.in_flight.done.cold.make()
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        let InFlight { route, copy_reason, .. } = &self.in_flight;
        let reason = copy_reason.or(route.is_copied().then_some(CopyReason::Route));
        Capabilities { zero_copy: copy_reason.is_none(), reason }
    }

    pub(super) fn stats(&self) -> SenderStats {
        let InFlight { tracker, done, route, .. } = &self.in_flight;
        let counts = &done.counts;
        let mut stats = SenderStats {
            zero_copy_calls: counts.zero_copy_calls,
            zero_copy_bytes: counts.zero_copy_bytes,
            copied_calls: counts.copied_calls,
            copied_bytes: counts.copied_bytes,
            notes: counts.notes,
            released_calls: counts.released_calls,
            deferred_copies: counts.deferred_copies,
            in_flight_bytes: counts.in_flight_bytes,
            in_flight_calls: tracker.outstanding(),
            leases: tracker.leases(),
            window_sends: self.window.calls(),
            window_bytes: self.window.bytes(),
            route: route.stats(),
            ..SenderStats::default()
        };
        if let Some(cold) = done.cold.get() {
            stats.no_bufs_optmem = cold.no_bufs_optmem;
            stats.no_bufs_memlock = cold.no_bufs_memlock;
            stats.dropped_sends = cold.dropped_sends;
            stats.truncated_sends = cold.truncated_sends;
            stats.events_dropped = cold.events_dropped;
        }
        stats
    }
}
