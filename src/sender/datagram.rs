//! Datagrams: where one goes, and how the kernel sends it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use super::{
    driver::Core,
    kernel::{Kernel, Socket, SocketKernel},
    transport::Transport,
};
use crate::{
    error::{InvalidDatagram, OsError, SendError},
    id::Ticket,
    lease::IntoPayload,
    sys::{errno, message::Header},
};

/// Where a buffer goes as a datagram, and how the kernel sends it; for
/// [`Sender::send_to`](crate::Sender::send_to).
///
/// | wish | kernel | without it |
/// |---|---|---|
/// | [`to`](Self::to) | the address of `sendto(2)` | the peer of the connected socket |
/// | [`source`](Self::source), [`interface`](Self::interface) | `IP_PKTINFO`, `IPV6_PKTINFO` | the kernel chooses by the route |
/// | [`segment_size`](Self::segment_size) | `UDP_SEGMENT` | the buffer is one datagram |
/// | [`at`](Self::at) | `SO_TXTIME` | at once |
///
/// A socket address is a `Datagram` too: `send_to(buf, address)`. Off Linux only the destination can be
/// chosen; the other wishes are refused with `EOPNOTSUPP`.
///
/// ```
/// use pinbuf::sender::Datagram;
///
/// // 40 datagrams of 1,200 bytes and a shorter last one, from one buffer and in one call.
/// let train = Datagram::to("192.0.2.1:4433".parse()?)
///     .source("192.0.2.9".parse()?)
///     .segment_size(1200);
/// # let _ = train;
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct Datagram {
    to: Option<SocketAddr>,
    source: Option<IpAddr>,
    interface: u32,
    segment_size: Option<u16>,
    at: Option<Instant>,
}

impl Datagram {
    /// A datagram to this address.
    pub fn to(address: SocketAddr) -> Self {
        Self { to: Some(address), ..Self::default() }
    }

    /// A datagram to the peer of a connected socket.
    pub fn to_peer() -> Self {
        Self::default()
    }

    /// The source address: one of this host, of the family of the destination. An IPv4-mapped address
    /// is of IPv4. The port stays the socket's.
    ///
    /// A server that answers from the address of the question needs this on a host with several
    /// addresses. A foreign address fails: `ENETUNREACH` or `EINVAL`.
    pub fn source(mut self, address: IpAddr) -> Self {
        self.source = Some(address);
        self
    }

    /// The index of the interface by which the datagram leaves, whatever the routes say. A number
    /// without an interface fails with `ENODEV`.
    pub fn interface(mut self, index: u32) -> Self {
        self.interface = index;
        self
    }

    /// Makes the buffer a *train*: the kernel cuts the buffer into datagrams of so many bytes, and a
    /// shorter last one.
    ///
    /// One call, one id, one notification: a train is a send as any other, and is accepted or refused
    /// as a whole. The limits of one train:
    ///
    /// | limit | beyond |
    /// |---|---|
    /// | 65,507 bytes to IPv4, 65,527 bytes to IPv6 | [`InvalidDatagram::TooLong`], before the call; to a connected peer of IPv4 after the call |
    /// | 128 segments; 64 on older kernels | [`InvalidDatagram::TooManySegments`], before the call or after |
    /// | a segment and its headers fit the MTU of the route: with 1,500 bytes, 1,472 over IPv4 and 1,452 over IPv6 | [`InvalidDatagram::SegmentTooLong`] after the call; `EINVAL` on older kernels |
    pub fn segment_size(mut self, bytes: u16) -> Self {
        self.segment_size = Some(bytes);
        self
    }

    /// The time at which the datagram leaves this host. All datagrams of a train have the same time.
    ///
    /// The socket has to allow such times, and the queue of the interface has to heed them:
    /// [`pacing::allow_transmit_times`](crate::pacing::allow_transmit_times). Until the time the kernel
    /// holds the memory. A time in the past is now.
    pub fn at(mut self, time: Instant) -> Self {
        self.at = Some(time);
        self
    }

    /// The header for a payload of `len` bytes, unless a known limit of the kernel stands against it.
    fn header<S: Socket>(&self, kernel: &SocketKernel<S>, len: usize) -> Result<Header, Refusal> {
        if kernel.transport() == Transport::Stream {
            return Err(InvalidDatagram::Stream.into());
        }
        self.check(len)?;
        let mut header = Header::to(self.to);
        if let Some(source) = self.source_or_any() {
            header.source(source, self.interface)?;
        }
        if let Some(bytes) = self.segment_size {
            header.segment(bytes)?;
        }
        if let Some(time) = self.at {
            header.at(kernel.transmit_time(time)?.ok_or(InvalidDatagram::NoTransmitTimes)?)?;
        }
        Ok(header)
    }

