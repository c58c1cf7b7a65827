//! A count of system calls.
//!
//! A test binary with this file defines `ppoll`, `epoll_wait`, `recvmmsg`, `send`, `sendmsg`,
//! `ioctl`, `getsockopt`, `clock_gettime` and `write`, and so replaces the C library's functions in
//! calls of the library. The functions count calls. They can pretend an empty error queue or a wait
//! without a limit, and can send a part only.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    array,
    cell::{Cell, RefCell},
    collections::VecDeque,
    ffi::{c_int, c_uint, c_void},
    mem,
    ops::Sub,
    ptr, slice,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Numbers of system calls.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Calls {
    /// Calls of `ppoll` and `epoll_wait`.
    pub(crate) waits: usize,
    /// Waits without a limit that lasted for a minute: their event never came.
    pub(crate) hangs: usize,
    /// Calls of `recvmmsg`, the reads of the error queue.
    pub(crate) looks: usize,
    /// Calls of `send` and `sendmsg`.
    pub(crate) sends: usize,
    /// Calls of `ioctl` for unacknowledged bytes: one for each look at an ending sender.
    pub(crate) questions: usize,
    /// Calls of `getsockopt`.
    pub(crate) options: usize,
    /// Calls of `clock_gettime`.
    pub(crate) clocks: usize,
    /// Calls of `write` with eight bytes: wake-ups of waiting threads.
    pub(crate) wakes: usize,
}

impl Calls {
    const NONE: Self = Self::of([0; 8]);

    const fn of(
        [waits, hangs, looks, sends, questions, options, clocks, wakes]: [usize; 8],
    ) -> Self {
        Self { waits, hangs, looks, sends, questions, options, clocks, wakes }
    }

    const fn counts(self) -> [usize; 8] {
        let Self { waits, hangs, looks, sends, questions, options, clocks, wakes } = self;
        [waits, hangs, looks, sends, questions, options, clocks, wakes]
    }

    /// The calls of which a loop that spins makes many.
    pub(crate) fn all(self) -> usize {
        self.waits + self.looks + self.sends + self.questions
    }
}

impl Sub for Calls {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        let (after, before) = (self.counts(), before.counts());
        Self::of(array::from_fn(|at| after[at] - before[at]))
    }
}

/// The calls of several threads. No lock, which a forked child would wait for.
struct Total([AtomicUsize; 8]);

impl Total {
    const fn new() -> Self {
        Self([const { AtomicUsize::new(0) }; 8])
    }

    fn add(&self, calls: Calls) {
        for (total, count) in self.0.iter().zip(calls.counts()) {
            total.fetch_add(count, Ordering::SeqCst);
        }
    }

    fn get(&self) -> Calls {
        Calls::of(array::from_fn(|at| self.0[at].load(Ordering::SeqCst)))
    }
}

thread_local! {
    static OWN: Cell<Calls> = const { Cell::new(Calls::NONE) };
    static CUTS: RefCell<VecDeque<usize>> = const { RefCell::new(VecDeque::new()) };
    static BLIND_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
    static PATIENT: Cell<bool> = const { Cell::new(false) };
    static BEFORE_ANSWERS: Cell<Option<fn(c_int)>> = const { Cell::new(None) };
    static AFTER_EMPTY_LOOKS: Cell<Option<fn(c_int)>> = const { Cell::new(None) };
}

static REAPERS: Total = Total::new();
static ALL: Total = Total::new();

/// The calls of all threads.
pub(crate) fn of_all() -> Calls {
    ALL.get()
}

/// The calls of the reaper's thread.
pub(crate) fn of_the_reaper() -> Calls {
    REAPERS.get()
}

/// The calls of this thread.
pub(crate) fn of_this_thread() -> Calls {
    OWN.get()
}

/// The calls of this thread in `body`.
pub(crate) fn during(body: impl FnOnce()) -> Calls {
    let before = of_this_thread();
    body();
    of_this_thread() - before
}

