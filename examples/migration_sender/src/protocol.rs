//! The wire format: fixed headers, run tables, and the checks of the receiver.
//!
//! A migration opens N TCP connections, the channels. Every channel carries frames from the source
//! to the destination; channel 0 also carries the destination's answers. A frame is a header of
//! [`Header::SIZE`] bytes, little endian, and the bytes of its kind:
//!
//! | frame          | direction | behind the header                                          |
//! |----------------|-----------|------------------------------------------------------------|
//! | `Hello`        | →         |                                                            |
//! | `Welcome`      | ←         | (on every channel)                                         |
//! | `Pages`        | →         | a run table, then the bytes of all its runs                |
//! | `Zeros`        | →         | a run table                                                |
//! | `RoundEnd`     | →         |                                                            |
//! | `RoundApplied` | ←         |                                                            |
//! | `DeviceState`  | →         | its bytes (channel 0, before the last round's end mark)    |
//! | `Digest`       | ↔         |                                                            |
//! | `KeepAlive`    | ↔         | (every second of silence)                                  |
//! | `Goodbye`      | ↔         | a message in UTF-8; ends the migration                     |
//!
//! # The order of a page's copies
//!
//! A page is sent once per round, and an older copy must never be applied after a newer copy.
//! Neither a release nor an acknowledgement means an applied page, so the source cannot order two
//! connections by watching its own sends. Either of two rules suffices, and both hold here:
//!
//! - **A page always uses the same channel** ([`channel_of`]: its 2 MiB chunk modulo the number of
//!   channels). TCP keeps the order within a connection and a single thread applies the frames, so
//!   the copies of a page are applied in the order of their sends. The destination refuses a run on
//!   a wrong channel.
//! - **Every run carries its round, and round n+1 starts only after all end marks of round n.** The
//!   destination answers `RoundApplied` after the end mark on every channel, the source waits for
//!   the answer, and the destination refuses a run of any round but the current.
//!
//! The first rule alone is enough for correctness. The second makes the measured bandwidth honest:
//! bytes in a socket buffer have not been transferred.

use std::{fmt, io, io::Read};

/// The unit of dirty tracking, in bytes.
pub const PAGE: usize = 4096;
/// The unit of the assignment to channels, in bytes.
pub const CHUNK: usize = 2 << 20;
/// Most bytes of pages behind one `Pages` header. Both ends have some microseconds of work for
/// each.
pub const MAX_PACKET: usize = CHUNK;
/// Most runs in one table: header and table fill a buffer of 4 KiB.
pub const MAX_RUNS: usize = (4096 - Header::SIZE) / Run::SIZE;
/// Most channels of one migration.
pub const MAX_CHANNELS: usize = 64;
/// Most bytes of device state.
pub const MAX_DEVICE_STATE: usize = 64 << 20;
/// Most bytes of the message behind a `Goodbye`.
pub const MAX_MESSAGE: usize = 1024;

const MAGIC: [u8; 4] = *b"PbMg";
const VERSION: u16 = 1;

/// The channel of the page at `offset`.
pub fn channel_of(offset: usize, channels: usize) -> usize {
    offset / CHUNK % channels
}

/// The shape of a migration, known to both ends after the `Hello`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes of guest memory; the last page may be partial.
    pub memory_len: usize,
    pub channels: usize,
}

/// A run of guest memory in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    pub offset: usize,
    pub len: usize,
}

impl Run {
    pub const SIZE: usize = 16;

    pub fn end(self) -> usize {
        self.offset + self.len
    }

    pub fn pages(self) -> u64 {
        self.len.div_ceil(PAGE) as u64
    }

    pub fn encode(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&(self.offset as u64).to_le_bytes());
        bytes[8..].copy_from_slice(&(self.len as u64).to_le_bytes());
        bytes
    }
}

/// Reads and checks the table of a `Pages` or `Zeros` frame from `channel`.
///
/// Afterwards every run lies within the memory and within one chunk of this channel, starts on a
/// page, is whole pages (or ends with the memory), and the runs ascend without overlap.
pub fn decode_runs(
    table: &[u8],
    bytes: u64,
    channel: usize,
    layout: Layout,
    runs: &mut Vec<Run>,
) -> Result<(), ProtocolError> {
    runs.clear();
    let (mut previous_end, mut sum) = (0, 0);
    for entry in table.chunks_exact(Run::SIZE) {
        let offset = size(u64_at(entry, 0))?;
        let len = size(u64_at(entry, 8))?;
        let end = offset.checked_add(len).ok_or(ProtocolError::RunOutOfBounds)?;
        if len == 0 || end > layout.memory_len {
            return Err(ProtocolError::RunOutOfBounds);
        }
        if !offset.is_multiple_of(PAGE) || !(len.is_multiple_of(PAGE) || end == layout.memory_len) {
            return Err(ProtocolError::RunNotPages);
        }
        if offset < previous_end || offset / CHUNK != (end - 1) / CHUNK {
            return Err(ProtocolError::RunOverlap);
        }
        if channel_of(offset, layout.channels) != channel {
            return Err(ProtocolError::WrongChannel { offset });
        }
        (previous_end, sum) = (end, sum + len as u64);
        runs.push(Run { offset, len });
    }
    if sum == bytes { Ok(()) } else { Err(ProtocolError::WrongLength) }
}

