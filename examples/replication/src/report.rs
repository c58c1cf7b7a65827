//! The report of the primary at its end.

use std::{fmt, io};

use pinbuf::{Pool, pool::Audit};

use crate::{ledger::Ledger, log::Log};

/// The fate of all accepted blocks.
#[derive(Debug)]
#[must_use = "some blocks may not be committed"]
pub struct Report {
    /// The end of the input: an error of the input or of the log, if any.
    pub input: io::Result<()>,
    /// Blocks that were accepted.
    pub accepted: u64,
    /// The length of all accepted blocks: so far the input is in the log.
    pub bytes: u64,
    /// Blocks that were committed.
    pub committed: u64,
    /// The account of each replica.
    pub replicas: Vec<String>,
    /// The account of the pool.
    pub audit: Audit,
}

impl Report {
    pub(crate) async fn new(
        mut input: io::Result<()>,
        ledger: &Ledger,
        log: &Log,
        pool: &Pool,
    ) -> Self {
        let accepted = ledger.accepted().borrow().blocks;
        let bytes = log.bytes(accepted).await.unwrap_or_else(|error| {
            input = Err(error);
            0
        });
        log.forget();
        let committed = ledger.committed().borrow().blocks;
        Self { input, accepted, bytes, committed, replicas: ledger.lines(), audit: pool.audit() }
    }

    /// Returns `true` if the input came to its end, or was stopped, and every accepted block is committed.
    pub fn is_complete(&self) -> bool {
        self.input.is_ok() && self.committed == self.accepted
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { input, accepted, bytes, committed, replicas, audit } = self;
        if let Err(error) = input {
            writeln!(f, "the stream broke off: {error}")?;
        }
        writeln!(f, "accepted: {accepted} blocks, {bytes} bytes")?;
        writeln!(f, "committed: {committed} blocks")?;
        if committed < accepted {
            writeln!(f, "not committed: blocks {committed} to {}", accepted - 1)?;
        }
        replicas.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        write!(f, "pool: {audit}")
    }
}
