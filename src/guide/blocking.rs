//! A loop of plain calls: take a buffer, fill, send.
//!
//! ```
//! use pinbuf::{Pool, Sender};
//! use std::time::Duration;
//!
//! # use std::io::Read;
//! # use std::net::{TcpListener, TcpStream};
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let socket = TcpStream::connect(listener.local_addr()?)?;
//! # let mut accepted = listener.accept()?.0;
//! # let peer = std::thread::spawn(move || std::io::copy(&mut accepted, &mut std::io::sink()));
//! # let mut file = std::io::repeat(7).take(10 << 20);
//! let pool = Pool::new(256 << 10, 16)?;
//! let mut sender = Sender::new(socket)?;
//! loop {
//!     let mut buf = pool.alloc(256 << 10)?;
//!     if buf.read_from(&mut file, 256 << 10)? == 0 {
//!         break;
//!     }
//!     sender.send(buf)?;
//! }
//! assert!(sender.close(Some(Duration::from_secs(30))).drained);
//! # assert_eq!(peer.join().unwrap()?, 10 << 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Step by step
//!
//! [`Pool::new`](crate::Pool::new) maps all memory at once: a lack of memory is an error here, and
//! never a signal later. 16 buffers are in flight at most. The loop then waits in `alloc`, so the
//! pool bounds the memory of the program, even if the peer stops reading.
//!
//! [`Pool::alloc`](crate::Pool::alloc) takes a free buffer. Without a free buffer the call reads
//! the notifications of every sender with buffers of the pool, and then sleeps. A program with a
//! single thread and a single buffer goes on, because nothing else has to run.
//!
//! A fresh buffer is empty, as a `Vec` with a capacity. [`read_from`](crate::PinnedBuf::read_from)
//! reads into the free capacity, and zeroes nothing first.
//!
//! [`Sender::send`](crate::Sender::send) takes the buffer, blocks until the socket has accepted
//! every byte, and returns a [`Ticket`](crate::Ticket). The program needs the ticket only to ask
//! for the fate of this send. After the release the buffer is in the pool again.
//!
//! An error of `send` has the buffer, if nothing was accepted:
//! [`SendError::into_buf`](crate::SendError::into_buf). With `?` into an
//! [`io::Error`](std::io::Error) the buffer goes back to the pool.
//!
//! [`Sender::close`](crate::Sender::close) is the subject of [`closing`](super::closing).
//!
//! # A bound on every wait
//!
//! | call | with a limit |
//! |---|---|
//! | `alloc` | [`alloc_timeout`](crate::Pool::alloc_timeout), or [`try_alloc`](crate::Pool::try_alloc) |
//! | `send` | [`send_timeout`](crate::Sender::send_timeout), or [`try_send`](crate::Sender::try_send) |
//! | both, against a silent peer | [`max_hold`](crate::sender::SenderBuilder::max_hold) |
