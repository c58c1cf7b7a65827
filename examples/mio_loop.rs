//! One thread and one mio loop send to 1,000 peers from a pool of 256 buffers.
//!
//! `cargo run --release --example mio_loop`
//!
//! Each sender has a descriptor in the loop. A connection without a buffer has a place in the queue of
//! the pool, and its waker names the connection.

#![allow(clippy::print_stdout, reason = "a program, not the library")]

use std::{
    error::Error,
    io::{self, Read as _},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use mio::{Events, Interest, Token, unix::SourceFd};
use pinbuf::{PinnedBuf, Pool, SendError, Sender, pool::Waiter};

const CONNECTIONS: usize = 1000;
const BUFFERS: usize = 20;
const LEN: usize = 64 << 10;
/// The token of wake-ups by the pool.
const POOL: Token = Token(CONNECTIONS);

/// The connections with a buffer from the pool.
struct Granted {
    connections: Mutex<Vec<usize>>,
    waker: mio::Waker,
}

impl Granted {
    fn take(&self) -> Vec<usize> {
        std::mem::take(&mut self.connections.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The waker of one connection.
struct Grants(Arc<Granted>, usize);

impl Wake for Grants {
    fn wake(self: Arc<Self>) {
        let Self(granted, connection) = &*self;
        let mut connections = granted.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.push(*connection);
        let _ = granted.waker.wake();
    }
}

struct Connection {
    sender: Sender,
    waiter: Waiter,
    waker: Waker,
    refused: Option<PinnedBuf>,
    left: usize,
}

impl Connection {
    /// Sends until the sender refuses or the pool is dry, and then ends the stream. Returns `true` at
    /// the end.
    fn advance(&mut self) -> Result<bool, Box<dyn Error>> {
        self.sender.reap()?;
        while self.left > 0 {
            let buf = match self.refused.take() {
                Some(buf) => buf,
                None => match self.waiter.poll_alloc(&mut Context::from_waker(&self.waker)) {
                    Poll::Ready(buf) => {
                        let mut buf = buf?;
                        buf.resize(LEN, 7);
                        buf
                    }
                    Poll::Pending => return Ok(false),
                },
            };
            match self.sender.try_send(buf) {
                Ok(_) => self.left -= 1,
                Err(SendError::WouldBlock(buf)) => {
                    self.refused = Some(buf);
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        // The descriptor tells of the end too, so no waker is needed.
        match self.sender.poll_close(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(report) => Ok(report?.drained),
            Poll::Pending => Ok(false),
        }
    }
}

/// Reads all streams to their ends, and returns the number of bytes.
fn drain(mut streams: Vec<TcpStream>) -> io::Result<usize> {
    let (mut poll, mut events) = (mio::Poll::new()?, Events::with_capacity(128));
    for (number, stream) in streams.iter().enumerate() {
        stream.set_nonblocking(true)?;
        let fd = stream.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), Token(number), Interest::READABLE)?;
    }
    let (mut open, mut bytes, mut scratch) = (streams.len(), 0, vec![0; 256 << 10]);
    while open > 0 {
        poll.poll(&mut events, None)?;
        for event in &events {
            loop {
                match streams[event.token().0].read(&mut scratch) {
                    Ok(0) => {
                        poll.registry()
                            .deregister(&mut SourceFd(&streams[event.token().0].as_raw_fd()))?;
                        open -= 1;
                        break;
                    }
                    Ok(read) => bytes += read,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(bytes)
}

/// Three descriptors for each connection are more than most shells allow at first.
fn raise_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one limit, which outlives the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: setrlimit(2) reads one limit, which outlives the call.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}

fn main() -> Result<(), Box<dyn Error>> {
    raise_limit();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut poll = mio::Poll::new()?;
    let waker = mio::Waker::new(poll.registry(), POOL)?;
    let granted = Arc::new(Granted { connections: Mutex::default(), waker });
    // No connection keeps the others from the buffers.
    let pool = Pool::builder().class(LEN, 256).sender_quota(4).build()?;

    let (mut connections, mut far) = (Vec::new(), Vec::new());
    for number in 0..CONNECTIONS {
        let sender = Sender::new(TcpStream::connect(address)?)?;
        far.push(listener.accept()?.0);
        let fd = sender.event_fd()?.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), Token(number), Interest::READABLE)?;
        connections.push(Some(Connection {
            sender,
            waiter: pool.waiter(LEN)?,
            waker: Waker::from(Arc::new(Grants(Arc::clone(&granted), number))),
            refused: None,
            left: BUFFERS,
        }));
    }
    let peer = thread::spawn(move || drain(far));

    let mut events = Events::with_capacity(256);
    let (mut open, mut turns) = (CONNECTIONS, 0);
    while open > 0 {
        poll.poll(&mut events, Some(Duration::from_secs(60)))?;
        let mut ready = granted.take();
        ready.extend(events.iter().map(|event| event.token().0).filter(|at| *at != POOL.0));
        turns += 1;
        for number in ready {
            let Some(connection) = &mut connections[number] else { continue };
            if connection.advance()? {
                connections[number] = None;
                open -= 1;
            }
        }
    }
    let bytes = peer.join().expect("the peer does not panic")?;
    println!("{CONNECTIONS} peers got {bytes} bytes in {turns} turns of the loop");
    assert_eq!(bytes, CONNECTIONS * BUFFERS * LEN);
    println!("{}", pool.audit());
    Ok(())
}
