//! A TLS connection without a socket.

use std::{
    collections::VecDeque,
    fmt,
    io::{Read, Write},
    ops::Range,
};

use ::rustls::{
    ClientConfig, CommonState, Error, InvalidMessage, ServerConfig,
    client::UnbufferedClientConnection,
    pki_types::ServerName,
    server::UnbufferedServerConnection,
    unbuffered::{
        AppDataRecord, ConnectionState, EncodeError, EncryptError, InsufficientSizeError,
        UnbufferedStatus, WriteTraffic,
    },
};

use super::error::TlsError;
use crate::{buf::PinnedBuf, sync::Arc};

/// The longest fragment of plaintext, and the header of a record (RFC 8446, 5.1).
const MAX_FRAGMENT: usize = 1 << 14;
const HEADER: usize = 5;

/// The first room for received bytes, and the most: a handshake message of `rustls` fits.
const FIRST_ROOM: usize = 1 << 14;
const MOST_ROOM: usize = 1 << 16;

/// A TLS connection without a socket: turns received bytes into plaintext, and plaintext into filled
/// buffers.
///
/// Nothing here blocks or makes a system call. [`TlsStream`](super::TlsStream) is a session with a socket
/// and a sender; an event loop or an async runtime can drive a session in the same way:
///
/// 1. Call [`process`](Self::process), then send the bytes of [`take_outgoing`](Self::take_outgoing).
/// 2. While [`is_handshaking`](Self::is_handshaking), read from the socket into [`room`](Self::room), tell
///    [`received`](Self::received), and begin again.
/// 3. Afterwards [`read`](Self::read) gives plaintext, and asks for more bytes of the peer.
///    [`encrypt`](Self::encrypt) appends records to a buffer.
/// 4. [`finish`](Self::finish) makes the message `close_notify`.
///
/// # Order
///
/// Records are numbered, so the bytes must be sent in the order in which the session gave them. A buffer
/// with records goes before the bytes of a later [`take_outgoing`](Self::take_outgoing). Every call can
/// make outgoing bytes: the peer may have asked for new keys, or deserve an alert. So after each call but
/// `encrypt`, send the outgoing bytes, also after a failed call. `encrypt` takes them along.
///
/// # Errors
///
/// An error of `rustls` is permanent, and every later call has it too. Plaintext that was received before
/// can still be read.
///
/// # Examples
///
/// Two sessions in one thread:
///
/// ```
/// use pinbuf::{Pool, rustls::{Session, TlsError}};
/// # use std::sync::Arc;
/// # use ::rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::{PrivatePkcs8KeyDer, ServerName}};
/// # let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
/// # let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
/// # let mut roots = RootCertStore::empty();
/// # roots.add(made.cert.der().clone())?;
/// # let client = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
/// # let server = Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into())?);
///
/// /// Carries the outgoing bytes of a session to its peer.
/// fn carry(from: &mut Session, to: &mut Session) -> Result<(), TlsError> {
///     from.process()?;
///     deliver(&from.take_outgoing(), to)
/// }
///
/// fn deliver(mut bytes: &[u8], to: &mut Session) -> Result<(), TlsError> {
///     while !bytes.is_empty() {
///         let room = to.room();
///         let count = room.len().min(bytes.len());
///         room[..count].copy_from_slice(&bytes[..count]);
///         to.received(count);
///         to.process()?;
///         bytes = &bytes[count..];
///     }
///     Ok(())
/// }
///
/// // `client` and `server` are configurations of `rustls`.
/// let mut client = Session::client(client, ServerName::try_from("localhost")?)?;
/// let mut server = Session::server(server)?;
/// while client.is_handshaking() || server.is_handshaking() {
///     carry(&mut client, &mut server)?;
///     carry(&mut server, &mut client)?;
/// }
///
/// let pool = Pool::new(64 << 10, 1)?;
/// let mut buf = pool.alloc(64 << 10)?;
/// assert_eq!(client.encrypt(b"hello", &mut buf)?, 5);
/// deliver(&buf, &mut server)?;
/// let mut plaintext = [0; 100];
/// assert_eq!(server.read(&mut plaintext)?, Some(5));
/// assert_eq!(&plaintext[..5], b"hello");
/// assert_eq!(server.read(&mut plaintext)?, None, "more bytes of the peer are needed");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Session {
    connection: Connection,
    /// The longest fragment of plaintext in a record.
    max_fragment: usize,
    incoming: Incoming,
    yielded: Yielded,
    /// The first error of the connection.
    failed: Option<Error>,
}

