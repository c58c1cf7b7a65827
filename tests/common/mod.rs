//! The common parts of the tests over real sockets.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::print_stderr, reason = "skips and seeds are for the reader of the output")]

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

/// Reports by name that a test cannot run here, also to the file `PINBUF_SKIPS`, for a count at the
/// end of a run.
pub(crate) fn skip(test: &str, reason: &str) {
    // Not `eprintln`: the harness hides its output when the test passes.
    let _ = io::stderr().write_all(format!("SKIPPED {test}: {reason}\n").as_bytes());
    let Some(file) = std::env::var_os("PINBUF_SKIPS") else { return };
    let line = format!("{test}: {reason}\n");
    let open = OpenOptions::new().create(true).append(true).open(file);
    if let Err(error) = open.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("PINBUF_SKIPS cannot be written: {error}");
    }
}

/// A limit that only a hang reaches.
pub(crate) fn soon() -> Option<Duration> {
    within(30_000)
}

pub(crate) fn within(ms: u64) -> Option<Duration> {
    Some(Duration::from_millis(ms))
}

pub(crate) fn after(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

/// Waits for an action of another thread or of the kernel.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + soon().unwrap();
    while !condition() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The largest number of actions since `begun`, for a thread with at most one action in every
/// `period`. On a busy machine the number rises and the actions become fewer, so a count above the
/// number is a fault.
pub(crate) fn times_since(begun: Instant, period: Duration) -> usize {
    (begun.elapsed().as_nanos() / period.as_nanos()) as usize + 1
}

/// Settings of a sender that uses zero copy on loopback too, where the kernel copies.
pub(crate) fn zero_copy() -> SenderBuilder {
    Sender::builder().policy(Policy::Prefer)
}

/// A lock for tests that check the way of their bytes: senders share the memlock budget of the
/// process, and copy when the budget is used up.
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

/// The far end takes a few KiB, and no more until it is read.
pub(crate) const STALLED: Buffers = Buffers { send: None, receive: Some(20_000) };

/// As `STALLED`, and the near end holds little, so that sends are accepted in parts.
pub(crate) const TIGHT: Buffers = Buffers { send: Some(50_000), receive: Some(20_000) };

pub(crate) fn pair() -> (TcpStream, TcpStream) {
    pair_at("127.0.0.1:0", Buffers::default())
}

/// A connection: the sending end and the peer.
pub(crate) fn pair_at(address: &str, buffers: Buffers) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).unwrap();
    if let Some(bytes) = buffers.receive {
        // Before the connection: its start fixes the window.
        set_option(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes);
    }
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    if let Some(bytes) = buffers.send {
        set_option(&near, libc::SOL_SOCKET, libc::SO_SNDBUF, &bytes);
    }
    (near, listener.accept().unwrap().0)
}

