//! The source: connects, drives the rounds, decides when to stop the guest, hands it over.
//!
//! ```text
//!   guest runs     round 0, all pages > applied
//!                  survey, round 1, changed pages > applied
//!                  ...                                    until few enough pages are left
//!   guest stops    device state saved, survey, last round > applied         the downtime
//!                  digests of both ends, if wanted
//!                                        < loaded
//!                  go >                                    from here on never again here
//!                                        < running
//! ```
//!
//! Before `Go` every failure lets the guest run on here. The decision to stop the guest depends on
//! the bandwidth measured up to the destination's `RoundApplied`.

pub mod bandwidth;
pub mod channel;
pub mod connect;
pub mod pump;
pub mod survey;

use std::{
    convert::Infallible,
    io::{self, Write},
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
    bitmap::{Cursor, DirtyBitmap},
    cli::{CommonArgs, SourceArgs},
    failure::{Code, Failure},
    hypervisor::SourceMachine,
    memory::{GuestMemory, mix},
    report::{DowntimeSplit, Progress, Report, Status, Verify, ZeroCopyReport, mib, rate},
    signals::{self, Stop},
    source::{
        bandwidth::Bandwidth,
        channel::{Buffers, Channel, Settings},
        connect::{congestion_control, connect, hang_up, their_failure, welcome},
        pump::{Command, Event, Pump, Share, Shared, VERIFYING, listen},
        survey::{Known, Watch},
    },
    wire::{ANSWERS, Digester, Header, Offer, PAGE, Secret, Stream, Tls},
};

/// The coordinator's period of looks at clocks and flags.
const TICK: Duration = Duration::from_millis(50);
/// The longest wait for a better reason than "connection lost".
const REASON: Duration = Duration::from_millis(300);
/// The time for pumps to notice the end of the migration.
const GRACE: Duration = Duration::from_secs(2);

/// The share of a processor's time that the guest first sleeps to let a migration converge, the
/// step of more, and the most, in percent.
const THROTTLE: (u8, u8, u8) = (20, 10, 99);

/// The guest that moves.
pub struct Guest {
    pub memory: Arc<GuestMemory>,
    pub bitmap: Arc<DirtyBitmap>,
    pub machine: Box<dyn SourceMachine>,
    pub watch: Watch,
    /// `true` for a machine whose device state only another machine can load.
    pub is_qemu: bool,
}

impl Guest {
    /// The guest of a hypervisor outside this process.
    pub fn of_machine(memory: GuestMemory, machine: Box<dyn SourceMachine>, watch: Watch) -> Self {
        let bitmap = Arc::new(DirtyBitmap::clean(memory.layout().span() / PAGE));
        Self { memory: Arc::new(memory), bitmap, machine, watch, is_qemu: true }
    }
}

/// The source's task.
#[derive(Debug)]
pub struct Plan<'a> {
    pub targets: &'a [SocketAddr],
    pub args: &'a SourceArgs,
    pub common: &'a CommonArgs,
    pub tls: Option<&'a Tls>,
    pub stop: &'a Stop,
    pub progress: &'a Progress,
    /// Take the digests at the source: wrong, and the control of the tests.
    pub digests_at_source: bool,
}

/// Migrates the guest. Returns a report even after a failure.
pub fn migrate(plan: &Plan<'_>, mut guest: Guest) -> (Report, Result<(), Failure>) {
    let started = Instant::now();
    let mut report = Report::default();
    report.ram.total = guest.memory.len();
    report.ram.remaining = report.ram.total;
    report.ram.finish(Duration::ZERO);
    let channels = plan.args.channels.into();
    let mut outcome = Buffers::new(channels, plan.tls.is_some()).and_then(|buffers| {
        let outcome =
            Migration::start(plan, &mut guest, &buffers, started).and_then(|mut migration| {
                let outcome = migration.run(&mut report);
                report.ram.transferred = migration.sent();
                report.ram.multifd_bytes = report.ram.transferred;
                let zerocopy = migration.finish(outcome.as_ref().err());
                report.ram.dirty_sync_missed_zero_copy = zerocopy.missed();
                report.zerocopy = Some(zerocopy);
                outcome
            });
        // The time for the proof of sends left by an aborted channel.
        let idle = pinbuf::reaper::wait_idle(Some(GRACE));
        let audit = buffers.audit();
        report.pool = Some(audit);
        if outcome.is_ok() && !(idle && audit.is_accounted()) {
            let why = format!(
                "buffers are unaccounted for at the end: {audit:?}, senders without an end: {}",
                pinbuf::reaper::stats().owned,
            );
            return Err(Failure::new(Code::Unaccounted, why));
        }
        outcome
    });
    if let Err(failure) = &mut outcome
        && failure.code != Code::Undecided
        && failure.code != Code::Unaccounted
        && let Err(more) = guest.machine.resume()
    {
        // Only the settings of an unstopped guest, or the guest itself.
        failure.message += &format!("; and the guest could not be resumed here: {more}");
    }
    plan.progress.done();
    match &outcome {
        Ok(()) => report.status = Status::Completed,
        Err(failure) => {
            report.error_desc = Some(failure.message.clone());
            report.total_time = millis(started.elapsed());
            if signals::interrupted() && failure.code != Code::Undecided {
                report.status = Status::Cancelled;
            }
        }
    }
    (report, outcome)
}

