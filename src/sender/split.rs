//! A sender in two halves, for two threads.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
    task::{Context, Poll},
    time::Duration,
};

#[cfg(feature = "histogram")]
use super::release_times::ReleaseTimes;
use super::{
    Capabilities, CloseReport, Fate, Interest, Reaped, Returned, SenderStats,
    datagram::Datagram,
    driver::Core,
    kernel::{Socket, SocketKernel},
};
use crate::{
    error::{OsError, SendError, WaitError},
    id::Ticket,
    lease::{IntoPayload, Payload},
    sync::Arc,
    sys::ErrorQueueEvent,
};

/// The half that sends; from [`Sender::split`](super::Sender::split).
///
/// The half reads notifications by itself when its window is full, without the help of the reaping
/// half. Dropping the half begins the end of the stream: the unsent part is flushed and the stream
/// shut down, by calls of the reaping half, or by the reaper thread once both halves are dropped.
///
/// ```
/// # use std::{net::{TcpListener, TcpStream}, thread};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let address = listener.local_addr()?;
/// # let peer = thread::spawn(move || std::io::copy(&mut listener.accept().unwrap().0, &mut std::io::sink()));
/// let sender = pinbuf::Sender::new(TcpStream::connect(address)?)?;
/// let (mut send, mut reap) = sender.split();
/// let reaping = thread::spawn(move || reap.drain(None).map(|()| reap.stats().released_calls));
/// static DATA: [u8; 1 << 20] = [7; 1 << 20];
/// let ticket = send.send(&DATA[..])?;
/// drop(send);
/// assert!(reaping.join().unwrap().is_ok());
/// # assert!(pinbuf::reaper::wait_idle(Some(std::time::Duration::from_secs(10))));
/// # assert_eq!(peer.join().unwrap()?, 1 << 20);
/// # Ok(())
/// # }
/// ```
pub struct SendHalf<S: Socket>(Half<S>);

/// The half that reads the error queue; from [`Sender::split`](super::Sender::split).
///
/// In an event loop, either half can be the one that watches [`event_fd`](Self::event_fd) and calls
/// [`reap`](Self::reap): the news is of both.
pub struct ReapHalf<S: Socket>(Half<S>);

pub(super) fn halves<S: Socket>(core: Arc<Core<SocketKernel<S>>>) -> (SendHalf<S>, ReapHalf<S>) {
    core.share();
    (SendHalf(Half(Some(Arc::clone(&core)))), ReapHalf(Half(Some(core))))
}

/// One of the two owners of a core.
struct Half<S: Socket>(
    /// `None` only while being dropped.
    Option<Arc<Core<SocketKernel<S>>>>,
);

impl<S: Socket> Half<S> {
    fn core(&self) -> &Arc<Core<SocketKernel<S>>> {
        self.0.as_ref().expect("present until dropped")
    }

    fn leave(&mut self, begin_end: bool) {
        if let Some(core) = self.0.take() {
            core.leave(begin_end);
        }
    }
}

impl<S: Socket> Drop for SendHalf<S> {
    fn drop(&mut self) {
        self.0.leave(true);
    }
}

impl<S: Socket> Drop for ReapHalf<S> {
    fn drop(&mut self) {
        self.0.leave(false);
    }
}

impl<S: Socket> SendHalf<S> {
    /// Sends a buffer as far as the socket takes it now; never blocks.
    ///
    /// See [`Sender::try_send`](super::Sender::try_send).
    ///
    /// # Errors
    ///
    /// [`SendError::WouldBlock`] if nothing was accepted, and the errors of the connection and of
    /// the call. The buffer comes back, except with [`SendError::Truncated`].
    pub fn try_send<P: IntoPayload>(&mut self, buf: P) -> Result<Ticket, SendError<P>> {
        self.0.core().try_send(buf)
    }

    /// Sends a buffer, blocking until the socket has accepted every byte.
    ///
    /// See [`Sender::send`](super::Sender::send).
    ///
    /// # Errors
    ///
    /// The errors of the connection and of the call. The buffer comes back, except with
    /// [`SendError::Truncated`].
    pub fn send<P: IntoPayload>(&mut self, buf: P) -> Result<Ticket, SendError<P>> {
        self.0.core().send(buf)
    }

    /// Sends a buffer, blocking until the socket has accepted every byte or the time is up.
    ///
    /// See [`Sender::send_timeout`](super::Sender::send_timeout).
    ///
    /// # Errors
    ///
    /// The errors of [`send`](Self::send). When the time is up: [`SendError::TimedOut`] with the
    /// buffer if nothing was accepted, [`SendError::Unfinished`] with the ticket if a part was.
    pub fn send_timeout<P: IntoPayload>(
        &mut self,
        buf: P,
        timeout: Duration,
    ) -> Result<Ticket, SendError<P>> {
        self.0.core().send_timeout(buf, timeout)
    }

