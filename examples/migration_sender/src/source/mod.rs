//! The source: connects, drives the rounds, decides when to stop the guest, verifies.
//!
//! ```text
//!   dirtier runs   round 0, all pages > applied
//!                  round 1, pages dirtied meanwhile > applied
//!                  ...                                    until few enough pages are left
//!   dirtier stops  last round > device state > applied              this is the downtime
//!                  digests of both ends
//! ```
//!
//! The decision to stop the guest depends on the bandwidth measured up to the destination's
//! `RoundApplied`.

pub mod bandwidth;
pub mod channel;
pub mod connect;
pub mod pump;

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use xxhash_rust::xxh3::xxh3_128;

use crate::{
    bitmap::DirtyBitmap,
    cli::{CommonArgs, SourceArgs},
    failure::{Code, Failure},
    hypervisor::{dirtier::Dirtier, guest},
    memory::{GuestMemory, mix},
    protocol::{Header, Layout, PAGE},
    report::{DowntimeSplit, Progress, Report, Status, Verify, ZeroCopyReport, mib, rate},
    signals::{self, Stop},
    source::bandwidth::Bandwidth,
    source::channel::{Buffers, Channel, Settings},
    source::connect::{congestion_control, connect, hang_up, their_failure, welcome},
    source::pump::{Command, Event, Pump, Share, Shared, VERIFYING, listen},
};

/// The coordinator's period of looks at clocks and flags.
const TICK: Duration = Duration::from_millis(50);
/// The longest wait for a better reason than "connection lost".
const REASON: Duration = Duration::from_millis(300);
/// The time for pumps to notice the end of the migration.
const GRACE: Duration = Duration::from_secs(2);

/// The source's task.
#[derive(Debug)]
pub struct Plan<'a> {
    pub targets: &'a [SocketAddr],
    pub args: &'a SourceArgs,
    pub common: &'a CommonArgs,
    pub stop: &'a Stop,
    pub progress: &'a Progress,
}

/// Migrates `memory`. Returns a report even after a failure.
pub fn migrate(plan: &Plan<'_>, memory: GuestMemory) -> (Report, Result<(), Failure>) {
    let started = Instant::now();
    let mut report = Report::default();
    report.ram.total = memory.len() as u64;
    report.ram.remaining = report.ram.total;
    report.ram.finish(Duration::ZERO);
    let buffers = match Buffers::new(plan.args.channels.into()) {
        Ok(buffers) => buffers,
        Err(failure) => return (report, Err(failure)),
    };
    let mut outcome =
        Migration::start(plan, memory, &buffers, started).and_then(|mut migration| {
            let outcome = migration.run(&mut report);
            report.ram.transferred = migration.sent();
            report.ram.multifd_bytes = report.ram.transferred;
            let zerocopy = migration.finish(outcome.as_ref().err());
            report.ram.dirty_sync_missed_zero_copy = zerocopy.missed();
            report.zerocopy = Some(zerocopy);
            outcome
        });
    plan.progress.done();
    // The time for the proof of sends left by an aborted channel.
    let idle = pinbuf::reaper::wait_idle(Some(GRACE));
    let audit = buffers.audit();
    report.pool = Some(audit);
    if outcome.is_ok() && !(idle && audit.is_accounted()) {
        let why = format!(
            "buffers are unaccounted for at the end: {audit:?}, senders without an end: {}",
            pinbuf::reaper::stats().owned,
        );
        outcome = Err(Failure::new(Code::Unaccounted, why));
    }
    match &outcome {
        Ok(()) => report.status = Status::Completed,
        Err(failure) => {
            report.error_desc = Some(failure.message.clone());
            report.total_time = millis(started.elapsed());
            if signals::interrupted() {
                report.status = Status::Cancelled;
            }
        }
    }
    (report, outcome)
}

/// A migration with open channels.
struct Migration<'a> {
    plan: &'a Plan<'a>,
    shared: Arc<Shared>,
    streams: Vec<Arc<TcpStream>>,
    commands: Vec<Sender<Command>>,
    pumps: Vec<JoinHandle<ZeroCopyReport>>,
    /// Every thread of a pump holds the opposite end.
    pumps_end: Receiver<Infallible>,
    listener: JoinHandle<()>,
    events: Receiver<Event>,
    started: Instant,
    deadline: Option<Instant>,
    /// The number of frames from the destination, and the time of the last.
    heard: (u64, Instant),
    /// The destination's digest, if it comes before the last pump's report of the last round.
    early: Option<Event>,
}

