//! Pacing: when, and how fast, packets leave this host.
//!
//! | wish | call | kernel |
//! |---|---|---|
//! | a highest rate for a socket | [`set_max_rate`] | `SO_MAX_PACING_RATE` |
//! | a time for each datagram | [`allow_transmit_times`], then [`Datagram::at`](crate::sender::Datagram::at) | `SO_TXTIME` |
//!
//! TCP paces by itself. Datagrams are paced by the queue of the interface, and of the queues of Linux only
//! `fq` does: `tc qdisc replace dev eth0 root fq`. Other queues send at once, without an error. So both
//! calls ask for the queue first, and refuse where nothing would be paced. An unconnected socket has many
//! routes: there one queue that paces is enough, and [`check`] tells for one destination.
//!
//! The settings belong to the socket, and change nothing else about a sender. Linux only: elsewhere each call
//! fails with `Unsupported`.
//!
//! ```
//! use pinbuf::{Sender, error::PacingError, pacing};
//! use std::net::UdpSocket;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let sender = Sender::new(UdpSocket::bind("127.0.0.1:0")?)?;
//! match pacing::set_max_rate(&sender, Some(12_500_000)) {
//!     Ok(()) => println!("100 Mbit/s at most"),
//!     Err(error) => println!("not paced: {error}"),
//! }
//! # Ok(())
//! # }
//! ```

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use crate::{
    error::{OsError, PacingError},
    sys::{Queue, netlink, pacing},
};

/// Limits the rate at which packets of the socket leave, in bytes a second; `None` for no limit.
///
/// The headers count too. Over UDP a train leaves as a whole at its turn, unless the queue cuts it: make
/// trains no longer than a receiver's buffer takes at once.
///
/// TCP heeds every change. The limit of a datagram socket can only be lowered: the kernel would store a higher
/// one, and pace as before.
///
/// # Errors
///
/// [`PacingError::OnlyLower`] for a higher limit, or none, of a datagram socket that has one,
/// [`PacingError::Queue`] for a connected datagram socket whose queue does not pace,
/// [`PacingError::NoQueue`] for an unconnected one if no queue of this host does, and the error of the
/// system. The rate is unchanged.
pub fn set_max_rate(socket: impl AsFd, bytes_per_second: Option<u64>) -> Result<(), PacingError> {
    let fd = socket.as_fd();
    if pacing::leaves_pacing_to_the_queue(fd)? {
        let limit = pacing::max_rate(fd)?;
        if bytes_per_second.unwrap_or(u64::MAX) > limit {
            return Err(PacingError::OnlyLower { limit });
        }
        if bytes_per_second.is_some() {
            check_queue_of(fd)?;
        }
    }
    Ok(pacing::set_max_rate(fd, bytes_per_second)?)
}

/// Allows a transmit time for each datagram: [`Datagram::at`](crate::sender::Datagram::at).
///
/// The clock is the monotonic one, as that of [`Instant`](std::time::Instant). The queue `fq` drops a
/// datagram more than ten seconds ahead (`horizon`), without a word to the sender.
///
/// # Errors
///
/// Those of [`set_max_rate`]; also `EOPNOTSUPP` for a TCP socket.
///
/// # Examples
///
/// ```
/// use pinbuf::{Sender, pacing, sender::Datagram};
/// use std::{net::{SocketAddr, UdpSocket}, time::{Duration, Instant}};
///
/// /// Sends a datagram every millisecond, with one call for each and no wait between.
/// fn every_millisecond(to: SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
///     let mut sender = Sender::new(UdpSocket::bind("0.0.0.0:0")?)?;
///     pacing::check(to)?;
///     pacing::allow_transmit_times(&sender)?;
///     let start = Instant::now() + Duration::from_millis(5);
///     for number in 0..100 {
///         let at = start + number * Duration::from_millis(1);
///         sender.send_to(vec![7; 1200], Datagram::to(to).at(at))?;
///     }
///     Ok(())
/// }
/// # // Loopback has no queue.
/// # assert!(every_millisecond("127.0.0.1:9".parse().unwrap()).is_err());
/// ```
pub fn allow_transmit_times(socket: impl AsFd) -> Result<(), PacingError> {
    let fd = socket.as_fd();
    if !pacing::leaves_pacing_to_the_queue(fd)? {
        return Err(std::io::Error::from(std::io::ErrorKind::Unsupported).into());
    }
    check_queue_of(fd)?;
    Ok(pacing::allow_transmit_times(fd)?)
}

