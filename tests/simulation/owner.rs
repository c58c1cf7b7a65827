//! The owner of a sender: random calls, and checks of their results.

use std::{
    cell::Cell,
    collections::VecDeque,
    mem::{self, Discriminant},
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use pinbuf::{
    __internals::{Config, Core, Interest, Transport, map_buf},
    Fate, Payload, SendError, Ticket, WaitError,
    error::OsError,
    sender::OnRelease,
};

use crate::{
    datagrams::{ECONNREFUSED, EMSGSIZE},
    kernel::SimKernel,
    memory::Text,
    panics::{self, CountingWaker},
    socket::{Linger, Socket, Wire},
    stream::{EMFILE, ENOMEM, ENOTCONN, EPERM},
    world::Shared,
};

/// The limit of a send's wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Patience {
    None,
    /// A lone buffer waits up to this limit; several buffers do not wait.
    UpTo(Duration),
    Endless,
}

/// An accepted send.
struct Sent {
    ticket: Ticket,
    /// Its start in the stream, or among the datagrams.
    from: u64,
    to: u64,
    fate: Option<Fate>,
    /// Payloads still to be handed back.
    parts: Vec<(Discriminant<Payload>, Text)>,
}

impl Sent {
    /// Returns `true` if no more can be told of the send.
    fn is_settled(&self) -> bool {
        self.parts.is_empty() && self.fate.is_some_and(|fate| fate != Fate::Quarantined)
    }
}

pub(crate) struct Owner {
    world: Shared,
    core: Arc<Core<SimKernel>>,
    /// `true` if the sender is split, and the owner has both halves.
    pub(crate) is_split: bool,
    pub(crate) number: usize,
    transport: Transport,
    hands_back: bool,
    /// The largest number of calls in flight, and of their bytes.
    window: (usize, usize),
    sent: VecDeque<Sent>,
    sends: u64,
    polls: Vec<(Ticket, Arc<CountingWaker>)>,
    /// The waker of a task that waits for all releases.
    drains: Option<Arc<CountingWaker>>,
    /// The linger time, unless the connection ends earlier.
    linger: Option<Duration>,
    users_linger: Linger,
    /// `true` if a panic of user code lost a send.
    lost: bool,
    aborted: bool,
    /// The error of the connection at the last look.
    error: Cell<Option<OsError>>,
}

/// Returns `true` if the payload has these bytes; mapped memory cannot be checked.
fn holds(payload: &Payload, text: Text) -> bool {
    payload.len() == text.len
        && match payload {
            Payload::Pinned(buf) => buf[..] == *text.bytes(),
            Payload::Shared(buf) => buf[..] == *text.bytes(),
            Payload::Static(bytes) => **bytes == *text.bytes(),
            Payload::Arc(bytes) => bytes[..] == *text.bytes(),
            _ => true,
        }
}

impl Owner {
    pub(crate) fn new(
        world: &Shared,
        core: Arc<Core<SimKernel>>,
        (number, transport): (usize, Transport),
        config: &Config,
    ) -> Self {
        let mut guard = world.lock();
        let (socket, _) = guard.socket(number);
        (socket.max_hold, socket.ends) = (config.max_hold, false);
        if config.max_hold.is_none() {
            socket.core = Arc::downgrade(&core);
        }
        drop(guard);
        Self {
            world: world.clone(),
            core,
            is_split: false,
            number,
            transport,
            hands_back: config.on_release == OnRelease::Return,
            window: (config.max_in_flight_sends, config.max_in_flight_bytes),
            sent: VecDeque::new(),
            sends: 0,
            polls: Vec::new(),
            drains: None,
            linger: config.max_hold.is_none().then_some(config.linger),
            users_linger: world.lock().socket(number).0.linger,
            lost: false,
            aborted: false,
            error: Cell::new(None),
        }
    }

    /// Calls the library; `None` if user code panicked.
    fn call<R>(&self, body: impl FnOnce(&Arc<Core<SimKernel>>) -> R) -> Option<R> {
        self.world.lock().begin_call();
        panics::guarded(|| body(&self.core))
    }

