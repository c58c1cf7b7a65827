//! The half of a stream that sends.

use std::{
    future::poll_fn,
    io,
    net::UdpSocket,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use ::tokio::{io::AsyncWrite, task::coop, time};
use futures_sink::Sink;

use super::{connection::Connection, released::Released};
#[cfg(feature = "histogram")]
use crate::sender::ReleaseTimes;
use crate::{
    error::{OsError, SendError, WaitError},
    id::Ticket,
    lease::{IntoPayload, Payload},
    sender::{Capabilities, CloseReport, Datagram, Fate, Returned, SendHalf, SenderStats, Socket},
    sync::Arc,
};

/// The half of a [`Stream`](super::Stream) that sends; from
/// [`Stream::into_split`](super::Stream::into_split).
///
/// The half moves to any task or thread. A drop ends the stream in order, in the background. The table of
/// the methods is at [the module](super#methods).
///
/// ```
/// use pinbuf::{Pool, tokio::Stream};
/// use std::io;
/// use tokio::{io::AsyncReadExt, net::TcpStream};
///
/// /// Asks and reads the answer, in two tasks.
/// async fn ask(socket: TcpStream, pool: Pool) -> io::Result<Vec<u8>> {
///     let (mut read, mut write) = Stream::new(socket)?.into_split();
///     let asking = tokio::spawn(async move {
///         let mut question = pool.alloc_async(64 << 10).await?;
///         question.resize(64 << 10, b'?');
///         write.send(question).await?;
///         write.drain().await?;
///         io::Result::Ok(())
///     });
///     let mut answer = Vec::new();
///     read.read_to_end(&mut answer).await?;
///     asking.await??;
///     Ok(answer)
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// # let socket = TcpStream::connect(listener.local_addr()?).await?;
/// # let peer = tokio::spawn(async move {
/// #     let mut far = listener.accept().await?.0;
/// #     let mut question = Vec::new();
/// #     far.read_to_end(&mut question).await?;
/// #     tokio::io::AsyncWriteExt::write_all(&mut far, b"answer").await?;
/// #     io::Result::Ok(question.len())
/// # });
/// # assert_eq!(ask(socket, Pool::new(64 << 10, 1)?).await?, b"answer");
/// # assert_eq!(peer.await??, 64 << 10);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct WriteHalf<S: Socket = std::net::TcpStream> {
    // Dropped first, so that the end begins before the connection is given up.
    send: SendHalf<S>,
    /// Let in by the sink, and then refused by the socket. It goes before anything else.
    queued: Option<Payload>,
    connection: Arc<Connection<S>>,
}

impl<S: Socket> WriteHalf<S> {
    pub(super) fn new(send: SendHalf<S>, connection: Arc<Connection<S>>) -> Self {
        Self { send, queued: None, connection }
    }

    /// Sends a buffer, and returns when the socket has accepted every byte.
    ///
    /// Nothing waits for the release: see [`released`](Self::released).
    ///
    /// # Errors
    ///
    /// As [`Sender::send`](crate::Sender::send): the buffer comes back if nothing of it was accepted.
    /// [`SendError::Unfinished`] if the wait failed after a part was accepted.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before a byte was accepted, the buffer is dropped, and so recycled. Once a
    /// part was accepted the sender keeps the buffer, and sends the rest before anything else. The next send
    /// waits for that.
    pub async fn send<P: IntoPayload>(&mut self, buf: P) -> Result<Ticket, SendError<P>> {
        self.send_by(buf, SendHalf::try_send).await
    }

    /// Tries until the socket takes the buffer or a part, and waits until it has taken all.
    async fn send_by<P>(
        &mut self,
        mut buf: P,
        mut attempt: impl FnMut(&mut SendHalf<S>, P) -> Result<Ticket, SendError<P>>,
    ) -> Result<Ticket, SendError<P>> {
        coop::consume_budget().await;
        loop {
            if let Err(error) = poll_fn(|cx| self.poll_queued(cx)).await {
                return Err(into_send_error(&error, buf));
            }
            match attempt(&mut self.send, buf) {
                Err(SendError::WouldBlock(refused)) => buf = refused,
                Err(error) => return Err(error),
                Ok(ticket) => return self.accepted(ticket).await,
            }
            if let Err(error) = poll_fn(|cx| self.poll_ready(cx)).await {
                return Err(into_send_error(&error, buf));
            }
        }
    }

    /// Sends a buffer as far as the socket takes it now; never waits.
    ///
    /// The sender keeps the unsent part, and sends it before anything else. For tasks that poll by hand:
    /// [`Sink::poll_ready`](futures_sink::Sink::poll_ready) waits until a refused buffer may be sent.
    ///
    /// # Errors
    ///
    /// As [`Sender::try_send`](crate::Sender::try_send): [`SendError::WouldBlock`] if nothing was accepted.
    pub fn try_send<P: IntoPayload>(&mut self, buf: P) -> Result<Ticket, SendError<P>> {
        self.try_by(buf, SendHalf::try_send)
    }

