//! What the tests over real sockets share.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::print_stderr, reason = "skips and seeds are for whoever reads the output")]

use std::{
    any::type_name_of_val,
    fs::OpenOptions,
    hash::{BuildHasher, RandomState},
    io::{self, Read, Write},
    mem,
    net::{SocketAddr, TcpListener, TcpStream},
    ops::RangeInclusive,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    pin::pin,
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

#[cfg(target_os = "linux")]
pub(crate) mod filter;
pub(crate) mod namespace;
pub(crate) mod process;
pub(crate) mod reserve;
pub(crate) mod road;
pub(crate) mod source;

use pinbuf::{
    PinnedBuf, Policy, Pool, Sender,
    pool::{Backing, Pages},
    sender::SenderBuilder,
};

/// Says by name that a test cannot run here. `PINBUF_SKIPS` names a file in which they are
/// collected, so that a run can tell how much it did not test.
pub(crate) fn skip(test: &str, reason: &str) {
    // Not `eprintln`, which the harness keeps to itself when the test passes.
    let _ = io::stderr().write_all(format!("SKIPPED {test}: {reason}\n").as_bytes());
    let Some(file) = std::env::var_os("PINBUF_SKIPS") else { return };
    let line = format!("{test}: {reason}\n");
    let open = OpenOptions::new().create(true).append(true).open(file);
    if let Err(error) = open.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("PINBUF_SKIPS cannot be written: {error}");
    }
}

/// A deadline that only a hang misses.
pub(crate) fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(30))
}

pub(crate) fn after(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

/// Waits for what another thread or the kernel is about to bring about.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = soon().unwrap();
    while !condition() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// How often a thread can have done since `begun` what it does at most once in every `period`. A
/// busy machine makes that more and the calls of the thread fewer, so a count above it is a fault.
pub(crate) fn times_since(begun: Instant, period: Duration) -> usize {
    (begun.elapsed().as_nanos() / period.as_nanos()) as usize + 1
}

/// Settings of a sender that goes without copy on loopback too, where every route copies.
pub(crate) fn zero_copy() -> SenderBuilder {
    Sender::builder().policy(Policy::Prefer)
}

/// Tests that look at which way their bytes went take turns: senders share the memlock budget of
/// the process, and one that finds it used up by others copies.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

// Sockets.

/// Sizes for `SO_SNDBUF` at the near end and `SO_RCVBUF` at the far end; the kernel doubles them.
#[derive(Clone, Copy, Default)]
pub(crate) struct Buffers {
    pub(crate) send: Option<i32>,
    pub(crate) receive: Option<i32>,
}

/// The far end takes a few KiB and then no more until it is read.
pub(crate) const STALLED: Buffers = Buffers { send: None, receive: Some(20_000) };

/// As `STALLED`, and the near end holds little, so that sends are accepted in part.
pub(crate) const TIGHT: Buffers = Buffers { send: Some(50_000), receive: Some(20_000) };

pub(crate) fn pair() -> (TcpStream, TcpStream) {
    pair_at("127.0.0.1:0", Buffers::default())
}

/// A connection: the end that sends, and the other.
pub(crate) fn pair_at(address: &str, buffers: Buffers) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).unwrap();
    if let Some(bytes) = buffers.receive {
        // Before the connection is made: the window is agreed upon then.
        set_option(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes);
    }
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    if let Some(bytes) = buffers.send {
        set_option(&near, libc::SOL_SOCKET, libc::SO_SNDBUF, &bytes);
    }
    (near, listener.accept().unwrap().0)
}

/// A connection whose near end is an IPv6 socket and whose peer is an IPv4 one.
pub(crate) fn mapped_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let address: SocketAddr = format!("[::ffff:127.0.0.1]:{port}").parse().unwrap();
    let near = TcpStream::connect(address).unwrap();
    assert!(near.local_addr().unwrap().is_ipv6());
    (near, listener.accept().unwrap().0)
}

