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
//! `PINBUF_TRACE_READS` adds the reads, for a person who looks for the cause of a difference.
//!
//! Two differences are meant, so no history has them: `max_hold` is judged after the queue was read,
//! and the notification of a probe that failed is no evidence. Two more came before the sender was
//! rebuilt: a sender looks for the end of an idle connection (hidden by the seam), and a close says
//! more of a lost end (only the abort is traced).
//!
//! A sender may read its queue, end, or look again at another moment than the earlier one. What that
//! shifts is no difference of the senders, so the network is made such that nothing is shifted:
//!
//! | shifted by another moment | why it is not here |
//! |---|---|
//! | the events of other sockets, by the end of a sender | each socket has its own turn in each slot of time |
//! | room in option memory, locked memory or the budget, by unread notifications | where one of them is scarce, all queues are read before each send, and nothing happens during a call |
//! | all behind a call that waits, by one look more or less | such a call ends with the last of 64 slots |
//! | a look more, by the wake-up that a waiting thread has sent to itself | wake-ups do nothing: there is one thread |

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
        Err(_) => {
            let again = seeds.clone().map(history::play);
            assert!(again.eq(traces.iter().cloned()), "another trace of the same seed");
        }
    }
    for (seed, trace) in seeds.zip(traces) {
        assert!(!trace.contains("panics"), "history {seed} panics");
    }
}
