//! The header of one message: its destination, and the wishes that go to the kernel as control data.

use std::{
    ffi::c_void,
    io, mem,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    ptr,
};

#[cfg(not(target_os = "linux"))]
use super::fallback::Control;

/// The destination of a message and its control data. The default leaves both to the socket.
#[derive(Clone, Copy, Default)]
#[allow(missing_debug_implementations, reason = "bytes for the kernel")]
pub struct Header {
    to: Name,
    control: Control,
}

impl Header {
    /// A header for this destination; `None` for the peer of the socket.
    pub(crate) fn to(destination: Option<SocketAddr>) -> Self {
        Self { to: destination.map_or(Name::Peer, Name::of), control: Control::default() }
    }

    /// Has the message come from this address, and leave by this interface; 0 for that of the route.
    pub(crate) fn source(&mut self, source: IpAddr, interface: u32) -> io::Result<()> {
        self.control.source(source, interface)
    }

    /// Has the kernel cut the message into datagrams of so many bytes.
    pub(crate) fn segment(&mut self, bytes: u16) -> io::Result<()> {
        self.control.segment(bytes)
    }

    /// Has the message leave at this time of the monotonic clock, in nanoseconds.
    pub(crate) fn at(&mut self, time_ns: u64) -> io::Result<()> {
        self.control.time(time_ns)
    }

    /// Names the destination and the control data in `message`, which points to `self` then.
    pub(super) fn put_into(&self, message: &mut libc::msghdr) {
        (message.msg_name, message.msg_namelen) = match &self.to {
            Name::Peer => (ptr::null_mut(), 0),
            Name::V4(name) => pointer_to(name),
            Name::V6(name) => pointer_to(name),
        };
        let control = self.control.bytes();
        if !control.is_empty() {
            message.msg_control = control.as_ptr().cast_mut().cast();
            message.msg_controllen = control.len() as _;
        }
    }
}

fn pointer_to<T>(name: &T) -> (*mut c_void, libc::socklen_t) {
    (ptr::from_ref(name).cast_mut().cast(), size_of::<T>() as libc::socklen_t)
}

/// An address as the kernel reads it.
#[derive(Clone, Copy, Default)]
enum Name {
    #[default]
    Peer,
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl Name {
    fn of(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => Self::V4(name_v4(address)),
            SocketAddr::V6(address) => Self::V6(name_v6(address)),
        }
    }
}

fn name_v4(address: SocketAddrV4) -> libc::sockaddr_in {
    // SAFETY: mem::zeroed needs a type with an all-zero value: `sockaddr_in` has only integers.
    let mut name: libc::sockaddr_in = unsafe { mem::zeroed() };
    name.sin_family = libc::AF_INET as libc::sa_family_t;
    name.sin_port = address.port().to_be();
    name.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
    name
}

fn name_v6(address: SocketAddrV6) -> libc::sockaddr_in6 {
    // SAFETY: mem::zeroed needs a type with an all-zero value: `sockaddr_in6` has only integers.
    let mut name: libc::sockaddr_in6 = unsafe { mem::zeroed() };
    name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
    name.sin6_port = address.port().to_be();
    name.sin6_flowinfo = address.flowinfo();
    name.sin6_addr.s6_addr = address.ip().octets();
    name.sin6_scope_id = address.scope_id();
    name
}

/// `linux/udp.h`: not every libc has the constant.
#[cfg(target_os = "linux")]
const UDP_SEGMENT: i32 = 103;

/// Control messages, one behind the other: a source address, a segment size and a time at most.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy)]
#[repr(align(8))]
struct Control {
    bytes: [u8; Self::ROOM],
    len: usize,
}

#[cfg(target_os = "linux")]
impl Default for Control {
    fn default() -> Self {
        Self { bytes: [0; Self::ROOM], len: 0 }
    }
}

#[cfg(target_os = "linux")]
impl Control {
    /// Three headers of 16 bytes, and data of 20, 2 and 8 bytes, each padded to a word of 8 bytes.
    const ROOM: usize = 3 * 16 + 24 + 8 + 8;

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Appends a `struct cmsghdr` and its data.
    fn push(&mut self, level: i32, kind: i32, data: &[&[u8]]) {
        let start = self.len;
        let header = size_of::<usize>() + 2 * size_of::<i32>();
        let len = header + data.iter().map(|part| part.len()).sum::<usize>();
        self.put(&len.to_ne_bytes());
        self.put(&level.to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        data.iter().for_each(|part| self.put(part));
        self.len = start + len.next_multiple_of(size_of::<usize>());
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// A `struct in_pktinfo` or a `struct in6_pktinfo`.
    fn source(&mut self, source: IpAddr, interface: u32) -> io::Result<()> {
        let index = interface.to_ne_bytes();
        match source {
            IpAddr::V4(source) => {
                self.push(libc::SOL_IP, libc::IP_PKTINFO, &[&index, &source.octets(), &[0; 4]]);
            }
            IpAddr::V6(source) => {
                self.push(libc::SOL_IPV6, libc::IPV6_PKTINFO, &[&source.octets(), &index]);
            }
        }
        Ok(())
    }

    fn segment(&mut self, bytes: u16) -> io::Result<()> {
        self.push(libc::SOL_UDP, UDP_SEGMENT, &[&bytes.to_ne_bytes()]);
        Ok(())
    }

    fn time(&mut self, time_ns: u64) -> io::Result<()> {
        self.push(libc::SOL_SOCKET, libc::SCM_TXTIME, &[&time_ns.to_ne_bytes()]);
        Ok(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn control_messages_are_laid_out_as_libc_says() {
        let mut header = Header::to(Some("[::1]:9".parse().unwrap()));
        header.source("::2".parse().unwrap(), 3).unwrap();
        header.segment(1400).unwrap();
        header.at(77).unwrap();
        // SAFETY: mem::zeroed needs a type with an all-zero value: `msghdr` has only integers and raw
        // pointers.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        header.put_into(&mut message);
        assert_eq!(message.msg_namelen as usize, size_of::<libc::sockaddr_in6>());
        let mut found = Vec::new();
        // SAFETY: cmsg(3): CMSG_FIRSTHDR reads the pointer and the length of the control data.
        let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        while !at.is_null() {
            // SAFETY: the macros return a pointer to a whole header inside the control data, which are
            // aligned for one (`align(8)`) and live as long as `header`.
            let one = unsafe { &*at };
            found.push((one.cmsg_level, one.cmsg_type, one.cmsg_len as usize));
            // SAFETY: cmsg(3): CMSG_NXTHDR needs the message and one of its headers.
            at = unsafe { libc::CMSG_NXTHDR(&raw const message, at) };
        }
        // SAFETY: CMSG_LEN is arithmetic; only C's other macros make it unsafe.
        let len = |data: u32| unsafe { libc::CMSG_LEN(data) } as usize;
        let expected = [
            (libc::SOL_IPV6, libc::IPV6_PKTINFO, len(size_of::<libc::in6_pktinfo>() as u32)),
            (libc::SOL_UDP, 103, len(2)),
            (libc::SOL_SOCKET, libc::SO_TXTIME, len(8)),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_header_without_wishes_names_nothing() {
        // SAFETY: mem::zeroed needs a type with an all-zero value: `msghdr` has only integers and raw
        // pointers.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        Header::default().put_into(&mut message);
        assert!(message.msg_name.is_null() && message.msg_control.is_null());
        assert_eq!((message.msg_namelen, message.msg_controllen), (0, 0));
    }
}