impl<'a> Migration<'a> {
    /// Opens all channels and agrees with the destination on the layout.
    fn start(
        plan: &'a Plan<'a>,
        memory: GuestMemory,
        buffers: &Buffers,
        started: Instant,
    ) -> Result<Self, Failure> {
        let channels = usize::from(plan.args.channels);
        let layout = Layout { memory_len: memory.len(), channels };
        let settings = Settings {
            zerocopy: plan.args.zerocopy,
            threshold: plan.args.threshold.map(|bytes| bytes as usize),
            patience: plan.common.stall_timeout,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let session = mix(now.as_nanos() as u64 ^ mix(u64::from(std::process::id())));
        let (events_in, events) = mpsc::channel();
        let shared = Arc::new(Shared {
            bitmap: Arc::new(DirtyBitmap::all_dirty(memory.pages())),
            memory: Arc::new(memory),
            layout,
            rate_limit: plan.args.rate_limit.map(|rate| rate / channels as u64),
            abandoned: OnceLock::new(),
            round: AtomicU32::new(0),
            sent: AtomicU64::new(0),
            heard: AtomicU64::new(0),
        });
        let mut streams = Vec::new();
        let mut pumps = Vec::new();
        for number in 0..plan.args.channels {
            let stream = Arc::new(connect(plan.targets, plan.common.stall_timeout)?);
            let mut channel = Channel::open(Arc::clone(&stream), buffers, settings)?;
            let hello = Header::Hello {
                session,
                memory_len: layout.memory_len as u64,
                channel: number,
                channels: plan.args.channels,
            };
            // A failure shows at the read of the answer, with the destination's reason.
            let _ = channel.send(hello);
            streams.push(stream);
            pumps.push(Pump::new(
                usize::from(number),
                channel,
                Arc::clone(&shared),
                events_in.clone(),
            ));
        }
        // A refusing destination tells its reason on one channel and closes all.
        let refusals = streams.iter().filter_map(|stream| welcome(stream, session).err());
        if let Some(failure) = refusals.reduce(|one, other| one.explaining(Some(other))) {
            return Err(failure);
        }
        // From here on the coordinator has its own clock.
        let _ = streams[0].set_read_timeout(None);
        let (mut commands, mut threads) = (Vec::new(), Vec::new());
        let (lives, pumps_end) = mpsc::channel();
        for pump in pumps {
            let (command, receiver) = mpsc::channel();
            commands.push(command);
            let lives = lives.clone();
            let thread = thread::Builder::new().name("pump".into());
            let run = move || {
                let _lives = lives;
                pump.run(&receiver)
            };
            threads.push(thread.spawn(run).map_err(no_thread)?);
        }
        let listener = {
            let (stream, shared) = (Arc::clone(&streams[0]), Arc::clone(&shared));
            let thread = thread::Builder::new().name("listener".into());
            thread.spawn(move || listen(&stream, &shared, &events_in)).map_err(no_thread)?
        };
        Ok(Self {
            plan,
            shared,
            streams,
            commands,
            pumps: threads,
            pumps_end,
            listener,
            events,
            started,
            deadline: Some(started + plan.common.timeout),
            heard: (0, Instant::now()),
            early: None,
        })
    }

    /// Pre-copy, the last round, verification.
    fn run(&mut self, report: &mut Report) -> Result<(), Failure> {
        let setup = self.started.elapsed();
        report.setup_time = millis(setup);
        report.congestion_control = self.streams.first().and_then(|s| congestion_control(s));
        self.plan.progress.line(&format!(
            "connected over {} channels; {} of memory",
            self.streams.len(),
            mib(report.ram.total),
        ));
        let args = self.plan.args;
        let memory = Arc::clone(&self.shared.memory);
        let dirtier = Dirtier::start(guest::dirtier(args), memory, Arc::clone(&self.shared.bitmap))
            .map_err(|e| Failure::io("starting the dirtier", &e))?;
        self.precopy(report)?;
        report.ram.precopy_bytes = self.sent();

        let stopped = Instant::now();
        dirtier.stop();
        let device = guest::device_state(args);
        let stop_us = micros(stopped.elapsed());
        let round = report.ram.dirty_sync_count as u32;
        let split = self.round(round, Some(Arc::clone(&device)), report)?;
        report.downtime = Some(millis(stopped.elapsed()));
        report.downtime_split = Some(DowntimeSplit { stop_us, ..split });
        report.total_time = millis(self.started.elapsed());
        report.ram.remaining = 0;
        report.ram.downtime_bytes = self.sent() - report.ram.precopy_bytes;
        report.ram.transferred = self.sent();
        report.ram.finish(self.started.elapsed() - setup);
        self.plan.progress.line(&format!(
            "last round: {} and the device state in {:.1} ms of downtime; verifying",
            mib(report.ram.downtime_bytes),
            stopped.elapsed().as_secs_f64() * 1e3,
        ));
        self.verify(&device, report)
    }

    /// Rounds with the guest running, until the remaining pages fit into the downtime limit, or
    /// none is left: a further round could not make them fewer.
    fn precopy(&mut self, report: &mut Report) -> Result<(), Failure> {
        let args = self.plan.args;
        let mut bandwidth = Bandwidth::default();
        for round in 0..args.max_rounds {
            let (before, begun) = (self.sent(), Instant::now());
            self.round(round, None, report)?;
            let (bytes, took) = (self.sent() - before, begun.elapsed());
            bandwidth.measured(bytes, took);
            let dirty = self.shared.bitmap.count();
            report.ram.dirty_pages_rate = (dirty as f64 / took.as_secs_f64()) as u64;
            report.ram.remaining = dirty * PAGE as u64;
            let rest = bandwidth.time_for(report.ram.remaining + args.device_state);
            report.expected_downtime = Some(millis(rest));
            self.plan.progress.line(&format!(
                "round {round}: {} in {:.1} ms, {}; dirtied meanwhile: {}",
                mib(bytes),
                took.as_secs_f64() * 1e3,
                rate(bytes, took),
                mib(report.ram.remaining),
            ));
            if dirty == 0 || rest <= Duration::from_millis(args.downtime_limit) {
                return Ok(());
            }
        }
        Err(Failure::new(
            Code::NotConverged,
            format!(
                "not converged after {} rounds (--max-rounds): {} are still dirty, which takes {} \
                 ms of downtime; allow more (--downtime-limit {}), or slow the guest down",
                args.max_rounds,
                mib(report.ram.remaining),
                report.expected_downtime.unwrap_or_default(),
                args.downtime_limit,
            ),
        ))
    }

    /// Sends a round over all channels and waits until the destination has applied it.
    fn round(
        &mut self,
        round: u32,
        last: Option<Arc<[u8]>>,
        report: &mut Report,
    ) -> Result<DowntimeSplit, Failure> {
        self.shared.round.store(round, Ordering::Relaxed);
        // The estimate of the previous round: a new count would be a part of the downtime.
        self.plan.progress.round(round, report.ram.remaining);
        let before = self.sent();
        let is_last = last.is_some();
        let begun = Instant::now();
        for command in &self.commands {
            // A dead pump has left its reason among the events.
            let _ = command.send(Command::Round { round, last: last.clone() });
        }
        let (mut sent, mut applied) = (0, false);
        let mut split = DowntimeSplit::default();
        while sent < self.commands.len() || !applied {
            match self.next(Some(before))? {
                Event::Sent(Share { normal, normal_bytes, duplicate, scan }) => {
                    sent += 1;
                    report.ram.normal += normal;
                    report.ram.duplicate += duplicate;
                    report.ram.normal_bytes += normal_bytes;
                    split.scan_us = split.scan_us.max(micros(scan));
                    split.send_us = micros(begun.elapsed());
                }
                Event::Heard(Header::RoundApplied { round: n }, _) if n == round => applied = true,
                event @ Event::Heard(Header::Digest { .. }, _) if applied && is_last => {
                    self.early = Some(event);
                }
                event => return Err(unexpected(&event)),
            }
        }
        split.end_us = micros(begun.elapsed()) - split.send_us;
        report.ram.dirty_sync_count += 1;
        Ok(split)
    }

    /// Compares digests with the destination and waits for its last message.
    fn verify(&mut self, device: &[u8], report: &mut Report) -> Result<(), Failure> {
        // The time limit is for the migration; an end that writes a file still sends signs of life.
        self.deadline = None;
        self.shared.round.store(VERIFYING, Ordering::Relaxed);
        let memory =
            self.shared.memory.digest().map_err(|e| Failure::io("digest of the memory", &e))?;
        let ours = (memory, xxh3_128(device));
        self.heard.1 = Instant::now();
        let _ = self.commands[0].send(Command::Last(Header::Digest { memory, device: ours.1 }));
        let theirs = match self.early.take().map_or_else(|| self.next(None), Ok)? {
            Event::Heard(Header::Digest { memory, device }, _) => (memory, device),
            event => return Err(unexpected(&event)),
        };
        let verify = report.verify.insert(Verify::new(ours, theirs));
        if !verify.is_match() {
            return Err(Failure::new(
                Code::Mismatch,
                "the destination's memory is not the source's: do not start the guest there",
            ));
        }
        match self.next(None)? {
            Event::Heard(Header::Goodbye { code: 0, .. }, _) => Ok(()),
            event => Err(unexpected(&event)),
        }
    }

    /// The next event other than a failure. `before` is the number of sent bytes at the start of
    /// the round.
    fn next(&mut self, before: Option<u64>) -> Result<Event, Failure> {
        loop {
            self.check()?;
            match self.events.recv_timeout(TICK) {
                Ok(Event::Failed(failure)) => return Err(self.reason_behind(failure)),
                Ok(Event::Heard(Header::Goodbye { code: code @ 1.., .. }, message)) => {
                    return Err(their_failure(code, &message));
                }
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Timeout) => {
                    if self.pumps.iter().any(JoinHandle::is_finished) {
                        let gone = Failure::peer_gone("the thread of a channel is gone");
                        return Err(self.reason_behind(gone));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::peer_gone("all channels are closed"));
                }
            }
            if let Some(before) = before {
                self.plan.progress.at(self.sent() - before);
            }
        }
    }

