//! A session over TCP: connections, sends of every kind, an end of any kind.

use std::{
    collections::HashMap,
    fmt, io,
    net::{TcpListener, TcpStream},
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    task::{Context, Waker},
    thread::{self, JoinHandle},
    time::Duration,
};

use pinbuf::{
    Fate, Payload, SendError, Sender, Ticket, WaitError,
    sender::{Returned, SenderBuilder},
};

use crate::{
    child,
    contents::Piece,
    journal::Journal,
    payload::{Payloads, Stock},
    peer::{self, Manner},
    place::Place,
    random::Random,
    settings, signals,
    tally::{Tally, add},
    worker::Peer,
};

/// Largest payload of a session in bytes.
const MAX_PAYLOAD: usize = 768 << 10;

/// A deadline that only a hang misses.
const PATIENCE: Duration = Duration::from_secs(60);

/// Plays one session over one or more connections.
pub(crate) fn play(
    random: &mut Random,
    stock: &Stock,
    place: Place,
    tally: &Tally,
    peers: &mut Vec<Peer>,
) -> Result<(), String> {
    let mut payloads = Payloads::new(stock);
    let mut streams = Vec::new();
    for _ in 0..random.pick(&[1, 1, 1, 2, 4]) {
        // Connecting can time out in a lossy place.
        let Ok(stream) = Stream::open(random, place, tally, peers) else { break };
        streams.push(stream);
    }
    for _ in 0..random.within(1..=60) {
        if signals::interrupted() || streams.is_empty() {
            break;
        }
        let stream = random.within(0..=streams.len() - 1);
        streams[stream].step(random, &mut payloads)?;
    }
    let absence = place.vanish(random);
    for stream in &mut streams {
        stream.step(random, &mut payloads)?;
    }
    // Some buffers are dropped before the senders with their sends, some after.
    let payloads = if random.percent(50) { None } else { Some(payloads) };
    for stream in streams {
        let peer = stream.peer;
        let stays = stream.stays;
        let drained = stream.end(random, stock)?;
        peers[peer].must_be_whole = drained && stays;
    }
    drop(payloads);
    match absence.map(JoinHandle::join) {
        None | Some(Ok(Ok(()))) => Ok(()),
        Some(failed) => Err(format!("the loopback is down for good: {failed:?}")),
    }
}

/// The sends over one connection.
struct Sent {
    journal: Arc<Journal>,
    pieces: HashMap<u64, Vec<Piece>>,
    tickets: Vec<Ticket>,
    /// `true` if the connection is known to be over.
    failed: bool,
}

/// One connection and its sender.
struct Stream<'a> {
    sender: Sender<TcpStream>,
    builder: SenderBuilder,
    sent: Sent,
    tally: &'a Tally,
    /// The peer's index in the session.
    peer: usize,
    /// `true` if the peer reads to the end, over a network without losses.
    stays: bool,
    /// `true` if moreover only the program can end the sender.
    reliable: bool,
}

impl<'a> Stream<'a> {
    fn open(
        random: &mut Random,
        place: Place,
        tally: &'a Tally,
        peers: &mut Vec<Peer>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((Place::address(random), 0))?;
        if random.percent(60) {
            // With a smaller buffer TCP itself can stall: the window is smaller than a segment.
            let bytes = random.pick(&[20_000_i32, 50_000, 200_000]);
            peer::set_option(&listener, libc::SO_RCVBUF, &bytes);
        }
        let near = TcpStream::connect_timeout(&listener.local_addr()?, Duration::from_secs(5))?;
        if random.percent(40) {
            let bytes = random.pick(&[10_000_i32, 50_000, 300_000]);
            peer::set_option(&near, libc::SO_SNDBUF, &bytes);
        }
        let far = listener.accept()?.0;
        let (builder, max_hold) = settings::sender(random);
        let sender = builder.adopt(near)?;
        let manner = Manner::choose(random);
        let journal = Arc::new(Journal::default());
        let receiving = {
            let journal = Arc::clone(&journal);
            thread::spawn(move || peer::receive(far, manner, place, &journal))
        };
        peers.push(Peer { receiving, must_be_whole: false });
        let sent = Sent { journal, pieces: HashMap::new(), tickets: Vec::new(), failed: false };
        let stays = manner.is_patient() && !place.is_lossy;
        let reliable = stays && max_hold.is_none();
        Ok(Self { sender, builder, sent, tally, peer: peers.len() - 1, stays, reliable })
    }

