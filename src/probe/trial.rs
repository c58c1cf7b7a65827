//! A trial of zero copy over loopback.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use super::check::Check;
use crate::{
    error::OsError,
    sys::{
        Record, errno, errqueue,
        socket::{self, SendFlags},
    },
};

/// The outcome of a zero-copy send over a loopback connection of the library's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Trial {
    /// The kernel took the memory and released it.
    Released {
        /// `true` if the kernel copied. On loopback the kernel always does; other routes may
        /// differ.
        copied: bool,
    },
    /// `SO_ZEROCOPY` is refused.
    Refused(OsError),
    /// The send failed; `ENOBUFS` if option memory or the memlock limit was used up at the moment.
    SendFailed(OsError),
    /// The error queue or the option memory cannot be read, so that no release can be proven.
    Unprovable(OsError),
    /// The send succeeded, but the flag was ignored: nothing is released, and no notification
    /// comes.
    Ignored,
    /// No notification came within half a second.
    Overdue,
    /// No connection is possible over loopback.
    NoLoopback(OsError),
}

impl Trial {
    /// Returns `true` if zero copy works for connections of this family.
    pub fn works(&self) -> bool {
        matches!(self, Self::Released { .. })
    }

    /// Connects to `address`, an address of this machine, sends once, and reads the notification.
    ///
    /// Takes a second at most. Leaves no socket behind: the peer's end is reset, not closed.
    pub(super) fn run(address: IpAddr) -> Self {
        let (sender, _listener) = match connect(address) {
            Ok(ends) => ends,
            Err(error) => return Self::NoLoopback(os_error(&error)),
        };
        let fd = sender.as_fd();
        if let Err(error) = socket::enable_zerocopy(fd) {
            return Self::Refused(os_error(&error));
        }
        static BYTES: [u8; 4096] = [0; 4096];
        let flags = SendFlags { zerocopy: true, more: false };
        if let Err(error) = socket::send_static(fd, &BYTES, flags) {
            return Self::SendFailed(os_error(&error));
        }
        await_notification(fd).unwrap_or_else(|error| Self::Unprovable(os_error(&error)))
    }

    pub(super) fn check(&self, name: &'static str) -> Check {
        match self {
            Self::Released { copied: true } => {
                Check::pass(name, "works (tried on loopback, where the kernel copies)")
            }
            Self::Released { copied: false } => Check::pass(name, "works (tried on loopback)"),
            Self::Refused(error) => Check::fail(
                name,
                format!("SO_ZEROCOPY is refused: {error}"),
                "use a kernel with MSG_ZEROCOPY (CONFIG_INET), and allow it in the sandbox",
            ),
            Self::SendFailed(error) if error.raw() == errno::ENOBUFS => Check::warn(
                name,
                format!("a send of 4 KiB was refused: {error}"),
                "the memlock limit of this user is used up; raise RLIMIT_MEMLOCK or find its users",
            ),
            Self::SendFailed(error) => Check::fail(
                name,
                format!("a send of 4 KiB failed: {error}"),
                "see whether a sandbox or a firewall stands in the way",
            ),
            Self::Unprovable(error) => Check::fail(
                name,
                format!("the error queue or the option memory cannot be read: {error}"),
                "allow recvmmsg and getsockopt in the filter for system calls",
            ),
            Self::Ignored => Check::fail(
                name,
                "MSG_ZEROCOPY is ignored",
                "use a real Linux kernel, no emulation",
            ),
            Self::Overdue => Check::warn(
                name,
                "no notification came within half a second",
                "see what holds packets back on loopback: a queue discipline, a firewall, a debugger",
            ),
            Self::NoLoopback(error) => Check::unknown(
                name,
                format!("no connection over loopback: {error}"),
                "set lo up (`ip link set lo up`), or ignore the check for an unused family",
            ),
        }
    }
}