    /// An earlier message of the destination may explain a lost connection.
    fn reason_behind(&self, mut failure: Failure) -> Failure {
        let until = Instant::now() + REASON;
        while failure.hearsay {
            let rest = until.saturating_duration_since(Instant::now());
            let other = match self.events.recv_timeout(rest) {
                Ok(Event::Failed(other)) => other,
                Ok(Event::Heard(Header::Goodbye { code: code @ 1.., .. }, message)) => {
                    their_failure(code, &message)
                }
                Ok(_) => continue,
                Err(_) => break,
            };
            failure = failure.explaining(Some(other));
        }
        failure
    }

    fn check(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        self.plan.stop.check()?;
        if self.deadline.is_some_and(|deadline| now > deadline) {
            let seconds = self.plan.common.timeout.as_secs_f64();
            let why = format!("not converged within {seconds} s (--timeout)");
            return Err(Failure::new(Code::NotConverged, why));
        }
        // Bytes accepted by socket buffers are no sign of life; a message every second is.
        let heard = self.shared.heard.load(Ordering::Relaxed);
        if heard != self.heard.0 {
            self.heard = (heard, now);
        }
        let stall = self.plan.common.stall_timeout;
        if now.duration_since(self.heard.1) > stall {
            return Err(Failure::new(
                Code::Io,
                format!(
                    "the destination has been silent for {} s {}: is it stopped, or the network \
                     down?",
                    stall.as_secs_f64(),
                    self.shared.phase(),
                ),
            ));
        }
        Ok(())
    }

    /// Ends all threads, closes all channels and adds up their counts.
    fn finish(self, failure: Option<&Failure>) -> ZeroCopyReport {
        if let Some(failure) = failure {
            let _ = self.shared.abandoned.set(failure.clone());
        }
        drop(self.commands);
        if failure.is_some() {
            // No message comes: the wait ends with the last pump, or at the timeout.
            let _ = self.pumps_end.recv_timeout(GRACE);
            // Wakes a pump with a stalled destination; its channel fails and is closed.
            hang_up(&self.streams);
        }
        let mut total = ZeroCopyReport::default();
        for pump in self.pumps {
            if let Ok(counts) = pump.join() {
                total.add(&counts);
            }
        }
        // Ends the listener, unless the destination's goodbye has.
        hang_up(&self.streams);
        let _ = self.listener.join();
        total
    }

    fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

fn unexpected(event: &Event) -> Failure {
    Failure::new(Code::Io, format!("protocol error: unexpected {event:?} from the destination"))
}

fn no_thread(error: io::Error) -> Failure {
    Failure::io("starting a thread", &error)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