pub(crate) fn set_option<T>(socket: &impl AsFd, level: i32, name: i32, value: &T) {
    let fd = socket.as_fd().as_raw_fd();
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: setsockopt(2) reads `len` bytes of the value, which outlives the call.
    let done = unsafe { libc::setsockopt(fd, level, name, (&raw const *value).cast(), len) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// An option that is one int.
pub(crate) fn option(socket: &impl AsFd, level: i32, name: i32) -> i32 {
    let mut value = 0_i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: getsockopt(2) writes at most `len` bytes to the value and then `len`; both outlive
    // the call.
    let done = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    value
}

/// `SO_ERROR`, which reading clears.
pub(crate) fn take_error(socket: &impl AsFd) -> i32 {
    option(socket, libc::SOL_SOCKET, libc::SO_ERROR)
}

/// Bytes of option memory the socket holds: 832 or 896 for each note to come or unread.
pub(crate) fn optmem(socket: &impl AsFd) -> u32 {
    let mut info = [0_u32; 9];
    let mut len = size_of_val(&info) as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: getsockopt(2) writes at most `len` bytes to the array and then `len`; both outlive
    // the call.
    let done = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    info[6]
}

/// Bytes that were sent and are not acknowledged, and bytes that are not even sent.
pub(crate) fn unacked(socket: &impl AsFd) -> u64 {
    queued(socket, libc::TIOCOUTQ)
}

/// Bytes of [`unacked`] that have yet to be sent.
pub(crate) fn unsent(socket: &impl AsFd) -> u64 {
    // From linux/sockios.h.
    const SIOCOUTQNSD: libc::Ioctl = 0x894B;
    queued(socket, SIOCOUTQNSD)
}

/// Waits until the peer has acknowledged all that was sent and takes no more. A full socket stays
/// full then; before, an acknowledgement that comes 40 ms late makes room in it.
pub(crate) fn closed_window(socket: &impl AsFd) {
    eventually("the window is closed", || {
        let unsent = unsent(socket);
        unsent > 0 && unacked(socket) == unsent
    });
}

fn queued(socket: &impl AsFd, request: libc::Ioctl) -> u64 {
    let mut bytes = 0_i32;
    // SAFETY: tcp(7): both requests write one int, which outlives the call.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request, &raw mut bytes) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    bytes as u64
}

/// Segments that were sent again.
pub(crate) fn retransmissions(socket: &impl AsFd) -> u32 {
    // SAFETY: all zero bytes are a value of a struct of integers.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    let (fd, level, name) = (socket.as_fd().as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: getsockopt(2) writes at most `len` bytes to the struct and then `len`; both outlive
    // the call.
    let done = unsafe { libc::getsockopt(fd, level, name, (&raw mut info).cast(), &raw mut len) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    info.tcpi_total_retrans
}

/// States of a connection, from linux/tcp_states.h.
pub(crate) const TCP_FIN_WAIT1: u8 = 4;
pub(crate) const TCP_CLOSE: u8 = 7;

/// The state of a connection, the first byte of `TCP_INFO`.
pub(crate) fn tcp_state(socket: &impl AsFd) -> u8 {
    option(socket, libc::IPPROTO_TCP, libc::TCP_INFO).to_ne_bytes()[0]
}

/// Whether something is on the error queue, without reading it.
pub(crate) fn has_error(socket: &impl AsFd) -> bool {
    let mut fd = libc::pollfd { fd: socket.as_fd().as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: poll(2) reads and writes one `pollfd`, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut fd, 1, 0) };
    ready == 1 && fd.revents & libc::POLLERR != 0
}

/// connect(2) to `AF_UNSPEC`, as an abort does.
pub(crate) fn disconnect(socket: &impl AsFd) {
    // SAFETY: all zero bytes are a value of a struct of integers.
    let mut address: libc::sockaddr = unsafe { mem::zeroed() };
    address.sa_family = libc::AF_UNSPEC as _;
    let len = size_of_val(&address) as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: connect(2) reads `len` bytes of the address, which outlives the call.
    let done = unsafe { libc::connect(fd, &raw const address, len) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// Closes the socket with a reset.
pub(crate) fn reset(socket: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
}

/// A socket of any kind.
pub(crate) fn socket(domain: i32, kind: i32, protocol: i32) -> OwnedFd {
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: it was just made and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Another handle of the same socket.
pub(crate) fn duplicate(socket: &impl AsFd) -> OwnedFd {
    socket.as_fd().try_clone_to_owned().unwrap()
}

/// Sends with `MSG_ZEROCOPY` without a care for who may write the memory when.
///
/// # Safety
///
/// The memory stays mapped for as long as the kernel may read it.
pub(crate) unsafe fn send_raw(fd: BorrowedFd<'_>, memory: *const [u8]) -> io::Result<usize> {
    let flags = libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL;
    // SAFETY: send(2) reads the bytes, during the call and later; they stay mapped, says the
    // caller. What it reads if they are written meanwhile is the caller's business.
    let sent = unsafe { libc::send(fd.as_raw_fd(), memory.cast(), memory.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// As [`send_raw`], of constant memory.
pub(crate) fn send_static(fd: BorrowedFd<'_>, memory: &'static [u8]) -> io::Result<usize> {
    // SAFETY: it is there for ever.
    unsafe { send_raw(fd, memory) }
}

pub(crate) fn enable_zerocopy(socket: &impl AsFd) {
    set_option(socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1_i32);
}

/// Reads all that is on the error queue now and says how many messages that were.
pub(crate) fn read_error_queue(fd: BorrowedFd<'_>) -> usize {
    read_notes(fd).len()
}

/// Reads all that is on the error queue now and says which ids the messages name, if they are notes
/// and nothing else is asked for.
pub(crate) fn read_notes(fd: BorrowedFd<'_>) -> Vec<RangeInclusive<u32>> {
    let mut notes = Vec::new();
    loop {
        let mut control = [0_u64; 64];
        // SAFETY: all zero bytes are a value of a struct of integers and raw pointers.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        // SAFETY: recvmsg(2) writes to the header and its control room, which outlive the call.
        if unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) } < 0 {
            return notes;
        }
        // A header of two words, and in the second word behind it `ee_info` and `ee_data`.
        let ids = control[3].to_ne_bytes();
        let [first, last] =
            [0, 4].map(|at| u32::from_ne_bytes(ids[at..at + 4].try_into().unwrap()));
        notes.push(first..=last);
    }
}

// Data.

/// Bytes that differ from each other and from those of other seeds.
pub(crate) fn fill(bytes: &mut [u8], seed: usize) {
    for (at, word) in bytes.chunks_mut(8).enumerate() {
        let value = (at as u64 + ((seed as u64) << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
}

pub(crate) fn pattern(len: usize, seed: usize) -> Arc<[u8]> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, seed);
    bytes.into()
}

/// A buffer of `len` bytes of [`pattern`].
pub(crate) fn filled(mut buf: PinnedBuf, len: usize, seed: usize) -> PinnedBuf {
    buf.resize(len, 0);
    fill(&mut buf, seed);
    buf
}

/// What a peer does with the stream, on a thread of its own: after a pause reads to the end.
pub(crate) fn reader(mut far: TcpStream, pause: Duration) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        thread::sleep(pause);
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        got
    })
}

/// Numbers of the messages of `len` bytes whose contents are not their [`pattern`].
pub(crate) fn corrupt(stream: &[u8], len: usize) -> Vec<usize> {
    let messages = stream.chunks(len).enumerate();
    messages.filter(|(seed, message)| **message != *pattern(len, *seed)).map(|(at, _)| at).collect()
}

/// The stream is `count` whole messages of `len` bytes, each its [`pattern`].
#[track_caller]
pub(crate) fn assert_arrived(stream: &[u8], len: usize, count: usize) {
    assert_eq!((stream.len(), corrupt(stream, len)), (len * count, vec![]));
}

/// Says where two streams part, instead of printing megabytes.
#[track_caller]
pub(crate) fn assert_same(got: &[u8], want: &[u8]) {
    let differs = got.iter().zip(want).position(|(got, want)| got != want);
    assert_eq!((got.len(), differs), (want.len(), None), "(length, first difference)");
}

/// The seed of a random test: `PINBUF_SEED`, or another one each time. Printed.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("PINBUF_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
    eprintln!("PINBUF_SEED={seed}");
    seed
}

/// Numbers that look random, the same for the same seed (splitmix64).
pub(crate) fn random(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

// Pools.

pub(crate) fn pool(capacity: usize, count: usize) -> Pool {
    Pool::builder().class(capacity, count).backing(Backing::Require(Pages::Base)).build().unwrap()
}

/// Free, owned, in flight, quarantined; and the pool's records agree.
pub(crate) fn census(pool: &Pool) -> [usize; 4] {
    let audit = pool.audit();
    assert!(audit.is_clean(), "{audit}");
    let stats = audit.stats;
    [stats.free(), stats.owned(), stats.in_flight(), stats.quarantined()]
}

/// Every slot becomes Free. What is released need not be home yet if somebody waited for a slot:
/// the reaper reads notes then, and may not have dropped the buffers they named.
pub(crate) fn all_come_home(pool: &Pool) {
    eventually("every slot is home", || pool.stats().owned() == 0);
    assert_all_home(pool);
}

/// Every slot is Free, and the pool's records agree.
pub(crate) fn assert_all_home(pool: &Pool) {
    let slots: usize = pool.stats().classes.iter().map(|class| class.slots).sum();
    assert_eq!(census(pool), [slots, 0, 0, 0]);
}

// Futures.

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, asleep until it is woken, and says how often it was polled.
///
/// Sleeps for ever if a wake-up is lost, up to the limit of [`soon`].
pub(crate) fn block_on<F: Future>(future: F) -> (F::Output, usize) {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let deadline = soon().unwrap();
    for polls in 1.. {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return (output, polls);
        }
        thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
        assert!(Instant::now() < deadline, "never woken");
    }
    unreachable!()
}

// Other processes.

/// The name of the test that the closure is written in.
pub(crate) fn test_of<F>(closure: &F) -> &'static str {
    let name = type_name_of_val(closure).trim_end_matches("::{{closure}}");
    // Behind the crate.
    name.split_once("::").expect("a closure of a function").1
}

/// Whether this process was started by [`again`] to play this part.
pub(crate) fn plays(part: &str) -> bool {
    std::env::var("PINBUF_TEST_PART").is_ok_and(|set| set == part)
}

/// The command that runs one test of this binary again, in a process of its own, as `part`.
/// `through` is a program to start it with, as `unshare -n`.
pub(crate) fn again(through: &[&str], test: &str, part: &str) -> Command {
    let exe = std::env::current_exe().unwrap();
    let mut command = match through {
        [] => Command::new(exe),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(exe);
            command
        }
    };
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env("PINBUF_TEST_PART", part);
    command
}

/// Runs it; the test fails if it fails, or if it did not run the test.
pub(crate) fn must_succeed(mut command: Command) {
    let output = command.output().unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    eprintln!("{text}");
    for line in text.lines().filter(|line| line.starts_with("SKIPPED")) {
        let _ = writeln!(io::stderr(), "{line}");
    }
    assert!(output.status.success(), "{command:?}: {}", output.status);
    assert!(text.contains("1 passed"), "{command:?} ran no test");
}

/// Gives up root, and with it `CAP_IPC_LOCK`, for a user id that nobody else is likely to have, and
/// says whether it did: the kernel counts locked memory by user, over all processes. In a user
/// namespace it does not, and there the capability does not count.
pub(crate) fn become_ordinary() -> bool {
    // SAFETY: no pointers.
    if unsafe { libc::geteuid() } != 0 {
        return false;
    }
    let id = 40_000 + std::process::id() % 20_000;
    // SAFETY: no groups are read.
    if unsafe { libc::setgroups(0, std::ptr::null()) } != 0 {
        return false;
    }
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::setresgid(id, id, id) }, 0);
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::setresuid(id, id, id) }, 0);
    true
}

