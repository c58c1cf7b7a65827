//! The command line.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::ArgPredicate};

use crate::{
    track::Method,
    wire::{DigestKind, MAX_CHANNELS, MAX_DEVICE_STATE},
};

const EXAMPLES: &str = "\
Examples:
  migration_sender                                 1 GiB over loopback, both ends in this process
  migration_sender --memory 4G --channels 4 --dirty-rate 500M --json
  migration_sender --memory-in guest.ram --memory-out copy.ram --address ::1
  migration_sender receive --listen 0.0.0.0:4444 --memory-out guest.ram      on the destination
  migration_sender send tcp:192.0.2.7:4444 --memory-in guest.ram             on the source
  migration_sender receive --listen 0.0.0.0:4444 --qmp /run/b.qmp            a QEMU waits
  migration_sender send tcp:192.0.2.7:4444 --qmp /run/a.qmp                  a QEMU moves
  migration_sender doctor --peer 192.0.2.7         will it work here, and on the way there

Sizes and rates take K, M, G and T (1024 each); rates are per second.

Exit codes:
  0  done, and both ends hold the same bytes
  1  a file, a socket or the other end failed
  2  the command line makes no sense
  3  both ends hold different bytes
  4  `--zerocopy require` without zero copy; `doctor` found it not to work
  5  the memory was dirtied faster than it was sent, or the time was up
  6  a buffer of the pool was not free at the end
  7  undecided: the guest was handed over, and may or may not run at the destination; look at
     both machines before any other step

A signal (SIGINT, SIGTERM) cancels at any moment before the hand-over: the guest goes on at the
source.";

/// Migrates a guest: a running QEMU (--qmp), or a make-believe guest of this program.
///
/// Pre-copy in rounds over several TCP connections: the memory is sent in place and without copies
/// while the guest writes to it. Then the changed pages are sent again, until the remaining pages
/// fit into the downtime limit. The last round runs with the guest stopped. Then the destination
/// loads the devices' state and lets the guest run.
///
/// Without a sub-command both ends run in this process, over TCP loopback.
#[derive(Debug, Parser)]
#[command(name = "migration_sender", version, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub both: BothArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Be the source: send the memory to a listening destination.
    #[command(after_help = EXAMPLES)]
    Send(SendArgs),
    /// Be the destination: wait for a source and take its memory.
    #[command(after_help = EXAMPLES)]
    Receive(ReceiveArgs),
    /// Tell whether zero copy works here, and what to change.
    #[command(after_help = EXAMPLES)]
    Doctor(pinbuf_doctor::Args),
}

#[derive(Debug, Args)]
pub struct BothArgs {
    #[command(flatten)]
    pub source: SourceArgs,
    /// Address of this machine for both ends, IPv4 or IPv6.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP", value_parser = parse_ip)]
    pub address: IpAddr,
    /// Write the received memory to this file, whole or not at all, readable by its owner alone. A
    /// link is followed; the target must be a regular file or absent.
    #[arg(long, value_name = "FILE")]
    pub memory_out: Option<PathBuf>,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct SendArgs {
    /// Address of the destination: tcp:HOST:PORT, an IPv6 address in brackets.
    #[arg(value_name = "tcp:HOST:PORT", value_parser = parse_target)]
    pub target: String,
    /// The monitor of the QEMU whose guest moves: a unix socket of QMP.
    #[arg(long, value_name = "SOCKET",
          conflicts_with_all = ["memory", "memory_in", "dirty_rate", "dirty_working_set", "seed"])]
    pub qmp: Option<PathBuf>,
    /// The way to find the pages that a QEMU's guest changes.
    #[arg(long, value_enum, default_value_t = Method::Auto, requires = "qmp")]
    pub track: Method,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct ReceiveArgs {
    // Not a doc comment: rustdoc takes the brackets for a link.
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_parser = parse_listen,
        help = "Listen on HOST:PORT, as in 0.0.0.0:4444 or [::]:4444; \
                port 0 takes a free port and prints the number"
    )]
    pub listen: String,
    /// The monitor of the QEMU that waits for the guest (-incoming defer): a unix socket of QMP.
    #[arg(long, value_name = "SOCKET", conflicts_with = "memory_out")]
    pub qmp: Option<PathBuf>,
    /// Write the received memory to this file, whole or not at all, readable by its owner alone. A
    /// link is followed; the target must be a regular file or absent.
    #[arg(long, value_name = "FILE")]
    pub memory_out: Option<PathBuf>,
    /// Refuse a guest with more memory than this.
    #[arg(long, value_name = "SIZE", default_value = "64G", value_parser = parse_size)]
    pub max_memory: u64,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Give up after this many seconds of migration.
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = parse_seconds)]
    pub timeout: Duration,
    /// Give up when the other end is silent for this many seconds.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_stall)]
    pub stall_timeout: Duration,
    /// Encrypt all connections with TLS 1.3, with ca.pem, cert.pem and key.pem of this folder. Each
    /// end asks the other for a certificate of the authority.
    #[arg(long, value_name = "FOLDER")]
    pub tls: Option<PathBuf>,
    /// The name in the destination's certificate [default: the host of the target].
    #[arg(long, value_name = "NAME", requires = "tls")]
    pub tls_name: Option<String>,
    /// Print the result as JSON, with the names of QEMU's query-migrate.
    #[arg(long)]
    pub json: bool,
    /// No progress, only the result and errors.
    #[arg(long, short)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct SourceArgs {
    /// Size of the guest memory, filled with a pseudo-random pattern, an eighth of it zero.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_memory)]
    pub memory: u64,
    /// Take this file as the guest memory, in place; it is never changed.
    #[arg(long, value_name = "FILE", conflicts_with = "memory")]
    pub memory_in: Option<PathBuf>,
    /// Number of TCP connections, with a thread each.
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u16).range(1..=MAX_CHANNELS as i64))]
    pub channels: u16,
    /// Rate at which the guest dirties its memory; 0 for an idle guest [default: 100M; 0 with
    /// --memory-in, so that the destination gets the file as it is].
    #[arg(long, value_name = "RATE", default_value = "100M", hide_default_value = true,
          default_value_if("memory_in", ArgPredicate::IsPresent, "0"), value_parser = parse_size)]
    pub dirty_rate: u64,
    /// The part of the memory that the guest writes [default: 64M, at most the memory].
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub dirty_working_set: Option<u64>,
    /// Seed of the memory's pattern and of the dirtier.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Size of the device state, sent in pool buffers.
    #[arg(long, value_name = "SIZE", default_value = "512K", value_parser = parse_device_state)]
    pub device_state: u64,
    /// Stop the guest when the remaining pages need at most this many milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 300)]
    pub downtime_limit: u64,
    /// Give up after this many rounds with the guest running.
    #[arg(long, value_name = "N", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_rounds: u32,
    /// Limit of the rate, over all channels together.
    #[arg(long, visible_alias = "rate-limit", value_name = "RATE", value_parser = parse_rate_limit)]
    pub max_bandwidth: Option<u64>,
    /// Slow down a guest that changes its pages faster than they are sent, if the machine can.
    #[arg(long)]
    pub auto_converge: bool,
    /// The digests of pages: xxh3 is keyed and fast, blake3 withstands a guest that chooses pages.
    #[arg(long, value_enum, default_value_t = DigestKind::Xxh3)]
    pub digest: DigestKind,
    /// Compare digests of the whole memory before the guest starts. Always on without --qmp.
    #[arg(long)]
    pub verify: bool,
    /// Use of zero copy.
    #[arg(long, value_enum, default_value_t = ZeroCopy::Auto)]
    pub zerocopy: ZeroCopy,
    /// Copy sends smaller than this [default: the library's].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub threshold: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ZeroCopy {
    /// The library's default.
    Auto,
    /// Whenever the kernel accepts it.
    Prefer,
    /// As prefer, but fail (exit code 4) without zero copy.
    Require,
    /// Never.
    Never,
}

