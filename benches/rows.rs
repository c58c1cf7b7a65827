//! Single figures of pinbuf, for `benches/compare.sh`: the programs of an earlier and of the
//! present revision take turns, so no other work is measured beside a row.
//!
//! Each row runs in a process of its own. It prints its name and the median of its rounds, in
//! nanoseconds per operation. All senders are the library's own over a socket without a limit, so
//! only user space is measured.

#![allow(clippy::print_stdout, reason = "the figures are for the reader of the output")]

mod harness;

#[path = "pool/crew.rs"]
mod crew;
#[path = "../tests/common/filter.rs"]
mod filter;
#[path = "pool/ours.rs"]
mod ours;
#[path = "scale/sink.rs"]
mod sink;
#[path = "pool/stock.rs"]
mod stock;
#[allow(dead_code, reason = "the pool bench has more of them")]
#[path = "pool/workload.rs"]
mod workload;

use std::{
    env,
    hint::spin_loop,
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use harness::{per_op, thread_cpu, wall};
use ours::Pinbuf;
use pinbuf::{__internals::MemlockBudget, Pool};
use sink::{Line, post_at_once};

/// Buffers of each pool.
const COUNT: usize = 1024;
/// Bytes of each buffer.
const SIZE: usize = 64 << 10;
/// Sends in flight at most.
const MILLION: usize = 1 << 20;

const SENDERS: usize = 10_000;
/// The step from sender to sender: every sender has its turn, in an order that no prefetcher
/// guesses.
const STRIDE: usize = 7919;
/// Senders that share an exhausted pool.
const WAITING: usize = 1000;

/// A locked-memory limit that is never reached.
const LIMIT: usize = 1 << 40;

const NAMES: [&str; 23] = [
    "user-1",
    "user-4",
    "user-32",
    "pair",
    "bulk",
    "elsewhere",
    "turn-1",
    "turn-4",
    "turn-32",
    "shuffled-1",
    "shuffled-4",
    "shuffled-32",
    "exhausted",
    "halves",
    "wander-1",
    "wander-10",
    "wander-100",
    "unbarred-1",
    "unbarred-4",
    "unbarred-32",
    "limited-1",
    "limited-4",
    "limited-32",
];

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let smoke = arguments.iter().any(|argument| argument == "--smoke");
    let mut wanted: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|name| !name.starts_with("--")).collect();
    if let [name] = wanted[..] {
        let rounds = if smoke { 1 } else { 7 };
        let slice = Duration::from_millis(if smoke { 1 } else { 20 });
        let Some(nanoseconds) = figure(name, rounds, slice) else { return ExitCode::FAILURE };
        println!("{name} {nanoseconds:.2}");
        return ExitCode::SUCCESS;
    }
    if wanted.is_empty() {
        wanted = NAMES.to_vec();
    }
    let program = env::current_exe().expect("a program knows its path");
    let fails = |name: &&str| {
        let mut row = Command::new(&program);
        row.arg(name).args(smoke.then_some("--smoke"));
        !row.status().is_ok_and(|status| status.success())
    };
    ExitCode::from(u8::from(wanted.iter().filter(|name| fails(name)).count() > 0))
}

/// The median of the rounds; `None` for an unknown row, or where the row cannot run.
fn figure(name: &str, rounds: usize, slice: Duration) -> Option<f64> {
    let mut row = row(name)?;
    row(slice);
    let mut rounds: Vec<_> = (0..rounds).map(|_| row(slice)).collect();
    rounds.sort_unstable_by(f64::total_cmp);
    Some(rounds[rounds.len() / 2])
}

type Row = Box<dyn FnMut(Duration) -> f64>;

fn row(name: &str) -> Option<Row> {
    let (kind, number) = match name.rsplit_once('-') {
        Some((kind, number)) => (kind, number.parse().ok()?),
        None => (name, 0),
    };
    Some(match kind {
        "user" => senders(1, 1, number, None),
        "pair" => pool(workload::pair),
        "bulk" => pool(workload::bulk),
        "elsewhere" => pool(workload::hand_over),
        "turn" => senders(SENDERS, 1, number, None),
        "shuffled" => senders(SENDERS, STRIDE, number, None),
        "exhausted" => exhausted(),
        "halves" => halves(),
        "wander" => wander(number),
        "unbarred" => {
            if let Err(error) = filter::refuse(&[filter::any(libc::SYS_membarrier)], libc::ENOSYS) {
                println!("SKIPPED {name}: no system-call filter is possible: {error}");
                return None;
            }
            senders(1, 1, number, None)
        }
        "limited" => senders(1, 1, number, Some(LIMIT)),
        _ => {
            println!("{name} is none of {NAMES:?}");
            return None;
        }
    })
}

