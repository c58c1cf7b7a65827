//! The stream below HTTP.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pinbuf::{Payload, rustls::tokio::TlsStream, tokio::Stream};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf},
    time::timeout,
};

use crate::pieces::{PATIENCE, Piece, SMALL_PIECE};

/// The time for a client to end its side. Bytes that it still sends are read and dropped: a close with unread
/// bytes resets the connection, and the answer might be lost.
const LINGER: Duration = Duration::from_secs(2);

/// A connection.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(Stream),
    Tls(Box<TlsStream>),
}

impl Transport {
    /// Sends the pieces, and returns when the socket has accepted all of them. Their memory is held until
    /// the kernel has released it.
    pub(crate) async fn send(&mut self, pieces: Vec<Piece>) -> io::Result<()> {
        match self {
            // A head and a small body go in one call, and in one packet.
            Self::Plain(stream) => {
                let mut payloads = pieces.into_iter().map(Payload::from).collect();
                stream.send_vectored(&mut payloads).await?;
                Ok(())
            }
            Self::Tls(stream) => {
                for piece in &pieces {
                    encrypt(stream, piece).await?;
                }
                stream.flush().await
            }
        }
    }

    /// Ends the connection in order: all that was sent arrives, as long as the client goes on reading.
    ///
    /// The limit of the wait is `max_hold`.
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.shutdown().await?,
            Self::Tls(stream) => stream.shutdown().await?,
        }
        let rest = async { while matches!(self.read(&mut [0; 4096]).await, Ok(1..)) {} };
        let _ = timeout(LINGER, rest).await;
        Ok(())
    }

    /// Ends the connection at once: the client sees a reset.
    pub(crate) fn abort(self) {
        match self {
            Self::Plain(stream) => _ = stream.abort(),
            Self::Tls(stream) => _ = stream.abort(),
        }
    }
}

/// Encrypts a piece into buffers of the stream's pool, and sends the full buffers.
///
/// While no large buffer is free, or the socket has no room, small pieces go into small buffers, of which there is
/// one for each connection.
async fn encrypt(stream: &mut TlsStream, mut plaintext: &[u8]) -> io::Result<()> {
    while !plaintext.is_empty() {
        let count = match timeout(PATIENCE, stream.write(plaintext)).await {
            Ok(written) => written?,
            // Nothing was written.
            Err(_) => {
                let small = plaintext.len().min(SMALL_PIECE);
                stream.send(&plaintext[..small]).await.map_err(io::Error::from)?;
                small
            }
        };
        plaintext = &plaintext[count..];
    }
    Ok(())
}

impl From<Piece> for Payload {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Shared(buf) => buf.into(),
            Piece::Owned(bytes) => bytes.into(),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}
