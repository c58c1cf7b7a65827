//! The library on networks of the tests' own making: network namespaces, of which nothing is left
//! when a test ends, with devices that lose packets, hold them up or drop them all.
//!
//! Each test shows what it can tell: the same course without the library, in a loop that takes
//! memory to be its own too early, is seen to fail the same check. `MEASURED` lines say by how
//! much.

#![cfg(target_os = "linux")]

mod acks;
#[path = "../common/mod.rs"]
mod common;
mod fake_peer;
mod overtaking;
mod second_user;
mod sniffer;
mod traffic;