    /// As [`call`](Self::call), for a call that waits.
    fn waiting_call<R>(&self, body: impl FnOnce(&Arc<Core<SimKernel>>) -> R) -> Option<R> {
        self.with_socket(|socket| socket.waits = true);
        let result = self.call(body);
        self.with_socket(|socket| socket.waits = false);
        result
    }

    fn with_socket<R>(&self, body: impl FnOnce(&mut Socket) -> R) -> R {
        body(self.world.lock().socket(self.number).0)
    }

    /// Returns `true` if every wait comes to an end. For this the peer, the limit of silence or an
    /// abort must end silence, and no other user's option memory may hide releases without a
    /// notification.
    pub(crate) fn is_cooperative(&self) -> bool {
        self.with_socket(|socket| {
            let stalls =
                matches!(&socket.wire, Wire::Stream(stream) if stream.is_stalled_for_ever());
            let is_endless = socket.max_hold.is_none() && !socket.ends;
            !(stalls && is_endless) && socket.notifications.filter_bytes == 0
        })
    }

    /// Offers payloads as one send; refused payloads come back.
    pub(crate) fn send(
        &mut self,
        payloads: Vec<Payload>,
        texts: &[Text],
        has_hole: bool,
        patience: Patience,
    ) -> Vec<Payload> {
        let blocking = patience == Patience::Endless;
        let began = self.world.lock().instant();
        let len: usize = texts.iter().map(|text| text.len).sum();
        let from = self.with_socket(|socket| {
            socket.expected.push(texts);
            socket.failures.clear();
            (socket.was_full, socket.sends) = (false, true);
            socket.waits = patience != Patience::None;
            match &socket.wire {
                Wire::Stream(_) => {
                    socket.expected.accepted() + (socket.expected.pending() - len) as u64
                }
                Wire::Datagrams(datagrams) => datagrams.count(),
            }
        });
        let kinds: Vec<_> = payloads.iter().map(mem::discriminant).collect();
        let mut back = payloads;
        let result = if back.len() == 1 {
            let payload = back.pop().expect("the send has one payload");
            self.call(|core| match patience {
                Patience::Endless => core.send(payload),
                Patience::UpTo(limit) => core.send_timeout(payload, limit),
                Patience::None => core.try_send(payload),
            })
            .map(|result| result.map_err(|error| map_buf(error, |payload| back.push(payload))))
        } else {
            self.call(|core| match blocking {
                true => core.send_vectored(&mut back),
                false => core.try_send_vectored(&mut back),
            })
        };
        self.with_socket(|socket| (socket.sends, socket.waits) = (false, false));
        let Some(result) = result else {
            self.recover(from, texts, &back);
            return back;
        };
        let failures = self.with_socket(|socket| mem::take(&mut socket.failures));
        let has_cause = self.with_socket(|socket| {
            let ignores = matches!(&socket.wire, Wire::Stream(stream) if stream.ignores);
            socket.deaf || ignores
        });
        assert!(has_cause || !self.core.is_poisoned(), "poisoned without cause");
        self.check_window();
        self.check_error();
        self.check_interest(&result);
        let is_over = self.with_socket(|socket| socket.is_over());
        let ticket = match result {
            Ok(ticket) | Err(SendError::Truncated { ticket, .. }) => Some(ticket),
            Err(SendError::Unfinished { ticket }) => {
                self.check_time_is_up(began, patience);
                assert!(self.has_unsent(), "no part is unsent");
                Some(ticket)
            }
            Err(_) => None,
        };
        if let Some(ticket) = ticket {
            assert!(back.is_empty(), "accepted, but came back");
            assert_eq!((ticket.sequence(), ticket.len()), (self.sends, len));
            self.accepted(ticket, from, kinds.into_iter().zip(texts.iter().copied()).collect());
            return back;
        }
        self.with_socket(|socket| socket.expected.withdraw(texts));
        assert_eq!(back.len(), texts.len(), "refused, but not all came back");
        for (payload, text) in back.iter().zip(texts) {
            assert!(holds(payload, *text), "came back changed");
        }
        match result.expect_err("a refused send has no ticket") {
            SendError::WouldBlock(()) => {
                assert!(!blocking, "a blocking send would block");
                let interest = self.call(|core| core.interest()).unwrap_or_default();
                let waits = interest != Interest::default() || self.core.is_poisoned();
                // Another thread may have read the last releases since.
                let is_ready = || {
                    let context = &mut Context::from_waker(Waker::noop());
                    self.call(|core| core.poll_ready(context)).is_none_or(|poll| poll.is_ready())
                };
                assert!(waits || is_ready(), "the send would block without a cause");
            }
            SendError::TimedOut(()) => self.check_time_is_up(began, patience),
            SendError::Connection { error, .. } => {
                let told = self.core.connection_error();
                assert_eq!(told, Some(error), "the first error stays");
                let alone = self.transport == Transport::Datagram && !self.aborted;
                assert!(!alone, "the error of a datagram is no connection error");
            }
            SendError::BadAddress(()) => assert!(has_hole || self.has_unsent(), "all is readable"),
            SendError::Dropped { error, .. } => assert!(failures.contains(&error.raw())),
            SendError::Os { error, .. } => {
                let known = [ENOMEM, EMFILE, EMSGSIZE, ECONNREFUSED, 1, 22, 105];
                assert!(known.contains(&error.raw()), "{error:?} reaches the owner");
                assert!(failures.contains(&error.raw()) || is_over, "{error:?} from nowhere");
            }
            error => panic!("{error:?}"),
        }
        back
    }

