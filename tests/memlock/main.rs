//! Tests that check the way of their bytes, with a copy or without. The kernel counts locked memory by
//! user, over all processes, and a send without room there is copied. So each of these tests has its
//! [turn](common::turn), and no other test runs in the meantime.

#![cfg(target_os = "linux")]

#[path = "../common/calls.rs"]
mod calls;
#[path = "../common/mod.rs"]
mod common;
mod cut;
mod hint;
mod limits;
mod route;
mod steady;
mod tcp;
