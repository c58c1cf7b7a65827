//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use pinbuf::Policy;

use crate::pieces::PIECE;

/// Serves the files of a folder over HTTP/1.1, without copying them into the kernel.
///
/// A line per request goes to stdout. SIGTERM and SIGINT end the server in order: open transfers finish.
#[derive(Clone, Debug, Parser)]
#[command(name = "file_server", version)]
pub struct Settings {
    /// The folder to serve. Names with a dot in front are left out.
    #[arg(default_value = ".")]
    pub root: PathBuf,
    /// Listen here; port 0 takes a free port and prints the number.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// When sends go without a copy.
    #[arg(long, value_enum, default_value_t)]
    pub zerocopy: ZeroCopy,
    /// Memory of the pool, in MiB: for bytes on their way, and for the cache.
    #[arg(long, value_name = "MIB", default_value = "64", value_parser = clap::value_parser!(u32).range(1..))]
    pub memory: u32,
    /// The part of the pool for files sent lately, in percent.
    #[arg(long, value_name = "PERCENT", default_value = "50", value_parser = clap::value_parser!(u32).range(0..=90))]
    pub cache: u32,
    /// Connections at a time, three descriptors each; more clients wait.
    #[arg(long, value_name = "COUNT", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// Seconds for the head of a request.
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    pub head_timeout: u64,
    /// Seconds between two requests of a connection.
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    pub idle_timeout: u64,
    /// Seconds for which a client may take nothing of an answer.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(1..))]
    pub stall_timeout: u64,
    /// Seconds for open transfers after a signal.
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    pub end_timeout: u64,
    /// Serve over TLS, with the certificate chain of this PEM file.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The key of the certificate, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// No line per request.
    #[arg(long, short)]
    pub quiet: bool,
}

/// When sends go without a copy.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, ValueEnum)]
pub enum ZeroCopy {
    /// Where it pays, as far as known.
    #[default]
    Auto,
    /// Always, also over loopback, where the kernel copies later.
    Prefer,
    /// Never.
    Never,
}

impl From<ZeroCopy> for Policy {
    fn from(zerocopy: ZeroCopy) -> Self {
        match zerocopy {
            ZeroCopy::Auto => Self::Auto,
            ZeroCopy::Prefer => Self::Prefer,
            ZeroCopy::Never => Self::Never,
        }
    }
}

impl Settings {
    /// The number of buffers.
    pub(crate) fn slots(&self) -> usize {
        self.memory as usize * (1 << 20) / PIECE
    }

    pub(crate) fn head_timeout(&self) -> Duration {
        Duration::from_secs(self.head_timeout)
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout)
    }

    pub(crate) fn stall_timeout(&self) -> Duration {
        Duration::from_secs(self.stall_timeout)
    }

    pub(crate) fn end_timeout(&self) -> Duration {
        Duration::from_secs(self.end_timeout)
    }
}
