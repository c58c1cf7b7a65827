//! Counters, release times, and events for `tracing`: a sender in production.
//!
//! A sender counts and stays silent. [`Sender::stats`](crate::Sender::stats),
//! [`Pool::stats`](crate::Pool::stats) and [`reaper::stats`](crate::reaper::stats) are cheap snapshots,
//! and the feature `serde` serializes them.
//!
//! # Release times
//!
//! The counters do not tell for how long the kernel holds buffers: the time decides how many buffers a
//! pool needs. With the feature `histogram` a sender built with
//! `SenderBuilder::release_times` keeps a histogram of the time from each zero-copy call to its
//! release, and `Sender::release_times` returns a snapshot. A timed sender reads the clock for each
//! zero-copy call, and all others never do.
//!
//! `examples/metrics` in the repository exports counters and release times to Prometheus, over HTTP and
//! in 150 lines.
//!
//! # Readings
//!
//! | reading | means | change |
//! |---|---|---|
//! | [`route.mode`](crate::sender::RouteStats::mode) is `Copied` | the kernel copies on the way to the peer | the route, as [troubleshooting](crate::guide::troubleshooting#every-send-is-copied) says; nothing is lost meanwhile |
//! | [`deferred_copies`](crate::sender::SenderStats::deferred_copies) grow like [`released_calls`](crate::sender::SenderStats::released_calls) | the same, with a policy other than `Auto` | [`Policy::Auto`](crate::Policy::Auto) |
//! | [`copied_bytes`](crate::sender::SenderStats::copied_bytes) grow, and the mode is `ZeroCopy` | sends below the threshold, or refused for memory | [`data_hint`](crate::sender::SenderBuilder::data_hint) or [`threshold_bytes`](crate::sender::SenderBuilder::threshold_bytes), or the limits of the next two rows |
//! | [`no_bufs_memlock`](crate::sender::SenderStats::no_bufs_memlock) grows | the kernel refuses locked memory | `RLIMIT_MEMLOCK`, or smaller windows |
//! | [`no_bufs_optmem`](crate::sender::SenderStats::no_bufs_optmem) grows | the kernel refuses option memory | the sysctl `net.core.optmem_max`, or larger sends |
//! | [`window_bytes`](crate::sender::SenderStats::window_bytes) stay below the setting | the kernel refused memory lately | as the two rows above |
//! | [`free`](crate::pool::PoolStats::free) slots stay near 0, and most slots are in flight | the pool is too small for the path, or a peer is silent | slots, as below; [`max_hold`](crate::sender::SenderBuilder::max_hold) |
//! | [`quarantined`](crate::pool::PoolStats::quarantined) slots stay above 0 | packets wait below TCP, or the socket has a second user | [troubleshooting](crate::guide::troubleshooting#a-buffer-does-not-come-back) |
//! | [`owned`](crate::reaper::ReaperStats::owned) senders of the reaper grow | dropped senders do not come to their end | [`linger`](crate::sender::SenderBuilder::linger), or `close` with a time limit |
//! | [`truncated_sends`](crate::sender::SenderStats::truncated_sends) grow | connections fail during a send | the peer; the fates name the errors |
//! | [`dropped_sends`](crate::sender::SenderStats::dropped_sends) grow | this host drops datagrams | the queue of the device, or pacing |
//!
//! A path holds its rate times the time until the release. So a pool for 1 GB/s with a `quantile(0.99)`
//! of 20 ms needs slots for 20 MB, and as many more as the program fills at the same time.
//!
//! # Events
//!
//! With the feature `tracing` a sender tells of rare changes, and of nothing per send. Without the
//! feature no code of the events is built.
//!
//! ```
//! # #[cfg(feature = "tracing")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::net::{TcpListener, TcpStream};
//!
//! tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).init();
//!
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let address = listener.local_addr()?;
//! // The span of the adoption is the parent of the sender's events, in any thread.
//! let span = tracing::info_span!("connection", %address);
//! let socket = TcpStream::connect(address)?;
//! let mut sender = span.in_scope(|| pinbuf::Sender::new(socket))?;
//! sender.send(&b"hello"[..])?;
//! let _report = sender.close(None); // DEBUG connection{address=127.0.0.1:4433}: pinbuf::sender: ...
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "tracing"))]
//! # fn main() {}
//! ```
//!
//! The target is `pinbuf::sender`. Each event has the field `sender`, a number of the process for each
//! sender.
//!
//! | event | level | further fields | when |
//! |---|---|---|---|
//! | `mode` | DEBUG | `zero_copy`, `reason` | Large sends go without copy from here on, or by copy for the [reason](crate::sender::CopyReason). |
//! | `backpressure` | DEBUG | `limit`, `times` | A limit made a send wait, or go by copy. |
//! | `quarantined` | WARN | `payloads` | The release of so many payloads more cannot be proven now. |
//! | `poisoned` | ERROR | `cause` | Notifications are no longer believed, for a [cause](crate::sender::Poison). Everything goes by copy from here on. |
//! | `failed` | DEBUG | `error` | The connection is over, by an error. |
//! | `closed` | DEBUG | `drained`, `aborted`, `unacked_bytes`, `quarantined`, `error` | The end of the sender is over, also of a dropped sender. The fields are those of [`CloseReport`](crate::sender::CloseReport). |
//!
//! - A sender with a slow peer is held back at every send. So `backpressure` is told at the first,
//!   second, fourth, eighth time, and so on, for each `limit`: `times` is the number.
//! - Events tell of changes. [`capabilities`](crate::Sender::capabilities) tells at the adoption if
//!   everything goes by copy from the start.
//! - A sender dropped with nothing in flight just closes its socket, without an event.
//! - A subscriber runs in the thread with the news, which may be the thread of the
//!   [reaper](crate::reaper). The library holds no lock meanwhile. So a subscriber may use the
//!   sender through its other half ([`split`](crate::Sender::split)); a lock of the program around the
//!   sender, which the sending thread holds, would be a deadlock. A panic of a
//!   subscriber goes to the caller, like the panic of a waker, and nothing is lost.
//! - `tracing` drops events inside of a subscriber's own call.
//!
//! | limit | change |
//! |---|---|
//! | `SO_SNDBUF` | nothing: the peer or the path is slower than the sender. A larger send buffer delays the wait. |
//! | `max_in_flight` | [`max_in_flight_bytes`](crate::sender::SenderBuilder::max_in_flight_bytes) or [`max_in_flight_sends`](crate::sender::SenderBuilder::max_in_flight_sends) |
//! | `sender_quota` | [`PoolBuilder::sender_quota`](crate::pool::PoolBuilder::sender_quota), or more slots |
//! | `memlock budget` | `RLIMIT_MEMLOCK`: the senders of the process share one half |
//! | `RLIMIT_MEMLOCK` | the same limit: other programs of the user have used the rest |
//! | `net.core.optmem_max` | the sysctl, about 1 KiB for each call in flight |