    /// Checks what is known without the kernel.
    fn check(&self, len: usize) -> Result<(), InvalidDatagram> {
        let to = self.to.map(|to| to.ip().to_canonical());
        if self.to.is_some_and(|to| to.port() == 0) {
            return Err(InvalidDatagram::NoPort);
        }
        let source = self.source.map(|source| source.to_canonical());
        if to.zip(source).is_some_and(|(to, source)| to.is_ipv4() != source.is_ipv4()) {
            return Err(InvalidDatagram::Families);
        }
        if self.interface != 0 && to.is_none() && self.source.is_none() {
            return Err(InvalidDatagram::InterfaceAlone);
        }
        let most = if to.is_some_and(|to| to.is_ipv4()) { MOST_V4 } else { MOST_V6 };
        if len > most {
            return Err(InvalidDatagram::TooLong { len, most });
        }
        match self.segments(len) {
            None => Ok(()),
            Some(0) => Err(InvalidDatagram::EmptySegments),
            Some(segments) if segments > MOST_SEGMENTS => {
                Err(InvalidDatagram::TooManySegments { segments, most: MOST_SEGMENTS })
            }
            Some(_) => Ok(()),
        }
    }

    /// The source for the kernel: with an interface alone, any address of the destination's family.
    fn source_or_any(&self) -> Option<IpAddr> {
        let any = || match self.to?.ip().to_canonical() {
            IpAddr::V4(_) => Some(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
            IpAddr::V6(_) => Some(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)),
        };
        self.source.or_else(|| if self.interface == 0 { None } else { any() })
    }

    /// The datagrams of a train of `len` bytes; `None` if the buffer is one datagram, 0 if the size
    /// of a segment is 0.
    fn segments(&self, len: usize) -> Option<usize> {
        let bytes = usize::from(self.segment_size?);
        Some(if bytes == 0 { 0 } else { len.div_ceil(bytes).max(1) })
    }

