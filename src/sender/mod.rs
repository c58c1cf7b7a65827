//! The sender: takes buffers, sends them, and gives them back when the kernel has let go of them.
//!
//! ```text
//!   face      handle, builder, split   Sender, its settings, its two halves
//!   driver    driver, wait, watch, ..  one lock; carries out what the machine asks for
//!   machine   machine/                 pure: what may be sent, what is in flight, what to do next
//!   kernel    kernel                   the one seam to the socket
//! ```
//!
//! | file | what |
//! |---|---|
//! | `config`, `report` | settings and reports: plain data |
//! | `handle` | `Sender` |
//! | `builder` | what is checked before a socket is taken over |
//! | `split` | the halves for two threads |
//! | `driver` | the lock, and how buffers enter |
//! | `query` | fates, counters, events |
//! | `wait` | waiting without spinning |
//! | `watch` | what visitors do, and the reaper's care |
//! | `ending` | who sees to the end |
//! | `machine/` | the state of a sender, without its socket |
//! | `transport` | the rules in which streams and datagrams differ |
//! | `budget` | the memory that all senders may have locked |
//! | `kernel` | the one seam to the kernel |
//! | `calibrate` | from which size on zero copy is worth it, measured |

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