static_assertions::assert_impl_all!(Session: Send, Sync);

enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// Evaluates an expression about either kind of connection: a common trait is missing.
macro_rules! either {
    ($connection:expr, $name:ident => $value:expr) => {
        match $connection {
            Connection::Client($name) => $value,
            Connection::Server($name) => $value,
        }
    };
}

/// Evaluates an expression with the [`WriteTraffic`] of a session that was processed.
macro_rules! with_traffic {
    ($session:expr, $name:ident => $value:expr) => {
        either!(&mut $session.connection, connection => {
            let status = connection.process_tls_records($session.incoming.bytes());
            #[allow(unused_mut, reason = "not every expression changes it")]
            let mut $name = traffic(status)?;
            $value
        })
    };
}

impl Session {
    /// A session with the server `name`.
    ///
    /// # Errors
    ///
    /// [`TlsError::Tls`] with the error of `rustls` about the configuration.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, TlsError> {
        let max_fragment = max_fragment(config.max_fragment_size);
        let connection = UnbufferedClientConnection::new(config, name)?;
        Ok(Self::new(Connection::Client(connection), max_fragment))
    }

    /// A session with a client.
    ///
    /// # Errors
    ///
    /// [`TlsError::EarlyData`] if the configuration accepts early data, and [`TlsError::Tls`] with the error
    /// of `rustls` about the configuration.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        if config.max_early_data_size > 0 {
            return Err(TlsError::EarlyData);
        }
        let max_fragment = max_fragment(config.max_fragment_size);
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Self::new(Connection::Server(connection), max_fragment))
    }

    fn new(connection: Connection, max_fragment: usize) -> Self {
        let (incoming, yielded) = Default::default();
        Self { connection, max_fragment, incoming, yielded, failed: None }
    }

    /// The facts of the connection: version, cipher suite, ALPN, certificates of the peer.
    pub fn connection(&self) -> &CommonState {
        either!(&self.connection, connection => connection)
    }

    /// Returns `true` until the handshake is complete.
    pub fn is_handshaking(&self) -> bool {
        self.connection().is_handshaking()
    }

    /// The place for bytes of the peer; never empty. Tell [`received`](Self::received) the number of bytes.
    pub fn room(&mut self) -> &mut [u8] {
        self.incoming.room()
    }

    /// Takes in the first `count` bytes of [`room`](Self::room). A count of 0 is the end of the peer's
    /// stream, as with [`Read::read`].
    ///
    /// # Panics
    ///
    /// If `count` is more than the length of the room.
    pub fn received(&mut self, count: usize) {
        self.incoming.received(count);
    }

    /// Processes all received bytes: handshake messages, alerts, new keys, records.
    ///
    /// The session keeps the plaintext for [`read`](Self::read), without a limit. So process no more than
    /// the reader takes.
    ///
    /// # Errors
    ///
    /// [`TlsError::Tls`], and [`TlsError::Truncated`] if the stream of the peer ended within the handshake.
    pub fn process(&mut self) -> Result<(), TlsError> {
        self.drive(&mut &mut [][..])?;
        if self.incoming.is_ended && self.is_handshaking() {
            return Err(TlsError::Truncated);
        }
        Ok(())
    }

    /// The bytes that the connection has to send by itself: handshake, alerts, answers to a request for new
    /// keys. Empty if there are none.
    #[must_use = "the bytes are to be sent"]
    pub fn take_outgoing(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.yielded.outgoing)
    }

    /// The number of bytes that [`take_outgoing`](Self::take_outgoing) returns now.
    #[cfg(feature = "tokio")]
    pub(super) fn outgoing_bytes(&self) -> usize {
        self.yielded.outgoing.len()
    }

    /// Reads plaintext, as much as was received and fits.
    ///
    /// | result | meaning |
    /// |---|---|
    /// | `Some(0)` | the peer has sent `close_notify`: the end, in order |
    /// | `Some(count)` | so many bytes of plaintext |
    /// | `None` | more bytes of the peer are needed |
    ///
    /// # Errors
    ///
    /// [`TlsError::Truncated`] if the stream of the peer ended without `close_notify`, and
    /// [`TlsError::Tls`].
    pub fn read(&mut self, out: &mut [u8]) -> Result<Option<usize>, TlsError> {
        let kept = self.yielded.plaintext.read(out)?;
        if kept > 0 {
            return Ok(Some(kept));
        }
        let (len, mut unfilled) = (out.len(), out);
        let result = self.drive(&mut unfilled);
        match len - unfilled.len() {
            0 => {}
            // An error waits for the next call.
            filled => return Ok(Some(filled)),
        }
        result?;
        match (self.yielded.is_closed, self.incoming.is_ended) {
            (true, _) => Ok(Some(0)),
            (false, true) => Err(TlsError::Truncated),
            (false, false) => Ok(None),
        }
    }

    /// Encrypts the beginning of `plaintext` into records at the end of `buf`, as many as fit, and returns
    /// the number of bytes encrypted. Outgoing bytes of the connection come first.
    ///
    /// A result smaller than the length of `plaintext` means a full buffer: send the buffer, and encrypt
    /// what is left into the next. The result is 0 if not even a record of one byte fits.
    ///
    /// # Errors
    ///
    /// [`TlsError::Handshaking`], [`TlsError::Finished`], [`TlsError::KeysUsedUp`] and [`TlsError::Tls`]. The
    /// buffer may then have got outgoing bytes.
    pub fn encrypt(&mut self, plaintext: &[u8], buf: &mut PinnedBuf) -> Result<usize, TlsError> {
        self.prepare()?;
        let outgoing = &mut self.yielded.outgoing;
        let first = outgoing.len().min(buf.capacity() - buf.len());
        buf.extend_from_slice(&outgoing[..first]);
        outgoing.drain(..first);
        if plaintext.is_empty() || !outgoing.is_empty() {
            return Ok(0);
        }
        let mut result = Ok((0, 0));
        buf.append_with(|room| {
            result = self.seal(plaintext, room);
            result.as_ref().map_or(0, |(_, written)| *written)
        });
        self.sealed(result.map(|(taken, _)| taken))
    }

    /// The number of bytes that `plaintext` becomes when encrypted.
    ///
    /// # Errors
    ///
    /// As [`encrypt`](Self::encrypt).
    pub fn encrypted_len(&mut self, plaintext: &[u8]) -> Result<usize, TlsError> {
        self.prepare()?;
        let result = with_traffic!(self, traffic => encrypted_len(&mut traffic, plaintext));
        self.sealed(result)
    }

    /// Makes the message `close_notify`, which ends the stream for the peer. The peer's stream can still be
    /// read. A second call does nothing.
    ///
    /// # Errors
    ///
    /// [`TlsError::Handshaking`] and [`TlsError::Tls`].
    pub fn finish(&mut self) -> Result<(), TlsError> {
        self.process()?;
        if !self.yielded.is_finished {
            // Without room for it the message is queued, and processing yields the message.
            with_traffic!(self, traffic => traffic.queue_close_notify(&mut []).ok());
            self.yielded.is_finished = true;
        }
        self.process()
    }

    /// Takes new keys for sending, and asks the peer to do the same (TLS 1.3).
    ///
    /// `rustls` does so by itself before the keys are used up.
    ///
    /// # Errors
    ///
    /// As [`encrypt`](Self::encrypt), and [`TlsError::Tls`] with TLS 1.2, which has no new keys. The connection
    /// lasts then.
    pub fn refresh_keys(&mut self) -> Result<(), TlsError> {
        self.prepare()?;
        with_traffic!(self, traffic => traffic.refresh_traffic_keys()?);
        self.process()
    }

    /// Discards received plaintext. Returns `true` if the stream of the peer goes on.
    pub(super) fn discard(&mut self) -> bool {
        let mut discarded = [0; 4096];
        loop {
            match self.read(&mut discarded) {
                Ok(Some(1..)) => {}
                read => return matches!(read, Ok(None)),
            }
        }
    }

    /// Processes all received bytes, before records are made.
    fn prepare(&mut self) -> Result<(), TlsError> {
        self.process()?;
        if self.yielded.is_finished {
            return Err(TlsError::Finished);
        }
        Ok(())
    }

    /// Encrypts as much of `plaintext` into records as `room` takes. Returns the lengths of plaintext and
    /// records.
    fn seal(&mut self, plaintext: &[u8], room: &mut [u8]) -> Result<(usize, usize), TlsError> {
        let fragment = self.max_fragment;
        with_traffic!(self, traffic => {
            let overhead = encrypted_len(&mut traffic, &plaintext[..1])? - 1;
            let record = fragment + overhead;
            let fits = room.len() / record * fragment
                + (room.len() % record).saturating_sub(overhead);
            let mut taken = plaintext.len().min(fits);
            while taken > 0 {
                match traffic.encrypt(&plaintext[..taken], room) {
                    Ok(written) => return Ok((taken, written)),
                    // The request for new keys takes room, too.
                    Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => {
                        taken = taken.saturating_sub(required_size - room.len());
                    }
                    Err(EncryptError::EncryptExhausted) => return Err(TlsError::KeysUsedUp),
                }
            }
            Ok((0, 0))
        })
    }

    /// Takes in that `rustls` ends the stream when the keys are used up.
    fn sealed<T>(&mut self, result: Result<T, TlsError>) -> Result<T, TlsError> {
        if let Err(TlsError::KeysUsedUp) = result {
            self.yielded.is_finished = true;
            self.process()?;
        }
        result
    }

    /// Lets the connection process the received bytes until it needs more, or `out` is full. Shortens `out`
    /// by what was written.
    fn drive(&mut self, out: &mut &mut [u8]) -> Result<(), TlsError> {
        if let Some(error) = &self.failed {
            return Err(error.clone().into());
        }
        let has_reader = !out.is_empty();
        loop {
            match self.step(out) {
                Ok(Step::Done) if has_reader && out.is_empty() => return Ok(()),
                Ok(Step::Idle) if self.incoming.is_full() => {
                    return Err(self.fail(InvalidMessage::MessageTooLarge.into(), out));
                }
                // The answer to a request for new keys is no step of its own.
                Ok(Step::Idle) if !self.connection().wants_write() => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(self.fail(error, out)),
            }
        }
    }

    /// Keeps the first error of the connection, and yields the alert about the error.
    fn fail(&mut self, error: Error, out: &mut &mut [u8]) -> TlsError {
        while self.connection().wants_write() && self.step(out).is_ok() {}
        self.failed = Some(error.clone());
        error.into()
    }

    fn step(&mut self, out: &mut &mut [u8]) -> Result<Step, Error> {
        either!(&mut self.connection, connection => {
            let status = connection.process_tls_records(self.incoming.bytes());
            let mut discard = status.discard;
            let step = status.state.and_then(|state| self.yielded.take(state, &mut discard, out));
            self.incoming.discard(discard);
            step
        })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("version", &self.connection().protocol_version())
            .field("is_handshaking", &self.is_handshaking())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

fn max_fragment(max_fragment_size: Option<usize>) -> usize {
    // The setting counts the header; `rustls` refuses less than 32.
    max_fragment_size.map_or(MAX_FRAGMENT, |size| size.saturating_sub(HEADER).max(1))
}

/// The right to encrypt, which a processed connection gives after the handshake.
fn traffic<'c, D>(status: UnbufferedStatus<'c, '_, D>) -> Result<WriteTraffic<'c, D>, TlsError> {
    debug_assert_eq!(status.discard, 0, "all received bytes were processed");
    match status.state? {
        ConnectionState::WriteTraffic(traffic) => Ok(traffic),
        _ => Err(TlsError::Handshaking),
    }
}

fn encrypted_len<D>(
    traffic: &mut WriteTraffic<'_, D>,
    plaintext: &[u8],
) -> Result<usize, TlsError> {
    match traffic.encrypt(plaintext, &mut []) {
        Ok(len) => Ok(len),
        Err(EncryptError::InsufficientSize(error)) => Ok(error.required_size),
        Err(EncryptError::EncryptExhausted) => Err(TlsError::KeysUsedUp),
    }
}

/// Received bytes that the connection has yet to process.
#[derive(Default)]
struct Incoming {
    memory: Vec<u8>,
    unprocessed: Range<usize>,
    is_ended: bool,
}

impl Incoming {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.unprocessed.clone()]
    }

    fn room(&mut self) -> &mut [u8] {
        let len = self.memory.len();
        if self.unprocessed.end == len && len < MOST_ROOM {
            // The last read has filled the room: more room saves calls.
            self.memory.resize((2 * len).max(FIRST_ROOM), 0);
        }
        self.memory.copy_within(self.unprocessed.clone(), 0);
        self.unprocessed = 0..self.unprocessed.len();
        &mut self.memory[self.unprocessed.end..]
    }

    fn received(&mut self, count: usize) {
        assert!(count <= self.memory.len() - self.unprocessed.end, "{count} bytes are no room");
        self.unprocessed.end += count;
        self.is_ended |= count == 0;
    }

    fn discard(&mut self, count: usize) {
        self.unprocessed.start += count;
    }

    fn is_full(&self) -> bool {
        self.unprocessed.len() == MOST_ROOM
    }
}

