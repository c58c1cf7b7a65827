//! Many senders in one loop: each has a descriptor that is readable when there is something to do.
//!
//! ```
//! use pinbuf::{AllocError, PinnedBuf, Pool, SendError, Sender};
//! use std::{error::Error, time::Duration};
//!
//! struct Connection {
//!     sender: Sender,
//!     refused: Option<PinnedBuf>,
//!     left: u32,
//! }
//!
//! impl Connection {
//!     /// Sends until the sender refuses, or the pool is dry.
//!     fn advance(&mut self, pool: &Pool) -> Result<(), Box<dyn Error>> {
//!         self.sender.reap()?;
//!         while self.left > 0 {
//!             let buf = match self.refused.take() {
//!                 Some(buf) => buf,
//!                 None => match pool.try_alloc(64 << 10) {
//!                     Ok(mut buf) => {
//!                         buf.resize(64 << 10, 7);
//!                         buf
//!                     }
//!                     Err(AllocError::Exhausted) => return Ok(()),
//!                     Err(error) => return Err(error.into()),
//!                 },
//!             };
//!             match self.sender.try_send(buf) {
//!                 Ok(_) => self.left -= 1,
//!                 Err(SendError::WouldBlock(buf)) => {
//!                     self.refused = Some(buf);
//!                     return Ok(());
//!                 }
//!                 Err(error) => return Err(error.into()),
//!             }
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # use std::{net::{TcpListener, TcpStream}, os::fd::{AsRawFd, BorrowedFd}, thread};
//! # /// Waits until one of the descriptors is readable: `poll(2)`.
//! # fn wait_for_any(descriptors: &[BorrowedFd<'_>]) {
//! #     let entry = |fd: &BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
//! #     let mut entries: Vec<_> = descriptors.iter().map(entry).collect();
//! #     // SAFETY: poll(2) reads and writes so many entries, which outlive the call.
//! #     assert!(unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as _, 60_000) } > 0);
//! # }
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let pairs: Vec<_> = (0..3).map(|_| {
//! #     let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
//! #     (near, listener.accept().unwrap().0)
//! # }).collect();
//! # let (sockets, far): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
//! # let peers: Vec<_> = far.into_iter().map(|mut far| {
//! #     thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()).unwrap())
//! # }).collect();
//! // No connection has more than 4 of the 16 buffers in flight, and a fifth that was refused.
//! let pool = Pool::builder().class(64 << 10, 16).sender_quota(4).build()?;
//! let mut connections = Vec::new();
//! for socket in sockets {
//!     let sender = Sender::new(socket)?;
//!     connections.push(Connection { sender, refused: None, left: 50 });
//! }
//! while connections.iter().any(|connection| connection.left > 0) {
//!     let watched: Result<Vec<_>, _> = connections.iter().map(|c| c.sender.event_fd()).collect();
//!     wait_for_any(&watched?); // `poll`, `epoll`, mio, tokio's `AsyncFd` ...
//!     for connection in &mut connections {
//!         connection.advance(&pool)?;
//!     }
//! }
//! for connection in connections {
//!     assert!(connection.sender.close(Some(Duration::from_secs(30))).drained);
//! }
//! # for peer in peers { assert_eq!(peer.join().unwrap(), 50 * (64 << 10)); }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Never the socket itself
//!
//! Unread notifications make a socket ready for `EPOLLERR`, unasked and until they are read. mio
//! and tokio take `EPOLLERR` for readable and writable, so a registered socket makes the loop spin.
//! [`event_fd`](crate::Sender::event_fd) is readable once for each change: a notification, room
//! after a refusal, an error, a hangup. With
//! [`poll_readable`](crate::Sender::poll_readable) data to read is news too.
//!
//! # Each readiness
//!
//! 1. [`reap`](crate::Sender::reap) takes the readiness away, reads notifications, and sends the
//!    unsent part of the last send.
//! 2. Payloads and fates that the program waits for:
//!    [`next_returned`](crate::Sender::next_returned), [`fate`](crate::Sender::fate).
//! 3. Refused buffers once more.
//!
//! # A dry pool
//!
//! A connection without a buffer is woken by no descriptor of its own: the buffers come back
//! through the senders that have them in flight. So the loop above advances every connection after
//! each wake-up. In a loop of many connections each keeps a [`Waiter`](crate::pool::Waiter), which has
//! its turn in the queue of the pool, and whose waker names the connection: `examples/mio_loop.rs` of the
//! repository has 1,000. A [`sender_quota`](crate::pool::PoolBuilder::sender_quota) keeps one connection
//! from taking all buffers.
