//! The handle of a sender.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    task::{Context, Poll},
    time::Duration,
};

#[cfg(feature = "histogram")]
use super::release_times::ReleaseTimes;
use super::{
    config::ZeroCopyState,
    datagram::Datagram,
    driver::Core,
    kernel::{Interest, Socket, SocketKernel},
    machine::Goal,
    report::{Capabilities, CloseReport, Fate, Reaped, Returned, SenderStats},
    split::{self, ReapHalf, SendHalf},
};
use crate::{
    error::{CopyReason, OsError, SendError, WaitError},
    id::Ticket,
    lease::{IntoPayload, Payload},
    sync::{Arc, yield_now},
    sys::ErrorQueueEvent,
};

/// Sends memory over one connected socket, without copying where zero copy pays.
///
/// A buffer given to `send` belongs to the sender until the kernel has released every byte: after
/// the peer has acknowledged the send, or the connection has failed. Then the buffer is recycled,
/// or handed back ([`OnRelease::Return`](crate::sender::OnRelease::Return)). Each accepted send has a
/// [`Ticket`], and the ticket's [`Fate`] can be asked for at any time.
///
/// Sends of less than 16 KiB, or of what a [hint](crate::sender::SenderBuilder::data_hint) says, go by copy, which is
/// cheaper, and are released at once. So do all sends on a route where the kernel would copy anyway
/// ([`Policy::Auto`](crate::Policy::Auto)). Both kinds keep their order.
///
/// # The socket
///
/// `Sender` alone is `Sender<OwnedFd>`: [`Sender::new`] takes any socket and forgets its type, so that a
/// struct can keep the sender without naming the socket. With a builder, adopt the descriptor:
/// `builder.adopt(OwnedFd::from(socket))`. A socket adopted as itself gives a `Sender<TcpStream>`, or
/// whatever the socket is, for [`get_ref`](Self::get_ref).
///
/// The sender must be the socket's only user of `MSG_ZEROCOPY`. A second user (a `dup`, a forked
/// child, `io_uring`) shifts the kernel's ids, and a foreign notification can free a buffer of ours
/// early before any id looks wrong. A late discovery poisons the sender: see
/// [`Poison`](crate::sender::Poison). Through [`get_ref`](Self::get_ref) the user may read from the socket
/// and set options, but must not read the error queue.
///
/// The sender never changes `O_NONBLOCK`, timeouts or options of the socket, except `SO_ZEROCOPY`
/// and, at the end, `SO_LINGER`. The sender never reads `SO_ERROR`.
///
/// # Fork
///
/// A forked child inherits the descriptor and no more. In the child every call fails with `Forked`
/// (or `EPERM`, where the error is an error of the system). Dropping or closing the sender closes
/// the child's descriptor without a word to the peer or the kernel. Sends in flight and their
/// notifications stay the parent's. Descriptors of senders that the parent's reaper owns stay open
/// in the child until the child ends or executes a program: all descriptors are close-on-exec.
///
/// # Filters for system calls
///
/// A sandbox (seccomp) may refuse system calls of a sender:
///
/// | refused | at adoption | later |
/// |---|---|---|
/// | `recvmmsg` | everything goes by copy: [`CopyReason::Unprovable`] | the same with nothing in flight, else [`Poison::Unread`](crate::sender::Poison::Unread): what is in flight is Quarantined for good, waits fail, sends go by copy |
/// | `getsockopt` of `SO_MEMINFO` | the same | notifications go on releasing, but the theft of a notification by another user goes unnoticed |
/// | `setsockopt` of `SO_ZEROCOPY` | everything goes by copy: [`CopyReason::Refused`] | |
/// | `epoll_*`, `eventfd2` | waits use `ppoll`; no reaper runs, so waiting threads look every few milliseconds | the same |
/// | `ioctl` of `SIOCOUTQ` | an end counts bytes accepted by the socket as progress of the peer ([`linger`](crate::sender::SenderBuilder::linger)) | the same |
///
/// Further refusals are errors of the calls concerned.
///
/// # Tasks
///
/// Each wait has a method for tasks of any runtime. None blocks.
///
/// | method | ready when | if the future is dropped |
/// |---|---|---|
/// | [`poll_ready`](Self::poll_ready) | a refused buffer may be tried again | the buffer is the caller's: dropped with the future, and so recycled |
/// | [`poll_flush`](Self::poll_flush) | every byte of the last send is accepted | the unsent part stays queued, and the next send waits for it |
/// | [`poll_fate`](Self::poll_fate) | a send has its fate | the send goes on |
/// | [`poll_drain`](Self::poll_drain) | everything is accepted and released | the sends go on |
/// | [`poll_readable`](Self::poll_readable) | a read of the socket would not wait | nothing was read |
/// | [`poll_close`](Self::poll_close) | the stream has ended | the end goes on; drop the sender, or [`abort`](Self::abort) |
///
/// The sender keeps one waker for each row, and for [`poll_fate`](Self::poll_fate) one for each ticket: that
/// of the last poll. The waker is called once, when the event has come. A peer that stalls wakes no task.
///
/// A task is woken by the thread that reads the news of the socket:
///
/// - the library's own thread, which watches the socket while a task waits. Nothing has to be
///   registered;
/// - from the first call of [`event_fd`](Self::event_fd) on, the loop that watches the descriptor. At each
///   readiness the loop calls [`reap`](Self::reap), or polls the pending method again, which does the same and
///   wakes no task twice. The library's thread then looks only for waiters of a pool, and for
///   [`max_hold`](crate::sender::SenderBuilder::max_hold).
///
/// [`poll_readable`](Self::poll_readable) works with such a loop only.
///
/// # Datagrams
///
/// Over UDP (IPv4 or IPv6) every send is one datagram; a vectored send is gathered from its buffers.
/// [`send_to`](Self::send_to) names the destination, which an unconnected socket needs, and can make a
/// *train*: the kernel cuts the buffer into many datagrams. A send goes by copy as a whole or without
/// as a whole, and is never accepted in part. An error concerns one send only; the buffer comes back,
/// and the sender goes on:
/// - [`SendError::Invalid`]: a limit is broken, with the remedy.
/// - [`SendError::Dropped`]: a queue or filter of this host dropped it, which the kernel says for
///   queues only if `IP_RECVERR` is on. Otherwise it counts as accepted.
/// - [`SendError::Os`] with `EMSGSIZE`: it is longer than the route or the protocol takes.
/// - [`SendError::Os`] with `ECONNREFUSED` and the like: an ICMP message about an earlier datagram.
///   With `IP_RECVERR` it comes from [`next_event`](Self::next_event), and this error only if the
///   error queue was not read before. On an unconnected socket without the option it never comes; with
///   the option, the earlier datagram may have gone to another destination.
///
/// [`SenderStats::drops`] counts them by their place.
///
/// There is no orderly end and no abort: `close` and `abort` wait for the queues of this host.
///
/// Unix, MPTCP, vsock and UDP-Lite sockets are sent to by copy, with the reason in
/// [`capabilities`](Self::capabilities).
///
/// # The end
///
/// | call | when |
/// |---|---|
/// | [`close`](Self::close) | the peer is to get everything, and you want to know that all memory was released |
/// | [`abort`](Self::abort) | the transfer is off: memory back at once, the peer sees a reset |
/// | drop | as `close`, but in the background, for as long as the peer makes progress ([`SenderBuilder::linger`](crate::sender::SenderBuilder::linger)) |
/// | [`wait_idle`](crate::reaper::wait_idle) | before the program exits, after drops |
///
/// An end never gives memory back early: sends in flight go to the reaper, a thread of the library,
/// with the socket, until the kernel has released them.
///
/// Only `close`, `abort` and drop decide how the stream ends. Each call first switches the socket's
/// lingering (`SO_LINGER`) off: with a linger time the end would block, and with a linger time of 0
/// the end would reset a peer that has yet to read. A duplicate of the descriptor sees the change.
/// A socket taken back by [`into_parts`](Self::into_parts) has the option as the user left it.
///
/// # Examples
///
/// ```
/// # use std::{io::Read, net::{TcpListener, TcpStream}, thread};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let address = listener.local_addr()?;
/// # let peer = thread::spawn(move || std::io::copy(&mut listener.accept().unwrap().0, &mut std::io::sink()));
/// let pool = pinbuf::Pool::new(64 * 1024, 16)?;
/// let mut sender = pinbuf::Sender::new(TcpStream::connect(address)?)?;
///
/// let mut buf = pool.alloc(64 * 1024)?;
/// buf.resize(64 * 1024, 7);
/// let ticket = sender.send(buf)?;
/// let fate = sender.wait(ticket, None)?;
/// assert!(fate.is_released(), "{fate:?}");
/// # drop(sender);
/// # assert_eq!(peer.join().unwrap()?, 65536);
/// # Ok(())
/// # }
/// ```
pub struct Sender<S: Socket = OwnedFd> {
    /// `None` only while being taken apart.
    pub(super) core: Option<Arc<Core<SocketKernel<S>>>>,
}