/// A connection from an IPv6 socket to an IPv4 peer.
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
    // SAFETY: setsockopt(2) reads `len` bytes of the value, alive during the call.
    let done = unsafe { libc::setsockopt(fd, level, name, (&raw const *value).cast(), len) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// An option of type int.
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

/// `SO_ERROR`; the read clears it.
pub(crate) fn take_error(socket: &impl AsFd) -> i32 {
    option(socket, libc::SOL_SOCKET, libc::SO_ERROR)
}

/// Bytes of option memory held by the socket: 832 or 896 for each unread or future notification.
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

/// Bytes sent and not acknowledged, and bytes not even sent.
pub(crate) fn unacked(socket: &impl AsFd) -> u64 {
    queued(socket, libc::TIOCOUTQ)
}

/// The bytes of [`unacked`] that are not sent yet.
pub(crate) fn unsent(socket: &impl AsFd) -> u64 {
    // From linux/sockios.h.
    const SIOCOUTQNSD: libc::Ioctl = 0x894B;
    queued(socket, SIOCOUTQNSD)
}

/// Waits until the peer has acknowledged all sent bytes and takes no more. A full socket then stays
/// full; before, an acknowledgement can come 40 ms late and make room.
pub(crate) fn closed_window(socket: &impl AsFd) {
    eventually("the window is closed", || {
        let unsent = unsent(socket);
        unsent > 0 && unacked(socket) == unsent
    });
}

fn queued(socket: &impl AsFd, request: libc::Ioctl) -> u64 {
    let mut bytes = 0_i32;
    // SAFETY: tcp(7): both requests write one int, alive during the call.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request, &raw mut bytes) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    bytes as u64
}

/// Number of retransmitted segments.
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

/// Returns `true` if a message is on the error queue, without a read.
pub(crate) fn has_error(socket: &impl AsFd) -> bool {
    let mut fd = libc::pollfd { fd: socket.as_fd().as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: poll(2) reads and writes one `pollfd`, alive during the call.
    let ready = unsafe { libc::poll(&raw mut fd, 1, 0) };
    ready == 1 && fd.revents & libc::POLLERR != 0
}

/// connect(2) to `AF_UNSPEC`, the call of an abort.
pub(crate) fn disconnect(socket: &impl AsFd) {
    // SAFETY: all zero bytes are a value of a struct of integers.
    let mut address: libc::sockaddr = unsafe { mem::zeroed() };
    address.sa_family = libc::AF_UNSPEC as _;
    let len = size_of_val(&address) as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: connect(2) reads `len` bytes of the address, alive during the call.
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
    // SAFETY: from_raw_fd needs an open, unowned fd: the call above made this one.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A second handle of the same socket.
pub(crate) fn duplicate(socket: &impl AsFd) -> OwnedFd {
    socket.as_fd().try_clone_to_owned().unwrap()
}

/// Sends with `MSG_ZEROCOPY`, without protection from writers.
///
/// # Safety
///
/// The memory stays mapped as long as the kernel may read it.
pub(crate) unsafe fn send_raw(fd: BorrowedFd<'_>, memory: *const [u8]) -> io::Result<usize> {
    let flags = libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL;
    // SAFETY: send(2) reads the bytes during the call and later. They stay mapped, by the caller's
    // contract, which also covers writers.
    let sent = unsafe { libc::send(fd.as_raw_fd(), memory.cast(), memory.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// As [`send_raw`], of constant memory.
pub(crate) fn send_static(fd: BorrowedFd<'_>, memory: &'static [u8]) -> io::Result<usize> {
    // SAFETY: constant memory never ends.
    unsafe { send_raw(fd, memory) }
}

pub(crate) fn enable_zerocopy(socket: &impl AsFd) {
    set_option(socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1_i32);
}

/// Reads all messages of the error queue and returns their number.
pub(crate) fn read_error_queue(fd: BorrowedFd<'_>) -> usize {
    read_notification_ids(fd).len()
}

/// Reads all messages of the error queue and returns the ids in them. Valid only if all are
/// notifications.
pub(crate) fn read_notification_ids(fd: BorrowedFd<'_>) -> Vec<RangeInclusive<u32>> {
    let mut ranges = Vec::new();
    loop {
        let mut control = [0_u64; 64];
        // SAFETY: all zero bytes are a value of a struct of integers and raw pointers.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        // SAFETY: recvmsg(2) writes to the header and its control room, alive during the call.
        if unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) } < 0 {
            return ranges;
        }
        // A header of two words; `ee_info` and `ee_data` are in the second word behind the header.
        let ids = control[3].to_ne_bytes();
        let [first, last] =
            [0, 4].map(|at| u32::from_ne_bytes(ids[at..at + 4].try_into().unwrap()));
        ranges.push(first..=last);
    }
}

// Data.

/// Bytes that differ from each other and from the patterns of other seeds.
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

/// Reads a stream to its end after a pause, on a new thread.
pub(crate) fn reader(mut far: TcpStream, pause: Duration) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        thread::sleep(pause);
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        got
    })
}

/// Numbers of the messages of `len` bytes that differ from their [`pattern`].
pub(crate) fn corrupt(stream: &[u8], len: usize) -> Vec<usize> {
    let messages = stream.chunks(len).enumerate();
    messages.filter(|(seed, message)| **message != *pattern(len, *seed)).map(|(at, _)| at).collect()
}

/// Asserts that the stream is `count` whole messages of `len` bytes, each with its [`pattern`].
#[track_caller]
pub(crate) fn assert_arrived(stream: &[u8], len: usize, count: usize) {
    assert_eq!((stream.len(), corrupt(stream, len)), (len * count, vec![]));
}

/// Asserts equality, and prints the first difference instead of megabytes.
#[track_caller]
pub(crate) fn assert_same(got: &[u8], want: &[u8]) {
    let differs = got.iter().zip(want).position(|(got, want)| got != want);
    assert_eq!((got.len(), differs), (want.len(), None), "(length, first difference)");
}

/// The seed of a random test: `PINBUF_SEED`, or a new one each time. Printed.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("PINBUF_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
    eprintln!("PINBUF_SEED={seed}");
    seed
}

