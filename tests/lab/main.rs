//! The library on networks of the tests' own making: network namespaces, of which nothing is left
//! when a test ends, with devices that lose packets, hold them up or drop them all.

#![cfg(target_os = "linux")]

mod acks;
#[path = "../common/mod.rs"]
mod common;
mod fake_peer;
