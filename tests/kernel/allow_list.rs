//! Allow-lists for system calls: with the calls that docs/Syscalls.md lists, and without some of
//! them, nothing is lost, recycled early or tried in a loop.
//!
//! A call outside the list kills the process, so the page names every call. A filter is irrevocable,
//! and every case runs in a child process.

use std::{
    io::Read,
    iter,
    net::TcpStream,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use pinbuf::{Fate, Pool, Sender, WaitError, reaper::wait_idle};

use crate::{
    calls,
    common::{
        STALLED, TIGHT, again, assert_arrived, census, filled,
        filter::{Call, any, refuse, refuse_of},
        pair_at, plays, reader, skip, soon, test_of, times_since, within, zero_copy,
    },
};

const LEN: usize = 64 << 10;
const PAGE: &str = include_str!("../../docs/Syscalls.md");

/// The calls of the test itself, of the C library and of the standard library: threads that start or
/// end, the clock (a function in `calls.rs`), memory, descriptors looked at before their close in
/// debug builds (`fcntl`), the end of the process.
const OF_THE_TEST: [i64; 14] = [
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_gettid,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_prctl,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
];

/// The numbers of a call of the page; none for any other word.
fn numbers(name: &str) -> &'static [i64] {
    match name {
        "clone" => &[libc::SYS_clone],
        "clone3" => &[libc::SYS_clone3],
        "clock_nanosleep" => &[libc::SYS_clock_nanosleep],
        "close" => &[libc::SYS_close],
        "connect" => &[libc::SYS_connect],
        "epoll_create1" => &[libc::SYS_epoll_create1],
        "epoll_ctl" => &[libc::SYS_epoll_ctl],
        "epoll_wait" => &[
            #[cfg(target_arch = "x86_64")]
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
        ],
        "eventfd2" => &[libc::SYS_eventfd2],
        "futex" => &[libc::SYS_futex],
        "getpeername" => &[libc::SYS_getpeername],
        "getrandom" => &[libc::SYS_getrandom],
        "getsockopt" => &[libc::SYS_getsockopt],
        "ioctl" => &[libc::SYS_ioctl],
        "madvise" => &[libc::SYS_madvise],
        "mbind" => &[libc::SYS_mbind],
        "membarrier" => &[libc::SYS_membarrier],
        "mlock2" => &[libc::SYS_mlock2],
        "mmap" => &[libc::SYS_mmap],
        "munmap" => &[libc::SYS_munmap],
        "openat" => &[libc::SYS_openat],
        "ppoll" => &[libc::SYS_ppoll],
        "prlimit64" => &[libc::SYS_prlimit64],
        "read" => &[libc::SYS_read],
        "recvfrom" => &[libc::SYS_recvfrom],
        "recvmmsg" => &[libc::SYS_recvmmsg],
        "sched_yield" => &[libc::SYS_sched_yield],
        "sendmsg" => &[libc::SYS_sendmsg],
        "sendto" => &[libc::SYS_sendto],
        "setsockopt" => &[libc::SYS_setsockopt],
        "shutdown" => &[libc::SYS_shutdown],
        "statx" => &[libc::SYS_statx],
        "write" => &[libc::SYS_write],
        _ => &[],
    }
}

/// The words in backticks.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The calls that a cell of the page names.
pub(crate) fn calls_in(cell: &str) -> Vec<Call> {
    let calls: Vec<_> = words(cell).flat_map(numbers).copied().map(any).collect();
    assert!(cell == "none" || !calls.is_empty(), "the test knows no calls for {cell}");
    calls
}

/// The rows below a heading of the page, by cells.
pub(crate) fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let section = PAGE.split(heading).nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// Allows what the page lists, except for the refused calls.
fn allow(refused: &[Call], errno: i32) {
    let mut allowed: Vec<_> = rows("## Calls").iter().flat_map(|row| calls_in(row[1])).collect();
    allowed.extend(OF_THE_TEST.map(any));
    refuse_of(&allowed, refused, errno).unwrap();
}

/// A pool and two senders: one with a reading peer, one with two messages for a peer that stalls.
struct Program {
    pool: Pool,
    flowing: Sender<TcpStream>,
    stalled: Sender<TcpStream>,
}

impl Program {
    fn start(flowing: TcpStream, stalled: TcpStream) -> Result<Self, &'static str> {
        let pool = Pool::new(LEN, 64).map_err(|_| "no pool")?;
        let flowing = zero_copy().adopt(flowing).map_err(|_| "no sender")?;
        let mut stalled = zero_copy().adopt(stalled).map_err(|_| "no sender")?;
        for seed in 0..2 {
            stalled.send(filled(pool.alloc(LEN).unwrap(), LEN, seed)).unwrap();
        }
        Ok(Self { pool, flowing, stalled })
    }
}

