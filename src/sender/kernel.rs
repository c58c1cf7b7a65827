//! The only seam between the sender and the kernel.

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use super::transport::Transport;
use crate::{
    raw::Reclaim,
    reaper,
    sync::{Arc, Weak},
    sys::{
        Batch, Record,
        epoll::EdgeWait,
        errqueue,
        socket::{self, IoVec, Kind, Ready, SendFlags},
    },
};

/// The events that a sender waits for, for a loop that calls `poll(2)` on the socket.
///
/// Ask for `POLLOUT` if `writable`, and for no event otherwise. `POLLERR` comes unasked, for
/// notifications (`released`). Waiting for `POLLOUT` while a notification is unread returns at once
/// for ever, so call [`reap`](crate::Sender::reap) first after every return. `POLLHUP` comes
/// unasked too, and stays: deregister the descriptor when
/// [`connection_error`](crate::Sender::connection_error) tells of the end of the connection.
///
/// # mio and tokio
///
/// Do not register the socket of a sender with mio or tokio. An unread notification makes the socket
/// ready for writing and reading alike, and such a loop spins after the first one. Register
/// [`Sender::event_fd`](crate::Sender::event_fd), or await
/// [`poll_fate`](crate::Sender::poll_fate), which needs no registration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Interest {
    /// Room in the socket buffer.
    pub writable: bool,
    /// Notifications on the error queue.
    pub released: bool,
}

/// Waits for changes of one socket. The first wait reports the present state, and each later wait
/// the changes since, including changes without a waiter.
pub trait Edges: Send + Sync {
    /// Waits for news, for `timeout` at most.
    fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready>;
    /// Ends the current or next wait of another thread, with nothing ready.
    fn wake(&self) -> io::Result<()>;
}

impl Edges for EdgeWait {
    fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        Self::wait(self, timeout)
    }

    fn wake(&self) -> io::Result<()> {
        Self::wake(self)
    }
}

/// The sender's questions and requests to the kernel about one socket. Simulations and models
/// implement the trait too.
pub trait Kernel: Send + Sync + 'static {
    /// The transport of the socket.
    fn transport(&self) -> Transport {
        Transport::Stream
    }
    /// Sends once, without blocking.
    fn send(&self, memory: &[IoVec], flags: SendFlags) -> io::Result<usize>;
    /// Reads one batch of the error queue, without blocking.
    fn read_batch(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch>;
    /// Waits for an interest, for `timeout` at most. Returns at once if the socket is in that
    /// state.
    fn wait(&self, interest: Interest, timeout: Option<Duration>) -> io::Result<Ready>;
    /// A waiter for changes only, for a socket with a lasting error condition.
    fn edges(&self) -> io::Result<Option<Arc<dyn Edges>>>;
    /// Bytes of option memory in use by the socket: 832 for each notification unread or to come.
    fn optmem(&self) -> io::Result<u32>;
    /// Bytes accepted and not yet acknowledged by the peer, where the transport can tell.
    fn unacked(&self) -> io::Result<usize>;
    /// Returns `true` if the connection is over: nothing more can be sent or received. Always
    /// `false` on a transport without an end.
    fn is_over(&self) -> io::Result<bool>;
    /// Ends the stream in order: the peer reads all accepted bytes, then the end. Fails if the
    /// connection is over, or if the stream was ended before. Does nothing on a transport without
    /// an end.
    fn shutdown_write(&self) -> io::Result<()>;
    /// Breaks the connection: the peer sees a reset, and every id is released except the ids of
    /// packets in a queue below.
    fn abort(&self) -> io::Result<()>;
    /// Makes the close of the descriptor a reset.
    fn reset_on_close(&self) -> io::Result<()>;
    /// Switches the user's lingering off (`SO_LINGER`), which makes the final close block, or
    /// reset.
    fn linger_off(&self) -> io::Result<()>;
    /// The clock for deadlines.
    fn now(&self) -> Instant;
    /// Has the reaper thread drive the sender when the socket has news.
    fn watch(&self, sender: Weak<dyn Reclaim>) -> Option<reaper::Token>;
    /// Gives the sender to the reaper, to be driven to the end. Returns the reaper's token, and
    /// `true` if the reaper has a thread.
    fn adopt(&self, sender: Arc<dyn Reclaim>) -> (reaper::Token, bool);
    /// Ends `watch` or `adopt`.
    fn unwatch(&self, token: reaper::Token);
}

