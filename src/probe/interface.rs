//! Network interfaces, and the packet taps on them.

use std::fmt;

use super::{check::Check, text::read};
use crate::{
    error::OsError,
    sys::{Link, netlink},
};

/// The kind of an interface.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum InterfaceKind {
    /// Hardware with a driver, also the virtual hardware of a guest.
    Hardware,
    /// `lo`: the kernel copies.
    Loopback,
    /// One end of a virtual pair, as containers have: the kernel copies.
    Veth,
    /// A tunnel or tap to a program, such as a VPN or a hypervisor: the kernel copies.
    Tun,
    /// A bridge: whether the kernel copies depends on the port of the packet.
    Bridge,
    /// Another virtual interface, by the kernel's name for its kind: `vlan`, `bond`, `macvlan`, ...
    Other(String),
}

impl fmt::Display for InterfaceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "hardware",
            Self::Loopback => "loopback",
            Self::Veth => "veth",
            Self::Tun => "tun",
            Self::Bridge => "bridge",
            Self::Other(kind) => kind,
        })
    }
}

/// A network interface of the caller's network namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Interface {
    /// Index, unique in the network namespace.
    pub index: u32,
    /// Name, such as `eth0`.
    pub name: String,
    /// Kind.
    pub kind: InterfaceKind,
    /// `true` if the interface is set up, with or without a cable.
    pub up: bool,
    /// Largest packet in bytes.
    pub mtu_bytes: u32,
    /// `true` if the interface takes packets made of many pieces of memory. Otherwise the kernel
    /// copies the pieces together. `None` if unknown.
    pub scatter_gather: Option<bool>,
}

impl Interface {
    /// All interfaces, by index.
    pub(super) fn all() -> Result<Vec<Self>, OsError> {
        let mut links = netlink::links().map_err(|error| OsError::from(&error))?;
        links.sort_by_key(|link| link.index);
        Ok(links.into_iter().map(Self::new).collect())
    }

    fn new(link: Link) -> Self {
        let kind = match link.kind.as_deref() {
            _ if link.loopback => InterfaceKind::Loopback,
            None => InterfaceKind::Hardware,
            Some("veth") => InterfaceKind::Veth,
            Some("tun") => InterfaceKind::Tun,
            Some("bridge") => InterfaceKind::Bridge,
            Some(_) => InterfaceKind::Other(link.kind.unwrap_or_default()),
        };
        let scatter_gather = netlink::scatter_gather(&link.name).ok();
        let (index, name, up, mtu_bytes) = (link.index, link.name, link.up, link.mtu);
        Self { index, name, kind, up, mtu_bytes, scatter_gather }
    }

    /// Returns `true` if the kernel copies packets for this interface; `None` if that depends on
    /// more.
    ///
    /// ```
    /// # if cfg!(target_os = "linux") {
    /// let environment = pinbuf::probe::Environment::probe();
    /// let interfaces = environment.interfaces.unwrap_or_default();
    /// let lo = interfaces.iter().find(|interface| interface.name == "lo").unwrap();
    /// assert_eq!(lo.copies(), Some(true));
    /// # }
    /// ```
    pub fn copies(&self) -> Option<bool> {
        match self.kind {
            InterfaceKind::Loopback | InterfaceKind::Veth | InterfaceKind::Tun => Some(true),
            InterfaceKind::Hardware => self.scatter_gather.map(|scatter_gather| !scatter_gather),
            InterfaceKind::Bridge | InterfaceKind::Other(_) => None,
        }
    }