/// A migration with open channels.
struct Migration<'a> {
    plan: &'a Plan<'a>,
    machine: &'a mut dyn SourceMachine,
    watch: &'a mut Watch,
    offer: Offer,
    shared: Arc<Shared>,
    /// The sockets of all connections, to end them.
    sockets: Vec<TcpStream>,
    commands: Vec<Sender<Command>>,
    pumps: Vec<JoinHandle<ZeroCopyReport>>,
    /// Disconnected when the last pump has ended.
    pumps_end: Receiver<Infallible>,
    listener: JoinHandle<()>,
    events: Receiver<Event>,
    started: Instant,
    deadline: Option<Instant>,
    /// The destination's number of frames, and the time of the latest.
    heard: (u64, Instant),
    /// An answer that came before the end of the last round.
    early: Option<Event>,
    bandwidth: Bandwidth,
    /// The times of the latest survey, and of the machine's latest stop.
    survey: Duration,
    steps: Duration,
    /// The next share of its time that the guest sleeps, in percent, if the machine can.
    throttle: Option<u8>,
    /// The guest has been given away.
    gone: bool,
}

impl<'a> Migration<'a> {
    /// Opens all connections and agrees with the destination on the layout.
    fn start(
        plan: &'a Plan<'a>,
        guest: &'a mut Guest,
        buffers: &Buffers,
        started: Instant,
    ) -> Result<Self, Failure> {
        let patience = plan.common.stall_timeout;
        let channels = plan.args.channels;
        let settings = Settings {
            tls: plan.tls,
            zerocopy: plan.args.zerocopy,
            threshold: plan.args.threshold.map(|bytes| bytes as usize),
            patience,
        };
        let offer = Offer {
            digest: plan.args.digest,
            page_digests: guest.watch.needs_digests(),
            verify: plan.args.verify || !guest.is_qemu,
            qemu: guest.is_qemu,
            secret: Secret::draw().map_err(|e| Failure::io("drawing a secret", &e))?,
            layout: guest.memory.layout().clone(),
        };
        let known = || {
            let digester = Digester::new(offer.digest, offer.secret.clone());
            Known::new(digester, offer.layout.span() / PAGE)
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let session = mix(now.as_nanos() as u64 ^ mix(u64::from(std::process::id())));
        let (events_in, events) = mpsc::channel();
        let shared = Arc::new(Shared {
            bitmap: Arc::clone(&guest.bitmap),
            cursor: Cursor::default(),
            memory: Arc::clone(&guest.memory),
            known: (!matches!(guest.watch, Watch::Marks)).then(known),
            digests_at_source: plan.digests_at_source,
            rate_limit: plan.args.max_bandwidth.map(|rate| rate / u64::from(channels)),
            abandoned: OnceLock::new(),
            round: AtomicU32::new(0),
            sent: AtomicU64::new(0),
            heard: AtomicU64::new(0),
        });
        let encoded = offer.encode();
        let hello = |channel, bytes: &[u8]| Header::Hello {
            session,
            abilities: offer.abilities(),
            channel,
            channels,
            bytes: bytes.len() as u64,
        };
        let (mut sockets, mut open) = (Vec::new(), Vec::new());
        let mut connect = || {
            let stream = connect(plan.targets, patience)?;
            let socket = stream.try_clone().map_err(|e| Failure::io("a connection", &e))?;
            sockets.push(socket);
            Ok::<_, Failure>(stream)
        };
        for number in 0..channels {
            let mut channel = Channel::open(connect()?, buffers, settings)?;
            let offer = if number == 0 { &encoded[..] } else { &[] };
            // A failure shows at the read of the answer, with the destination's reason.
            let _ = channel.send(hello(number, offer)).and_then(|()| channel.send_bytes(offer));
            open.push(channel);
        }
        let mut answers = Stream::connect(connect()?, plan.tls, patience)
            .map_err(|e| Failure::io("TLS handshake", &e))?;
        let _ = answers.write_all(&hello(ANSWERS, &[]).encode()).and_then(|()| answers.flush());
        // A refusing destination tells its reason on one connection and closes all.
        let refusals = open.iter_mut().filter_map(|channel| welcome(channel, session).err());
        let refusals: Vec<_> = refusals.chain(welcome(&mut answers, session).err()).collect();
        let reason = |one: Failure, other| one.explaining(Some(other));
        if let Some(failure) = refusals.into_iter().reduce(reason) {
            return Err(failure);
        }
        // From here on the coordinator has its own clock.
        for socket in &sockets {
            let _ = socket.set_read_timeout(None);
        }
        let (mut commands, mut threads) = (Vec::new(), Vec::new());
        let (lives, pumps_end) = mpsc::channel();
        for (number, channel) in open.into_iter().enumerate() {
            let pump = Pump::new(number, channel, Arc::clone(&shared), events_in.clone());
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
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name("listener".into());
            thread.spawn(move || listen(answers, &shared, &events_in)).map_err(no_thread)?
        };
        Ok(Self {
            plan,
            machine: &mut *guest.machine,
            watch: &mut guest.watch,
            offer,
            shared,
            sockets,
            commands,
            pumps: threads,
            pumps_end,
            listener,
            events,
            started,
            deadline: Some(started + plan.common.timeout),
            heard: (0, Instant::now()),
            early: None,
            bandwidth: Bandwidth::default(),
            survey: Duration::ZERO,
            steps: Duration::ZERO,
            throttle: Some(THROTTLE.0),
            gone: false,
        })
    }

    /// Pre-copy, the last round, the hand-over.
    fn run(&mut self, report: &mut Report) -> Result<(), Failure> {
        let setup = self.started.elapsed();
        report.setup_time = millis(setup);
        report.congestion_control = self.sockets.first().and_then(congestion_control);
        self.plan.progress.line(&format!(
            "connected over {} channels; {} of memory",
            self.commands.len(),
            mib(report.ram.total),
        ));
        let Shared { memory, bitmap, .. } = &*self.shared;
        self.watch.begin(memory, bitmap).map_err(no_survey)?;
        loop {
            self.precopy(report)?;
            report.ram.precopy_bytes = self.sent();
            match self.hand_over(Instant::now(), setup, report) {
                Err(failure) if self.gone => return Err(undecided(&failure)),
                Err(failure) if self.is_early(&failure, report) => {
                    self.plan.progress.line(&format!("the guest runs on: {failure}"));
                    self.machine.resume()?;
                }
                outcome => return outcome,
            }
        }
    }

    /// Returns `true` if the stop came too early, and more rounds may help.
    fn is_early(&self, failure: &Failure, report: &Report) -> bool {
        failure.code == Code::NotConverged
            && report.ram.dirty_sync_count < u64::from(self.plan.args.max_rounds)
            && self.check_time().is_ok()
    }

    /// From the stop of the guest to its run at the destination.
    fn hand_over(
        &mut self,
        stopped: Instant,
        setup: Duration,
        report: &mut Report,
    ) -> Result<(), Failure> {
        self.machine.stop()?;
        let device: Arc<[u8]> = self.machine.save()?.into();
        self.steps = stopped.elapsed();
        let stop_us = micros(self.steps);
        // Only now: devices may write memory while they save.
        self.survey(report)?;
        self.refuse_late(stopped, device.len(), report)?;
        let round = report.ram.dirty_sync_count as u32;
        let survey_us = micros(self.survey);
        let split = self.round(round, Some(Arc::clone(&device)), report)?;
        report.ram.remaining = 0;
        report.ram.downtime_bytes = self.sent() - report.ram.precopy_bytes;
        report.ram.transferred = self.sent();
        report.ram.finish(self.started.elapsed() - setup);
        let applied = Instant::now();
        if !self.offer.qemu {
            // Nothing waits for the make-believe guest: the downtime is over.
            report.downtime = Some(millis(stopped.elapsed()));
            report.total_time = millis(self.started.elapsed());
            self.deadline = None;
        }
        self.shared.round.store(VERIFYING, Ordering::Relaxed);
        if self.offer.verify {
            self.verify(&device, report)?;
        }
        self.expect(Header::Loaded)?;
        let load_us = micros(applied.elapsed());
        self.check()?;
        self.gone = true;
        // The destination has the guest: neither a signal nor the time limit is a reason to leave.
        self.deadline = None;
        let _ = self.commands[0].send(Command::Tell(Header::Go));
        self.expect(Header::Running)?;
        if self.offer.qemu {
            report.downtime = Some(millis(stopped.elapsed()));
            report.total_time = millis(self.started.elapsed());
        }
        let start_us = micros(applied.elapsed()) - load_us;
        // Of the make-believe guest both are behind the downtime.
        let (load_us, start_us) = if self.offer.qemu { (load_us, start_us) } else { (0, 0) };
        let split = DowntimeSplit { stop_us, survey_us, load_us, start_us, ..split };
        report.downtime_split = Some(split);
        self.plan.progress.line(&format!(
            "last round: {} and the device state; {} ms of downtime",
            mib(report.ram.downtime_bytes),
            report.downtime.unwrap_or_default(),
        ));
        let _ = self.commands[0].send(Command::Tell(Header::Goodbye { code: 0, bytes: 0 }));
        Ok(())
    }

    /// Rounds with the guest running, until the remaining pages fit into the downtime limit, or
    /// none is left: a further round could not make them fewer.
    fn precopy(&mut self, report: &mut Report) -> Result<(), Failure> {
        let args = self.plan.args;
        let mut before = u64::MAX;
        while report.ram.dirty_sync_count < u64::from(args.max_rounds) {
            let round = report.ram.dirty_sync_count as u32;
            let (sent, begun) = (self.sent(), Instant::now());
            self.round(round, None, report)?;
            let (bytes, took) = (self.sent() - sent, begun.elapsed());
            self.bandwidth.measured(bytes, took);
            let dirty = self.survey(report)?;
            report.ram.dirty_pages_rate = (dirty as f64 / begun.elapsed().as_secs_f64()) as u64;
            let rest = self.expected_downtime(args.device_state);
            report.expected_downtime = Some(millis(rest));
            self.plan.progress.line(&format!(
                "round {round}: {} in {:.1} ms, {}; changed meanwhile: {}, {} ms of downtime",
                mib(bytes),
                took.as_secs_f64() * 1e3,
                rate(bytes, took),
                mib(report.ram.remaining),
                millis(rest),
            ));
            if dirty == 0 || rest <= Duration::from_millis(args.downtime_limit) {
                return Ok(());
            }
            if args.auto_converge && dirty > before / 2 {
                self.slow_down()?;
            }
            before = dirty;
        }
        Err(self
            .not_converged(format_args!("after {} rounds (--max-rounds)", args.max_rounds), report))
    }

    /// Slows the guest down, more than the last time.
    fn slow_down(&mut self) -> Result<(), Failure> {
        let Some(percent) = self.throttle else { return Ok(()) };
        let (_, step, most) = THROTTLE;
        self.throttle = match self.machine.throttle(percent)? {
            true => {
                self.plan.progress.line(&format!("the guest sleeps {percent} % of its time"));
                Some(most.min(percent + step))
            }
            false => {
                self.plan.progress.line("this machine has no means to slow its guest down");
                None
            }
        };
        Ok(())
    }

    /// Looks for changed pages, and returns their number.
    fn survey(&mut self, report: &mut Report) -> Result<u64, Failure> {
        let begun = Instant::now();
        let Shared { memory, bitmap, known, .. } = &*self.shared;
        self.watch.survey(memory, bitmap, known.as_ref()).map_err(no_survey)?;
        let dirty = bitmap.count();
        report.ram.remaining = dirty * PAGE as u64;
        self.survey = begun.elapsed();
        Ok(dirty)
    }

    /// The steps of the machine, the survey of the stopped guest, and the rest of its pages.
    fn expected_downtime(&self, device_state: u64) -> Duration {
        let rest = self.shared.bitmap.count() * PAGE as u64 + device_state;
        self.steps + self.survey + self.bandwidth.time_for(rest)
    }

    /// Lets a guest go on that has changed more than expected before its stop.
    fn refuse_late(
        &self,
        stopped: Instant,
        device_state: usize,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let rest = report.ram.remaining + device_state as u64;
        let expected = stopped.elapsed() + self.bandwidth.time_for(rest);
        let limit = Duration::from_millis(self.plan.args.downtime_limit);
        if self.offer.qemu && report.ram.remaining > 0 && expected > limit {
            report.expected_downtime = Some(millis(expected));
            return Err(self.not_converged(format_args!("at the stop of the guest"), report));
        }
        Ok(())
    }

    fn not_converged(&self, when: std::fmt::Arguments<'_>, report: &Report) -> Failure {
        Failure::new(
            Code::NotConverged,
            format!(
                "not converged {when}: {} are still to be sent, which takes {} ms of downtime; \
                 allow more (now --downtime-limit {}), or slow the guest down",
                mib(report.ram.remaining),
                report.expected_downtime.unwrap_or_default(),
                self.plan.args.downtime_limit,
            ),
        )
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
        self.shared.cursor.rewind();
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
                    report.ram.again += if round > 0 { normal + duplicate } else { 0 };
                    split.scan_us = split.scan_us.max(micros(scan));
                    split.send_us = micros(begun.elapsed());
                }
                Event::Heard(Header::RoundApplied { round: n }, _) if n == round => applied = true,
                // The next answer overtakes a pump's report of its last bytes.
                event @ Event::Heard(..) if applied && is_last => self.early = Some(event),
                event => return Err(unexpected(&event)),
            }
        }
        split.end_us = micros(begun.elapsed()) - split.send_us;
        report.ram.dirty_sync_count += 1;
        Ok(split)
    }

    /// Compares digests with the destination.
    fn verify(&mut self, device: &[u8], report: &mut Report) -> Result<(), Failure> {
        let digester = Digester::new(self.offer.digest, self.offer.secret.clone());
        let memory = self.shared.memory.digest(&digester);
        let memory = memory.map_err(|e| Failure::io("digest of the memory", &e))?;
        let ours = (memory, xxh3_128(device));
        self.heard.1 = Instant::now();
        let header = Header::Digest { memory, device: ours.1 };
        let _ = self.commands[0].send(Command::Tell(header));
        let theirs = match self.answer()? {
            Event::Heard(Header::Digest { memory, device }, _) => (memory, device),
            event => return Err(unexpected(&event)),
        };
        let verify = report.verify.insert(Verify::new(ours, theirs));
        match verify.is_match() {
            true => Ok(()),
            false => Err(Failure::new(
                Code::Mismatch,
                "the destination's memory is not the source's: do not start the guest there",
            )),
        }
    }

    /// Waits for this answer.
    fn expect(&mut self, answer: Header) -> Result<(), Failure> {
        match self.answer()? {
            Event::Heard(header, _) if header == answer => Ok(()),
            event => Err(unexpected(&event)),
        }
    }

    /// The destination's answer behind the last round.
    fn answer(&mut self) -> Result<Event, Failure> {
        self.early.take().map_or_else(|| self.next(None), Ok)
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
        if !self.gone {
            self.plan.stop.check()?;
        }
        self.check_time()?;
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

    fn check_time(&self) -> Result<(), Failure> {
        if self.deadline.is_some_and(|deadline| Instant::now() > deadline) {
            let seconds = self.plan.common.timeout.as_secs_f64();
            let why = format!("not converged within {seconds} s (--timeout)");
            return Err(Failure::new(Code::NotConverged, why));
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
            hang_up(&self.sockets);
        }
        let mut total = ZeroCopyReport::default();
        for pump in self.pumps {
            if let Ok(counts) = pump.join() {
                total.add(&counts);
            }
        }
        // Ends the listener, unless the destination's goodbye has.
        hang_up(&self.sockets);
        let _ = self.listener.join();
        total
    }

    fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

/// The failure of a source that has given the guest away and does not know where it runs.
fn undecided(cause: &Failure) -> Failure {
    Failure::new(
        Code::Undecided,
        format!(
            "undecided: the guest was handed over, but the destination has not said that it runs \
             there ({cause}). Do not resume the guest here yet. On the destination, ask its QEMU \
             (QMP: query-status). `running`: the guest is there; quit the QEMU here. Anything else: \
             quit the QEMU there first, then resume the guest here (QMP: cont)"
        ),
    )
}

fn unexpected(event: &Event) -> Failure {
    Failure::new(Code::Io, format!("protocol error: unexpected {event:?} from the destination"))
}

fn no_survey(error: io::Error) -> Failure {
    Failure::io("looking for changed pages", &error)
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
