//! The route to one peer.

use std::{
    error::Error,
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::{
    check::Check,
    interface::{Interface, InterfaceKind, Tap},
};
use crate::{
    error::OsError,
    sys::{RouteReply, netlink},
};

/// The route of packets to a peer, as the kernel has it now.
///
/// The route ends at the first interface: later switches, hosts and tunnels are unknown, and do not
/// matter for the copy. Rules for a mark, a port or a user can choose another route for a given
/// socket.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Route {
    /// The peer.
    pub peer: IpAddr,
    /// The source address of an unbound socket.
    pub source: Option<IpAddr>,
    /// The next router, unless the peer is on a network of this machine.
    pub gateway: Option<IpAddr>,
    /// The interface of the packets; loopback for an address of this machine.
    pub interface: Interface,
    /// `true` if a packet tap is open on the interface; `None` if unknown.
    pub tapped: Option<bool>,
}

/// The reason for a missing [`Route`].
///
/// ```
/// use pinbuf::probe::{Environment, RouteError};
///
/// let error = Environment::route_to("224.0.0.1:9".parse().unwrap()).unwrap_err();
/// # if cfg!(target_os = "linux") {
/// assert_eq!(error, RouteError::NotOnePeer);
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RouteError {
    /// The address is that of no single peer: unspecified, broadcast or multicast.
    NotOnePeer,
    /// The kernel has no route to the address; check it, the interfaces and `ip route`.
    NoRoute(OsError),
    /// The system does not tell its routes; only Linux does, and a sandbox may not.
    Unknown(OsError),
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOnePeer => f.write_str(
                "the address is that of no single peer: unspecified, broadcast or multicast",
            ),
            Self::NoRoute(error) => write!(
                f,
                "the kernel has no route to the address ({error}); check it, the interfaces and \
                 `ip route`"
            ),
            Self::Unknown(error) => write!(
                f,
                "the system does not tell its routes ({error}); only Linux does, and a sandbox \
                 may not"
            ),
        }
    }
}

impl Error for RouteError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NotOnePeer => None,
            Self::NoRoute(error) | Self::Unknown(error) => Some(error),
        }
    }
}

impl Route {
    pub(super) fn find(peer: SocketAddr) -> Result<Self, RouteError> {
        let address = peer.ip().to_canonical();
        if address.is_unspecified() || address.is_multicast() {
            return Err(RouteError::NotOnePeer);
        }
        let scope = match peer {
            SocketAddr::V6(peer) => peer.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        // First, so that a system without such facts is not taken for a system without a route.
        let interfaces = Interface::all().map_err(RouteError::Unknown)?;
        let reply = netlink::route(address, scope);
        let reply = reply.map_err(|error| RouteError::NoRoute(OsError::from(&error)))?;
        Self::new(address, reply, interfaces, Tap::all().as_deref())
    }

    fn new(
        peer: IpAddr,
        reply: RouteReply,
        interfaces: Vec<Interface>,
        taps: Option<&[Tap]>,
    ) -> Result<Self, RouteError> {
        /// `linux/rtnetlink.h`
        const UNICAST: u8 = 1;
        const LOCAL: u8 = 2;
        if !matches!(reply.kind, UNICAST | LOCAL) {
            return Err(RouteError::NotOnePeer);
        }
        const ENODEV: i32 = 19;
        let interface = interfaces.into_iter().find(|interface| interface.index == reply.interface);
        // `None` if the interface was removed between the two requests.
        let interface = interface.ok_or(RouteError::NoRoute(OsError::from_raw(ENODEV)))?;
        let tapped = taps.map(|taps| taps.iter().any(|tap| tap.is_on(&interface)));
        let RouteReply { source, gateway, .. } = reply;
        Ok(Self { peer, source, gateway, interface, tapped })
    }

    /// Returns `true` if the kernel copies packets on this route; `None` if unknown.
    ///
    /// ```
    /// # if cfg!(target_os = "linux") {
    /// let route = pinbuf::probe::Environment::route_to("127.0.0.1:80".parse().unwrap()).unwrap();
    /// assert_eq!(route.copies(), Some(true));
    /// # }
    /// ```
    pub fn copies(&self) -> Option<bool> {
        match (self.interface.copies(), self.tapped) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (Some(false), Some(false)) => Some(false),
            _ => None,
        }
    }

