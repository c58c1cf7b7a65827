//! Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Returns `true` after SIGINT or SIGTERM.
pub(crate) fn interrupted() -> bool {
    // Relaxed: a flag on its own, without other data.
    INTERRUPTED.load(Ordering::Relaxed)
}

extern "C" fn on_interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Installs the handlers. A second signal ends the process at once.
pub(crate) fn install() {
    // SAFETY: an all-zero `sigaction` is valid: no flags, no mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESETHAND | libc::SA_RESTART;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: sigaction(2) reads the action. Its handler does one atomic store, as
        // signal-safety(7) allows; the old action is not requested.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}