/// Lowers the limit; false if it was lower already.
pub(crate) fn limit_memlock(bytes: u64) -> bool {
    process::set_limit(libc::RLIMIT_MEMLOCK, bytes)
}

/// How to start a program in a network namespace of its own, with rights over it; `None` if this
/// system lets us have none.
pub(crate) fn network_namespace() -> Option<&'static [&'static str]> {
    // Root stays in its user namespace, outside of which locked memory is limited, and counted
    // together with that of every other process of root.
    let ways: [&[&str]; 2] = [&["unshare", "-n"], &["unshare", "-Urn"]];
    ways.into_iter().find(|way| {
        let mut command = Command::new(way[0]);
        command.args(&way[1..]).args(["true"]).output().is_ok_and(|out| out.status.success())
    })
}

/// Switches the loopback device of this namespace on.
pub(crate) fn raise_loopback() {
    switch_loopback(libc::IFF_UP | libc::IFF_RUNNING);
}

/// Switches the loopback device of this namespace off: whatever is sent is lost.
pub(crate) fn lower_loopback() {
    switch_loopback(0);
}

fn switch_loopback(flags: i32) {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    // SAFETY: all zero bytes are a value of a union of integers.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as _, b'o' as _]);
    request.ifr_ifru.ifru_flags = flags as _;
    // SAFETY: netdevice(7): SIOCSIFFLAGS reads one `ifreq`, which outlives the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}
