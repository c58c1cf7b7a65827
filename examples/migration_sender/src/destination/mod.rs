//! The destination: accepts the channels of a migration, applies their frames, verifies.
//!
//! One thread per channel reads straight into the channel's [`View`] of the memory. The coordinator
//! collects the end marks, tells the source of each applied round, and after the last round owns
//! the whole memory again. Every byte from the wire is checked before use.

pub mod accept;
pub mod output;

use std::{
    io::{self, Write},
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
    destination::accept::{Channels, lost, protocol, refuse},
    destination::output::OutputFile,
    failure::{Code, Failure},
    memory::{GuestMemory, View},
    protocol::{Header, ProtocolError, Run, decode_runs, read_exact},
    report::{Progress, Report, Status, Verify, mib},
    signals::{self, Stop},
    source::pump::KEEP_ALIVE,
};

/// The coordinator's period of looks at clocks and flags.
const TICK: Duration = Duration::from_millis(50);

/// The destination's task.
#[derive(Debug)]
pub struct Config<'a> {
    pub output: Option<OutputFile>,
    pub max_memory: u64,
    pub timeout: Duration,
    pub stall_timeout: Duration,
    pub stop: &'a Stop,
    pub progress: &'a Progress,
}

/// Serves one migration. Returns a report even after a failure.
pub fn serve(listener: &TcpListener, config: &Config<'_>) -> (Report, Result<(), Failure>) {
    let mut report = Report::default();
    let mut started = None;
    let outcome = Channels::accept(listener, config, &mut started).and_then(|channels| {
        report.setup_time = started.map_or(0, |at: Instant| at.elapsed().as_millis() as u64);
        let outcome = take(&channels, config, started, &mut report);
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

/// From the welcome to the saved file.
fn take(
    channels: &Channels,
    config: &Config<'_>,
    started: Option<Instant>,
    report: &mut Report,
) -> Result<(), Failure> {
    let layout = channels.layout;
    report.ram.total = layout.memory_len as u64;
    report.ram.remaining = report.ram.total;
    let memory = GuestMemory::zeroed(layout.memory_len).map_err(|e| {
        Failure::io(format_args!("mapping {} of memory", mib(layout.memory_len as u64)), &e)
    })?;
    for mut stream in &channels.streams {
        stream.write_all(&Header::Welcome { session: channels.session }.encode()).map_err(gone)?;
    }
    let begun = Instant::now();
    let (memory, device) = Rounds::new(channels, config, started).run(memory, report)?;
    report.total_time = started.map_or(0, |at| at.elapsed().as_millis() as u64);
    report.ram.remaining = 0;
    report.ram.finish(begun.elapsed());

    let mut control = &channels.streams[0];
    let digest = channels.keep_alive_while(|| memory.digest());
    let ours = (digest.map_err(|e| Failure::io("digest", &e))?, xxh3_128(&device));
    control.write_all(&Header::Digest { memory: ours.0, device: ours.1 }.encode()).map_err(gone)?;
    let theirs = loop {
        match Header::read(&mut control)
            .map_err(|e| lost(&e, "while both ends were verifying", config.stall_timeout))?
        {
            Header::Digest { memory, device } => break (memory, device),
            Header::KeepAlive => {}
            header => return Err(refuse(&mut control, header)),
        }
    };
    let verify = report.verify.insert(Verify::new(theirs, ours));
    if !verify.is_match() {
        return Err(Failure::new(
            Code::Mismatch,
            "the memory that arrived is not the source's: do not start the guest here",
        ));
    }
    if let Some(output) = &config.output {
        channels.keep_alive_while(|| output.save(&memory))?;
        config.progress.line(&format!("memory written to {}", output.path().display()));
    }
    Ok(())
}

/// A message of a channel's thread to the coordinator.
enum Event {
    End { round: u32, last: bool },
    Failed(Failure),
}

/// The rounds of one migration.
struct Rounds<'a> {
    channels: &'a Channels,
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
    fn new(channels: &'a Channels, config: &'a Config<'a>, started: Option<Instant>) -> Self {
        Self {
            channels,
            config,
            started,
            current: AtomicU32::new(0),
            received: AtomicU64::new(0),
            normal: AtomicU64::new(0),
            normal_bytes: AtomicU64::new(0),
            duplicate: AtomicU64::new(0),
        }
    }

    /// Applies all rounds and returns the memory with the device state.
    fn run(
        self,
        memory: GuestMemory,
        report: &mut Report,
    ) -> Result<(GuestMemory, Vec<u8>), Failure> {
        let streams = &self.channels.streams;
        let (events_in, events) = mpsc::channel();
        let mut device = None;
        let (outcome, views) = thread::scope(|scope| {
            let mut threads = Vec::new();
            for (view, stream) in memory.split(streams.len()).into_iter().zip(streams) {
                let (events, this) = (events_in.clone(), &self);
                threads.push(scope.spawn(move || this.receive(stream, view, &events)));
            }
            drop(events_in);
            let outcome = self.coordinate(&events);
            if outcome.is_err() {
                // Wakes the other channels. Channel 0 stays writable, for the goodbye.
                for (number, stream) in streams.iter().enumerate() {
                    let how = if number == 0 { Shutdown::Read } else { Shutdown::Both };
                    let _ = stream.shutdown(how);
                }
            }
            let mut views = Vec::new();
            for thread in threads {
                if let Ok(Some((view, state))) = thread.join() {
                    views.push(view);
                    device = device.take().or(state);
                }
            }
            (outcome, views)
        });
        report.ram.transferred = self.received.into_inner();
        report.ram.normal = self.normal.into_inner();
        report.ram.normal_bytes = self.normal_bytes.into_inner();
        report.ram.duplicate = self.duplicate.into_inner();
        report.ram.dirty_sync_count = u64::from(self.current.into_inner());
        outcome?;
        let memory = GuestMemory::rejoin(views)
            .ok_or_else(|| Failure::new(Code::Io, "a channel's thread died"))?;
        Ok((memory, device.unwrap_or_default()))
    }

    /// Collects end marks and answers them, until the last round is applied.
    fn coordinate(&self, events: &Receiver<Event>) -> Result<(), Failure> {
        let mut control = &self.channels.streams[0];
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
                    if ended < self.channels.streams.len() {
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
                    control.write_all(&Header::RoundApplied { round }.encode()).map_err(gone)?;
                    if last_ones != 0 {
                        return Ok(());
                    }
                    (ended, spoken) = (0, Instant::now());
                }
                Err(RecvTimeoutError::Timeout) if spoken.elapsed() >= KEEP_ALIVE => {
                    control.write_all(&Header::KeepAlive.encode()).map_err(gone)?;
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
        stream: &TcpStream,
        mut view: View,
        events: &Sender<Event>,
    ) -> Option<(View, Option<Vec<u8>>)> {
        let mut device = None;
        match self.apply(stream, &mut view, &mut device, events) {
            Ok(()) => Some((view, device)),
            Err(failure) => {
                let _ = events.send(Event::Failed(failure));
                None
            }
        }
    }

    fn apply(
        &self,
        mut stream: &TcpStream,
        view: &mut View,
        device: &mut Option<Vec<u8>>,
        events: &Sender<Event>,
    ) -> Result<(), Failure> {
        let (channel, layout) = view.place();
        let mut ended = None;
        let mut table = Vec::new();
        let mut runs: Vec<Run> = Vec::new();
        loop {
            let current = self.current.load(Ordering::Acquire);
            let stall = self.config.stall_timeout;
            let lost = |e: io::Error| {
                lost(&e, format_args!("during round {current} (channel {channel})"), stall)
            };
            let header = Header::read(&mut stream).map_err(lost)?;
            let mut received = Header::SIZE as u64;
            match header {
                Header::Pages { round, runs: count, bytes }
                | Header::Zeros { round, runs: count, bytes } => {
                    self.expect(round, ended)?;
                    table.resize(count as usize * Run::SIZE, 0);
                    read_exact(&mut stream, &mut table).map_err(lost)?;
                    decode_runs(&table, bytes, channel, layout, &mut runs).map_err(protocol)?;
                    let pages: u64 = runs.iter().map(|run| run.pages()).sum();
                    received += table.len() as u64;
                    if let Header::Zeros { .. } = header {
                        // A page comes at most once per round, and the memory starts zeroed.
                        if round > 0 {
                            view.clear(&runs);
                        }
                        self.duplicate.fetch_add(pages, Ordering::Relaxed);
                    } else {
                        view.receive(&mut stream, &runs).map_err(lost)?;
                        received += bytes;
                        self.normal.fetch_add(pages, Ordering::Relaxed);
                        self.normal_bytes.fetch_add(bytes, Ordering::Relaxed);
                    }
                }
                Header::DeviceState { bytes } if channel == 0 && device.is_none() => {
                    let mut state = vec![0; bytes as usize];
                    read_exact(&mut stream, &mut state).map_err(lost)?;
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
                header => return Err(refuse(&mut stream, header)),
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
