//! Ten thousand sockets, opened, loaded and dropped in every state.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use pinbuf::{Policy, Pool, Sender, SharedBuf, reaper::wait_idle, sender::OnRelease};

use crate::common::{
    again, assert_all_free, eventually, filled, plays,
    process::{alone, limit, open_files, reapers, set_limit, thread_count},
    random, seed, set_option, skip, test_of, within,
};

const SENDERS: usize = 10_000;
/// The smallest zero-copy send: TCP has memory for all of them.
const LEN: usize = 4 << 10;
/// More than a socket takes with small buffers at both ends.
static REST: [u8; 1 << 20] = [7; 1 << 20];
const SMALL: i32 = 32 << 10;
/// The TCP memory needed, for all sockets of the machine.
const NEEDED_BYTES: usize = 160 << 20;

/// Bytes allocated and not freed by this program.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system allocator does the work; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// The far ends, in a process of their own: it takes connections and reads nothing.
fn play_peers() {
    raise_open_files();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    set_option(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, &SMALL);
    let _ = io::stderr().write_all(format!("{}\n", listener.local_addr().unwrap()).as_bytes());
    thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    // Ends with the standard input, after any number of connections, and closes all of them.
    let _ = io::stdin().read_to_end(&mut Vec::new());
}

fn raise_open_files() -> bool {
    const WANTED: u64 = SENDERS as u64 + 100;
    limit(libc::RLIMIT_NOFILE).0 >= WANTED || set_limit(libc::RLIMIT_NOFILE, WANTED)
}

/// The limit of TCP memory.
fn tcp_bytes() -> Option<usize> {
    let pages = fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").ok()?;
    Some(pages.split_whitespace().nth(2)?.parse::<usize>().ok()? << 12)
}

/// Loads a sender at random: with nothing, with a buffer, with more than the socket takes, or with
/// a shared buffer.
fn load(
    sender: &mut Sender<TcpStream>,
    pool: &Pool,
    shared: &SharedBuf,
    random: &mut impl FnMut() -> u64,
) {
    let kind = random() % 10;
    if (1..8).contains(&kind) {
        // The peers read nothing, but their kernel still takes this much.
        let buf = filled(pool.alloc(LEN).unwrap(), LEN, kind as usize);
        sender.try_send(buf).unwrap();
    }
    if kind > 6 {
        sender.try_send(shared.slice(..1 + random() as usize % LEN)).unwrap();
    }
    if random().is_multiple_of(20) {
        // A larger buffer could exhaust TCP memory for all programs of the machine.
        set_option(sender.get_ref(), libc::SOL_SOCKET, libc::SO_SNDBUF, &SMALL);
        sender.try_send(&REST[..]).unwrap();
    }
}

/// Ends a sender in a random way.
fn end(mut sender: Sender<TcpStream>, random: &mut impl FnMut() -> u64) {
    match random() % 10 {
        0 => drop(Some(sender.abort())),
        1 => drop(Some(sender.close(within(0)))),
        2 => {
            let (sending, reaping) = sender.split();
            drop((sending, reaping));
        }
        3 => {
            let (sending, reaping) = sender.split();
            drop((reaping, sending));
        }
        4 => drop(sender.into_parts()),
        5 => {
            sender.reap().unwrap();
        }
        _ => drop(sender),
    }
}

#[test]
fn ten_thousand_sockets_leave_nothing_behind() {
    let name = test_of(&|| ());
    if plays("peers") {
        return play_peers();
    }
    alone(|| {
        if !raise_open_files() {
            return skip(name, "RLIMIT_NOFILE is too low");
        }
        if tcp_bytes().is_some_and(|bytes| bytes < NEEDED_BYTES) {
            return skip(name, "net.ipv4.tcp_mem is too low");
        }
        let mut random = random(seed());
        let mut command = again(&[], name, "peers");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut address = String::new();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        said.read_line(&mut address).unwrap();
        let before = (open_files(), thread_count(), ALLOCATED.load(Ordering::Relaxed));
        let pool = Pool::new(LEN, 64).unwrap();
        let shared = filled(pool.try_alloc(LEN).unwrap(), LEN, 99).freeze();
        let mut waiting = Vec::new();
        for _ in 0..SENDERS {
            let socket = TcpStream::connect(address.trim()).unwrap();
            set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, &SMALL);
            let on_release =
                if random().is_multiple_of(8) { OnRelease::Return } else { OnRelease::Recycle };
            let builder = Sender::builder().policy(Policy::Prefer).threshold_bytes(LEN);
            let builder = builder.on_release(on_release);
            let mut sender = builder.adopt(socket).unwrap();
            load(&mut sender, &pool, &shared, &mut random);
            // Half of the returned payloads are never fetched.
            while on_release == OnRelease::Return && random().is_multiple_of(2) {
                let _ = sender.reap();
                drop(sender.next_returned());
            }
            // Some slots are held by live senders, but never all of them.
            if on_release == OnRelease::Recycle && random().is_multiple_of(4) {
                waiting.push(sender);
            } else {
                end(sender, &mut random);
            }
            if waiting.len() > 40 {
                let at = random() as usize % waiting.len();
                end(waiting.swap_remove(at), &mut random);
            }
        }
        assert!(pinbuf::reaper::stats().owned > SENDERS / 50, "{:?}", pinbuf::reaper::stats());
        assert_eq!(reapers().len(), 1);
        waiting.into_iter().for_each(|sender| end(sender, &mut random));
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert!(wait_idle(within(60_000)), "{:?}", pinbuf::reaper::stats());
        drop(shared);
        assert_all_free(&pool);
        // The reaper's thread and its two descriptors stay; the pipes of the child are closed.
        eventually("every descriptor is closed", || open_files() <= before.0 + 2);
        assert_eq!((reapers().len(), thread_count()), (1, before.1 + 1));
        drop(pool);
        // The reaper keeps some 50 to 100 KB, for any number of senders.
        eventually("the memory is back", || {
            ALLOCATED.load(Ordering::Relaxed) < before.2 + 20 * SENDERS
        });
    });
}