    pub(super) fn check(interfaces: &Result<Vec<Self>, OsError>) -> Check {
        const NAME: &str = "interfaces";
        let interfaces = match interfaces {
            Ok(interfaces) => interfaces,
            Err(error) => {
                let found = format!("cannot be listed: {error}");
                return Check::unknown(NAME, found, "allow AF_NETLINK sockets in the sandbox");
            }
        };
        let found: Vec<_> = interfaces.iter().map(ToString::to_string).collect();
        let found = found.join("; ");
        let mut up = interfaces.iter().filter(|interface| interface.up);
        if let Some(gathering) = up.clone().find(|interface| {
            interface.kind == InterfaceKind::Hardware && interface.copies() == Some(true)
        }) {
            let name = &gathering.name;
            let advice = format!("`ethtool -K {name} sg on`: now packets for {name} are copied");
            Check::warn(NAME, found, advice)
        } else if up.clone().next().is_none() {
            Check::warn(NAME, found, "set one up: `ip link set lo up`")
        } else if up.all(|interface| interface.copies() == Some(true)) {
            let advice = "the kernel copies on all that are up; use a real interface, in a container \
                the host's network, macvlan or SR-IOV";
            Check::warn(NAME, found, advice)
        } else {
            Check::pass(NAME, found)
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, kind, up, scatter_gather, .. } = self;
        write!(f, "{name} ({kind}")?;
        if !up {
            f.write_str(", down")?;
        }
        match (kind, scatter_gather) {
            (InterfaceKind::Hardware, Some(true)) => f.write_str(", scatter-gather on")?,
            (InterfaceKind::Hardware, Some(false)) => f.write_str(", scatter-gather off")?,
            (InterfaceKind::Hardware, None) => f.write_str(", scatter-gather unknown")?,
            _ => {}
        }
        f.write_str(match self.copies() {
            Some(true) => ", copies)",
            _ => ")",
        })
    }
}

/// An open packet socket that sees every packet (`tcpdump` and the like). While a tap is open, the
/// kernel copies all packets of its interface.
///
/// Taps of other network namespaces are invisible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Tap {
    /// Index of the interface; `None` for all.
    pub interface: Option<u32>,
    /// Id of the user with the open socket.
    pub user: u32,
}

impl Tap {
    /// The taps of the caller's network namespace; `None` if they cannot be listed.
    pub(super) fn all() -> Option<Vec<Self>> {
        // The thread's table: a thread can be in another namespace than its process.
        let text = read("/proc/thread-self/net/packet")?;
        // Without its heading the table is in an unknown format.
        text.starts_with("sk").then(|| text.lines().filter_map(Self::parse).collect())
    }

    /// Reads a line of `/proc/net/packet`, if the line is a running tap of every protocol. Taps of
    /// a single protocol do not see sent packets.
    fn parse(line: &str) -> Option<Self> {
        /// `ETH_P_ALL`
        const EVERYTHING: u16 = 3;
        let mut fields = line.split_ascii_whitespace().skip(3);
        let protocol = u16::from_str_radix(fields.next()?, 16).ok()?;
        let interface = fields.next()?.parse().ok()?;
        let running: u32 = fields.next()?.parse().ok()?;
        let user = fields.nth(1)?.parse().ok()?;
        let is_tap = protocol == EVERYTHING && running != 0;
        is_tap.then_some(Self { interface: Some(interface).filter(|index| *index != 0), user })
    }

    /// Returns `true` if the tap sees the packets of the interface.
    pub fn is_on(&self, interface: &Interface) -> bool {
        self.interface.is_none_or(|index| index == interface.index)
    }

