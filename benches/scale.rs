//! Many senders on one pool and one reaper, and many leases of one sender.
//!
//! The user-space cost of a completion is measured over a socket without a limit, with one
//! notification per batch: the sender is the library's own, and only the system calls are missing.
//! The memory and threads of a sender are measured over real sockets.

mod harness;

#[path = "scale/sink.rs"]
mod sink;

use std::{cell::RefCell, fs, net::UdpSocket, rc::Rc, sync::Arc, time::Duration};

use harness::{AtMost, Bench, Counting, allocated, per_op, thread_cpu};
use pinbuf::{
    __internals::MemlockBudget,
    Policy, Pool, Sender,
    pool::{Backing, Pages},
};
use sink::Line;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of a buffer.
const SIZE: usize = 64 << 10;

/// The step from sender to sender: every sender has its turn, in an order that the processor does
/// not guess. A prime, and far more than a page.
const STRIDE: usize = 7919;

/// A million leases.
const MILLION: usize = 1 << 20;

fn main() {
    let mut bench = Bench::new("scale");
    let many = bench.size(10_000, 100);
    completions(&mut bench, many);
    leases(&mut bench);
    memory(&mut bench, many);
    bench.finish();
}

/// A pool of address space only: no thread touches more than the first bytes.
fn pool(count: usize) -> Pool {
    let builder = Pool::builder().class(SIZE, count).backing(Backing::Require(Pages::Base));
    builder.populate(false).build().expect("address space is not scarce")
}

fn completions(bench: &mut Bench, many: usize) {
    let (one, all) = ("one sender", format!("{many} senders"));
    let shuffled = format!("{all}, shuffled");
    let mut table = bench.table("One buffer sent and released", "ns of CPU in user space");
    for batch in [1, 4, 32] {
        table.case(&format!("{batch} per notification"), one, |case| {
            for (name, count, stride) in [(one, 1, 1), (&all, many, 1), (&shuffled, many, STRIDE)] {
                case.row(name, move || {
                    let pool = pool(1024);
                    let budget = Arc::new(MemlockBudget::new(None));
                    let lines: Vec<_> = (0..count).map(|_| Line::new(&budget)).collect();
                    let mut turns = (0..count).map(move |turn| turn * stride % count).cycle();
                    Ok(move |slice| {
                        per_op(thread_cpu, slice, batch, || {
                            let line = &lines[turns.next().expect("it goes round")];
                            line.send(&pool, batch);
                            line.release();
                        })
                    })
                });
            }
            case.goal(&all, one, AtMost::Times(1.3));
            case.goal(&shuffled, one, AtMost::Times(1.3));
        });
    }
}

fn leases(bench: &mut Bench) {
    let (few, million) = ("32 outstanding", "1048576 outstanding");
    let mut table = bench.table("Buffers of a 64 GiB pool", "ns of CPU for each").rounds(5);
    table.case("alloc and drop", few, |case| {
        for (name, count) in [(few, 32), (million, MILLION)] {
            case.row(name, move || {
                let pool = pool(MILLION);
                let mut bufs = Vec::with_capacity(count);
                Ok(move |slice| {
                    per_op(thread_cpu, slice, count, || {
                        bufs.extend(
                            (0..count).map(|_| pool.try_alloc(SIZE).expect("a slot is free")),
                        );
                        bufs.clear();
                    })
                })
            });
        }
    });
    table.case("send and release", few, |case| {
        for (name, count) in [(few, 32), (million, MILLION)] {
            case.row(name, move || {
                let line = Line::new(&Arc::new(MemlockBudget::new(None)));
                let pool = pool(MILLION);
                Ok(move |slice| {
                    per_op(thread_cpu, slice, count, || {
                        line.send(&pool, count);
                        line.release();
                    })
                })
            });
        }
    });
}

fn memory(bench: &mut Bench, many: usize) {
    let senders = Rc::new(RefCell::new(Vec::new()));
    let threads_before = threads();
    let fresh = allocated_by(|| idle_senders(many, &mut senders.borrow_mut()));
    let used = fresh.clone().and_then(|fresh| {
        let more = allocated_by(|| use_each(&mut senders.borrow_mut()))?;
        Ok(fresh + more)
    });
    let threads = threads().zip(threads_before).map(|(now, before)| now - before);
    let threads = threads.ok_or("the threads of a process cannot be counted here".to_owned());
    let name = format!("{many} idle senders");
    bench.table("Memory of a sender", "bytes").rounds(1).case(&name, "fresh", |case| {
        let each = |bytes: Result<f64, String>| bytes.map(|bytes| bytes / many as f64);
        let (fresh, used) = (each(fresh), each(used));
        case.row("fresh", move || fresh.map(|bytes| move |_: Duration| bytes));
        case.row("after a send", move || used.map(|bytes| move |_: Duration| bytes));
        case.goal("fresh", "fresh", AtMost::Value(1024.0));
        case.goal("after a send", "fresh", AtMost::Value(1024.0));
    });
    bench.table("Threads for all senders", "threads").rounds(1).case(&name, "started", |case| {
        case.row("started", move || threads.map(|count| move |_: Duration| count as f64));
        case.goal("started", "started", AtMost::Value(1.0));
    });
}

fn allocated_by(work: impl FnOnce() -> Result<(), String>) -> Result<f64, String> {
    let before = allocated();
    work().map(|()| (allocated() - before) as f64)
}

/// Senders over sockets of their own, after raising the limit on descriptors as far as possible.
fn idle_senders(count: usize, senders: &mut Vec<Sender<UdpSocket>>) -> Result<(), String> {
    raise_descriptor_limit();
    // Allocated outside of the measurement.
    let mut made = Vec::with_capacity(count);
    let peer = UdpSocket::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    for _ in 0..count {
        let socket = UdpSocket::bind("127.0.0.1:0").and_then(|socket| {
            socket.connect(peer.local_addr()?)?;
            Ok(socket)
        });
        let socket = socket.map_err(|error| format!("{count} sockets: {error}"))?;
        let builder = Sender::builder().policy(Policy::Prefer);
        made.push(builder.adopt(socket).map_err(|error| error.to_string())?);
    }
    *senders = made;
    Ok(())
}

/// Sends a datagram with each sender and waits for its release.
fn use_each(senders: &mut [Sender<UdpSocket>]) -> Result<(), String> {
    let pool = Pool::new(SIZE, 4).map_err(|error| error.to_string())?;
    for sender in senders {
        let mut buf = pool.alloc(SIZE).map_err(|error| error.to_string())?;
        buf.resize(32 << 10, 1);
        sender.send(buf).map_err(|error| error.to_string())?;
        sender.drain(Some(Duration::from_secs(5))).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn threads() -> Option<usize> {
    Some(fs::read_dir("/proc/self/task").ok()?.count())
}

fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one live rlimit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: setrlimit(2) reads one rlimit, a live one. A refusal shows when sockets run out.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}
