//! Sends from tasks: every wait has a method for any runtime.
//!
//! ```
//! use pinbuf::{PinnedBuf, Pool, SendError, Sender, Ticket};
//! use std::{future::poll_fn, io};
//!
//! async fn send(sender: &mut Sender, mut buf: PinnedBuf) -> io::Result<Ticket> {
//!     loop {
//!         match sender.try_send(buf) {
//!             Err(SendError::WouldBlock(refused)) => buf = refused,
//!             sent => return Ok(sent?),
//!         }
//!         poll_fn(|cx| sender.poll_ready(cx)).await?; // waits for room
//!     }
//! }
//!
//! async fn stream(pool: &Pool, mut sender: Sender) -> io::Result<()> {
//!     for round in 0..100_u8 {
//!         let mut buf = pool.alloc_async(64 << 10).await?; // waits for a free buffer
//!         buf.resize(64 << 10, round);
//!         send(&mut sender, buf).await?;
//!     }
//!     let report = poll_fn(|cx| sender.poll_close(cx)).await?;
//!     assert!(report.drained, "{report:?}");
//!     Ok(())
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
//! # block_on(stream(&pool, Sender::new(socket)?))?;
//! # assert_eq!(peer.join().unwrap()?, 100 * (64 << 10));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The table of the methods, with the effect of a dropped future, is at
//! [`Sender`](crate::Sender#tasks).
//!
//! # tokio
//!
//! With the feature `tokio` the module `tokio` has streams whose methods are `async`, and which read too:
//!
//! ```
//! # #[cfg(feature = "tokio")]
//! # mod program {
//! use pinbuf::{Pool, tokio::Stream};
//! use std::{io, time::Duration};
//! use tokio::net::TcpListener;
//!
//! /// Sends a page to each peer that connects.
//! async fn serve(listener: TcpListener, pool: Pool, peers: usize) -> io::Result<()> {
//!     let mut tasks = Vec::new();
//!     for _ in 0..peers {
//!         let (socket, _) = listener.accept().await?;
//!         let pool = pool.clone();
//!         tasks.push(tokio::spawn(async move {
//!             let mut stream = Stream::new(socket)?;
//!             let mut page = pool.alloc_async(64 << 10).await?;
//!             page.resize(64 << 10, b'x');
//!             stream.send(page).await?;
//!             let report = stream.close(Some(Duration::from_secs(30))).await;
//!             if report.drained { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
//!         }));
//!     }
//!     for task in tasks {
//!         task.await?.unwrap_or_else(|error: io::Error| eprintln!("a peer: {error}"));
//!     }
//!     Ok(())
//! }
//! # #[tokio::main(flavor = "current_thread")]
//! # pub async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! #     let listener = TcpListener::bind("127.0.0.1:0").await?;
//! #     let address = listener.local_addr()?;
//! #     let peers = (0..3).map(|_| tokio::spawn(async move {
//! #         let mut socket = tokio::net::TcpStream::connect(address).await?;
//! #         tokio::io::copy(&mut socket, &mut tokio::io::sink()).await
//! #     }));
//! #     let peers = Vec::from_iter(peers);
//! #     serve(listener, Pool::new(64 << 10, 2)?, 3).await?;
//! #     for peer in peers { assert_eq!(peer.await??, 64 << 10); }
//! #     Ok(())
//! # }
//! # }
//! # #[cfg(feature = "tokio")]
//! # program::run().unwrap();
//! ```
//!
//! Any further runtime uses the methods of the sender, as above.
//!
//! # The thread that wakes
//!
//! Nothing is registered with the runtime above. The library's thread watches the socket while a task
//! waits, and wakes the task.
//!
//! A runtime that has a loop of its own does without that thread. The loop watches
//! [`event_fd`](crate::Sender::event_fd), and a task that finds the descriptor readable polls again. The
//! poll reads the news itself:
//!
//! ```
//! use pinbuf::Sender;
//! use std::{io, os::fd::BorrowedFd, task::{Context, Poll, ready}};
//!
//! /// What the runtime has: tokio's `AsyncFd`, smol's `Async`.
//! trait Readiness {
//!     /// Polls until the descriptor is readable, and clears the readiness.
//!     fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
//! }
//!
//! /// Polls one of the sender's methods in a task that watches the descriptor too.
//! fn poll_in_loop<T, E: Into<io::Error>>(
//!     sender: &mut Sender,
//!     fd: &mut impl Readiness,
//!     cx: &mut Context<'_>,
//!     mut poll: impl FnMut(&mut Sender, &mut Context<'_>) -> Poll<Result<T, E>>,
//! ) -> Poll<io::Result<T>> {
//!     loop {
//!         if let Poll::Ready(result) = poll(sender, cx) {
//!             return Poll::Ready(result.map_err(Into::into));
//!         }
//!         ready!(fd.poll_readable(cx))?;
//!     }
//! }
//! # struct Poll2<'a>(BorrowedFd<'a>);
//! # impl Readiness for Poll2<'_> {
//! #     fn poll_readable(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
//! #         use std::os::fd::AsRawFd;
//! #         let mut entry = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
//! #         // SAFETY: poll(2) reads and writes one entry, which outlives the call.
//! #         assert_eq!(unsafe { libc::poll(&raw mut entry, 1, 60_000) }, 1);
//! #         Poll::Ready(Ok(()))
//! #     }
//! # }
//! # use std::{net::{TcpListener, TcpStream}, task::Waker, thread};
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let socket = TcpStream::connect(listener.local_addr()?)?;
//! # let mut far = listener.accept()?.0;
//! # let peer = thread::spawn(move || io::copy(&mut far, &mut io::sink()));
//! # let mut sender = Sender::new(socket)?;
//! # let fd = sender.event_fd()?.try_clone_to_owned()?;
//! # let mut readable = Poll2(std::os::fd::AsFd::as_fd(&fd));
//! # let mut cx = Context::from_waker(Waker::noop());
//! # static DATA: [u8; 8 << 20] = [7; 8 << 20];
//! # sender.try_send(&DATA[..])?;
//! # assert!(matches!(poll_in_loop(&mut sender, &mut readable, &mut cx, Sender::poll_flush), Poll::Ready(Ok(()))));
//! # let Poll::Ready(Ok(report)) = poll_in_loop(&mut sender, &mut readable, &mut cx, Sender::poll_close) else { panic!() };
//! # assert!(report.drained);
//! # assert_eq!(peer.join().unwrap()?, 8 << 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The repository has this loop for smol, in `examples/smol.rs`.
//!
//! Where several tasks wait for one sender or its halves, one of them watches the descriptor and calls
//! [`reap`](crate::Sender::reap). The sender wakes the others.
//!
//! A notification taken by another user of the socket is no news. The library's thread looks for such a
//! loss once a second; a loop that wants the same calls `reap` as often while sends are in flight.
//!
//! # Never the socket itself
//!
//! A socket with zero-copy sends must not be registered with tokio, mio or any level-triggered
//! loop. Unread notifications are `EPOLLERR`, and runtimes take `EPOLLERR` for readable and
//! writable: the task spins.
//!
//! # Cancel safety
//!
//! All futures can be dropped at any time, and the sender goes on. A buffer that was refused is the
//! caller's, and recycled when the future that holds it is dropped. Once a part is accepted the sender
//! keeps the buffer, and sends the rest before anything else. A dropped
//! [`alloc_async`](crate::Pool::alloc_async) leaves the queue.
