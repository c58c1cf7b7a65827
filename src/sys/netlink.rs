//! Facts about interfaces and routes from the kernel (rtnetlink, ethtool); no privilege is needed.
//!
//! `/sys/class/net` would be simpler, but shows the network namespace of the mount of `/sys`, which
//! may differ from the caller's, and hides the kind of an interface.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::{Link, Queue, RouteReply, socket::check};

/// `linux/netlink.h`, `linux/rtnetlink.h`, `linux/if_link.h`, `linux/ethtool.h`: not every libc has
/// all constants.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const TCA_KIND: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GSG: u32 = 0x18;

/// The interfaces of the caller's network namespace.
pub(crate) fn links() -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    // A `struct ifinfomsg` of zeros: all families, all interfaces.
    exchange(RTM_GETLINK, NLM_F_DUMP, &[0; 16], &mut |kind, body| {
        links.extend((kind == RTM_NEWLINK).then(|| parse_link(body)).flatten());
    })?;
    Ok(links)
}

/// The queues of all interfaces.
pub(crate) fn queues() -> io::Result<Vec<Queue>> {
    let mut queues = Vec::new();
    // A `struct tcmsg` of zeros: all families, all interfaces.
    exchange(RTM_GETQDISC, NLM_F_DUMP, &[0; QUEUE_HEADER], &mut |kind, body| {
        queues.extend((kind == RTM_NEWQDISC).then(|| parse_queue(body)).flatten());
    })?;
    Ok(queues)
}

/// The route of a packet to `peer`; `scope` is the interface of a link-local peer, else 0.
///
/// Without a route: `ENETUNREACH`, `EHOSTUNREACH`, `EACCES` and others.
pub(crate) fn route(peer: IpAddr, scope: u32) -> io::Result<RouteReply> {
    let mut found = None;
    exchange(RTM_GETROUTE, 0, &route_request(peer, scope), &mut |kind, body| {
        found = found.take().or((kind == RTM_NEWROUTE).then(|| parse_route(body)).flatten());
    })?;
    found.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Returns `true` if the interface takes packets made of many pieces of memory.
pub(crate) fn scatter_gather(interface: &str) -> io::Result<bool> {
    /// `struct ethtool_value`
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value { command: ETHTOOL_GSG, data: 0 };
    // SAFETY: mem::zeroed needs a type with an all-zero value: `ifreq` has only integers and raw
    // pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0. No interface has a longer name.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = socket()?;
    // SAFETY: SIOCETHTOOL of netdevice(7) and `linux/ethtool.h` reads one `ifreq`. ETHTOOL_GSG
    // reads and writes the `ethtool_value` named there. Both live through the call. The fd is open.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    Ok(value.data != 0)
}

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
    // SAFETY: from_raw_fd needs an open, unowned fd: the call above made this one.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends one request and reads all replies.
///
/// Never blocks: the kernel answers a request before `send` returns, and continues a dump before
/// `recv` does.
fn exchange(
    kind: u16,
    flags: u16,
    body: &[u8],
    on_message: &mut dyn FnMut(u16, &[u8]),
) -> io::Result<()> {
    let socket = socket()?;
    let request = message(kind, NLM_F_REQUEST | flags, body);
    // SAFETY: send(2) reads `len` bytes of the buffer, which is as long and lives through the call.
    // The fd is open.
    let sent = unsafe {
        libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), libc::MSG_DONTWAIT)
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    // The kernel makes its datagrams no larger than 32 KiB.
    let mut room = vec![0; 32 << 10];
    loop {
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let len = super::socket::retry(|| {
            // SAFETY: recv(2) writes at most `len` bytes to the buffer, which is as long and lives
            // through the call. The fd is open.
            unsafe { libc::recv(socket.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), flags) }
        })?;
        // With MSG_TRUNC the length is the datagram's, even beyond the room.
        let datagram = room.get(..len).ok_or(io::Error::from_raw_os_error(libc::EMSGSIZE))?;
        if replies(datagram, on_message)? {
            return Ok(());
        }
    }
}