/// One header, typed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Header {
    /// Opens a channel. `session` is the same on all channels of one migration.
    Hello { session: u64, memory_len: u64, channel: u16, channels: u16 },
    /// The destination has the memory and all channels.
    Welcome { session: u64 },
    /// The destination has the memory and all channels.
    Pages { round: u32, runs: u32, bytes: u64 },
    /// `runs` table entries for `bytes` zero bytes.
    Zeros { round: u32, runs: u32, bytes: u64 },
    /// The channel has sent all of the round; `last` with the guest stopped.
    RoundEnd { round: u32, last: bool },
    /// All channels' end marks of the round have come, and all earlier bytes are in memory.
    RoundApplied { round: u32 },
    /// `bytes` bytes of device state.
    DeviceState { bytes: u64 },
    /// XXH3-128 of the final memory and of the device state.
    Digest { memory: u128, device: u128 },
    /// A sign of life.
    KeepAlive,
    /// The end, with an exit code (0: success) and a message of `bytes` bytes.
    Goodbye { code: u8, bytes: u64 },
}

impl Header {
    pub const SIZE: usize = 48;

    pub fn encode(self) -> [u8; Self::SIZE] {
        // Kind, flag byte, round, count, then 32 bytes of fields.
        let (kind, flag, round, count) = match self {
            Self::Hello { channel, channels, .. } => (1, 0, u32::from(channel), channels.into()),
            Self::Welcome { .. } => (2, 0, 0, 0),
            Self::Pages { round, runs, .. } => (3, 0, round, runs),
            Self::Zeros { round, runs, .. } => (4, 0, round, runs),
            Self::RoundEnd { round, last } => (5, last.into(), round, 0),
            Self::RoundApplied { round } => (6, 0, round, 0),
            Self::DeviceState { .. } => (7, 0, 0, 0),
            Self::Digest { .. } => (8, 0, 0, 0),
            Self::KeepAlive => (9, 0, 0, 0),
            Self::Goodbye { code, .. } => (10, code, 0, 0),
        };
        let fields: [u128; 2] = match self {
            Self::Hello { session, memory_len, .. } => [session.into(), memory_len.into()],
            Self::Welcome { session } => [session.into(), 0],
            Self::Pages { bytes, .. }
            | Self::Zeros { bytes, .. }
            | Self::DeviceState { bytes }
            | Self::Goodbye { bytes, .. } => [bytes.into(), 0],
            Self::Digest { memory, device } => [memory, device],
            Self::RoundEnd { .. } | Self::RoundApplied { .. } | Self::KeepAlive => [0, 0],
        };
        let mut out = [0; Self::SIZE];
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        (out[6], out[7]) = (kind, flag);
        out[8..12].copy_from_slice(&round.to_le_bytes());
        out[12..16].copy_from_slice(&count.to_le_bytes());
        out[16..32].copy_from_slice(&fields[0].to_le_bytes());
        out[32..48].copy_from_slice(&fields[1].to_le_bytes());
        out
    }

