//! The half of a stream that reads.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::tokio::{
    io::{AsyncRead, ReadBuf},
    task::coop,
};

use super::{connection::Connection, socket::ReadSocket};
use crate::{sender::Socket, sync::Arc};

/// The half of a [`Stream`](super::Stream) that reads; from
/// [`Stream::into_split`](super::Stream::into_split).
///
/// The half moves to any task or thread. A read is cancel safe: a dropped read has read nothing. No
/// notification wakes a task that reads.
///
/// See the example of [`WriteHalf`](super::WriteHalf).
#[derive(Debug)]
pub struct ReadHalf<S: Socket> {
    connection: Arc<Connection<S>>,
}

impl<S: Socket> ReadHalf<S> {
    pub(super) fn new(connection: Arc<Connection<S>>) -> Self {
        Self { connection }
    }

    /// The socket, for its options.
    pub fn get_ref(&self) -> &S {
        self.connection.reap().get_ref()
    }
}

impl<S: ReadSocket> AsyncRead for ReadHalf<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let budget = ready!(coop::poll_proceed(cx));
        loop {
            match self.get_ref().read_now(into.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => {
                    budget.made_progress();
                    into.advance(read?);
                    return Poll::Ready(Ok(()));
                }
            }
            match self.connection.reap().poll_readable(cx) {
                Poll::Pending => return self.connection.pending(),
                ready => ready!(ready)?,
            }
        }
    }
}
