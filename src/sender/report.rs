//! The public data that a sender tells.

use std::{fmt, io};

use crate::{
    error::{CopyReason, OsError},
    id::Ticket,
    lease::Payload,
    sys::{ErrorQueueEvent, errno},
};

/// The fate of a send.
///
/// *Accepted* means that the kernel took the bytes into the socket; *released*, that the kernel
/// will never read the memory again. Neither says that the peer received anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[must_use = "a send may have been cut short, or its release may be unproven"]
#[non_exhaustive]
pub enum Fate {
    /// All bytes were accepted, and the kernel has released the memory.
    Released {
        /// Bytes accepted: the length of the send.
        accepted: usize,
        /// `Some(true)` if a part went by copy, by the sender's choice or as the kernel's deferred
        /// copy. The kernel flags whole groups of sends by their first member, so the value is a
        /// statistic. `None` for a send that resolved more than 4000 sends ago.
        copied: Option<bool>,
    },
    /// The connection failed, or was ended, after a part of the bytes was accepted; the kernel has
    /// released the memory.
    Truncated {
        /// Bytes accepted.
        accepted: usize,
        /// Bytes of the whole send.
        len: usize,
        /// The error that ended the send.
        error: OsError,
    },
    /// The kernel may still read the memory, and no notification can prove otherwise any more. The
    /// memory stays untouched. Late proof turns the fate into `Released` or `Truncated`.
    Quarantined,
}

/// The sender's ability to send without copy, and the reason against it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Capabilities {
    /// `true` if the kernel and the socket support sends without copy, `false` if something forbids
    /// them for good.
    ///
    /// Says nothing about the route. Loopback supports zero copy too, and copies nevertheless:
    /// [`Policy::Auto`](crate::Policy::Auto) notices and gives a `reason`, and with the other policies
    /// [`SenderStats::deferred_copies`] grows.
    pub supported: bool,
    /// The reason why large sends go by copy now: for good, or because of the route
    /// ([`CopyReason::Route`]). `None` while they go without, or while `Auto` is still trying.
    pub reason: Option<CopyReason>,
}

/// Counters of one sender since its creation, and its state now. `Display` gives the main ones in a line.
///
/// ```
/// # use std::net::{TcpListener, TcpStream};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let mut sender = pinbuf::Sender::new(TcpStream::connect(listener.local_addr()?)?)?;
/// sender.send(&b"hello"[..])?;
/// assert_eq!(
///     sender.stats().to_string(),
///     "zero copy: 0 calls, 0 bytes, 0 released, 0 deferred copies; \
///      copied: 1 calls, 5 bytes; in flight: 0 calls, 0 bytes",
/// );
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SenderStats {
    /// Calls accepted by the kernel with `MSG_ZEROCOPY`.
    pub zero_copy_calls: u64,
    /// Bytes of the zero-copy calls.
    pub zero_copy_bytes: u64,
    /// Calls by copy.
    pub copied_calls: u64,
    /// Bytes of the calls by copy.
    pub copied_bytes: u64,
    /// Notifications read from the error queue.
    pub notifications: u64,
    /// Zero-copy calls released.
    pub released_calls: u64,
    /// Released calls with a notification that the kernel copied after all. The kernel flags a
    /// group of calls by its first member, so the number is a statistic.
    pub deferred_copies: u64,
    /// Times the kernel refused a zero-copy call for option memory (`net.core.optmem_max`).
    pub no_bufs_optmem: u64,
    /// Times the kernel refused a zero-copy call for locked memory (`RLIMIT_MEMLOCK`).
    pub no_bufs_memlock: u64,
    /// Datagrams dropped on this host ([`SendError::Dropped`](crate::SendError::Dropped)).
    pub dropped_sends: u64,
    /// Datagrams and trains that did not leave, by the place of the loss.
    pub drops: DropStats,
    /// Sends cut short by the end of the connection.
    pub truncated_sends: u64,
    /// Foreign messages of the error queue dropped before a call of
    /// [`next_event`](crate::Sender::next_event) fetched them.
    pub events_dropped: u64,
    /// Zero-copy calls now in flight.
    pub in_flight_calls: usize,
    /// Bytes offered to the calls in flight.
    pub in_flight_bytes: usize,
    /// Payloads now in the sender's custody.
    pub leases: usize,
    /// The state of the route, and the sender's reaction.
    pub route: RouteStats,
    /// Zero-copy calls allowed in flight at once now.
    pub window_sends: usize,
    /// Bytes allowed in flight at once now.
    pub window_bytes: usize,
}

