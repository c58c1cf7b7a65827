//! The destination: accepts the channels of a migration, applies their frames, verifies.
//!
//! One thread per channel reads straight into the channel's [`View`] of the memory. The coordinator
//! collects the end marks, tells the source of each applied round, and after the last round owns
//! the whole memory again. Every byte from the wire is checked before use.

pub mod accept;
pub mod output;

use std::{
    io, mem,
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        atomic::{AtomicU32, AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use xxhash_rust::xxh3::xxh3_128;

use crate::{
    destination::{
        accept::{Answers, Channels, lost, protocol, refuse},
        output::OutputFile,
    },
    failure::{Code, Failure},
    hypervisor::DestinationMachine,
    memory::{GuestMemory, View},
    report::{Progress, Report, Status, Verify, mib},
    signals::{self, Stop},
    source::pump::KEEP_ALIVE,
    wire::{Digester, Header, Layout, ProtocolError, Run, Stream, Tls, decode_runs, read_exact},
};

/// The coordinator's period of looks at clocks and flags.
const TICK: Duration = Duration::from_millis(50);

/// The destination's task.
#[derive(Debug)]
pub struct Config<'a> {
    pub max_memory: u64,
    pub timeout: Duration,
    pub stall_timeout: Duration,
    pub tls: Option<&'a Tls>,
    pub stop: &'a Stop,
    pub progress: &'a Progress,
}

/// The place for the guest.
pub enum Host {
    /// Memory of this process, written to the file at the end.
    Store(Option<OutputFile>),
    /// A machine with its memory.
    Machine(GuestMemory, Box<dyn DestinationMachine>),
}

impl Host {
    /// The memory for a guest, full of zeros.
    fn memory(
        self,
        layout: &Layout,
        qemu: bool,
        max: u64,
    ) -> Result<(GuestMemory, Place), Failure> {
        let refused = |why: String| Failure::new(Code::Io, why);
        match self {
            Self::Store(_) if qemu => {
                Err(refused("the source moves a QEMU: give this end one too (--qmp)".into()))
            }
            Self::Store(_) if layout.bytes() > max => Err(refused(format!(
                "the guest has {} of memory, more than --max-memory allows ({})",
                mib(layout.bytes()),
                mib(max)
            ))),
            Self::Store(output) => {
                let memory = GuestMemory::zeroed(layout.clone()).map_err(|e| {
                    Failure::io(format_args!("mapping {} of memory", mib(layout.bytes())), &e)
                })?;
                Ok((memory, Place::Store(output)))
            }
            Self::Machine(..) if !qemu => Err(refused(
                "the source has a make-believe guest, and this end a QEMU: give the source one too \
                 (--qmp)"
                    .into(),
            )),
            Self::Machine(memory, machine) => {
                let memory = memory.ordered(layout).map_err(|theirs| {
                    refused(format!(
                        "the machines have different memory: the source {theirs}; start both with \
                         the same backends"
                    ))
                })?;
                memory.clear().map_err(|e| Failure::io("clearing the machine's memory", &e))?;
                Ok((memory, Place::Machine(machine)))
            }
        }
    }
}

/// A host without its memory.
enum Place {
    Store(Option<OutputFile>),
    Machine(Box<dyn DestinationMachine>),
}

/// Serves one migration. Returns a report even after a failure.
pub fn serve(
    listener: &TcpListener,
    config: &Config<'_>,
    host: Host,
) -> (Report, Result<(), Failure>) {
    let mut report = Report::default();
    let mut started = None;
    let outcome = Channels::accept(listener, config, &mut started).and_then(|mut channels| {
        report.setup_time = started.map_or(0, |at: Instant| at.elapsed().as_millis() as u64);
        let outcome = take(&mut channels, config, host, started, &mut report);
        channels.goodbye(outcome.as_ref().err(), config.stall_timeout);
        outcome
    });
    config.progress.done();
    match &outcome {
        Ok(()) => report.status = Status::Completed,
        Err(failure) => {
            report.error_desc = Some(failure.message.clone());
            report.total_time = started.map_or(0, |at| at.elapsed().as_millis() as u64);
            if signals::interrupted() {
                report.status = Status::Cancelled;
            }
        }
    }
    (report, outcome)
}

/// From the welcome to the run of the guest.
fn take(
    channels: &mut Channels,
    config: &Config<'_>,
    host: Host,
    started: Option<Instant>,
    report: &mut Report,
) -> Result<(), Failure> {
    let offer = channels.offer.clone();
    let layout = &offer.layout;
    report.ram.total = layout.bytes();
    report.ram.remaining = report.ram.total;
    let prepared =
        channels.answers.keep_alive_while(|| host.memory(layout, offer.qemu, config.max_memory));
    let (memory, mut place) = prepared?;
    channels.welcome().map_err(gone)?;
    let begun = Instant::now();
    let digester = Digester::new(offer.digest, offer.secret.clone());
    let streams = mem::take(&mut channels.streams);
    let rounds = Rounds::new(channels, config, &digester, started);
    let (memory, device, mut control) = rounds.run(streams, memory, report)?;
    report.total_time = started.map_or(0, |at| at.elapsed().as_millis() as u64);
    report.ram.remaining = 0;
    report.ram.finish(begun.elapsed());

    let answers = &channels.answers;
    if offer.verify {
        let digest = answers.keep_alive_while(|| memory.digest(&digester));
        let ours = (digest.map_err(|e| Failure::io("digest", &e))?, xxh3_128(&device));
        let header = Header::Digest { memory: ours.0, device: ours.1 };
        answers.send(&header.encode()).map_err(gone)?;
        let theirs = match hear(&mut control, config, "while both ends were verifying")? {
            Header::Digest { memory, device } => (memory, device),
            header => return Err(refuse(&mut control, header)),
        };
        let verify = report.verify.insert(Verify::new(theirs, ours));
        if !verify.is_match() {
            return Err(Failure::new(
                Code::Mismatch,
                "the memory that arrived is not the source's: do not start the guest here",
            ));
        }
    }
    let written = answers.keep_alive_while(|| match &mut place {
        Place::Store(output) => output.as_ref().map(|output| output.write(&memory)).transpose(),
        Place::Machine(machine) => machine.load(&device).map(|()| None),
    })?;
    answers.send(&Header::Loaded.encode()).map_err(gone)?;
    match hear(&mut control, config, "before it handed the guest over (do not start it here)")? {
        Header::Go => {}
        header => return Err(refuse(&mut control, header)),
    }
    if let Some(written) = written {
        let path = written.path().display().to_string();
        written.name()?;
        config.progress.line(&format!("memory written to {path}"));
    }
    if let Place::Machine(machine) = &mut place {
        machine.start().map_err(|failure| {
            Failure::new(
                Code::Undecided,
                format!(
                    "undecided: the guest was handed over, but does not start here ({failure}); the \
                     source will not run it. Resume it here (QMP: cont), or quit this QEMU first \
                     and then resume it at the source"
                ),
            )
        })?;
    }
    // The guest runs here, and a source that has not heard so must look.
    if let Err(error) = answers.send(&Header::Running.encode()) {
        config.progress.line(&format!(
            "the guest runs here, but the source could not be told ({error}): quit the QEMU there"
        ));
    }
    // The source says goodbye when it has heard.
    let _ = hear(&mut control, config, "at the end");
    Ok(())
}

/// The source's next header on channel 0 other than a sign of life.
fn hear(control: &mut Stream, config: &Config<'_>, when: &str) -> Result<Header, Failure> {
    loop {
        match Header::read(control).map_err(|e| lost(&e, when, config.stall_timeout))? {
            Header::KeepAlive => {}
            header => return Ok(header),
        }
    }
}

/// A message of a channel's thread to the coordinator.
enum Event {
    End { round: u32, last: bool },
    Failed(Failure),
}

/// The state of a channel behind its last round.
struct End {
    view: View,
    stream: Stream,
    device: Option<Vec<u8>>,
}

/// The rounds of one migration.
struct Rounds<'a> {
    answers: &'a Answers,
    /// The channels' sockets, to end them.
    sockets: &'a [TcpStream],
    /// The source wants the digests of applied pages.
    digester: Option<&'a Digester>,
    config: &'a Config<'a>,
    started: Option<Instant>,
    /// The round of acceptable frames. Stored (Release) before `RoundApplied` is written; the
    /// source sends the next frames only after reading that answer.
    current: AtomicU32,
    // Relaxed counts, read after the join of the threads, or for display.
    received: AtomicU64,
    normal: AtomicU64,
    normal_bytes: AtomicU64,
    duplicate: AtomicU64,
}

