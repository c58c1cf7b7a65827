//! A simulation of the kernel behind a sender: deterministic, seeded, made for millions of steps.
//!
//! The library runs as it is, over its one seam to the kernel (`sender/kernel.rs`). Behind that is
//! a simulation of what KERNEL.md measured, not of what a program would wish for:
//!
//! | file | what |
//! |---|---|
//! | `stream` | a TCP connection: partial accepts, loss, retransmits that read memory again, clones in queues below, closed windows, peers that reset or vanish, memory that cannot be read |
//! | `datagrams` | a UDP socket: two queues that overtake each other, failed calls that use their ids |
//! | `notes` | ids, the grouping and merging of notes, option memory, the user's locked memory |
//! | `memory` | what the kernel may still read, and what must stand there |
//! | `world`, `nature` | time, chance, the reaper |
//! | `owner` | what one owner asks of its sender, and what it must be told |
//! | `episode` | one history: pools, owners, disturbances, the end |
//! | `slow_peer` | dropped senders whose peers read slowly, or stop |
//! | `mischief` | user code that panics where the library runs it |
//!
//! Checked after every step: what the kernel may read is as it was, and no slot of it is Free or
//! Owned. Checked as it happens: bytes are accepted in order and come from their owner; a stream
//! ends in order only behind all of it; nobody waits for room that is there, sleeps through what
//! another thread has done, spins, or waits for ever; what was refused comes back unchanged; a fate
//! comes once, is right, and not before the release; a descriptor is closed last. Checked at the
//! end: every sender has ended, every slot is home, and the budget of locked memory is whole.
//!
//! `cargo test --test simulation` runs one fixed seed and a random one. For as many steps as
//! wanted:
//!
//! ```text
//! PINBUF_SIM_STEPS=100000000 cargo test --release --test simulation -- --nocapture
//! ```
//!
//! `PINBUF_SIM_SEED` chooses the first history; a failure prints the command that repeats it.
//! `tests/simulation/mutants.sh` weakens the library in one place at a time, and shows after how
//! many steps that is caught.

#![allow(clippy::print_stdout, reason = "seeds and rates are for whoever reads the output")]

mod choices;
mod datagrams;
mod episode;
mod kernel;
mod memory;
mod mischief;
mod nature;
mod notes;
mod owner;
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

/// Steps of one history at most.
const EPISODE_STEPS: usize = 2000;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn steps() -> u64 {
    variable("PINBUF_SIM_STEPS").unwrap_or(if cfg!(debug_assertions) { 50_000 } else { 1_000_000 })
}

/// Simulates so many steps, history by history; a failure names the seed that repeats it.
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
fn no_other_order_breaks_one_either() {
    if variable("PINBUF_SIM_SEED").is_some() {
        return;
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    simulate(now.as_nanos() as u64);
}

/// As the fuzzer runs it.
#[test]
fn a_history_can_be_decided_by_bytes() {
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
