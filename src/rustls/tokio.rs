//! TLS streams for tokio, with the feature `tokio` too.
//!
//! A [`TlsStream`] is a [`Session`] over a [`tokio::Stream`](crate::tokio::Stream). The records are encrypted
//! straight into buffers of a pool, and the buffers are sent without a copy where that pays.
//!
//! ```
//! use pinbuf::{Pool, rustls::tokio::TlsStream, tokio::Stream};
//! use std::{error::Error, sync::Arc, time::Duration};
//! use ::rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
//! use ::tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::{TcpListener, TcpStream}};
//!
//! # type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;
//! const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));
//!
//! /// Reads a request up to its end, and answers with its length.
//! async fn serve(socket: TcpStream, pool: Pool, config: Arc<ServerConfig>) -> Result<()> {
//!     let mut stream = TlsStream::accept(Stream::new(socket)?, &pool, config).await?;
//!     let mut request = Vec::new();
//!     stream.read_to_end(&mut request).await?; // a truncated request is an error
//!     stream.write_all(&request.len().to_be_bytes()).await?;
//!     stream.close(PATIENCE).await.into_result()?;
//!     Ok(())
//! }
//!
//! async fn upload(
//!     socket: TcpStream,
//!     pool: &Pool,
//!     config: Arc<ClientConfig>,
//!     name: ServerName<'static>,
//! ) -> Result<u64> {
//!     let mut stream = TlsStream::connect(Stream::new(socket)?, pool, config, name).await?;
//!     // Waits for free buffers, and for room in the socket. The tickets tell of the release.
//!     let tickets = stream.send(&[7; 1 << 20]).await?;
//!     for ticket in tickets {
//!         assert!(stream.released(ticket).await?.is_released());
//!     }
//!     stream.finish().await?; // the end of the request
//!     let len = stream.read_u64().await?;
//!     stream.close(PATIENCE).await.into_result()?;
//!     Ok(len)
//! }
//! # use ::rustls::{RootCertStore, pki_types::PrivatePkcs8KeyDer};
//! # #[::tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<()> {
//! # let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
//! # let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
//! # let mut roots = RootCertStore::empty();
//! # roots.add(made.cert.der().clone())?;
//! # let client = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
//! # let server = Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into())?);
//!
//! // `client` and `server` are configurations of `rustls`, with the provider of your choice.
//! let pool = Pool::new(256 << 10, 8)?;
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let socket = TcpStream::connect(listener.local_addr()?).await?;
//! let peer = ::tokio::spawn(serve(listener.accept().await?.0, pool.clone(), server));
//! assert_eq!(upload(socket, &pool, client, ServerName::try_from("localhost")?).await?, 1 << 20);
//! peer.await??;
//! # Ok(())
//! # }
//! ```
//!
//! # Methods
//!
//! | method | ready when | if the future is dropped |
//! |---|---|---|
//! | [`connect`](TlsStream::connect), [`accept`](TlsStream::accept) | the handshake is complete | the connection ends |
//! | [`send`](TlsStream::send) | every byte is accepted by the socket | some beginning of the plaintext was encrypted, and is sent before anything else |
//! | [`released`](TlsStream::released) | the send has its fate | the send goes on |
//! | [`drain`](TlsStream::drain) | everything is accepted and released | the sends go on |
//! | [`finish`](TlsStream::finish), [`refresh_keys`](TlsStream::refresh_keys) | the message is accepted by the socket | the message is made, and sent before anything else |
//! | [`close`](TlsStream::close) | the connection has ended, or the time is up | as after a drop of the stream |
//! | [`AsyncRead`] | there is plaintext, or the end; with 16 KiB of answers that the peer has asked for and does not read, not before the socket has room | nothing was read |
//! | [`AsyncWrite`]: write | some bytes are encrypted into a buffer | nothing was written |
//! | [`AsyncWrite`]: flush | every byte is accepted by the socket | the records are kept |
//! | [`AsyncWrite`]: shutdown | `close_notify` is sent and everything released | the end has begun |
//!
//! A dropped write that waited for a buffer keeps its place in the queue of the pool, and so possibly a buffer,
//! until the next write, `send` or flush, or the drop of the stream. A trait's method is not told that its
//! future is gone. `send` gives its place up.
//!
//! # Two tasks
//!
//! [`tokio::io::split`](https://docs.rs/tokio/1/tokio/io/fn.split.html) makes halves that read and write in two
//! tasks. Neither loses a wake-up to the other. There are no halves with [`send`](TlsStream::send): both
//! directions share the session, so a half would be a lock around the whole stream, as there.