/// Checks that the queue on the present route to a destination paces.
///
/// # Errors
///
/// [`PacingError::Queue`] if it does not, and the error of the system: without a route `ENETUNREACH` and its
/// like.
///
/// # Examples
///
/// ```
/// let error = pinbuf::pacing::check("127.0.0.1:9".parse()?).unwrap_err();
/// # if cfg!(target_os = "linux") {
/// assert!(error.to_string().contains("lo"), "{error}");
/// # }
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
pub fn check(destination: SocketAddr) -> Result<(), PacingError> {
    let scope = match destination {
        SocketAddr::V6(address) => address.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let index = netlink::route(destination.ip().to_canonical(), scope)?.interface;
    let queues = netlink::queues()?;
    if paces(&queues, index) {
        return Ok(());
    }
    let link = netlink::links()?.into_iter().find(|link| link.index == index);
    let interface = link.map_or_else(|| index.to_string(), |link| link.name);
    let of_interface = queues.into_iter().find(|queue| queue.interface == index);
    let queue = of_interface.map_or_else(|| "unknown".to_owned(), |queue| queue.kind);
    Err(PacingError::Queue { interface, queue })
}

/// Checks the queue of a connected socket, or looks for any queue that paces.
fn check_queue_of(fd: BorrowedFd<'_>) -> Result<(), PacingError> {
    let socket = UdpSocket::from(fd.try_clone_to_owned()?);
    if let Ok(peer) = socket.peer_addr() {
        return check(peer);
    }
    let queues = netlink::queues()?;
    if queues.iter().any(|queue| paces(&queues, queue.interface)) {
        Ok(())
    } else {
        Err(PacingError::NoQueue)
    }
}

/// Returns `true` if every queue of the interface that holds packets paces.
fn paces(queues: &[Queue], interface: u32) -> bool {
    /// Queues that only choose among the queues below, and those of packets that come in.
    const OTHERS: [&str; 9] =
        ["mq", "mqprio", "prio", "htb", "hfsc", "drr", "ets", "ingress", "clsact"];
    let mut holding = queues
        .iter()
        .filter(|queue| queue.interface == interface && !OTHERS.contains(&queue.kind.as_str()))
        .peekable();
    holding.peek().is_some() && holding.all(|queue| queue.kind == "fq")
}

impl From<std::io::Error> for PacingError {
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error() {
            None if error.kind() == std::io::ErrorKind::Unsupported => {
                Self::Os(OsError::from_raw(crate::sys::errno::EOPNOTSUPP))
            }
            _ => Self::Os(OsError::from(&error)),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_rate_of_a_datagram_socket_is_only_lowered() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(set_max_rate(&socket, None), Ok(()), "no limit as yet");
        pacing::set_max_rate(socket.as_fd(), Some(1000)).unwrap();
        for higher in [Some(1001), None] {
            let error = Err(PacingError::OnlyLower { limit: 1000 });
            assert_eq!(set_max_rate(&socket, higher), error);
        }
    }

    #[test]
    fn an_interface_paces_if_all_its_queues_do() {
        let queues = |kinds: &[(u32, &str)]| -> Vec<Queue> {
            let queue = |&(interface, kind): &(u32, &str)| Queue { interface, kind: kind.into() };
            kinds.iter().map(queue).collect()
        };
        for (kinds, expected) in [
            (&[(2, "fq")][..], true),
            (&[(2, "mq"), (2, "fq"), (2, "fq")], true),
            (&[(2, "mq"), (2, "fq"), (2, "pfifo_fast")], false),
            (&[(2, "clsact"), (2, "fq")], true),
            (&[(2, "fq_codel")], false),
            (&[(3, "fq")], false),
            (&[(2, "mq")], false),
            (&[], false),
        ] {
            assert_eq!(paces(&queues(kinds), 2), expected, "{kinds:?}");
        }
    }
}
