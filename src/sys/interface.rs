//! Facts about interfaces and routes, as the kernel tells them.

use std::net::IpAddr;

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// The kind of a virtual interface (`veth`, `bridge`, ...); none for hardware and loopback.
    pub(crate) kind: Option<String>,
    pub(crate) loopback: bool,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
}

/// A route to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RouteReply {
    /// `RTN_UNICAST` and so on.
    pub(crate) kind: u8,
    /// Index of the interface for the packets.
    pub(crate) interface: u32,
    pub(crate) source: Option<IpAddr>,
    pub(crate) gateway: Option<IpAddr>,
}

/// A queue of an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Queue {
    pub(crate) interface: u32,
    /// The name of its discipline: `fq`, `pfifo_fast`, `noqueue`.
    pub(crate) kind: String,
}