impl<'a> Rounds<'a> {
    fn new(
        channels: &'a Channels,
        config: &'a Config<'a>,
        digester: &'a Digester,
        started: Option<Instant>,
    ) -> Self {
        Self {
            answers: &channels.answers,
            sockets: &channels.sockets[..channels.sockets.len() - 1],
            digester: channels.offer.page_digests.then_some(digester),
            config,
            started,
            current: AtomicU32::new(0),
            received: AtomicU64::new(0),
            normal: AtomicU64::new(0),
            normal_bytes: AtomicU64::new(0),
            duplicate: AtomicU64::new(0),
        }
    }

    /// Applies all rounds and returns the memory, the device state and channel 0.
    fn run(
        self,
        streams: Vec<Stream>,
        memory: GuestMemory,
        report: &mut Report,
    ) -> Result<(GuestMemory, Vec<u8>, Stream), Failure> {
        let (events_in, events) = mpsc::channel();
        let (outcome, ends) = thread::scope(|scope| {
            let mut threads = Vec::new();
            let views = memory.split(streams.len());
            for (number, (view, stream)) in views.into_iter().zip(streams).enumerate() {
                let (events, this) = (events_in.clone(), &self);
                threads.push(scope.spawn(move || this.receive(number, stream, view, &events)));
            }
            drop(events_in);
            let outcome = self.coordinate(&events);
            if outcome.is_err() {
                // Wakes the threads.
                for socket in self.sockets {
                    let _ = socket.shutdown(Shutdown::Both);
                }
            }
            let ends: Vec<_> = threads.into_iter().map(|thread| thread.join().ok()?).collect();
            (outcome, ends)
        });
        report.ram.transferred = self.received.into_inner();
        report.ram.normal = self.normal.into_inner();
        report.ram.normal_bytes = self.normal_bytes.into_inner();
        report.ram.duplicate = self.duplicate.into_inner();
        report.ram.dirty_sync_count = u64::from(self.current.into_inner());
        outcome?;
        let (mut views, mut control) = (Vec::new(), None);
        for End { view, stream, device } in ends.into_iter().flatten() {
            views.push(view);
            control = control.or(Some((device, stream)));
        }
        let died = || Failure::new(Code::Io, "a channel's thread died");
        let memory = GuestMemory::rejoin(views).ok_or_else(died)?;
        let (device, control) = control.ok_or_else(died)?;
        let device = device.ok_or_else(|| protocol(ProtocolError::NoDeviceState))?;
        Ok((memory, device, control))
    }