impl<S: Socket> Sender<S> {
    /// Sends a buffer as far as the socket takes it now; never blocks.
    ///
    /// Once any byte of the buffer is accepted the sender keeps the buffer. Later calls send the
    /// unsent part before anything else, and the next buffer is refused until then.
    ///
    /// # Errors
    ///
    /// [`SendError::WouldBlock`] when nothing was accepted: wait for [`interest`](Self::interest),
    /// [`reap`](Self::reap), and try again. The others as described there. The buffer comes back,
    /// except with [`SendError::Truncated`].
    pub fn try_send<P: IntoPayload>(&mut self, buf: P) -> Result<Ticket, SendError<P>> {
        self.core().try_send(buf)
    }

    /// Sends a buffer, blocking until the socket has accepted every byte.
    ///
    /// Returns before the release; see [`wait`](Self::wait).
    ///
    /// # Errors
    ///
    /// As [`try_send`](Self::try_send), but never [`SendError::WouldBlock`].
    pub fn send<P: IntoPayload>(&mut self, buf: P) -> Result<Ticket, SendError<P>> {
        self.core().send(buf)
    }

    /// Sends a buffer, blocking until the socket has accepted every byte or the time is up.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and two more when the time is up:
    ///
    /// | accepted so far | error | the buffer |
    /// |---|---|---|
    /// | nothing | [`SendError::TimedOut`] | comes back |
    /// | a part | [`SendError::Unfinished`] | stays with the sender; the unsent part is still queued |
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{net::{TcpListener, TcpStream}, time::Duration};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = TcpStream::connect(listener.local_addr()?)?;
    /// # let _peer = listener.accept()?;
    /// use pinbuf::{SendError, Sender};
    ///
    /// static DATA: [u8; 64 << 20] = [7; 64 << 20];
    /// let mut sender = Sender::new(socket)?;
    /// // The peer reads nothing, and the socket does not take so much.
    /// match sender.send_timeout(&DATA[..], Duration::from_millis(10)) {
    ///     Err(SendError::Unfinished { ticket }) => assert_eq!(sender.fate(ticket)?, None),
    ///     other => panic!("{other:?}"),
    /// }
    /// # let _ = sender.abort();
    /// # Ok(())
    /// # }
    /// ```
    pub fn send_timeout<P: IntoPayload>(
        &mut self,
        buf: P,
        timeout: Duration,
    ) -> Result<Ticket, SendError<P>> {
        self.core().send_timeout(buf, timeout)
    }