    /// Reads a header and checks every limit independent of context.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, ProtocolError> {
        if bytes[..4] != MAGIC {
            return Err(ProtocolError::Magic);
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(ProtocolError::Version(version));
        }
        let (flag, round, count) = (bytes[7], u32_at(bytes, 8), u32_at(bytes, 12));
        let first = u64_at(bytes, 16);
        let runs_within = |limit: u64| match (1..=MAX_RUNS as u32).contains(&count) {
            true if (1..=limit).contains(&first) => Ok(()),
            _ => Err(ProtocolError::TooLarge),
        };
        Ok(match bytes[6] {
            1 => {
                let narrow = |n: u32| u16::try_from(n).map_err(|_| ProtocolError::TooLarge);
                Self::Hello {
                    session: first,
                    memory_len: u64_at(bytes, 32),
                    channel: narrow(round)?,
                    channels: narrow(count)?,
                }
            }
            2 => Self::Welcome { session: first },
            3 => {
                runs_within(MAX_PACKET as u64)?;
                Self::Pages { round, runs: count, bytes: first }
            }
            4 => {
                runs_within((MAX_RUNS * CHUNK) as u64)?;
                Self::Zeros { round, runs: count, bytes: first }
            }
            5 => Self::RoundEnd { round, last: flag != 0 },
            6 => Self::RoundApplied { round },
            7 if first <= MAX_DEVICE_STATE as u64 => Self::DeviceState { bytes: first },
            8 => Self::Digest { memory: u128_at(bytes, 16), device: u128_at(bytes, 32) },
            9 => Self::KeepAlive,
            10 if first <= MAX_MESSAGE as u64 => Self::Goodbye { code: flag, bytes: first },
            7 | 10 => return Err(ProtocolError::TooLarge),
            kind => return Err(ProtocolError::Kind(kind)),
        })
    }

    /// Reads one header; an end of the stream before its first byte is `UnexpectedEof` too.
    pub fn read(input: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; Self::SIZE];
        read_exact(input, &mut bytes)?;
        Self::decode(&bytes).map_err(io::Error::from)
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hello { .. } => "Hello",
            Self::Welcome { .. } => "Welcome",
            Self::Pages { .. } => "Pages",
            Self::Zeros { .. } => "Zeros",
            Self::RoundEnd { .. } => "RoundEnd",
            Self::RoundApplied { .. } => "RoundApplied",
            Self::DeviceState { .. } => "DeviceState",
            Self::Digest { .. } => "Digest",
            Self::KeepAlive => "KeepAlive",
            Self::Goodbye { .. } => "Goodbye",
        }
    }
}

