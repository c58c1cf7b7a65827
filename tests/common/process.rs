//! The resources of this process: descriptors, threads, memory.

use std::fs;

use super::{again, eventually, must_succeed, plays, test_of};

/// Runs the calling test, with `body` as its closure, in a new process.
pub(crate) fn alone<F: FnOnce()>(body: F) {
    let test = test_of(&body);
    if plays(test) {
        body();
    } else {
        must_succeed(again(&[], test, test));
    }
}

pub(crate) fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A field of `/proc/self/smaps`, such as `Rss:`, of the mapping around an address.
pub(crate) fn smaps(field: &str, address: *const u8) -> String {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_inside = false;
    for line in smaps.lines() {
        let (name, value) = line.split_once(' ').unwrap();
        if let Some((from, to)) = name.split_once('-') {
            let [from, to] = [from, to].map(|end| usize::from_str_radix(end, 16).unwrap());
            is_inside = (from..to).contains(&address.addr());
        } else if is_inside && name == field {
            return value.trim().to_owned();
        }
    }
    panic!("{address:?} is not mapped");
}

/// As [`smaps`], of a number of KiB.
pub(crate) fn smaps_kib(field: &str, address: *const u8) -> usize {
    smaps(field, address).trim_end_matches(" kB").parse().unwrap()
}

/// All threads of this process, by number and name.
fn threads() -> Vec<(libc::pid_t, String)> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    // A thread that ends meanwhile does not count.
    tasks
        .filter_map(|task| {
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            Some((task.file_name().to_str()?.parse().ok()?, name.trim().to_owned()))
        })
        .collect()
}

pub(crate) fn thread_count() -> usize {
    threads().len()
}

/// The reaper's threads.
pub(crate) fn reapers() -> Vec<libc::pid_t> {
    let mut threads = threads();
    threads.retain(|(_, name)| name == "pinbuf-reaper");
    threads.into_iter().map(|(thread, _)| thread).collect()
}

/// The reaper's thread; a thread gets its name after its start.
pub(crate) fn the_reaper() -> libc::pid_t {
    eventually("the reaper runs", || reapers().len() == 1);
    reapers()[0]
}

/// One of `RLIMIT_*`.
#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = libc::c_int;

/// A limit, soft and hard.
pub(crate) fn limit(resource: Resource) -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one `rlimit`, alive during the call.
    assert_eq!(unsafe { libc::getrlimit(resource, &raw mut limit) }, 0);
    (limit.rlim_cur, limit.rlim_max)
}

/// Sets the soft limit; `false` if the hard limit is lower.
pub(crate) fn set_limit(resource: Resource, soft: u64) -> bool {
    let (_, hard) = limit(resource);
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: setrlimit(2) reads one `rlimit`, alive during the call.
    hard >= soft && unsafe { libc::setrlimit(resource, &raw const limit) } == 0
}

/// Opens files up to the limit, and leaves room for `spare` more.
pub(crate) fn hoard_descriptors(spare: usize) -> Vec<fs::File> {
    let (soft, _) = limit(libc::RLIMIT_NOFILE);
    set_limit(libc::RLIMIT_NOFILE, soft.min(200));
    let mut hoard: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
    hoard.truncate(hoard.len() - spare);
    hoard
}
