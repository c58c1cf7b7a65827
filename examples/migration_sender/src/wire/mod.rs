//! The wire format: frames, the layout of the memory, digests, connections. `PROTOCOL.md` describes
//! the messages, their order, and the end of every failure.
//!
//! A migration opens N + 1 TCP connections. N *channels* carry frames from the source to the
//! destination, and one more connection carries the answers. After the greeting each connection has
//! one direction, so that one thread owns its reader and one its writer, TLS included.
//!
//! # The order of a page's copies
//!
//! A page is sent once per round, and an older copy must never be applied after a newer copy.
//! Neither a release nor an acknowledgement means an applied page, so the source cannot order two
//! connections by watching its own sends. Two rules give the order:
//!
//! - **A chunk of 2 MiB uses one channel per round.** The channels of the source share the chunks:
//!   an idle channel takes the next one. The destination refuses a chunk from a second channel.
//! - **Every run carries its round, and round n+1 starts only after all end marks of round n.** The
//!   destination answers `RoundApplied` after the end mark on every channel, the source waits for
//!   the answer, and the destination refuses a run of any round but the current.

mod digest;
mod error;
mod frame;
mod layout;
mod offer;
mod stream;
mod tls;

pub use self::{
    digest::{DigestKind, Digester, Secret},
    error::ProtocolError,
    frame::{Header, goodbye, read_exact, read_message, retryable},
    layout::{CHUNK, Layout, PAGE, RegionLayout, Run, decode_runs},
    offer::{Abilities, Offer},
    stream::Stream,
    tls::Tls,
};

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
/// Most bytes of the offer behind a `Hello`.
pub const MAX_OFFER: usize = 64 << 10;
/// Most regions of memory.
pub const MAX_REGIONS: usize = 256;
/// The number of the connection with the answers, in place of a channel's number.
pub const ANSWERS: u16 = u16::MAX;