    /// Collects end marks and answers them, until the last round is applied.
    fn coordinate(&self, events: &Receiver<Event>) -> Result<(), Failure> {
        let (mut ended, mut last_ones) = (0, 0);
        let mut spoken = Instant::now();
        loop {
            let event = events.recv_timeout(TICK);
            self.check()?;
            match event {
                Ok(Event::Failed(failure)) => return Err(reason_behind(failure, events)),
                Ok(Event::End { round, last }) => {
                    // The threads have checked the number of the round.
                    ended += 1;
                    last_ones += usize::from(last);
                    if ended < self.sockets.len() {
                        continue;
                    }
                    if last_ones != 0 && last_ones != ended {
                        return Err(protocol(ProtocolError::Unexpected("last RoundEnd")));
                    }
                    let next = round.checked_add(1).ok_or_else(|| {
                        protocol(ProtocolError::WrongRound { got: round, expected: round })
                    })?;
                    self.current.store(next, Ordering::Release);
                    let received = self.received.load(Ordering::Relaxed);
                    self.config
                        .progress
                        .line(&format!("round {round} applied, {} so far", mib(received)));
                    self.answers.send(&Header::RoundApplied { round }.encode()).map_err(gone)?;
                    if last_ones != 0 {
                        return Ok(());
                    }
                    (ended, spoken) = (0, Instant::now());
                }
                Err(RecvTimeoutError::Timeout) if spoken.elapsed() >= KEEP_ALIVE => {
                    self.answers.send(&Header::KeepAlive.encode()).map_err(gone)?;
                    spoken = Instant::now();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::new(Code::Io, "a channel's thread died"));
                }
            }
        }
    }

    fn check(&self) -> Result<(), Failure> {
        self.config.stop.check()?;
        if self.started.is_some_and(|at| at.elapsed() > self.config.timeout) {
            let seconds = self.config.timeout.as_secs_f64();
            let why = format!("the migration did not end within {seconds} s (--timeout)");
            return Err(Failure::new(Code::NotConverged, why));
        }
        Ok(())
    }

    /// The thread of a channel. Returns `None` after a failure, reported to the coordinator.
    fn receive(
        &self,
        channel: usize,
        mut stream: Stream,
        mut view: View,
        events: &Sender<Event>,
    ) -> Option<End> {
        let mut device = None;
        match self.apply(channel, &mut stream, &mut view, &mut device, events) {
            Ok(()) => Some(End { view, stream, device }),
            Err(failure) => {
                let _ = events.send(Event::Failed(failure));
                None
            }
        }
    }

    fn apply(
        &self,
        channel: usize,
        stream: &mut Stream,
        view: &mut View,
        device: &mut Option<Vec<u8>>,
        events: &Sender<Event>,
    ) -> Result<(), Failure> {
        let mut ended = None;
        let (mut table, mut runs, mut answer) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let current = self.current.load(Ordering::Acquire);
            let stall = self.config.stall_timeout;
            let lost = |e: io::Error| {
                lost(&e, format_args!("during round {current} (channel {channel})"), stall)
            };
            let header = Header::read(stream).map_err(lost)?;
            let mut received = Header::SIZE as u64;
            match header {
                Header::Pages { round, runs: count, bytes }
                | Header::Zeros { round, runs: count, bytes } => {
                    self.expect(round, ended)?;
                    view.begin(round);
                    table.resize(count as usize * Run::SIZE, 0);
                    read_exact(stream, &mut table).map_err(lost)?;
                    decode_runs(&table, bytes, view.layout(), &mut runs).map_err(protocol)?;
                    let pages: u64 = runs.iter().map(|run| run.pages()).sum();
                    received += table.len() as u64;
                    if let Header::Zeros { .. } = header {
                        view.clear(&runs).map_err(lost)?;
                        self.duplicate.fetch_add(pages, Ordering::Relaxed);
                    } else {
                        view.receive(stream, &runs).map_err(lost)?;
                        received += bytes;
                        self.normal.fetch_add(pages, Ordering::Relaxed);
                        self.normal_bytes.fetch_add(bytes, Ordering::Relaxed);
                        if let Some(digester) = self.digester {
                            answer.clear();
                            answer.extend(Header::Digests { round, runs: count, bytes }.encode());
                            answer.extend(&table);
                            view.digests(&runs, digester, |digest| {
                                answer.extend(digest.to_le_bytes());
                            })
                            .map_err(lost)?;
                            self.answers.send(&answer).map_err(gone)?;
                        }
                    }
                }
                Header::DeviceState { bytes } if channel == 0 && device.is_none() => {
                    let mut state = vec![0; bytes as usize];
                    read_exact(stream, &mut state).map_err(lost)?;
                    *device = Some(state);
                    received += bytes;
                }
                Header::RoundEnd { round, last } => {
                    self.expect(round, ended)?;
                    ended = Some(round);
                    // Counted before the end mark is reported, so that the coordinator's sum is
                    // complete.
                    self.received.fetch_add(received, Ordering::Relaxed);
                    let _ = events.send(Event::End { round, last });
                    if last {
                        return Ok(());
                    }
                    continue;
                }
                Header::KeepAlive => {}
                header => return Err(refuse(stream, header)),
            }
            self.received.fetch_add(received, Ordering::Relaxed);
        }
    }

    /// Refuses a frame of any round but the current, or behind this round's end mark.
    fn expect(&self, round: u32, ended: Option<u32>) -> Result<(), Failure> {
        // Acquire, with the coordinator's Release. Loaded again: the wait for the frame may have
        // begun before the round.
        let expected = self.current.load(Ordering::Acquire);
        match round == expected && ended != Some(round) {
            true => Ok(()),
            false => Err(protocol(ProtocolError::WrongRound { got: round, expected })),
        }
    }
}

/// The source tells its reason on channel 0, and closes the others at the same time.
fn reason_behind(mut failure: Failure, events: &Receiver<Event>) -> Failure {
    let until = Instant::now() + Duration::from_millis(300);
    while failure.hearsay {
        match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Event::Failed(other)) => failure = failure.explaining(Some(other)),
            Ok(Event::End { .. }) => {}
            Err(_) => break,
        }
    }
    failure
}

fn gone(error: io::Error) -> Failure {
    Failure::peer_gone(format!("the source closed the connection: was it killed? ({error})"))
}
