//! The half of a stream that reads.

use std::{
    future::poll_fn,
    io,
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::tokio::{
    io::{AsyncRead, ReadBuf},
    task::coop,
};

use super::{connection::Connection, socket::ReadSocket};
use crate::{error::OsError, sender::Socket, sync::Arc};

/// The half of a [`Stream`](super::Stream) that reads; from
/// [`Stream::into_split`](super::Stream::into_split).
///
/// The half moves to any task or thread. A read is cancel safe: a dropped read has read nothing. No
/// notification wakes a task that reads a stream. A task that waits for a datagram may be woken once by
/// each: the news of an error is the same.
///
/// A read of 0 bytes is the end of the peer's whole stream. After a reset, or after TCP has given the peer up,
/// every read fails, also if a send was told of the error first.
///
/// See the example of [`WriteHalf`](super::WriteHalf).
#[derive(Debug)]
pub struct ReadHalf<S: Socket = std::net::TcpStream> {
    connection: Arc<Connection<S>>,
    /// The error of an earlier read.
    failed: Option<OsError>,
}

impl<S: Socket> ReadHalf<S> {
    pub(super) fn new(connection: Arc<Connection<S>>) -> Self {
        Self { connection, failed: None }
    }

    /// The socket, for its options.
    pub fn get_ref(&self) -> &S {
        self.connection.reap().get_ref()
    }

    /// The error that has cut the peer's stream, if the kernel told a send or an earlier read.
    ///
    /// The kernel tells each error once, and from then on the stream seems to end in order.
    fn cut(&self) -> Option<io::Error> {
        self.failed.or(self.connection.reap().cut()).map(io::Error::from)
    }
}

impl ReadHalf<UdpSocket> {
    /// Receives a datagram, and returns its length and its source. What does not fit is lost.
    ///
    /// # Errors
    ///
    /// The error of `recvfrom(2)`: over a connected socket also `ECONNREFUSED`, about an earlier send. The
    /// kernel tells each error once, so a later send may be told in place of this call.
    ///
    /// # Cancel safety
    ///
    /// A dropped future has received nothing.
    pub async fn recv_from(&mut self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        coop::consume_budget().await;
        poll_fn(|cx| {
            loop {
                match self.get_ref().recv_from(into) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    received => return Poll::Ready(received),
                }
                match self.connection.reap().poll_readable(cx) {
                    Poll::Pending => return self.connection.pending(),
                    ready => ready!(ready)?,
                }
            }
        })
        .await
    }
}

impl<S: ReadSocket> AsyncRead for ReadHalf<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let budget = ready!(coop::poll_proceed(cx));
        loop {
            let read = match this.get_ref().read_now(into.initialize_unfilled()) {
                Ok(0) if into.remaining() > 0 => this.cut().map_or(Ok(0), Err),
                read => read,
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => {
                    budget.made_progress();
                    this.failed = read.as_ref().err().map(OsError::from);
                    into.advance(read?);
                    return Poll::Ready(Ok(()));
                }
            }
            match this.connection.reap().poll_readable(cx) {
                Poll::Pending => return this.connection.pending(),
                ready => ready!(ready)?,
            }
        }
    }
}
