//! The sender: takes buffers, sends them, and recycles or hands them back after the release.
//!
//! ```text
//!   face      handle, builder, split   Sender, its settings, its two halves
//!   driver    driver, wait, watch, ..  one lock; carries out what the machine asks for
//!   machine   machine/                 pure: what may be sent, what is in flight, what to do next
//!   kernel    kernel                   the one seam to the socket
//! ```
//!
//! | file | content |
//! |---|---|
//! | `config`, `report` | settings and reports: plain data |
//! | `handle` | `Sender` |
//! | `builder` | settings, and the checks before a socket is taken over |
//! | `split` | the halves for two threads |
//! | `driver` | the lock, and how buffers enter |
//! | `query` | fates, counters, events |
//! | `wait` | waiting without spinning |
//! | `watch` | the work of visitors, and the reaper's care |
//! | `ending` | the end, by the caller, a half or the reaper |
//! | `machine/` | the state of a sender, without its socket |
//! | `transport` | the rules for streams and for datagrams |
//! | `budget` | the locked memory of all senders |
//! | `kernel` | the only seam to the kernel |
//! | `calibrate` | the size from which on zero copy pays, measured |

pub(crate) mod budget;
mod builder;
mod calibrate;
pub(crate) mod config;
pub(crate) mod driver;
mod ending;
#[cfg(test)]
mod fake;
mod handle;
#[allow(unsafe_code)]
pub(crate) mod kernel;
mod machine;
mod query;
mod report;
mod split;
#[cfg(all(test, not(loom)))]
mod tests;
pub(crate) mod transport;
mod wait;
mod watch;

pub use self::{
    builder::SenderBuilder,
    calibrate::{Calibration, Crossover, SendCost, calibrate_threshold},
    config::{HandBack, Policy, ResumeIds},
    handle::Sender,
    kernel::Interest,
    report::{
        Capabilities, CloseReport, Fate, Reaped, Returned, RouteMode, RouteStats, SenderStats,
    },
    split::{ReapHalf, SendHalf},
};