/// The effect of an allow-list on a program that sends, waits in vain, and drops its senders.
fn effect_of(refused: &[Call], errno: i32, later: bool) -> &'static str {
    const SOME: Duration = Duration::from_millis(100);
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let (stalled, mut stalled_far) = pair_at("127.0.0.1:0", STALLED);
    let peer = reader(far, Duration::ZERO);
    let (read_on, may_read) = mpsc::channel::<()>();
    let stalled_peer = thread::spawn(move || {
        let mut got = vec![0; 2 * LEN];
        // Both fail where there is no sender.
        let _ = may_read.recv();
        let _ = stalled_far.read_exact(&mut got);
        (got, stalled_far)
    });
    let started = if later {
        let started = Program::start(near, stalled);
        allow(refused, errno);
        started
    } else {
        allow(refused, errno);
        Program::start(near, stalled)
    };
    let Program { pool, mut flowing, mut stalled } = match started {
        Ok(program) => program,
        Err(effect) => return effect,
    };
    let copies = stalled.stats().zero_copy_calls == 0;
    let held = if copies { 0 } else { 2 };
    let (begun, before) = (Instant::now(), calls::of_all());

    // Waits in vain.
    let rest: Vec<_> = iter::from_fn(|| pool.try_alloc(LEN).ok()).collect();
    assert_eq!(rest.len(), 64 - held);
    assert!(pool.alloc_timeout(LEN, SOME).is_err());
    let drained = stalled.drain(Some(SOME));
    let quarantines = drained == Err(WaitError::Poisoned);
    assert!(copies || quarantines || drained == Err(WaitError::TimedOut), "{drained:?}");
    drop(rest);
    let mut kept = if quarantines { held } else { 0 };

    for seed in 0..5 {
        let ticket = flowing.send(filled(pool.alloc(LEN).unwrap(), LEN, seed)).unwrap();
        match flowing.wait(ticket, soon()) {
            Ok(Fate::Released { .. }) => {}
            Err(WaitError::Poisoned) if quarantines => kept += 1,
            other => panic!("{other:?}"),
        }
    }
    flowing.send(filled(pool.alloc(LEN).unwrap(), LEN, 5)).unwrap();
    drop(flowing);
    drop(stalled);
    let _ = wait_idle(Some(SOME));
    let [.., in_flight, quarantined] = census(&pool);
    assert!(in_flight + quarantined >= held, "nothing comes early");

    read_on.send(()).unwrap();
    let (got, _stalled_far) = stalled_peer.join().unwrap();
    assert_arrived(&got, LEN, 2);
    assert_arrived(&peer.join().unwrap(), LEN, 6);
    let is_idle = wait_idle(if quarantines { within(100) } else { soon() });
    assert_eq!(is_idle, !quarantines);
    assert_eq!(census(&pool), [64 - kept, 0, 0, kept], "nothing is lost");

    // About a hundred calls in 0.4 s. A loop that spins makes dozens in a millisecond.
    let made = (calls::of_all() - before).all();
    let most = 100 + times_since(begun, Duration::from_millis(1));
    assert!(made <= most, "{made} calls, at most {most}");
    match (copies, quarantines) {
        (true, _) => "copies",
        (_, true) => "quarantines",
        _ => "works",
    }
}

/// A cell of the table, with one of the error numbers.
struct Case {
    missing: &'static str,
    errno: i32,
    later: bool,
    effect: &'static str,
}

impl Case {
    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for row in rows("## With an allow-list") {
            for errno in [libc::EPERM, libc::ENOSYS] {
                for later in [false, true] {
                    let effect = row[1 + usize::from(later)];
                    cases.push(Self { missing: row[0], errno, later, effect });
                }
            }
        }
        cases
    }

    fn name(&self) -> String {
        let Self { missing, errno, later, .. } = self;
        format!("{missing}, errno {errno}, later: {later}")
    }
}

#[test]
fn each_call_missing_from_an_allow_list_has_the_documented_effect() {
    let test = test_of(&|| ());
    let cases = Case::all();
    if let Some(case) = cases.iter().find(|case| plays(&case.name())) {
        let Case { missing, errno, later, .. } = *case;
        println!("EFFECT {}.", effect_of(&calls_in(missing), errno, later));
        return;
    }
    if let Err(error) = refuse(&[], libc::EPERM) {
        return skip(test, &format!("no system-call filter is possible: {error}"));
    }
    assert_eq!(cases.len(), 8 * 4, "the table is there");
    for case in cases {
        let output = again(&[], test, &case.name()).output().unwrap();
        let (status, text) = (output.status, [output.stdout, output.stderr].concat());
        let text = String::from_utf8_lossy(&text);
        let effect = format!("EFFECT {}.", case.effect);
        assert!(text.contains(&effect), "{}: not {effect} {status} {text}", case.name());
    }
}
