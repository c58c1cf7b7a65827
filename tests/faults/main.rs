//! Faults of a process: signals, shortages, panics in payloads, killed peers, a crowd of sockets in
//! every state.

#![cfg(target_os = "linux")]

#[path = "../common/calls.rs"]
mod calls;
#[path = "../common/mod.rs"]
mod common;
mod crowd;
mod payloads;
mod peers;
mod shortage;
mod signals;
