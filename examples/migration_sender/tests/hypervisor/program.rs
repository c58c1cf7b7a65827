//! The program moves guests that run and write: both ends over TCP, and all that can die on the way.
//!
//! `tests/vm/run.sh` runs these tests. `VM_SEND` and `VM_RECEIVE` are words before the program, such
//! as `ip netns exec NAME`, and `VM_ADDRESS` is the destination's.

use std::{
    env,
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStderr, Command, Stdio},
    time::Instant,
};

use migration_sender::{hypervisor::qmp::Qmp, track::Method};
use serde_json::{Value, json};

use crate::{
    guests::{Case, FAST, Pair, goes_on, last_beat, processor},
    machine::{Machine, TIMEOUT},
};

/// More than any downtime here: a busy machine must not end a test.
const PATIENT: [&str; 2] = ["--downtime-limit=20000", "--stall-timeout=30"];
/// Slow enough for a disturbance during round 0.
const SLOW: &str = "--max-bandwidth=8M";

/// A running program.
struct Program {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// The lines of stderr that have been read.
    said: String,
}

impl Program {
    fn start(prefix: &str, arguments: &[&str]) -> Self {
        let prefix = env::var(prefix).unwrap_or_default();
        let words = prefix.split_whitespace().chain([env!("CARGO_BIN_EXE_migration_sender")]);
        let mut words = words.chain(arguments.iter().copied()).chain(PATIENT);
        let mut command = Command::new(words.next().unwrap());
        // `receive` has no limit of the downtime.
        let words = words.filter(|w| arguments[0] == "send" || !w.starts_with("--downtime"));
        let command = command.args(words).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr, said: String::new() }
    }

    /// Waits for a line of stderr with these words.
    fn until(&mut self, words: &str) -> String {
        loop {
            let mut line = String::new();
            let len = self.stderr.read_line(&mut line).unwrap();
            assert!(len > 0, "{words:?} was not said: {}", self.said);
            self.said += &line;
            if line.contains(words) {
                return line.trim_end().to_owned();
            }
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill(2) takes numbers; the child has not been waited for, so the number is its.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// The exit code and the standard output.
    fn end(mut self) -> (Option<i32>, String, String) {
        let mut out = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.stderr.read_to_string(&mut self.said).unwrap();
        (self.child.wait().unwrap().code(), out, self.said.clone())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn status(machine: &Machine) -> String {
    let mut qmp = Qmp::connect(&machine.socket, TIMEOUT).unwrap();
    let status = qmp.execute("query-status", json!({})).unwrap();
    status["status"].as_str().unwrap().to_owned()
}

/// Starts both ends for a pair of machines.
fn both(pair: &Pair, more: &[&str]) -> [Program; 2] {
    let address = env::var("VM_ADDRESS").unwrap_or("127.0.0.1".into());
    let (from, to) =
        (pair.source.socket.to_str().unwrap(), pair.destination.socket.to_str().unwrap());
    let listen = format!("{address}:0");
    let mut receive = Program::start("VM_RECEIVE", &["receive", "--listen", &listen, "--qmp", to]);
    let target = receive.until("listening on").rsplit(' ').next().unwrap().to_owned();
    let arguments = [&["send", &target, "--qmp", from, "--json"], more].concat();
    [Program::start("VM_SEND", &arguments), receive]
}

/// Moves a guest with the program, to the end.
fn moved(case: &Case, more: &[&str]) {
    let runs = env::var("VM_RUNS").map_or(1, |runs| runs.parse().unwrap());
    for _ in 0..runs {
        let Some(mut pair) = case.start() else { return };
        let track = format!("--track={}", case.track);
        let [send, receive] = both(&pair, &[&[&*track], more].concat());
        let (code, out, said) = send.end();
        assert_eq!(code, Some(0), "{said}");
        let (code, _, said) = receive.end();
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(status(&pair.source), "postmigrate");
        let last = last_beat(&pair.serials[0]).unwrap();
        goes_on(&pair.serials[1], &last, &mut pair.destination);

        let report: Value = serde_json::from_str(&out).unwrap();
        let ram = |name: &str| report["ram"][name].as_u64().unwrap();
        println!(
            "MOVED {} with the program {} by {}: {} rounds, {} MiB, {} pages again, downtime {} ms on {}",
            case.name,
            more.join(" "),
            case.track,
            ram("dirty-sync-count"),
            ram("transferred") >> 20,
            ram("again"),
            report["downtime"],
            processor(),
        );
        assert_eq!(report["status"], "completed");
        assert!(ram("dirty-sync-count") >= 2 && ram("again") > 0, "{out}");
        assert!(ram("transferred") > case.set_mib << 20, "{out}");
    }
}

#[test]
#[ignore = "tests/vm/run.sh"]
fn the_program_moves_a_guest_that_writes_fast() {
    moved(&Case { name: "program-fast", ..FAST }, &[]);
    moved(&Case { name: "program-uffd", track: Method::Uffd, ..FAST }, &[]);
    moved(&Case { name: "program-compared", ..FAST }, &["--verify", "--digest=blake3"]);
}

#[test]
#[ignore = "tests/vm/run.sh"]
fn the_program_moves_a_large_guest() {
    let case = Case { name: "program-large", memory_mib: 1024, set_mib: 512, rate: 80, ..FAST };
    moved(&case, &[]);
    moved(&Case { track: Method::Uffd, ..case }, &[]);
}

/// The guest goes on at the source after a disturbance of round 0, and can still move.
fn disturbed(
    name: &'static str,
    more: &[&str],
    disturb: impl FnOnce(&mut Pair, &mut [Program; 2]),
) {
    let Some(mut pair) = Case { name, rate: 40, ..FAST }.start() else { return };
    let mut programs = both(&pair, more);
    programs[0].until("connected");
    disturb(&mut pair, &mut programs);
    let [send, receive] = programs;
    let (code, _, said) = send.end();
    assert_ne!(code, Some(0), "{said}");
    assert_ne!(code, Some(7), "nothing was handed over: {said}");
    drop(receive);
    let started = Instant::now();
    while status(&pair.source) != "running" {
        assert!(started.elapsed() < TIMEOUT, "the guest stands still at the source: {said}");
    }
    let last = last_beat(&pair.serials[0]).unwrap();
    goes_on(&pair.serials[0], &last, &mut pair.source);
    assert!(last_beat(&pair.serials[1]).is_none(), "the guest runs at both ends");
}

#[test]
#[ignore = "tests/vm/run.sh"]
fn a_killed_source_program_leaves_the_guest_running() {
    disturbed("killed-source", &[SLOW], |_, [send, _]| send.signal(libc::SIGKILL));
}

#[test]
#[ignore = "tests/vm/run.sh"]
fn a_killed_destination_program_leaves_the_guest_running() {
    disturbed("killed-destination", &[SLOW], |_, [_, receive]| receive.signal(libc::SIGKILL));
}

#[test]
#[ignore = "tests/vm/run.sh"]
fn a_cancelled_move_leaves_the_guest_running() {
    disturbed("cancelled", &[SLOW], |_, [send, _]| send.signal(libc::SIGINT));
}

#[test]
#[ignore = "tests/vm/run.sh"]
fn a_killed_destination_hypervisor_leaves_the_guest_running() {
    // Noticed at the load of the devices at the latest, with the guest stopped.
    disturbed("killed-hypervisor", &[], |pair, _| pair.destination.kill());
}

#[test]
#[ignore = "tests/vm/run.sh"]
fn a_killed_source_hypervisor_ends_the_move() {
    let case = Case { name: "killed-guest", rate: 40, ..FAST };
    let Some(mut pair) = case.start() else { return };
    let mut programs = both(&pair, &[SLOW]);
    programs[0].until("connected");
    pair.source.kill();
    let [send, receive] = programs;
    let (code, _, said) = send.end();
    assert!(!matches!(code, Some(0 | 7)), "{said}");
    let (code, _, said) = receive.end();
    assert_ne!(code, Some(0), "{said}");
    assert_ne!(status(&pair.destination), "running", "half a memory runs: {said}");
}