    fn try_by<P>(
        &mut self,
        buf: P,
        attempt: impl FnOnce(&mut SendHalf<S>, P) -> Result<Ticket, SendError<P>>,
    ) -> Result<Ticket, SendError<P>> {
        match self.try_queued() {
            Ok(()) if self.queued.is_none() => attempt(&mut self.send, buf),
            Ok(()) => Err(SendError::WouldBlock(buf)),
            Err(error) => Err(into_send_error(&error, buf)),
        }
    }

    /// Sends several buffers as one send, in order, and returns when the socket has accepted all of them.
    ///
    /// Takes all of `bufs` once anything is accepted. See
    /// [`Sender::send_vectored`](crate::Sender::send_vectored).
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send). `bufs` is unchanged if nothing was accepted.
    ///
    /// # Cancel safety
    ///
    /// As [`send`](Self::send), except that the buffers are left in `bufs` if nothing was accepted.
    pub async fn send_vectored(
        &mut self,
        bufs: &mut Vec<Payload>,
    ) -> Result<Ticket, SendError<()>> {
        self.send_by((), |send, ()| send.try_send_vectored(bufs)).await
    }

    /// Returns a future of the fate of a send: ready once the kernel has released the memory.
    ///
    /// The future borrows nothing and can be awaited in another task. Of several futures for the same
    /// ticket, the one polled last is woken.
    ///
    /// # Cancel safety
    ///
    /// The send goes on if the future is dropped.
    pub fn released(&self, ticket: Ticket) -> Released<S> {
        Released::new(Arc::clone(&self.connection), ticket)
    }

    /// Waits until the socket has accepted every byte.
    ///
    /// There is something to wait for after a dropped [`send`](Self::send), and with the
    /// [`Sink`](futures_sink::Sink).
    ///
    /// # Errors
    ///
    /// The error of the connection, if it failed after a part of the last send was accepted.
    ///
    /// # Cancel safety
    ///
    /// The unsent part stays queued if the future is dropped.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Waits until everything is accepted and released.
    ///
    /// # Errors
    ///
    /// [`WaitError::Poisoned`] if the error queue can prove nothing any more, [`WaitError::Os`] with the
    /// error of `recvmsg(2)`, and [`WaitError::NoThread`] after the end of the runtime.
    ///
    /// # Cancel safety
    ///
    /// The sends go on if the future is dropped.
    pub async fn drain(&mut self) -> Result<(), WaitError> {
        poll_fn(|cx| {
            ready!(self.poll_queued(cx)).map_err(|error| WaitError::Os(OsError::from(&error)))?;
            self.or_driven(cx, |half, cx| half.connection.reap().poll_drain(cx))
        })
        .await
    }

    /// Ends the stream in order and waits until the kernel has released everything.
    ///
    /// After `timeout` the connection is [aborted](Self::abort). Where the end was not in order, the report
    /// says why. See [`Sender::close`](crate::Sender::close).
    ///
    /// # Panics
    ///
    /// With a timeout, if the runtime has no timer.
    ///
    /// # Cancel safety
    ///
    /// The end goes on in the background if the future is dropped, for as long as the peer makes progress
    /// ([`linger`](crate::sender::SenderBuilder::linger)).
    #[must_use = "the stream may not have ended in order"]
    pub async fn close(mut self, timeout: Option<Duration>) -> CloseReport {
        let closing = poll_fn(|cx| self.poll_close(cx));
        let closed = match timeout {
            None => closing.await.ok(),
            Some(timeout) => time::timeout(timeout, closing).await.ok().and_then(Result::ok),
        };
        closed.unwrap_or_else(|| self.send.abort())
    }

    /// Ends the connection at once: the peer sees a reset.
    ///
    /// See [`Sender::abort`](crate::Sender::abort).
    pub fn abort(self) -> CloseReport {
        self.send.abort()
    }

    /// The next payload handed back, in order of release; see
    /// [`OnRelease::Return`](crate::sender::OnRelease::Return).
    pub fn next_returned(&mut self) -> Option<Returned> {
        self.connection.reap().next_returned()
    }

    /// The fate of a send, or `None` while the send is open.
    ///
    /// # Errors
    ///
    /// [`WaitError::ForeignTicket`] for a ticket of another sender, and [`WaitError::Forked`] in a forked
    /// child.
    pub fn fate(&self, ticket: Ticket) -> Result<Option<Fate>, WaitError> {
        self.send.fate(ticket)
    }

    /// The counters and the state of the sender.
    pub fn stats(&self) -> SenderStats {
        self.send.stats()
    }

    /// A snapshot of the times from zero-copy calls to their releases, if
    /// [switched on](crate::sender::SenderBuilder::release_times).
    #[cfg(feature = "histogram")]
    #[cfg_attr(docsrs, doc(cfg(feature = "histogram")))]
    pub fn release_times(&self) -> Option<ReleaseTimes> {
        self.send.release_times()
    }

    /// The ability to send without copy, and the reason against it.
    pub fn capabilities(&self) -> Capabilities {
        self.send.capabilities()
    }

    /// The socket, for its options.
    pub fn get_ref(&self) -> &S {
        self.send.get_ref()
    }

    /// The ticket of a send of which a part was accepted, when all of it is.
    async fn accepted<B>(&mut self, ticket: Ticket) -> Result<Ticket, SendError<B>> {
        match poll_fn(|cx| self.poll_accepted(cx)).await {
            Ok(()) => Ok(ticket),
            Err(_) if self.send.interest().writable => Err(SendError::Unfinished { ticket }),
            Err(error) => Err(SendError::Truncated { ticket, error: OsError::from(&error) }),
        }
    }

    /// Polls a wait of the sender, which the driver of the connection ends.
    fn or_driven<T, E: From<WaitError>>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Self, &mut Context<'_>) -> Poll<Result<T, E>>,
    ) -> Poll<Result<T, E>> {
        match poll(self, cx) {
            Poll::Pending => self.connection.pending(),
            ready => ready,
        }
    }

    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.or_driven(cx, |half, cx| half.send.poll_flush(cx))
    }

    /// Waits until the socket may take a buffer. The payload that the sink has queued goes first.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_queued(cx))?;
        self.or_driven(cx, |half, cx| half.send.poll_ready(cx)).map_err(Into::into)
    }

    /// Waits until the payload that the sink has queued is with the sender.
    fn poll_queued(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.try_queued()?;
            if self.queued.is_none() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.or_driven(cx, |half, cx| half.send.poll_ready(cx)))?;
        }
    }

    /// Gives the payload that the sink has queued to the sender, unless the socket refuses the payload.
    fn try_queued(&mut self) -> io::Result<()> {
        let Some(payload) = self.queued.take() else { return Ok(()) };
        match self.send.try_send(payload) {
            Err(SendError::WouldBlock(refused)) => {
                self.queued = Some(refused);
                Ok(())
            }
            sent => sent.map(drop).map_err(Into::into),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_queued(cx))?;
        self.poll_accepted(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<CloseReport>> {
        ready!(self.poll_queued(cx))?;
        self.or_driven(cx, |half, cx| half.send.poll_close(cx)).map_err(Into::into)
    }
}

/// Datagrams.
impl WriteHalf<UdpSocket> {
    /// Sends a buffer as a datagram or a train of datagrams, and returns when the socket has taken it.
    ///
    /// See [`Sender::send_to`](crate::Sender::send_to), and the example of
    /// [`Stream`](super::Stream#impl-Stream<UdpSocket>).
    ///
    /// # Errors
    ///
    /// As [`Sender::send_to`](crate::Sender::send_to). The buffer comes back.
    ///
    /// # Cancel safety
    ///
    /// A dropped future has sent nothing, and the buffer is recycled.
    pub async fn send_to<P: IntoPayload>(
        &mut self,
        buf: P,
        to: impl Into<Datagram>,
    ) -> Result<Ticket, SendError<P>> {
        let to = to.into();
        self.send_by(buf, |send, buf| send.try_send_to(buf, to)).await
    }

    /// As [`send_to`](Self::send_to), if the socket takes the datagram or the train now; never waits.
    ///
    /// # Errors
    ///
    /// [`SendError::WouldBlock`] if it does not, and the errors of [`send_to`](Self::send_to).
    pub fn try_send_to<P: IntoPayload>(
        &mut self,
        buf: P,
        to: impl Into<Datagram>,
    ) -> Result<Ticket, SendError<P>> {
        self.try_by(buf, |send, buf| send.try_send_to(buf, to))
    }
}

fn into_send_error<B>(error: &io::Error, buf: B) -> SendError<B> {
    SendError::Os { error: OsError::from(error), buf }
}

/// Writes by copy, in order with the sends.
///
/// The shutdown begins the orderly end and is over when the kernel has released everything.
impl<S: Socket> AsyncWrite for WriteHalf<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let budget = ready!(coop::poll_proceed(cx));
        loop {
            ready!(this.poll_queued(cx))?;
            match this.send.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    budget.made_progress();
                    return Poll::Ready(written);
                }
            }
            ready!(this.poll_ready(cx))?;
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_close(cx).map_ok(drop)
    }
}

/// Sends payloads. A payload that the socket refuses is kept, and goes before anything else.
///
/// The close is over when the kernel has released everything.
impl<S: Socket> Sink<Payload> for WriteHalf<S> {
    type Error = io::Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let budget = ready!(coop::poll_proceed(cx));
        let ready = self.get_mut().poll_ready(cx);
        if ready.is_ready() {
            budget.made_progress();
        }
        ready
    }

    fn start_send(self: Pin<&mut Self>, payload: Payload) -> io::Result<()> {
        let this = self.get_mut();
        assert!(this.queued.is_none(), "poll_ready was not called");
        this.queued = Some(payload);
        this.try_queued()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_close(cx).map_ok(drop)
    }
}