    /// Sends several buffers as one send, in order, as far as the socket takes them now.
    ///
    /// Neighbours are sent with one system call where they go the same way: buffers below 4 KiB by
    /// copy, runs of larger buffers without copy when together they reach the threshold. Takes all
    /// of `bufs` once anything is accepted, and leaves `bufs` unchanged on an error, except for
    /// [`SendError::Truncated`].
    ///
    /// # Errors
    ///
    /// As [`try_send`](Self::try_send).
    pub fn try_send_vectored(&mut self, bufs: &mut Vec<Payload>) -> Result<Ticket, SendError<()>> {
        self.core().try_send_vectored(bufs)
    }

    /// Sends several buffers as one send, blocking until the socket has accepted all of them.
    ///
    /// # Errors
    ///
    /// As [`try_send_vectored`](Self::try_send_vectored), but never [`SendError::WouldBlock`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::net::{TcpListener, TcpStream};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = TcpStream::connect(listener.local_addr()?)?;
    /// # let _peer = listener.accept()?;
    /// let mut sender = pinbuf::Sender::new(socket)?;
    /// let pages: std::sync::Arc<[u8]> = vec![7; 32 * 1024].into();
    /// // The header goes by copy, the pages may go without; together they are one send.
    /// let mut bufs = vec![pinbuf::Payload::from(&b"header"[..]), pages.into()];
    /// let ticket = sender.send_vectored(&mut bufs)?;
    /// assert!(bufs.is_empty());
    /// assert_eq!(ticket.len(), 6 + 32 * 1024);
    /// # Ok(())
    /// # }
    /// ```
    pub fn send_vectored(&mut self, bufs: &mut Vec<Payload>) -> Result<Ticket, SendError<()>> {
        self.core().send_vectored(bufs)
    }

    /// Sends a buffer as a datagram to an address, or as a train of datagrams; waits for room in the
    /// socket.
    ///
    /// The socket need not be connected. [`Datagram`] has the wishes for one call: destination,
    /// source address and interface, size of a segment, transmit time. Each call is one send: one
    /// ticket, one way (by copy, or without), one fate.
    ///
    /// With [`Policy::Auto`](crate::Policy::Auto) the sender judges the routes of all destinations as
    /// one. Use a sender for each interface where some routes copy and others do not.
    ///
    /// # Errors
    ///
    /// [`SendError::Invalid`] names a broken limit and the remedy, in most cases before any call. The
    /// others are those of [`datagrams`](Self#datagrams). The buffer comes back.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::net::UdpSocket;
    /// use pinbuf::{Sender, sender::Datagram};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let receivers = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?];
    /// # let addresses = [receivers[0].local_addr()?, receivers[1].local_addr()?];
    /// let mut sender = Sender::new(UdpSocket::bind("127.0.0.1:0")?)?;
    /// let pool = pinbuf::Pool::new(16 * 1024, 4)?;
    /// for address in addresses {
    ///     let mut buf = pool.alloc(12 * 1200)?;
    ///     buf.resize(12 * 1200, 7);
    ///     # #[cfg(target_os = "linux")]
    ///     // 12 datagrams, in one call.
    ///     sender.send_to(buf, Datagram::to(address).segment_size(1200))?;
    ///     // One datagram.
    ///     sender.send_to(&b"hello"[..], address)?;
    /// }
    /// # let mut got = [0; 2000];
    /// # for receiver in &receivers {
    /// #     let lens: Vec<_> = (0..if cfg!(target_os = "linux") { 13 } else { 1 }).map(|_| receiver.recv(&mut got).unwrap()).collect();
    /// #     assert_eq!(lens.last(), Some(&5));
    /// # }
    /// # Ok(())
    /// # }
    /// ```
    pub fn send_to<P: IntoPayload>(
        &mut self,
        buf: P,
        to: impl Into<Datagram>,
    ) -> Result<Ticket, SendError<P>> {
        self.core().send_to(buf, to)
    }

    /// As [`send_to`](Self::send_to), if the socket takes the datagram or the train now; never blocks.
    ///
    /// # Errors
    ///
    /// [`SendError::WouldBlock`] if it does not, and the errors of [`send_to`](Self::send_to).
    pub fn try_send_to<P: IntoPayload>(
        &mut self,
        buf: P,
        to: impl Into<Datagram>,
    ) -> Result<Ticket, SendError<P>> {
        self.core().try_send_to(buf, to)
    }

