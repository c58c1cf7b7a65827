//! A sender in two halves, for two threads.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::{
    Capabilities, Fate, Interest, Reaped, Returned, SenderStats, driver::Core, kernel::Socket,
};
use crate::{
    error::{OsError, SendError, WaitError},
    id::Ticket,
    lease::{IntoPayload, Payload},
    sync::Arc,
    sys::Foreign,
};

/// The half that sends; from [`Sender::split`](super::Sender::split).
///
/// It reads notes by itself when its window is full, whatever the other half does. Dropping it
/// begins the end of the stream: what is left is flushed and the stream shut down, by the other
/// half's calls, or by the reaper once that is gone too.
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
/// # assert!(pinbuf::wait_idle(std::time::Instant::now() + std::time::Duration::from_secs(10)));
/// # assert_eq!(peer.join().unwrap()?, 1 << 20);
/// # Ok(())
/// # }
/// ```
pub struct SendHalf<S: AsFd + Send + Sync + 'static>(Half<S>);

/// The half that reads the error queue; from [`Sender::split`](super::Sender::split).
///
/// In an event loop: watch its descriptor for errors (they need no asking for in `poll(2)` and
/// `epoll(7)`; edges are enough), and call [`reap`](Self::reap) on each. Deregister the descriptor
/// once [`connection_error`](Self::connection_error) tells of the end of the connection, or once the
/// sending half is dropped and [`interest`](Self::interest) is empty: a hangup stays for good.
pub struct ReapHalf<S: AsFd + Send + Sync + 'static>(Half<S>);

pub(super) fn halves<S: AsFd + Send + Sync + 'static>(
    core: Arc<Core<Socket<S>>>,
) -> (SendHalf<S>, ReapHalf<S>) {
    core.share();
    (SendHalf(Half(Some(Arc::clone(&core)))), ReapHalf(Half(Some(core))))
}

/// One of two owners of a core.
struct Half<S: AsFd + Send + Sync + 'static>(
    /// `None` only while being dropped.
    Option<Arc<Core<Socket<S>>>>,
);

impl<S: AsFd + Send + Sync + 'static> Half<S> {
    fn core(&self) -> &Arc<Core<Socket<S>>> {
        self.0.as_ref().expect("present until dropped")
    }

    fn leave(&mut self, begin_end: bool) {
        if let Some(core) = self.0.take() {
            core.leave(begin_end);
        }
    }
}

impl<S: AsFd + Send + Sync + 'static> Drop for SendHalf<S> {
    fn drop(&mut self) {
        self.0.leave(true);
    }
}

impl<S: AsFd + Send + Sync + 'static> Drop for ReapHalf<S> {
    fn drop(&mut self) {
        self.0.leave(false);
    }
}

impl<S: AsFd + Send + Sync + 'static> SendHalf<S> {
    /// As [`Sender::try_send`](super::Sender::try_send).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_send<P: IntoPayload>(&mut self, buf: P) -> Result<Ticket, SendError<P>> {
        self.0.core().try_send(buf)
    }

    /// As [`Sender::send`](super::Sender::send).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send<P: IntoPayload>(&mut self, buf: P) -> Result<Ticket, SendError<P>> {
        self.0.core().send(buf)
    }

    /// As [`Sender::send_timeout`](super::Sender::send_timeout).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_timeout<P: IntoPayload>(
        &mut self,
        buf: P,
        timeout: Duration,
    ) -> Result<Ticket, SendError<P>> {
        self.0.core().send_timeout(buf, timeout)
    }

    /// As [`Sender::try_send_vectored`](super::Sender::try_send_vectored).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_send_vectored(&mut self, bufs: &mut Vec<Payload>) -> Result<Ticket, SendError<()>> {
        self.0.core().try_send_vectored(bufs)
    }

    /// As [`Sender::send_vectored`](super::Sender::send_vectored).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_vectored(&mut self, bufs: &mut Vec<Payload>) -> Result<Ticket, SendError<()>> {
        self.0.core().send_vectored(bufs)
    }

    /// As [`Sender::flush`](super::Sender::flush).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn flush(&mut self) -> Result<bool, OsError> {
        self.0.core().flush_now()
    }
}

impl<S: AsFd + Send + Sync + 'static> ReapHalf<S> {
    /// As [`Sender::reap`](super::Sender::reap).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn reap(&mut self) -> io::Result<Reaped> {
        self.0.core().reap()
    }

    /// As [`Sender::next_returned`](super::Sender::next_returned).
    pub fn next_returned(&mut self) -> Option<Returned> {
        self.0.core().next_returned()
    }

    /// As [`Sender::next_event`](super::Sender::next_event).
    pub fn next_event(&mut self) -> Option<Foreign> {
        self.0.core().next_event()
    }

    /// As [`Sender::poll_fate`](super::Sender::poll_fate).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll_fate(
        &mut self,
        cx: &mut Context<'_>,
        ticket: Ticket,
    ) -> Poll<Result<Fate, WaitError>> {
        self.0.core().poll_fate(cx, ticket)
    }

    /// As [`Sender::wait`](super::Sender::wait).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait(&mut self, ticket: Ticket, deadline: Option<Instant>) -> Result<Fate, WaitError> {
        self.0.core().wait(ticket, deadline)
    }

    /// As [`Sender::drain`](super::Sender::drain): waits until nothing is in flight at the moment.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn drain(&mut self, deadline: Option<Instant>) -> Result<(), WaitError> {
        self.0.core().drain(deadline)
    }
}

/// What both halves tell.
macro_rules! both_halves {
    ($half:ident) => {
        impl<S: AsFd + Send + Sync + 'static> $half<S> {
            /// As [`Sender::fate`](super::Sender::fate).
            ///
            /// # Errors
            ///
            /// As there.
            pub fn fate(&self, ticket: Ticket) -> Result<Option<Fate>, WaitError> {
                self.0.core().fate(ticket)
            }

            /// As [`Sender::interest`](super::Sender::interest).
            pub fn interest(&self) -> Interest {
                self.0.core().interest()
            }

            /// As [`Sender::stats`](super::Sender::stats).
            pub fn stats(&self) -> SenderStats {
                self.0.core().stats()
            }

            /// As [`Sender::capabilities`](super::Sender::capabilities).
            pub fn capabilities(&self) -> Capabilities {
                self.0.core().capabilities()
            }

            /// As [`Sender::oldest_in_flight`](super::Sender::oldest_in_flight).
            pub fn oldest_in_flight(&self) -> Option<Duration> {
                self.0.core().oldest()
            }

            /// As [`Sender::connection_error`](super::Sender::connection_error).
            pub fn connection_error(&self) -> Option<OsError> {
                self.0.core().connection_error()
            }

            /// As [`Sender::get_ref`](super::Sender::get_ref).
            pub fn get_ref(&self) -> &S {
                &self.0.core().kernel.0
            }
        }

        impl<S: AsFd + Send + Sync + 'static> AsFd for $half<S> {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.get_ref().as_fd()
            }
        }

        impl<S: AsFd + Send + Sync + fmt::Debug + 'static> fmt::Debug for $half<S> {
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
