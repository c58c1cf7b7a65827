//! Waiting by edges: news of a socket wakes once, not for as long as it is true.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use super::socket::{Ready, check, timeout_ms};

/// Waits on one socket by edges, where [`poll`](super::socket::poll) would end at once each time:
/// after a reset the socket hangs up for good, and its last notes are still to come.
///
/// The first wait reports the present state. Each later one reports what is new: a note that
/// arrived, also onto a queue that was not empty.
#[derive(Debug)]
pub(crate) struct EdgeWait {
    epoll: OwnedFd,
    bell: Bell,
}

impl EdgeWait {
    /// Starts to watch `fd` for errors and hangups, and for room to write if wanted.
    pub(crate) fn new(fd: BorrowedFd<'_>, writable: bool) -> io::Result<Self> {
        let epoll = create()?;
        let bell = Bell::hang(&epoll)?;
        add(&epoll, fd, if writable { libc::EPOLLOUT } else { 0 }, Bell::TOKEN + 1)?;
        Ok(Self { epoll, bell })
    }

    /// Ends the wait of another thread, or its next one, with nothing ready.
    pub(crate) fn rouse(&self) -> io::Result<()> {
        self.bell.ring()
    }

    /// Waits for news, or until the time is up; without `timeout`, for ever. The time counts in
    /// whole milliseconds, rounded up.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        let mut events = [NO_EVENT; 2];
        let events = wait(&self.epoll, &mut events, timeout)?;
        let Some(event) = events.iter().find(|event| event.u64 != Bell::TOKEN) else {
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

/// Waits on many sockets by edges: the ear of a thread that serves them all.
///
/// Sockets can be added and removed by other threads while one waits.
#[derive(Debug)]
pub(crate) struct Watcher {
    epoll: OwnedFd,
    bell: Bell,
}

impl Watcher {
    /// Watches nothing yet. Takes two file descriptors, closed on exec.
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = create()?;
        let bell = Bell::hang(&epoll)?;
        Ok(Self { epoll, bell })
    }

    /// Ends the wait of another thread, or its next one.
    pub(crate) fn rouse(&self) -> io::Result<()> {
        self.bell.ring()
    }

    /// Reports `token` whenever the socket has news: a note, an error, a hangup, room to write.
    /// The present state counts as news, so nothing that came before is missed.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        add(&self.epoll, fd, libc::EPOLLOUT, token)
    }

    /// Stops watching the socket; `ENOENT` when it was not watched. Closing is not enough while
    /// another handle of the socket is open.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        // A null event is allowed since Linux 2.6.9, see the section BUGS of epoll_ctl(2).
        let none = std::ptr::null_mut();
        // SAFETY: epoll_ctl(2) reads no event for EPOLL_CTL_DEL. Both fds are open: one is owned,
        // one borrowed.
        check(unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), none)
        })?;
        Ok(())
    }

    /// Waits for news and puts the tokens of up to 64 sockets into `tokens`, which is emptied
    /// first; none when the time was up, a signal came, or another thread roused this one. Token 0
    /// is not for sockets. Counts whole milliseconds, rounded up.
    pub(crate) fn wait(&self, tokens: &mut Vec<u64>, timeout: Option<Duration>) -> io::Result<()> {
        tokens.clear();
        let mut events = [NO_EVENT; 64];
        let news = wait(&self.epoll, &mut events, timeout)?.iter().map(|event| event.u64);
        tokens.extend(news.filter(|token| *token != Bell::TOKEN));
        Ok(())
    }
}

/// A counter by which one thread ends the wait of another. Every write to it is news, also while
/// the counter is above 0, so no thread has to read it.
///
/// A wake-up by `epoll_ctl` would need no counter, but a filter for system calls may refuse that
/// call in the middle. A filter that refuses writes is not known.
#[derive(Debug)]
struct Bell(OwnedFd);

impl Bell {
    /// Its token; sockets have others.
    const TOKEN: u64 = 0;

    fn hang(epoll: &OwnedFd) -> io::Result<Self> {
        // SAFETY: eventfd(2) takes no pointers.
        let bell = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: from_raw_fd needs an open fd without another owner: it was just made.
        let bell = unsafe { OwnedFd::from_raw_fd(bell) };
        add(epoll, bell.as_fd(), libc::EPOLLIN, Self::TOKEN)?;
        Ok(Self(bell))
    }