    /// Finds the limit behind the kernel's refusal of `len` bytes.
    fn explain(&self, error: OsError, len: usize) -> Option<InvalidDatagram> {
        let segments = self.segments(len)?;
        match error.raw() {
            // The family of the peer is unknown before the call.
            errno::EMSGSIZE if self.to.is_none() && len > MOST_V4 => {
                Some(InvalidDatagram::TooLong { len, most: MOST_V4 })
            }
            errno::EMSGSIZE => {
                let bytes = usize::from(self.segment_size?);
                Some(InvalidDatagram::SegmentTooLong { bytes })
            }
            errno::EINVAL if segments > MOST_SEGMENTS_BEFORE => {
                Some(InvalidDatagram::TooManySegments { segments, most: MOST_SEGMENTS_BEFORE })
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for Datagram {
    fn from(address: SocketAddr) -> Self {
        Self::to(address)
    }
}

/// The longest payload: what the length fields of the headers leave.
const MOST_V4: usize = u16::MAX as usize - 20 - 8;
const MOST_V6: usize = u16::MAX as usize - 8;

/// `UDP_MAX_SEGMENTS` of `linux/udp.h`, since 6.9 and before.
const MOST_SEGMENTS: usize = 128;
const MOST_SEGMENTS_BEFORE: usize = 64;

/// The reason against the header of a datagram.
enum Refusal {
    Invalid(InvalidDatagram),
    Os(OsError),
}

impl From<InvalidDatagram> for Refusal {
    fn from(reason: InvalidDatagram) -> Self {
        Self::Invalid(reason)
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::Os(OsError::from(&error))
    }
}

impl Refusal {
    fn into_send_error<B>(self, buf: B) -> SendError<B> {
        match self {
            Self::Invalid(reason) => SendError::Invalid { reason, buf },
            Self::Os(error) => SendError::Os { error, buf },
        }
    }
}

impl<S: Socket> Core<SocketKernel<S>> {
    /// Sends a buffer as a datagram, if the socket takes it now.
    pub fn try_send_to<P: IntoPayload>(
        &self,
        buf: P,
        to: impl Into<Datagram>,
    ) -> Result<Ticket, SendError<P>> {
        self.with_header(buf, to.into(), Self::try_send_with)
    }

    /// Sends a buffer as a datagram, and waits until the socket takes it.
    pub fn send_to<P: IntoPayload>(
        &self,
        buf: P,
        to: impl Into<Datagram>,
    ) -> Result<Ticket, SendError<P>> {
        self.with_header(buf, to.into(), Self::send_with)
    }

    fn with_header<P: IntoPayload>(
        &self,
        buf: P,
        datagram: Datagram,
        send: impl FnOnce(&Self, P, &Header) -> Result<Ticket, SendError<P>>,
    ) -> Result<Ticket, SendError<P>> {
        let len = buf.io_vec().len();
        let header = match datagram.header(&self.kernel, len) {
            Ok(header) => header,
            Err(refusal) => return Err(refusal.into_send_error(buf)),
        };
        send(self, buf, &header).map_err(|error| match error {
            SendError::Os { error, buf } => match datagram.explain(error, len) {
                Some(reason) => SendError::Invalid { reason, buf },
                None => SendError::Os { error, buf },
            },
            error => error,
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const TO: &str = "192.0.2.1:9";
    const TO_V6: &str = "[2001:db8::1]:9";

    fn to(address: &str) -> Datagram {
        Datagram::to(address.parse().unwrap())
    }

    #[test]
    fn payloads_are_as_long_as_the_headers_allow() {
        for (datagram, most) in [
            (to(TO), 65_507),
            (to("[::ffff:192.0.2.1]:9"), 65_507),
            (to(TO_V6), 65_527),
            (Datagram::to_peer(), 65_527),
        ] {
            assert_eq!(datagram.check(most), Ok(()));
            let len = most + 1;
            assert_eq!(datagram.check(len), Err(InvalidDatagram::TooLong { len, most }));
        }
    }

    #[test]
    fn a_train_has_128_segments_at_most() {
        let train = to(TO).segment_size(500);
        assert_eq!(train.check(128 * 500), Ok(()));
        let error = InvalidDatagram::TooManySegments { segments: 129, most: 128 };
        assert_eq!(train.check(128 * 500 + 1), Err(error));
        assert_eq!(to(TO).segment_size(0).check(1), Err(InvalidDatagram::EmptySegments));
        assert_eq!(to(TO).segment_size(1).check(0), Ok(()), "an empty datagram");
    }

    #[test]
    fn destination_and_source_have_one_family() {
        let own = |address: &str| address.parse().unwrap();
        assert_eq!(to(TO).source(own("::1")).check(1), Err(InvalidDatagram::Families));
        assert_eq!(to(TO_V6).source(own("127.0.0.1")).check(1), Err(InvalidDatagram::Families));
        let mapped = to("[::ffff:192.0.2.1]:9").source(own("127.0.0.1"));
        assert_eq!(mapped.check(1), Ok(()));
        assert_eq!(to(TO).source(own("::ffff:127.0.0.1")).check(1), Ok(()));
        let error = Err(InvalidDatagram::Families);
        assert_eq!(to(TO_V6).source(own("::ffff:127.0.0.1")).check(1), error);
        assert_eq!(Datagram::to_peer().source(own("::1")).interface(1).check(1), Ok(()));
        assert_eq!(Datagram::to_peer().interface(1).check(1), Err(InvalidDatagram::InterfaceAlone));
        assert_eq!(to("192.0.2.1:0").check(1), Err(InvalidDatagram::NoPort));
    }

    #[test]
    fn the_kernels_refusal_of_a_train_names_the_limit() {
        let [einval, emsgsize] = [errno::EINVAL, errno::EMSGSIZE].map(OsError::from_raw);
        let train = to(TO).segment_size(500);
        let error = InvalidDatagram::TooManySegments { segments: 65, most: 64 };
        assert_eq!(train.explain(einval, 65 * 500), Some(error));
        assert_eq!(train.explain(einval, 64 * 500), None, "another reason");
        let error = InvalidDatagram::SegmentTooLong { bytes: 500 };
        assert_eq!(train.explain(emsgsize, 1000), Some(error));
        assert_eq!(to(TO).explain(emsgsize, 1000), None, "no train");
        let train = Datagram::to_peer().segment_size(1200);
        let error = InvalidDatagram::TooLong { len: 65_508, most: 65_507 };
        assert_eq!(train.explain(emsgsize, 65_508), Some(error), "the peer is of IPv4");
        let error = InvalidDatagram::SegmentTooLong { bytes: 1200 };
        assert_eq!(train.explain(emsgsize, 65_507), Some(error));
    }
}
