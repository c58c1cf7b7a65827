//! Signals: an interrupt ends the migration in order, a mapping that lost its file ends it with a
//! sentence.
//!
//! This file, `clock.rs` and `memory.rs` hold all the unsafe code of the example.

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

/// Two ends of a connection. A byte at the first one wakes every [`Stop::wait_readable`], and stays
/// there: what is to end now must not begin to wait later.
static WAKE: OnceLock<io::Result<(UnixStream, UnixStream)>> = OnceLock::new();

/// Whether SIGINT or SIGTERM has come.
pub fn interrupted() -> bool {
    // Relaxed: a flag on its own, nothing is published with it.
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A request to end early: by a signal, or because the other end in this process has failed.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
        if let Ok((_, wake)) = WAKE.get_or_init(UnixStream::pair) {
            // Fails only for want of room, when bytes enough are there.
            let _ = (&*wake).write(&[0]);
        }
    }

    /// Sleeps until the socket can be read or accepted from. Returns `false` when the time is up,
    /// and fails when the migration is to end.
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

    /// Fails when the migration is to end.
    pub fn check(&self) -> Result<(), Failure> {
        if interrupted() {
            return Err(Failure::interrupted());
        }
        // Relaxed: a flag on its own, nothing is published with it.
        match self.0.load(Ordering::Relaxed) {
            true => Err(Failure::peer_gone("the source gave up")),
            false => Ok(()),
        }
    }
}

/// Waits until one of the sockets is readable, or the time is up. Says of each whether it is.
fn poll(sockets: [BorrowedFd<'_>; 2], until: Option<Instant>) -> io::Result<[bool; 2]> {
    let mut entries = sockets.map(|socket| libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    let timeout_ms = until.map_or(-1, |at| {
        let left = at.saturating_duration_since(Instant::now());
        // Rounded up, or the last millisecond would be spent with looking.
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
    // Without it a destination that waits for its source fails.
    let _ = WAKE.get_or_init(UnixStream::pair);
    handle(libc::SIGINT, on_interrupt, libc::SA_RESETHAND);
    handle(libc::SIGTERM, on_interrupt, libc::SA_RESETHAND);
    handle(libc::SIGBUS, on_bus_error, 0);
}

fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int), flags: libc::c_int) {
    // SAFETY: `sigaction` is a C struct for which all zeros is a valid value (no flags, no mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    // Without SA_RESTART: a blocked read returns, and its caller looks at `interrupted`.
    action.sa_flags = flags;
    // SAFETY: the struct is initialized, the handler only does what signal-safety(7) allows, and
    // the old action is not asked for. A refusal leaves the default action, which is acceptable.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}

extern "C" fn on_interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
    // `get` is one atomic load.
    if let Some(Ok((_, wake))) = WAKE.get() {
        // SAFETY: write(2) is async-signal-safe; the pointer is to a static byte. This is the first
        // byte or the second, so there is room for it, and `errno` is left alone.
        unsafe { libc::write(wake.as_raw_fd(), [0_u8].as_ptr().cast(), 1) };
    }
}

/// Reading a page of a mapping whose file was cut short raises SIGBUS, and there is nothing to
/// return to. The sends do not come here: the kernel reads those pages and answers EFAULT.
extern "C" fn on_bus_error(_: libc::c_int) {
    const MESSAGE: &[u8] = b"error: the memory image lost its file: was --memory-in truncated, or \
        did its disk fail, while the migration ran?\n";
    // SAFETY: write(2) is async-signal-safe; pointer and length are those of a static.
    unsafe { libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len()) };
    // SAFETY: _exit(2) is async-signal-safe.
    unsafe { libc::_exit(1) };
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread, time::Duration};

    use super::*;

    #[test]
    fn a_request_wakes_a_wait_and_forbids_the_next_one() {
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