/// Pseudo-random numbers from a seed (splitmix64).
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

/// The numbers of free, owned, in-flight and quarantined slots, after an audit of the pool.
pub(crate) fn census(pool: &Pool) -> [usize; 4] {
    let audit = pool.audit();
    assert!(audit.is_clean(), "{audit}");
    let stats = audit.stats;
    [stats.free(), stats.owned(), stats.in_flight(), stats.quarantined()]
}

/// Waits until every slot is Free. Released slots may be on their way: if a thread waited for a
/// slot, the reaper reads notifications, and may still have to drop their buffers.
pub(crate) fn wait_until_all_free(pool: &Pool) {
    eventually("every slot is free", || pool.stats().owned() == 0);
    assert_all_free(pool);
}

/// Asserts that every slot is Free, and that the pool's audit finds no mismatch.
pub(crate) fn assert_all_free(pool: &Pool) {
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

/// Runs a future on this thread, asleep between wake-ups, and returns the number of polls.
///
/// A lost wake-up lets it sleep up to the limit of [`soon`].
pub(crate) fn block_on<F: Future>(future: F) -> (F::Output, usize) {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let deadline = Instant::now() + soon().unwrap();
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

/// The name of the test around a closure, with its module; of the calling test: `test_of(&|| ())`.
pub(crate) fn test_of<F>(closure: &F) -> &'static str {
    let name = type_name_of_val(closure).trim_end_matches("::{{closure}}");
    // Without the crate.
    name.split_once("::").expect("a closure of a function").1
}

/// Returns `true` if [`again`] started this process as `part`.
pub(crate) fn plays(part: &str) -> bool {
    std::env::var("PINBUF_TEST_PART").is_ok_and(|set| set == part)
}

/// The command to run a test of this binary again, in a new process, as `part`. `through` is a
/// program to start it with, such as `unshare -n`.
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

/// Runs the command; the test fails if the command fails or did not run the test.
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

/// Drops root and `CAP_IPC_LOCK` for an otherwise unused user id, and returns `true` if the process
/// was root. The kernel counts locked memory by user, over all processes. A user namespace would
/// not help: the capability does not count there.
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

/// Lowers the limit; `false` if it was lower already.
pub(crate) fn limit_memlock(bytes: u64) -> bool {
    process::set_limit(libc::RLIMIT_MEMLOCK, bytes)
}

/// The way to start a program in a new network namespace with rights over it; `None` if the system
/// refuses.
pub(crate) fn network_namespace() -> Option<&'static [&'static str]> {
    // Root stays in the user namespace. In any other namespace locked memory is limited, and
    // counted together with the memory of all root processes.
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

/// Switches the loopback device of this namespace off: all sent packets are lost.
pub(crate) fn lower_loopback() {
    switch_loopback(0);
}

fn switch_loopback(flags: i32) {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    // SAFETY: all zero bytes are a value of a union of integers.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as _, b'o' as _]);
    request.ifr_ifru.ifru_flags = flags as _;
    // SAFETY: netdevice(7): SIOCSIFFLAGS reads one `ifreq`, alive during the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}
