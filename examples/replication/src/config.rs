//! The settings of the primary.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use clap::value_parser;
use pinbuf::{Policy, Sender, sender::SenderBuilder};

use crate::wire::MAX_BLOCK;

/// Be the primary: send a stream of blocks to replicas.
#[derive(Clone, Debug, clap::Parser)]
pub struct Config {
    /// Wait for replicas here; port 0 takes a free port.
    #[arg(long, default_value = "127.0.0.1:4700")]
    pub listen: SocketAddr,
    /// Send all committed bytes, without headers, to each client here: for nc, curl and the like.
    #[arg(long)]
    pub tail: Option<SocketAddr>,
    /// The most clients of the tail port at a time; others wait.
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u32).range(1..=4096))]
    pub tails: u32,
    /// The file for all accepted blocks, for replicas that are behind; must not exist.
    #[arg(long)]
    pub log: PathBuf,
    /// Read the stream from this file instead of standard input.
    #[arg(long, conflicts_with = "generate")]
    pub input: Option<PathBuf>,
    /// Generate a stream of so many bytes instead.
    #[arg(long, value_name = "BYTES")]
    pub generate: Option<u64>,
    /// The number of replicas; their numbers begin at 0.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=4096))]
    pub replicas: u32,
    /// Commit a block when so many replicas have acknowledged it [default: a majority].
    #[arg(long, value_parser = value_parser!(u32).range(1..=4096))]
    pub quorum: Option<u32>,
    /// The length of a block in bytes.
    #[arg(long, default_value_t = 256 << 10, value_parser = value_parser!(u32).range(1..=i64::from(MAX_BLOCK)))]
    pub block_bytes: u32,
    /// The most blocks accepted but not committed, sent to a replica but not acknowledged, and kept in memory.
    #[arg(long, default_value_t = 32, value_parser = value_parser!(u32).range(1..=65536))]
    pub window: u32,
    /// The most buffers of one connection in the kernel's hands.
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u32).range(1..=65536))]
    pub quota: u32,
    /// Buffers of the pool [default: enough even if all clients of the tail port and all replicas beyond the
    /// quorum stall].
    #[arg(long)]
    pub buffers: Option<u32>,
    /// Seconds without a sign of life after which a connection that holds buffers is dropped; also the limit for
    /// a hello, and for the end.
    #[arg(long, default_value_t = 30, value_parser = value_parser!(u64).range(1..=86400))]
    pub patience: u64,
    /// When blocks go without copy: auto (not where the kernel copies anyway), prefer, require or never.
    #[arg(long, default_value = "auto", value_parser = parse_policy)]
    pub zerocopy: Policy,
}

impl Config {
    pub(crate) fn quorum(&self) -> u32 {
        self.quorum.unwrap_or(self.replicas / 2 + 1)
    }

    /// The number of buffers: the recent blocks, two for the source and the log, and all that replicas beyond
    /// the quorum and clients of the tail port can hold.
    pub(crate) fn buffers(&self) -> u32 {
        let tails = if self.tail.is_some() { self.tails } else { 0 };
        let spare = self.replicas.saturating_sub(self.quorum()) + tails;
        self.buffers.unwrap_or(self.window + 2 + spare * (self.quota + 1))
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        let (quorum, buffers, least) = (self.quorum(), self.buffers(), self.window + 2);
        let problem = match () {
            () if quorum > self.replicas => {
                format!("a quorum of {quorum} needs more than {} replicas", self.replicas)
            }
            () if buffers < least => {
                format!("raise --buffers (now {buffers}) to {least} or more, or lower --window")
            }
            () => return Ok(()),
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
    }

    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }

    pub(crate) fn sender(&self) -> SenderBuilder {
        Sender::builder().policy(self.zerocopy).max_hold(self.patience())
    }
}

fn parse_policy(text: &str) -> Result<Policy, &'static str> {
    match text {
        "auto" => Ok(Policy::Auto),
        "prefer" => Ok(Policy::Prefer),
        "require" => Ok(Policy::Require),
        "never" => Ok(Policy::Never),
        _ => Err("one of auto, prefer, require, never"),
    }
}
