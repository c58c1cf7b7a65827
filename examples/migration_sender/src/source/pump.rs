//! The thread of one channel at the source: turns the dirty pages of a round into packets.
//!
//! A pump never waits for a release: sent pages stay with the channel until their release, and
//! pages with later changes are sent again in a later round.

use std::{
    fmt::Display,
    io::{self, ErrorKind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    bitmap::{Cursor, DirtyBitmap},
    failure::{Code, Failure},
    memory::GuestMemory,
    report::ZeroCopyReport,
    source::{
        channel::{Channel, SendFailure},
        survey::Known,
    },
    wire::{
        CHUNK, Digester, Header, MAX_PACKET, MAX_RUNS, PAGE, ProtocolError, Run, Stream,
        decode_runs, goodbye, read_exact, read_message,
    },
};

/// The period of signs of life on an idle channel.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// The longest close of a channel after a success.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// The longest time for sending the reason of a failure.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);

/// The value of [`Shared::round`] after the last round.
pub const VERIFYING: u32 = u32::MAX;

/// A command of the coordinator to a pump.
#[derive(Debug)]
pub enum Command {
    /// Send this channel's share of the pages, then the round's end mark.
    Round { round: u32, last: Option<Arc<[u8]>> },
    /// Send this header, behind the last round.
    Tell(Header),
}

/// A message from a pump or from the destination to the coordinator.
#[derive(Debug)]
pub enum Event {
    /// A pump has sent its share of a round.
    Sent(Share),
    /// The destination's header, with the message of a `Goodbye`.
    Heard(Header, String),
    /// The channel has failed.
    Failed(Failure),
}

/// A pump's share of a round.
#[derive(Clone, Copy, Default, Debug)]
pub struct Share {
    /// Pages sent with their bytes, and the number of bytes.
    pub normal: u64,
    pub normal_bytes: u64,
    /// Zero pages.
    pub duplicate: u64,
    /// Time for finding the pages.
    pub scan: Duration,
}

/// The common state of all threads of the source.
#[derive(Debug)]
pub struct Shared {
    pub memory: Arc<GuestMemory>,
    pub bitmap: Arc<DirtyBitmap>,
    /// The place of the round's harvest.
    pub cursor: Cursor,
    /// The destination's pages, unless the guest marks its own.
    pub known: Option<Known>,
    /// Take the digests at the source: wrong, and the control of the tests.
    pub digests_at_source: bool,
    /// Bytes per second of one channel.
    pub rate_limit: Option<u64>,
    /// Set once, when the migration is given up; the pumps look between two packets.
    pub abandoned: OnceLock<Failure>,
    // The counters are Relaxed: for display and comparison, without publishing other data.
    /// The current round, or [`VERIFYING`]; for messages.
    pub round: AtomicU32,
    /// Bytes accepted on all channels.
    pub sent: AtomicU64,
    /// Frames heard from the destination.
    pub heard: AtomicU64,
}

impl Shared {
    /// The present phase, for messages.
    pub fn phase(&self) -> String {
        match self.round.load(Ordering::Relaxed) {
            VERIFYING => "while both ends were verifying".into(),
            round => format!("during round {round}"),
        }
    }

    fn gone(&self, connection: impl Display, why: impl Display) -> Failure {
        let phase = self.phase();
        Failure::peer_gone(format!(
            "the destination closed the connection {phase} ({connection}): was it killed? ({why})"
        ))
    }

    fn explain(&self, channel: usize, failure: SendFailure) -> Failure {
        match failure {
            SendFailure::Connection(error) => self.gone(format_args!("channel {channel}"), error),
            SendFailure::Memory => Failure::new(
                Code::Io,
                "the kernel cannot read the guest memory: was its file truncated while it was \
                 being migrated?",
            ),
            SendFailure::Pool(error) => Failure::new(Code::Io, format!("the buffer pool: {error}")),
        }
    }
}

/// Listens to the destination's answers until its `Goodbye` or the end.
pub fn listen(mut stream: Stream, shared: &Shared, events: &Sender<Event>) {
    let (mut payload, mut runs) = (Vec::new(), Vec::new());
    loop {
        let heard = Header::read(&mut stream).and_then(|header| match header {
            Header::Goodbye { bytes, .. } => Ok((header, read_message(&mut stream, bytes)?)),
            Header::Digests { .. } => {
                learn(&mut stream, header, shared, &mut payload, &mut runs)?;
                Ok((header, String::new()))
            }
            _ => Ok((header, String::new())),
        });
        // Relaxed: a count.
        shared.heard.fetch_add(1, Ordering::Relaxed);
        let (event, more) = match heard {
            Ok((Header::KeepAlive | Header::Digests { .. }, _)) => continue,
            Ok((header, message)) => {
                (Event::Heard(header, message), !matches!(header, Header::Goodbye { .. }))
            }
            Err(error) => {
                let failure = match error.kind() {
                    ErrorKind::InvalidData => Failure::io("from the destination", &error),
                    ErrorKind::UnexpectedEof => shared.gone("the answers", "end of stream"),
                    _ => shared.gone("the answers", error),
                };
                (Event::Failed(failure), false)
            }
        };
        // An error means that the coordinator has given up, and needs no events.
        if events.send(event).is_err() || !more {
            return;
        }
    }
}

/// Reads the digests behind a header.
fn learn(
    stream: &mut Stream,
    header: Header,
    shared: &Shared,
    payload: &mut Vec<u8>,
    runs: &mut Vec<Run>,
) -> io::Result<()> {
    let (Header::Digests { runs: count, bytes, .. }, Some(known)) = (header, &shared.known) else {
        return Err(ProtocolError::Unexpected(header.name()).into());
    };
    payload.resize(count as usize * Run::SIZE, 0);
    read_exact(stream, payload)?;
    decode_runs(payload, bytes, shared.memory.layout(), runs)?;
    let pages: u64 = runs.iter().map(|run| run.pages()).sum();
    payload.resize(pages as usize * Digester::SIZE, 0);
    read_exact(stream, payload)?;
    if !shared.digests_at_source {
        known.told(runs, payload);
    }
    Ok(())
}

/// The thread of one channel.
#[derive(Debug)]
pub struct Pump {
    number: usize,
    channel: Channel,
    shared: Arc<Shared>,
    events: Sender<Event>,
    pages: RunList,
    zeros: RunList,
    counted: u64,
    /// The earliest time of the next packet, by the rate limit.
    due: Instant,
}

enum Halt {
    Send(SendFailure),
    Image(io::Error),
    Abandoned,
}

impl From<SendFailure> for Halt {
    fn from(failure: SendFailure) -> Self {
        Self::Send(failure)
    }
}

impl Pump {
    pub fn new(
        number: usize,
        channel: Channel,
        shared: Arc<Shared>,
        events: Sender<Event>,
    ) -> Self {
        // A slow channel sends small packets, as frequent signs of life for the destination.
        let most = match shared.rate_limit {
            Some(rate) => ((rate / 4) as usize / PAGE * PAGE).clamp(PAGE, MAX_PACKET),
            None => MAX_PACKET,
        };
        Self {
            number,
            channel,
            shared,
            events,
            pages: RunList::new(most),
            zeros: RunList::new(MAX_RUNS * CHUNK),
            counted: 0,
            due: Instant::now(),
        }
    }

    /// Obeys until the coordinator hangs up, then closes the channel in order.
    pub fn run(mut self, commands: &Receiver<Command>) -> ZeroCopyReport {
        let outcome = self.obey(commands);
        // Channel 0 takes the reason of the failure to the destination; the others just end.
        let deadline = match (&outcome, self.number) {
            (Ok(()), _) => Some(Instant::now() + CLOSE_PATIENCE),
            (Err(_), 0) => Some(Instant::now() + GOODBYE_PATIENCE),
            (Err(_), _) => None,
        };
        let failure = match outcome {
            Ok(()) => None,
            Err(Halt::Send(failure)) => Some(self.shared.explain(self.number, failure)),
            Err(Halt::Image(error)) => Some(Failure::io("reading the memory image", &error)),
            Err(Halt::Abandoned) => {
                if let (0, Some(why)) = (self.number, self.shared.abandoned.get()) {
                    // If the destination failed, this send fails too.
                    let _ = self.channel.send_bytes(&goodbye(why.code as u8, &why.message));
                }
                None
            }
        };
        if let Some(failure) = failure {
            let _ = self.events.send(Event::Failed(failure));
        }
        self.channel.close(deadline)
    }

    fn obey(&mut self, commands: &Receiver<Command>) -> Result<(), Halt> {
        let mut over = false;
        loop {
            match commands.recv_timeout(KEEP_ALIVE) {
                Ok(Command::Round { round, last }) => {
                    // The other channels are silent after the last round.
                    over = last.is_some() && self.number != 0;
                    let share = self.round(round, last)?;
                    let _ = self.events.send(Event::Sent(share));
                }
                Ok(Command::Tell(header)) => {
                    over = true;
                    self.channel.send(header)?;
                }
                Err(RecvTimeoutError::Timeout) if over => {}
                Err(RecvTimeoutError::Timeout) => self.channel.send(Header::KeepAlive)?,
                Err(RecvTimeoutError::Disconnected) => return self.go_on(),
            }
            self.count();
        }
    }

    fn round(&mut self, round: u32, last: Option<Arc<[u8]>>) -> Result<Share, Halt> {
        let shared = Arc::clone(&self.shared);
        let memory = &shared.memory;
        let mut share = Share::default();
        let mut harvest = shared.bitmap.harvest(&shared.cursor);
        loop {
            let begun = Instant::now();
            let chunk = harvest.next();
            share.scan += begun.elapsed();
            let Some(chunk) = chunk else { break };
            memory.check_backing().map_err(Halt::Image)?;
            let run = |page| memory.layout().page_run(page);
            let zero = |run: Run, most: usize| memory.is_zero(run.offset, run.len.min(most));
            // First the start of all pages, so that the waits for memory overlap.
            let suspects = chunk.filter(|page| zero(run(page), 8));
            let zeros = suspects.filter(|page| zero(run(page), PAGE));
            for run in zeros.pages().map(run) {
                share.duplicate += 1;
                if !self.zeros.add(run) {
                    self.send_zeros(round)?;
                    self.zeros.add(run);
                }
            }
            for run in chunk.without(zeros).pages().map(run) {
                share.normal += 1;
                share.normal_bytes += run.len as u64;
                if !self.pages.add(run) {
                    self.send_pages(round)?;
                    self.pages.add(run);
                }
            }
        }
        self.send_pages(round)?;
        self.send_zeros(round)?;
        let is_last = last.is_some();
        if let (0, Some(device)) = (self.number, last) {
            self.channel.send(Header::DeviceState { bytes: device.len() as u64 })?;
            self.channel.send_bytes(&device)?;
        }
        self.channel.send(Header::RoundEnd { round, last: is_last })?;
        Ok(share)
    }

    fn send_pages(&mut self, round: u32) -> Result<(), Halt> {
        if self.pages.runs.is_empty() {
            return Ok(());
        }
        self.go_on()?;
        let RunList { runs, bytes, .. } = &self.pages;
        let header = Header::Pages { round, runs: runs.len() as u32, bytes: *bytes as u64 };
        if let Some(known) = &self.shared.known {
            known.sent(runs);
        }
        self.channel.send_runs(header, runs, Some(&self.shared.memory))?;
        if self.shared.digests_at_source {
            self.digest_here();
        }
        let bytes = *bytes as u64;
        self.pages.clear();
        self.count();
        self.pace(bytes)
    }

    fn send_zeros(&mut self, round: u32) -> Result<(), Halt> {
        if self.zeros.runs.is_empty() {
            return Ok(());
        }
        self.go_on()?;
        let RunList { runs, bytes, .. } = &self.zeros;
        let header = Header::Zeros { round, runs: runs.len() as u32, bytes: *bytes as u64 };
        if let Some(known) = &self.shared.known {
            known.zeroed(runs);
        }
        self.channel.send_runs(header, runs, None)?;
        self.zeros.clear();
        self.count();
        Ok(())
    }

    /// The control of the tests: digests of the pages as they are now.
    fn digest_here(&self) {
        let Some(known) = &self.shared.known else { return };
        for run in &self.pages.runs {
            let mut bytes = vec![0; run.len];
            if self.shared.memory.read(run.offset, &mut bytes).is_ok() {
                let digest = |page: &[u8]| known.digester().digest(page).to_le_bytes();
                let digests: Vec<u8> = bytes.chunks(PAGE).flat_map(digest).collect();
                known.told(&[*run], &digests);
            }
        }
    }

    fn go_on(&self) -> Result<(), Halt> {
        if self.shared.abandoned.get().is_some() { Err(Halt::Abandoned) } else { Ok(()) }
    }

    fn count(&mut self) {
        let sent = self.channel.sent();
        self.shared.sent.fetch_add(sent - self.counted, Ordering::Relaxed);
        self.counted = sent;
    }

    /// Sleeps for the rate limit after `bytes`.
    fn pace(&mut self, bytes: u64) -> Result<(), Halt> {
        const NAP: Duration = Duration::from_millis(50);
        let Some(rate) = self.shared.rate_limit else { return Ok(()) };
        let now = Instant::now();
        // No credit for longer than a nap, so no bursts.
        self.due = self.due.max(now.checked_sub(NAP).unwrap_or(now));
        self.due += Duration::from_secs_f64(bytes as f64 / rate as f64);
        while let Some(rest) = self.due.checked_duration_since(Instant::now()) {
            self.go_on()?;
            thread::sleep(rest.min(NAP));
        }
        Ok(())
    }
}

/// Runs for one packet, coalesced.
#[derive(Debug)]
struct RunList {
    runs: Vec<Run>,
    bytes: usize,
    most_bytes: usize,
}

impl RunList {
    fn new(most_bytes: usize) -> Self {
        Self { runs: Vec::with_capacity(MAX_RUNS), bytes: 0, most_bytes }
    }

    /// Adds a page. Returns `false` if there is no room.
    fn add(&mut self, page: Run) -> bool {
        if self.bytes + page.len > self.most_bytes {
            return false;
        }
        let full = self.runs.len() == MAX_RUNS;
        match self.runs.last_mut() {
            Some(run) if run.end() == page.offset && !page.offset.is_multiple_of(CHUNK) => {
                run.len += page.len;
            }
            _ if full => return false,
            _ => self.runs.push(page),
        }
        self.bytes += page.len;
        true
    }

    fn clear(&mut self) {
        self.runs.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: usize) -> Run {
        Run { offset: number * PAGE, len: PAGE }
    }

    #[test]
    fn neighbours_in_a_chunk_become_one_run() {
        let mut list = RunList::new(MAX_PACKET);
        let chunk = CHUNK / PAGE;
        for number in [1, 2, 4, chunk - 1, chunk] {
            assert!(list.add(page(number)));
        }
        let starts: Vec<_> = list.runs.iter().map(|r| (r.offset / PAGE, r.pages())).collect();
        assert_eq!(starts, [(1, 2), (4, 1), (chunk - 1, 1), (chunk, 1)]);
        assert_eq!(list.bytes, 5 * PAGE);
    }

    #[test]
    fn a_packet_is_bounded_in_bytes_and_in_runs() {
        let mut list = RunList::new(2 * PAGE);
        assert!(list.add(page(0)) && list.add(page(1)) && !list.add(page(2)));
        list.clear();
        assert!(list.add(page(2)));
        let mut list = RunList::new(usize::MAX);
        let fitting = (0..).take_while(|n| list.add(page(2 * n))).count();
        assert_eq!(fitting, MAX_RUNS);
        assert!(list.add(page(2 * MAX_RUNS - 1)), "a neighbour needs no entry");
    }
}
