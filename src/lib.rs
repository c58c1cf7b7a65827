#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
// Under std the shim of sync.rs is these types; under loom, using one means to have gone past it.
#![cfg_attr(loom, deny(clippy::disallowed_methods, clippy::disallowed_types))]

#[cfg(not(unix))]
compile_error!("pinbuf needs a Unix: its sockets and mappings have no counterpart elsewhere");

mod backing;
#[allow(unsafe_code)]
mod buf;
mod error;
mod id;
mod lease;
mod lock;
#[allow(unsafe_code)]
mod mapped;
mod panics;
mod pool;
pub mod probe;
mod raw;
mod reaper;
mod sender;
#[allow(unsafe_code)]
mod shared;
mod sync;
#[allow(unsafe_code)]
mod sys;
mod tracker;

pub use backing::{Backing, Pages};
pub use buf::PinnedBuf;
pub use error::{
    AdoptError, AllocError, BuildError, CopyReason, OsError, Poison, RangeError, Refusal,
    SendError, WaitError,
};
pub use id::{IdRange, NotificationId, Ticket};
pub use lease::{IntoPayload, Payload};
pub use mapped::MappedSlice;
pub use pool::{
    Alloc, Audit, ClassStats, LocalPool, Offender, Pool, PoolBuilder, PoolStats, Problem,
};
pub use probe::Environment;
pub use raw::{RegionReport, SlotState};
pub use reaper::{ReaperStats, reaper_stats, wait_idle};
pub use sender::{
    Calibration, Capabilities, CloseReport, Crossover, Fate, HandBack, Interest, Policy, ReapHalf,
    Reaped, ResumeIds, Returned, RouteMode, RouteStats, SendCost, SendHalf, Sender, SenderBuilder,
    SenderStats, calibrate_threshold,
};
pub use shared::SharedBuf;
pub use sys::{Foreign, Timestamps};

#[doc(hidden)]
#[allow(unsafe_code)]
#[path = "internals.rs"]
pub mod __internals;