use std::{
    fmt,
    future::poll_fn,
    io,
    net::TcpStream,
    pin::Pin,
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use ::rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use ::tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop,
    time::{Instant, timeout_at},
};
use futures_sink::Sink;

use super::{
    error::TlsError,
    records::{Capacity, Records},
    session::Session,
};
use crate::{
    error::SendError,
    id::Ticket,
    lease::Payload,
    pool::{Pool, Waiter},
    sender::CloseReport,
    sync::Arc,
    tokio::{Released, Stream},
};

/// Most outgoing bytes that a read leaves behind and reads on. A peer that asks for new keys all the time, and reads
/// no answer, would otherwise fill the memory.
const MOST_ANSWERS: usize = 16 << 10;

/// A TLS stream over TCP in tokio's runtimes, whose records are encrypted straight into buffers of a pool.
///
/// See [the module](self) for an example and the table of the methods, and the blocking
/// [`TlsStream`](super::TlsStream) for the choice of buffers and for the ends.
///
/// # Writing
///
/// A write makes records in the buffer that is being filled, and sends a full buffer. The rest goes with a
/// `flush`, with a read that has to wait for the peer, or with an end. Each write makes records of its own, so
/// small writes are best collected in a `tokio::io::BufWriter`.
///
/// # The end
///
/// [`close`](Self::close) sends `close_notify` and waits for the end of the peer's stream. `shutdown` sends
/// `close_notify` and ends the sending direction, and the stream can still be read. A drop sends no `close_notify`: the peer sees a truncated stream. A stream of the
/// peer that ends without `close_notify` is an error of the reader
/// ([`UnexpectedEof`](io::ErrorKind::UnexpectedEof)).
pub struct TlsStream {
    records: Records,
    stream: Stream,
    pool: Pool,
    /// Of a write that waits for a buffer.
    waiter: Option<Waiter>,
    /// Had no room in the socket. It goes before anything else.
    refused: Option<Payload>,
    waiting: Waiting,
}

static_assertions::assert_impl_all!(TlsStream: Send, Sync, Unpin);