    fn check_time_is_up(&self, began: Instant, patience: Patience) {
        let Patience::UpTo(limit) = patience else { panic!("the send had no limit") };
        assert!(self.world.lock().instant() >= began + limit, "the time is not up");
    }

    /// Checks the window: no more in flight than allowed, except a single larger call.
    fn check_window(&self) {
        let (calls, bytes) = self.window;
        let stats = self.core.stats();
        let fits = stats.in_flight_calls <= calls && stats.in_flight_bytes <= bytes;
        assert!(fits || stats.in_flight_calls == 1, "{stats:?} is beyond the window");
    }

    /// Checks the error of a connection: the first one stays, unless only the end of an idle
    /// connection was seen before.
    fn check_error(&self) {
        let error = self.core.connection_error();
        let before = self.error.replace(error);
        let stays = before.is_none_or(|before| before.raw() == ENOTCONN || error == Some(before));
        assert!(stays, "{before:?} became {error:?}");
    }

    /// Checks that the sender waits for room only if the socket had none for this send.
    fn check_interest(&self, result: &Result<Ticket, SendError<()>>) {
        let is_full = self.with_socket(|socket| socket.was_full);
        let is_over = matches!(result, Err(SendError::Connection { .. }));
        let wants_room = self.core.interest().writable;
        assert!(is_full || is_over || !wants_room, "{result:?}, and waits for room that is there");
    }

    /// Returns `true` if a part of an earlier send is unsent.
    fn has_unsent(&self) -> bool {
        self.with_socket(|socket| socket.expected.pending() > 0)
    }

    fn accepted(&mut self, ticket: Ticket, from: u64, parts: Vec<(Discriminant<Payload>, Text)>) {
        self.sends += 1;
        let len = match self.transport {
            Transport::Stream => ticket.len() as u64,
            Transport::Datagram => 1,
        };
        let parts = if self.hands_back { parts } else { Vec::new() };
        self.sent.push_back(Sent { ticket, from, to: from + len, fate: None, parts });
    }

    /// User code panicked in a call that sends, and the result of the call is lost.
    fn recover(&mut self, from: u64, texts: &[Text], back: &[Payload]) {
        let wanted: usize = texts.iter().map(|text| text.len).sum();
        assert!(wanted > 0, "the owner could not tell if the send was accepted");
        let refused = self.with_socket(|socket| match &socket.wire {
            Wire::Stream(_) => socket.expected.accepted() <= from,
            Wire::Datagrams(datagrams) => datagrams.count() == from,
        });
        if refused {
            self.with_socket(|socket| socket.expected.withdraw(texts));
        } else {
            assert!(back.is_empty(), "accepted, but came back");
            self.sends += 1;
            self.lost = true;
        }
    }

