//! The user interface: progress on stderr, the result on stdout.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this file is the user interface")]

use std::{
    io::{IsTerminal, Write, stderr, stdout},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{failure::Failure, wire::PAGE};

/// The result of a migration. As JSON it has the names of QEMU's `query-migrate`, with times in
/// milliseconds; `congestion-control`, `zerocopy`, `pool` and `verify` are additions.
#[derive(Clone, Default, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    pub status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_desc: Option<String>,
    pub total_time: u64,
    pub setup_time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_split: Option<DowntimeSplit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_downtime: Option<u64>,
    pub ram: Ram,
    /// The way of finding changed pages, and its reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track: Option<(String, String)>,
    /// The congestion control of the sockets, which decides much of the rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub congestion_control: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zerocopy: Option<ZeroCopyReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    Completed,
    #[default]
    Failed,
    Cancelled,
}

/// The parts of the downtime, in microseconds. The parts are consecutive, except for the scan: the
/// slowest thread's time of looking for dirty pages during the sending.
#[derive(Clone, Copy, Default, Debug, Serialize)]
pub struct DowntimeSplit {
    /// Stop of the guest and save of its devices.
    pub stop_us: u64,
    /// Search of the whole memory for pages that differ.
    pub survey_us: u64,
    pub scan_us: u64,
    /// Until every channel has accepted the last byte.
    pub send_us: u64,
    /// Until the destination has applied all bytes.
    pub end_us: u64,
    /// Until the destination has loaded the devices' state; 0 for the make-believe guest, as is the start.
    pub load_us: u64,
    /// Until the guest runs there.
    pub start_us: u64,
}

/// Counts of the guest memory. Bytes unless noted otherwise.
#[derive(Clone, Default, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ram {
    /// All bytes on the wire, with headers and device state.
    pub transferred: u64,
    pub remaining: u64,
    pub total: u64,
    /// Zero pages, sent as a header only.
    pub duplicate: u64,
    /// Pages sent with their bytes.
    pub normal: u64,
    pub normal_bytes: u64,
    /// Pages sent in rounds after the first.
    pub again: u64,
    /// Pages dirtied per second in the last round with the guest running.
    pub dirty_pages_rate: u64,
    /// Megabits per second.
    pub mbps: f64,
    pub dirty_sync_count: u64,
    /// Zero-copy sends that the kernel copied.
    pub dirty_sync_missed_zero_copy: u64,
    pub page_size: usize,
    /// All channels together, that is, every byte.
    pub multifd_bytes: u64,
    pub pages_per_second: u64,
    pub precopy_bytes: u64,
    pub downtime_bytes: u64,
    pub postcopy_bytes: u64,
    pub postcopy_requests: u64,
}

impl Ram {
    /// Computes the derived fields from the counts and the time of the transfer.
    pub fn finish(&mut self, transfer: Duration) {
        let seconds = transfer.as_secs_f64().max(1e-6);
        self.page_size = PAGE;
        self.multifd_bytes = self.transferred;
        self.mbps = (self.transferred as f64 * 8.0 / seconds / 1e4).round() / 100.0;
        self.pages_per_second = ((self.normal + self.duplicate) as f64 / seconds) as u64;
    }
}

/// The sums of the counts of all channels' senders.
#[derive(Clone, Default, Debug, Serialize)]
pub struct ZeroCopyReport {
    /// The requested policy: auto, prefer, require or never.
    pub policy: &'static str,
    /// `true` if the sockets were capable of zero copy.
    pub available: bool,
    /// The reason of a channel with copies only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub sends_zero_copy: u64,
    pub sends_copied: u64,
    pub bytes_zero_copy: u64,
    pub bytes_copied: u64,
    /// Notifications read.
    pub notifications: u64,
    /// Notifications that report a copy, as always on loopback.
    pub completions_copied: u64,
    pub no_bufs_optmem: u64,
    pub no_bufs_memlock: u64,
    /// Buffers and runs of pages still unreleased at the close of the channel.
    pub unreleased: u64,
    /// CPU time of the sending threads, in microseconds.
    pub cpu_us: u64,
}

