//! Waiting by edges: an event of a socket wakes once, not for as long as the state lasts.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use super::socket::{News, Ready, check, timeout_ms};

/// Waits on one socket by edges. [`poll`](super::socket::poll) would return at once each time:
/// after a reset the socket hangs up for good, and its last notifications are still to come.
///
/// The first wait reports the present state. Each later wait reports new events: a notification
/// that arrived, even onto a queue with unread ones.
#[derive(Debug)]
pub(crate) struct EdgeWait {
    epoll: OwnedFd,
    counter: WakeCounter,
}

impl EdgeWait {
    /// Starts to watch `fd` for errors and hangups, and for room to write if `writable`.
    pub(crate) fn new(fd: BorrowedFd<'_>, writable: bool) -> io::Result<Self> {
        let epoll = create()?;
        let counter = WakeCounter::add_to(&epoll)?;
        add(&epoll, fd, if writable { libc::EPOLLOUT } else { 0 }, WakeCounter::TOKEN + 1)?;
        Ok(Self { epoll, counter })
    }

    /// Ends the wait of another thread, or its next one, with nothing ready.
    pub(crate) fn wake(&self) -> io::Result<()> {
        self.counter.wake()
    }

    /// Waits for an event or the timeout; without `timeout`, for ever. Times are rounded up to
    /// whole milliseconds.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        let mut events = [NO_EVENT; 2];
        let events = wait(&self.epoll, &mut events, timeout)?;
        let Some(event) = events.iter().find(|event| event.u64 != WakeCounter::TOKEN) else {
            return Ok(Ready::default());
        };
        let bits = event.events as i32;
        Ok(Ready {
            writable: bits & libc::EPOLLOUT != 0,
            error: bits & libc::EPOLLERR != 0,
            hangup: bits & libc::EPOLLHUP != 0,
        })
    }
}

/// A descriptor that is readable while news of one socket waits: a notification, an error, a hangup,
/// room to write, and on request data to read. News that was taken does not make the descriptor readable
/// again, however long the state of the socket lasts.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    /// Starts to watch `fd`. The present state counts as news.
    pub(crate) fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = create()?;
        add(&epoll, fd, libc::EPOLLOUT, 0)?;
        Ok(Self(epoll))
    }

    /// Takes the news, so that the descriptor is readable again only after more.
    pub(crate) fn take(&self) -> io::Result<News> {
        let mut events = [NO_EVENT];
        let events = wait(&self.0, &mut events, Some(Duration::ZERO))?;
        let bits = events.first().map_or(0, |event| event.events as i32);
        Ok(News {
            readable: bits & DATA != 0,
            error: bits & libc::EPOLLERR != 0,
            hangup: bits & libc::EPOLLHUP != 0,
        })
    }

    /// Makes the present state of the socket news again, and from here on data to read, if `data`.
    pub(crate) fn renew(&self, fd: BorrowedFd<'_>, data: bool) -> io::Result<()> {
        let interest = if data { libc::EPOLLOUT | DATA } else { libc::EPOLLOUT };
        control(&self.0, libc::EPOLL_CTL_MOD, fd, interest, 0)
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits on many sockets by edges, for a thread that serves all of them.
///
/// Other threads can add and remove sockets during a wait.
#[derive(Debug)]
pub(crate) struct Watcher {
    epoll: OwnedFd,
    counter: WakeCounter,
}

impl Watcher {
    /// Creates a watcher without sockets. Takes two file descriptors, closed on exec.
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = create()?;
        let counter = WakeCounter::add_to(&epoll)?;
        Ok(Self { epoll, counter })
    }

    /// Ends the wait of another thread, or its next wait.
    pub(crate) fn wake(&self) -> io::Result<()> {
        self.counter.wake()
    }

    /// Reports `token` at each event of the socket: a notification, an error, a hangup, room to
    /// write. The present state counts as an event, so nothing earlier is missed.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        add(&self.epoll, fd, libc::EPOLLOUT, token)
    }

    /// Stops watching the socket; `ENOENT` if the socket was not watched. Closing a descriptor is
    /// not enough while another handle of the socket is open.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        // A null event is allowed since Linux 2.6.9, see the section BUGS of epoll_ctl(2).
        let none = std::ptr::null_mut();
        // SAFETY: epoll_ctl(2) reads no event for EPOLL_CTL_DEL. Both fds are open: the first is
        // owned, the second borrowed.
        check(unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), none)
        })?;
        Ok(())
    }

    /// Clears `tokens`, waits for events, and puts the tokens of up to 64 sockets there. There are
    /// none after a timeout, a signal, or a [`wake`](Self::wake). Token 0 is not for sockets. Times
    /// are rounded up to whole milliseconds.
    pub(crate) fn wait(&self, tokens: &mut Vec<u64>, timeout: Option<Duration>) -> io::Result<()> {
        tokens.clear();
        let mut events = [NO_EVENT; 64];
        let events = wait(&self.epoll, &mut events, timeout)?.iter().map(|event| event.u64);
        tokens.extend(events.filter(|token| *token != WakeCounter::TOKEN));
        Ok(())
    }
}

