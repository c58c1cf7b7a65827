//! The errors of TLS streams.

use std::{error::Error, fmt, io};

use crate::error::{AllocError, SendError, sentences};

sentences! {
    /// The reason of a failed call on a TLS stream or session.
    ///
    /// Converts into [`io::Error`]. The error of a read or of a send stays as it is.
    ///
    /// ```
    /// use std::io;
    /// use pinbuf::rustls::TlsError;
    ///
    /// let error = io::Error::from(TlsError::Truncated);
    /// assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    /// ```
    #[derive(Debug)]
    #[non_exhaustive]
    pub enum TlsError {
        "TLS failed: {error}"
        /// The peer, its certificate or its records were refused, or the peer refused ours. Permanent: every
        /// later call has the same error.
        Tls(error: ::rustls::Error),
        "the stream ended without close_notify, so data may be missing"
        /// An attacker can end a TCP stream, but cannot forge the message `close_notify`.
        Truncated,
        "a read or a send on the socket failed: {error}"
        /// A socket with a read timeout gives [`io::ErrorKind::WouldBlock`]: the read can be tried again. A
        /// failed send is the end of the stream: its records are lost, and the peer refuses all later ones.
        Io(error: io::Error),
        "no buffer for the records: {error}"
        Alloc(error: AllocError),
        "a buffer of {capacity} bytes is too small for a record of one byte; build the pool with larger slots"
        TooSmall {
            /// Capacity of the buffer in bytes.
            capacity: usize,
        },
        "the handshake is not complete"
        Handshaking,
        "close_notify was sent, so nothing more can be"
        Finished,
        "the keys of the connection are used up; open a new connection"
        /// Only with TLS 1.2, whose keys cannot be replaced.
        KeysUsedUp,
        "early data is not supported; set `max_early_data_size` to 0"
        EarlyData,
    }
}

impl Error for TlsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Tls(error) => Some(error),
            Self::Io(error) => Some(error),
            Self::Alloc(error) => Some(error),
            _ => None,
        }
    }
}

impl From<::rustls::Error> for TlsError {
    fn from(error: ::rustls::Error) -> Self {
        Self::Tls(error)
    }
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<AllocError> for TlsError {
    fn from(error: AllocError) -> Self {
        Self::Alloc(error)
    }
}

impl<B> From<SendError<B>> for TlsError {
    /// Drops the buffer.
    fn from(error: SendError<B>) -> Self {
        Self::Io(error.into())
    }
}

impl From<TlsError> for io::Error {
    /// Errors of the socket stay as they are. The others keep the [`TlsError`] as their source.
    fn from(error: TlsError) -> Self {
        let kind = match error {
            TlsError::Io(error) => return error,
            TlsError::Tls(_) => io::ErrorKind::InvalidData,
            TlsError::Truncated => io::ErrorKind::UnexpectedEof,
            TlsError::Alloc(error) => return error.into(),
            TlsError::Finished => io::ErrorKind::BrokenPipe,
            TlsError::Handshaking => io::ErrorKind::NotConnected,
            TlsError::TooSmall { .. } | TlsError::EarlyData => io::ErrorKind::InvalidInput,
            TlsError::KeysUsedUp => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