    fn ring(&self) -> io::Result<()> {
        let one = 1_u64;
        // SAFETY: write(2) reads the 8 bytes of `one`, which outlives the call. The fd is owned.
        let written =
            unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

const NO_EVENT: libc::epoll_event = libc::epoll_event { events: 0, u64: 0 };

fn create() -> io::Result<OwnedFd> {
    // SAFETY: epoll_create1(2) takes no pointers.
    let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: from_raw_fd needs an open fd that nobody else owns: it was just made.
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
    // SAFETY: epoll_ctl(2) reads one event, which outlives the call. Both fds are open while
    // borrowed.
    check(unsafe {
        libc::epoll_ctl(epoll.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event)
    })?;
    Ok(())
}

/// The events that came; none when the time was up or a signal came.
fn wait<'a>(
    epoll: &OwnedFd,
    events: &'a mut [libc::epoll_event],
    timeout: Option<Duration>,
) -> io::Result<&'a [libc::epoll_event]> {
    let room = events.len() as libc::c_int;
    // SAFETY: epoll_wait(2) writes at most `maxevents` events, for which there is room, and they
    // outlive the call. The fd is open while borrowed.
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

    fn await_note(sender: &TcpStream) {
        assert!(socket::poll(sender.as_fd(), false, Some(SOON)).unwrap().error);
    }

    #[test]
    fn an_edge_comes_for_each_note_and_for_nothing_else() {
        let (sender, _peer) = testing::zerocopy_pair();
        let edges = EdgeWait::new(sender.as_fd(), false).unwrap();
        assert_eq!(edges.wait(SHORT).unwrap(), Ready::default(), "nothing yet");
        for _ in 0..3 {
            testing::send(&sender, 100, true).unwrap();
            let note = Ready { error: true, ..Ready::default() };
            assert_eq!(edges.wait(Some(SOON)).unwrap(), note, "also with one unread");
            assert_eq!(edges.wait(SHORT).unwrap(), Ready::default(), "unread, but no news");
        }
    }

    #[test]
    fn an_edge_wait_starts_with_the_present_state() {
        let (sender, _peer) = testing::zerocopy_pair();
        testing::send(&sender, 100, true).unwrap();
        await_note(&sender);
        let edges = EdgeWait::new(sender.as_fd(), true).unwrap();
        let both = Ready { writable: true, error: true, hangup: false };
        assert_eq!(edges.wait(SHORT).unwrap(), both);
    }

    #[test]
    fn another_thread_ends_an_edge_wait_or_the_next_one() {
        let (sender, _peer) = testing::zerocopy_pair();
        let edges = EdgeWait::new(sender.as_fd(), false).unwrap();
        for _ in 0..2 {
            edges.rouse().unwrap();
            let end = Instant::now() + SOON;
            assert_eq!(edges.wait(Some(SOON)).unwrap(), Ready::default());
            assert!(Instant::now() < end, "not roused");
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
    fn a_watcher_names_the_sockets_with_news() {
        let watcher = Watcher::new().unwrap();
        let (first, _peer) = testing::zerocopy_pair();
        let (second, _peer2) = testing::zerocopy_pair();
        let mut tokens = vec![99];
        watcher.add(first.as_fd(), 1).unwrap();
        watcher.add(second.as_fd(), u64::MAX).unwrap();
        watcher.wait(&mut tokens, Some(SOON)).unwrap();
        tokens.sort_unstable();
        assert_eq!(tokens, [1, u64::MAX], "both have room to write");
        watcher.wait(&mut tokens, SHORT).unwrap();
        assert_eq!(tokens, [0; 0]);
        testing::send(&second, 100, true).unwrap();
        watcher.wait(&mut tokens, Some(SOON)).unwrap();
        assert_eq!(tokens, [u64::MAX]);
    }

    #[test]
    fn a_note_that_came_before_the_watcher_is_news() {
        let (sender, _peer) = testing::stalled_pair();
        testing::send(&sender, 100, true).unwrap();
        await_note(&sender);
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
