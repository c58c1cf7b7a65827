//! Sends memory over a socket without a copy (`MSG_ZEROCOPY`), and gives each buffer back only
//! after the kernel has released the memory.
//!
//! # A first program
//!
//! ```
//! use pinbuf::{Pool, Sender};
//! use std::{net::TcpStream, time::Duration};
//!
//! # use std::{io, net::TcpListener, thread};
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let address = listener.local_addr()?;
//! # let peer = thread::spawn(move || io::copy(&mut listener.accept()?.0, &mut io::sink()));
//! // 16 buffers of 256 KiB, on huge pages where possible.
//! let pool = Pool::new(256 * 1024, 16)?;
//! let mut sender = Sender::new(TcpStream::connect(address)?)?;
//!
//! for round in 0..100_u8 {
//!     let mut buf = pool.alloc(256 * 1024)?; // waits for a free buffer
//!     buf.resize(256 * 1024, round);
//!     sender.send(buf)?; // from here on the kernel's, until the release
//! }
//! sender.close(Some(Duration::from_secs(30))).into_result()?;
//! # assert_eq!(peer.join().unwrap()?, 100 * 256 * 1024);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `send` returns before the memory is read, and a retransmission reads the memory much later. A
//! program that overwrites a buffer at once sends corrupt data, and no checksum notices. Here the
//! types prevent such reuse: `send` takes the buffer, and only the kernel's proof of the release
//! gives the buffer back.
//!
#![doc = include_str!("../docs/life.svg")]
//!
//! # I want to ...
//!
//! | to | use |
//! |---|---|
//! | take and fill a buffer | [`Pool::alloc`], [`PinnedBuf`] |
//! | send, and go on | [`Sender::send`]; [`try_send`](Sender::try_send) never blocks, [`send_timeout`](Sender::send_timeout) for a while only |
//! | write a header, in order with the sends | [`io::Write`](Sender#impl-Write-for-Sender<S>), [`Sender::try_write`] |
//! | send a header with pages | [`Sender::send_vectored`] |
//! | send a buffer to many peers | [`PinnedBuf::freeze`], [`SharedBuf`] |
//! | send a mapped file, or memory of a guest | [`MappedSlice`] |
//! | send datagrams to many peers, trains of them, at given times | [`Sender::send_to`], [`sender::Datagram`], [`pacing`] |
//! | send statics, `Arc<[u8]>`, `bytes::Bytes` | [`Payload`] |
//! | know when a buffer was released | [`Sender::wait`], [`Sender::poll_fate`], [`Fate`] |
//! | get released buffers back, with their contents | [`OnRelease::Return`](sender::OnRelease::Return) |
//! | send and read notifications in two threads | [`Sender::split`] |
//! | send from tasks of any runtime | [`Pool::alloc_async`], [`Sender::poll_ready`], the chapter [`guide::tasks`] |
//! | send from an event loop | [`Sender::event_fd`], [`Pool::waiter`], the chapter [`guide::event_loop`] |
#![cfg_attr(feature = "tokio", doc = "| send from tasks of tokio | [`tokio::Stream`] |")]
#![cfg_attr(
    feature = "rustls",
    doc = "| send over TLS | [`rustls::TlsStream`], the chapter [`guide::tls`] |"
)]
//! | end a stream | [`Sender::close`], [`Sender::abort`], or drop and [`reaper::wait_idle`] |
//! | limit how long a silent peer may hold buffers | [`max_hold`](sender::SenderBuilder::max_hold) |
//! | know if zero copy works here | [`probe::Environment`], [`Sender::capabilities`] |
//! | choose sizes and limits | the chapter [`guide::tuning`] |
//! | watch senders in production | the chapter [`guide::telemetry`] |
//! | count buffers, find lost buffers | [`Pool::stats`], [`Pool::audit`] |
//! | choose between the ways to send | [`guide::choosing`] |
//! | find the cause of a symptom | [`guide::troubleshooting`] |
//! | come from another library, or from the raw flag | [`guide::porting`] |
//!
//! The [`guide`] has a program for each of the usual tasks, and [`guide::questions`] leads to the
//! answers of twenty questions.
//!
//! # Guarantees
//!
//! 1. **No early reuse.** A byte that the kernel may still read is never writable, recycled or
//!    given to a new owner: not after an error, a partial send, a reset, a close, a dropped sender
//!    or pool, a panic.
//! 2. **Every fate is known.** Each accepted send ends as [`Released`](Fate::Released),
//!    [`Truncated`](Fate::Truncated) or [`Quarantined`](Fate::Quarantined). A buffer of which
//!    nothing was accepted comes back in the [`SendError`].
//! 3. **Nothing is lost.** [`Pool::audit`] accounts for every slot.
//! 4. **Progress.** Nothing spins, and no wait is for an impossible event. A single slot and a
//!    single thread suffice.
//!
//! *Released* says nothing about the peer: only that the kernel will not read the memory again. The
//! sender must be the only user of `MSG_ZEROCOPY` on the socket; see [`Sender`].
//! [SAFETY.md](https://docs.rs/crate/pinbuf/latest/source/SAFETY.md) has the argument and the tests
//! for each promise.
//!
//! # Features
//!
//! | feature | default | gives |
//! |---|---|---|
//! | `bytes` | off | `bytes::Bytes` as a payload and out of a [`SharedBuf`], `bytes::BufMut` for [`PinnedBuf`], `bytes::Buf` for [`SharedBuf`] |
//! | `histogram` | off | a histogram per sender of the time from zero-copy call to release, with quantiles: [`guide::telemetry`] |
//! | `rustls` | off | the module `rustls`: TLS streams, encrypted straight into buffers of a pool; with `tokio` too, for tasks |
//! | `memmap2-0_9` | off | the types of memmap2 0.9 as a [`Mapping`] |
//! | `serde` | off | `serde::Serialize` for all counters, states and reports |
//! | `tokio` | off | the module `tokio`: streams in tokio's runtimes |
//! | `tracing` | off | events of senders for `tracing`, listed in [`guide::telemetry`] |
//!
//! # Platforms
//!
//! Zero copy needs Linux 6.1 or newer, and a TCP or a UDP socket. Neither root nor any
//! configuration is needed. Older kernels are best effort. On the remaining Unixes, and on further
//! kinds of sockets, everything goes by copy, and [`Sender::capabilities`] says why. Windows is not
//! supported.
//!
//! On loopback, between containers and through tunnels the kernel copies after all. The default
//! [`Policy::Auto`] notices, and sends by copy there.
//!
//! The minimum Rust version is 1.88, for `if let` chains.
// Items of a feature say so on docs.rs.
#![cfg_attr(docsrs, feature(doc_cfg))]
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
pub mod guide;
mod id;
mod lease;
mod lock;
#[allow(unsafe_code)]
mod mapped;
pub mod pacing;
mod panics;
pub mod pool;
pub mod probe;
mod raw;
pub mod reaper;
#[cfg(feature = "rustls")]
#[cfg_attr(docsrs, doc(cfg(feature = "rustls")))]
pub mod rustls;
pub mod sender;
#[allow(unsafe_code)]
mod shared;
mod sync;
#[allow(unsafe_code)]
mod sys;
#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub mod tokio;
mod tracker;
mod turns;

#[doc(inline)]
pub use self::{
    buf::PinnedBuf,
    error::{AdoptError, AllocError, BuildError, SendError, WaitError},
    id::Ticket,
    lease::Payload,
    mapped::{MappedSlice, Mapping},
    pool::Pool,
    sender::{Fate, Policy, Sender},
    shared::SharedBuf,
};

/// Interface of the models and the simulation.
#[cfg(feature = "__internals")]
#[doc(hidden)]
#[allow(unsafe_code)]
#[path = "internals.rs"]
pub mod __internals;

/// The programs of the pages, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod pages {}
