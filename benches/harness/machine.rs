//! The machine and command of a bench.

use std::{env, fs, thread};

use serde::Serialize;

#[derive(Serialize)]
pub(super) struct Machine {
    processor: String,
    cores: usize,
    memory: String,
    kernel: String,
    /// The load average of the minute before the start: above 0 means other load.
    load: String,
    command: String,
}

impl Machine {
    pub(super) fn this() -> Self {
        let arguments: Vec<_> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
        let separator = if arguments.is_empty() { "" } else { " -- " };
        let name = env!("CARGO_CRATE_NAME");
        Self {
            processor: value("/proc/cpuinfo", "model name"),
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory: value("/proc/meminfo", "MemTotal"),
            kernel: first_word("/proc/sys/kernel/osrelease"),
            load: first_word("/proc/loadavg"),
            command: format!("cargo bench --bench {name}{separator}{}", arguments.join(" ")),
        }
    }

    /// For the head of the output.
    pub(super) fn describe(&self) -> String {
        let Self { processor, cores, memory, kernel, load, command } = self;
        format!("{command}\n{processor}, {cores} cores, {memory}; kernel {kernel}; load {load}")
    }
}

/// The value behind `key` and a colon in a file of /proc.
fn value(path: &str, key: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':'])).to_owned()
}

fn first_word(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|_| "unknown".to_owned());
    text.split_whitespace().next().unwrap_or_default().to_owned()
}
