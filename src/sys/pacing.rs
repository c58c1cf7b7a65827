//! Socket options for the time and the rate at which packets leave.

use std::{
    io,
    os::fd::BorrowedFd,
    slice,
    time::{Duration, Instant},
};

use super::{
    option::{check, get_option, set_option},
    socket,
};

/// `struct sock_txtime` of `linux/net_tstamp.h`.
#[repr(C)]
struct TransmitTimes {
    clock: libc::clockid_t,
    flags: u32,
}

/// `linux/net_tstamp.h`: a queue that drops a datagram for its time says so on the error queue.
const SOF_TXTIME_REPORT_ERRORS: u32 = 2;

/// Allows times of the monotonic clock for each message (`SO_TXTIME`).
pub(crate) fn allow_transmit_times(fd: BorrowedFd<'_>) -> io::Result<()> {
    let times = TransmitTimes { clock: libc::CLOCK_MONOTONIC, flags: SOF_TXTIME_REPORT_ERRORS };
    set_option(fd, libc::SO_TXTIME, &times)
}

/// A time in nanoseconds of the monotonic clock; `None` if the socket does not allow such times.
pub(crate) fn transmit_time(fd: BorrowedFd<'_>, time: Instant) -> io::Result<Option<u64>> {
    // The clock and the flags. A socket without times has the clock of the system's time.
    let mut times = [0_u32; 2];
    get_option(fd, libc::SOL_SOCKET, libc::SO_TXTIME, &mut times)?;
    let allows = times[0] == libc::CLOCK_MONOTONIC as u32;
    Ok(if allows { Some(monotonic_ns(time)?) } else { None })
}

/// An `Instant` is a time of the monotonic clock, but does not tell the number.
fn monotonic_ns(time: Instant) -> io::Result<u64> {
    // SAFETY: mem::zeroed needs a type with an all-zero value: `timespec` has only integers.
    let mut clock: libc::timespec = unsafe { std::mem::zeroed() };
    let now = Instant::now();
    // SAFETY: clock_gettime(2) writes one `timespec`, which lives through the call.
    check(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut clock) })?;
    let clock = Duration::new(clock.tv_sec as u64, clock.tv_nsec as u32);
    let clock = match time.checked_duration_since(now) {
        Some(ahead) => clock.saturating_add(ahead),
        None => clock.saturating_sub(now.saturating_duration_since(time)),
    };
    Ok(u64::try_from(clock.as_nanos()).unwrap_or(u64::MAX))
}

/// Limits the rate at which packets of the socket leave (`SO_MAX_PACING_RATE`), in bytes a second.
pub(crate) fn set_max_rate(fd: BorrowedFd<'_>, bytes_per_second: Option<u64>) -> io::Result<()> {
    // The largest number is no limit. The kernel takes an `unsigned long`.
    let rate =
        bytes_per_second.map_or(usize::MAX, |rate| usize::try_from(rate).unwrap_or(usize::MAX));
    set_option(fd, libc::SO_MAX_PACING_RATE, &rate)
}

/// The limit of [`set_max_rate`]; the largest number is no limit.
pub(crate) fn max_rate(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut rate = usize::MAX;
    get_option(fd, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, slice::from_mut(&mut rate))?;
    Ok(if rate == usize::MAX { u64::MAX } else { rate as u64 })
}

/// Returns `true` for a socket whose packets leave through a queue as they are: UDP and its like.
/// TCP paces by itself.
pub(crate) fn leaves_pacing_to_the_queue(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(socket::kind(fd)? != socket::Kind::Tcp)
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd};

    use super::*;

    #[test]
    fn an_instant_is_a_time_of_the_monotonic_clock() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let now = Instant::now();
        assert_eq!(transmit_time(socket.as_fd(), now).unwrap(), None);
        allow_transmit_times(socket.as_fd()).unwrap();
        let at = |time| transmit_time(socket.as_fd(), time).unwrap().unwrap();
        let (first, ahead) = (at(now), at(now + Duration::from_secs(1000)));
        // Between two looks at the two clocks the thread may lose its processor.
        let apart = Duration::from_nanos(ahead - first).as_secs();
        assert!((940..=1060).contains(&apart), "{apart}");
        assert!(at(now - Duration::from_secs(1)) < ahead);
    }

    #[test]
    fn the_socket_tells_its_limit() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(max_rate(socket.as_fd()).unwrap(), u64::MAX);
        set_max_rate(socket.as_fd(), Some(125_000)).unwrap();
        assert_eq!(max_rate(socket.as_fd()).unwrap(), 125_000);
    }
}
