//! The future of a release.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use super::connection::Connection;
use crate::{
    error::WaitError,
    id::Ticket,
    sender::{Fate, Socket},
    sync::Arc,
};

/// A future of the fate of a send; from [`Stream::released`](super::Stream::released).
///
/// Can be awaited in any task. The stream may be dropped meanwhile: the fate still comes.
///
/// # Errors
///
/// [`WaitError::ForeignTicket`] for a ticket of another stream, [`WaitError::Os`] with the error of
/// `recvmsg(2)`, [`WaitError::NoThread`] after the end of the runtime, and [`WaitError::Forked`] in a forked
/// child.
///
/// ```
/// use pinbuf::tokio::Stream;
/// # use tokio::net::{TcpListener, TcpStream};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0").await?;
/// # let socket = TcpStream::connect(listener.local_addr()?).await?;
/// # let mut far = listener.accept().await?.0;
/// # let peer = tokio::spawn(async move { tokio::io::copy(&mut far, &mut tokio::io::sink()).await });
/// let mut stream = Stream::new(socket)?;
/// let ticket = stream.send(vec![7; 64 << 10]).await?;
/// let released = tokio::spawn(stream.released(ticket));
/// drop(stream);
/// assert!(released.await??.is_released());
/// # assert_eq!(peer.await??, 64 << 10);
/// # Ok(())
/// # }
/// ```
#[must_use = "a future does nothing unless polled"]
pub struct Released<S: Socket = std::net::TcpStream> {
    connection: Arc<Connection<S>>,
    ticket: Ticket,
}

impl<S: Socket> Released<S> {
    pub(super) fn new(connection: Arc<Connection<S>>, ticket: Ticket) -> Self {
        Self { connection, ticket }
    }
}

impl<S: Socket> Future for Released<S> {
    type Output = Result<Fate, WaitError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.connection.reap().poll_fate(cx, self.ticket) {
            Poll::Pending => self.connection.pending(),
            ready => ready,
        }
    }
}

impl<S: Socket> fmt::Debug for Released<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Released").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}