    /// Sends several buffers as one send, in order, as far as the socket takes them now.
    ///
    /// See [`Sender::try_send_vectored`](super::Sender::try_send_vectored).
    ///
    /// # Errors
    ///
    /// The errors of [`try_send`](Self::try_send). `bufs` is unchanged, except with
    /// [`SendError::Truncated`].
    pub fn try_send_vectored(&mut self, bufs: &mut Vec<Payload>) -> Result<Ticket, SendError<()>> {
        self.0.core().try_send_vectored(bufs)
    }

    /// Sends several buffers as one send, blocking until the socket has accepted all of them.
    ///
    /// See [`Sender::send_vectored`](super::Sender::send_vectored).
    ///
    /// # Errors
    ///
    /// The errors of [`send`](Self::send). `bufs` is unchanged, except with
    /// [`SendError::Truncated`].
    pub fn send_vectored(&mut self, bufs: &mut Vec<Payload>) -> Result<Ticket, SendError<()>> {
        self.0.core().send_vectored(bufs)
    }

    /// Sends a buffer as a datagram to an address, or as a train of datagrams; waits for room in the
    /// socket.
    ///
    /// See [`Sender::send_to`](super::Sender::send_to).
    ///
    /// # Errors
    ///
    /// The errors of [`send`](Self::send), and [`SendError::Invalid`]. The buffer comes back.
    pub fn send_to<P: IntoPayload>(
        &mut self,
        buf: P,
        to: impl Into<Datagram>,
    ) -> Result<Ticket, SendError<P>> {
        self.0.core().send_to(buf, to)
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
        self.0.core().try_send_to(buf, to)
    }

    /// Writes borrowed bytes by copy, as many as the socket takes now. Never blocks.
    ///
    /// See [`Sender::try_write`](super::Sender::try_write).
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) when nothing was written, and the errors of
    /// [`try_send`](Self::try_send) as those of the system.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.0.core().try_write(bytes)?)
    }

    /// Sends the unsent part of the last send, and reads the error queue; never blocks.
    ///
    /// See [`Sender::reap`](super::Sender::reap).
    ///
    /// # Errors
    ///
    /// The error of `recvmsg(2)`, or of the call for the unsent part if it says nothing about the
    /// connection.
    pub fn reap(&mut self) -> io::Result<Reaped> {
        self.0.core().reap_and_flush()
    }

    /// Polls until the buffer that was refused last may be tried again.
    ///
    /// See [`Sender::poll_ready`](super::Sender::poll_ready).
    ///
    /// # Errors
    ///
    /// [`WaitError::Os`] with the error of `recvmsg(2)`, [`WaitError::NoThread`] and
    /// [`WaitError::Forked`].
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WaitError>> {
        self.0.core().poll_ready(cx)
    }

    /// Polls until the socket has accepted every byte of the last send.
    ///
    /// See [`Sender::poll_flush`](super::Sender::poll_flush).
    ///
    /// # Errors
    ///
    /// The error of the connection, if it failed after a part of the last send was accepted. Also the
    /// errors of [`poll_ready`](Self::poll_ready).
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.core().poll_flush(cx)
    }

    /// Ends the stream in order, and polls until the kernel has released everything.
    ///
    /// See [`Sender::poll_close`](super::Sender::poll_close).
    ///
    /// # Errors
    ///
    /// The errors of [`poll_ready`](Self::poll_ready). The end has begun then.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<CloseReport, WaitError>> {
        self.0.core().poll_close(cx)
    }

    /// Ends the connection at once: the peer sees a reset.
    ///
    /// See [`Sender::abort`](super::Sender::abort). The reaping half still has the fates.
    pub fn abort(mut self) -> CloseReport {
        self.0.0.take().expect("present until dropped").break_off()
    }
}

/// Writes borrowed bytes by copy, in order with the sends.
///
/// See the same for [`Sender`](super::Sender#impl-Write-for-Sender<S>).
impl<S: Socket> io::Write for SendHalf<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.core().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.core().flush()
    }
}

impl<S: Socket> ReapHalf<S> {
    /// Reads the error queue and recycles or hands back released buffers; never blocks.
    ///
    /// See [`Sender::reap`](super::Sender::reap).
    ///
    /// # Errors
    ///
    /// The error of `recvmsg(2)`.
    pub fn reap(&self) -> io::Result<Reaped> {
        self.0.core().reap()
    }

    /// Wakes all tasks that wait, without news.
    #[cfg(feature = "tokio")]
    pub(crate) fn wake_tasks(&self) {
        self.0.core().wake_tasks();
    }

    /// The error that has cut the peer's stream, if the kernel told a call of the sender.
    #[cfg(feature = "tokio")]
    pub(crate) fn cut(&self) -> Option<OsError> {
        self.0.core().cut()
    }

    /// Returns the next payload handed back, in order of release.
    ///
    /// See [`OnRelease::Return`](crate::sender::OnRelease::Return).
    pub fn next_returned(&self) -> Option<Returned> {
        self.0.core().next_returned()
    }

    /// Returns the next message of the error queue about something other than zero copy.
    pub fn next_event(&mut self) -> Option<ErrorQueueEvent> {
        self.0.core().next_event()
    }

