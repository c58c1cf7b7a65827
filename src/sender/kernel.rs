//! The only seam between the sender and the kernel.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use super::transport::Transport;
use crate::{
    raw::Reclaim,
    reaper,
    sync::{Arc, OnceLock, Weak},
    sys::{
        Batch, Record,
        epoll::{EdgeWait, EventFd},
        errqueue,
        message::Header,
        pacing,
        socket::{self, IoVec, Kind, News, Ready, SendFlags},
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
/// [`Sender::event_fd`](crate::Sender::event_fd), or await the sender's
/// [methods for tasks](crate::Sender#tasks), which need no registration.
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
    /// As `send`, with a destination and control data. They change nothing for the sender, so a
    /// simulation may do without.
    fn send_with(&self, memory: &[IoVec], flags: SendFlags, _header: &Header) -> io::Result<usize> {
        self.send(memory, flags)
    }
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
    /// Returns `true` if a loop of the program watches the socket for news, and calls the sender.
    fn has_loop(&self) -> bool {
        false
    }
    /// Takes the news that the loop is told of.
    fn take_news(&self) -> io::Result<News> {
        Ok(News::default())
    }
    /// Tells the loop of the present state of the socket, and from here on of data if `data`.
    fn renew_news(&self, _data: bool) -> io::Result<()> {
        Ok(())
    }
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
pub(crate) struct SocketKernel<S> {
    pub(super) socket: S,
    kind: Kind,
    /// For a loop of the program, once asked for.
    events: OnceLock<EventFd>,
}

impl<S: Socket> SocketKernel<S> {
    pub(super) fn new(socket: S, kind: Kind) -> Self {
        Self { socket, kind, events: OnceLock::new() }
    }

    /// This time on the clock of the socket's transmit times, in nanoseconds; `None` if the socket
    /// allows none.
    pub(super) fn transmit_time(&self, time: Instant) -> io::Result<Option<u64>> {
        pacing::transmit_time(self.socket.as_fd(), time)
    }

    /// The descriptor for a loop of the program. The first call makes the descriptor.
    pub(super) fn event_fd(&self) -> io::Result<BorrowedFd<'_>> {
        let events = match self.events.get() {
            Some(events) => events,
            None => {
                let events = EventFd::new(self.socket.as_fd())?;
                self.events.get_or_init(|| events)
            }
        };
        Ok(events.as_fd())
    }
}

fn no_end<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl<S: Socket> Kernel for SocketKernel<S> {
    fn transport(&self) -> Transport {
        Transport::of(self.kind)
    }

    #[inline(always)]
    fn send(&self, memory: &[IoVec], flags: SendFlags) -> io::Result<usize> {
        // SAFETY: every range is of a payload, or of bytes borrowed over the call. Without the flag for
        // zero copy, the payload's owner keeps the range over the call, and the kernel reads no
        // longer. With the flag, the tracker
        // holds a lease of the payload, which keeps the range mapped, and untouched by owners of
        // ours, until the kernel has released the call.
        unsafe { socket::send(self.socket.as_fd(), memory, flags) }
    }

    fn send_with(&self, memory: &[IoVec], flags: SendFlags, header: &Header) -> io::Result<usize> {
        // SAFETY: as for `send`, with the same ranges.
        unsafe { socket::send_with(self.socket.as_fd(), memory, flags, Some(header)) }
    }

    fn read_batch(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch> {
        errqueue::with_scratch(|scratch| errqueue::recv(self.socket.as_fd(), scratch, on_record))
    }

    fn wait(&self, interest: Interest, timeout: Option<Duration>) -> io::Result<Ready> {
        socket::poll(self.socket.as_fd(), interest.writable, timeout)
    }

    fn edges(&self) -> io::Result<Option<Arc<dyn Edges>>> {
        match EdgeWait::new(self.socket.as_fd(), true) {
            Ok(edges) => Ok(Some(Arc::new(edges))),
            // Where the system has no notifications, waits by levels miss nothing.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn optmem(&self) -> io::Result<u32> {
        socket::optmem(self.socket.as_fd())
    }

    fn unacked(&self) -> io::Result<usize> {
        // Of datagrams, the number is the size of the queued packets in the kernel's own accounting.
        if self.transport().has_end() { socket::unsent(self.socket.as_fd()) } else { no_end() }
    }

    fn is_over(&self) -> io::Result<bool> {
        Ok(self.transport().has_end() && socket::is_over(self.socket.as_fd(), self.kind)?)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        if self.transport().has_end() {
            socket::shutdown_write(self.socket.as_fd())
        } else {
            Ok(())
        }
    }

    fn abort(&self) -> io::Result<()> {
        if !self.transport().has_end() {
            return no_end();
        }
        let fd = self.socket.as_fd();
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
        socket::reset_on_close(self.socket.as_fd())
    }

    fn linger_off(&self) -> io::Result<()> {
        socket::linger_off(self.socket.as_fd())
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn watch(&self, sender: Weak<dyn Reclaim>) -> Option<reaper::Token> {
        reaper::watch(self.socket.as_fd(), sender)
    }

    fn adopt(&self, sender: Arc<dyn Reclaim>) -> (reaper::Token, bool) {
        reaper::adopt(self.socket.as_fd(), sender)
    }

    fn unwatch(&self, token: reaper::Token) {
        reaper::unwatch(self.socket.as_fd(), token);
    }

    fn has_loop(&self) -> bool {
        self.events.get().is_some()
    }

    fn take_news(&self) -> io::Result<News> {
        self.events.get().map_or(Ok(News::default()), EventFd::take)
    }

    fn renew_news(&self, data: bool) -> io::Result<()> {
        self.events.get().map_or(Ok(()), |events| events.renew(self.socket.as_fd(), data))
    }
}