impl TlsStream {
    /// Connects to the server `name`: makes the handshake as a client.
    ///
    /// # Errors
    ///
    /// Those of [`Session::client`], [`TlsError::Tls`], [`TlsError::Truncated`] and [`TlsError::Io`]. The stream
    /// is dropped.
    ///
    /// # Cancel safety
    ///
    /// The connection ends if the future is dropped.
    pub async fn connect(
        stream: Stream,
        pool: &Pool,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, TlsError> {
        Self::new(Session::client(config, name)?, stream, pool).handshake().await
    }

    /// Accepts a client: makes the handshake as a server.
    ///
    /// # Errors
    ///
    /// Those of [`Session::server`], [`TlsError::Tls`], [`TlsError::Truncated`] and [`TlsError::Io`]. The stream
    /// is dropped.
    ///
    /// # Cancel safety
    ///
    /// The connection ends if the future is dropped.
    pub async fn accept(
        stream: Stream,
        pool: &Pool,
        config: Arc<ServerConfig>,
    ) -> Result<Self, TlsError> {
        Self::new(Session::server(config)?, stream, pool).handshake().await
    }

    fn new(session: Session, stream: Stream, pool: &Pool) -> Self {
        let (waiter, refused, waiting) = Default::default();
        let records = Records::new(session, pool);
        Self { records, stream, pool: pool.clone(), waiter, refused, waiting }
    }

    async fn handshake(mut self) -> Result<Self, TlsError> {
        loop {
            let processed = self.records.session.process();
            let sent = self.send_all(drop).await;
            processed.and(sent)?;
            if !self.records.session.is_handshaking() {
                return Ok(self);
            }
            poll_fn(|cx| self.poll_receive(cx)).await?;
        }
    }

    /// The TLS connection: [`Session::connection`] has version, ALPN and the certificates of the peer.
    pub fn session(&self) -> &Session {
        &self.records.session
    }

    /// The stream beneath: counters, fates, the socket.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The stream beneath, for [`next_returned`](Stream::next_returned). A send or a read past the TLS stream
    /// breaks the connection.
    pub fn stream_mut(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Encrypts `plaintext` into buffers of the pool, and sends the buffers. Returns their tickets, in order.
    ///
    /// Ready when the socket has accepted every byte; waits for free buffers meanwhile, first come, first served.
    /// Nothing waits for the release: see [`released`](Self::released). Sends written records first.
    ///
    /// # Errors
    ///
    /// [`TlsError::Io`], [`TlsError::Alloc`], [`TlsError::TooSmall`], and those of [`Session::encrypt`]. Some of
    /// `plaintext` may have been sent.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, some beginning of `plaintext` was encrypted. Its records are sent before anything
    /// else, and the stream goes on in order. Where the length of that beginning matters, use
    /// `write`, which tells.
    pub async fn send(&mut self, mut plaintext: &[u8]) -> Result<Vec<Ticket>, TlsError> {
        self.waiter = None;
        self.send_all(drop).await?;
        let mut tickets = Vec::new();
        while !plaintext.is_empty() {
            coop::consume_budget().await;
            if let Some(capacity) = self.wanted(plaintext, Capacity::Sufficient)? {
                self.records.put(self.pool.alloc_async(capacity).await?);
            }
            plaintext = &plaintext[self.fill(plaintext)?..];
            self.send_all(|ticket| tickets.push(ticket)).await?;
        }
        self.stream.flush().await?;
        Ok(tickets)
    }

    /// Returns a future of the fate of a send: ready once the kernel has released the memory. See
    /// [`Stream::released`].
    ///
    /// # Cancel safety
    ///
    /// The send goes on if the future is dropped.
    pub fn released(&self, ticket: Ticket) -> Released<TcpStream> {
        self.stream.released(ticket)
    }

    /// Sends all written records, and waits until everything is accepted and released.
    ///
    /// # Errors
    ///
    /// [`TlsError::Io`], also with the errors of [`Stream::drain`].
    ///
    /// # Cancel safety
    ///
    /// The sends go on if the future is dropped.
    pub async fn drain(&mut self) -> Result<(), TlsError> {
        self.send_all(drop).await?;
        self.stream.drain().await.map_err(|error| TlsError::Io(error.into()))
    }

    /// Sends all written records and `close_notify`: the peer reads the end of the stream. The peer's stream can
    /// still be read.
    ///
    /// # Errors
    ///
    /// [`TlsError::Tls`] and [`TlsError::Io`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the message is kept, and sent before anything else.
    pub async fn finish(&mut self) -> Result<(), TlsError> {
        let finished = self.records.session.finish();
        let sent = poll_fn(|cx| self.poll_flush(cx)).await;
        finished.and(sent)
    }

    /// Takes new keys for sending, and asks the peer to do the same: see [`Session::refresh_keys`].
    ///
    /// # Errors
    ///
    /// Those of [`Session::refresh_keys`], and [`TlsError::Io`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the request is kept, and sent before anything else.
    pub async fn refresh_keys(&mut self) -> Result<(), TlsError> {
        let refreshed = self.records.session.refresh_keys();
        let sent = poll_fn(|cx| self.poll_flush(cx)).await;
        refreshed.and(sent)
    }

    /// Ends the connection in order: sends all written records and `close_notify`, waits for the end of the
    /// peer's stream, and closes the stream beneath as [`Stream::close`] does.
    ///
    /// What the peer still sends is discarded; see the blocking [`close`](super::TlsStream::close). If records
    /// had no room in the socket by the end of `timeout`, the connection is [aborted](Self::abort).
    ///
    /// # Panics
    ///
    /// With a timeout, if the runtime has no timer.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, so is the stream. `close_notify` is sent nevertheless if the socket had room
    /// at the first poll.
    #[must_use = "the stream may not have ended in order"]
    pub async fn close(mut self, timeout: Option<Duration>) -> CloseReport {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        match deadline {
            None => self.await_end().await,
            Some(deadline) => _ = timeout_at(deadline, self.await_end()).await,
        }
        if self.refused.is_some() {
            return self.abort();
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.stream.close(left).await
    }

    /// Ends the connection at once: the peer sees a reset. See [`Stream::abort`].
    pub fn abort(self) -> CloseReport {
        self.stream.abort()
    }

    /// Sends the end, and reads and discards the stream of the peer up to its end.
    async fn await_end(&mut self) {
        // The report has the error of a failed send.
        if self.finish().await.is_ok() {
            while self.records.session.discard()
                && poll_fn(|cx| self.poll_receive(cx)).await.is_ok()
            {}
        }
    }

    /// As [`Records::wanted`], with the alert about an error sent.
    fn wanted(&mut self, plaintext: &[u8], capacity: Capacity) -> Result<Option<usize>, TlsError> {
        let wanted = self.records.wanted(plaintext, capacity);
        self.or_alert(wanted)
    }

    /// As [`Records::fill`], with the alert about an error sent.
    fn fill(&mut self, plaintext: &[u8]) -> Result<usize, TlsError> {
        let filled = self.records.fill(plaintext);
        self.or_alert(filled)
    }

    fn or_alert<T>(&mut self, result: Result<T, TlsError>) -> Result<T, TlsError> {
        if result.is_err() {
            // The first error counts.
            let _ = self.try_send_all(drop);
        }
        result
    }

    /// Waits until there is a buffer to be filled.
    fn poll_buffer(
        &mut self,
        cx: &mut Context<'_>,
        plaintext: &[u8],
    ) -> Poll<Result<(), TlsError>> {
        if let Some(capacity) = self.wanted(plaintext, Capacity::Largest)? {
            // A refused buffer may be the only one of the pool.
            ready!(self.poll_send_all(cx, Side::Writer, drop))?;
            let waiter = match &mut self.waiter {
                Some(waiter) => waiter,
                none => none.insert(self.pool.waiter(capacity)?),
            };
            let buf = ready!(waiter.poll_alloc(cx));
            self.waiter = None;
            self.records.put(buf?);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once from the socket.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut room = ReadBuf::new(self.records.session.room());
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut room))?;
        let count = room.filled().len();
        self.records.session.received(count);
        Poll::Ready(Ok(()))
    }

    /// Sends all written records and outgoing bytes, and waits until the socket has accepted every byte.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        self.waiter = None;
        ready!(self.poll_send_all(cx, Side::Writer, drop))?;
        AsyncWrite::poll_flush(Pin::new(&mut self.stream), cx).map_err(TlsError::Io)
    }

    async fn send_all(&mut self, mut sent: impl FnMut(Ticket)) -> Result<(), TlsError> {
        poll_fn(|cx| self.poll_send_all(cx, Side::Writer, &mut sent)).await
    }

    /// Waits until all written records and outgoing bytes are with the stream. Tells their tickets.
    fn poll_send_all(
        &mut self,
        cx: &mut Context<'_>,
        side: Side,
        mut sent: impl FnMut(Ticket),
    ) -> Poll<Result<(), TlsError>> {
        let result = loop {
            match self.try_send_all(&mut sent) {
                Ok(false) => {}
                result => break result.map(drop),
            }
            let waker = self.waiting.enter(side, cx);
            let mut cx = Context::from_waker(&waker);
            if let Err(error) = ready!(Sink::poll_ready(Pin::new(&mut self.stream), &mut cx)) {
                break Err(error.into());
            }
        };
        self.waiting.wake(cx);
        Poll::Ready(result)
    }

    /// Sends written records and outgoing bytes, as far as the stream takes them now. Returns `true` if the
    /// stream took them all.
    fn try_send_all(&mut self, mut sent: impl FnMut(Ticket)) -> Result<bool, TlsError> {
        while let Some(payload) = self.refused.take().or_else(|| self.records.take_next()) {
            match self.stream.try_send(payload) {
                Err(SendError::WouldBlock(payload)) => {
                    self.refused = Some(payload);
                    return Ok(false);
                }
                result => sent(result?),
            }
        }
        Ok(true)
    }
}

/// The side of a stream that waits for room in the socket.
#[derive(Clone, Copy)]
enum Side {
    Writer,
    /// A read sends, too.
    Reader,
}

/// The tasks that wait for room: the stream beneath keeps one waker.
#[derive(Default)]
struct Waiting([Option<Waker>; 2]);

impl Waiting {
    /// A waker for all waiting tasks, this one included.
    fn enter(&mut self, side: Side, cx: &Context<'_>) -> Waker {
        let own = cx.waker();
        self.0[side as usize] = Some(own.clone());
        match &self.0 {
            [Some(one), Some(other)] if !one.will_wake(other) => {
                Waker::from(Arc::new(Both([one.clone(), other.clone()])))
            }
            _ => own.clone(),
        }
    }