    /// Asks for the fate of a send.
    pub(crate) fn ask(&mut self, which: usize) {
        if self.sent.is_empty() {
            return;
        }
        let at = which % self.sent.len();
        let ticket = self.sent[at].ticket;
        if let Some(Some(fate)) = self.call(|core| core.fate(ticket).unwrap()) {
            self.judge(at, fate);
        }
        while self.sent.front().is_some_and(Sent::is_settled) {
            self.sent.pop_front();
        }
    }

    /// Checks the fate of a send.
    fn judge(&mut self, at: usize, fate: Fate) {
        let Sent { ticket, from, to, fate: before, .. } = self.sent[at];
        match fate {
            Fate::Released { accepted, .. } => assert_eq!(accepted, ticket.len()),
            Fate::Truncated { accepted, len, .. } => {
                assert_eq!(len, ticket.len());
                let taken = self.with_socket(|socket| socket.expected.accepted());
                assert_eq!(accepted as u64, taken - from, "the bytes taken by the kernel");
                assert!(accepted < len && self.core.connection_error().is_some());
            }
            Fate::Quarantined => {
                let taken = self.with_socket(|socket| socket.expected.accepted());
                let is_stream = self.transport == Transport::Stream;
                let sends = is_stream && taken < to && self.core.connection_error().is_none();
                assert!(self.core.is_poisoned() && !sends, "a part of the send is unsent");
            }
            _ => panic!("{fate:?}"),
        }
        if fate != Fate::Quarantined {
            let live = self.with_socket(|socket| socket.notifications.is_live(from, to));
            assert!(!live, "{fate:?}, but the kernel may read it");
        }
        let changed = before.is_some_and(|before| before != fate && before != Fate::Quarantined);
        assert!(!changed, "from {before:?} to {fate:?}");
        self.sent[at].fate = Some(fate);
    }

    /// Waits for the fate of a send.
    pub(crate) fn wait(&mut self, which: usize, limit: Option<Duration>) {
        if self.sent.is_empty() {
            return;
        }
        let at = which % self.sent.len();
        let ticket = self.sent[at].ticket;
        let deadline = limit.map(|limit| self.world.lock().instant() + limit);
        match self.waiting_call(|core| core.wait(ticket, deadline)) {
            Some(Ok(fate)) => self.judge(at, fate),
            Some(Err(error)) => self.accept_error(error, limit),
            None => {}
        }
    }

    pub(crate) fn drain(&mut self, limit: Option<Duration>) {
        let deadline = limit.map(|limit| self.world.lock().instant() + limit);
        match self.waiting_call(|core| core.drain(deadline)) {
            Some(Ok(())) => self.check_drained(),
            Some(Err(error)) => self.accept_error(error, limit),
            None => {}
        }
    }

    fn accept_error(&self, error: WaitError, limit: Option<Duration>) {
        match error {
            WaitError::TimedOut => assert!(limit.is_some(), "there was no limit"),
            WaitError::Poisoned => assert!(self.core.is_poisoned()),
            WaitError::Os(error) => assert!([ENOMEM, EMFILE].contains(&error.raw())),
            error => panic!("{error:?}"),
        }
    }

    /// Checks that every send has its fate, with nothing in flight and nothing unsent.
    fn check_drained(&mut self) {
        self.fetch(usize::MAX);
        for at in 0..self.sent.len() {
            let ticket = self.sent[at].ticket;
            let fate = self.core.fate(ticket).unwrap().expect("the send is released");
            assert!(fate != Fate::Quarantined, "the send is released");
            self.judge(at, fate);
            // A slot that got new pages after an abort has nothing to hand back.
            let excused = self.lost || self.aborted;
            assert!(self.sent[at].parts.is_empty() || excused, "not handed back");
        }
        self.sent.clear();
        self.polls.clear();
        let stats = self.core.stats();
        assert_eq!((stats.in_flight_calls, stats.in_flight_bytes, stats.leases), (0, 0, 0));
    }