/// Fills `buf`. Unlike `Read::read_exact`, gives up after a request to stop the process.
pub fn read_exact(input: &mut impl Read, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match input.read(buf) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => buf = &mut buf[n..],
            Err(e) if retryable(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Returns `true` if only a harmless signal disturbed the read.
pub fn retryable(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted && !crate::signals::interrupted()
}

/// Reads the message behind a `Goodbye`.
pub fn read_message(input: &mut impl Read, bytes: u64) -> io::Result<String> {
    let mut message = vec![0; bytes.min(MAX_MESSAGE as u64) as usize];
    read_exact(input, &mut message)?;
    // Protects the terminal from the other end.
    Ok(String::from_utf8_lossy(&message).chars().filter(|c| !c.is_control()).collect())
}

/// An encoded `Goodbye` with its message.
pub fn goodbye(code: u8, message: &str) -> Vec<u8> {
    let end = (0..=message.len().min(MAX_MESSAGE)).rev().find(|i| message.is_char_boundary(*i));
    let message = &message.as_bytes()[..end.unwrap_or(0)];
    let mut out = Header::Goodbye { code, bytes: message.len() as u64 }.encode().to_vec();
    out.extend_from_slice(message);
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from(u64_at(bytes, at)) | u128::from(u64_at(bytes, at + 8)) << 64
}

fn size(n: u64) -> Result<usize, ProtocolError> {
    usize::try_from(n).map_err(|_| ProtocolError::RunOutOfBounds)
}

/// A message from the other end outside the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProtocolError {
    Magic,
    Version(u16),
    Kind(u8),
    TooLarge,
    RunOutOfBounds,
    RunNotPages,
    RunOverlap,
    WrongChannel { offset: usize },
    WrongLength,
    WrongRound { got: u32, expected: u32 },
    Unexpected(&'static str),
    Hello(&'static str),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("protocol error: ")?;
        match self {
            Self::Magic => f.write_str("the other end is not a migration_sender"),
            Self::Version(v) => write!(
                f,
                "the other end speaks version {v}, this one {VERSION}; use the same build on both"
            ),
            Self::Kind(kind) => write!(f, "unknown kind of frame {kind}"),
            Self::TooLarge => f.write_str("a count or length is out of its range"),
            Self::RunOutOfBounds => f.write_str("a run lies outside the guest memory"),
            Self::RunNotPages => f.write_str("a run is not whole pages"),
            Self::RunOverlap => f.write_str("the runs of a table overlap or cross a chunk"),
            Self::WrongChannel { offset } => {
                write!(f, "the page at offset {offset:#x} came over another page's channel")
            }
            Self::WrongLength => f.write_str("a run table does not add up to its header"),
            Self::WrongRound { got, expected } => {
                write!(f, "a frame of round {got} came during round {expected}")
            }
            Self::Unexpected(name) => write!(f, "a {name} frame came where none may come"),
            Self::Hello(why) => f.write_str(why),
        }
    }
}

impl From<ProtocolError> for io::Error {
    fn from(error: ProtocolError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { memory_len: 5 * CHUNK + 100, channels: 2 };

    fn decode(list: &[Run], bytes: usize, channel: usize) -> Result<Vec<Run>, ProtocolError> {
        let table: Vec<u8> = list.iter().flat_map(|run| run.encode()).collect();
        let mut runs = Vec::new();
        decode_runs(&table, bytes as u64, channel, LAYOUT, &mut runs).map(|()| runs)
    }

    #[test]
    fn every_header_survives_the_wire() {
        for header in [
            Header::Hello { session: u64::MAX, memory_len: 1 << 40, channel: 3, channels: 8 },
            Header::Welcome { session: 7 },
            Header::Pages { round: 3, runs: 9, bytes: 4096 },
            Header::Zeros { round: u32::MAX, runs: 1, bytes: 1 },
            Header::RoundEnd { round: 1, last: true },
            Header::RoundApplied { round: 8 },
            Header::DeviceState { bytes: 0 },
            Header::Digest { memory: u128::MAX - 5, device: 1 << 100 },
            Header::KeepAlive,
            Header::Goodbye { code: 3, bytes: 12 },
        ] {
            assert_eq!(Header::decode(&header.encode()), Ok(header), "{}", header.name());
        }
    }

    #[test]
    fn a_foreign_protocol_is_refused() {
        let mut http = [0; Header::SIZE];
        http[..14].copy_from_slice(b"GET / HTTP/1.1");
        assert_eq!(Header::decode(&http), Err(ProtocolError::Magic));
        let mut other = Header::KeepAlive.encode();
        other[4] = 9;
        assert_eq!(Header::decode(&other), Err(ProtocolError::Version(9)));
        let mut other = Header::KeepAlive.encode();
        other[6] = 77;
        assert_eq!(Header::decode(&other), Err(ProtocolError::Kind(77)));
    }

    #[test]
    fn counts_beyond_the_limits_are_refused() {
        for header in [
            Header::Pages { round: 0, runs: MAX_RUNS as u32 + 1, bytes: 4096 },
            Header::Pages { round: 0, runs: 0, bytes: 4096 },
            Header::Pages { round: 0, runs: 1, bytes: MAX_PACKET as u64 + 1 },
            Header::Zeros { round: 0, runs: 1, bytes: u64::MAX },
            Header::DeviceState { bytes: u64::MAX },
            Header::Goodbye { code: 0, bytes: MAX_MESSAGE as u64 + 1 },
        ] {
            assert_eq!(Header::decode(&header.encode()), Err(ProtocolError::TooLarge));
        }
    }

    #[test]
    fn runs_are_checked_against_the_memory_and_the_channel() {
        let run = |offset, len| Run { offset, len };
        let good = [run(0, PAGE), run(2 * PAGE, 2 * PAGE), run(4 * CHUNK, CHUNK)];
        assert_eq!(decode(&good, 3 * PAGE + CHUNK, 0), Ok(good.to_vec()));
        let tail = [run(5 * CHUNK, 100)];
        assert_eq!(decode(&tail, 100, 1), Ok(tail.to_vec()));

        use ProtocolError::*;
        assert_eq!(decode(&[run(5 * CHUNK, 101)], 101, 1), Err(RunOutOfBounds));
        assert_eq!(decode(&[run(usize::MAX - PAGE + 1, PAGE)], PAGE, 1), Err(RunOutOfBounds));
        assert_eq!(decode(&[run(0, 0)], 0, 0), Err(RunOutOfBounds));
        assert_eq!(decode(&[run(8, PAGE)], PAGE, 0), Err(RunNotPages));
        assert_eq!(decode(&[run(0, 100)], 100, 0), Err(RunNotPages));
        assert_eq!(decode(&[run(PAGE, PAGE), run(0, PAGE)], 2 * PAGE, 0), Err(RunOverlap));
        assert_eq!(decode(&[run(0, PAGE), run(0, PAGE)], 2 * PAGE, 0), Err(RunOverlap));
        assert_eq!(decode(&[run(CHUNK - PAGE, 2 * PAGE)], 2 * PAGE, 0), Err(RunOverlap));
        assert_eq!(decode(&[run(CHUNK, PAGE)], PAGE, 0), Err(WrongChannel { offset: CHUNK }));
        assert_eq!(decode(&[run(0, PAGE)], 2 * PAGE, 0), Err(WrongLength));
    }

    #[test]
    fn a_goodbye_is_truncated_at_a_character_and_cleaned() {
        let long = "é".repeat(MAX_MESSAGE);
        let bytes = goodbye(1, &long);
        assert_eq!(bytes.len(), Header::SIZE + MAX_MESSAGE);
        let mut input = &b"a\x1b[31mb\n"[..];
        assert_eq!(read_message(&mut input, 8).unwrap(), "a[31mb");
    }
}