/// A socket that a [`Sender`](crate::Sender) can own: `AsFd + Send + Sync + 'static`.
///
/// Every such type is one: `TcpStream`, `UdpSocket`, `OwnedFd`, `Arc<TcpStream>`, the socket types of
/// other crates.
///
/// ```
/// use std::{net::TcpStream, sync::Arc};
/// use pinbuf::{Sender, sender::Socket};
///
/// fn sends_over<S: Socket>(_: &Sender<S>) {}
/// fn shared_with_a_reader(sender: &Sender<Arc<TcpStream>>) {
///     sends_over(sender);
/// }
/// ```
pub trait Socket: AsFd + Send + Sync + 'static {}

impl<S: AsFd + Send + Sync + 'static> Socket for S {}

/// The kernel of a real socket.
#[derive(Debug)]
pub(crate) struct SocketKernel<S>(pub(super) S, pub(super) Kind);

fn no_end<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl<S: Socket> Kernel for SocketKernel<S> {
    fn transport(&self) -> Transport {
        Transport::of(self.1)
    }

    #[inline(always)]
    fn send(&self, memory: &[IoVec], flags: SendFlags) -> io::Result<usize> {
        // SAFETY: every range is of a payload. Without the flag for zero copy, the payload's owner
        // keeps the range over the call, and the kernel reads no longer. With the flag, the tracker
        // holds a lease of the payload, which keeps the range mapped, and untouched by owners of
        // ours, until the kernel has released the call.
        unsafe { socket::send(self.0.as_fd(), memory, flags) }
    }

    fn read_batch(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch> {
        errqueue::with_scratch(|scratch| errqueue::recv(self.0.as_fd(), scratch, on_record))
    }

    fn wait(&self, interest: Interest, timeout: Option<Duration>) -> io::Result<Ready> {
        socket::poll(self.0.as_fd(), interest.writable, timeout)
    }

    fn edges(&self) -> io::Result<Option<Arc<dyn Edges>>> {
        match EdgeWait::new(self.0.as_fd(), true) {
            Ok(edges) => Ok(Some(Arc::new(edges))),
            // Where the system has no notifications, waits by levels miss nothing.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn optmem(&self) -> io::Result<u32> {
        socket::optmem(self.0.as_fd())
    }

    fn unacked(&self) -> io::Result<usize> {
        // Of datagrams, the number is the size of the queued packets in the kernel's own accounting.
        if self.transport().has_end() { socket::unsent(self.0.as_fd()) } else { no_end() }
    }

    fn is_over(&self) -> io::Result<bool> {
        Ok(self.transport().has_end() && socket::is_over(self.0.as_fd(), self.1)?)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        if self.transport().has_end() { socket::shutdown_write(self.0.as_fd()) } else { Ok(()) }
    }

    fn abort(&self) -> io::Result<()> {
        if !self.transport().has_end() {
            return no_end();
        }
        let fd = self.0.as_fd();
        socket::abort(fd).or_else(|_| {
            // Some kernels refuse while another thread blocks in a read.
            let again = socket::shutdown_read(fd).and_then(|()| socket::abort(fd));
            if again.is_err() {
                // The close, at least, must not look like the orderly end of a whole stream.
                socket::reset_on_close(fd)?;
            }
            again
        })
    }

    fn reset_on_close(&self) -> io::Result<()> {
        socket::reset_on_close(self.0.as_fd())
    }

    fn linger_off(&self) -> io::Result<()> {
        socket::linger_off(self.0.as_fd())
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn watch(&self, sender: Weak<dyn Reclaim>) -> Option<reaper::Token> {
        reaper::watch(self.0.as_fd(), sender)
    }

    fn adopt(&self, sender: Arc<dyn Reclaim>) -> (reaper::Token, bool) {
        reaper::adopt(self.0.as_fd(), sender)
    }

    fn unwatch(&self, token: reaper::Token) {
        reaper::unwatch(self.0.as_fd(), token);
    }
}
