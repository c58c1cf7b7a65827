//! The library on networks made by the tests: private network namespaces, with devices that lose
//! packets, delay them or drop all. Nothing of a namespace is left after its test.
//!
//! Each test has a control without the library: a loop that reuses memory too early must fail the
//! same check. `MEASURED` lines report the differences.

#![cfg(target_os = "linux")]

mod acks;
#[path = "../common/calls.rs"]
mod calls;
#[path = "../common/mod.rs"]
mod common;
mod datagrams;
mod fake_peer;
mod faults;
mod flagship;
mod netem;
mod overtaking;
mod second_user;
mod sniffer;
mod traffic;
