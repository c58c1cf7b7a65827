//! A blocking TLS stream.

use std::{
    fmt,
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use ::rustls::{ClientConfig, ServerConfig, pki_types::ServerName};

use super::{
    error::TlsError,
    records::{Capacity, Records},
    session::Session,
};
use crate::{
    id::Ticket,
    pool::Pool,
    sender::{CloseReport, IntoPayload, Sender},
    sync::Arc,
};

/// A blocking TLS stream over TCP, whose records are encrypted straight into buffers of a pool.
///
/// | to | use |
/// |---|---|
/// | send, and know when the memory was released | [`send`](Self::send): a ticket for each buffer |
/// | write by the standard trait | [`Write`]: records are collected in a buffer until it is full, or until [`flush`](Write::flush) |
/// | read | [`Read`] |
/// | end the own direction, and go on reading | [`finish`](Self::finish) |
/// | end the connection | [`close`](Self::close) |
///
/// The socket is in blocking mode. Its read timeout, if any, bounds each wait for the peer:
/// [`Read::read`] then fails with [`WouldBlock`](io::ErrorKind::WouldBlock) and can be tried again. A read
/// also sends: written records, and answers to requests for new keys. A peer that takes nothing is bounded by
/// [`max_hold`](crate::sender::SenderBuilder::max_hold) of the sender.
///
/// # Buffers
///
/// The records of [`send`](Self::send) are in buffers of the smallest size class that takes them, at most the
/// largest; those of [`Write`] in buffers of the largest class. Each buffer gets as many records as fit. A
/// record is never longer than a buffer: a pool of 4 KiB slots makes records of 4 KiB. Slots of 64 KiB and more
/// pay: see [`guide::tls`](crate::guide::tls).
///
/// Handshake, alerts and new keys need no buffer. So neither a handshake nor an end waits for the pool.
///
/// # Writing
///
/// Each call of [`write`](Write::write) makes records of its own, so small writes are best collected in an
/// [`io::BufWriter`]. A read that has to wait for the peer sends the collected records first. A drop discards
/// them.
///
/// # The end
///
/// [`close`](Self::close) tells the peer the end with `close_notify`. A drop does not: the peer sees a truncated
/// stream, and what was sent is delivered in the background, as after the drop of a [`Sender`].
///
/// A stream of the peer that ends without `close_notify` is an error of the reader, [`TlsError::Truncated`]
/// ([`UnexpectedEof`](io::ErrorKind::UnexpectedEof)).
///
/// # Examples
///
/// ```
/// use pinbuf::{Pool, Sender, rustls::TlsStream};
/// use std::{io::{Read, Write}, net::{TcpListener, TcpStream}, thread, time::Duration};
/// # use std::sync::Arc;
/// # use ::rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::{PrivatePkcs8KeyDer, ServerName}};
/// # let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
/// # let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
/// # let mut roots = RootCertStore::empty();
/// # roots.add(made.cert.der().clone())?;
/// # let client = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
/// # let server = Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into())?);
///
/// // `client` and `server` are configurations of `rustls`.
/// let pool = Pool::new(64 << 10, 8)?;
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let socket = TcpStream::connect(listener.local_addr()?)?;
/// let peer = thread::spawn({
///     let pool = pool.clone();
///     move || {
///         let sender = Sender::builder().adopt(listener.accept()?.0)?;
///         let mut stream = TlsStream::accept(sender, &pool, server)?;
///         let mut question = Vec::new();
///         stream.read_to_end(&mut question)?; // up to close_notify
///         stream.write_all(&question)?;
///         Ok::<_, std::io::Error>(stream.close(Some(Duration::from_secs(30))))
///     }
/// });
///
/// let sender = Sender::builder().adopt(socket)?;
/// let mut stream = TlsStream::connect(sender, &pool, client, ServerName::try_from("localhost")?)?;
/// let tickets = stream.send(&[7; 100_000])?;
/// assert_eq!(tickets.len(), 2, "two buffers of 64 KiB");
/// stream.finish()?;
/// let mut answer = Vec::new();
/// stream.read_to_end(&mut answer)?;
/// assert_eq!(answer, [7; 100_000]);
/// assert!(stream.close(Some(Duration::from_secs(30))).drained);
/// assert!(peer.join().unwrap()?.drained);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TlsStream {
    records: Records,
    sender: Sender<TcpStream>,
    pool: Pool,
}

