//! Histories of one thread with equal traces in two revisions of the library.
//!
//! The network is the simulation's (`tests/simulation`). The trace has the send calls in order,
//! with flags, ids, bytes and results, the answers to the owners, and behind each history the fates
//! and sorted hand-backs of each sender. Reads of the error queue, of the clock and of option
//! memory are free: no random number is drawn there, and each event of the network has a generator
//! of its own.
//!
//! `benches/differential.sh` runs an earlier revision and today's and compares. `PINBUF_TRACE`
//! names the file of the trace, `PINBUF_SIM_SEED` the first history, `PINBUF_TRACE_HISTORIES` the
//! number of histories.
//!
//! `PINBUF_TRACE_READS` adds the reads, for a search for the cause of a difference.
//!
//! Two differences are intended, so no history has them: `max_hold` is judged after the read of the
//! queue, and the notification of a failed probe is no evidence. Two more came before the rebuild
//! of the sender: a sender looks for the end of an idle connection (hidden by the interface), and a
//! close tells more of a lost end (only the abort is traced).
//!
//! A sender may read the queue, end, or look again at a different moment than the earlier sender. A
//! shift of other events would be no difference of the senders, so the network prevents such
//! shifts:
//!
//! | shifted by a different moment | prevented by |
//! |---|---|
//! | the events of other sockets, by the end of a sender | a turn of its own for each socket in each slot of time |
//! | room in option memory, locked memory or the budget, by unread notifications | if one is scarce: reads of all queues before each send, and no event during a call |
//! | all events behind a waiting call, by a look more or less | an end of such a call with the last of 64 slots |
//! | a further look, by a waiting thread's wake-up of itself | wake-ups without effect: there is a single thread |

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
