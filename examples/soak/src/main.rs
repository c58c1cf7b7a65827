//! Loads the library with all features at random, for a given time, and looks for faults.
//!
//! `cargo run --release -p soak -- --minutes 30`; `--help` has more. A run is a series of rounds.
//! In each, threads open connections to peers of every manner, send all kinds of payloads from
//! pools of every kind, and end the senders in every way. The peers compare every byte. After a
//! round every slot must be free, and memory, descriptors and threads back at their limits.
//!
//! | file           | contents                                                        |
//! |----------------|-----------------------------------------------------------------|
//! | `cli.rs`       | the command line                                                |
//! | `round.rs`     | one round, and the checks after it                              |
//! | `worker.rs`    | a thread that plays sessions in a row                           |
//! | `place.rs`     | the network of a worker: this host, or a lossy namespace        |
//! | `stream.rs`    | a session over TCP                                              |
//! | `datagrams.rs` | a session over UDP                                              |
//! | `settings.rs`  | random settings of senders and pools                            |
//! | `payload.rs`   | random payloads                                                 |
//! | `contents.rs`  | bytes that identify their origin                                |
//! | `journal.rs`   | the bytes that a peer must receive                              |
//! | `peer.rs`      | peers: steady, slow, stalling, resetting                        |
//! | `child.rs`     | a forked child that misuses its inheritance                     |
//! | `footprint.rs` | memory, descriptors, threads                                    |
//! | `tally.rs`     | counters, faults, and a line per minute                         |
//! | `random.rs`    | choices, repeatable by a seed                                   |
//! | `signals.rs`   | Ctrl-C                                                          |

#![allow(clippy::disallowed_types, reason = "the library's sync shim is private to it")]

#[cfg(target_os = "linux")]
mod child;
#[cfg(target_os = "linux")]
mod cli;
#[cfg(target_os = "linux")]
mod contents;
#[cfg(target_os = "linux")]
mod datagrams;
#[cfg(target_os = "linux")]
mod footprint;
#[cfg(target_os = "linux")]
mod journal;
#[cfg(target_os = "linux")]
mod payload;
#[cfg(target_os = "linux")]
mod peer;
#[cfg(target_os = "linux")]
mod place;
#[cfg(target_os = "linux")]
mod random;
#[cfg(target_os = "linux")]
mod round;
#[cfg(target_os = "linux")]
mod settings;
#[cfg(target_os = "linux")]
mod signals;
#[cfg(target_os = "linux")]
mod stream;
#[cfg(target_os = "linux")]
mod tally;
#[cfg(target_os = "linux")]
mod worker;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    use std::time::Instant;

    use clap::Parser;

    let cli = cli::Cli::parse();
    signals::install();
    let seed = cli.seed.unwrap_or_else(random::fresh_seed);
    let tally = tally::Tally::new(seed);
    let mut random = random::Random::new(seed);
    settings::limit_memlock(&mut random);
    let end = Instant::now() + cli.minutes;
    let mut baseline = footprint::Baseline::new();
    let mut number = 0;
    while Instant::now() < end && !signals::interrupted() && tally.faults() == 0 {
        number += 1;
        round::play(number, random.branch(), &tally, &mut baseline, end);
    }
    tally.summary(number);
    if tally.faults() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("soak needs Linux: elsewhere everything goes by copy, and nothing stays in flight");
    ExitCode::FAILURE
}