/// Shows this thread an empty error queue until `end`.
pub(crate) fn blind_until(end: Option<Instant>) {
    BLIND_UNTIL.set(end);
}

/// As [`during`], but only an event ends a wait of this thread, not the library's own limit. A
/// missed event costs a minute and counts as a hang.
pub(crate) fn patiently(body: impl FnOnce()) -> Calls {
    PATIENT.set(true);
    let calls = during(body);
    PATIENT.set(false);
    calls
}

/// Calls `action` with the descriptor before `ioctl` answers, so that the answer is old.
pub(crate) fn before_answers(action: Option<fn(c_int)>) {
    BEFORE_ANSWERS.set(action);
}

/// After `recvmmsg` has found the error queue empty, this is called with the descriptor.
pub(crate) fn after_empty_looks(action: Option<fn(c_int)>) {
    AFTER_EMPTY_LOOKS.set(action);
}

/// The next sends of this thread pass at most so many bytes to the kernel each; 0: the socket is
/// full.
pub(crate) fn cut_sends<const COUNT: usize>(cuts: [usize; COUNT]) {
    CUTS.set(cuts.into());
}

fn count(change: impl Fn(&mut Calls)) {
    let before = OWN.get();
    let mut own = before;
    change(&mut own);
    OWN.set(own);
    ALL.add(own - before);
    if thread::current().name() == Some("pinbuf-reaper") {
        REAPERS.add(own - before);
    }
}

/// Fails as the C library does.
fn would_block() -> c_int {
    // SAFETY: always a valid address.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above; the variable belongs to this thread.
    unsafe { *errno = libc::EAGAIN };
    -1
}

const MINUTE: Duration = Duration::from_secs(60);

fn wait(is_bounded: bool, wait: impl FnOnce(bool) -> c_int) -> c_int {
    count(|calls| calls.waits += 1);
    let is_patient = PATIENT.get() && is_bounded;
    let ready = wait(is_patient);
    if is_patient && ready == 0 {
        count(|calls| calls.hangs += 1);
    }
    ready
}

/// In place of the C library's.
///
/// # Safety
///
/// As ppoll(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn ppoll(
    fds: *mut libc::pollfd,
    nfds: libc::nfds_t,
    timeout: *const libc::timespec,
    mask: *const libc::sigset_t,
) -> c_int {
    // SAFETY: null or a timespec, by the caller's contract.
    let mut left = unsafe { timeout.as_ref() }.copied();
    let is_bounded = left.is_some_and(|left| left.tv_sec > 0 || left.tv_nsec > 0);
    wait(is_bounded, |is_patient| {
        if is_patient {
            left = Some(libc::timespec { tv_sec: MINUTE.as_secs() as _, tv_nsec: 0 });
        }
        // The bare system call writes the remaining time back.
        let left = left.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
        // SAFETY: the caller's contract, and a timeout of our own.
        unsafe { libc::syscall(libc::SYS_ppoll, fds, nfds, left, mask, 8) as c_int }
    })
}

/// In place of the C library's.
///
/// # Safety
///
/// As epoll_wait(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut libc::epoll_event,
    room: c_int,
    timeout_ms: c_int,
) -> c_int {
    wait(timeout_ms > 0, |is_patient| {
        let timeout_ms = if is_patient { MINUTE.as_millis() as c_int } else { timeout_ms };
        let none = ptr::null::<c_void>();
        // SAFETY: the caller's contract; no mask.
        unsafe {
            libc::syscall(libc::SYS_epoll_pwait, epoll, events, room, timeout_ms, none, 8) as c_int
        }
    })
}

