//! A guest that runs and writes moves between two machines of this host, its memory by pread and
//! pwrite: the parts for hypervisors and trackers in the order of a migration, without a network.
//!
//! `tests/vm/run.sh` makes the guest and runs these tests; `VM_RUNS` is the number of runs of a case.

use std::{
    env,
    ops::Range,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use migration_sender::{
    hypervisor::{DestinationMachine, SourceMachine, memory::GuestRam, qemu::Qemu},
    track::{Changes, Method, choose},
    wire::PAGE,
};
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    guests::{Case, FAST, Pair, goes_on, last_beat, processor},
    machine::{MAX_STATE, TIMEOUT},
};

const STEP: usize = 1 << 20;
/// A guest that writes faster than it is copied is stopped after these rounds.
const MAX_ROUNDS: u64 = 5;
const BEATS_PER_SECOND: u64 = 10;

/// The counts of a move.
#[derive(Default, Debug)]
struct Report {
    rounds: u64,
    bytes: u64,
    /// Pages that came more than once.
    again: u64,
    downtime: Duration,
    /// What the guest has written, in MiB per second of its clock.
    rate: u64,
    state: usize,
    wrong_pages: usize,
}

#[test]
#[ignore = "tests/vm/run.sh"]
fn a_guest_that_writes_fast_arrives_whole_by_digests() {
    repeat(FAST);
}

#[test]
#[ignore = "tests/vm/run.sh"]
fn a_guest_that_writes_fast_arrives_whole_by_write_protection() {
    repeat(Case { name: "fast-uffd", track: Method::Uffd, ..FAST });
}

#[test]
#[ignore = "tests/vm/run.sh"]
fn a_guest_on_q35_arrives_whole() {
    repeat(Case { name: "q35", machine: "pc-q35-7.2", rate: 40, ..FAST });
}

#[test]
#[ignore = "tests/vm/run.sh"]
fn a_large_guest_arrives_whole() {
    let case = Case { name: "large", memory_mib: 1024, set_mib: 512, rate: 80, ..FAST };
    repeat(case);
    repeat(Case { name: "large-uffd", track: Method::Uffd, ..case });
}

#[test]
#[ignore = "tests/vm/run.sh"]
fn digests_of_the_source_let_wrong_pages_arrive() {
    let case = Case { name: "control", is_negative_control: true, ..FAST };
    if let Some(report) = moved(&case) {
        print(&case, &report);
        assert!(
            report.wrong_pages > 0,
            "the comparison of both memories finds nothing: {report:?}"
        );
    }
}

fn repeat(case: Case) {
    let runs = env::var("VM_RUNS").map_or(1, |runs| runs.parse().unwrap());
    for _ in 0..runs {
        let Some(report) = moved(&case) else { return };
        print(&case, &report);
        assert_eq!(report.wrong_pages, 0, "{report:?}");
        assert!((2..=MAX_ROUNDS + 1).contains(&report.rounds), "{report:?}");
        // The guest writes all the time, so pages come again; holes never come.
        assert!(report.again > 0 && report.bytes > case.set_mib << 20, "{report:?}");
        assert!(report.bytes < (case.memory_mib << 20) * report.rounds, "{report:?}");
    }
}

fn print(case: &Case, report: &Report) {
    println!(
        "MOVED {} by {}: {} MiB/s written, {} rounds, {} MiB, {} pages again, {} KiB of devices, {} wrong pages, \
         downtime {} ms on {}",
        case.name,
        case.track,
        report.rate,
        report.rounds,
        report.bytes >> 20,
        report.again,
        report.state >> 10,
        report.wrong_pages,
        report.downtime.as_millis(),
        processor(),
    );
}

