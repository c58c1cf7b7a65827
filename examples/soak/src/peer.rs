//! Peers: steady, slow, stalling, resetting.

use std::{
    io::{self, Read},
    net::TcpStream,
    os::fd::AsRawFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    journal::{Cursor, Journal},
    place::Place,
    random::Random,
};

/// The way a peer reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    Steady,
    /// A few bytes at a time.
    Slow,
    /// Pauses after this many bytes, a few times.
    Stalls {
        after: u64,
        pause: Duration,
    },
    /// Breaks the connection after this many bytes.
    Resets {
        after: u64,
    },
    /// Never reads, and leaves after a time.
    Deaf(Duration),
}

/// The end of the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// In order, after all bytes.
    Whole,
    /// By an error, or because the peer left.
    Broken,
    /// Lost with other packets of the network.
    Lost,
}

/// After this long without a byte, an expected end is missing.
const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_WITH_LOSS: Duration = Duration::from_secs(3);
const MAX_STALLS: usize = 4;
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Manner {
    pub(crate) fn choose(random: &mut Random) -> Self {
        match random.within(0..=11) {
            0..=3 => Self::Steady,
            4 | 5 => Self::Slow,
            6..=8 => Self::Stalls {
                after: random.magnitude(1..=2 << 20) as u64,
                pause: random.millis(10..=400),
            },
            9 | 10 => Self::Resets { after: random.magnitude(1..=1 << 20) as u64 },
            _ => Self::Deaf(random.millis(10..=800)),
        }
    }

    /// Returns `true` if the peer reads to the end.
    pub(crate) fn is_patient(self) -> bool {
        matches!(self, Self::Steady | Self::Slow | Self::Stalls { .. })
    }
}

/// Reads in the peer's manner and compares. Returns the number of bytes and the kind of end, or a
/// fault.
pub(crate) fn receive(
    mut far: TcpStream,
    manner: Manner,
    place: Place,
    journal: &Arc<Journal>,
) -> Result<(u64, End), String> {
    if let Manner::Deaf(time) = manner {
        thread::sleep(time);
        return Ok((0, End::Broken));
    }
    let cannot = |error: io::Error| format!("the peer cannot set its socket up: {error}");
    far.set_read_timeout(Some(LOOK_EVERY)).map_err(cannot)?;
    let mut room = vec![0; if manner == Manner::Slow { 16 << 10 } else { 128 << 10 }];
    let mut cursor = Cursor::default();
    let (mut stalled_at, mut stalls) = (0, 0);
    let mut last = Instant::now();
    loop {
        match far.read(&mut room) {
            Ok(0) if journal.is_whole(&cursor) => return Ok((cursor.bytes, End::Whole)),
            Ok(0) => return Err(format!("an orderly end after {} bytes", cursor.bytes)),
            Ok(count) => {
                journal.check(&mut cursor, &room[..count])?;
                last = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let silent = if journal.has_ended() { last.elapsed() } else { Duration::ZERO };
                if place.is_lossy && silent > PATIENCE_WITH_LOSS {
                    return Ok((cursor.bytes, End::Lost));
                }
                if silent > PATIENCE {
                    return Err(format!("no end after {} bytes", cursor.bytes));
                }
            }
            Err(_) => return Ok((cursor.bytes, End::Broken)),
        }
        match manner {
            Manner::Slow => thread::sleep(Duration::from_millis(1)),
            Manner::Stalls { after, pause }
                if stalls < MAX_STALLS && cursor.bytes - stalled_at >= after =>
            {
                (stalled_at, stalls) = (cursor.bytes, stalls + 1);
                thread::sleep(pause);
            }
            Manner::Resets { after } if cursor.bytes >= after => {
                reset_on_close(&far);
                return Ok((cursor.bytes, End::Broken));
            }
            _ => {}
        }
    }
}

fn reset_on_close(socket: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(socket, libc::SO_LINGER, &linger);
}

/// Sets an option of the socket.
pub(crate) fn set_option<T>(socket: &impl AsRawFd, name: i32, value: &T) {
    let len = size_of::<T>() as libc::socklen_t;
    let start = (&raw const *value).cast();
    // SAFETY: setsockopt(2) reads `len` bytes of the value, alive during the call.
    unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, start, len) };
}
