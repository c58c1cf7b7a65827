//! Replicates a stream of blocks over tokio: the example of one buffer for many peers.
//!
//! The primary reads a stream and cuts the stream into blocks. A block lies with its header in one buffer
//! of a pool, the *record*. All replicas, and all clients of the tail port, are sent this one buffer, and
//! nothing is copied for a replica.
//!
//! ```text
//!   input --> source --> log file + recent blocks --> feed of replica 0 --> pinbuf::tokio, one pool
//!                ^                                --> feed of replica 1 --> ...
//!                |                                --> feed of a tail client (committed blocks, without headers)
//!                '--- committed <-- ledger <-- acknowledgements of the replicas
//! ```
//!
//! # Promises
//!
//! - **Order.** A replica has a prefix of the stream at all times, and the whole stream at the end.
//! - **Commit.** A block is committed when a quorum of the replicas has acknowledged it. The
//!   acknowledgement names the digest of the whole history, so a replica with another history never counts.
//! - **Backpressure.** At most `--window` accepted blocks are not committed. Then the input is read no further.
//! - **A slow replica slows only itself,** unless the quorum needs the replica. Each has a window of blocks
//!   without an acknowledgement, and at most `--quota` buffers in the kernel's hands. Blocks no longer in memory
//!   come from the log. A replica without a sign of life for `--patience`, while the kernel holds its buffers, is
//!   dropped, and may connect again.
//! - **A slow client of the tail port slows only itself.** At most `--tails` are served at a time, each with
//!   `--quota` buffers in the kernel's hands and one more.
//! - **Bounded memory.** All blocks lie in the pool. The default number of buffers lets the source go on even
//!   if all replicas beyond the quorum and all clients of the tail port stall for ever. Lengths from the network are checked before any
//!   allocation.
//! - **Catch-up.** A replica that connects again tells the end of its file, and gets all further blocks.
//! - **The end is in order.** At the end of the input, at SIGTERM and at SIGINT the connected replicas get all
//!   accepted blocks, and the primary waits for the commit, at most `--patience`. The report has the position of
//!   each replica, and the blocks without a commit. A second signal ends the wait.
//!
//! The network is trusted: nothing is encrypted, and a replica is the number in its hello.
//!
//! # Wire format
//!
//! Every message has 48 bytes: a tag, a number (`u32`) and a position. Numbers are little-endian. A position is
//! the number of blocks before it (`u64`), and the SHA-256 digest of their history: of the digest before the
//! last block, followed by the last block. The digest of the empty history is zeros.
//!
//! | from | tag | number | position | follows |
//! |---|---|---|---|---|
//! | primary | `PBR1` | size of a block, 1 to 16 MiB | | |
//! | replica | `HELO` | of the replica, below `--replicas` | the end of its file, in the log | |
//! | primary | `BLCK` | length, shorter only for the last block | behind the block | the data |
//! | replica | `ACKN` | 0 | behind a block that was sent; stands for all blocks before | |
//! | primary | `DONE` | 0 | the end of the stream | |
//! | primary | `FAIL` | length, at most 1 KiB | | the reason of a refusal |
//!
//! After the end the replica closes the connection. The log file is the messages of all blocks with their data,
//! so the log is sent as it is. The tail port sends the data of all committed blocks and nothing else. What its
//! clients send is ignored. So `nc HOST PORT </dev/null | sha256sum` checks the stream.

#![deny(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a program: its log is standard error")]

mod block;
mod config;
mod connection;
mod ledger;
mod log;
pub mod primary;
pub mod replica;
mod report;
mod shared;
pub mod source;
pub mod wire;

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

/// Opens a file. An error names the file.
///
/// # Errors
///
/// The error of `open(2)`.
pub fn open(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    options.open(path).map_err(named)
}
