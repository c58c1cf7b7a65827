//! The parts for real machines against real ones: QEMU under software emulation, with its firmware
//! as the guest. `tests/vm/run.sh` moves guests that run and write.

#![allow(clippy::print_stdout, reason = "a skipped test says so")]
#![allow(clippy::disallowed_types, reason = "the library's sync shim is private to it")]

mod guests;
mod machine;
mod memory;
mod moves;
mod program;
mod steps;
mod tracking;