    /// Asks for a wake-up at the fate of a send.
    pub(crate) fn poll(&mut self, which: usize, misbehaves: bool) {
        if self.sent.is_empty() {
            return;
        }
        let at = which % self.sent.len();
        let ticket = self.sent[at].ticket;
        let counter = CountingWaker::new(misbehaves);
        let waker = Waker::from(Arc::clone(&counter));
        // A poll takes the place of an earlier one, and a poll that finds the fate wakes no task.
        self.polls.retain(|(polled, _)| *polled != ticket);
        match self.call(|core| core.poll_fate(&mut Context::from_waker(&waker), ticket)) {
            Some(Poll::Ready(Ok(fate))) => self.judge(at, fate),
            Some(Poll::Pending) => self.polls.push((ticket, counter)),
            Some(Poll::Ready(Err(_))) | None => {}
        }
    }

    /// Asks for a wake-up when everything is released.
    pub(crate) fn poll_drain(&mut self, misbehaves: bool) {
        let counter = CountingWaker::new(misbehaves);
        let waker = Waker::from(Arc::clone(&counter));
        self.drains = None;
        match self.call(|core| core.poll_drain(&mut Context::from_waker(&waker))) {
            Some(Poll::Ready(Ok(()))) => assert!(self.core.is_drained()),
            Some(Poll::Ready(Err(WaitError::Poisoned))) => assert!(self.core.is_poisoned()),
            Some(Poll::Pending) => self.drains = Some(counter),
            Some(Poll::Ready(Err(_))) | None => {}
        }
    }

    /// Checks that the waker of every known fate was called, and that of a drain.
    fn check_woken_tasks(&self) {
        if let Some(counter) = &self.drains {
            let has_come = self.core.is_drained() || self.core.is_poisoned();
            assert!(!has_come || counter.is_woken(), "drained, but no task was woken");
        }
        for (ticket, counter) in &self.polls {
            let fate = self.core.fate(*ticket).unwrap();
            assert!(fate.is_none() || counter.is_woken(), "{fate:?}, but no task was woken");
        }
    }

    /// No event is left: every due wake-up must have happened.
    pub(crate) fn check_woken(&self) {
        self.check_woken_tasks();
        for (ticket, counter) in &self.polls {
            let sent = self.sent.iter().find(|sent| sent.ticket == *ticket);
            if let Some(Sent { from, to, .. }) = sent
                && !counter.is_woken()
            {
                // Without a notification, the option memory tells the release, as soon as no other
                // user holds any.
                let open = self.with_socket(|socket| {
                    let ignores = matches!(&socket.wire, Wire::Stream(stream) if stream.ignores);
                    socket.expected.pending() > 0
                        || socket.notifications.is_live(*from, *to)
                        || (socket.deaf || ignores) && socket.notifications.optmem() > 0
                });
                assert!(open, "released, but no task was woken");
            }
        }
    }

    /// Fetches the payloads that were handed back.
    pub(crate) fn fetch(&mut self, most: usize) {
        for _ in 0..most {
            let Some(Some(returned)) = self.call(|core| core.next_returned()) else { break };
            assert!(self.hands_back, "recycled, but handed back");
            let sent = self.sent.iter_mut().find(|sent| sent.ticket == returned.ticket);
            let Some(sent) = sent else {
                assert!(self.lost, "handed back after all others");
                self.drop_payload(returned.payload);
                continue;
            };
            let part = sent.parts.iter().position(|(kind, text)| {
                *kind == mem::discriminant(&returned.payload) && holds(&returned.payload, *text)
            });
            let Some(part) = part else {
                panic!("handed back twice, or changed: {returned:?}; {:?}", sent.parts);
            };
            sent.parts.swap_remove(part);
            self.drop_payload(returned.payload);
        }
        while let Some(Some(_)) = self.call(|core| core.next_event()) {}
    }

    fn drop_payload(&self, payload: Payload) {
        self.call(|_| drop(payload));
    }

