//! The simulation of tests/simulation, with the fuzzer's bytes for its choices.

#![no_main]
#![allow(dead_code, reason = "the tests use more of it")]

#[path = "../../tests/simulation/choices.rs"]
mod choices;
#[path = "../../tests/simulation/datagrams.rs"]
mod datagrams;
#[path = "../../tests/simulation/episode.rs"]
mod episode;
#[path = "../../tests/simulation/kernel.rs"]
mod kernel;
#[path = "../../tests/simulation/memory.rs"]
mod memory;
#[path = "../../tests/simulation/panics.rs"]
mod panics;
#[path = "../../tests/simulation/environment.rs"]
mod environment;
#[path = "../../tests/simulation/notifications.rs"]
mod notifications;
#[path = "../../tests/simulation/owner.rs"]
mod owner;
#[path = "../../tests/simulation/socket.rs"]
mod socket;
#[path = "../../tests/simulation/stream.rs"]
mod stream;
#[path = "../../tests/simulation/world.rs"]
mod world;

use libfuzzer_sys::fuzz_target;

use crate::{choices::Choices, episode::Episode};

fuzz_target!(|bytes: &[u8]| {
    let mut episode = Episode::new(Choices::Bytes { bytes: bytes.to_vec(), at: 0 });
    while !episode.is_exhausted() {
        episode.step();
    }
    episode.finish();
});