    /// Writes borrowed bytes by copy, as many as the socket takes now. Never blocks.
    ///
    /// The bytes stand behind all sends. [`io::Write`] is the blocking form, and says more.
    /// [`poll_ready`](Self::poll_ready) waits after a refusal.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) when nothing was written, and the errors of
    /// [`try_send`](Self::try_send) as those of the system.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::net::{TcpListener, TcpStream};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = TcpStream::connect(listener.local_addr()?)?;
    /// # let _peer = listener.accept()?;
    /// let mut sender = pinbuf::Sender::new(socket)?;
    /// let line = format!("Content-Length: {}\r\n\r\n", 4096);
    /// assert_eq!(sender.try_write(line.as_bytes())?, line.len());
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.core().try_write(bytes)?)
    }

    /// A descriptor for event loops: readable when there is something to do.
    ///
    /// A loop watches this descriptor for reading, by levels (`poll(2)`) or by edges (mio, tokio), and
    /// not the socket. On each readiness:
    ///
    /// 1. call [`reap`](Self::reap), which takes the readiness away, and wakes tasks;
    /// 2. take what came back ([`next_returned`](Self::next_returned), [`fate`](Self::fate));
    /// 3. send again what was refused with [`WouldBlock`](SendError::WouldBlock).
    ///
    /// Every notification, room in the socket after a refusal, an error and a hangup make the
    /// descriptor readable once. Each state that lasts, such as the hangup of a dead connection or an
    /// unread notification, does so once too. So a loop neither spins nor misses news. The descriptor is
    /// readable from the beginning: the first `reap` looks at the present state.
    ///
    /// The descriptor is made by the first call, and closed with the sender. A runtime that owns what it
    /// watches takes a duplicate:
    /// `AsyncFd::new(sender.event_fd()?.try_clone_to_owned()?)`. Clear the runtime's readiness before
    /// each `reap`. Data to read is news once a task has called [`poll_readable`](Self::poll_readable).
    /// A send that a [`sender_quota`](crate::pool::PoolBuilder::sender_quota) refuses is
    /// possible again after a notification, as any other.
    ///
    /// # Errors
    ///
    /// The error of `epoll_create1(2)` or `epoll_ctl(2)`; `Unsupported` off Linux, where all sends go by
    /// copy: watch the socket for room to write there. `EPERM` in a forked child.
    ///
    /// # Performance
    ///
    /// Each `reap` of a sender with this descriptor makes one more system call (`epoll_wait`).
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{net::{TcpListener, TcpStream}, os::fd::{AsRawFd, BorrowedFd}};
    /// # fn await_readable(fd: BorrowedFd<'_>) {
    /// #     let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    /// #     // SAFETY: poll(2) reads and writes one entry, which outlives the call.
    /// #     assert_eq!(unsafe { libc::poll(&raw mut entry, 1, 60_000) }, 1);
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = TcpStream::connect(listener.local_addr()?)?;
    /// # let peer = std::thread::spawn(move || std::io::copy(&mut listener.accept().unwrap().0, &mut std::io::sink()));
    /// use pinbuf::{Pool, SendError, Sender};
    ///
    /// let pool = Pool::new(64 * 1024, 4)?;
    /// let mut sender = Sender::new(socket)?;
    /// for _ in 0..100 {
    ///     let mut buf = pool.alloc(64 * 1024)?;
    ///     buf.resize(64 * 1024, 7);
    ///     loop {
    ///         buf = match sender.try_send(buf) {
    ///             Err(SendError::WouldBlock(refused)) => refused,
    ///             sent => break sent.map(drop)?,
    ///         };
    ///         await_readable(sender.event_fd()?); // The loop of the program.
    ///         sender.reap()?;
    ///     }
    /// }
    /// # drop(sender);
    /// # assert_eq!(peer.join().unwrap()?, 100 * 64 * 1024);
    /// # Ok(())
    /// # }
    /// ```
    pub fn event_fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.core().event_fd()
    }

    /// The events to wait for before the next call, for a loop that uses `poll(2)` on the socket.
    ///
    /// [`event_fd`](Self::event_fd) is easier, and the only right way in mio and tokio: see
    /// [`Interest`].
    pub fn interest(&self) -> Interest {
        self.core().interest()
    }

    /// Reads the error queue, recycles or hands back released buffers, and sends the unsent part of the
    /// last send; never blocks.
    ///
    /// [`Reaped::unsent`] tells if a part is still unsent. With
    /// [`OnRelease::Return`](crate::sender::OnRelease::Return), fetch the payloads with
    /// [`next_returned`](Self::next_returned) afterwards.
    ///
    /// A failed connection is no error here, because its releases still come:
    /// [`connection_error`](Self::connection_error) tells. A `reap` that reads nothing asks the socket
    /// for the state of the connection (`TCP_INFO`), unless [`event_fd`](Self::event_fd) tells. Deregister the descriptor from the event loop once
    /// the connection is over: `POLLHUP` stays for good and would end every wait at once. The end of
    /// the peer's stream alone is no end of the connection, and datagrams have none.
    ///
    /// # Errors
    ///
    /// The error of `recvmsg(2)`, or of the call for the unsent part if it says nothing about the
    /// connection.
    pub fn reap(&mut self) -> io::Result<Reaped> {
        self.core().reap_and_flush()
    }

    /// The next payload handed back, in order of release; see [`OnRelease::Return`](crate::sender::OnRelease::Return).
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::net::{TcpListener, TcpStream};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = TcpStream::connect(listener.local_addr()?)?;
    /// # let _peer = listener.accept()?;
    /// let pool = pinbuf::Pool::new(64 * 1024, 1)?;
    /// let builder = pinbuf::Sender::builder().on_release(pinbuf::sender::OnRelease::Return);
    /// let mut sender = builder.adopt(socket)?;
    /// let mut buf = pool.alloc(64 * 1024)?;
    /// buf.resize(64 * 1024, 7);
    /// let ticket = sender.send(buf)?;
    /// assert!(sender.wait(ticket, None)?.is_released());
    /// let returned = sender.next_returned().expect("released");
    /// assert_eq!(returned.ticket, ticket);
    /// assert_eq!(returned.payload.len(), 64 * 1024);
    /// # Ok(())
    /// # }
    /// ```
    pub fn next_returned(&mut self) -> Option<Returned> {
        self.core().next_returned()
    }

    /// The next message of the error queue about something other than zero copy: a timestamp, an
    /// ICMP error. The queue keeps the last 64 messages; [`SenderStats::events_dropped`] counts
    /// older messages lost.
    pub fn next_event(&mut self) -> Option<ErrorQueueEvent> {
        self.core().next_event()
    }

    /// The fate of a send, or `None` while the send is open, according to the notifications read so
    /// far.
    ///
    /// # Errors
    ///
    /// [`WaitError::ForeignTicket`] for a ticket of another sender, and [`WaitError::Forked`] in a
    /// forked child.
    pub fn fate(&self, ticket: Ticket) -> Result<Option<Fate>, WaitError> {
        self.core().fate(ticket)
    }

    /// Polls until the buffer that was refused last may be tried again.
    ///
    /// Ready at once if the last send was not refused. Ready is a hint: the next try can be refused
    /// again, for example for a larger buffer. On a failed connection the next send tells.
    ///
    /// # Errors
    ///
    /// [`WaitError::Os`] with the error of `recvmsg(2)`, [`WaitError::NoThread`] and
    /// [`WaitError::Forked`].
    ///
    /// # Examples
    ///
    /// ```
    /// use pinbuf::{PinnedBuf, SendError, Sender, Ticket};
    /// use std::{future::poll_fn, io};
    ///
    /// async fn send(sender: &mut Sender, mut buf: PinnedBuf) -> io::Result<Ticket> {
    ///     loop {
    ///         match sender.try_send(buf) {
    ///             Err(SendError::WouldBlock(refused)) => buf = refused,
    ///             sent => return Ok(sent?),
    ///         }
    ///         poll_fn(|cx| sender.poll_ready(cx)).await?;
    ///     }
    /// }
    /// # fn block_on<T>(future: impl Future<Output = T>) -> T {
    /// #     let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     let mut future = std::pin::pin!(future);
    /// #     loop {
    /// #         if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut cx) {
    /// #             return value;
    /// #         }
    /// #     }
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = std::net::TcpStream::connect(listener.local_addr()?)?;
    /// # let mut far = listener.accept()?.0;
    /// # let peer = std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
    /// # let mut sender = Sender::new(socket)?;
    /// # let pool = pinbuf::Pool::new(64 << 10, 4)?;
    /// # for _ in 0..100 {
    /// #     let mut buf = pool.alloc(64 << 10)?;
    /// #     buf.resize(64 << 10, 7);
    /// #     block_on(send(&mut sender, buf))?;
    /// # }
    /// # drop(sender);
    /// # peer.join().unwrap()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WaitError>> {
        self.core().poll_ready(cx)
    }

    /// Polls until the socket has accepted every byte of the last send.
    ///
    /// # Errors
    ///
    /// The error of the connection, if it failed after a part of the last send was accepted. Also the
    /// errors of [`poll_ready`](Self::poll_ready).
    ///
    /// # Examples
    ///
    /// ```
    /// use pinbuf::{PinnedBuf, Sender, Ticket};
    /// use std::{future::poll_fn, io};
    ///
    /// async fn send_whole(sender: &mut Sender, buf: PinnedBuf) -> io::Result<Ticket> {
    ///     let ticket = sender.try_send(buf)?;
    ///     poll_fn(|cx| sender.poll_flush(cx)).await?;
    ///     Ok(ticket)
    /// }
    /// # fn block_on<T>(future: impl Future<Output = T>) -> T {
    /// #     let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     let mut future = std::pin::pin!(future);
    /// #     loop {
    /// #         if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut cx) {
    /// #             return value;
    /// #         }
    /// #     }
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = std::net::TcpStream::connect(listener.local_addr()?)?;
    /// # let mut far = listener.accept()?.0;
    /// # let peer = std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
    /// # let mut sender = Sender::new(socket)?;
    /// # let pool = pinbuf::Pool::new(4 << 20, 1)?;
    /// # let mut buf = pool.alloc(4 << 20)?;
    /// # buf.resize(4 << 20, 7);
    /// # assert_eq!(block_on(send_whole(&mut sender, buf))?.len(), 4 << 20);
    /// # drop(sender);
    /// # peer.join().unwrap()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.core().poll_flush(cx)
    }

    /// Polls for the fate of a send.
    ///
    /// The task of the last poll of this ticket is woken after the buffers of the send were dropped.
    /// Several tasks can wait for one ticket each.
    ///
    /// # Errors
    ///
    /// As [`fate`](Self::fate); also [`WaitError::Os`] with the error of `recvmsg(2)`, and
    /// [`WaitError::NoThread`].
    ///
    /// # Examples
    ///
    /// ```
    /// use pinbuf::{Fate, Sender, Ticket, WaitError};
    /// use std::future::poll_fn;
    ///
    /// async fn released(sender: &Sender, ticket: Ticket) -> Result<Fate, WaitError> {
    ///     poll_fn(|cx| sender.poll_fate(cx, ticket)).await
    /// }
    /// # fn block_on<T>(future: impl Future<Output = T>) -> T {
    /// #     let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     let mut future = std::pin::pin!(future);
    /// #     loop {
    /// #         if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut cx) {
    /// #             return value;
    /// #         }
    /// #     }
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = std::net::TcpStream::connect(listener.local_addr()?)?;
    /// # let mut far = listener.accept()?.0;
    /// # let peer = std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
    /// # let mut sender = Sender::new(socket)?;
    /// # let ticket = sender.try_send(&[7; 100_000])?;
    /// # assert!(block_on(released(&sender, ticket))?.is_released());
    /// # drop(sender);
    /// # peer.join().unwrap()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn poll_fate(&self, cx: &mut Context<'_>, ticket: Ticket) -> Poll<Result<Fate, WaitError>> {
        self.core().poll_fate(cx, ticket)
    }

    /// Polls until everything is accepted and released.
    ///
    /// See [`drain`](Self::drain).
    ///
    /// # Errors
    ///
    /// [`WaitError::Poisoned`] if the error queue can prove nothing any more, and the errors of
    /// [`poll_ready`](Self::poll_ready).
    ///
    /// # Examples
    ///
    /// ```
    /// use pinbuf::{Sender, WaitError};
    /// use std::future::poll_fn;
    ///
    /// async fn drain(sender: &mut Sender) -> Result<(), WaitError> {
    ///     poll_fn(|cx| sender.poll_drain(cx)).await
    /// }
    /// # fn block_on<T>(future: impl Future<Output = T>) -> T {
    /// #     let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     let mut future = std::pin::pin!(future);
    /// #     loop {
    /// #         if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut cx) {
    /// #             return value;
    /// #         }
    /// #     }
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = std::net::TcpStream::connect(listener.local_addr()?)?;
    /// # let mut far = listener.accept()?.0;
    /// # let peer = std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
    /// # let mut sender = Sender::new(socket)?;
    /// # sender.try_send(&[7; 100_000])?;
    /// # block_on(drain(&mut sender))?;
    /// # assert_eq!(sender.stats().leases, 0);
    /// # drop(sender);
    /// # peer.join().unwrap()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WaitError>> {
        self.core().poll_drain(cx)
    }

    /// Polls until a read of the socket would not wait: data came, the peer's stream ended, or the
    /// connection failed.
    ///
    /// For a program that watches [`event_fd`](Self::event_fd), which tells of data too from the first call
    /// on. Read first, and poll when the read would block. Ready is a hint: the next read may block again. Room
    /// in the socket makes no task ready, and no notification of a stream. A notification of a datagram may,
    /// since the news of an error is the same. The task of the last poll is woken.
    ///
    /// The kernel reports the error of a connection once: to a read, or to a send. After a send has reported the
    /// error, reads return the data that came before and then 0, as at the end of a whole stream. Ask
    /// [`connection_error`](Self::connection_error) at a read of 0: an error means that the stream was cut, such
    /// as `ECONNRESET`, `ETIMEDOUT` or, from a lost host, `EHOSTUNREACH`. Four are no such proof: `EPIPE` and
    /// `ENOTCONN` follow a whole stream too, and `ECANCELED` and `EFAULT` are the sender's own.
    ///
    /// # Errors
    ///
    /// The errors of [`event_fd`](Self::event_fd).
    ///
    /// # Examples
    ///
    /// ```
    /// use pinbuf::Sender;
    /// use std::{future::poll_fn, io::{self, Read}, net::TcpStream};
    ///
    /// /// Reads from a socket that does not block.
    /// async fn read(sender: &Sender<TcpStream>, into: &mut [u8]) -> io::Result<usize> {
    ///     loop {
    ///         match sender.get_ref().read(into) {
    ///             Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
    ///             read => return read,
    ///         }
    ///         poll_fn(|cx| sender.poll_readable(cx)).await?;
    ///     }
    /// }
    /// # fn block_on<T>(future: impl Future<Output = T>) -> T {
    /// #     let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     let mut future = std::pin::pin!(future);
    /// #     loop {
    /// #         if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut cx) {
    /// #             return value;
    /// #         }
    /// #     }
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = TcpStream::connect(listener.local_addr()?)?;
    /// # socket.set_nonblocking(true)?;
    /// # let mut far = listener.accept()?.0;
    /// # let peer = std::thread::spawn(move || {
    /// #     std::thread::sleep(std::time::Duration::from_millis(50));
    /// #     std::io::Write::write_all(&mut far, b"hello").map(|()| far)
    /// # });
    /// # let sender = Sender::builder().adopt(socket)?;
    /// # let mut into = [0; 8];
    /// # assert_eq!(block_on(read(&sender, &mut into))?, 5);
    /// # drop(peer.join().unwrap()?);
    /// # assert_eq!(block_on(read(&sender, &mut into))?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.core().poll_readable(cx)
    }

    /// Ends the stream in order, and polls until the kernel has released everything.
    ///
    /// The first poll begins the end, as [`close`](Self::close) does. Further buffers are refused
    /// with `EPIPE`. After a time limit of the caller, [`abort`](Self::abort) ends the connection at once.
    /// A drop leaves the rest of the end to the background.
    ///
    /// # Errors
    ///
    /// The errors of [`poll_ready`](Self::poll_ready). The end has begun then.
    ///
    /// # Examples
    ///
    /// ```
    /// use pinbuf::{Sender, WaitError, sender::CloseReport};
    /// use std::future::poll_fn;
    ///
    /// async fn close(mut sender: Sender) -> Result<CloseReport, WaitError> {
    ///     poll_fn(|cx| sender.poll_close(cx)).await
    /// }
    /// # fn block_on<T>(future: impl Future<Output = T>) -> T {
    /// #     let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     let mut future = std::pin::pin!(future);
    /// #     loop {
    /// #         if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut cx) {
    /// #             return value;
    /// #         }
    /// #     }
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = std::net::TcpStream::connect(listener.local_addr()?)?;
    /// # let mut far = listener.accept()?.0;
    /// # let peer = std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
    /// # let mut sender = Sender::new(socket)?;
    /// # sender.try_send(&[7; 100_000])?;
    /// # assert!(block_on(close(sender))?.drained);
    /// # peer.join().unwrap()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<CloseReport, WaitError>> {
        self.core().poll_close(cx)
    }

    /// Blocks until a send has its fate, for `timeout` at most (`None`: without limit).
    ///
    /// # Errors
    ///
    /// [`WaitError::TimedOut`], or at once [`WaitError::Poisoned`] if the error queue can prove
    /// nothing any more, and [`WaitError::ForeignTicket`] for a ticket of another sender.
    pub fn wait(&mut self, ticket: Ticket, timeout: Option<Duration>) -> Result<Fate, WaitError> {
        self.core().wait(ticket, self.core().deadline(timeout))
    }

    /// Blocks until everything is accepted and released, for `timeout` at most (`None`: without
    /// limit).
    ///
    /// On return every buffer is recycled or ready to be handed back, including buffers with a
    /// release that another thread has read.
    ///
    /// On a failed connection the drain waits for the releases only; see
    /// [`connection_error`](Self::connection_error).
    ///
    /// # Errors
    ///
    /// [`WaitError::TimedOut`], or at once [`WaitError::Poisoned`] if the error queue can prove
    /// nothing any more.
    pub fn drain(&mut self, timeout: Option<Duration>) -> Result<(), WaitError> {
        self.core().drain(self.core().deadline(timeout))
    }

    /// Ends the stream in order and waits until the kernel has released everything.
    ///
    /// The call sends the unsent part, shuts down the writing side and drains. After `timeout` the
    /// connection is [aborted](Self::abort). Where the end was not in order, the report says why.
    ///
    /// Without a timeout (`None`) a peer that never reads holds the call for ever, unless
    /// [`max_hold`](crate::sender::SenderBuilder::max_hold) ends the connection.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{net::{TcpListener, TcpStream}, time::Duration};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = TcpStream::connect(listener.local_addr()?)?;
    /// # let peer = std::thread::spawn(move || std::io::copy(&mut listener.accept().unwrap().0, &mut std::io::sink()));
    /// let mut sender = pinbuf::Sender::new(socket)?;
    /// sender.send(&[7; 100_000][..])?;
    /// let report = sender.close(Some(Duration::from_secs(10)));
    /// assert!(report.drained, "aborted: {}, error: {:?}", report.aborted, report.error);
    /// # assert_eq!(peer.join().unwrap()?, 100_000);
    /// # Ok(())
    /// # }
    /// ```
    pub fn close(mut self, timeout: Option<Duration>) -> CloseReport {
        let core = self.core.take().expect("present until taken apart");
        let deadline = core.deadline(timeout);
        core.close(deadline)
    }

    /// Ends the connection at once: the peer sees a reset.
    ///
    /// Unsent data and received data not yet read are lost. The kernel usually releases the memory
    /// within milliseconds. Memory that a packet in a queue below TCP still carries stays untouched
    /// in the reaper's care.
    ///
    /// The connection ends for every handle of the socket.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::net::{TcpListener, TcpStream};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = TcpStream::connect(listener.local_addr()?)?;
    /// # let _peer = listener.accept()?;
    /// let pool = pinbuf::Pool::new(64 * 1024, 1)?;
    /// let mut sender = pinbuf::Sender::new(socket)?;
    /// let mut buf = pool.alloc(64 * 1024)?;
    /// buf.resize(64 * 1024, 7);
    /// sender.send(buf)?;
    /// let report = sender.abort();
    /// assert!(!report.drained);
    /// // The slot is back, though the peer has read nothing.
    /// let _buf = pool.alloc_timeout(64 * 1024, std::time::Duration::from_secs(10))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn abort(mut self) -> CloseReport {
        self.core.take().expect("present until taken apart").break_off()
    }

    /// Counters and state.
    pub fn stats(&self) -> SenderStats {
        self.core().stats()
    }

    /// A snapshot of the times from zero-copy calls to their releases, if
    /// [switched on](crate::sender::SenderBuilder::release_times).
    #[cfg(feature = "histogram")]
    #[cfg_attr(docsrs, doc(cfg(feature = "histogram")))]
    pub fn release_times(&self) -> Option<ReleaseTimes> {
        self.core().release_times()
    }

    /// The least time for which the peer has acknowledged nothing while something is held: a send
    /// in flight, accepted bytes not yet acknowledged, or the unsent part of a send. `None` if
    /// nothing is held. Sends by copy and sends without copy count alike.
    ///
    /// A growing time means a peer that acknowledges nothing; see
    /// [`SenderBuilder::max_hold`](crate::sender::SenderBuilder::max_hold). An acknowledgement counts from
    /// the look that finds it. Each call of this method is a look, and with `max_hold` there are
    /// more. For datagrams, which peers do not acknowledge, the time is the age of the oldest send
    /// in flight.
    ///
    /// # Performance
    ///
    /// One system call (`SIOCOUTQ`).
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{net::{TcpListener, TcpStream}, time::Duration};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = TcpListener::bind("127.0.0.1:0")?;
    /// # let socket = TcpStream::connect(listener.local_addr()?)?;
    /// # let _peer = listener.accept()?;
    /// let mut sender = pinbuf::Sender::new(socket)?;
    /// while sender.try_send(&[7; 65536]).is_ok() {}
    /// // Later, in a loop over all peers:
    /// if sender.held_for() > Some(Duration::from_secs(30)) {
    ///     println!("the peer lags: {:?}", sender.get_ref());
    /// }
    /// # let _ = sender.abort();
    /// # Ok(())
    /// # }
    /// ```
    pub fn held_for(&self) -> Option<Duration> {
        self.core().held_for()
    }

    /// Returns whether sends can go without copy now, and if not, the reason.
    pub fn capabilities(&self) -> Capabilities {
        self.core().capabilities()
    }

    /// The first error of a failed or ended connection; stays readable.
    ///
    /// `ENOTCONN` means that [`reap`](Self::reap) found the connection over before any send has
    /// reported the cause. The cause stays in `SO_ERROR` for the next read or send: a send that
    /// reports the cause replaces `ENOTCONN` here.
    pub fn connection_error(&self) -> Option<OsError> {
        self.core().connection_error()
    }

    /// The socket, for reading and for socket options.
    pub fn get_ref(&self) -> &S {
        &self.core().kernel.socket
    }

    /// Takes the sender apart, when nothing is in flight and nothing unsent.
    ///
    /// The kernel goes on counting the socket's zero-copy calls: hand the [`ZeroCopyState`] to
    /// [`SenderBuilder::resume`](crate::sender::SenderBuilder::resume) to send on later.
    ///
    /// # Errors
    ///
    /// The sender, when something is in flight or unsent: [`drain`](Self::drain) first.
    pub fn into_parts(mut self) -> Result<(S, ZeroCopyState), Self> {
        if self.core().run(Goal::Flush).is_err() || !self.core().is_drained() {
            return Err(self);
        }
        let mut core = self.core.take().expect("present until taken apart");
        let ids = ZeroCopyState(match core.capabilities().reason {
            Some(reason @ (CopyReason::Poisoned(_) | CopyReason::Ignored)) => Err(reason),
            _ => Ok(core.next_id()),
        });
        loop {
            // A waiting thread, or the reaper, may hold the core for a moment.
            match Core::into_kernel(core) {
                Ok(SocketKernel { socket, .. }) => return Ok((socket, ids)),
                Err(back) => core = back,
            }
            yield_now();
        }
    }

    /// Splits the sender in two, for a sending thread and a reaping thread.
    ///
    /// Either half reads notifications when necessary, so neither depends on the other. Dropping
    /// the sending half begins the orderly end of the stream. The half dropped last leaves an
    /// unfinished end to the reaper.
    pub fn split(mut self) -> (SendHalf<S>, ReapHalf<S>) {
        split::halves(self.core.take().expect("present until taken apart"))
    }

    fn core(&self) -> &Arc<Core<SocketKernel<S>>> {
        self.core.as_ref().expect("present until taken apart")
    }
}

