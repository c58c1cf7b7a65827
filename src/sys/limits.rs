//! The limits for the memory of zero-copy sends.

use std::{fs, io, os::unix::fs::MetadataExt};

/// Bytes of option memory per socket (`net.core.optmem_max` of the caller's network namespace).
/// Each zero-copy send takes 832 bytes until its notification is read.
pub(crate) fn optmem_max() -> io::Result<u32> {
    let text = fs::read_to_string("/proc/sys/net/core/optmem_max")?;
    text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Bytes that all processes of this user together may have locked or in flight (`RLIMIT_MEMLOCK`).
///
/// `None` if the kernel does not check: the limit is infinite, or the calling thread has
/// `CAP_IPC_LOCK` in the initial user namespace, the only place where the capability counts.
pub(crate) fn memlock_bytes() -> Option<u64> {
    let [soft, _] = memlock_limits();
    let exempt = || in_initial_namespace("user") == Some(true) && may_lock() == Some(true);
    soft.filter(|_| !exempt())
}

/// `RLIMIT_MEMLOCK`, soft and hard, in bytes; `None` for infinite, and where a filter for system
/// calls refuses the question.
pub(crate) fn memlock_limits() -> [Option<u64>; 2] {
    let unknown = libc::RLIM_INFINITY;
    let mut limit = libc::rlimit { rlim_cur: unknown, rlim_max: unknown };
    // SAFETY: getrlimit(2) writes one `rlimit`, which outlives the call, or nothing on an error.
    let _ = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    [limit.rlim_cur, limit.rlim_max]
        .map(|bytes| (bytes != libc::RLIM_INFINITY).then_some(bytes as _))
}

/// Returns `true` if the calling thread has `CAP_IPC_LOCK` in its user namespace; `None` without
/// `/proc`.
pub(crate) fn may_lock() -> Option<bool> {
    fs::read_to_string("/proc/thread-self/status").ok().map(|status| has_ipc_lock(&status))
}

/// Returns `true` if the caller is in the initial namespace of this kind (`user`, `pid`, `net`).
/// `None` if unknown. The proof is the fixed inode number of the namespace. The uid map proves
/// nothing: a child namespace can have the full identity map too.
pub(crate) fn in_initial_namespace(kind: &str) -> Option<bool> {
    // `enum init_ns_ino` of `linux/nsfs.h`.
    let (initial, since_ever) = match kind {
        "user" => (0xEFFF_FFFD, true),
        "pid" => (0xEFFF_FFFC, true),
        // Before Linux 6.18 the number was not fixed.
        "net" => (0xEFFF_FFF9, false),
        _ => return None,
    };
    let inode = fs::metadata(format!("/proc/thread-self/ns/{kind}")).ok()?.ino();
    (since_ever || inode == initial).then_some(inode == initial)
}

/// Returns `true` if the text of `/proc/PID/status` says that `CAP_IPC_LOCK` is effective.
fn has_ipc_lock(status: &str) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> CAP_IPC_LOCK & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::sys::{socket::check, testing};

    #[test]
    fn optmem_max_is_the_kernels_value() {
        assert!(optmem_max().unwrap() >= 832, "room for one send at least");
    }

    #[test]
    fn the_capability_is_bit_14_of_the_effective_set() {
        let status = |effective: &str| {
            format!("Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{effective}\nCapBnd:\tffff\n")
        };
        assert!(has_ipc_lock(&status("0000000000004000")));
        assert!(has_ipc_lock(&status("000001ffffffffff")));
        for no in ["0000000000000000", "ffffffffffffbfff", "", "none"] {
            assert!(!has_ipc_lock(&status(no)), "{no}");
        }
        assert!(!has_ipc_lock("CapPrm:\tffffffffffffffff\n"));
    }

    /// The test lowers the limit of its process, so it runs in child processes: as the user of the
    /// tests, and with all capabilities in a user namespace, where they do not count.
    #[test]
    fn memlock_bytes_is_none_if_the_kernel_does_not_check() {
        const NAME: &str = "sys::limits::tests::memlock_bytes_is_none_if_the_kernel_does_not_check";
        const CHILD: &str = "PINBUF_TEST_MEMLOCK_CHILD";
        if std::env::var_os(CHILD).is_some() {
            compare_with_the_kernel();
            return;
        }
        let test = std::env::current_exe().unwrap();
        let own_process = Command::new(&test).args([NAME, "--exact"]).env(CHILD, "1").output();
        let output = own_process.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

        let namespace = ["--user", "--map-root-user"];
        if !Command::new("unshare").args(namespace).arg("true").status().is_ok_and(|s| s.success())
        {
            testing::skipped(NAME, "this user may not make a user namespace");
            return;
        }
        let in_namespace = Command::new("unshare")
            .args(namespace)
            .arg(&test)
            .args([NAME, "--exact"])
            .env(CHILD, "1")
            .output();
        let output = in_namespace.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    fn compare_with_the_kernel() {
        const LIMIT: libc::rlim_t = 64 << 10;
        let limit = libc::rlimit { rlim_cur: LIMIT, rlim_max: LIMIT };
        // SAFETY: setrlimit(2) reads one `rlimit`, which outlives the call.
        check(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }).unwrap();
        let (sender, _peer) = testing::zerocopy_pair();
        // A send above the limit fails exactly where the kernel checks.
        let looks = match testing::send(&sender, 2 * LIMIT as usize, true) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => true,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(memlock_bytes(), looks.then_some(64 << 10));
    }
}
