//! The unit tests of `examples/migration_sender`: cargo builds examples, but does not test them.

#![allow(dead_code, reason = "what only `main.rs` uses is not used here")]
#![allow(clippy::disallowed_types, reason = "the library's sync shim is private to it")]

#[path = "../examples/migration_sender/accept.rs"]
mod accept;
#[path = "../examples/migration_sender/bandwidth.rs"]
mod bandwidth;
#[path = "../examples/migration_sender/bitmap.rs"]
mod bitmap;
#[path = "../examples/migration_sender/channel.rs"]
mod channel;
#[path = "../examples/migration_sender/cli.rs"]
mod cli;
#[path = "../examples/migration_sender/clock.rs"]
mod clock;
#[path = "../examples/migration_sender/connect.rs"]
mod connect;
#[path = "../examples/migration_sender/destination.rs"]
mod destination;
#[path = "../examples/migration_sender/dirtier.rs"]
mod dirtier;
#[path = "../examples/migration_sender/doctor.rs"]
mod doctor;
#[path = "../examples/migration_sender/failure.rs"]
mod failure;
#[path = "../examples/migration_sender/guest.rs"]
mod guest;
#[path = "../examples/migration_sender/memory.rs"]
mod memory;
#[path = "../examples/migration_sender/output.rs"]
mod output;
#[path = "../examples/migration_sender/protocol.rs"]
mod protocol;
#[path = "../examples/migration_sender/pump.rs"]
mod pump;
#[path = "../examples/migration_sender/report.rs"]
mod report;
#[path = "../examples/migration_sender/signals.rs"]
mod signals;
#[path = "../examples/migration_sender/source.rs"]
mod source;