    /// Makes one random call on the sender.
    fn step(&mut self, random: &mut Random, payloads: &mut Payloads<'_>) -> Result<(), String> {
        match random.within(0..=19) {
            0 => self.sender.reap().map(drop).map_err(|error| format!("reap: {error}"))?,
            1 => drop(self.sender.reap()),
            2 => {
                let drained = self.sender.drain(Some(random.millis(0..=50)));
                self.check_wait(drained)?;
            }
            3 => self.wait(random)?,
            4 => thread::sleep(random.millis(0..=20)),
            5 => self.look()?,
            6 if random.percent(20) => {
                // Any pool will do for the child.
                if let Some(pool) = payloads.pool() {
                    add(&self.tally.children, 1);
                    child::misuse(pool, &mut self.sender)?;
                }
            }
            _ => self.send(random, payloads)?,
        }
        while let Some(returned) = self.sender.next_returned() {
            self.sent.check_returned(&returned)?;
        }
        Ok(())
    }

    fn send(&mut self, random: &mut Random, payloads: &mut Payloads<'_>) -> Result<(), String> {
        let sender = &mut self.sender;
        let (single, waits) = (random.percent(50), random.percent(60));
        if single {
            return self.sent.send(random, payloads, 1, self.tally, |bufs| {
                let buf = bufs.remove(0);
                if waits { sender.send(buf) } else { sender.try_send(buf) }
            });
        }
        let count = random.within(1..=6);
        self.sent.send(random, payloads, count, self.tally, |bufs| match waits {
            true => sender.send_vectored(bufs),
            false => sender.try_send_vectored(bufs),
        })
    }

    /// Waits for the fate of a send.
    fn wait(&mut self, random: &mut Random) -> Result<(), String> {
        let Some(&ticket) = self.sent.tickets.get(random.magnitude(0..=self.sent.tickets.len()))
        else {
            return Ok(());
        };
        let mut cx = Context::from_waker(Waker::noop());
        let _ = self.sender.poll_fate(&mut cx, ticket);
        let fate = self.sender.wait(ticket, Some(random.millis(0..=50)));
        if let Ok(fate) = fate {
            self.check_fate(ticket, fate)?;
        }
        self.check_wait(fate.map(drop))
    }

    fn check_wait(&self, result: Result<(), WaitError>) -> Result<(), String> {
        match result {
            Ok(()) | Err(WaitError::TimedOut) => Ok(()),
            Err(error) => Err(format!("a wait ended with {error}: {:?}", self.sender)),
        }
    }

    fn check_fate(&self, ticket: Ticket, fate: Fate) -> Result<(), String> {
        match fate {
            Fate::Released { accepted, .. } if accepted == ticket.len() => Ok(()),
            Fate::Truncated { accepted, .. } if accepted < ticket.len() && !self.reliable => Ok(()),
            fate => Err(format!("{ticket:?} has the fate {fate:?}")),
        }
    }

    /// Asks for all facts.
    fn look(&mut self) -> Result<(), String> {
        let stats = self.sender.stats();
        let _ = (self.sender.interest(), self.sender.held_for());
        let error = self.sender.connection_error();
        if self.reliable && error.is_some() {
            return Err(format!("the connection failed by itself: {error:?}"));
        }
        if let Some(event) = self.sender.next_event() {
            return Err(format!("an unexpected message: {event:?}"));
        }
        if stats.in_flight_bytes > 0 && stats.in_flight_calls == 0 {
            return Err(format!("bytes without calls: {stats:?}"));
        }
        Ok(())
    }

    /// Ends the sender in some way. Returns `true` if it reported that all bytes arrived.
    fn end(self, random: &mut Random, stock: &Stock) -> Result<bool, String> {
        let journal = Arc::clone(&self.sent.journal);
        let reliable = self.reliable && !self.sent.failed;
        let way = random.within(0..=9);
        // Both halves count for themselves; other senders are counted here.
        if way < 8 {
            self.tally.count(&self.sender.stats());
        }
        let drained = match way {
            0 | 1 => {
                let patience = if reliable { PATIENCE } else { random.millis(0..=500) };
                let report = self.sender.close(Some(patience));
                add(&self.tally.quarantined, report.quarantined as u64);
                add(&self.tally.resets, u64::from(report.aborted || report.error.is_some()));
                if reliable && !report.drained {
                    return Err(format!("a patient peer, but {report:?}"));
                }
                report.drained
            }
            2 => {
                let report = self.sender.abort();
                add(&self.tally.quarantined, report.quarantined as u64);
                add(&self.tally.resets, 1);
                false
            }
            3 | 4 => {
                drop(self.sender);
                false
            }
            5 => {
                let panicked = panic::catch_unwind(AssertUnwindSafe(move || {
                    let _in_flight = self.sender;
                    panic::resume_unwind(Box::new("on purpose"));
                }));
                debug_assert!(panicked.is_err());
                false
            }
            6 | 7 => self.resume(random, stock)?,
            _ => self.split(random, stock)?,
        };
        journal.end();
        Ok(drained)
    }

