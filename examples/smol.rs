//! Tasks of smol's `async-io` send, flush and close, with the descriptor of the sender in its reactor.
//!
//! `cargo run --release --example smol`

#![allow(clippy::print_stdout, reason = "a program, not the library")]

use std::{
    future::poll_fn,
    io,
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    task::{Context, Poll, ready},
    thread,
};

use async_io::{Async, block_on};
use pinbuf::{PinnedBuf, Pool, SendError, Sender, Ticket, sender::CloseReport};

/// A sender in the reactor. The socket itself stays outside.
struct Stream {
    sender: Sender,
    events: Async<OwnedFd>,
}

impl Stream {
    fn new(socket: TcpStream) -> io::Result<Self> {
        let sender = Sender::new(socket)?;
        let events = Async::new(sender.event_fd()?.try_clone_to_owned()?)?;
        Ok(Self { sender, events })
    }

    /// Polls a method of the sender in a task that watches the descriptor too.
    fn poll<T, E: Into<io::Error>>(
        &mut self,
        cx: &mut Context<'_>,
        poll: fn(&mut Sender, &mut Context<'_>) -> Poll<Result<T, E>>,
    ) -> Poll<io::Result<T>> {
        loop {
            if let Poll::Ready(result) = poll(&mut self.sender, cx) {
                return Poll::Ready(result.map_err(Into::into));
            }
            ready!(self.events.poll_readable(cx))?;
        }
    }

    /// Sends a buffer, and waits until the socket has accepted every byte.
    ///
    /// A future that is dropped before the first byte recycles the buffer. Later the unsent part stays
    /// queued.
    async fn send(&mut self, mut buf: PinnedBuf) -> io::Result<Ticket> {
        let ticket = loop {
            match self.sender.try_send(buf) {
                Err(SendError::WouldBlock(refused)) => buf = refused,
                sent => break sent?,
            }
            poll_fn(|cx| self.poll(cx, Sender::poll_ready)).await?;
        };
        poll_fn(|cx| self.poll(cx, Sender::poll_flush)).await?;
        Ok(ticket)
    }

    async fn close(mut self) -> io::Result<CloseReport> {
        poll_fn(|cx| self.poll(cx, Sender::poll_close)).await
    }
}

fn main() -> io::Result<()> {
    const BUFFERS: usize = 1000;
    const LEN: usize = 256 << 10;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let socket = TcpStream::connect(listener.local_addr()?)?;
    let mut far = listener.accept()?.0;
    let peer = thread::spawn(move || io::copy(&mut far, &mut io::sink()));
    let pool = Pool::new(LEN, 8)?;
    let report = block_on(async {
        let mut stream = Stream::new(socket)?;
        for _ in 0..BUFFERS {
            let mut buf = pool.alloc_async(LEN).await?;
            buf.resize(LEN, 7);
            stream.send(buf).await?;
        }
        stream.close().await
    })?;
    let bytes = peer.join().expect("the peer does not panic")?;
    println!("the peer got {bytes} bytes; the stream ended in order: {}", report.drained);
    assert!(report.drained && bytes == (BUFFERS * LEN) as u64);
    println!("{}", pool.audit());
    Ok(())
}
