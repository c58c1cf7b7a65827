//! The shared part of a stream: the registration with the runtime, and the task that takes the news.

use std::{
    fmt, io,
    os::fd::{AsRawFd, RawFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use ::tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Handle,
    task::AbortHandle,
    time,
};

use super::looks;
use crate::{
    error::WaitError,
    panics::Panics,
    sender::{ReapHalf, Socket},
    sync::{Arc, OnceLock, Weak},
    turns::{Listed, Member},
};

/// Owned by the halves of a stream and by futures that wait for a fate.
pub(super) struct Connection<S: Socket> {
    /// Registered for reading alone.
    events: AsyncFd<Events<S>>,
    driver: OnceLock<AbortHandle>,
    runtime: Handle,
    listed: Listed,
}

/// The half whose `event_fd` the runtime watches.
struct Events<S: Socket> {
    reap: ReapHalf<S>,
    /// The number of the `event_fd`, which stays open as long as the half.
    fd: RawFd,
}

impl<S: Socket> AsRawFd for Events<S> {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl<S: Socket> Connection<S> {
    /// Registers the news of the sender with the current runtime, and spawns the driver there.
    pub(super) fn new(reap: ReapHalf<S>) -> io::Result<Arc<Self>> {
        // Panics here without a timer, and not in a task later: the looks need the timer.
        drop(time::sleep(Duration::ZERO));
        let fd = reap.event_fd()?.as_raw_fd();
        let connection = Arc::new(Self {
            events: register(Events { reap, fd })?,
            driver: OnceLock::new(),
            runtime: Handle::current(),
            listed: Listed::default(),
        });
        let driver = connection.runtime.spawn(Driver(Arc::downgrade(&connection)));
        connection.driver.get_or_init(|| driver.abort_handle());
        Ok(connection)
    }

    pub(super) fn reap(&self) -> &ReapHalf<S> {
        &self.events.get_ref().reap
    }

    /// A pending wait of the sender, if there is a driver to wake the task.
    pub(super) fn pending<T, E: From<WaitError>>(self: &Arc<Self>) -> Poll<Result<T, E>> {
        if self.driver.get().is_some_and(AbortHandle::is_finished) {
            return Poll::Ready(Err(WaitError::NoThread.into()));
        }
        looks::have_looked_at(self, &self.runtime);
        Poll::Pending
    }

    /// Takes the news of the sender.
    fn look(&self) {
        // A failure shows in the calls of the tasks. A panic of user code comes after the look,
        // and must not end the task that looks.
        Panics::default().catch(|| _ = self.reap().reap());
    }

    /// Takes the news whenever there is any. Ready at the end of the runtime.
    fn poll_drive(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Ok(mut news) = ready!(self.events.poll_read_ready(cx)) else {
                return Poll::Ready(());
            };
            // First: news that comes during the look has to wake the driver again.
            news.clear_ready();
            self.look();
        }
    }
}

/// Looks for overdue notifications.
impl<S: Socket> Member for Connection<S> {
    fn listed(&self) -> &Listed {
        &self.listed
    }

    fn wants_turn(&self) -> bool {
        self.reap().stats().in_flight_calls > 0
    }

    fn take_turn(&self) {
        self.look();
    }

    fn wake(&self) {
        self.reap().wake_tasks();
    }
}

/// Registers the descriptor for reading.
///
/// The function is deprecated in tokio 1.54 for types whose descriptor may change or close while it is
/// registered. This one stays open: the `AsyncFd` owns the half, whose descriptor is made once and closed with
/// the half, and deregisters before it drops the half.
#[allow(deprecated, reason = "the replacement is missing in the least version, and unsafe")]
fn register<S: Socket>(events: Events<S>) -> io::Result<AsyncFd<Events<S>>> {
    AsyncFd::with_interest(events, Interest::READABLE)
}

impl<S: Socket> Drop for Connection<S> {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.get() {
            driver.abort();
        }
    }
}

impl<S: Socket + fmt::Debug> fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reap().fmt(f)
    }
}

/// The task of a connection.
struct Driver<S: Socket>(Weak<Connection<S>>);

impl<S: Socket> Future for Driver<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.upgrade().map_or(Poll::Ready(()), |connection| connection.poll_drive(cx))
    }
}
