//! The packets on a device.
//!
//! The kernel copies a packet for a listener at the time of sending. So a sniffer shows the
//! contents of the memory at the device, and makes every notification report a copy.

use std::{
    ffi::CString,
    io,
    net::TcpStream,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::common::{
    road::{Peer, Road},
    set_option, socket,
    source::SCRIBBLE,
};

/// The packets with data that a sniffer saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sniffed {
    pub(crate) packets: usize,
    /// The packets with overwritten memory among them.
    pub(crate) overwritten: usize,
}

pub(crate) struct Sniffer {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Sniffed>,
}

impl Sniffer {
    /// Listens to a device of the calling thread's namespace.
    pub(crate) fn on(device: &str) -> Self {
        let tap = open(device).unwrap();
        let shared = Arc::<Shared>::default();
        let sniffing = Arc::clone(&shared);
        let thread = thread::spawn(move || sniffing.sniff(&tap));
        Self { shared, thread }
    }

    pub(crate) fn seen(&self) -> Sniffed {
        *self.shared.seen.lock().unwrap()
    }

    pub(crate) fn stop(self) -> Sniffed {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        *self.shared.seen.lock().unwrap()
    }
}

impl Shared {
    fn sniff(&self, tap: &OwnedFd) {
        let mut packet = vec![0; 1 << 16];
        // After a stop, the remaining packets are still read.
        loop {
            let last = self.stop.load(Ordering::Relaxed);
            while let Some(len) = receive(tap, &mut packet) {
                // The longest headers: IP 20, TCP 60.
                if len > 80 {
                    let mut seen = self.seen.lock().unwrap();
                    seen.packets += 1;
                    seen.overwritten += usize::from(is_overwritten(&packet[..len]));
                }
            }
            if last {
                return;
            }
        }
    }
}

/// The packets on a device of this thread's namespace during an action.
pub(crate) fn sniff<T>(device: &str, action: impl FnOnce() -> T) -> (T, Sniffed) {
    let sniffer = Sniffer::on(device);
    let result = action();
    (result, sniffer.stop())
}

/// The arrivals at the far end during an action.
pub(crate) fn sniff_far<T>(road: &Road, action: impl FnOnce() -> T) -> (T, Sniffed) {
    let device = road.far_device().to_owned();
    let sniffer = road.at_far_end(move || Sniffer::on(&device));
    let result = action();
    (result, sniffer.stop())
}

/// Runs a course with both ends of a connection, and returns the arrivals at the far end, as seen
/// by a sniffer and by the peer.
pub(crate) fn sniff_arrivals(
    road: &Road,
    course: impl FnOnce(TcpStream, TcpStream),
) -> (Sniffed, Vec<u8>) {
    let (stream, seen) = sniff_far(road, || {
        let (near, far) = road.connect(1 << 20);
        let peer = Peer::of(far.try_clone().unwrap(), Duration::ZERO, Duration::from_secs(5));
        course(near, far);
        peer.stream()
    });
    (seen, stream)
}

fn is_overwritten(packet: &[u8]) -> bool {
    packet.chunks_exact(16).any(|run| run == [SCRIBBLE; 16])
}

fn open(device: &str) -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // No packets before the bind: protocol 0.
    let tap = socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0);
    set_option(&tap, libc::SOL_SOCKET, libc::SO_RCVBUF, &(8_i32 << 20));
    let device = CString::new(device).unwrap();
    // SAFETY: if_nametoindex(3) reads a string, alive during the call.
    let index = unsafe { libc::if_nametoindex(device.as_ptr()) };
    // SAFETY: all zero bytes are a value of a struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as _;
    address.sll_protocol = protocol;
    address.sll_ifindex = index.cast_signed();
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: bind(2) reads `len` bytes of the address, alive during the call.
    let done = unsafe { libc::bind(tap.as_raw_fd(), (&raw const address).cast(), len) };
    if done == 0 { Ok(tap) } else { Err(io::Error::last_os_error()) }
}

/// The next packet, from its IP header on; `None` after a moment without packets.
fn receive(tap: &OwnedFd, packet: &mut [u8]) -> Option<usize> {
    let mut fd = libc::pollfd { fd: tap.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let moment = Duration::from_millis(20).as_millis() as i32;
    // SAFETY: poll(2) reads and writes one `pollfd`, alive during the call.
    let ready = unsafe { libc::poll(&raw mut fd, 1, moment) };
    if ready != 1 {
        return None;
    }
    let (start, len) = (packet.as_mut_ptr().cast(), packet.len());
    // SAFETY: recv(2) writes at most `len` bytes to the packet, alive during the call.
    let len = unsafe { libc::recv(tap.as_raw_fd(), start, len, libc::MSG_DONTWAIT) };
    usize::try_from(len).ok()
}