    /// The consequences of this route for zero copy, and the change to make.
    pub fn check(&self) -> Check {
        const NAME: &str = "route";
        let name = &self.interface.name;
        let found = self.to_string();
        let advice = match (&self.interface.kind, self.interface.copies(), self.tapped) {
            (InterfaceKind::Loopback, ..) => {
                "a peer on this machine: the kernel copies every send; nothing to change, go by copy"
                    .to_owned()
            }
            (InterfaceKind::Veth, ..) => "the kernel copies what leaves a container by a virtual \
                pair; use the host's network, macvlan or SR-IOV"
                .to_owned(),
            (InterfaceKind::Tun, ..) => {
                "the kernel copies for the program behind the tunnel; go around it".to_owned()
            }
            (_, Some(true), _) => format!("`ethtool -K {name} sg on`: now the kernel copies"),
            (.., Some(true)) => "stop the packet tap (tcpdump and the like) on it: now the kernel \
                copies"
                .to_owned(),
            (_, Some(false), Some(false)) => return Check::pass(NAME, found),
            _ => {
                let advice = "measure: the statistics of a sender count copied sends";
                return Check::unknown(NAME, found, advice);
            }
        };
        Check::warn(NAME, found, advice)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.peer, self.interface)?;
        if let Some(gateway) = self.gateway {
            write!(f, " through {gateway}")?;
        }
        if let Some(source) = self.source {
            write!(f, " from {source}")?;
        }
        f.write_str(if self.tapped == Some(true) { ", tapped" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Status, interface::tests::interface};

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    fn reply(kind: u8, interface: u32) -> RouteReply {
        RouteReply { kind, interface, source: None, gateway: None }
    }

    fn route(kind: InterfaceKind, taps: Option<&[Tap]>) -> Route {
        Route::new(PEER, reply(1, 5), vec![interface(kind)], taps).unwrap()
    }

    #[test]
    fn a_route_without_copies_has_hardware_and_no_tap() {
        let tap = Tap { interface: Some(5), user: 0 };
        let elsewhere = Tap { interface: Some(6), user: 0 };
        let bond = InterfaceKind::Other("bond".to_owned());
        for (kind, taps, copies, status) in [
            (InterfaceKind::Hardware, Some(&[][..]), Some(false), Status::Pass),
            (InterfaceKind::Hardware, Some(&[elsewhere]), Some(false), Status::Pass),
            (InterfaceKind::Hardware, Some(&[elsewhere, tap]), Some(true), Status::Warn),
            (InterfaceKind::Hardware, None, None, Status::Unknown),
            (InterfaceKind::Loopback, None, Some(true), Status::Warn),
            (InterfaceKind::Veth, Some(&[]), Some(true), Status::Warn),
            (InterfaceKind::Tun, Some(&[]), Some(true), Status::Warn),
            (bond.clone(), Some(&[]), None, Status::Unknown),
            (bond, Some(&[tap]), Some(true), Status::Warn),
        ] {
            let route = route(kind, taps);
            assert_eq!((route.copies(), route.check().status), (copies, status), "{route:?}");
        }
    }

    #[test]
    fn the_check_names_an_interface_without_scatter_gather() {
        let slow = Interface { scatter_gather: Some(false), ..interface(InterfaceKind::Hardware) };
        let route = Route::new(PEER, reply(1, 5), vec![slow], Some(&[])).unwrap();
        assert!(route.check().advice.unwrap().contains("ethtool -K x0 sg on"));
    }

    #[test]
    fn a_route_needs_a_single_peer_and_an_interface() {
        let new = |kind, index| {
            let interfaces = vec![interface(InterfaceKind::Hardware)];
            Route::new(PEER, reply(kind, index), interfaces, None)
        };
        assert!(new(1, 5).is_ok() && new(2, 5).is_ok());
        assert_eq!(new(3, 5), Err(RouteError::NotOnePeer), "broadcast");
        assert_eq!(new(5, 5), Err(RouteError::NotOnePeer), "multicast");
        assert!(matches!(new(1, 6), Err(RouteError::NoRoute(_))));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn addresses_of_this_machine_lead_over_loopback() {
        for peer in ["127.0.0.1:1", "[::ffff:127.0.0.1]:1"] {
            let route = Route::find(peer.parse().unwrap()).unwrap();
            assert_eq!(route.interface.kind, InterfaceKind::Loopback, "{peer}");
            assert_eq!(route.peer.to_string(), "127.0.0.1");
        }
        for peer in ["0.0.0.0:1", "[::]:1", "224.0.0.1:1", "[ff02::1]:1", "255.255.255.255:1"] {
            let found = Route::find(peer.parse().unwrap());
            // Without an interface that is up, broadcasts have no route either.
            assert!(found == Err(RouteError::NotOnePeer) || peer.starts_with("255"), "{found:?}");
        }
    }
}