/// Datagrams and trains that did not leave this host, by the place of the loss, and what the network said.
///
/// The first four count failed sends: one for each call, also for a train. The buffer of each came
/// back. The others count messages of the error queue, about sends that had been accepted.
///
/// ```
/// # use std::net::UdpSocket;
/// use pinbuf::{SendError, Sender};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut sender = Sender::new(UdpSocket::bind("[::1]:0")?)?;
/// # if cfg!(target_os = "linux") {
/// // By this interface no packet leaves: the host has no route there.
/// let error = sender.send_to(&b"hello"[..], "[2001:db8::1]:9".parse::<std::net::SocketAddr>()?);
/// assert_eq!(sender.stats().drops.unreachable, error.is_err() as u64);
/// # }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DropStats {
    /// A queue of this host was full (`ENOBUFS`).
    pub queue: u64,
    /// A filter of this host refused the packet (`EPERM`).
    pub filter: u64,
    /// Longer than the route or the protocol takes (`EMSGSIZE`).
    pub too_long: u64,
    /// No way to the destination, or an earlier datagram was refused (`ECONNREFUSED`, `ENETUNREACH`,
    /// `EHOSTUNREACH`, `EHOSTDOWN`).
    pub unreachable: u64,
    /// ICMP messages about earlier datagrams. Only with the socket option `IP_RECVERR` or
    /// `IPV6_RECVERR`.
    pub icmp: u64,
    /// A queue dropped the datagram for its [transmit time](crate::sender::Datagram::at). The queue
    /// `etf` tells; `fq` does not.
    pub transmit_time: u64,
}

impl DropStats {
    /// Counts a failed send.
    pub(super) fn count(&mut self, error: OsError) {
        let counter = match error.raw() {
            errno::ENOBUFS => &mut self.queue,
            errno::EPERM => &mut self.filter,
            errno::EMSGSIZE => &mut self.too_long,
            errno::ECONNREFUSED | errno::ENETUNREACH | errno::EHOSTUNREACH | errno::EHOSTDOWN => {
                &mut self.unreachable
            }
            _ => return,
        };
        *counter += 1;
    }

    /// Counts a message of the error queue.
    pub(super) fn count_message(&mut self, event: &ErrorQueueEvent) {
        /// `linux/errqueue.h`
        const ICMP: u8 = 2;
        const ICMP6: u8 = 3;
        const TXTIME: u8 = 6;
        match event.origin {
            ICMP | ICMP6 => self.icmp += 1,
            TXTIME => self.transmit_time += 1,
            _ => {}
        }
    }
}

/// The result of one [`reap`](crate::Sender::reap).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Reaped {
    /// Messages read from the error queue, foreign ones included.
    pub messages: usize,
    /// Zero-copy calls released.
    pub calls: u64,
    /// `true` if a part of a send is still unsent: wait for room
    /// ([`interest`](crate::Sender::interest)). Also `false` if the connection failed and the part was
    /// given up.
    pub unsent: bool,
}

/// A payload handed back.
#[derive(Debug)]
#[non_exhaustive]
pub struct Returned {
    /// The ticket of the payload's send. The fate is known once all payloads of the send are back.
    pub ticket: Ticket,
    /// The payload; the kernel reads it no more.
    pub payload: Payload,
}

/// The way of large sends on the present route.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum RouteMode {
    /// Without copy wherever the kernel accepts the flag: the policy is not `Auto`.
    #[default]
    Ignored,
    /// By copy, but for single calls that try the route. The mode of a sender that has not sent
    /// much.
    Trying,
    /// Without copy: the kernel does not copy on this route.
    ZeroCopy,
    /// By copy: the kernel copies on this route anyway. Single calls try the route again, at ever
    /// longer intervals.
    Copied,
}

/// The findings of [`Policy::Auto`](crate::Policy::Auto) about the route, and its decisions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RouteStats {
    /// The way of large sends now.
    pub mode: RouteMode,
    /// Zero-copy calls made to try the route.
    pub probes: u64,
    /// Times that zero copy was given up because the kernel copied.
    pub leaves: u64,
    /// Times that zero copy was taken up again.
    pub returns: u64,
}

