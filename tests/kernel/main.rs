//! The library and the kernel of this machine: ends, waits, counts of system calls, filters, forks.

#![cfg(target_os = "linux")]

mod allow_list;
#[path = "../common/calls.rs"]
mod calls;
#[path = "../common/mod.rs"]
mod common;
mod datagrams;
mod direct;
mod early_fork;
mod ending;
mod filter;
mod fork;
mod hold;
mod ktls;
mod linger;
mod negative_control;
mod probe;
mod reaper;
mod replacing;
mod second_user;
mod spin;
mod threadless;
mod traced;
mod udp;
