//! Frames: a header of [`Header::SIZE`] bytes, little endian, and the bytes of its kind.
//!
//! | frame          | direction | behind the header                                     |
//! |----------------|-----------|-------------------------------------------------------|
//! | `Hello`        | →         | the offer (on channel 0)                              |
//! | `Welcome`      | ←         | (on every connection)                                 |
//! | `Pages`        | →         | a run table, then the bytes of all its runs           |
//! | `Zeros`        | →         | a run table                                           |
//! | `Digests`      | ←         | a run table, then a digest for each page of its runs  |
//! | `RoundEnd`     | →         |                                                       |
//! | `RoundApplied` | ←         |                                                       |
//! | `DeviceState`  | →         | its bytes (channel 0, before the last round's end)    |
//! | `Digest`       | ↔         |                                                       |
//! | `Loaded`       | ←         |                                                       |
//! | `Go`           | →         |                                                       |
//! | `Running`      | ←         |                                                       |
//! | `KeepAlive`    | ↔         | (every second of silence)                             |
//! | `Goodbye`      | ↔         | a message in UTF-8; ends the migration                |

use std::{io, io::Read};

use super::{
    Abilities, CHUNK, MAX_DEVICE_STATE, MAX_MESSAGE, MAX_OFFER, MAX_PACKET, MAX_RUNS, ProtocolError,
};

const MAGIC: [u8; 4] = *b"PbMg";
/// The version of the protocol, in every header.
pub(super) const VERSION: u16 = 2;

/// One header, typed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Header {
    /// Opens a connection: a channel, or [`ANSWERS`](super::ANSWERS). `session` is the same on all
    /// connections of one migration; `bytes` of an offer follow on channel 0, 0 elsewhere.
    Hello { session: u64, abilities: Abilities, channel: u16, channels: u16, bytes: u64 },
    /// The destination has the memory and all connections, and is able to do what was wanted.
    Welcome { session: u64, abilities: Abilities },
    /// `runs` table entries, then `bytes` bytes of pages.
    Pages { round: u32, runs: u32, bytes: u64 },
    /// `runs` table entries for `bytes` zero bytes.
    Zeros { round: u32, runs: u32, bytes: u64 },
    /// `runs` table entries for `bytes` bytes of applied pages, and a digest for each page.
    Digests { round: u32, runs: u32, bytes: u64 },
    /// The channel has sent all of the round; `last` with the guest stopped.
    RoundEnd { round: u32, last: bool },
    /// All channels' end marks of the round have come, and all earlier bytes are in memory.
    RoundApplied { round: u32 },
    /// `bytes` bytes of device state.
    DeviceState { bytes: u64 },
    /// Digests of the final memory and of the device state.
    Digest { memory: u128, device: u128 },
    /// The machine has loaded the devices' state and can start.
    Loaded,
    /// The guest is the destination's: the source never lets it run again.
    Go,
    /// The guest runs at the destination.
    Running,
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
            Self::Digests { round, runs, .. } => (5, 0, round, runs),
            Self::RoundEnd { round, last } => (6, last.into(), round, 0),
            Self::RoundApplied { round } => (7, 0, round, 0),
            Self::DeviceState { .. } => (8, 0, 0, 0),
            Self::Digest { .. } => (9, 0, 0, 0),
            Self::Loaded => (10, 0, 0, 0),
            Self::Go => (11, 0, 0, 0),
            Self::Running => (12, 0, 0, 0),
            Self::KeepAlive => (13, 0, 0, 0),
            Self::Goodbye { code, .. } => (14, code, 0, 0),
        };
        let both = |low: u64, high: u64| u128::from(low) | u128::from(high) << 64;
        let fields: [u128; 2] = match self {
            Self::Hello { session, abilities, bytes, .. } => {
                [both(session, abilities.0.into()), bytes.into()]
            }
            Self::Welcome { session, abilities } => [both(session, abilities.0.into()), 0],
            Self::Pages { bytes, .. }
            | Self::Zeros { bytes, .. }
            | Self::Digests { bytes, .. }
            | Self::DeviceState { bytes }
            | Self::Goodbye { bytes, .. } => [bytes.into(), 0],
            Self::Digest { memory, device } => [memory, device],
            _ => [0, 0],
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
        let at_most = |n: u64, limit: usize| match n <= limit as u64 {
            true => Ok(n),
            false => Err(ProtocolError::TooLarge),
        };
        let runs_within = |limit: usize| match (1..=MAX_RUNS as u32).contains(&count) && first > 0 {
            true => at_most(first, limit),
            false => Err(ProtocolError::TooLarge),
        };
        let narrow = |n: u32| u16::try_from(n).map_err(|_| ProtocolError::TooLarge);
        let abilities = Abilities(u32_at(bytes, 24));
        Ok(match bytes[6] {
            1 => Self::Hello {
                session: first,
                abilities,
                channel: narrow(round)?,
                channels: narrow(count)?,
                bytes: at_most(u64_at(bytes, 32), MAX_OFFER)?,
            },
            2 => Self::Welcome { session: first, abilities },
            3 => Self::Pages { round, runs: count, bytes: runs_within(MAX_PACKET)? },
            4 => Self::Zeros { round, runs: count, bytes: runs_within(MAX_RUNS * CHUNK)? },
            5 => Self::Digests { round, runs: count, bytes: runs_within(MAX_PACKET)? },
            6 => Self::RoundEnd { round, last: flag != 0 },
            7 => Self::RoundApplied { round },
            8 => Self::DeviceState { bytes: at_most(first, MAX_DEVICE_STATE)? },
            9 => Self::Digest { memory: u128_at(bytes, 16), device: u128_at(bytes, 32) },
            10 => Self::Loaded,
            11 => Self::Go,
            12 => Self::Running,
            13 => Self::KeepAlive,
            14 => Self::Goodbye { code: flag, bytes: at_most(first, MAX_MESSAGE)? },
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
            Self::Digests { .. } => "Digests",
            Self::Digest { .. } => "Digest",
            Self::Loaded => "Loaded",
            Self::Go => "Go",
            Self::Running => "Running",
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

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from(u64_at(bytes, at)) | u128::from(u64_at(bytes, at + 8)) << 64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_survives_the_wire() {
        for header in [
            Header::Hello {
                session: u64::MAX,
                abilities: Abilities(5),
                channel: 3,
                channels: 8,
                bytes: 99,
            },
            Header::Welcome { session: 7, abilities: Abilities(u32::MAX) },
            Header::Pages { round: 3, runs: 9, bytes: 4096 },
            Header::Zeros { round: u32::MAX, runs: 1, bytes: 1 },
            Header::Digests { round: 7, runs: 1, bytes: 1 },
            Header::RoundEnd { round: 1, last: true },
            Header::RoundApplied { round: 8 },
            Header::DeviceState { bytes: 0 },
            Header::Digest { memory: u128::MAX - 5, device: 1 << 100 },
            Header::Loaded,
            Header::Go,
            Header::Running,
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
            Header::Digests { round: 0, runs: 1, bytes: MAX_PACKET as u64 + 1 },
            Header::DeviceState { bytes: u64::MAX },
            Header::Goodbye { code: 0, bytes: MAX_MESSAGE as u64 + 1 },
        ] {
            assert_eq!(Header::decode(&header.encode()), Err(ProtocolError::TooLarge));
        }
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
