//! Sends from tasks: every wait has a future for any runtime.
//!
//! ```
//! use pinbuf::{Pool, SendError, Sender, Ticket};
//! use std::{error::Error, future::poll_fn};
//!
//! async fn stream(pool: &Pool, mut sender: Sender) -> Result<Sender, Box<dyn Error>> {
//!     let mut last: Option<Ticket> = None;
//!     for round in 0..100_u8 {
//!         let mut buf = pool.alloc_async(64 << 10).await?; // waits for a free buffer
//!         buf.resize(64 << 10, round);
//!         loop {
//!             match sender.try_send(buf) {
//!                 Ok(ticket) => {
//!                     last = Some(ticket);
//!                     break;
//!                 }
//!                 Err(SendError::WouldBlock(back)) => {
//!                     buf = back;
//!                     // The socket is full: wait until the send before has gone.
//!                     let ticket = last.expect("an idle socket takes a buffer");
//!                     poll_fn(|cx| sender.poll_fate(cx, ticket)).await?;
//!                 }
//!                 Err(error) => return Err(error.into()),
//!             }
//!         }
//!     }
//!     if let Some(ticket) = last {
//!         let fate = poll_fn(|cx| sender.poll_fate(cx, ticket)).await?;
//!         assert!(fate.is_released(), "{fate:?}");
//!     }
//!     Ok(sender)
//! }
//! # use std::{net::{TcpListener, TcpStream}, pin::pin, sync::Arc, task::{Context, Poll, Wake, Waker}, thread::{self, Thread}};
//! # struct Unpark(Thread);
//! # impl Wake for Unpark { fn wake(self: Arc<Self>) { self.0.unpark() } }
//! # fn block_on<T>(task: impl Future<Output = T>) -> T {
//! #     let waker = Waker::from(Arc::new(Unpark(thread::current())));
//! #     let mut task = pin!(task);
//! #     loop {
//! #         match task.as_mut().poll(&mut Context::from_waker(&waker)) {
//! #             Poll::Ready(value) => return value,
//! #             Poll::Pending => thread::park(),
//! #         }
//! #     }
//! # }
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let socket = TcpStream::connect(listener.local_addr()?)?;
//! # let mut far = listener.accept()?.0;
//! # let peer = thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
//! # let pool = Pool::new(64 << 10, 4)?;
//! # let sender = block_on(stream(&pool, Sender::new(socket)?))?;
//! # assert!(sender.close(None).drained);
//! # assert_eq!(peer.join().unwrap()?, 100 * (64 << 10));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # No socket in the event loop
//!
//! A socket with zero-copy sends must not be registered with tokio, mio or any level-triggered
//! loop. Unread notifications are `EPOLLERR`, and runtimes take `EPOLLERR` for readable and
//! writable: the task spins. Here nothing is registered. The library's thread watches the socket
//! while a task waits, and wakes the task.
//!
//! A loop of the program watches [`event_fd`](crate::Sender::event_fd) instead: see
//! [`event_loop`](super::event_loop).
//!
//! # Cancel safety
//!
//! Both futures can be dropped at any time. A dropped [`alloc_async`](crate::Pool::alloc_async)
//! leaves the queue. A dropped future of [`poll_fate`](crate::Sender::poll_fate) ends only the
//! wait: the send goes on, and the buffer is recycled after the release.
//!
//! # The end
//!
//! [`close`](crate::Sender::close) blocks. A task drops the sender instead, and the library ends
//! the stream in the background, or calls `close` where blocking is allowed.
