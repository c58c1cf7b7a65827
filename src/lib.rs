#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
// Parts of the models' interface have no other user.
#![cfg_attr(not(feature = "__internals"), allow(dead_code, unreachable_pub, unused_imports))]
// Under std the shim of sync.rs is these types; under loom, using one means to have gone past it.
#![cfg_attr(loom, deny(clippy::disallowed_methods, clippy::disallowed_types))]

#[cfg(not(unix))]
compile_error!("pinbuf needs a Unix: its sockets and mappings have no counterpart elsewhere");

mod backing;
#[allow(unsafe_code)]
mod buf;
pub mod error;
mod id;
mod lease;
mod lock;
#[allow(unsafe_code)]
mod mapped;
mod panics;
pub mod pool;
pub mod probe;
mod raw;
pub mod reaper;
pub mod sender;
#[allow(unsafe_code)]
mod shared;
mod sync;
#[allow(unsafe_code)]
mod sys;
mod tracker;

#[doc(inline)]
pub use self::{
    buf::PinnedBuf,
    error::{AdoptError, AllocError, BuildError, SendError, WaitError},
    id::Ticket,
    lease::Payload,
    mapped::MappedSlice,
    pool::Pool,
    sender::{Fate, Policy, Sender},
    shared::SharedBuf,
};

/// What the models and the simulation need beyond the public interface.
#[cfg(feature = "__internals")]
#[doc(hidden)]
#[allow(unsafe_code)]
#[path = "internals.rs"]
pub mod __internals;

/// The programs of the pages, compiled.
#[cfg(doctest)]
#[doc = include_str!("../docs/Porting.md")]
mod pages {}
