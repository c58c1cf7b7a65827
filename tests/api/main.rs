//! The library through its public interface.

#![cfg(target_os = "linux")]

mod adoption;
#[path = "../common/alive.rs"]
mod alive;
#[path = "../common/calls.rs"]
mod calls;
#[path = "../common/mod.rs"]
mod common;
mod event_loop;
mod magazine;
mod mapped;
mod options;
mod pool;
#[cfg(feature = "serde")]
mod serialized;
mod shared;
mod split;
mod tasks;
#[cfg(feature = "tracing")]
mod telemetry;
mod tickets;
mod waiting;
mod walk;
mod writing;
