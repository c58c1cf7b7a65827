//! The server from the outside: real processes, real sockets, and clients that we did not write.

#![allow(clippy::disallowed_types, reason = "the library's sync shim is private to it")]

mod cache;
mod client;
#[path = "../../../../tests/common/mod.rs"]
mod common;
mod curl;
mod end;
mod hostile;
mod load;
mod requests;
mod site;
mod tls;