impl ZeroCopyReport {
    /// Adds the counts of a channel.
    pub fn add(&mut self, other: &Self) {
        self.policy = other.policy;
        self.available |= other.available;
        self.reason = self.reason.take().or_else(|| other.reason.clone());
        self.sends_zero_copy += other.sends_zero_copy;
        self.sends_copied += other.sends_copied;
        self.bytes_zero_copy += other.bytes_zero_copy;
        self.bytes_copied += other.bytes_copied;
        self.notifications += other.notifications;
        self.completions_copied += other.completions_copied;
        self.no_bufs_optmem += other.no_bufs_optmem;
        self.no_bufs_memlock += other.no_bufs_memlock;
        self.unreleased += other.unreleased;
        self.cpu_us += other.cpu_us;
    }

    /// Zero-copy sends that the kernel copied or refused.
    pub fn missed(&self) -> u64 {
        self.completions_copied + self.refused()
    }

    /// Zero-copy sends that the kernel refused for lack of memory.
    fn refused(&self) -> u64 {
        self.no_bufs_optmem + self.no_bufs_memlock
    }

    /// What became of zero copy.
    fn state(&self) -> String {
        match &self.reason {
            Some(reason) => format!("copied, {reason}"),
            None if !self.available => "unavailable".into(),
            None if self.sends_zero_copy == 0 => "enabled, no send large enough".into(),
            None if self.completions_copied >= self.sends_zero_copy => {
                "enabled, but the kernel copies on this route, as always on loopback".into()
            }
            None => "enabled".into(),
        }
    }
}

/// The pool's slots by state, at the end.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct PoolReport {
    pub free: usize,
    pub owned: usize,
    pub in_flight: usize,
    pub quarantined: usize,
    /// Slots with contradictory records in the pool.
    pub mismatches: usize,
}

impl PoolReport {
    /// Returns `true` if every slot is free.
    pub fn is_accounted(&self) -> bool {
        self.owned == 0 && self.in_flight == 0 && self.quarantined == 0 && self.mismatches == 0
    }
}

/// The comparison of both ends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Verify {
    pub digest_match: bool,
    pub device_state_match: bool,
    /// Keyed digest of the memory of the source.
    pub source_digest: String,
    /// Keyed digest of the memory of the destination.
    pub destination_digest: String,
}

impl Verify {
    /// Compares (memory, device state) of both ends.
    pub fn new(source: (u128, u128), destination: (u128, u128)) -> Self {
        Self {
            digest_match: source.0 == destination.0,
            device_state_match: source.1 == destination.1,
            source_digest: format!("{:032x}", source.0),
            destination_digest: format!("{:032x}", destination.0),
        }
    }

    pub fn is_match(&self) -> bool {
        self.digest_match && self.device_state_match
    }
}

/// Progress on stderr: a bar on a terminal, lines elsewhere.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Progress {
    pub fn new(quiet: bool) -> Self {
        let bar = (!quiet && stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template(
                "{prefix:10} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {msg}",
            );
            let bar = ProgressBar::new(0);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, quiet }
    }

    /// Starts a round of up to `bytes`.
    pub fn round(&self, round: u32, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.reset();
            bar.set_length(bytes);
            bar.set_prefix(format!("round {round}"));
        }
    }

    /// The number of sent bytes of the round.
    pub fn at(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes.min(bar.length().unwrap_or(bytes)));
        }
    }

    /// A line of progress.
    pub fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None if self.quiet => {}
            None => say(line),
        }
    }

    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Writes a line to stderr, even under --quiet.
pub fn say(line: &str) {
    // A closed stderr must not end a migration.
    let _ = writeln!(stderr(), "{line}");
}

/// Prints the result on stdout and the failure on stderr.
pub fn print(report: &Report, failure: Option<&Failure>, json: bool) {
    let text = match json {
        true => serde_json::to_string_pretty(report).unwrap_or_default() + "\n",
        // Without success there is no result; the error is enough.
        false if failure.is_some() && report.verify.is_none() => String::new(),
        false => table(report),
    };
    let _ = stdout().write_all(text.as_bytes());
    if let Some(failure) = failure {
        say(&format!("error: {failure}"));
    }
}

