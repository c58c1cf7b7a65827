//! The limits that zero-copy sends are charged to.

use std::{fs, io, os::unix::fs::MetadataExt};

use super::socket::check;

/// Bytes of option memory one socket may hold (`net.core.optmem_max` of the caller's network
/// namespace). Each zero-copy send takes 832 until its note is read.
pub(crate) fn optmem_max() -> io::Result<u32> {
    let text = fs::read_to_string("/proc/sys/net/core/optmem_max")?;
    text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Bytes that all processes of this user may have locked or in flight (`RLIMIT_MEMLOCK`), or
/// `None` when the kernel does not look: the limit is infinite, or the calling thread has
/// `CAP_IPC_LOCK` in the initial user namespace, the only one where it counts.
pub(crate) fn memlock_bytes() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one `rlimit`, which outlives the call.
    let result = check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) });
    debug_assert!(result.is_ok(), "getrlimit of a known resource cannot fail: {result:?}");
    if limit.rlim_cur == libc::RLIM_INFINITY || may_exceed_memlock() {
        return None;
    }
    Some(limit.rlim_cur as _)
}

/// Whether `CAP_IPC_LOCK` lifts the limit for the calling thread. When in doubt, no.
fn may_exceed_memlock() -> bool {
    /// The inode of the initial user namespace (`PROC_USER_INIT_INO` of `linux/nsfs.h`). The uid
    /// map is no such proof: a child namespace can have the full identity map too.
    const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;
    let initial = fs::metadata("/proc/self/ns/user")
        .is_ok_and(|namespace| namespace.ino() == INITIAL_USER_NAMESPACE);
    initial && fs::read_to_string("/proc/thread-self/status").is_ok_and(|s| has_ipc_lock(&s))
}

/// Whether the text of `/proc/PID/status` says that `CAP_IPC_LOCK` is effective.
fn has_ipc_lock(status: &str) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> CAP_IPC_LOCK & 1 == 1)
}
