//! Signals: an interrupt ends the migration in order; a truncated memory image ends it with a
//! message.
//!
//! This file, `clock.rs` and `memory.rs` contain all unsafe code of the example.

use std::{
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use crate::failure::Failure;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Two ends of a connection. A byte at the first end wakes every [`Stop::wait_readable`], and stays
/// there: after the request no later wait may begin.
static WAKE: OnceLock<io::Result<(UnixStream, UnixStream)>> = OnceLock::new();

/// Returns `true` after SIGINT or SIGTERM.
pub fn interrupted() -> bool {
    // Relaxed: a flag on its own, without other data.
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A request to end early: by a signal, or after a failure of the other end in this process.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
        if let Ok((_, wake)) = WAKE.get_or_init(UnixStream::pair) {
            // Fails only for lack of room, and then enough bytes are there.
            let _ = (&*wake).write(&[0]);
        }
    }

    /// Sleeps until the socket is readable or has a connection. Returns `false` at the timeout, and
    /// fails at the end of the migration.
    pub fn wait_readable(
        &self,
        socket: &impl AsFd,
        until: Option<Instant>,
    ) -> Result<bool, Failure> {
        let failure = |error: &io::Error| Failure::io("waiting for a connection", error);
        let (wake, _) = WAKE.get_or_init(UnixStream::pair).as_ref().map_err(failure)?;
        loop {
            self.check()?;
            match poll([socket.as_fd(), wake.as_fd()], until) {
                Ok([false, false]) if until.is_some_and(|at| at <= Instant::now()) => {
                    return Ok(false);
                }
                Ok([true, _]) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failure(&error)),
            }
        }
    }

    /// Fails at the end of the migration.
    pub fn check(&self) -> Result<(), Failure> {
        if interrupted() {
            return Err(Failure::interrupted());
        }
        // Relaxed: a flag on its own, without other data.
        match self.0.load(Ordering::Relaxed) {
            true => Err(Failure::peer_gone("the source gave up")),
            false => Ok(()),
        }
    }
}

/// Waits until one of the sockets is readable, or for the timeout. Returns `true` for each readable
/// socket.
fn poll(sockets: [BorrowedFd<'_>; 2], until: Option<Instant>) -> io::Result<[bool; 2]> {
    let mut entries = sockets.map(|socket| libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    let timeout_ms = until.map_or(-1, |at| {
        let left = at.saturating_duration_since(Instant::now());
        // Rounded up; otherwise the last millisecond would be a busy loop.
        i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
    });
    let len = entries.len() as libc::nfds_t;
    // SAFETY: poll(2) reads and writes the entries, alive during the call; their descriptors are
    // open while borrowed.
    match unsafe { libc::poll(entries.as_mut_ptr(), len, timeout_ms) } {
        0.. => Ok(entries.map(|entry| entry.revents != 0)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Installs the handlers. A second SIGINT or SIGTERM ends the process at once.
pub fn install() {
    // Without the pair a waiting destination fails.
    let _ = WAKE.get_or_init(UnixStream::pair);
    handle(libc::SIGINT, on_interrupt, libc::SA_RESETHAND);
    handle(libc::SIGTERM, on_interrupt, libc::SA_RESETHAND);
    handle(libc::SIGBUS, on_bus_error, 0);
}

fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int), flags: libc::c_int) {
    // SAFETY: an all-zero `sigaction` is valid (no flags, no mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    // Without SA_RESTART: a blocked read returns, and its caller looks at `interrupted`.
    action.sa_flags = flags;
    // SAFETY: the struct is initialized, the handler makes only calls of signal-safety(7), and the
    // old action is not requested. A refusal leaves the default action, an acceptable one.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}

extern "C" fn on_interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
    // `get` is one atomic load.
    if let Some(Ok((_, wake))) = WAKE.get() {
        // SAFETY: write(2) is async-signal-safe; the pointer leads to a static byte. This is the
        // first or the second byte, so there is room, and `errno` stays unchanged.
        unsafe { libc::write(wake.as_raw_fd(), [0_u8].as_ptr().cast(), 1) };
    }
}

/// A read of a page of a truncated mapping raises SIGBUS, without a way back. Sends never come
/// here: the kernel reads those pages and answers EFAULT.
extern "C" fn on_bus_error(_: libc::c_int) {
    const MESSAGE: &[u8] = b"error: the memory image lost its file: was --memory-in truncated, or \
        did its disk fail, while the migration ran?\n";
    // SAFETY: write(2) is async-signal-safe; pointer and length belong to a static.
    unsafe { libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len()) };
    // SAFETY: _exit(2) is async-signal-safe.
    unsafe { libc::_exit(1) };
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread, time::Duration};

    use super::*;

    #[test]
    fn a_request_ends_this_wait_and_all_later_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stop = Stop::default();
        let soon = Instant::now() + Duration::from_millis(20);
        assert_eq!(stop.wait_readable(&listener, Some(soon)), Ok(false));
        assert!(soon <= Instant::now(), "the time is up");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| stop.wait_readable(&listener, None));
            thread::sleep(Duration::from_millis(50));
            stop.request();
            assert!(waiting.join().unwrap().is_err());
        });
        assert!(stop.wait_readable(&listener, None).is_err());
    }
}