    pub(super) fn check(taps: Option<&[Self]>) -> Check {
        const NAME: &str = "packet taps";
        match taps {
            None => Check::unknown(NAME, "no /proc/net/packet", "mount /proc"),
            Some([]) => Check::pass(NAME, "none in this network namespace"),
            Some(taps) => {
                let taps: Vec<_> = taps.iter().map(ToString::to_string).collect();
                let advice =
                    "stop tcpdump and the like: the kernel copies every packet under a tap";
                Check::warn(NAME, taps.join(", "), advice)
            }
        }
    }
}

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.interface {
            Some(index) => write!(f, "one of user {} on interface {index}", self.user),
            None => write!(f, "one of user {} on all interfaces", self.user),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::probe::Status;

    pub(in crate::probe) fn interface(kind: InterfaceKind) -> Interface {
        let scatter_gather = Some(true);
        Interface {
            index: 5,
            name: "x0".to_owned(),
            kind,
            up: true,
            mtu_bytes: 1500,
            scatter_gather,
        }
    }

    fn link(kind: Option<&str>, loopback: bool) -> Link {
        let kind = kind.map(str::to_owned);
        Link { index: 9, name: "no-such-device".to_owned(), kind, loopback, up: true, mtu: 1500 }
    }

    #[test]
    fn kinds_are_the_kernels() {
        for (link, kind) in [
            (link(None, true), InterfaceKind::Loopback),
            (link(None, false), InterfaceKind::Hardware),
            (link(Some("veth"), false), InterfaceKind::Veth),
            (link(Some("tun"), false), InterfaceKind::Tun),
            (link(Some("bridge"), false), InterfaceKind::Bridge),
            (link(Some("vlan"), false), InterfaceKind::Other("vlan".to_owned())),
        ] {
            let found = Interface::new(link);
            assert_eq!((found.kind, found.scatter_gather), (kind, None));
        }
    }

    #[test]
    fn only_hardware_with_scatter_gather_is_known_not_to_copy() {
        let copies = |kind| interface(kind).copies();
        assert_eq!(copies(InterfaceKind::Hardware), Some(false));
        assert_eq!(copies(InterfaceKind::Loopback), Some(true));
        assert_eq!(copies(InterfaceKind::Veth), Some(true));
        assert_eq!(copies(InterfaceKind::Tun), Some(true));
        assert_eq!(copies(InterfaceKind::Bridge), None);
        assert_eq!(copies(InterfaceKind::Other("vlan".to_owned())), None);
        let hardware =
            |scatter_gather| Interface { scatter_gather, ..interface(InterfaceKind::Hardware) };
        assert_eq!(hardware(Some(false)).copies(), Some(true));
        assert_eq!(hardware(None).copies(), None);
    }

    #[test]
    fn interfaces_that_are_down_do_not_count() {
        let down = |kind| Interface { up: false, ..interface(kind) };
        let (lo, nic) = (InterfaceKind::Loopback, InterfaceKind::Hardware);
        let no_gather = Interface { scatter_gather: Some(false), ..interface(nic.clone()) };
        for (interfaces, status, advice) in [
            (vec![interface(lo.clone()), interface(nic.clone())], Status::Pass, ""),
            (vec![interface(lo.clone()), down(nic.clone())], Status::Warn, "copies on all"),
            (vec![interface(lo.clone()), interface(InterfaceKind::Bridge)], Status::Pass, ""),
            (vec![down(lo.clone())], Status::Warn, "ip link set lo up"),
            (vec![], Status::Warn, "ip link set lo up"),
            (vec![interface(nic), no_gather.clone()], Status::Warn, "ethtool -K x0 sg on"),
            (
                vec![interface(lo), Interface { up: false, ..no_gather }],
                Status::Warn,
                "copies on all",
            ),
        ] {
            let check = Interface::check(&Ok(interfaces));
            assert_eq!(check.status, status, "{check}");
            assert!(check.advice.clone().unwrap_or_default().contains(advice), "{check}");
        }
        let refused = Interface::check(&Err(OsError::from_raw(1)));
        assert_eq!(refused.status, Status::Unknown);
    }

    #[test]
    fn running_taps_of_every_protocol_count() {
        let tap = |interface, user| Some(Tap { interface, user });
        for (line, expected) in [
            ("000000002f33f3b1 3      3    0003   2     1 0      0      12345", tap(Some(2), 0)),
            ("0000000000000000 3      2    0003   0     1 896    1000   12345 ", tap(None, 1000)),
            ("0000000000000000 3      3    0003   2     0 0      0      12345", None),
            ("0000000000000000 3      3    0800   2     1 0      0      12345", None),
            ("0000000000000000 3      3    888e   2     1 0      0      12345", None),
            ("sk               RefCnt Type Proto  Iface R Rmem   User   Inode", None),
            ("", None),
            ("0 3 3 0003", None),
            ("0 3 3 0003 2 1 0", None),
            ("0 3 3 0003 -2 1 0 0 1", None),
            ("0 3 3 10003 2 1 0 0 1", None),
        ] {
            assert_eq!(Tap::parse(line), expected, "{line}");
        }
    }

    #[test]
    fn a_tap_on_all_interfaces_is_on_each() {
        let on =
            |interface| Tap { interface, user: 0 }.is_on(&self::interface(InterfaceKind::Veth));
        assert!(on(None) && on(Some(5)) && !on(Some(6)));
        assert_eq!(Tap::check(None).status, Status::Unknown);
        assert_eq!(Tap::check(Some(&[])).status, Status::Pass);
        let check = Tap::check(Some(&[Tap { interface: Some(2), user: 7 }]));
        assert_eq!((check.status, &*check.found), (Status::Warn, "one of user 7 on interface 2"));
    }
}
