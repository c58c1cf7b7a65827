//! A fake TCP peer: a connection to an address behind a device that drops every packet, and forged
//! answers.
//!
//! So acknowledgements are exact to the byte, no result depends on time, and the kernel never
//! copies: all notifications report true zero copy. Needs a private network namespace and the
//! device kind `ifb`.

#![allow(dead_code, reason = "each program uses a part")]

use std::{
    fs,
    io::{self, Write},
    net::{Ipv4Addr, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use crate::common::{
    namespace::{leave, run},
    raise_loopback,
    road::lent_devices,
    set_option, socket, unacked, unsent,
};

/// The device in front of the fake peer.
pub(crate) const DEVICE: &str = "ifb0";
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);
const FAR_PORT: u16 = 9;
/// The first sequence numbers of both sides.
const NEAR_START: u32 = 0x1000_0000;
const FAR_START: u32 = 0x2000_0000;
/// The offered window, and its shift.
const WINDOW: u32 = 8 << 20;
const SHIFT: u32 = 8;

const FLAG_RST: u8 = 4;
const FLAG_ACK: u8 = 16;

/// Makes the device, in a new network namespace of the test.
pub(crate) fn furnish() -> Result<(), String> {
    if lent_devices().is_some() {
        // The devices are lent to a lasting namespace, where sockets of an earlier test may still
        // send.
        leave()?;
    }
    furnish_here()
}

/// Makes the device, in this network namespace, anew.
pub(crate) fn furnish_here() -> Result<(), String> {
    raise_loopback();
    // A lasting namespace has the device of a former test.
    let _ = run(&format!("ip link del {DEVICE}"));
    run(&format!("ip link add {DEVICE} type ifb"))?;
    run(&format!("ip address add {NEAR}/24 dev {DEVICE}"))?;
    run(&format!("ip link set {DEVICE} up"))?;
    // So that sends are accepted without acknowledgements.
    set("tcp_wmem", "4096 4194304 4194304")?;
    // Each connection starts like the first, and stays fast after any pause.
    set("tcp_no_metrics_save", "1")?;
    set("tcp_slow_start_after_idle", "0")
}

/// Sets a limit of TCP in this network namespace.
fn set(name: &str, value: &str) -> Result<(), String> {
    fs::write(format!("/proc/sys/net/ipv4/{name}"), value)
        .map_err(|error| format!("{name}: {error}"))
}

/// The far end of one connection.
pub(crate) struct FakePeer {
    raw: OwnedFd,
    port: u16,
    acked: u64,
    /// Bytes of its own.
    said: u32,
}

impl FakePeer {
    /// The sending end, in a [furnished](furnish) namespace, and the fake peer.
    pub(crate) fn connect() -> (TcpStream, Self) {
        let near = socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        let set = |name, value: i32| set_option(&near, libc::IPPROTO_TCP, name, &value);
        // First: bbr, the default of some machines, would leave its pacing behind, with a timer for
        // every packet.
        set_option(&near, libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"reno");
        set(libc::TCP_REPAIR, 1);
        name(&near, libc::bind, (NEAR, 0));
        for (queue, start) in [(2, NEAR_START), (1, FAR_START)] {
            set(libc::TCP_REPAIR_QUEUE, queue);
            set(libc::TCP_QUEUE_SEQ, start.cast_signed());
        }
        name(&near, libc::connect, (FAR, FAR_PORT));
        // From linux/tcp.h, `struct tcp_repair_opt`: segment size, shifts of both windows,
        // selective acknowledgements.
        for option in [[2, 1460], [3, SHIFT | SHIFT << 16], [4, 0_u32]] {
            set_option(&near, libc::IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, &option);
        }
        // `struct tcp_repair_window`.
        let window = [FAR_START, WINDOW, WINDOW, 1 << 16, FAR_START];
        set_option(&near, libc::IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, &window);
        // Without this call the segment size has no effect.
        set_option(&near, libc::IPPROTO_IP, libc::IP_OPTIONS, &[0_u8; 0]);
        // End of the repair mode, without a probe.
        set(libc::TCP_REPAIR, -1);
        set(libc::TCP_NODELAY, 1);
        let mut near = TcpStream::from(near);
        let port = near.local_addr().unwrap().port();
        let raw = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW);
        let mut peer = Self { raw, port, acked: 0, said: 0 };
        // A byte before the stream, for a measured round trip: otherwise the first retransmission
        // would come after a second.
        near.write_all(&[0]).unwrap();
        peer.ack(0);
        (near, peer)
    }

    /// Acknowledges the first `bytes` of the stream. They must have been sent.
    pub(crate) fn ack(&mut self, bytes: u64) {
        self.acked = bytes;
        self.answer(FLAG_ACK, WINDOW);
    }

    /// Acknowledges all sent bytes, and returns their number.
    pub(crate) fn ack_sent(&mut self, near: &impl AsFd) -> u64 {
        let on_its_way = unacked(near) - unsent(near);
        self.ack(self.acked + on_its_way);
        self.acked
    }

    /// Acknowledges the first `bytes`, and takes no more. Must acknowledge a new byte: otherwise
    /// older kernels ignore the smaller window.
    pub(crate) fn ack_and_close_window(&mut self, bytes: u64) {
        self.acked = bytes;
        self.answer(FLAG_ACK, 0);
    }

    /// Sends bytes of its own: less than a segment.
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.send(FLAG_ACK, WINDOW, bytes);
        self.said += bytes.len() as u32;
    }

    /// Ends the connection.
    pub(crate) fn reset(&self) {
        self.answer(FLAG_RST | FLAG_ACK, 0);
    }

    fn answer(&self, flags: u8, window: u32) {
        self.send(flags, window, &[]);
    }

    fn send(&self, flags: u8, window: u32, bytes: &[u8]) {
        let mut segment = vec![0; 20];
        segment[0..2].copy_from_slice(&FAR_PORT.to_be_bytes());
        segment[2..4].copy_from_slice(&self.port.to_be_bytes());
        segment[4..8].copy_from_slice(&(FAR_START + self.said).to_be_bytes());
        let acked = NEAR_START.wrapping_add(1).wrapping_add(self.acked as u32);
        segment[8..12].copy_from_slice(&acked.to_be_bytes());
        // Five words of header.
        segment[12] = 5 << 4;
        segment[13] = flags;
        segment[14..16].copy_from_slice(&((window >> SHIFT) as u16).to_be_bytes());
        segment.extend_from_slice(bytes);
        let [high, low] = (segment.len() as u16).to_be_bytes();
        let pseudo = [FAR.octets(), NEAR.octets(), [0, libc::IPPROTO_TCP as u8, high, low]];
        let sum = checksum(&[&pseudo.concat(), &segment[..]].concat());
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        // Version, lifetime, protocol; the kernel adds lengths, identification and checksum.
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, libc::IPPROTO_TCP as u8, 0, 0];
        packet.extend(FAR.octets().into_iter().chain(NEAR.octets()).chain(segment));
        let (fd, to) = (self.raw.as_raw_fd(), address((NEAR, 0)));
        let len = size_of_val(&to) as libc::socklen_t;
        let (start, to) = (packet.as_ptr().cast(), (&raw const to).cast());
        // SAFETY: sendto(2) reads the packet and the address, alive during the call.
        let sent = unsafe { libc::sendto(fd, start, packet.len(), 0, to, len) };
        assert_eq!(sent, packet.len() as isize, "{}", io::Error::last_os_error());
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |bytes: &[u8]| u32::from(bytes[0]) << 8 | bytes.get(1).map_or(0, |&low| low.into());
    let sum: u32 = bytes.chunks(2).map(word).sum();
    let sum = (sum & 0xFFFF) + (sum >> 16);
    !((sum + (sum >> 16)) as u16)
}

fn address((host, port): (Ipv4Addr, u16)) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as _,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(host).to_be() },
        sin_zero: [0; 8],
    }
}

type Name = unsafe extern "C" fn(i32, *const libc::sockaddr, libc::socklen_t) -> i32;

/// bind(2) or connect(2).
pub(crate) fn name(socket: &OwnedFd, call: Name, to: (Ipv4Addr, u16)) {
    let to = address(to);
    let len = size_of_val(&to) as libc::socklen_t;
    // SAFETY: both read `len` bytes of the address, alive during the call.
    let done = unsafe { call(socket.as_raw_fd(), (&raw const to).cast(), len) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}
