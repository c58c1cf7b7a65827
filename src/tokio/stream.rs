//! A stream in one piece.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use ::tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use futures_sink::Sink;

use super::{
    connection::Connection,
    read::ReadHalf,
    released::Released,
    socket::{IntoSocket, ReadSocket},
    write::WriteHalf,
};
#[cfg(feature = "histogram")]
use crate::sender::ReleaseTimes;
use crate::{
    error::{SendError, WaitError},
    id::Ticket,
    lease::{IntoPayload, Payload},
    sender::{
        Capabilities, CloseReport, Datagram, Fate, Returned, Sender, SenderBuilder, SenderStats,
        Socket,
    },
    sync::Arc,
};

/// A connected socket in a runtime: sends buffers without a copy, writes bytes by copy, and reads.
///
/// See [the module](super) for an example, the table of the methods and the wake-ups. A drop ends the stream
/// in order, in the background, as with a [`Sender`].
#[derive(Debug)]
pub struct Stream<S: Socket = std::net::TcpStream> {
    // Dropped first: see `WriteHalf`.
    write: WriteHalf<S>,
    read: ReadHalf<S>,
}

impl<S: Socket> Stream<S> {
    /// Takes over a connected socket, or a UDP socket, with the default settings.
    ///
    /// # Errors
    ///
    /// The error of the deregistration, of [`SenderBuilder::adopt`] or of [`Sender::event_fd`]:
    /// `Unsupported` off Linux. The socket is closed.
    ///
    /// # Panics
    ///
    /// Outside a runtime with I/O and a timer.
    pub fn new(socket: impl IntoSocket<Socket = S>) -> io::Result<Self> {
        Self::adopt(Sender::builder(), socket)
    }

    /// Takes over a connected socket.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    ///
    /// # Panics
    ///
    /// Outside a runtime with I/O and a timer.
    ///
    /// # Examples
    ///
    /// ```
    /// use pinbuf::{Policy, Sender, tokio::Stream};
    /// # use tokio::net::{TcpListener, TcpStream};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let socket = TcpStream::connect(listener.local_addr()?).await?;
    /// let stream = Stream::adopt(Sender::builder().policy(Policy::Never), socket)?;
    /// assert!(!stream.capabilities().supported);
    /// # Ok(())
    /// # }
    /// ```
    pub fn adopt(builder: SenderBuilder, socket: impl IntoSocket<Socket = S>) -> io::Result<Self> {
        let (send, reap) = builder.adopt(socket.into_socket()?)?.split();
        let connection = Connection::new(reap)?;
        let write = WriteHalf::new(send, Arc::clone(&connection));
        Ok(Self { write, read: ReadHalf::new(connection) })
    }
}

/// Datagrams.
///
/// ```
/// use pinbuf::{Pool, sender::Datagram, tokio::Stream};
/// use tokio::net::UdpSocket;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let receiver = UdpSocket::bind("127.0.0.1:0").await?;
/// # let address = receiver.local_addr()?;
/// let pool = Pool::new(16 << 10, 4)?;
/// let mut socket = Stream::new(UdpSocket::bind("127.0.0.1:0").await?)?;
/// let mut buf = pool.alloc_async(10 * 1200).await?;
/// buf.resize(10 * 1200, 7);
/// // Ten datagrams in one call.
/// let ticket = socket.send_to(buf, Datagram::to(address).segment_size(1200)).await?;
/// assert!(socket.released(ticket).await?.is_released());
/// # let mut got = [0; 2000];
/// # for _ in 0..10 {
/// #     assert_eq!(receiver.recv(&mut got).await?, 1200);
/// # }
/// # Ok(())
/// # }
/// ```
impl Stream<UdpSocket> {
    /// Sends a buffer as a datagram or a train of datagrams, and returns when the socket has taken it;
    /// see [`WriteHalf::send_to`].
    ///
    /// # Errors
    ///
    /// As [`WriteHalf::send_to`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future has sent nothing, and the buffer is recycled.
    pub async fn send_to<P: IntoPayload>(
        &mut self,
        buf: P,
        to: impl Into<Datagram>,
    ) -> Result<Ticket, SendError<P>> {
        self.write.send_to(buf, to).await
    }

    /// As [`send_to`](Self::send_to), if the socket takes the datagram or the train now; never waits.
    ///
    /// # Errors
    ///
    /// As [`WriteHalf::try_send_to`].
    pub fn try_send_to<P: IntoPayload>(
        &mut self,
        buf: P,
        to: impl Into<Datagram>,
    ) -> Result<Ticket, SendError<P>> {
        self.write.try_send_to(buf, to)
    }

    /// Receives a datagram; see [`ReadHalf::recv_from`].
    ///
    /// # Errors
    ///
    /// As [`ReadHalf::recv_from`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future has received nothing.
    pub async fn recv_from(&mut self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.read.recv_from(into).await
    }
}

impl<S: Socket> Stream<S> {
    /// Splits the stream into two halves, which can move to different tasks.
    ///
    /// See the example of [`WriteHalf`].
    pub fn into_split(self) -> (ReadHalf<S>, WriteHalf<S>) {
        (self.read, self.write)
    }