/// The report of an end. `Display` gives the report in a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[must_use = "only the report tells of an end out of order"]
#[non_exhaustive]
pub struct CloseReport {
    /// `true` if everything was accepted, the stream ended in order (datagrams have no end), and
    /// every buffer released.
    ///
    /// Copied bytes may still be on their way then: see `unacked_bytes`. The kernel goes on sending
    /// them, unless received data was not read: then the close of the descriptor resets the peer,
    /// as with any TCP socket. So read the peer's stream to its end before the close.
    pub drained: bool,
    /// `true` if the connection was aborted: the peer saw a reset.
    pub aborted: bool,
    /// Bytes accepted by the kernel and not acknowledged by the peer, at the end or before an
    /// abort, where the system can tell.
    pub unacked_bytes: Option<usize>,
    /// Payloads without proof of release: their packets wait in a queue below TCP. The payloads
    /// stay untouched in the reaper's care until the proof comes.
    pub quarantined: usize,
    /// The reason why the end was not in order, if no abort was the cause. At least one of
    /// `error` and `aborted` is set wherever `drained` is `false`.
    ///
    /// | error | meaning |
    /// |---|---|
    /// | `ENOTCONN` | the connection was over before the end was: reset by the peer, or given up |
    /// | `ETIMEDOUT`, `ECANCELED` | `close` came to its time limit, or `abort` was called, on a socket without an abort, such as a datagram socket |
    /// | `ETIMEDOUT`, with `aborted` | the peer was silent for longer than [`max_hold`](crate::sender::SenderBuilder::max_hold) |
    /// | `EPERM` | the sender belongs to a parent process |
    /// | another | the error of the failed system call |
    pub error: Option<OsError>,
}

impl Fate {
    /// Returns `true` if all bytes were accepted and the kernel has released the memory.
    ///
    /// ```
    /// # use std::net::{TcpListener, TcpStream};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = TcpListener::bind("127.0.0.1:0")?;
    /// # let mut sender = pinbuf::Sender::new(TcpStream::connect(listener.local_addr()?)?)?;
    /// let ticket = sender.send(&b"hello"[..])?;
    /// assert!(sender.wait(ticket, None)?.is_released());
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_released(self) -> bool {
        matches!(self, Self::Released { .. })
    }
}

impl CloseReport {
    /// Turns an end out of order into an error, for `?`: the report's `error`, or
    /// [`ConnectionAborted`](io::ErrorKind::ConnectionAborted).
    ///
    /// ```
    /// # use std::{io, net::{TcpListener, TcpStream}, time::Duration};
    /// # fn main() -> io::Result<()> {
    /// # let listener = TcpListener::bind("127.0.0.1:0")?;
    /// # let sender = pinbuf::Sender::new(TcpStream::connect(listener.local_addr()?)?)?;
    /// sender.close(Some(Duration::from_secs(30))).into_result()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_result(self) -> io::Result<()> {
        match self.error {
            _ if self.drained => Ok(()),
            Some(error) => Err(error.into()),
            None => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// In a forked child nothing is ended.
    pub(super) fn of_forked() -> Self {
        Self {
            drained: false,
            aborted: false,
            unacked_bytes: None,
            quarantined: 0,
            error: Some(OsError::from_raw(errno::EPERM)),
        }
    }
}

impl fmt::Display for SenderStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zero copy: {} calls, {} bytes", self.zero_copy_calls, self.zero_copy_bytes)?;
        write!(f, ", {} released, {} deferred copies", self.released_calls, self.deferred_copies)?;
        write!(f, "; copied: {} calls, {} bytes", self.copied_calls, self.copied_bytes)?;
        write!(f, "; in flight: {} calls, {} bytes", self.in_flight_calls, self.in_flight_bytes)
    }
}

impl fmt::Display for CloseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.drained, self.aborted) {
            (true, _) => "ended in order, all released",
            (false, true) => "aborted",
            (false, false) => "ended out of order",
        })?;
        if let Some(error) = self.error {
            write!(f, ": {error}")?;
        }
        if let Some(bytes @ 1..) = self.unacked_bytes {
            write!(f, "; {bytes} bytes not acknowledged")?;
        }
        match self.quarantined {
            0 => Ok(()),
            payloads => write!(f, "; {payloads} payloads quarantined"),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_close_report_is_one_line() {
        let drained = CloseReport { drained: true, error: None, ..CloseReport::of_forked() };
        assert_eq!(drained.to_string(), "ended in order, all released");
        let aborted = CloseReport { aborted: true, unacked_bytes: Some(7), ..drained };
        let aborted = CloseReport { drained: false, quarantined: 2, ..aborted };
        let line = "aborted; 7 bytes not acknowledged; 2 payloads quarantined";
        assert_eq!(aborted.to_string(), line);
        let line = "ended out of order: Operation not permitted (os error 1)";
        assert_eq!(CloseReport::of_forked().to_string(), line);
    }
}
