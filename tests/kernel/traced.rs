//! The system calls that strace(1) sees in each moment are those that docs/Syscalls.md lists for the
//! moment.

use std::{
    collections::BTreeSet,
    env, fs, mem,
    net::{TcpStream, UdpSocket},
    process::{self, Command},
    thread::JoinHandle,
    time::Duration,
};

use pinbuf::{Payload, Pool, Sender, probe::Environment, reaper::wait_idle, sender::DataHint};

use crate::{
    allow_list::{rows, words},
    common::{
        STALLED, again, filled, must_succeed, pair, pair_at, plays, pool, reader, skip, soon,
        test_of, within, zero_copy,
    },
};

const LEN: usize = 64 << 10;

/// Calls of the test itself, of the C library and of the standard library: reads of peers, threads
/// that start or end, memory, the marks, the clock and `epoll_wait` (functions in `calls.rs`), and
/// looks at descriptors before their close in debug builds.
const OF_THE_TEST: [&str; 18] = [
    "brk",
    "clock_gettime",
    "epoll_pwait",
    "exit",
    "fcntl",
    "gettid",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "prctl",
    "recvfrom",
    "rseq",
    "rt_sigprocmask",
    "sched_getaffinity",
    "set_robust_list",
    "sigaltstack",
    "write",
];

/// A moment of a program.
struct Moment {
    name: &'static str,
    /// Prepares, and returns the moment itself.
    prepare: fn() -> Box<dyn FnOnce()>,
    /// The rows of the page that the moment touches, by their beginnings.
    rows: &'static [&'static str],
    /// A call that must be seen.
    key: &'static str,
}

const MOMENTS: &[Moment] = &[
    Moment {
        name: "a pool",
        prepare: || {
            Box::new(|| {
                let pool = Pool::builder().class(2 << 20, 4).dont_dump(true).build().unwrap();
                drop(pool.alloc(1).unwrap());
            })
        },
        rows: &["building a pool", "first pool or", "first buffer", "taking", "dropping the last"],
        key: "madvise",
    },
    Moment {
        name: "a sender",
        prepare: || {
            let (near, far) = pair();
            Box::new(move || {
                let _sender = Sender::new(near).unwrap();
                drop(far);
            })
        },
        rows: &["first pool or", "adopting", "first sender", "first end", "`close`"],
        key: "getpeername",
    },
    Moment {
        name: "blocking sends",
        prepare: || {
            let (pool, mut sender, _peer) = sending();
            Box::new(move || {
                for seed in 0..40 {
                    let buf = filled(pool.alloc(LEN).unwrap(), LEN, seed);
                    let ticket = sender.send(buf).unwrap();
                    assert!(sender.wait(ticket, soon()).unwrap().is_released());
                }
                let mut words = [&b"some"[..], b"more"].map(Payload::from).into();
                sender.send_vectored(&mut words).unwrap();
                // More than the socket takes.
                sender.send(vec![7; 16 << 20]).unwrap();
                sender.drain(soon()).unwrap();
                sender.reap().unwrap();
                let _ = sender.held_for();
                mem::forget(sender);
            })
        },
        rows: &[
            "first buffer",
            "sending a",
            "sending several",
            "reading",
            "`reap`",
            "wait",
            "`held_for`",
        ],
        key: "sendto",
    },
    Moment {
        name: "a close",
        prepare: || {
            let (pool, mut sender, _peer) = sending();
            Box::new(move || {
                sender.send(filled(pool.alloc(LEN).unwrap(), LEN, 0)).unwrap();
                assert!(sender.close(soon()).drained);
            })
        },
        rows: &[
            "first buffer",
            "sending a",
            "reading",
            "wait",
            "first end",
            "`close`",
            "dropping the last",
        ],
        key: "shutdown",
    },
    Moment {
        name: "an abort",
        prepare: || {
            let (pool, sender) = held();
            Box::new(move || {
                assert!(sender.abort().aborted);
                drop(pool);
            })
        },
        rows: &[
            "reading",
            "wait",
            "first end",
            "`abort`",
            "replacing",
            "dropping the last",
            "starting the thread",
        ],
        key: "connect",
    },
    Moment {
        name: "a drop",
        prepare: || {
            let (pool, mut sender, _peer) = sending();
            Box::new(move || {
                sender.send(filled(pool.alloc(LEN).unwrap(), LEN, 0)).unwrap();
                sender.send(vec![7; 16 << 20]).unwrap();
                drop(sender);
                assert!(wait_idle(soon()));
            })
        },
        rows: &[
            "first buffer",
            "sending a",
            "reading",
            "wait",
            "waking",
            "first end",
            "`close`",
            "starting the thread",
            "dropping the last",
        ],
        key: "sendto",
    },
    Moment {
        name: "a drop with a stalled peer",
        prepare: || {
            let (pool, sender) = held();
            Box::new(move || {
                drop(sender);
                assert!(!wait_idle(within(20)));
                mem::forget(pool);
            })
        },
        rows: &[
            "first buffer",
            "reading",
            "wait",
            "waking",
            "first end",
            "`close`",
            "starting the thread",
        ],
        key: "epoll_create1",
    },
    #[cfg(feature = "tokio")]
    Moment {
        name: "a stream of tokio",
        prepare: || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (near, far) = pair_at("127.0.0.1:0", STALLED);
            let _peer = reader(far, Duration::from_millis(50));
            let pool = pool(LEN, 4);
            Box::new(move || {
                runtime.block_on(async {
                    let mut stream = pinbuf::tokio::Stream::adopt(zero_copy(), near).unwrap();
                    for seed in 0..8 {
                        let buf = filled(pool.alloc_async(LEN).await.unwrap(), LEN, seed);
                        let ticket = stream.send(buf).await.unwrap();
                        assert!(stream.released(ticket).await.unwrap().is_released());
                    }
                    assert!(stream.close(soon()).await.drained);
                });
            })
        },
        rows: &[
            "first buffer",
            "adopting",
            "first sender",
            "sending a",
            "reading",
            "wait",
            "waking",
            "`event_fd`",
            "first end",
            "`close`",
            "starting the thread",
            "dropping the last",
        ],
        key: "epoll_ctl",
    },
    Moment {
        name: "datagrams",
        prepare: || {
            let near = UdpSocket::bind("127.0.0.1:0").unwrap();
            let far = UdpSocket::bind("127.0.0.1:0").unwrap();
            let to = far.local_addr().unwrap();
            Box::new(move || {
                let mut sender = zero_copy().adopt(near).unwrap();
                sender.send_to(&[7; 20_000][..], to).unwrap();
                sender.drain(soon()).unwrap();
                drop(far);
            })
        },
        rows: &[
            "first pool or",
            "adopting",
            "first sender",
            "sending several",
            "reading",
            "wait",
            "first end",
            "`close`",
        ],
        key: "sendmsg",
    },
    Moment {
        name: "a measured threshold",
        prepare: || {
            let (near, far) = pair();
            Box::new(move || {
                let _sender = zero_copy().data_hint(DataHint::Cold).adopt(near).unwrap();
                drop(far);
            })
        },
        rows: &[
            "building a pool",
            "first pool or",
            "first buffer",
            "taking",
            "dropping the last",
            "adopting",
            "first sender",
            "first adoption",
            "sending a",
            "reading",
            "wait",
            "first end",
            "`close`",
        ],
        key: "socket",
    },
    Moment {
        name: "a diagnosis",
        prepare: || {
            Box::new(|| {
                let _ = Environment::probe();
                let _ = Environment::route_to(([127, 0, 0, 1], 1).into());
            })
        },
        rows: &["`Environment`"],
        key: "openat",
    },
];