    /// Sends a buffer, and returns when the socket has accepted every byte; see [`WriteHalf::send`].
    ///
    /// # Errors
    ///
    /// As [`WriteHalf::send`].
    ///
    /// # Cancel safety
    ///
    /// Before a byte is accepted a dropped future recycles the buffer. After a part the sender keeps the
    /// buffer, and the next send waits for the rest.
    pub async fn send<P: IntoPayload>(&mut self, buf: P) -> Result<Ticket, SendError<P>> {
        self.write.send(buf).await
    }

    /// Sends a buffer as far as the socket takes it now; see [`WriteHalf::try_send`].
    ///
    /// # Errors
    ///
    /// As [`WriteHalf::try_send`].
    pub fn try_send<P: IntoPayload>(&mut self, buf: P) -> Result<Ticket, SendError<P>> {
        self.write.try_send(buf)
    }

    /// Sends several buffers as one send; see [`WriteHalf::send_vectored`].
    ///
    /// # Errors
    ///
    /// As [`WriteHalf::send_vectored`].
    ///
    /// # Cancel safety
    ///
    /// As [`send`](Self::send), except that the buffers are left in `bufs` if nothing was accepted.
    pub async fn send_vectored(
        &mut self,
        bufs: &mut Vec<Payload>,
    ) -> Result<Ticket, SendError<()>> {
        self.write.send_vectored(bufs).await
    }

    /// Returns a future of the fate of a send; see [`WriteHalf::released`].
    ///
    /// # Cancel safety
    ///
    /// The send goes on if the future is dropped.
    pub fn released(&self, ticket: Ticket) -> Released<S> {
        self.write.released(ticket)
    }

    /// Waits until the socket has accepted every byte; see [`WriteHalf::flush`].
    ///
    /// # Errors
    ///
    /// As [`WriteHalf::flush`].
    ///
    /// # Cancel safety
    ///
    /// The unsent part stays queued if the future is dropped.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.write.flush().await
    }

    /// Waits until everything is accepted and released; see [`WriteHalf::drain`].
    ///
    /// # Errors
    ///
    /// As [`WriteHalf::drain`].
    ///
    /// # Cancel safety
    ///
    /// The sends go on if the future is dropped.
    pub async fn drain(&mut self) -> Result<(), WaitError> {
        self.write.drain().await
    }

    /// Ends the stream in order and waits until the kernel has released everything; see
    /// [`WriteHalf::close`].
    ///
    /// # Panics
    ///
    /// With a timeout, if the runtime has no timer.
    ///
    /// # Cancel safety
    ///
    /// The end goes on in the background if the future is dropped.
    #[must_use = "the stream may not have ended in order"]
    pub async fn close(self, timeout: Option<Duration>) -> CloseReport {
        self.write.close(timeout).await
    }

    /// Ends the connection at once: the peer sees a reset. See [`Sender::abort`].
    pub fn abort(self) -> CloseReport {
        self.write.abort()
    }

    /// The next payload handed back; see [`WriteHalf::next_returned`].
    pub fn next_returned(&mut self) -> Option<Returned> {
        self.write.next_returned()
    }

    /// The fate of a send, or `None` while the send is open.
    ///
    /// # Errors
    ///
    /// As [`WriteHalf::fate`].
    pub fn fate(&self, ticket: Ticket) -> Result<Option<Fate>, WaitError> {
        self.write.fate(ticket)
    }

    /// The counters and the state of the sender.
    pub fn stats(&self) -> SenderStats {
        self.write.stats()
    }

    /// A snapshot of the times from zero-copy calls to their releases, if
    /// [switched on](crate::sender::SenderBuilder::release_times).
    #[cfg(feature = "histogram")]
    #[cfg_attr(docsrs, doc(cfg(feature = "histogram")))]
    pub fn release_times(&self) -> Option<ReleaseTimes> {
        self.write.release_times()
    }

    /// The ability to send without copy, and the reason against it.
    pub fn capabilities(&self) -> Capabilities {
        self.write.capabilities()
    }

    /// The socket, for its options.
    pub fn get_ref(&self) -> &S {
        self.write.get_ref()
    }
}

impl<S: ReadSocket> AsyncRead for Stream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().read).poll_read(cx, into)
    }
}

/// As for [`WriteHalf`].
impl<S: Socket> AsyncWrite for Stream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.get_mut().write), cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.get_mut().write), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.get_mut().write), cx)
    }
}

/// As for [`WriteHalf`].
impl<S: Socket> Sink<Payload> for Stream<S> {
    type Error = io::Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Sink::poll_ready(Pin::new(&mut self.get_mut().write), cx)
    }

    fn start_send(self: Pin<&mut Self>, payload: Payload) -> io::Result<()> {
        Sink::start_send(Pin::new(&mut self.get_mut().write), payload)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Sink::<Payload>::poll_flush(Pin::new(&mut self.get_mut().write), cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Sink::<Payload>::poll_close(Pin::new(&mut self.get_mut().write), cx)
    }
}
