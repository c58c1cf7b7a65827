//! Sends memory without copying it, and gives a buffer back only after the kernel has let go of it.

#![deny(unsafe_code)]

#[cfg(not(unix))]
compile_error!("pinbuf needs a Unix: its sockets and mappings have no counterpart elsewhere");

mod error;
mod id;
mod sync;
mod tracker;

pub use error::{AdoptError, AllocError, CopyReason, OsError, Poison, SendError, WaitError};
pub use id::{IdRange, NotificationId, Ticket};