/// Moves a guest and lets it run at the destination. `None` without a guest or QEMU.
fn moved(case: &Case) -> Option<Report> {
    let Pair { source: first, destination: second, serials, early, .. } = &mut case.start()?;
    let mut source = Qemu::source(&first.socket, TIMEOUT, MAX_STATE).unwrap();
    let mut destination = Qemu::destination(&second.socket, TIMEOUT, MAX_STATE).unwrap();
    let (from, to) = (&source.ram().clone()[0], &destination.ram().clone()[0]);
    let untracked = source.untracked_writers().unwrap();
    let choice = choose(case.track, source.ram(), &untracked).unwrap();
    let mut copy = Copy::new(from, to, case.is_negative_control);
    let mut tracker = choice.tracker;
    let mut changes = || tracker.as_mut().map(|tracker| tracker.changes().unwrap().remove(0));
    let mut left = u64::MAX;
    while copy.report.rounds < MAX_ROUNDS {
        let sent = copy.round(changes());
        if copy.report.rounds > 1 && (sent < 4 << 20 || sent > left * 3 / 4) {
            break;
        }
        left = sent;
    }
    let stopped = Instant::now();
    source.stop().unwrap();
    let state = source.save().unwrap();
    copy.round(changes());
    destination.load(&state).unwrap();
    copy.report.state = state.len();
    // Part of the test, not of the downtime.
    let pause = Instant::now();
    copy.report.wrong_pages = copy.differences();
    let last = last_beat(&serials[0]).unwrap();
    let pause = pause.elapsed();
    let pages = (last.written - early.written) / (last.number - early.number).max(1);
    copy.report.rate = (pages * BEATS_PER_SECOND) >> 8;
    destination.start().unwrap();
    copy.report.downtime = stopped.elapsed() - pause;
    if copy.report.wrong_pages == 0 {
        goes_on(&serials[1], &last, second);
    }
    Some(copy.report)
}

/// The memory on its way.
struct Copy<'a> {
    from: &'a GuestRam,
    to: &'a GuestRam,
    /// Of the pages at the destination, as the source knows them.
    digests: Vec<u128>,
    is_negative_control: bool,
    report: Report,
}

impl<'a> Copy<'a> {
    fn new(from: &'a GuestRam, to: &'a GuestRam, is_negative_control: bool) -> Self {
        let zero = xxh3_128(&[0; PAGE]);
        let digests = vec![zero; from.size as usize / PAGE];
        Self { from, to, digests, is_negative_control, report: Report::default() }
    }

    /// Sends the changes, or without a tracker all that differs. Returns the number of bytes.
    fn round(&mut self, changes: Option<Changes>) -> u64 {
        let before = self.report.bytes;
        let is_tracked = changes.is_some();
        let changes = changes.unwrap_or_else(|| {
            let written = self.from.data_ranges().unwrap();
            Changes { holes: holes(&written, self.from.size), written }
        });
        for range in &changes.holes {
            let zero = xxh3_128(&[0; PAGE]);
            for page in pages(range).filter(|page| self.digests[*page] != zero).collect::<Vec<_>>()
            {
                self.to.file.write_all_at(&[0; PAGE], (page * PAGE) as u64).unwrap();
                self.digests[page] = zero;
            }
        }
        let mut sent = Vec::new();
        let mut bytes = vec![0; STEP];
        for range in changes.written {
            for start in range.clone().step_by(STEP) {
                let len = STEP.min((range.end - start) as usize);
                self.from.file.read_exact_at(&mut bytes[..len], start).unwrap();
                for (number, page) in bytes[..len].chunks(PAGE).enumerate() {
                    let number = start as usize / PAGE + number;
                    let digest = xxh3_128(page);
                    if is_tracked || self.digests[number] != digest {
                        self.to.file.write_all_at(page, (number * PAGE) as u64).unwrap();
                        self.digests[number] = digest;
                        sent.push(number);
                    }
                }
            }
        }
        if self.is_negative_control {
            for number in &sent {
                let mut page = [0; PAGE];
                self.from.file.read_exact_at(&mut page, (number * PAGE) as u64).unwrap();
                self.digests[*number] = xxh3_128(&page);
            }
        }
        self.report.rounds += 1;
        self.report.bytes += (sent.len() * PAGE) as u64;
        if self.report.rounds > 1 {
            self.report.again += sent.len() as u64;
        }
        self.report.bytes - before
    }

    /// The pages that differ between the stopped ends.
    fn differences(&self) -> usize {
        let (mut one, mut other) = (vec![0; STEP], vec![0; STEP]);
        let mut wrong = 0;
        for start in (0..self.from.size).step_by(STEP) {
            self.from.file.read_exact_at(&mut one, start).unwrap();
            self.to.file.read_exact_at(&mut other, start).unwrap();
            wrong += one.chunks(PAGE).zip(other.chunks(PAGE)).filter(|(a, b)| a != b).count();
        }
        wrong
    }
}

fn holes(data: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let starts = data.iter().map(|range| range.start).chain([size]);
    let ends = [0].into_iter().chain(data.iter().map(|range| range.end));
    ends.zip(starts).map(|(end, start)| end..start).filter(|range| !range.is_empty()).collect()
}

fn pages(range: &Range<u64>) -> Range<usize> {
    range.start as usize / PAGE..range.end as usize / PAGE
}