/// A `struct nlmsghdr` and its body.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let len = (HEADER + body.len()) as u32;
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port: each socket makes one request.
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// A `struct rtmsg` with the destination, and the interface if there is one.
fn route_request(peer: IpAddr, scope: u32) -> Vec<u8> {
    let (family, address) = match peer {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut body = vec![0; ROUTE_HEADER];
    body[0] = family as u8;
    body[1] = 8 * address.len() as u8;
    attribute(&mut body, RTA_DST, &address);
    if scope != 0 {
        attribute(&mut body, RTA_OIF, &scope.to_ne_bytes());
    }
    body
}

/// Appends a `struct rtattr`; every value here is a whole number of words.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

/// Length of a `struct nlmsghdr`, an `ifinfomsg`, an `rtmsg`, a `tcmsg`.
const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;
const QUEUE_HEADER: usize = 20;

/// Calls `on_message` for each message of a datagram. Returns `true` if the datagram was the last
/// one. Ends at an impossible length.
fn replies(datagram: &[u8], on_message: &mut dyn FnMut(u16, &[u8])) -> io::Result<bool> {
    /// More messages of this reply follow (`NLM_F_MULTI`).
    const MULTI: u16 = 2;
    let mut more = false;
    let mut rest = datagram;
    while let (Some(len), Some(kind), Some(flags)) =
        (u32_at(rest, 0), u16_at(rest, 4), u16_at(rest, 6))
    {
        let len = len as usize;
        let Some(body) = rest.get(HEADER..len) else { break };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => match u32_at(body, 0).map(|errno| (errno as i32).wrapping_neg()) {
                // An acknowledgement.
                Some(0) => return Ok(true),
                errno => return Err(io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO))),
            },
            _ => on_message(kind, body),
        }
        more = flags & MULTI != 0;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(!more)
}

/// Reads a `struct tcmsg` and its attributes.
fn parse_queue(body: &[u8]) -> Option<Queue> {
    let kind = find(body.get(QUEUE_HEADER..)?, TCA_KIND)?;
    Some(Queue { interface: u32_at(body, 4)?, kind: text(kind) })
}

/// Reads a `struct ifinfomsg` and its attributes.
fn parse_link(body: &[u8]) -> Option<Link> {
    let flags = u32_at(body, 8)? as libc::c_int;
    let attributes = body.get(LINK_HEADER..)?;
    let kind = find(attributes, IFLA_LINKINFO).and_then(|info| find(info, IFLA_INFO_KIND));
    Some(Link {
        index: u32_at(body, 4)?,
        name: text(find(attributes, IFLA_IFNAME)?),
        kind: kind.map(text),
        mtu: u32_at(find(attributes, IFLA_MTU)?, 0)?,
        loopback: flags & libc::IFF_LOOPBACK != 0,
        up: flags & libc::IFF_UP != 0,
    })
}

/// Reads a `struct rtmsg` and its attributes.
fn parse_route(body: &[u8]) -> Option<RouteReply> {
    let attributes = body.get(ROUTE_HEADER..)?;
    Some(RouteReply {
        kind: body[7],
        interface: u32_at(find(attributes, RTA_OIF)?, 0)?,
        source: find(attributes, RTA_PREFSRC).and_then(address),
        gateway: find(attributes, RTA_GATEWAY).and_then(address),
    })
}