    /// Ends the waits. Another task than this one is woken.
    fn wake(&mut self, cx: &Context<'_>) {
        for waker in self.0.iter_mut().filter_map(Option::take) {
            if !waker.will_wake(cx.waker()) {
                waker.wake();
            }
        }
    }
}

/// The wakers of two tasks.
struct Both([Waker; 2]);

impl Wake for Both {
    fn wake(self: Arc<Self>) {
        self.0.iter().for_each(Waker::wake_by_ref);
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while into.remaining() > 0 {
            let read = this.records.session.read(into.initialize_unfilled());
            let is_sent = match read {
                Ok(Some(_)) => true,
                // A connection that takes no more bytes can still be read. The next send has the error.
                Ok(None) | Err(_) => this.poll_send_all(cx, Side::Reader, drop).is_ready(),
            };
            if let Some(count) = read? {
                into.advance(count);
                break;
            }
            if !is_sent && this.records.session.outgoing_bytes() > MOST_ANSWERS {
                return Poll::Pending;
            }
            ready!(this.poll_receive(cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    /// Encrypts the beginning of `plaintext` into the buffer that is being filled. Sends a full buffer.
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        plaintext: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let budget = ready!(coop::poll_proceed(cx));
        while !plaintext.is_empty() {
            ready!(this.poll_buffer(cx, plaintext))?;
            match this.fill(plaintext)? {
                0 => ready!(this.poll_send_all(cx, Side::Writer, drop))?,
                taken => {
                    if taken < plaintext.len() {
                        // The plaintext is taken, so the next call waits for room.
                        this.try_send_all(drop)?;
                    }
                    budget.made_progress();
                    return Poll::Ready(Ok(taken));
                }
            }
        }
        Poll::Ready(Ok(0))
    }

    /// Sends all written records. Ready when the socket has accepted every byte.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flush(cx).map_err(Into::into)
    }

    /// Sends all written records and `close_notify`, and ends the sending direction. Ready when the kernel has
    /// released everything.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let finished = this.records.session.finish();
        ready!(this.poll_flush(cx))?;
        finished?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("session", &self.records.session)
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io::{Read, Write};

    use ::rustls::{RootCertStore, pki_types::PrivatePkcs8KeyDer};
    use ::tokio::{
        io::AsyncReadExt,
        net::TcpSocket,
        task::{spawn_blocking, yield_now},
        time::sleep,
    };

    use super::*;
    use crate::{
        Policy, Sender,
        sync::{AtomicUsize, Ordering},
    };

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn both_sides_are_woken_and_the_end_of_one_wait_wakes_the_other() {
        let counts = [(); 2].map(|()| Arc::new(Count::default()));
        let woken = || counts.each_ref().map(|count| count.0.load(Ordering::Relaxed));
        let wakers = counts.each_ref().map(|count| Waker::from(Arc::clone(count)));
        let [writer, reader] = wakers.each_ref().map(Context::from_waker);
        let mut waiting = Waiting::default();
        waiting.enter(Side::Writer, &writer).wake();
        assert_eq!(woken(), [1, 0]);
        waiting.enter(Side::Reader, &reader).wake();
        assert_eq!(woken(), [2, 1]);
        waiting.wake(&reader);
        assert_eq!(woken(), [3, 1]);
        waiting.enter(Side::Reader, &reader).wake();
        assert_eq!(woken(), [3, 2], "the writer waits no more");
        waiting.wake(&writer);
        assert_eq!(woken(), [3, 3]);
    }

    const LEN: usize = 64 << 10;

    /// A stream with the role of the server whose socket takes no more, and its peer, which reads nothing.
    async fn stuck(pool: &Pool) -> (TlsStream, Session, TcpStream) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let server = ServerConfig::builder().with_no_client_auth();
        let server = server.with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap();
        let [listener, near] = [(); 2].map(|()| TcpSocket::new_v4().unwrap());
        listener.set_recv_buffer_size(LEN as u32).unwrap();
        near.set_send_buffer_size(LEN as u32).unwrap();
        listener.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = listener.listen(1).unwrap();
        let near = near.connect(listener.local_addr().unwrap()).await.unwrap();
        let mut far = listener.accept().await.unwrap().0.into_std().unwrap();
        far.set_nonblocking(false).unwrap();
        let handshake = spawn_blocking(move || {
            let name = ServerName::try_from("localhost").unwrap();
            let mut peer = Session::client(Arc::new(client), name).unwrap();
            loop {
                peer.process().unwrap();
                far.write_all(&peer.take_outgoing()).unwrap();
                if !peer.is_handshaking() {
                    return (peer, far);
                }
                let count = far.read(peer.room()).unwrap();
                peer.received(count);
            }
        });
        let near = Stream::adopt(Sender::builder().policy(Policy::Never), near).unwrap();
        let mut stream = TlsStream::accept(near, pool, Arc::new(server)).await.unwrap();
        while stream.refused.is_none() {
            poll_fn(|cx| {
                let _ = Pin::new(&mut stream).poll_write(cx, &[0; LEN]);
                Poll::Ready(())
            })
            .await;
            yield_now().await;
        }
        let (peer, far) = handshake.await.unwrap();
        (stream, peer, far)
    }

    #[::tokio::test]
    async fn answers_that_the_peer_does_not_read_are_bounded() {
        const ROUNDS: usize = 40;
        // `rustls` allows 32 requests between records of the application.
        const REQUESTS: usize = 30;
        let pool = Pool::new(LEN, 4).unwrap();
        let (mut stream, mut peer, mut far) = stuck(&pool).await;
        let mut arrived = 0;
        for turn in 0..ROUNDS * REQUESTS {
            let mut buf = pool.alloc(LEN).unwrap();
            if turn % REQUESTS == 0 {
                peer.encrypt(b"x", &mut buf).unwrap();
            }
            // Only a request that is read alone has an answer of its own.
            peer.refresh_keys().unwrap();
            buf.extend_from_slice(&peer.take_outgoing());
            far.write_all(&buf).unwrap();
            // The runtime looks for news of the socket.
            sleep(Duration::from_millis(1)).await;
            poll_fn(|cx| {
                let mut byte = [0];
                let mut read = || Pin::new(&mut stream).poll_read(cx, &mut ReadBuf::new(&mut byte));
                while read().is_ready() {
                    arrived += 1;
                }
                Poll::Ready(())
            })
            .await;
            let bytes = stream.records.session.outgoing_bytes();
            assert!(bytes < MOST_ANSWERS + 1000, "{bytes}");
        }
        assert!(stream.records.session.outgoing_bytes() > MOST_ANSWERS);
        // The peer reads, and everything goes on.
        spawn_blocking(move || io::copy(&mut far, &mut io::sink()));
        for _ in arrived..ROUNDS {
            assert_eq!(stream.read_u8().await.unwrap(), b'x');
        }
    }
}
