//! Sends memory without copying it, and gives a buffer back only after the kernel has let go of it.

#![deny(unsafe_code)]
// Under std the shim of sync.rs is these types; under loom, using one means to have gone past it.
#![cfg_attr(loom, deny(clippy::disallowed_methods, clippy::disallowed_types))]

#[cfg(not(unix))]
compile_error!("pinbuf needs a Unix: its sockets and mappings have no counterpart elsewhere");

mod error;
mod id;
mod sync;
#[allow(unsafe_code)]
#[cfg_attr(not(test), expect(dead_code, reason = "the sender that uses it is not there yet"))]
mod sys;

pub use error::{AdoptError, AllocError, CopyReason, OsError, Poison, SendError, WaitError};
pub use id::{IdRange, NotificationId, Ticket};
pub use sys::{Foreign, Timestamps};