/// A pool, a sender, and a peer that reads to the end.
fn sending() -> (Pool, Sender<TcpStream>, JoinHandle<Vec<u8>>) {
    let (near, far) = pair();
    (pool(LEN, 4), zero_copy().adopt(near).unwrap(), reader(far, Duration::ZERO))
}

/// A pool, and a sender with a message in flight to a peer that stalls.
fn held() -> (Pool, Sender<TcpStream>) {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    mem::forget(far);
    let (pool, mut sender) = (pool(LEN, 4), zero_copy().adopt(near).unwrap());
    sender.send(filled(pool.alloc(LEN).unwrap(), LEN, 0)).unwrap();
    (pool, sender)
}

/// Writes a mark to the trace.
fn mark(bytes: &[u8]) {
    // SAFETY: write(2) reads the bytes; there is no such descriptor.
    let _ = unsafe { libc::write(-1, bytes.as_ptr().cast(), bytes.len()) };
}

/// The names of the calls between the two marks. A line is `123 name(arguments) = result`, or
/// `123 <... name resumed>` and the like.
fn seen(trace: &str) -> BTreeSet<&str> {
    let part = trace.split("\"BEGIN\"").nth(1).unwrap().split("\"END\"").next().unwrap();
    let calls =
        part.lines().skip(1).filter_map(|line| line.split_once(' ')?.1.trim().split_once('('));
    calls.map(|(name, _)| name).filter(|name| !name.starts_with(['<', '+', '-'])).collect()
}

#[test]
fn strace_sees_only_the_listed_calls_of_each_moment() {
    let test = test_of(&|| ());
    if let Some(moment) = MOMENTS.iter().find(|moment| plays(moment.name)) {
        let body = (moment.prepare)();
        mark(b"BEGIN");
        body();
        return mark(b"END");
    }
    let works = Command::new("strace").args(["-o", "/dev/null", "true"]).status();
    if !works.is_ok_and(|status| status.success()) {
        return skip(test, "needs strace(1), and the right to trace");
    }
    let (page, mut wrong) = (rows("## Calls"), Vec::new());
    for Moment { name, rows, key, .. } in MOMENTS {
        let file = env::temp_dir().join(format!("pinbuf-{}-{name}", process::id()));
        let path = file.to_str().unwrap();
        must_succeed(again(&["strace", "-f", "-qq", "-o", path], test, name));
        let trace = fs::read_to_string(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let seen = seen(&trace);
        let is_of = |row: &Vec<&str>| rows.iter().any(|start| row[0].starts_with(start));
        let mut listed: BTreeSet<_> =
            page.iter().filter(|row| is_of(row)).flat_map(|row| words(row[1])).collect();
        listed.extend(OF_THE_TEST);
        let unlisted: Vec<_> = seen.difference(&listed).collect();
        if !unlisted.is_empty() || !seen.contains(key) {
            wrong.push(format!("{name}: unlisted {unlisted:?} in {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
