//! Senders without an owner: one thread for all of them, none until it is needed, and a way when
//! there is none to be had.

mod common;

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::Stdio,
    time::{Duration, Instant},
};

use common::{
    STALLED, after, again, assert_all_home, corrupt, eventually, filled, must_succeed, pair_at,
    plays, pool, skip,
};
use pinbuf::{Policy, Pool, Sender, reaper_stats, wait_idle};

const LEN: usize = 64 << 10;

fn prefer(near: TcpStream) -> Sender<TcpStream> {
    Sender::builder().policy(Policy::Prefer).adopt(near).unwrap()
}

fn reaper_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim() == "pinbuf-reaper").count()
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Runs a test in a process of its own.
fn alone(test: &str, body: impl FnOnce()) {
    if plays(test) {
        body();
    } else {
        must_succeed(again(&[], test, test));
    }
}

const SENDERS: usize = 10_000;

/// The far ends, in a process of their own: takes connections and reads nothing until told.
fn play_peers() {
    raise_open_files(SENDERS as u64 + 100);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _ = io::stderr().write_all(format!("{}\n", listener.local_addr().unwrap()).as_bytes());
    let peers: Vec<_> = (0..SENDERS).map(|_| listener.accept().unwrap().0).collect();
    // Ends with its standard input, and takes the connections along.
    let _ = io::stdin().read_to_end(&mut Vec::new());
    drop(peers);
}

#[test]
fn ten_thousand_dropped_senders_cost_one_thread() {
    const TEST: &str = "ten_thousand_dropped_senders_cost_one_thread";
    if plays("peers") {
        return play_peers();
    }
    alone(TEST, || {
        if !raise_open_files(SENDERS as u64 + 100) {
            return skip(TEST, "RLIMIT_NOFILE is too low");
        }
        let mut command = again(&[], TEST, "peers");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut address = String::new();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        said.read_line(&mut address).unwrap();
        let before = open_files();
        let pool = Pool::new(16 << 10, 64).unwrap();
        for seed in 0..SENDERS {
            let mut sender = prefer(TcpStream::connect(address.trim()).unwrap());
            // Most drop with something in flight, some with nothing, some in the middle.
            if seed % 10 != 0 {
                let buf = filled(pool.alloc(16 << 10).unwrap(), 16 << 10, seed);
                sender.try_send(buf).unwrap();
            }
            if seed % 10 == 7 {
                static REST: [u8; 4 << 20] = [7; 4 << 20];
                sender.try_send(&REST[..]).unwrap();
            }
        }
        assert!(reaper_stats().owned > SENDERS / 20, "{:?}", reaper_stats());
        assert_eq!(reaper_threads(), 1);
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert!(wait_idle(after(60_000)), "{:?}", reaper_stats());
        assert_all_home(&pool);
        eventually("every descriptor is closed", || open_files() <= before + 4);
        assert_eq!(reaper_threads(), 1);
    });
}

#[test]
fn there_is_no_thread_until_it_is_needed() {
    alone("there_is_no_thread_until_it_is_needed", || {
        let (near, far) = common::pair();
        let peer = common::reader(far, Duration::ZERO);
        let pool = pool(LEN, 4);
        let mut sender = prefer(near);
        for seed in 0..100 {
            sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
            sender.drain(Some(after(10_000))).unwrap();
        }
        assert!(sender.close(after(10_000)).drained);
        assert_eq!(corrupt(&peer.join().unwrap(), LEN), []);
        assert_eq!(reaper_threads(), 0);
    });
}

#[test]
fn an_abort_brings_a_stalled_peers_slots_back_at_once() {
    let (near, mut far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 12);
    let mut sender = prefer(near);
    for seed in 0..12 {
        sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
    }
    assert!(pool.stats().in_flight() > 0, "{:?}", pool.stats());
    let begun = Instant::now();
    let report = sender.abort();
    eventually("every slot is free", || pool.stats().free() == 12);
    let took = begun.elapsed();
    assert!(report.aborted && !report.drained && report.error.is_none(), "{report:?}");
    assert!(report.unacked_bytes.is_some_and(|bytes| bytes > LEN), "{report:?}");
    // 50 ms is promised; the rest is for a machine that runs other tests too.
    assert!(took < Duration::from_millis(1000), "{took:?}");
    let scribbled: Vec<_> =
        (0..12).map(|_| filled(pool.try_alloc(LEN).unwrap(), LEN, 99)).collect();
    let mut got = Vec::new();
    let _ = far.read_to_end(&mut got);
    assert_eq!(corrupt(&got[..got.len() / LEN * LEN], LEN), [], "of {} bytes", got.len());
    drop(scribbled);
    assert_all_home(&pool);
}

#[test]
fn without_a_thread_every_call_serves_those_that_were_dropped() {
    alone("without_a_thread_every_call_serves_those_that_were_dropped", || {
        let (near, mut far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(LEN, 8);
        let mut sender = prefer(near);
        for seed in 0..8 {
            sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
        }
        assert!(pool.stats().in_flight() > 0);
        // No descriptor is left for the reaper's own.
        let hoard = hoard_descriptors();
        drop(sender);
        assert_eq!(reaper_stats().unserved, 1);
        assert!(pool.stats().in_flight() > 0);
        far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut got = vec![0; 8 * LEN];
        far.read_exact(&mut got).unwrap();
        assert_eq!(corrupt(&got, LEN), []);
        // Taking all slots at once needs what is in flight; nobody else looks after it.
        let all: Vec<_> = (0..8).map(|_| pool.alloc(LEN).unwrap()).collect();
        drop(all);
        assert!(wait_idle(after(10_000)), "{:?}", reaper_stats());
        drop(hoard);
        assert_eq!(reaper_threads(), 0);
        assert_all_home(&pool);
    });
}

/// Opens files until no more can be had.
fn hoard_descriptors() -> Vec<fs::File> {
    let (soft, hard) = open_files_limit();
    set_open_files_limit(soft.min(200), hard);
    std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect()
}

fn raise_open_files(wanted: u64) -> bool {
    let (soft, hard) = open_files_limit();
    if soft < wanted && hard >= wanted {
        set_open_files_limit(wanted, hard);
    }
    open_files_limit().0 >= wanted
}

fn open_files_limit() -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one `rlimit`, which outlives the call.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    (limit.rlim_cur, limit.rlim_max)
}

fn set_open_files_limit(soft: u64, hard: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: setrlimit(2) reads one `rlimit`, which outlives the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}
