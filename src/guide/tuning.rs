//! Sizes, limits and counters. Measure first: the defaults suit most programs.
//!
//! ```
//! use pinbuf::{Policy, Pool, Sender, pool::{Backing, Pages}, sender::DataHint};
//!
//! # use std::net::{TcpListener, TcpStream};
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let socket = TcpStream::connect(listener.local_addr()?)?;
//! # let mut far = listener.accept()?.0;
//! # let _peer = std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
//! // Two sizes; on transparent huge pages, or on what there is.
//! let pool = Pool::builder()
//!     .class(4 << 10, 256)
//!     .class(256 << 10, 32)
//!     .backing(Backing::Prefer(Pages::Thp))
//!     .build()?;
//! println!("{}", pool.region());
//!
//! let mut sender = Sender::builder()
//!     .policy(Policy::Auto)
//!     .data_hint(DataHint::Cached) // for data written just now
//!     .max_in_flight_bytes(8 << 20)
//!     .adopt(socket)?;
//! let mut buf = pool.alloc(256 << 10)?;
//! buf.resize(256 << 10, 7);
//! let ticket = sender.send(buf)?;
//! assert!(sender.wait(ticket, None)?.is_released());
//!
//! let stats = sender.stats();
//! println!("{:?} after {} probes", stats.route.mode, stats.route.probes);
//! println!("the kernel copied {} of {} calls", stats.deferred_copies, stats.zero_copy_calls);
//! if stats.no_bufs_memlock > 0 {
//!     println!("raise RLIMIT_MEMLOCK");
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Buffers
//!
//! - **Size.** 256 KiB to 1 MiB gains most. Below some 16 KiB a copy is as cheap, or cheaper.
//! - **Number.** A path with a round trip of 10 ms and 1 GB/s holds 10 MB in flight. Have 20 MB, or
//!   `alloc` waits for the network.
//! - **Pages.** The pool takes hugetlb pages, transparent huge pages or base pages, in this order.
//!   [`Pool::region`](crate::Pool::region) tells the choice and the reasons.
//! - **Threads.** Each thread has a stock of free buffers, and lends the stock when the pool runs
//!   dry. Sizes with at least 64 slots have a stock.
//!
//! # Sends
//!
//! | setting | default | change if |
//! |---|---|---|
//! | [`policy`](crate::sender::SenderBuilder::policy) | `Auto` | zero copy is a must (`Require`), or never wanted |
//! | [`data_hint`](crate::sender::SenderBuilder::data_hint) | `Unknown` | the place of the data is known: `Cold`, `Cached` |
//! | [`threshold_bytes`](crate::sender::SenderBuilder::threshold_bytes) | by the hint; 16 KiB | you have measured the program itself |
//! | [`max_in_flight_bytes`](crate::sender::SenderBuilder::max_in_flight_bytes) | 64 MiB | many senders share a pool or a memlock limit |
//! | [`linger`](crate::sender::SenderBuilder::linger) | 30 s | dropped senders should give up earlier |
//! | [`max_hold`](crate::sender::SenderBuilder::max_hold) | none | peers can be silent, and memory matters |
//!
//! # Threshold
//!
//! Sends below the threshold go by copy. The right size depends on two things:
//!
//! - **The data.** Copying out of the processor's caches is cheap. Data written just now, or sent again and again out of
//!   a megabyte, gains from 32 to 64 KiB on. Data written long ago gains from 4 to 16 KiB on.
//! - **The processor.** Intel and AMD differ by a factor of four for data written long ago.
//!
//! The library cannot see the place of the data. So the default is 16 KiB, and a [`DataHint`](crate::sender::DataHint) asks for more.
//! The size is then measured on the machine, once a process, before the first adoption with a hint. That takes some 8 ms of
//! processor time. A program that cannot wait there calls [`calibrate_threshold`](crate::probe::calibrate_threshold)
//! earlier, at its start. Where no measurement is possible, 16 and 64 KiB are the sizes for cold and cached data.
//! [`threshold_bytes`](crate::sender::SenderBuilder::threshold_bytes) fixes the size instead. A sender with mixed data
//! needs no hint.
//!
//! # Counters
//!
//! | counter | tells |
//! |---|---|
//! | [`SenderStats::route`](crate::sender::SenderStats::route) | if the way to the peer copies |
//! | [`no_bufs_memlock`](crate::sender::SenderStats::no_bufs_memlock), [`no_bufs_optmem`](crate::sender::SenderStats::no_bufs_optmem) | the limit of the kernel that was reached |
//! | [`PoolStats`](crate::pool::PoolStats) | buffers free, owned, in flight, quarantined |
//! | [`reaper::stats`](crate::reaper::stats) | dropped senders on the way to their end |
//!
//! The chapter [`telemetry`](crate::guide::telemetry) has the readings to watch in production.
//!
//! First of all [`Environment::probe`](crate::probe::Environment::probe) looks at the machine, and
//! [`Environment::route_to`](crate::probe::Environment::route_to) at the way to a peer.