    /// Polls for the fate of a send. Several tasks can wait for one ticket each.
    ///
    /// See [`Sender::poll_fate`](super::Sender::poll_fate).
    ///
    /// # Errors
    ///
    /// The errors of [`fate`](Self::fate); also [`WaitError::Os`] with the error of `recvmsg(2)`,
    /// and [`WaitError::NoThread`].
    pub fn poll_fate(&self, cx: &mut Context<'_>, ticket: Ticket) -> Poll<Result<Fate, WaitError>> {
        self.0.core().poll_fate(cx, ticket)
    }

    /// Polls until everything is accepted and released. The sending half may send on afterwards.
    ///
    /// See [`Sender::poll_drain`](super::Sender::poll_drain). The task of the last poll is woken.
    ///
    /// # Errors
    ///
    /// [`WaitError::Poisoned`] if the error queue can prove nothing any more, and the errors of
    /// [`poll_fate`](Self::poll_fate) that are not about tickets.
    pub fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<Result<(), WaitError>> {
        self.0.core().poll_drain(cx)
    }

    /// Polls until a read of the socket would not wait. The task of the last poll is woken.
    ///
    /// See [`Sender::poll_readable`](super::Sender::poll_readable).
    ///
    /// # Errors
    ///
    /// The errors of [`event_fd`](Self::event_fd).
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.core().poll_readable(cx)
    }

    /// Blocks until a send has its fate, for `timeout` at most (`None`: without limit).
    ///
    /// # Errors
    ///
    /// [`WaitError::TimedOut`], or at once [`WaitError::Poisoned`] if the error queue can prove
    /// nothing any more, and [`WaitError::ForeignTicket`] for a ticket of another sender.
    pub fn wait(&mut self, ticket: Ticket, timeout: Option<Duration>) -> Result<Fate, WaitError> {
        self.0.core().wait(ticket, self.0.core().deadline(timeout))
    }

    /// Blocks until nothing is in flight, for `timeout` at most (`None`: without limit). The sending
    /// half may send on afterwards.
    ///
    /// # Errors
    ///
    /// [`WaitError::TimedOut`], or at once [`WaitError::Poisoned`] if the error queue can prove
    /// nothing any more.
    pub fn drain(&mut self, timeout: Option<Duration>) -> Result<(), WaitError> {
        self.0.core().drain(self.0.core().deadline(timeout))
    }
}

/// The state and results that both halves tell.
macro_rules! both_halves {
    ($half:ident) => {
        impl<S: Socket> $half<S> {
            /// Returns the fate of a send, or `None` while the send is open.
            ///
            /// # Errors
            ///
            /// [`WaitError::ForeignTicket`] for a ticket of another sender, and
            /// [`WaitError::Forked`] in a forked child.
            pub fn fate(&self, ticket: Ticket) -> Result<Option<Fate>, WaitError> {
                self.0.core().fate(ticket)
            }

            /// A descriptor for event loops: readable when there is something to do for either half.
            ///
            /// See [`Sender::event_fd`](super::Sender::event_fd). Both halves have the same descriptor.
            ///
            /// # Errors
            ///
            /// The error of `epoll_create1(2)` or `epoll_ctl(2)`; `Unsupported` off Linux; `EPERM` in a
            /// forked child.
            pub fn event_fd(&self) -> io::Result<BorrowedFd<'_>> {
                self.0.core().event_fd()
            }

            /// Returns the events to wait for before the next call.
            pub fn interest(&self) -> Interest {
                self.0.core().interest()
            }

            /// Returns the counters and the state of the sender.
            pub fn stats(&self) -> SenderStats {
                self.0.core().stats()
            }

            /// A snapshot of the times from zero-copy calls to their releases, if
            /// [switched on](crate::sender::SenderBuilder::release_times).
            #[cfg(feature = "histogram")]
            #[cfg_attr(docsrs, doc(cfg(feature = "histogram")))]
            pub fn release_times(&self) -> Option<ReleaseTimes> {
                self.0.core().release_times()
            }

            /// Returns whether sends can go without copy now, and if not, the reason.
            pub fn capabilities(&self) -> Capabilities {
                self.0.core().capabilities()
            }

            /// Returns the least time for which the peer has acknowledged nothing while something
            /// is held.
            ///
            /// See [`Sender::held_for`](super::Sender::held_for).
            pub fn held_for(&self) -> Option<Duration> {
                self.0.core().held_for()
            }

            /// Returns the first error of a failed or ended connection.
            pub fn connection_error(&self) -> Option<OsError> {
                self.0.core().connection_error()
            }

            /// Returns the socket, for reading and for socket options.
            pub fn get_ref(&self) -> &S {
                &self.0.core().kernel.socket
            }
        }

        impl<S: Socket> AsFd for $half<S> {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.get_ref().as_fd()
            }
        }

        impl<S: Socket + fmt::Debug> fmt::Debug for $half<S> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($half))
                    .field("socket", self.get_ref())
                    .field("stats", &self.stats())
                    .finish_non_exhaustive()
            }
        }
    };
}

both_halves!(SendHalf);
both_halves!(ReapHalf);