/// The value of the first attribute of this kind.
fn find(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// The upper two bits of a kind are flags (`NLA_TYPE_MASK`).
    const KIND: u16 = 0x3FFF;
    let mut rest = attributes;
    loop {
        let len = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & KIND;
        let value = rest.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn attributes(list: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, value) in list {
            attribute(&mut bytes, *kind, value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn a_link_is_read_with_its_kind() {
        let mut body = vec![0; LINK_HEADER];
        body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        body[8..12].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
        let info = attributes(&[(2, b"x"), (IFLA_INFO_KIND, b"veth\0")]);
        body.extend(attributes(&[
            (IFLA_IFNAME, b"v0\0"),
            (IFLA_MTU, &1500_u32.to_ne_bytes()),
            (IFLA_LINKINFO | 0x8000, &info),
        ]));
        let link = Link {
            index: 7,
            name: "v0".to_owned(),
            kind: Some("veth".to_owned()),
            loopback: false,
            up: true,
            mtu: 1500,
        };
        assert_eq!(parse_link(&body), Some(link));
    }

    #[test]
    fn garbage_is_skipped_and_read_within_its_bounds() {
        // A length of 0 would never advance; a length beyond the end has no known next message.
        for bytes in [&[0; 64][..], &[255; 64], &[4, 0, 9, 0, 255, 255, 1, 0]] {
            assert_eq!(find(bytes, 1), None, "{bytes:?}");
            assert_eq!(parse_link(bytes), None);
            assert!(replies(bytes, &mut |_, _| panic!("no message")).unwrap());
        }
        let mut seed = 1_u32;
        for len in 0..2000 {
            let bytes: Vec<u8> = (0..len % 97)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Small numbers, so that lengths and kinds are often plausible.
                    (seed >> 24) as u8 & if seed & 0x800 == 0 { 0x1F } else { 0 }
                })
                .collect();
            let _ = replies(&bytes, &mut |_, body| {
                let _ = (parse_link(body), parse_route(body));
            });
            let _ = (parse_link(&bytes), parse_route(&bytes));
        }
    }

    #[test]
    fn an_error_reply_is_the_error() {
        let reply = message(NLMSG_ERROR, 0, &(-libc::ENETUNREACH).to_ne_bytes());
        let error = replies(&reply, &mut |_, _| panic!("no message")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
        assert!(replies(&message(NLMSG_ERROR, 0, &[0; 4]), &mut |_, _| ()).unwrap());
        let cut = replies(&message(NLMSG_ERROR, 0, &[]), &mut |_, _| ()).unwrap_err();
        assert_eq!(cut.raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn a_dump_continues_until_its_last_message() {
        let multi = message(RTM_NEWLINK, 2, &[1; 5]);
        let mut seen = 0;
        assert!(!replies(&multi, &mut |_, _| seen += 1).unwrap());
        let padded: Vec<u8> = multi.iter().copied().chain([0; 3]).collect();
        let both: Vec<u8> = [padded, message(NLMSG_DONE, 2, &[0; 4])].concat();
        assert!(replies(&both, &mut |_, _| seen += 1).unwrap());
        assert!(replies(&message(RTM_NEWLINK, 0, &[]), &mut |_, _| seen += 1).unwrap());
        assert_eq!(seen, 3);
    }

    #[test]
    fn loopback_is_among_the_links() {
        let links = links().unwrap();
        let lo =
            links.iter().find(|link| link.loopback).expect("every namespace has a loopback device");
        assert_eq!((lo.index, lo.name.as_str(), lo.kind.as_deref()), (1, "lo", None));
        assert!(lo.mtu > 0 && links.iter().filter(|link| link.loopback).count() == 1);
    }

    #[test]
    fn scatter_gather_is_told_for_existing_interfaces() {
        assert!(scatter_gather("lo").unwrap());
        for name in ["no-such-device", "lo\0and more than there is room for", ""] {
            let error = scatter_gather(name).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV), "{name}");
        }
    }

    #[test]
    fn a_route_to_the_own_host_is_loopback() {
        for (peer, source) in [(IpAddr::from([127, 0, 0, 9]), Ipv4Addr::LOCALHOST.into()), {
            let one = IpAddr::from(Ipv6Addr::LOCALHOST);
            (one, one)
        }] {
            let RouteReply { interface, source: found, kind, gateway } = route(peer, 0).unwrap();
            const LOCAL: u8 = 2;
            // Some kernels report 127.0.0.9 as its own source.
            assert!(found == Some(source) || found == Some(peer), "{found:?}");
            assert_eq!((interface, kind, gateway), (1, LOCAL, None));
        }
    }

    #[test]
    fn a_missing_route_is_an_error() {
        // No packet reaches a link-local address through a missing interface.
        assert!(route(Ipv6Addr::new(0xFE80, 0, 0, 0, 0, 0, 0, 1).into(), u32::MAX).is_err());
    }
}
