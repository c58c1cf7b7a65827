//! compio's `AsyncWriteZerocopy` over the poll methods of a sender, in compio's own runtime.
//!
//! `cargo run --release -p compio_writer`

#![allow(clippy::print_stdout, reason = "a program, not the library")]

use std::{
    any::Any,
    cell::OnceCell,
    collections::VecDeque,
    future::poll_fn,
    io,
    net::{TcpListener, TcpStream},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    thread,
};

use compio_buf::{BufResult, IoBuf, IoVectoredBuf};
use compio_io::AsyncWriteZerocopy;
use compio_runtime::{JoinHandle, Runtime, fd::PollFd};
use pinbuf::{
    Pool, SendError, Sender, SharedBuf, Ticket,
    sender::{CloseReport, ReapHalf, SendHalf},
};

/// A buffer of a pool for compio's traits.
struct PoolBuf(SharedBuf);

impl IoBuf for PoolBuf {
    fn as_init(&self) -> &[u8] {
        &self.0
    }
}

/// A writer in compio's runtime. Buffers of a pool go without copy, all others by copy.
struct Writer {
    send: SendHalf<TcpStream>,
    connection: Rc<Connection>,
}

/// Owned by a writer, and by futures that wait for a release.
struct Connection {
    reap: ReapHalf<TcpStream>,
    /// The task that takes the news of the socket, and so wakes the tasks that wait.
    driver: OnceCell<JoinHandle<io::Result<()>>>,
}

impl Writer {
    fn new(socket: TcpStream) -> io::Result<Self> {
        let (send, reap) = Sender::builder().adopt(socket)?.split();
        let news = PollFd::new(send.event_fd()?.try_clone_to_owned()?)?;
        let connection = Rc::new(Connection { reap, driver: OnceCell::new() });
        let driven = Rc::downgrade(&connection);
        // The drop of the handle, with the connection, ends the task.
        connection.driver.get_or_init(|| {
            compio_runtime::spawn(async move {
                loop {
                    news.read_ready().await?;
                    let Some(connection) = driven.upgrade() else { return Ok(()) };
                    // A failure passes, for lack of memory, and the next look finds the same news.
                    let _ = connection.reap.reap();
                }
            })
        });
        Ok(Self { send, connection })
    }

    /// Sends a buffer of a pool. The sender keeps what the socket does not take at once.
    async fn send(&mut self, mut buf: SharedBuf) -> io::Result<Ticket> {
        let ticket = loop {
            match self.send.try_send(buf) {
                Err(SendError::WouldBlock(refused)) => buf = refused,
                sent => break sent?,
            }
            poll_fn(|cx| self.send.poll_ready(cx)).await?;
        };
        poll_fn(|cx| self.send.poll_flush(cx)).await?;
        Ok(ticket)
    }

    /// Writes some bytes by copy.
    async fn copy(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.send.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
            poll_fn(|cx| self.send.poll_ready(cx)).await?;
        }
    }

    async fn close(mut self) -> io::Result<CloseReport> {
        Ok(poll_fn(|cx| self.send.poll_close(cx)).await?)
    }
}

impl AsyncWriteZerocopy for Writer {
    type BufferReadyFuture<T: IoBuf> = Released<T>;
    type VectoredBufferReadyFuture<T: IoVectoredBuf> = Released<T>;

    async fn write_zerocopy<T: IoBuf>(&mut self, buf: T) -> BufResult<usize, Released<T>> {
        let Some(PoolBuf(shared)) = (&buf as &dyn Any).downcast_ref() else {
            let written = self.copy(buf.as_init()).await;
            return BufResult(written, Released { waits: None, buf: Some(buf) });
        };
        let len = shared.len();
        let (sent, waits) = match self.send(shared.clone()).await {
            Ok(ticket) => (Ok(len), Some((Rc::clone(&self.connection), ticket))),
            Err(error) => (Err(error), None),
        };
        BufResult(sent, Released { waits, buf: Some(buf) })
    }

    /// Writes bytes of the first range that has any, by copy.
    async fn write_zerocopy_vectored<T: IoVectoredBuf>(
        &mut self,
        buf: T,
    ) -> BufResult<usize, Released<T>> {
        let mut written = Ok(0);
        for range in buf.iter_slice() {
            if !range.is_empty() {
                written = self.copy(range).await;
                break;
            }
        }
        BufResult(written, Released { waits: None, buf: Some(buf) })
    }
}

/// Gives a buffer back once the kernel has released its memory.
struct Released<T> {
    waits: Option<(Rc<Connection>, Ticket)>,
    buf: Option<T>,
}

impl<T> Unpin for Released<T> {}

impl<T> Future for Released<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if let Some((connection, ticket)) = &self.waits {
            // A wait that fails is over too: the memory stays with the sender's clone.
            let _ = ready!(connection.reap.poll_fate(cx, *ticket));
        }
        Poll::Ready(self.buf.take().expect("polled once more after the end"))
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
    let report = Runtime::new()?.block_on(async {
        let mut writer = Writer::new(socket)?;
        let mut released = VecDeque::new();
        for number in 0..BUFFERS {
            // After the first eight each is a buffer that was sent before.
            let mut buf = match pool.try_alloc(LEN) {
                Ok(buf) => buf,
                Err(_) => {
                    let PoolBuf(buf) = released.pop_front().expect("all are out").await;
                    buf.try_into_pinned().expect("released")
                }
            };
            buf.clear();
            buf.resize(LEN, number as u8);
            let BufResult(written, ready) = writer.write_zerocopy(PoolBuf(buf.freeze())).await;
            assert_eq!(written?, LEN);
            released.push_back(ready);
        }
        let BufResult(written, ready) = writer.write_zerocopy("the end").await;
        assert_eq!((written?, ready.await), (7, "the end"));
        writer.close().await
    })?;
    let bytes = peer.join().expect("the peer does not panic")?;
    println!("the peer got {bytes} bytes; the stream ended in order: {}", report.drained);
    assert!(report.drained && bytes == (BUFFERS * LEN + 7) as u64);
    println!("{}", pool.audit());
    Ok(())
}