    /// Reads the notifications. A look without any reports the end of the connection.
    pub(crate) fn reap(&self) {
        let was_over = self.with_socket(|socket| socket.is_over() && !socket.ends);
        let reaped = self.call(|core| {
            core.forget_refused();
            core.reap().map_err(|error| match error.raw_os_error() {
                Some(EPERM) => assert!(core.is_poisoned(), "refused without poison"),
                errno => assert_eq!(errno, Some(ENOMEM)),
            })
        });
        if was_over && matches!(reaped, Some(Ok(reaped)) if reaped.messages == 0) {
            assert!(self.core.connection_error().is_some(), "the end is not reported");
        }
        self.check_woken_tasks();
    }

    pub(crate) fn flush(&self) {
        self.call(|core| core.reap_and_flush());
    }

    /// Asks for all other facts.
    pub(crate) fn look(&self) {
        self.check_error();
        self.call(|core| (core.stats(), core.capabilities(), core.held_for(), core.interest()));
    }

    pub(crate) fn split(&mut self) {
        self.core.share();
        self.is_split = true;
    }

    /// Breaks the connection, and asks further.
    pub(crate) fn abort(&mut self) {
        (self.aborted, self.linger) = (true, None);
        self.with_socket(|socket| (socket.core, socket.ends) = (Weak::new(), true));
        self.call(|core| core.abort());
    }

    /// Ends the stream in order, within a limit; `kind`: without any obstacle.
    pub(crate) fn close(mut self, limit: Duration, kind: bool) {
        self.fetch(usize::MAX);
        let healthy = self.core.connection_error().is_none()
            && !self.core.is_poisoned()
            && !self.with_socket(|socket| socket.is_doomed());
        self.with_socket(|socket| {
            (socket.core, socket.ends, socket.waits) = (Weak::new(), true, true);
        });
        let Self { world, core, .. } = self;
        world.lock().begin_call();
        let closed_before = world.lock().closed;
        let deadline = world.lock().instant() + limit;
        if let Some(report) = panics::guarded(|| core.close(Some(deadline))) {
            assert!(!(report.drained && report.aborted), "{report:?}");
            let tells_why = report.aborted || report.error.is_some();
            assert!(report.drained || tells_why, "{report:?}");
            let world = world.lock();
            let is_cut = world.closed > closed_before && world.last_cut.is_some();
            assert!(!(report.drained && is_cut), "a lost tail is called drained");
            let excused = report.error.is_some() || !(healthy && kind);
            assert!(report.drained || excused, "{report:?}");
        }
    }

    /// Drops the sender, or both of its halves.
    pub(crate) fn drop(self, sending_half_first: bool) {
        let now = self.world.lock().environment.now;
        self.with_socket(|socket| {
            (socket.core, socket.ends) = (Weak::new(), true);
            socket.dropped = self.linger.map(|linger| (linger.as_nanos() as u64, now));
        });
        let Self { world, core, is_split, .. } = self;
        world.lock().begin_call();
        let halves: &[bool] = match (is_split, sending_half_first) {
            (false, _) => &[false],
            (true, true) => &[true, false],
            (true, false) => &[false, true],
        };
        for begins_end in halves {
            let core = Arc::clone(&core);
            panics::guarded(|| core.leave(*begins_end));
        }
        // Includes payloads that were handed back and not fetched.
        panics::guarded(|| drop(core));
    }

    /// Returns the socket alone, and its next id.
    pub(crate) fn into_parts(mut self) -> Result<(SimKernel, u64), Box<Self>> {
        let drained = self.call(|core| core.step().is_ok() && core.is_drained());
        if drained != Some(true) || self.is_split || self.core.capabilities().reason.is_some() {
            return Err(Box::new(self));
        }
        self.fetch(usize::MAX);
        let id = self.core.next_id();
        let next = self.with_socket(|socket| socket.notifications.next_id());
        assert_eq!(id.0 as u32, next, "the ids of the kernel");
        // A user that continues behind a gap does so knowingly.
        self.with_socket(|socket| socket.expected.forget());
        let linger = self.with_socket(|socket| socket.linger);
        assert!(self.aborted || linger == self.users_linger, "the user's option is changed");
        let kernel = Core::into_kernel(self.core).expect("no other reference is left");
        Ok((kernel, id.0))
    }
}
