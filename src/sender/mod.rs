//! The sender: takes buffers, sends them, and recycles or hands them back after the release.
//!
//! | to | use |
//! |---|---|
//! | send over a connected socket | [`Sender`] |
//! | send datagrams to many peers, in trains, at given times | [`Sender::send_to`], [`Datagram`] |
//! | write borrowed bytes in between | [`Sender::try_write`], or `io::Write` |
//! | change settings, keep the type of the socket | [`SenderBuilder`], from [`Sender::builder`] |
//! | choose when sends go without copy; learn why not | [`Policy`], [`DataHint`]; [`Capabilities`], [`CopyReason`] |
//! | learn the end of one send | [`Fate`], [`Sender::wait`] |
//! | get the memory of a send back, contents unchanged | [`OnRelease`], [`Returned`] |
//! | send and reap on two threads | [`Sender::split`], [`SendHalf`], [`ReapHalf`] |
//! | send from an event loop | [`Sender::event_fd`]; with `poll(2)` also [`Interest`] |
//! | send from tasks | [`Sender::poll_ready`] and the [methods beside it](Sender#tasks) |
//! | end the stream | [`Sender::close`], [`CloseReport`] |
//! | watch | [`SenderStats`], [`RouteStats`], [`DropStats`]; the chapter [`telemetry`](crate::guide::telemetry) |
//!
//! The errors are in [`error`](crate::error). Senders that were dropped are in the care of the
//! [`reaper`](crate::reaper).
//!
//! ```
//! # use std::net::{TcpListener, TcpStream};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let socket = TcpStream::connect(listener.local_addr()?)?;
//! use pinbuf::{Policy, Sender};
//!
//! let sender = Sender::builder().policy(Policy::Never).adopt(socket)?;
//! println!("{:?}", sender.capabilities().reason);
//! # Ok(())
//! # }
//! ```

//   face      handle, builder, split   Sender, its settings, its two halves
//   driver    driver, wait, watch, ..  one lock; carries out what the machine asks for
//   machine   machine/                 pure: what may be sent, what is in flight, what to do next
//   kernel    kernel                   the one seam to the socket
//
// | file | content |
// |---|---|
// | `config`, `report` | settings and reports: plain data |
// | `release_times` | the histogram for the feature `histogram` |
// | `telemetry` | events for the feature `tracing` |
// | `handle` | `Sender` |
// | `builder` | settings, and the checks before a socket is taken over |
// | `split` | the halves for two threads |
// | `datagram` | where a datagram goes, and how |
// | `driver` | the lock, and how buffers enter |
// | `query` | fates, counters, events |
// | `wait` | waits of threads, without spinning |
// | `poll` | waits of tasks |
// | `write` | writes of borrowed bytes |
// | `watch` | the work of visitors, and the reaper's care |
// | `ending` | the end, by the caller, a half or the reaper |
// | `machine/` | the state of a sender, without its socket |
// | `transport` | the rules for streams and for datagrams |
// | `budget` | the locked memory of all senders |
// | `calibrate` | the threshold for a place of the data, measured once a process |
// | `kernel` | the only seam to the kernel |

pub(crate) mod budget;
mod builder;
pub(crate) mod calibrate;
pub(crate) mod config;
mod datagram;
pub(crate) mod driver;
mod ending;
#[cfg(test)]
mod fake;
mod handle;
#[allow(unsafe_code)]
pub(crate) mod kernel;
mod machine;
mod poll;
mod query;
mod release_times;
mod report;
mod split;
mod telemetry;
#[cfg(all(test, not(loom)))]
mod tests;
pub(crate) mod transport;
mod wait;
mod watch;
mod write;

#[cfg(feature = "histogram")]
pub use self::release_times::ReleaseTimes;
pub use self::{
    builder::SenderBuilder,
    config::{DataHint, OnRelease, Policy, ZeroCopyState},
    datagram::Datagram,
    handle::Sender,
    kernel::{Interest, Socket},
    report::{
        Capabilities, CloseReport, DropStats, Fate, Reaped, Returned, RouteMode, RouteStats,
        SenderStats,
    },
    split::{ReapHalf, SendHalf},
};
pub use crate::{
    error::{CopyReason, Poison},
    lease::IntoPayload,
    sys::{ErrorQueueEvent, Timestamps},
};
