//! A simulation of the kernel behind a sender: deterministic, seeded, made for millions of steps.
//!
//! The unchanged library runs over its interface to the kernel (`sender/kernel.rs`). Behind this
//! interface is a simulation of the facts in `docs/Kernel.md`.
//!
//! | file | contents |
//! |---|---|
//! | `stream` | a TCP connection: partial accepts, loss, retransmits that read memory again, clones in queues below, closed windows, peers that reset or vanish, unreadable memory |
//! | `datagrams` | a UDP socket: two queues that overtake each other, failed calls that use their ids |
//! | `notifications` | ids, the grouping and merging of notifications, option memory, the user's locked memory |
//! | `memory` | the pieces that the kernel may still read, and their contents |
//! | `world`, `environment` | time, chance, the reaper |
//! | `owner` | the calls of a sender's owner, and the checks of their results |
//! | `episode` | one history: pools, owners, disturbances, the end |
//! | `slow_peer` | dropped senders with peers that read slowly, or stop |
//! | `panics` | user code that panics inside calls of the library |
//!
//! Checked after every step:
//!
//! - Pieces that the kernel may read are unchanged, and their slots are neither Free nor Owned.
//!
//! Checked at each event:
//!
//! - Bytes are accepted in order and come from their owner.
//! - A stream ends in order only behind all of its bytes.
//! - No thread waits for room that is there, sleeps through another thread's progress, spins, or
//!   waits for ever.
//! - A refused buffer comes back unchanged.
//! - A fate comes once, is right, and not before the release.
//! - A descriptor is closed last.
//!
//! Checked at the end: every sender has ended, every slot is free, and no locked memory is charged.
//!
//! `cargo test --test simulation` runs a fixed seed and a random one. To choose the number of
//! steps:
//!
//! ```text
//! PINBUF_SIM_STEPS=100000000 cargo test --release --test simulation -- --nocapture
//! ```
//!
//! `PINBUF_SIM_SEED` chooses the first history; a failure prints the command to repeat it.
//! `tests/simulation/mutants.sh` weakens the library in one place at a time, and shows the number
//! of steps until the failure.

#![allow(clippy::print_stdout, reason = "seeds and rates are for the reader of the output")]

mod choices;
mod datagrams;
mod environment;
mod episode;
mod kernel;
mod memory;
mod notifications;
mod owner;
mod panics;
mod slow_peer;
mod socket;
mod stream;
mod world;

use std::{
    panic::{self, AssertUnwindSafe},
    time::{Instant, SystemTime},
};

use choices::Choices;
use episode::Episode;

/// The largest number of steps of a history.
const EPISODE_STEPS: usize = 2000;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn steps() -> u64 {
    variable("PINBUF_SIM_STEPS").unwrap_or(if cfg!(debug_assertions) { 50_000 } else { 1_000_000 })
}

/// Simulates `steps()` steps, history by history; a failure names its seed.
fn simulate(first: u64) {
    let began = Instant::now();
    let (mut done, mut seed) = (0, first);
    while done < steps() {
        let mut reached = 0;
        let history = panic::catch_unwind(AssertUnwindSafe(|| {
            let mut choices = Choices::random(seed);
            let length = 1 + choices.below(EPISODE_STEPS);
            let mut episode = Episode::new(choices);
            for _ in 0..length {
                reached += 1;
                episode.step();
            }
            episode.finish();
        }));
        done += reached;
        if let Err(panic) = history {
            let profile = if cfg!(debug_assertions) { "" } else { " --release" };
            println!(
                "failed after {done} steps, at step {reached} of the history of seed {seed}. Again:\n  \
                 PINBUF_SIM_SEED={seed} PINBUF_SIM_STEPS=1 cargo test{profile} --test simulation",
            );
            panic::resume_unwind(panic);
        }
        seed = seed.wrapping_add(1);
    }
    let rate = done as f64 / began.elapsed().as_secs_f64();
    println!("seeds {first} to {}: {done} steps, {rate:.0} a second", seed.wrapping_sub(1));
}

#[test]
fn no_order_of_events_breaks_a_promise() {
    simulate(variable("PINBUF_SIM_SEED").unwrap_or(1));
}

#[test]
fn no_random_order_breaks_a_promise() {
    if variable("PINBUF_SIM_SEED").is_some() {
        return;
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    simulate(now.as_nanos() as u64);
}

/// The fuzzer's way.
#[test]
fn bytes_can_decide_a_history() {
    let mut random = Choices::random(7);
    for len in [0, 1, 100, 10_000] {
        let bytes = (0..len).map(|_| random.below(256) as u8).collect();
        let mut episode = Episode::new(Choices::Bytes { bytes, at: 0 });
        while !episode.is_exhausted() {
            episode.step();
        }
        episode.finish();
    }
}