/// `count` buffers sent and released, `batch` per notification, on all senders in turn.
fn senders(count: usize, stride: usize, batch: usize, limit: Option<usize>) -> Row {
    let Pinbuf(pool) = Pinbuf::new();
    let budget = Arc::new(MemlockBudget::new(limit));
    let lines: Vec<_> = (0..count).map(|_| Line::new(&budget)).collect();
    let mut turns = (0..count).map(move |turn| turn * stride % count).cycle();
    Box::new(move |slice| {
        per_op(thread_cpu, slice, batch, || {
            let line = &lines[turns.next().expect("the turns go round")];
            line.send(&pool, batch);
            line.release();
        })
    })
}

fn pool(workload: workload::Workload<Pinbuf>) -> Row {
    let stock = Arc::new(Pinbuf::new());
    Box::new(move |slice| workload(&stock, slice))
}

/// Every sender has a buffer in flight and the pool has none left, so each alloc reads
/// notifications of senders.
fn exhausted() -> Row {
    let Pinbuf(pool) = Pinbuf::of(WAITING);
    let budget = Arc::new(MemlockBudget::new(None));
    let lines: Vec<_> = (0..WAITING).map(|_| Line::new(&budget)).collect();
    post_at_once();
    Box::new(move |slice| {
        per_op(thread_cpu, slice, WAITING, || {
            for line in &lines {
                line.send_one(pool.alloc(SIZE).expect("a notification is there"));
            }
        })
    })
}

/// One thread sends; a second thread reads the notifications of the same sender.
fn halves() -> Row {
    let Pinbuf(pool) = Pinbuf::new();
    let line = Line::new(&Arc::new(MemlockBudget::new(None)));
    let reaping = line.share();
    let (line, reaping) = (Arc::new(line), Arc::new(reaping));
    post_at_once();
    Box::new(move |slice| {
        let over = Arc::new(AtomicBool::new(false));
        let sends = {
            let (pool, line, over) = (pool.clone(), Arc::clone(&line), Arc::clone(&over));
            move || {
                let figure = per_op(wall, slice, 32, || {
                    (0..32).for_each(|_| line.send_one(waited(&pool)));
                });
                // Relaxed: the flag publishes no data.
                over.store(true, Ordering::Relaxed);
                figure
            }
        };
        let reaping = Arc::clone(&reaping);
        let reaps = move || {
            while !over.load(Ordering::Relaxed) {
                reaping.reap();
                // About as often as notifications come.
                (0..64).for_each(|_| spin_loop());
            }
            0.0
        };
        crew::together(sends, reaps)[0]
    })
}

fn waited(pool: &Pool) -> pinbuf::PinnedBuf {
    loop {
        if let Ok(buf) = pool.try_alloc(SIZE) {
            return buf;
        }
        thread::yield_now();
    }
}

/// Two threads use a sender in turn, for `sends` sends each, like a task that moves between
/// threads.
fn wander(sends: usize) -> Row {
    let Pinbuf(pool) = Pinbuf::new();
    let line = Arc::new(Line::new(&Arc::new(MemlockBudget::new(None))));
    Box::new(move |slice| {
        let turn = Arc::new(AtomicUsize::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let task = |own: usize| {
            let (pool, line) = (pool.clone(), Arc::clone(&line));
            let (turn, over) = (Arc::clone(&turn), Arc::clone(&over));
            move || {
                let (start, mut done) = (wall(), 0_usize);
                for looks in 1_u32.. {
                    // Acquire: pairs with the Release below, the hand-over of the task.
                    let now = turn.load(Ordering::Acquire);
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    if now % 2 != own {
                        if looks.is_multiple_of(64) {
                            thread::yield_now();
                        }
                        spin_loop();
                        continue;
                    }
                    line.send(&pool, sends);
                    done += sends;
                    if (now + 1).is_multiple_of(32_usize.div_ceil(sends)) {
                        line.release();
                    }
                    if own == 0 && wall() - start > slice {
                        line.release();
                        over.store(true, Ordering::Relaxed);
                    }
                    // Release: pairs with the Acquire above.
                    turn.store(now + 1, Ordering::Release);
                }
                [(wall() - start).as_nanos() as f64, done as f64]
            }
        };
        let [[taken, first], [_, second]] = crew::together(task(0), task(1));
        taken / (first + second)
    })
}