impl ZeroCopy {
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::Never => "never",
        }
    }
}

/// A number of bytes, with K, M, G or T for powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower.strip_suffix("/s").unwrap_or(&lower);
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        unit => return Err(format!("unknown unit `{unit}`; use K, M, G or T")),
    };
    let number: u64 = digits.trim_end().parse().map_err(|_| {
        "not a size; write a whole number with K, M, G or T, as in 512M".to_string()
    })?;
    number.checked_mul(1 << shift).filter(|n| *n <= i64::MAX as u64).ok_or("too large".into())
}

fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("there is nothing to migrate in no memory".into()),
        size => Ok(size),
    }
}

fn parse_device_state(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size if size <= MAX_DEVICE_STATE as u64 => Ok(size),
        _ => Err(format!("at most {} MiB", MAX_DEVICE_STATE >> 20)),
    }
}

fn parse_rate_limit(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        rate if rate >= 1 << 20 => Ok(rate),
        _ => Err("at least 1M per second".into()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_string())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() && seconds < 1e9 => Ok(duration),
        _ => Err("must be more than 0 and less than a billion seconds".into()),
    }
}

fn parse_stall(text: &str) -> Result<Duration, String> {
    let duration = parse_seconds(text)?;
    match duration >= Duration::from_secs(3) {
        true => Ok(duration),
        false => Err("at least 3: both ends say a word every second".into()),
    }
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| "not an IP address, such as 127.0.0.1 or ::1".into())
}

fn parse_target(text: &str) -> Result<String, String> {
    let form = "write tcp:HOST:PORT, as in tcp:192.0.2.7:4444 or tcp:[::1]:4444";
    parse_address(text).ok_or(form.into())
}

fn parse_listen(text: &str) -> Result<String, String> {
    parse_address(text).ok_or("write HOST:PORT, as in 0.0.0.0:4444 or [::]:4444".into())
}

/// HOST:PORT, also with the prefix that `receive` prints and `send` takes.
fn parse_address(text: &str) -> Option<String> {
    let address = text.strip_prefix("tcp:").unwrap_or(text);
    let (host, port) = address.rsplit_once(':')?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let wrong = host.is_empty() || (host.contains(':') && !bracketed);
    (!wrong && port.parse::<u16>().is_ok()).then(|| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, size) in
            [("4096", 4096), ("1k", 1024), ("512M", 512 << 20), ("1GiB", 1 << 30), ("2tb", 2 << 40)]
        {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        assert_eq!(parse_size("100M/s"), Ok(100 << 20));
        for text in ["", "M", "-1", "1.5G", "1x", "99999999T", "1 2"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits_of_options_hold() {
        assert_eq!(parse_device_state("64M"), Ok(64 << 20));
        assert!(parse_device_state("65M").is_err());
        assert!(parse_memory("0").is_err());
        assert!(parse_rate_limit("1K").is_err());
        assert!(parse_stall("1").is_err());
        assert!(parse_seconds("0").is_err() && parse_seconds("nan").is_err());
    }

    #[test]
    fn targets_need_a_host_and_a_port() {
        assert_eq!(parse_target("tcp:[::1]:4444").as_deref(), Ok("[::1]:4444"));
        assert_eq!(parse_target("localhost:1").as_deref(), Ok("localhost:1"));
        for text in ["tcp:host", "host", "::1:4444", ":4444", "host:70000", "unix:/tmp/x"] {
            assert!(parse_target(text).is_err(), "{text}");
        }
    }
}
