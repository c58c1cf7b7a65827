//! The ways of the bytes: a socket, and the actions at its far end.

use std::{
    fmt,
    io::Read,
    mem,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use crate::{
    common::{set_option, socket, unacked},
    fake_peer::{FAR, FakePeer, name},
    harness::{per_op, process_cpu, thread_cpu},
};

/// The number of bytes per measurement.
pub(crate) const BATCH: usize = 4 << 20;

/// The number of bytes between two acknowledgements of the fake peer.
const ACK_EVERY: usize = 128 << 10;

/// The most unacknowledged bytes before the next send: less than the socket buffer.
pub(crate) const MOST_UNACKED: u64 = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// A peer in this process, over loopback: all bytes are copied.
    Loopback,
    /// Datagrams to a device that drops them: no byte is copied.
    Datagrams,
    /// Datagrams that end before any device: no byte is copied, and no privilege is needed.
    NoDevice,
    /// A stream to a device that drops it, and forged acknowledgements: no byte is copied.
    FakePeer,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "TCP over loopback, copied",
            Self::Datagrams => "UDP to ifb, true zero copy",
            Self::NoDevice => "UDP that ends before a device, true zero copy",
            Self::FakePeer => "TCP to ifb with forged ACKs, true zero copy",
        })
    }
}

/// The far end of a socket.
pub(crate) struct FarEnd {
    peer: Option<FakePeer>,
    unacked: usize,
}

impl Way {
    pub(crate) fn connect(self) -> (OwnedFd, FarEnd) {
        let (near, peer) = match self {
            Self::Loopback => (loopback(), None),
            Self::Datagrams => {
                let near = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                near.connect((FAR, 9)).unwrap();
                (near.into(), None)
            }
            Self::NoDevice => {
                let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                near.set_multicast_ttl_v4(0).unwrap();
                near.set_multicast_loop_v4(false).unwrap();
                near.connect((Ipv4Addr::new(239, 255, 255, 250), 9)).unwrap();
                (near.into(), None)
            }
            Self::FakePeer => {
                let (near, peer) = FakePeer::connect();
                (near.into(), Some(peer))
            }
        };
        (near, FarEnd { peer, unacked: 0 })
    }

    /// Warms a contestant up, and returns its measurement: milliseconds of processor time per gigabyte. `batch`
    /// sends [`BATCH`] bytes, `len` at a time.
    pub(crate) fn ms_per_gb(
        self,
        len: usize,
        warm_up: Duration,
        mut batch: impl FnMut(),
    ) -> impl FnMut(Duration) -> f64 {
        let started = Instant::now();
        while started.elapsed() < warm_up {
            batch();
        }
        // The reader on loopback is a thread of this process.
        let clock = if self == Self::Loopback { process_cpu } else { thread_cpu };
        // From nanoseconds per send to milliseconds per gigabyte.
        move |slice| per_op(clock, slice, BATCH / len, &mut batch) * 1e3 / len as f64
    }
}

/// The least number of bytes for a read at the far end over loopback.
const READ_AT_LEAST: i32 = 128 << 10;

/// Connects to a thread that reads all bytes.
fn loopback() -> OwnedFd {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let near = socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    // bbr, the default of some machines, makes copying slow here, and so flatters zero copy. Set
    // before the connection, since bbr's pacing stays behind.
    set_option(&near, libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"cubic");
    name(&near, libc::connect, (Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port()));
    let (mut far, _) = listener.accept().unwrap();
    // Otherwise a contestant a little slower than the reader finds it asleep, and pays for a
    // wake-up at every send, as much as for all other work.
    set_option(&far, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &READ_AT_LEAST);
    // Each end on a processor of its own, if there are two: the scheduler would place only some
    // connections so, for their whole life.
    stay_on(0);
    thread::spawn(move || {
        stay_on(1);
        let mut room = vec![0; 1 << 20];
        while far.read(&mut room).is_ok_and(|read| read > 0) {}
    });
    near
}

/// Binds this thread to one processor, if there is one.
fn stay_on(cpu: usize) {
    // SAFETY: all zero bytes are a value of `cpu_set_t`: an array of integers.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the set has room for 1024 processors.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: sched_setaffinity(2) reads one set, alive during the call. A failure changes nothing.
    let _ = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
}

impl FarEnd {
    /// `bytes` more bytes were sent.
    pub(crate) fn take(&mut self, near: BorrowedFd<'_>, bytes: usize) {
        self.unacked += bytes;
        if self.unacked >= ACK_EVERY {
            self.unacked = 0;
            self.acknowledge(near, MOST_UNACKED);
        }
    }

    /// All bytes are sent.
    pub(crate) fn take_all(&mut self, near: BorrowedFd<'_>) {
        self.acknowledge(near, 0);
    }

    fn acknowledge(&mut self, near: BorrowedFd<'_>, most: u64) {
        let Some(peer) = &mut self.peer else { return };
        peer.ack_sent(&near.as_fd());
        while unacked(&near) > most {
            peer.ack_sent(&near);
        }
    }
}