/// A number of bytes for people.
pub fn mib(bytes: u64) -> String {
    match bytes {
        0..0x400 => format!("{bytes} B"),
        0x400..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}

/// A rate for people.
pub fn rate(bytes: u64, time: Duration) -> String {
    let bytes_per_second = bytes as f64 / time.as_secs_f64().max(1e-6);
    format!("{:.0} MiB/s", bytes_per_second / f64::from(1 << 20))
}

fn table(report: &Report) -> String {
    let mut rows: Vec<(&str, String)> = Vec::new();
    let ram = &report.ram;
    let status = match report.status {
        Status::Completed => "completed",
        Status::Failed => "failed",
        Status::Cancelled => "cancelled",
    };
    rows.push(("status", status.into()));
    rows.push(("total time", format!("{} ms, setup {} ms", report.total_time, report.setup_time)));
    if let Some(downtime) = report.downtime {
        rows.push(("downtime", format!("{downtime} ms")));
    }
    if let Some(split) = report.downtime_split {
        let DowntimeSplit { stop_us, survey_us, scan_us, send_us, end_us, load_us, start_us } =
            split;
        let parts = format!(
            "stop {stop_us} us, survey {survey_us} us, send {send_us} us (scan {scan_us}), end \
             {end_us} us, load {load_us} us, start {start_us} us"
        );
        rows.push(("", parts));
    }
    rows.push(("memory", mib(ram.total)));
    let bytes_per_second = ram.mbps * 1e6 / 8.0;
    rows.push((
        "transferred",
        format!(
            "{} at {:.0} MiB/s ({:.1} Gbit/s)",
            mib(ram.transferred),
            bytes_per_second / f64::from(1 << 20),
            ram.mbps / 1e3
        ),
    ));
    if let Some(name) = &report.congestion_control {
        rows.push(("TCP", format!("congestion control {name}")));
    }
    rows.push(("pages", format!("{} sent, {} zero", ram.normal, ram.duplicate)));
    rows.push(("rounds", format!("{}, {} pages again", ram.dirty_sync_count, ram.again)));
    if let Some((method, reason)) = &report.track {
        rows.push(("tracking", format!("{method}: {reason}")));
    }
    if let Some(zc) = &report.zerocopy {
        rows.push(("zero copy", format!("{}: {}", zc.policy, zc.state())));
        rows.push((
            "",
            format!(
                "{} in {} sends with MSG_ZEROCOPY, {} of them copied by the kernel",
                mib(zc.bytes_zero_copy),
                zc.sends_zero_copy,
                zc.completions_copied,
            ),
        ));
        rows.push(("", format!("{} in {} sends by copy", mib(zc.bytes_copied), zc.sends_copied)));
        if zc.refused() > 0 {
            rows.push((
                "",
                format!(
                    "{} sends refused (ENOBUFS): {} for locked memory, {} for option memory",
                    zc.refused(),
                    zc.no_bufs_memlock,
                    zc.no_bufs_optmem,
                ),
            ));
        }
        let gigabytes = ram.transferred as f64 / 1e9;
        rows.push(("CPU", format!("{:.0} ms per GB sent", zc.cpu_us as f64 / 1e3 / gigabytes)));
    }
    if let Some(pool) = &report.pool {
        let PoolReport { free, owned, in_flight, quarantined, .. } = pool;
        rows.push((
            "pool",
            format!("{free} Free, {owned} Owned, {in_flight} InFlight, {quarantined} Quarantined"),
        ));
    }
    if let Some(verify) = &report.verify {
        let same = |same| if same { "same at both ends" } else { "DIFFERENT at both ends" };
        rows.push(("digest", format!("{} {}", verify.source_digest, same(verify.digest_match))));
        rows.push(("device state", same(verify.device_state_match).into()));
    }
    rows.iter().map(|(name, value)| format!("{name:<14}{value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_names_of_query_migrate() {
        let mut report = Report { downtime: Some(3), ..Report::default() };
        report.ram.normal = 10;
        report.ram.finish(Duration::from_secs(2));
        report.pool = Some(PoolReport::default());
        report.verify = Some(Verify::new((1, 2), (1, 3)));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["status"], "failed");
        assert_eq!(json["downtime"], 3);
        assert_eq!(json["ram"]["page-size"], 4096);
        assert_eq!(json["ram"]["pages-per-second"], 5);
        assert_eq!(json["ram"]["dirty-sync-missed-zero-copy"], 0);
        assert_eq!(json["pool"]["in_flight"], 0);
        assert_eq!(json["verify"]["digest_match"], true);
        assert_eq!(json["verify"]["device_state_match"], false);
    }

    #[test]
    fn only_free_slots_are_accounted_for() {
        assert!(PoolReport { free: 5, ..PoolReport::default() }.is_accounted());
        for lost in [
            PoolReport { owned: 1, ..PoolReport::default() },
            PoolReport { in_flight: 1, ..PoolReport::default() },
            PoolReport { quarantined: 1, ..PoolReport::default() },
            PoolReport { mismatches: 1, ..PoolReport::default() },
        ] {
            assert!(!lost.is_accounted());
        }
    }
}
