//! Four ways to end: in order, in the background, at once, and not at all.
//!
//! | the program | call | the peer sees |
//! |---|---|---|
//! | has sent everything, and wants to know | [`close`](crate::Sender::close) | the end of the stream |
//! | has sent everything, and goes on | drop, and [`wait_idle`](crate::reaper::wait_idle) before the exit | the end of the stream |
//! | gives the transfer up | [`abort`](crate::Sender::abort) | a reset |
//! | keeps the connection | [`drain`](crate::Sender::drain) | nothing |
//!
//! ```
//! use pinbuf::{Pool, Sender, reaper::wait_idle};
//! use std::time::Duration;
//!
//! # use std::{io, net::{TcpListener, TcpStream}, thread};
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let address = listener.local_addr()?;
//! # let peers = thread::spawn(move || {
//! #     let mut accept = || listener.accept().unwrap().0;
//! #     let mut sockets = [accept(), accept(), accept()];
//! #     sockets.each_mut().map(|socket| io::copy(socket, &mut io::sink()).map_err(|error| error.kind()))
//! # });
//! # let connect = || TcpStream::connect(address);
//! // `connect()` opens a connection to a peer that reads to the end.
//! let pool = Pool::new(64 << 10, 8)?;
//! let message = || pool.alloc(64 << 10).map(|mut buf| { buf.resize(64 << 10, 7); buf });
//! let mut first = Sender::new(connect()?)?;
//! let mut second = Sender::new(connect()?)?;
//! let mut third = Sender::new(connect()?)?;
//! for sender in [&mut first, &mut second, &mut third] {
//!     sender.send(message()?)?;
//! }
//!
//! // In order, at most 30 seconds; then the connection is aborted.
//! let report = first.close(Some(Duration::from_secs(30)));
//! assert!(report.drained, "{report:?}");
//!
//! // At once: unsent data is lost.
//! assert!(second.abort().aborted);
//!
//! // In the background, for as long as the peer makes progress.
//! drop(third);
//! assert!(wait_idle(Some(Duration::from_secs(30))));
//! assert_eq!(pool.stats().free(), 8, "all memory is back");
//! # let [whole, _, last] = peers.join().unwrap();
//! # assert_eq!((whole, last), (Ok(64 << 10), Ok(64 << 10)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The promise of every end
//!
//! No end gives memory back early. After a plain `close(2)` the kernel goes on reading the memory
//! and reports nothing any more. So the descriptor stays open, with the library's thread if need
//! be, until the kernel has released the last buffer. `close`, `abort` and drop differ in the end
//! that the peer sees, and in the waiting thread.
//!
//! # Read the report
//!
//! [`CloseReport::drained`](crate::sender::CloseReport::drained) is `true` if everything was
//! accepted, the stream ended in order, and every buffer is back. Otherwise
//! [`error`](crate::sender::CloseReport::error) or [`aborted`](crate::sender::CloseReport::aborted)
//! gives the reason. `drained` is no proof of delivery to the peer's program: only an answer of the
//! peer is.
//!
//! Read the peer's stream to the end before `close`. Unread input makes the kernel reset the
//! connection, as with any TCP socket.
//!
//! # Before the program exits
//!
//! The exit of a process discards unsent data. [`wait_idle`](crate::reaper::wait_idle) waits for
//! all dropped senders.
//!
//! # Without a thread
//!
//! The background is a thread of the library, started when first needed. A program under a policy
//! against threads calls [`forbid_thread`](crate::reaper::forbid_thread) first, and
//! [`serve`](crate::reaper::serve) in each turn of its loop.