#[cfg(test)]
impl Watcher {
    /// A watcher that cannot be woken: its counter is full.
    pub(crate) fn deaf() -> Self {
        let watcher = Self::new().unwrap();
        watcher.counter.add(u64::MAX - 1).unwrap();
        watcher
    }

    /// A watcher whose waits fail.
    pub(crate) fn blind() -> Self {
        let Self { counter, .. } = Self::new().unwrap();
        Self { epoll: std::fs::File::open("/dev/null").unwrap().into(), counter }
    }
}

/// A counter through which a thread ends the wait of another. Every write is an edge, even while
/// the counter is above 0, so no thread has to read the counter.
///
/// A wake-up by `epoll_ctl` would need no counter, but a system-call filter may come to refuse
/// `epoll_ctl`. No filter is known to refuse writes.
#[derive(Debug)]
struct WakeCounter(OwnedFd);

impl WakeCounter {
    /// The token of the counter; no socket has this token.
    const TOKEN: u64 = 0;

    fn add_to(epoll: &OwnedFd) -> io::Result<Self> {
        // SAFETY: eventfd(2) takes no pointers.
        let counter = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: from_raw_fd needs an open, unowned fd: the call above made this one.
        let counter = unsafe { OwnedFd::from_raw_fd(counter) };
        add(epoll, counter.as_fd(), libc::EPOLLIN, Self::TOKEN)?;
        Ok(Self(counter))
    }

    fn wake(&self) -> io::Result<()> {
        self.add(1)
    }