/// Writes borrowed bytes by copy, in order with the sends: a header, a trailer, a line of a protocol.
///
/// A write waits until the socket takes any of the bytes, first behind the unsent part of the last send.
/// On return the caller may reuse the bytes. The timeouts and `O_NONBLOCK` of the socket play no part. Over
/// UDP each write is one datagram.
///
/// `flush` waits until the socket has accepted every byte of the sends before, and not for the peer, nor
/// for any release. An error of `flush` tells that the last send was cut short.
///
/// # Performance
///
/// With nothing unsent a write is one system call, as `write(2)`, without an allocation. So format a text
/// first: `write!` makes a call for each of its pieces.
///
/// # Examples
///
/// ```
/// # use std::{io::Read, net::{TcpListener, TcpStream}};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let socket = TcpStream::connect(listener.local_addr()?)?;
/// # let mut peer = listener.accept()?.0;
/// use std::io::Write;
///
/// let mut sender = pinbuf::Sender::new(socket)?;
/// let body = vec![b'x'; 32 * 1024];
/// let head = format!("Content-Length: {}\r\n\r\n", body.len());
/// sender.write_all(head.as_bytes())?;
/// sender.send(body)?;
/// sender.flush()?;
/// # drop(sender);
/// # let mut got = String::new();
/// # peer.read_to_string(&mut got)?;
/// # assert_eq!(got, format!("Content-Length: 32768\r\n\r\n{}", "x".repeat(32768)));
/// # Ok(())
/// # }
/// ```
impl<S: Socket> io::Write for Sender<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.core().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.core().flush()
    }
}

impl<S: Socket> Drop for Sender<S> {
    fn drop(&mut self) {
        if let Some(core) = self.core.take() {
            core.leave(false);
        }
    }
}

impl<S: Socket> AsFd for Sender<S> {
    /// The socket, for its options. An event loop watches [`event_fd`](Sender::event_fd) instead. A
    /// write to the socket past the sender is fine only without `MSG_ZEROCOPY` and with nothing
    /// [unsent](Reaped::unsent).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.get_ref().as_fd()
    }
}

impl<S: Socket + fmt::Debug> fmt::Debug for Sender<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("socket", self.get_ref())
            .field("capabilities", &self.capabilities())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
