//! User instructions: the program runs itself under `valgrind --tool=callgrind`.

use std::{env, process::Command};

use crate::{SetUp, way::Way};

/// Selects the run: a contestant, a way, a number of sends.
const COUNTED: &str = "PINBUF_BENCH_COUNTED";

const LEN: usize = 16 << 10;

/// The sends in the base run, for start and end, and the additional sends for the count.
const BASE: u64 = 5_000;
const MORE: u64 = 10_000;

/// User instructions of one send, up to the release of its buffer.
pub(crate) fn instructions(name: &str, way: Way) -> Result<f64, String> {
    let [base, more] = [BASE, BASE + MORE].map(|sends| run(name, way, sends));
    Ok((more? - base?) as f64 / MORE as f64)
}

fn run(name: &str, way: Way, sends: u64) -> Result<u64, String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    let output = command.env(COUNTED, format!("{name}|{way:?}|{sends}")).output();
    let output = output.map_err(|error| format!("valgrind: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let count = text.lines().find_map(|line| line.split_once("Collected :"));
    let count = count.and_then(|(_, count)| count.trim().parse().ok());
    count.ok_or_else(|| format!("valgrind counted nothing: {text}"))
}

/// Runs the counted sends, if this is the program under valgrind.
pub(crate) fn counts() -> bool {
    let Ok(counted) = env::var(COUNTED) else { return false };
    let mut parts = counted.split('|');
    let name = parts.next().unwrap();
    let way = match parts.next() {
        Some("Loopback") => Way::Loopback,
        _ => Way::NoDevice,
    };
    let sends: u64 = parts.next().unwrap().parse().unwrap();
    let set_up = SetUp { way, len: LEN, huge: false, ..SetUp::LOOPBACK };
    let (mut contestant, mut far) = set_up.contestant(name).unwrap();
    for _ in 0..sends {
        contestant.send(&mut far);
    }
    contestant.drain();
    true
}
