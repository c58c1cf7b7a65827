//! The system calls: the only module that names libc.
//!
//! Every function has the same signature on every Unix. Elsewhere `fallback.rs` stands for the
//! Linux-only functions: all sends go by copy and nothing is ever in flight.

pub(crate) mod barrier;
pub(crate) mod errno;
mod interface;
pub(crate) mod memory;
pub(crate) mod message;
mod option;
pub(crate) mod process;
mod ready;
mod record;
pub(crate) mod socket;

#[cfg(target_os = "linux")]
pub(crate) mod epoll;
#[cfg(target_os = "linux")]
pub(crate) mod errqueue;
#[cfg(target_os = "linux")]
pub(crate) mod limits;
#[cfg(target_os = "linux")]
pub(crate) mod netlink;
#[cfg(target_os = "linux")]
pub(crate) mod pacing;

#[cfg(not(target_os = "linux"))]
mod fallback;
#[cfg(not(target_os = "linux"))]
pub(crate) use fallback::{epoll, errqueue, limits, netlink, pacing};

pub(crate) use interface::{Link, Queue, RouteReply};
pub use record::{Batch, ErrorQueueEvent, Record, Timestamps};

#[cfg(all(test, target_os = "linux"))]
mod testing;
