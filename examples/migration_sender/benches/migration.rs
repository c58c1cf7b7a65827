//! The migration against a bare loop of write(2) over the same pages, with as many threads and
//! sockets, and the cost of the last round for the stopped guest.
//!
//! Over loopback, where the kernel always copies; and between two devices without copies, if some
//! are lent (`tests/common/road.rs`; `tests/guest/run.sh` does).

#![allow(clippy::disallowed_types, reason = "the library's sync shim is private to it")]

#[path = "migration/bare.rs"]
mod bare;
#[path = "../../../tests/common/mod.rs"]
mod common;
#[path = "../../../benches/harness/mod.rs"]
mod harness;

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs,
    hint::black_box,
    net::TcpListener,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use bare::Cost;
use clap::Parser;
use common::{
    namespace, raise_loopback,
    road::{Road, lent_devices},
};
use harness::{AtMost, Bench, thread_cpu};
use migration_sender::{
    bitmap::{Cursor, DirtyBitmap, DirtyChunk},
    cli, destination,
    hypervisor::guest,
    memory,
    report::{DowntimeSplit, Progress, Report},
    signals::Stop,
    source,
};

const CHANNELS: usize = 2;
const ROUNDS: usize = 9;
/// Pages of a terabyte.
const TERABYTE: usize = 1 << 28;
const LOOP: &str = "loop of write(2)";
const POLICIES: [&str; 3] = ["auto", "prefer", "never"];

fn main() {
    if lent_devices().is_none() && namespace::enter().is_ok() {
        raise_loopback();
        // With bbr, the default of some machines, copying over loopback is slow, and zero copy
        // flattered. Any namespace may choose reno.
        let chosen = fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno");
        chosen.expect("the namespace is this process's own");
    }
    let mut bench = Bench::new("migration");
    let place = Place::here();
    let small = bench.size(place.small, "16M");
    let large = bench.size(place.large, small);
    move_a_guest(&mut bench, &place, large);
    stop_a_guest(&mut bench, &place, small);
    find_dirty_pages(&mut bench);
    bench.finish();
}

/// The receiver of the bytes.
struct Place {
    name: &'static str,
    listener: TcpListener,
    copies: bool,
    /// Sizes of guests.
    small: &'static str,
    large: &'static str,
    _road: Option<Road>,
}

impl Place {
    fn here() -> Self {
        if lent_devices().is_some() {
            let road = Road::build().expect("the devices are joined");
            let listener = road.listener();
            // The lent devices belong to a small and slow guest.
            let (name, small) = ("devices that do not copy", "64M");
            return Self { name, listener, copies: false, small, large: small, _road: Some(road) };
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
        let (name, small, large) = ("loopback, copied", "256M", "1G");
        Self { name, listener, copies: true, small, large, _road: None }
    }
}

/// Reports the time of each run first, then its CPU time.
fn move_a_guest(bench: &mut Bench, place: &Place, size: &str) {
    // Made anew for each run of all contestants: the cost of fresh memory depends on earlier frees.
    let standing = arguments(size, "never", &[]);
    let memory = || guest::memory(&standing.source).expect("memory for a guest");
    let plan = bare::plan(&memory(), CHANNELS);
    let bare = Runs::default();
    let policies = POLICIES.map(|policy| {
        (policy, arguments(size, policy, &["--dirty-rate=0", "--device-state=0"]), Runs::default())
    });
    let run_bare = || bare::migrate(&memory(), &plan, &place.listener);
    let run = |args: &cli::BothArgs| cost(&migrate(args, &place.listener));
    let mut table =
        bench.table("time to move a guest that stands still", "ms per GB").rounds(ROUNDS);
    table.case(place.name, LOOP, |case| {
        case.row(LOOP, || Ok(|_| bare.run(run_bare).wall_per_gigabyte()));
        for (policy, args, runs) in &policies {
            case.row(policy, || Ok(|_| runs.run(|| run(args)).wall_per_gigabyte()));
        }
        case.goal("auto", LOOP, AtMost::Times(1.0 / 0.95));
    });
    drop(table);
    let mut table = bench.table("CPU of the sending threads", "ms per GB").rounds(ROUNDS);
    table.case(place.name, LOOP, |case| {
        case.row(LOOP, || Ok(|_| bare.again(run_bare).cpu_per_gigabyte()));
        for (policy, args, runs) in &policies {
            case.row(policy, || Ok(|_| runs.again(|| run(args)).cpu_per_gigabyte()));
        }
        if !place.copies {
            case.goal("auto", LOOP, AtMost::Times(1.0));
        }
    });
}

/// The parts of the downtime of a busy guest.
fn stop_a_guest(bench: &mut Bench, place: &Place, size: &str) {
    let name = "downtime of a busy guest, 64K of device state";
    bench.table(name, "us").rounds(ROUNDS).case(place.name, "send", |case| {
        let mut row = |name, part: fn(DowntimeSplit) -> u64| {
            let args = arguments(size, "auto", &["--dirty-rate=400M", "--device-state=64K"]);
            case.row(name, move || {
                let split = move || migrate(&args, &place.listener).downtime_split;
                Ok(move |_| part(split().expect("it ended")) as f64)
            });
        };
        row("stop", |split| split.stop_us);
        row("scan", |split| split.scan_us);
        row("send", |split| split.send_us);
        row("end", |split| split.end_us);
    });
}

fn find_dirty_pages(bench: &mut Bench) {
    const EVERY: &str = "every word of the bitmap";
    bench.table("finding dirty pages", "us of CPU").case("1000 of a terabyte", EVERY, |case| {
        let words: Vec<_> = (0..TERABYTE / 64).map(|_| AtomicU64::new(0)).collect();
        case.row(EVERY, || {
            Ok(move |_| {
                marks().for_each(|page| _ = words[page / 64].fetch_or(1, Ordering::Release));
                let taken = || words.iter().filter(|word| word.swap(0, Ordering::Acquire) != 0);
                microseconds(|| taken().count())
            })
        });
        case.row("harvest", || {
            let bitmap = DirtyBitmap::all_dirty(TERABYTE);
            bitmap.harvest(&Cursor::default()).for_each(drop);
            Ok(move |_| {
                marks().for_each(|page| bitmap.mark(page));
                microseconds(|| {
                    bitmap.harvest(&Cursor::default()).flat_map(DirtyChunk::pages).count()
                })
            })
        });
    });
}

/// The costs of one contestant's runs, each for two tables.
#[derive(Default)]
struct Runs(RefCell<VecDeque<Cost>>);

impl Runs {
    fn run(&self, run: impl FnOnce() -> Cost) -> Cost {
        let cost = run();
        self.0.borrow_mut().push_back(cost);
        cost
    }