impl TlsStream {
    /// Connects to the server `name`: makes the handshake as a client.
    ///
    /// # Errors
    ///
    /// Those of [`Session::client`], [`TlsError::Tls`], [`TlsError::Truncated`] and [`TlsError::Io`]. The sender
    /// is dropped.
    pub fn connect(
        sender: Sender<TcpStream>,
        pool: &Pool,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, TlsError> {
        Self::new(Session::client(config, name)?, sender, pool).handshake()
    }

    /// Accepts a client: makes the handshake as a server.
    ///
    /// # Errors
    ///
    /// Those of [`Session::server`], [`TlsError::Tls`], [`TlsError::Truncated`] and [`TlsError::Io`]. The sender
    /// is dropped.
    pub fn accept(
        sender: Sender<TcpStream>,
        pool: &Pool,
        config: Arc<ServerConfig>,
    ) -> Result<Self, TlsError> {
        Self::new(Session::server(config)?, sender, pool).handshake()
    }

    fn new(session: Session, sender: Sender<TcpStream>, pool: &Pool) -> Self {
        Self { records: Records::new(session, pool), sender, pool: pool.clone() }
    }

    fn handshake(mut self) -> Result<Self, TlsError> {
        loop {
            let processed = self.records.session.process();
            let sent = self.send_all(None);
            processed.and(sent)?;
            if !self.records.session.is_handshaking() {
                return Ok(self);
            }
            self.receive()?;
        }
    }

    /// The TLS connection: [`Session::connection`] has version, ALPN and the certificates of the peer.
    pub fn session(&self) -> &Session {
        &self.records.session
    }

    /// The sender: counters, fates, the socket.
    pub fn sender(&self) -> &Sender<TcpStream> {
        &self.sender
    }

    /// The sender, for [`wait`](Sender::wait) and [`reap`](Sender::reap). A send past the stream breaks the
    /// TLS connection.
    pub fn sender_mut(&mut self) -> &mut Sender<TcpStream> {
        &mut self.sender
    }

    /// Encrypts `plaintext` into buffers of the pool, and sends the buffers. Returns their tickets, in order.
    ///
    /// Blocks until the socket has accepted every byte, and waits for free buffers meanwhile. Returns before
    /// the release: see [`Sender::wait`]. Sends written records first.
    ///
    /// # Errors
    ///
    /// [`TlsError::Io`], [`TlsError::Alloc`], [`TlsError::TooSmall`], and those of [`Session::encrypt`]. Some of
    /// `plaintext` may have been sent.
    pub fn send(&mut self, mut plaintext: &[u8]) -> Result<Vec<Ticket>, TlsError> {
        self.send_written()?;
        let mut tickets = Vec::new();
        while !plaintext.is_empty() {
            plaintext = &plaintext[self.fill(plaintext, Capacity::Sufficient)?..];
            tickets.extend(self.send_written()?);
        }
        Ok(tickets)
    }

    /// Sends all written records, and waits until the kernel has accepted and released everything, for
    /// `timeout` at most (`None`: without limit).
    ///
    /// # Errors
    ///
    /// Those of [`Write::flush`], and those of [`Sender::drain`] as [`TlsError::Io`].
    pub fn drain(&mut self, timeout: Option<Duration>) -> Result<(), TlsError> {
        self.send_written()?;
        self.sender.drain(timeout).map_err(|error| TlsError::Io(error.into()))
    }

    /// Sends all written records and `close_notify`: the peer reads the end of the stream. The peer's stream can
    /// still be read.
    ///
    /// # Errors
    ///
    /// As [`Write::flush`].
    pub fn finish(&mut self) -> Result<(), TlsError> {
        self.finish_until(None)
    }

    fn finish_until(&mut self, deadline: Option<Instant>) -> Result<(), TlsError> {
        let finished = self.records.session.finish();
        let sent = self.send_all(deadline);
        finished.and(sent)
    }

    /// Takes new keys for sending, and asks the peer to do the same: see [`Session::refresh_keys`].
    ///
    /// # Errors
    ///
    /// Those of [`Session::refresh_keys`] and [`Write::flush`].
    pub fn refresh_keys(&mut self) -> Result<(), TlsError> {
        let refreshed = self.records.session.refresh_keys();
        let sent = self.send_all(None);
        refreshed.and(sent)
    }

    /// Ends the connection in order: sends all written records and `close_notify`, waits for the end of the
    /// peer's stream, and closes the sender as [`Sender::close`] does.
    ///
    /// What the peer still sends is discarded. Without this wait, bytes that the peer sent meanwhile (a server
    /// of TLS 1.3 sends session tickets) would make the kernel reset the connection, and the peer could lose the
    /// last records. A peer that does not end its stream holds the call for the whole `timeout`, or for ever
    /// without one (`None`). A connection with everything released by then is `drained` nevertheless.
    ///
    /// The report is that of [`Sender::close`], and tells nothing about the peer's program.
    #[must_use = "the stream may not have ended in order"]
    pub fn close(mut self, timeout: Option<Duration>) -> CloseReport {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        // The report has the error of a failed send.
        if self.finish_until(deadline).is_ok() {
            self.await_end(deadline);
        }
        self.sender.close(left(deadline))
    }

    /// Ends the connection at once: the peer sees a reset. See [`Sender::abort`].
    pub fn abort(self) -> CloseReport {
        self.sender.abort()
    }

    /// Reads and discards the stream of the peer up to its end.
    fn await_end(&mut self, deadline: Option<Instant>) {
        while self.records.session.discard() {
            let left = left(deadline);
            let is_over = left.is_some_and(|left| left.is_zero());
            if is_over
                || self.sender.get_ref().set_read_timeout(left).is_err()
                || self.receive().is_err()
            {
                return;
            }
        }
    }

    /// Encrypts the beginning of `plaintext` into the buffer that is being filled. Returns 0 if the buffer is
    /// full.
    fn fill(&mut self, plaintext: &[u8], capacity: Capacity) -> Result<usize, TlsError> {
        let filled = self.try_fill(plaintext, capacity);
        if filled.is_err() {
            // The alert. The first error counts.
            let _ = self.send_all(None);
        }
        filled
    }

    fn try_fill(&mut self, plaintext: &[u8], capacity: Capacity) -> Result<usize, TlsError> {
        if let Some(capacity) = self.records.wanted(plaintext, capacity)? {
            self.records.put(self.pool.alloc(capacity)?);
        }
        self.records.fill(plaintext)
    }

    /// Reads once from the socket.
    fn receive(&mut self) -> Result<(), TlsError> {
        loop {
            match self.sender.get_ref().read(self.records.session.room()) {
                Ok(count) => {
                    self.records.session.received(count);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends all written records, and then the outgoing bytes of the session.
    fn send_all(&mut self, deadline: Option<Instant>) -> Result<(), TlsError> {
        while let Some(payload) = self.records.take_next() {
            self.transmit(payload, deadline)?;
        }
        Ok(())
    }

    /// Sends the buffer that is being filled.
    fn send_written(&mut self) -> Result<Option<Ticket>, TlsError> {
        self.records.take_written().map(|buf| self.transmit(buf, None)).transpose()
    }

    fn transmit<P: IntoPayload>(
        &mut self,
        payload: P,
        deadline: Option<Instant>,
    ) -> Result<Ticket, TlsError> {
        let sent = match left(deadline) {
            None => self.sender.send(payload),
            Some(left) => self.sender.send_timeout(payload, left),
        };
        Ok(sent?)
    }
}

/// The time up to a deadline.
fn left(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
}

impl Read for TlsStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while !out.is_empty() {
            let read = self.records.session.read(out);
            // A connection that takes no more bytes can still be read. The next send has the error.
            let _ = match &read {
                Ok(None) | Err(_) => self.send_all(None),
                Ok(Some(_)) => Ok(()),
            };
            if let Some(count) = read? {
                return Ok(count);
            }
            self.receive()?;
        }
        Ok(0)
    }
}

impl Write for TlsStream {
    /// Encrypts the beginning of `plaintext` into the buffer that is being filled. Sends a full buffer.
    fn write(&mut self, plaintext: &[u8]) -> io::Result<usize> {
        while !plaintext.is_empty() {
            let taken = self.fill(plaintext, Capacity::Largest)?;
            if taken < plaintext.len() {
                self.send_written()?;
            }
            if taken > 0 {
                return Ok(taken);
            }
        }
        Ok(0)
    }

    /// Sends all written records. Returns when the socket has accepted every byte.
    fn flush(&mut self) -> io::Result<()> {
        self.send_written()?;
        Ok(())
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("session", &self.records.session)
            .field("sender", &self.sender)
            .finish_non_exhaustive()
    }
}
