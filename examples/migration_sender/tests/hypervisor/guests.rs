//! Guests that run and write, each in a pair of machines: one to leave and one to come to.
//!
//! `tests/vm/run.sh` makes the guest and names it in the environment:
//!
//! | variable                      | meaning                        |
//! |-------------------------------|--------------------------------|
//! | `VM_KERNEL`, `VM_INITRD`      | the guest: `tests/vm/guest.rs` |
//! | `VM_SOURCE`, `VM_DESTINATION` | QEMU of both ends              |
//! | `VM_LIBRARY`                  | the library for `LD_PRELOAD`   |

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use migration_sender::track::Method;

use crate::machine::{Launch, Machine, MemoryFile, TIMEOUT};

/// Heartbeats at the destination before the guest's own checks count.
const BEATS: u64 = 10;

/// A guest and the way it moves.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) machine: &'static str,
    pub(crate) memory_mib: u64,
    /// Written all over, again and again, at `rate` MiB per second.
    pub(crate) set_mib: u64,
    pub(crate) rate: u64,
    pub(crate) track: Method,
    /// The wrong way: the source's digests of what it has sent, in place of the destination's.
    pub(crate) is_negative_control: bool,
}

pub(crate) const FAST: Case = Case {
    name: "fast",
    machine: "pc-i440fx-7.2",
    memory_mib: 256,
    set_mib: 64,
    rate: 200,
    track: Method::Digest,
    is_negative_control: false,
};

/// A guest that runs at the source, and a destination that waits.
pub(crate) struct Pair {
    pub(crate) source: Machine,
    pub(crate) destination: Machine,
    /// The guest's heartbeats at both ends.
    pub(crate) serials: [PathBuf; 2],
    /// An early heartbeat.
    pub(crate) early: Beat,
    _memory: [MemoryFile; 2],
}

impl Case {
    /// Starts both machines. `None` without a guest or QEMU.
    pub(crate) fn start(&self) -> Option<Pair> {
        let (Ok(kernel), Ok(initrd)) = (env::var("VM_KERNEL"), env::var("VM_INITRD")) else {
            println!("SKIPPED hypervisor::guests: tests/vm/run.sh makes the guest");
            return None;
        };
        let append =
            format!("console=ttyS0 quiet panic=-1 SET={} RATE={}", self.set_mib, self.rate);
        let ends = ["source", "destination"].map(|end| {
            let name = format!("{}-{end}", self.name);
            (MemoryFile::new(&name), env::temp_dir().join(format!("pinbuf-vm-{name}.serial")), name)
        });
        let launch = |end: usize, variable: &str, incoming: &str| {
            let (memory, serial, name) = &ends[end];
            let _ = fs::remove_file(serial);
            let size = format!("{}M", self.memory_mib);
            let arguments = memory.arguments("m0", &size);
            let arguments =
                arguments.replace("-machine pc,", &format!("-machine {},", self.machine));
            let arguments = format!(
                "{arguments} -serial file:{} -kernel {kernel} -initrd {initrd} {incoming}",
                serial.display()
            );
            let library = env::var("VM_LIBRARY").ok().map(PathBuf::from);
            let launch = Launch {
                name,
                arguments: &arguments,
                more: &["-append", &append],
                library: library.as_deref(),
                qemu: env::var(variable).ok(),
                ..Launch::default()
            };
            launch.start()
        };
        let mut source = launch(0, "VM_SOURCE", "")?;
        let destination = launch(1, "VM_DESTINATION", "-incoming defer")?;
        let early = wait_for_beat(&ends[0].1, 3, &mut source);
        assert_eq!(early.wrong, 0, "before the move");
        let [(one, from, _), (other, to, _)] = ends;
        Some(Pair { source, destination, serials: [from, to], early, _memory: [one, other] })
    }
}

/// A line of the guest: `beat NUMBER written PAGES checked PAGES wrong PAGES`.
pub(crate) struct Beat {
    pub(crate) number: u64,
    pub(crate) written: u64,
    pub(crate) wrong: u64,
}

fn beat(line: &str) -> Option<Beat> {
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    let ["beat", number, "written", written, "checked", _, "wrong", wrong] = words[..] else {
        return None;
    };
    let number = number.parse().ok()?;
    Some(Beat { number, written: written.parse().ok()?, wrong: wrong.parse().ok()? })
}

pub(crate) fn last_beat(serial: &Path) -> Option<Beat> {
    // Without the rest of a line that is on its way.
    let text = fs::read_to_string(serial).unwrap_or_default();
    text.rsplit_once('\n')?.0.lines().rev().find_map(beat)
}

/// Waits for a heartbeat of the guest.
pub(crate) fn wait_for_beat(serial: &Path, number: u64, machine: &mut Machine) -> Beat {
    let started = Instant::now();
    loop {
        match last_beat(serial) {
            Some(beat) if beat.number >= number => return beat,
            _ => {
                let said = fs::read_to_string(serial).unwrap_or_default();
                assert!(started.elapsed() < 2 * TIMEOUT, "no heartbeat {number}: {said}");
                assert!(machine.is_alive(), "QEMU has ended: {}", machine.log());
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Waits until the guest goes on at this end, without a wrong page and without a missing heartbeat
/// since `last`.
pub(crate) fn goes_on(serial: &Path, last: &Beat, machine: &mut Machine) {
    let next = wait_for_beat(serial, last.number + BEATS, machine);
    assert_eq!(next.wrong, 0, "the guest's own checks: {}", machine.log());
    let text = fs::read_to_string(serial).unwrap();
    let first = text.lines().filter_map(beat).find(|beat| beat.number > last.number).unwrap();
    assert!(first.number <= last.number + 2, "a heartbeat is missing: {}", first.number);
}

/// The name of this machine's processor.
pub(crate) fn processor() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = processors.lines().find_map(|line| line.strip_prefix("model name\t: "));
    name.unwrap_or("an unknown processor").to_owned()
}