    /// The oldest run without a second report, or a new run.
    fn again(&self, run: impl FnOnce() -> Cost) -> Cost {
        let oldest = self.0.borrow_mut().pop_front();
        oldest.unwrap_or_else(run)
    }
}

/// Some pages, spread over the memory.
fn marks() -> impl Iterator<Item = usize> {
    (0..1000).map(|n| memory::mix(n) as usize % TERABYTE)
}

fn microseconds<T>(work: impl FnOnce() -> T) -> f64 {
    let begun = thread_cpu();
    black_box(work());
    (thread_cpu() - begun).as_secs_f64() * 1e6
}

fn arguments(memory: &str, policy: &str, more: &[&str]) -> cli::BothArgs {
    let fixed = ["migration", "--quiet", "--memory", memory, "--zerocopy", policy];
    let channels = format!("--channels={CHANNELS}");
    let all = fixed.into_iter().chain([channels.as_str()]).chain(more.iter().copied());
    cli::Cli::parse_from(all).both
}

/// One migration of both ends in this process.
fn migrate(args: &cli::BothArgs, listener: &TcpListener) -> Report {
    let (progress, stop) = (Progress::new(true), Stop::default());
    let memory = guest::memory(&args.source).expect("memory for a guest");
    let guest = guest::start(&args.source, memory).expect("a guest that writes");
    let config = destination::Config {
        max_memory: u64::MAX,
        timeout: args.common.timeout,
        stall_timeout: args.common.stall_timeout,
        tls: None,
        stop: &stop,
        progress: &progress,
    };
    let plan = source::Plan {
        targets: &[listener.local_addr().expect("it listens")],
        args: &args.source,
        common: &args.common,
        tls: None,
        stop: &stop,
        progress: &progress,
        digests_at_source: false,
    };
    let (report, outcome) = thread::scope(|scope| {
        scope.spawn(|| destination::serve(listener, &config, destination::Host::Store(None)));
        source::migrate(&plan, guest)
    });
    outcome.expect("a migration");
    report
}

fn cost(report: &Report) -> Cost {
    let ram = &report.ram;
    Cost {
        bytes: ram.normal_bytes,
        wall: Duration::from_secs_f64(ram.transferred as f64 * 8.0 / (ram.mbps * 1e6)),
        cpu: Duration::from_micros(report.zerocopy.as_ref().expect("it has run").cpu_us),
    }
}