    fn add(&self, count: u64) -> io::Result<()> {
        let bytes = size_of::<u64>();
        // SAFETY: write(2) reads the 8 bytes of `count`, which lives through the call. The fd is
        // owned.
        let written = unsafe { libc::write(self.0.as_raw_fd(), (&raw const count).cast(), bytes) };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Data, or the end of the peer's stream.
const DATA: i32 = libc::EPOLLIN | libc::EPOLLRDHUP;

const NO_EVENT: libc::epoll_event = libc::epoll_event { events: 0, u64: 0 };

fn create() -> io::Result<OwnedFd> {
    // SAFETY: epoll_create1(2) takes no pointers.
    let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: from_raw_fd needs an open, unowned fd: the call above made this one.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn add(epoll: &OwnedFd, fd: BorrowedFd<'_>, interest: i32, token: u64) -> io::Result<()> {
    control(epoll, libc::EPOLL_CTL_ADD, fd, interest, token)
}

fn control(
    epoll: &OwnedFd,
    operation: libc::c_int,
    fd: BorrowedFd<'_>,
    interest: i32,
    token: u64,
) -> io::Result<()> {
    let mut event = libc::epoll_event { events: (interest | libc::EPOLLET) as u32, u64: token };
    // SAFETY: epoll_ctl(2) reads one event, which lives through the call. Both fds are open while
    // borrowed.
    check(unsafe {
        libc::epoll_ctl(epoll.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event)
    })?;
    Ok(())
}

/// The events; none after a timeout or a signal.
fn wait<'a>(
    epoll: &OwnedFd,
    events: &'a mut [libc::epoll_event],
    timeout: Option<Duration>,
) -> io::Result<&'a [libc::epoll_event]> {
    let room = events.len() as libc::c_int;
    // SAFETY: epoll_wait(2) writes at most `maxevents` events: `events` has room for `room` events
    // and lives through the call. The fd is open while borrowed.
    let result = check(unsafe {
        libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), room, timeout_ms(timeout))
    });
    match result {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(&[]),
        result => Ok(&events[..result? as usize]),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, os::fd::AsFd, time::Instant};

    use super::*;
    use crate::sys::{
        socket,
        testing::{self, SOON, records_until},
    };

    const SHORT: Option<Duration> = Some(Duration::from_millis(20));

    fn await_notification(sender: &TcpStream) {
        assert!(socket::poll(sender.as_fd(), false, Some(SOON)).unwrap().error);
    }

    #[test]
    fn each_notification_is_an_edge_and_nothing_else_is() {
        let (sender, _peer) = testing::zerocopy_pair();
        let edges = EdgeWait::new(sender.as_fd(), false).unwrap();
        assert_eq!(edges.wait(SHORT).unwrap(), Ready::default(), "nothing yet");
        for _ in 0..3 {
            testing::send(&sender, 100, true).unwrap();
            let notification = Ready { error: true, ..Ready::default() };
            assert_eq!(
                edges.wait(Some(SOON)).unwrap(),
                notification,
                "an unread notification does not hide the next"
            );
            assert_eq!(
                edges.wait(SHORT).unwrap(),
                Ready::default(),
                "an unread notification is no new edge"
            );
        }
    }

    #[test]
    fn an_edge_wait_starts_with_the_present_state() {
        let (sender, _peer) = testing::zerocopy_pair();
        testing::send(&sender, 100, true).unwrap();
        await_notification(&sender);
        let edges = EdgeWait::new(sender.as_fd(), true).unwrap();
        let both = Ready { writable: true, error: true, hangup: false };
        assert_eq!(edges.wait(SHORT).unwrap(), both);
    }

    #[test]
    fn another_thread_ends_an_edge_wait_or_the_next_one() {
        let (sender, _peer) = testing::zerocopy_pair();
        let edges = EdgeWait::new(sender.as_fd(), false).unwrap();
        for _ in 0..2 {
            edges.wake().unwrap();
            let end = Instant::now() + SOON;
            assert_eq!(edges.wait(Some(SOON)).unwrap(), Ready::default());
            assert!(Instant::now() < end, "not woken");
        }
        assert_eq!(edges.wait(SHORT).unwrap(), Ready::default());
    }

    #[test]
    fn a_hangup_wakes_an_edge_wait_once() {
        let (sender, peer) = testing::zerocopy_pair();
        let edges = EdgeWait::new(sender.as_fd(), false).unwrap();
        socket::reset_on_close(peer.as_fd()).unwrap();
        drop(peer);
        assert!(edges.wait(Some(SOON)).unwrap().hangup);
        assert_eq!(edges.wait(SHORT).unwrap(), Ready::default());
        assert!(socket::poll(sender.as_fd(), false, SHORT).unwrap().hangup, "poll would spin");
    }

    #[test]
    fn an_edge_wait_is_bounded() {
        let (sender, _peer) = testing::zerocopy_pair();
        let edges = EdgeWait::new(sender.as_fd(), false).unwrap();
        let end = Instant::now() + SHORT.unwrap();
        assert_eq!(edges.wait(SHORT).unwrap(), Ready::default());
        assert!(Instant::now() >= end);
    }

    #[test]
    fn a_watcher_names_the_sockets_with_events() {
        let watcher = Watcher::new().unwrap();
        let (first, _peer) = testing::zerocopy_pair();
        let (second, _peer2) = testing::zerocopy_pair();
        let mut tokens = vec![99];
        watcher.add(first.as_fd(), 1).unwrap();
        watcher.add(second.as_fd(), u64::MAX).unwrap();
        watcher.wait(&mut tokens, Some(SOON)).unwrap();
        tokens.sort_unstable();
        assert_eq!(tokens, [1, u64::MAX], "both sockets have room to write");
        watcher.wait(&mut tokens, SHORT).unwrap();
        assert_eq!(tokens, [0; 0]);
        testing::send(&second, 100, true).unwrap();
        watcher.wait(&mut tokens, Some(SOON)).unwrap();
        assert_eq!(tokens, [u64::MAX]);
    }

    #[test]
    fn a_notification_before_the_watcher_is_an_event() {
        let (sender, _peer) = testing::stalled_pair();
        testing::send(&sender, 100, true).unwrap();
        await_notification(&sender);
        while testing::send(&sender, 64 << 10, true).is_ok() {}
        assert!(!socket::poll(sender.as_fd(), true, Some(Duration::ZERO)).unwrap().writable);
        let watcher = Watcher::new().unwrap();
        watcher.add(sender.as_fd(), 7).unwrap();
        let mut tokens = Vec::new();
        watcher.wait(&mut tokens, Some(SOON)).unwrap();
        assert_eq!(tokens, [7]);
    }

    #[test]
    fn a_removed_socket_is_no_longer_watched() {
        let watcher = Watcher::new().unwrap();
        let (sender, _peer) = testing::zerocopy_pair();
        watcher.add(sender.as_fd(), 1).unwrap();
        let error = watcher.add(sender.as_fd(), 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        watcher.remove(sender.as_fd()).unwrap();
        testing::send(&sender, 100, true).unwrap();
        records_until(&sender, |records| !records.is_empty());
        let mut tokens = Vec::new();
        watcher.wait(&mut tokens, SHORT).unwrap();
        assert_eq!(tokens, [0; 0]);
        let error = watcher.remove(sender.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn epoll_descriptors_do_not_survive_exec() {
        let (sender, _peer) = testing::zerocopy_pair();
        let edges = EdgeWait::new(sender.as_fd(), false).unwrap();
        for epoll in [edges.epoll, Watcher::new().unwrap().epoll] {
            // SAFETY: F_GETFD of fcntl(2) takes no pointers.
            let flags = unsafe { libc::fcntl(epoll.as_raw_fd(), libc::F_GETFD) };
            assert_eq!(flags, libc::FD_CLOEXEC);
        }
    }
}
