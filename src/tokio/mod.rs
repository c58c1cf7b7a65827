//! Streams for tokio: zero-copy sends, writes by copy and reads over one connected socket, and datagrams over
//! a UDP socket.
//!
//! ```
//! use pinbuf::{Pool, tokio::Stream};
//! use std::{error::Error, time::Duration};
//! use tokio::{io::AsyncWriteExt, net::TcpStream};
//!
//! # use tokio::{io::{copy, sink}, net::TcpListener};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn Error>> {
//! # let listener = TcpListener::bind("127.0.0.1:0").await?;
//! # let address = listener.local_addr()?;
//! # let peer = tokio::spawn(async move { copy(&mut listener.accept().await?.0, &mut sink()).await });
//! let pool = Pool::new(256 << 10, 16)?;
//! let mut stream = Stream::new(TcpStream::connect(address).await?)?;
//!
//! stream.write_all(b"a header, by copy").await?;
//! for round in 0..100_u8 {
//!     let mut buf = pool.alloc_async(256 << 10).await?; // waits for a free buffer
//!     buf.resize(256 << 10, round);
//!     stream.send(buf).await?; // accepted, and the kernel's until the release
//! }
//! let report = stream.close(Some(Duration::from_secs(30))).await;
//! assert!(report.drained, "{report:?}");
//! # assert_eq!(peer.await??, 17 + 100 * (256 << 10));
//! # Ok(())
//! # }
//! ```
//!
//! A send has two phases. [`send`](Stream::send) returns when the socket has accepted every byte.
//! [`released`](Stream::released) is a future of its own, ready once the kernel has released the memory. No
//! write waits for a release, unless the window of sends in flight is full.
//!
//! # Methods
//!
//! | method | ready when | if the future is dropped |
//! |---|---|---|
//! | [`send`](Stream::send) | every byte is accepted | no byte accepted: the buffer is recycled. Otherwise the rest stays queued, and the next send waits for the rest |
//! | [`try_send`](Stream::try_send) | at once: as much is accepted as fits | |
//! | [`send_vectored`](Stream::send_vectored) | the same for all buffers | no byte accepted: the buffers stay with the caller. Otherwise as for `send` |
//! | [`send_to`](Stream::send_to), of `Stream<UdpSocket>` | the socket has taken the datagram or the train | nothing was sent, and the buffer is recycled |
//! | [`recv_from`](Stream::recv_from), of `Stream<UdpSocket>` | a datagram has come | nothing was received |
//! | [`released`](Stream::released) | the send has its fate | the send goes on |
//! | [`flush`](Stream::flush) | nothing is unsent | the unsent part stays queued |
//! | [`drain`](Stream::drain) | everything is accepted and released | the sends go on |
//! | [`close`](Stream::close) | the stream has ended, or the time is up | the end goes on in the background |
//! | [`AsyncRead`](::tokio::io::AsyncRead) | a read would not wait | nothing was read |
//! | [`AsyncWrite`](::tokio::io::AsyncWrite): write | some bytes are accepted, by copy | nothing was written |
//! | [`AsyncWrite`](::tokio::io::AsyncWrite): shutdown | the stream has ended, with everything released | the end has begun |
//! | [`Sink<Payload>`](futures_sink::Sink) | as `send` | a payload let in stays queued |
//! | [`Pool::alloc_async`](crate::Pool::alloc_async) | a buffer is free | the task leaves the queue |
//!
//! All methods keep one order on the stream. [`abort`](Stream::abort) ends the connection at once. Futures may
//! move between threads. A stream belongs to the runtime in which it was made.
//!
//! A read of 0 bytes is the end of the peer's whole stream. After a reset, or after TCP has given the peer up,
//! every read fails, whichever call the kernel told of the error.
//!
//! # The tasks woken, and when
//!
//! - The socket is never registered with the runtime: an unread notification would be taken for readable and
//!   writable. The runtime watches the sender's [`event_fd`](crate::Sender::event_fd), one registration per
//!   stream.
//! - Each stream has a small task in the runtime, the *driver*. News of the socket wakes the driver. The driver
//!   reads notifications and sends the unsent part.
//! - A waiting task is woken once, when its event has come. A notification wakes no task that reads or waits for
//!   room; data wakes no task that sends. While a peer stalls nothing is woken, the driver included.
//! - There is no thread of the library, except for streams that were dropped before their end, and for
//!   [`max_hold`](crate::sender::SenderBuilder::max_hold).
//!
//! Of several tasks that wait for the same event, the one that polled last is woken: of two futures of one
//! ticket's release, one.
//!
//! A notification taken by another user of the socket is no news. So one task of the process looks at the
//! streams with sends in flight, from the first wait of a task on. The task wakes once a second, looks at 64
//! streams at most, and at the others in the seconds behind. A look wakes a waiting task only if a notification
//! was lost. The looks end with the last release. If the runtime of the looks ends, each task that waits is woken
//! once without news, and the looks go on in another runtime.
//!
//! # Least version
//!
//! tokio 1.47, with the features `net`, `rt` and `time`. Linux only: elsewhere [`Stream::new`] fails with
//! `Unsupported`.

mod connection;
mod looks;
mod read;
mod released;
mod socket;
mod stream;
mod write;

pub use self::{
    read::ReadHalf,
    released::Released,
    socket::{IntoSocket, ReadSocket},
    stream::Stream,
    write::WriteHalf,
};