/// A connection, and its listener with the peer's end in the backlog. No accept is needed: the
/// kernel receives and acknowledges without one. Dropping the listener resets the peer's end.
fn connect(address: IpAddr) -> io::Result<(TcpStream, TcpListener)> {
    let listener = TcpListener::bind(SocketAddr::new(address, 0))?;
    let sender = TcpStream::connect_timeout(&listener.local_addr()?, Duration::from_millis(500))?;
    Ok((sender, listener))
}

/// Waits half a second for the notification.
fn await_notification(fd: BorrowedFd<'_>) -> io::Result<Trial> {
    let end = Instant::now() + Duration::from_millis(500);
    loop {
        let mut found = None;
        errqueue::with_scratch(|scratch| {
            errqueue::recv(fd, scratch, &mut |record| {
                if let Record::Released { copied, .. } = record {
                    found = Some(Trial::Released { copied });
                }
            })
        })?;
        let rest = end.saturating_duration_since(Instant::now());
        if let Some(found) = found {
            return Ok(found);
        } else if socket::optmem(fd)? == 0 {
            // An unread notification would hold some.
            return Ok(Trial::Ignored);
        } else if rest.is_zero() {
            return Ok(Trial::Overdue);
        }
        socket::poll(fd, false, Some(rest))?;
    }
}

fn os_error(error: &io::Error) -> OsError {
    match error.kind() {
        io::ErrorKind::TimedOut => OsError::from_raw(errno::ETIMEDOUT),
        _ => OsError::from(error),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::probe::Status;

    #[test]
    fn loopback_works_and_copies() {
        assert_eq!(Trial::run(Ipv4Addr::LOCALHOST.into()), Trial::Released { copied: true });
    }

    #[test]
    fn an_unassigned_address_is_no_loopback() {
        // TEST-NET-1: bound to nothing.
        let trial = Trial::run(Ipv4Addr::new(192, 0, 2, 255).into());
        assert!(matches!(trial, Trial::NoLoopback(_)), "{trial:?}");
    }

    #[test]
    fn a_plain_send_counts_as_ignored() {
        let (sender, _listener) = connect(Ipv4Addr::LOCALHOST.into()).unwrap();
        socket::enable_zerocopy(sender.as_fd()).unwrap();
        socket::send_static(sender.as_fd(), b"plain", SendFlags::default()).unwrap();
        assert_eq!(await_notification(sender.as_fd()).unwrap(), Trial::Ignored);
    }

    #[test]
    fn a_missing_notification_is_overdue() {
        let (sender, _listener) = connect(Ipv4Addr::LOCALHOST.into()).unwrap();
        socket::enable_zerocopy(sender.as_fd()).unwrap();
        static MUCH: [u8; 1 << 20] = [0; 1 << 20];
        let flags = SendFlags { zerocopy: true, more: false };
        // The peer reads nothing, so the last bytes stay unacknowledged.
        while socket::send_static(sender.as_fd(), &MUCH, flags).is_ok() {}
        errqueue::with_scratch(|scratch| {
            errqueue::recv(sender.as_fd(), scratch, &mut |_| ()).unwrap()
        });
        assert_eq!(await_notification(sender.as_fd()).unwrap(), Trial::Overdue);
    }

    #[test]
    fn only_a_failed_trial_fails_the_check() {
        let error = OsError::from_raw(errno::EOPNOTSUPP);
        for (trial, status) in [
            (Trial::Released { copied: true }, Status::Pass),
            (Trial::Released { copied: false }, Status::Pass),
            (Trial::Refused(error), Status::Fail),
            (Trial::SendFailed(error), Status::Fail),
            (Trial::SendFailed(OsError::from_raw(errno::ENOBUFS)), Status::Warn),
            (Trial::Unprovable(error), Status::Fail),
            (Trial::Ignored, Status::Fail),
            (Trial::Overdue, Status::Warn),
            (Trial::NoLoopback(error), Status::Unknown),
        ] {
            let check = trial.check("x");
            assert_eq!(check.status, status, "{trial:?}");
            assert_eq!(check.advice.is_none(), status == Status::Pass);
            assert_eq!(trial.works(), status == Status::Pass);
        }
    }
}