    /// Takes the sender apart, makes a sender from the parts, and closes it.
    fn resume(mut self, random: &mut Random, stock: &Stock) -> Result<bool, String> {
        let patience = if self.reliable { PATIENCE } else { random.millis(0..=500) };
        let drained = self.sender.drain(Some(patience));
        if self.reliable && !self.sent.failed && drained.is_err() {
            return Err(format!("a patient peer, but {drained:?}: {:?}", self.sender));
        }
        let failed = self.sent.failed || self.sender.connection_error().is_some();
        let Ok((socket, ids)) = self.sender.into_parts() else { return Ok(false) };
        if failed {
            return Ok(false);
        }
        // The peer may have ended the connection meanwhile.
        let Ok(mut sender) = self.builder.resume(ids).adopt(socket) else { return Ok(false) };
        let mut payloads = Payloads::new(stock);
        for _ in 0..random.within(0..=5) {
            let send = |bufs: &mut Vec<Payload>| sender.send_vectored(bufs);
            self.sent.send(random, &mut payloads, 1, self.tally, send)?;
        }
        self.tally.count(&sender.stats());
        let report = sender.close(Some(patience));
        add(&self.tally.quarantined, report.quarantined as u64);
        if self.reliable && !self.sent.failed && !report.drained {
            return Err(format!("a patient peer, but {report:?}"));
        }
        Ok(report.drained)
    }

    /// Continues in two halves, dropped in any order.
    fn split(mut self, random: &mut Random, stock: &Stock) -> Result<bool, String> {
        let (mut sending, mut reaping) = self.sender.split();
        let mut reaps = random.branch();
        let reaper = thread::spawn(move || {
            for _ in 0..reaps.within(0..=20) {
                let _ = reaping.reap();
                let _ = reaping.drain(Some(reaps.millis(0..=10)));
                while reaping.next_returned().is_some() {}
            }
            reaping
        });
        let mut payloads = Payloads::new(stock);
        for _ in 0..random.within(0..=20) {
            let waits = random.percent(60);
            let count = random.within(1..=4);
            self.sent.send(random, &mut payloads, count, self.tally, |bufs| match waits {
                true => sending.send_vectored(bufs),
                false => sending.try_send_vectored(bufs),
            })?;
        }
        let sending = (!random.percent(50)).then_some(sending);
        let reaping = reaper.join().map_err(|_| "the half that reaps panicked".to_owned())?;
        self.tally.count(&reaping.stats());
        drop(reaping);
        drop(sending);
        Ok(false)
    }
}

impl Sent {
    /// Makes `count` payloads, sends them by `call`, and records the outcome.
    fn send<B: fmt::Debug>(
        &mut self,
        random: &mut Random,
        payloads: &mut Payloads<'_>,
        count: usize,
        tally: &Tally,
        call: impl FnOnce(&mut Vec<Payload>) -> Result<Ticket, SendError<B>>,
    ) -> Result<(), String> {
        let made = (0..count).filter_map(|_| payloads.make(random, MAX_PAYLOAD));
        let (mut bufs, pieces): (Vec<_>, Vec<_>) = made.unzip();
        if bufs.is_empty() {
            return Ok(());
        }
        let mark = self.journal.promise(&pieces);
        let ticket = match call(&mut bufs) {
            Ok(ticket) => ticket,
            Err(SendError::Truncated { ticket, .. }) => {
                self.failed = true;
                ticket
            }
            Err(SendError::WouldBlock(_)) => {
                self.journal.retract(mark);
                return Ok(());
            }
            Err(SendError::Connection { .. }) => {
                self.failed = true;
                self.journal.retract(mark);
                return Ok(());
            }
            Err(error) => return Err(format!("a send failed: {error}")),
        };
        add(&tally.sends, 1);
        if !bufs.is_empty() {
            return Err("an accepted send left payloads behind".to_owned());
        }
        self.pieces.insert(ticket.sequence(), pieces);
        self.tickets.push(ticket);
        Ok(())
    }

    /// Checks that a returned payload was sent, and is unchanged.
    fn check_returned(&self, returned: &Returned) -> Result<(), String> {
        let bytes: &[u8] = match &returned.payload {
            Payload::Pinned(buf) => buf,
            Payload::Shared(buf) => buf,
            _ => return Ok(()),
        };
        let pieces = self.pieces.get(&returned.ticket.sequence()).into_iter().flatten();
        let mut same = pieces.filter(|piece| piece.len == bytes.len());
        match same.any(|piece| piece.differs(bytes).is_none()) {
            true => Ok(()),
            false => {
                Err(format!("what came back of send {} has changed", returned.ticket.sequence()))
            }
        }
    }
}
