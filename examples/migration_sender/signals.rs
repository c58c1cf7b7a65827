//! Signals: an interrupt ends the migration in order, a mapping that lost its file ends it with a
//! sentence.
//!
//! This file, `clock.rs` and `memory.rs` hold all the unsafe code of the example.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Failure;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether SIGINT or SIGTERM has come.
pub(crate) fn interrupted() -> bool {
    // Relaxed: a flag on its own, nothing is published with it.
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A request to end early: by a signal, or because the other end in this process has failed.
#[derive(Debug, Default)]
pub(crate) struct Stop(AtomicBool);

impl Stop {
    pub(crate) fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Fails when the migration is to end.
    pub(crate) fn check(&self) -> Result<(), Failure> {
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

/// Installs the handlers. A second SIGINT or SIGTERM ends the process at once.
pub(crate) fn install() {
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