/// In place of the C library's.
///
/// # Safety
///
/// As recvmmsg(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn recvmmsg(
    fd: c_int,
    messages: *mut libc::mmsghdr,
    room: c_uint,
    flags: c_int,
    timeout: *mut libc::timespec,
) -> c_int {
    count(|calls| calls.looks += 1);
    if BLIND_UNTIL.get().is_some_and(|until| Instant::now() < until) {
        return would_block();
    }
    // SAFETY: the caller's contract.
    let read =
        unsafe { libc::syscall(libc::SYS_recvmmsg, fd, messages, room, flags, timeout) as c_int };
    if read < 0
        && let Some(action) = AFTER_EMPTY_LOOKS.get()
    {
        action(fd);
        return would_block();
    }
    read
}

/// In place of the C library's.
///
/// # Safety
///
/// As send(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn send(fd: c_int, bytes: *const c_void, len: usize, flags: c_int) -> isize {
    if CUTS.try_with(|cuts| !cuts.borrow().is_empty()).unwrap_or(false) {
        let mut range = libc::iovec { iov_base: bytes.cast_mut(), iov_len: len };
        // SAFETY: all zero bytes are a value of `msghdr`: integers and raw pointers.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut range;
        message.msg_iovlen = 1;
        // SAFETY: one range, readable by the caller's contract.
        return unsafe { sendmsg(fd, &raw const message, flags) };
    }
    count(|calls| calls.sends += 1);
    // SAFETY: the caller's contract; no address.
    unsafe { libc::syscall(libc::SYS_sendto, fd, bytes, len, flags, 0_usize, 0) as isize }
}

/// In place of the C library's.
///
/// # Safety
///
/// As sendmsg(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sendmsg(fd: c_int, message: *const libc::msghdr, flags: c_int) -> isize {
    count(|calls| calls.sends += 1);
    let cut = CUTS.try_with(|cuts| cuts.borrow_mut().pop_front());
    let Ok(Some(mut left)) = cut else {
        // SAFETY: the caller's contract.
        return unsafe { libc::syscall(libc::SYS_sendmsg, fd, message, flags) as isize };
    };
    if left == 0 {
        return would_block() as isize;
    }
    // SAFETY: the pointer leads to a message, by the caller's contract.
    let mut cut = unsafe { *message };
    // SAFETY: the message has as many ranges, by the caller's contract.
    let ranges = unsafe { slice::from_raw_parts(cut.msg_iov, cut.msg_iovlen as _) };
    let mut ranges = ranges.to_vec();
    ranges.retain_mut(|range| {
        range.iov_len = range.iov_len.min(left);
        left -= range.iov_len;
        range.iov_len > 0
    });
    cut.msg_iov = ranges.as_mut_ptr();
    cut.msg_iovlen = ranges.len() as _;
    // SAFETY: the caller's contract; the ranges are parts of the caller's.
    unsafe { libc::syscall(libc::SYS_sendmsg, fd, &raw const cut, flags) as isize }
}

/// In place of the C library's.
///
/// # Safety
///
/// As ioctl(2) with a pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: usize, value: *mut c_void) -> c_int {
    count(|calls| calls.questions += 1);
    // SAFETY: the caller's contract.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, fd, request, value) as c_int };
    if let Some(action) = BEFORE_ANSWERS.get() {
        action(fd);
    }
    result
}

/// In place of the C library's.
///
/// # Safety
///
/// As getsockopt(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut libc::socklen_t,
) -> c_int {
    count(|calls| calls.options += 1);
    // SAFETY: the caller's contract.
    unsafe { libc::syscall(libc::SYS_getsockopt, fd, level, name, value, len) as c_int }
}

/// In place of the C library's. Threads read the clock at their end too, so the count is their own.
///
/// # Safety
///
/// As clock_gettime(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    OWN.with(|own| own.set(Calls { clocks: own.get().clocks + 1, ..own.get() }));
    // SAFETY: the caller's contract.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int }
}

/// In place of the C library's.
///
/// # Safety
///
/// As write(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, len: usize) -> isize {
    if len == size_of::<u64>() {
        count(|calls| calls.wakes += 1);
    }
    // SAFETY: the caller's contract.
    unsafe { libc::syscall(libc::SYS_write, fd, bytes, len) as isize }
}
