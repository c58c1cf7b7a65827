//! A buffer for many peers: a frozen buffer is sent over every socket without a copy for each.
//!
//! ```
//! use pinbuf::{Pool, SendError, Sender};
//! use std::time::Duration;
//!
//! # use std::{io::Read, net::{TcpListener, TcpStream}, thread};
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let address = listener.local_addr()?;
//! # let peers: Vec<_> = (0..3).map(|_| {
//! #     let near = TcpStream::connect(address).unwrap();
//! #     (near, listener.accept().unwrap().0)
//! # }).collect();
//! # let (sockets, mut far): (Vec<_>, Vec<_>) = peers.into_iter().unzip();
//! # let reader = thread::spawn(move || far.iter_mut().map(|peer| {
//! #     let mut got = Vec::new();
//! #     peer.read_to_end(&mut got).unwrap();
//! #     got.len()
//! # }).collect::<Vec<_>>());
//! let pool = Pool::builder().class(64 << 10, 32).sender_quota(8).build()?;
//! // A peer silent for 10 seconds is reset.
//! let builder = Sender::builder().max_hold(Duration::from_secs(10));
//! let mut senders = Vec::new();
//! for socket in sockets {
//!     senders.push(builder.adopt(socket)?);
//! }
//!
//! for frame in 0..20_u8 {
//!     let mut buf = pool.alloc(64 << 10)?;
//!     buf.resize(64 << 10, frame);
//!     let frame = buf.freeze();
//!     senders.retain_mut(|sender| {
//!         match sender.send_timeout(frame.clone(), Duration::from_secs(5)) {
//!             Ok(_) | Err(SendError::Unfinished { .. }) => true,
//!             // Too slow, or gone: dropped here.
//!             Err(_) => false,
//!         }
//!     });
//! }
//! # for sender in senders { assert!(sender.close(Some(Duration::from_secs(30))).drained); }
//! # assert_eq!(reader.join().unwrap(), [20 * (64 << 10); 3]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A buffer with many holders
//!
//! [`freeze`](crate::PinnedBuf::freeze) makes a [`SharedBuf`](crate::SharedBuf): readable, not
//! writable. Clones and slices name the same bytes. Each send holds the buffer until the release of
//! the send, and the pool gets the slot after the last holder.
//! [`try_into_pinned`](crate::SharedBuf::try_into_pinned) makes the last handle writable again.
//!
//! # A slow peer must not hold all
//!
//! The slowest peer decides when a buffer is free. Three limits work together:
//!
//! | limit | against |
//! |---|---|
//! | [`sender_quota`](crate::pool::PoolBuilder::sender_quota) | a sender with too many slots of the pool in flight |
//! | [`max_hold`](crate::sender::SenderBuilder::max_hold) | a silent peer |
//! | [`send_timeout`](crate::Sender::send_timeout) | a slow peer |
//!
//! A sender above the quota refuses the next send with
//! [`WouldBlock`](crate::SendError::WouldBlock), or waits, while the rest go on. To drop a laggard
//! at once, [`abort`](crate::Sender::abort) the sender: the memory comes back, and the peer sees a
//! reset.
//!
//! The repository's program `examples/broadcast` is such a server, over tokio: a client may be a number of
//! frames behind, and loses frames or the connection then. So the memory of the pool is bounded whatever the
//! clients do, and the stream never waits.
//! The program `examples/replication` loses nothing: a replica that is behind is served from a log, and a quorum of
//! acknowledgements lets the stream go on.