/// One step of a connection.
enum Step {
    Done,
    /// The next step needs more bytes of the peer, or plaintext to send.
    Idle,
}

/// The yield of a connection, until it is taken.
#[derive(Default)]
struct Yielded {
    /// Plaintext that had no place in the slice of a reader.
    plaintext: VecDeque<u8>,
    outgoing: Vec<u8>,
    /// The peer has sent `close_notify`.
    is_closed: bool,
    /// `close_notify` was made.
    is_finished: bool,
}

impl Yielded {
    /// Takes the yield of one state. Adds to `discard`, and shortens `out` by what was written.
    fn take<D>(
        &mut self,
        state: ConnectionState<'_, '_, D>,
        discard: &mut usize,
        out: &mut &mut [u8],
    ) -> Result<Step, Error> {
        match state {
            ConnectionState::ReadTraffic(mut records) => {
                while let Some(record) = records.next_record() {
                    let AppDataRecord { discard: more, payload } = record?;
                    *discard += more;
                    let written = out.write(payload).expect("a slice takes what fits");
                    self.plaintext.extend(&payload[written..]);
                }
            }
            ConnectionState::EncodeTlsData(mut message) => {
                let start = self.outgoing.len();
                if let Err(EncodeError::InsufficientSize(error)) = message.encode(&mut []) {
                    self.outgoing.resize(start + error.required_size, 0);
                    message.encode(&mut self.outgoing[start..]).expect("the room was made");
                }
            }
            // Outgoing bytes are sent before anything else.
            ConnectionState::TransmitTlsData(transmission) => transmission.done(),
            ConnectionState::PeerClosed => self.is_closed = true,
            ConnectionState::WriteTraffic(mut traffic) => {
                // `rustls` answers a request for new keys with the next record. A peer that only sends
                // would wait for ever. The attempt without room makes no record, but queues the answer.
                if !self.is_finished {
                    let _ = traffic.encrypt(&[0], &mut []);
                }
                return Ok(Step::Idle);
            }
            ConnectionState::BlockedHandshake | ConnectionState::Closed => return Ok(Step::Idle),
            state => return Err(Error::General(format!("unexpected state {state:?}"))),
        }
        Ok(Step::Done)
    }
}
