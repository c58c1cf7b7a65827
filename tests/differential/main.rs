//! Histories of one thread whose traces two revisions of the library have in common.
//!
//! The network is the simulation's (`tests/simulation`). The trace has the send calls in order, with
//! their flags, ids, bytes and results, what the owners were told, and behind each history the fates
//! and sorted hand-backs of each sender. Reads of the error queue, of the clock and of option memory are
//! free: nothing is drawn in them, and each event of the network has a generator of its own.
//!
//! `benches/differential.sh` runs an earlier revision and today's and compares. `PINBUF_TRACE` names
//! the file of the trace, `PINBUF_SIM_SEED` the first history, `PINBUF_TRACE_HISTORIES` their number.
//!
//! Two differences are meant, so no history has them: `max_hold` is judged after the queue was read,
//! and the notification of a probe that failed is no evidence. Two more came before the sender was
//! rebuilt: a sender looks for the end of an idle connection (hidden by the seam), and a close says
//! more of a lost end (only the abort is traced).
//!
//! Not every difference is a fault: a sender that reads its queue at another moment learns of a release,
//! a copied call or a refusal at another moment, and may send the next call the other way. Every fourth
//! history has calls that wait, during which more or less may happen. Each difference is to be explained.

#![allow(dead_code, reason = "the simulation uses more of its network")]

#[path = "../simulation/choices.rs"]
mod choices;
#[path = "../simulation/datagrams.rs"]
mod datagrams;
#[path = "../simulation/environment.rs"]
mod environment;
mod history;
mod kernel;
#[path = "../simulation/memory.rs"]
mod memory;
#[path = "../simulation/notifications.rs"]
mod notifications;
#[path = "../simulation/socket.rs"]
mod socket;
#[path = "../simulation/stream.rs"]
mod stream;
mod world;

use std::{env, fs};

fn variable(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn a_seed_determines_the_trace() {
    let first = variable("PINBUF_SIM_SEED", 1);
    let seeds = first..first + variable("PINBUF_TRACE_HISTORIES", 5);
    let traces: Vec<_> = seeds.clone().map(history::play).collect();
    match env::var("PINBUF_TRACE") {
        Ok(file) => fs::write(file, traces.concat()).expect("the trace can be written"),
        Err(_) => assert!(seeds.map(history::play).eq(traces), "another trace of the same seed"),
    }
}
