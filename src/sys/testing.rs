//! Sockets on loopback for the tests of this folder.

use std::{
    io::{self, Write},
    net::{TcpListener, TcpStream, ToSocketAddrs},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use super::{
    Record, errqueue,
    socket::{self, IoVec, SendFlags},
};

/// Long enough for every event that must happen, on any machine.
pub(super) const SOON: Duration = Duration::from_secs(60);

/// Bytes to send: static, so that they outlive every id.
pub(super) static BYTES: [u8; 1 << 20] = [7; 1 << 20];

/// A connection with zero copy enabled: the sending end and its peer.
pub(super) fn zerocopy_pair() -> (TcpStream, TcpStream) {
    let (sender, peer) = connect(listen("127.0.0.1:0"), "127.0.0.1");
    socket::enable_zerocopy(sender.as_fd()).unwrap();
    (sender, peer)
}

/// A connection to a peer that reads nothing and has little room, so no notification comes.
pub(super) fn stalled_pair() -> (TcpStream, TcpStream) {
    let listener = listen("127.0.0.1:0");
    socket::set_option(listener.as_fd(), libc::SO_RCVBUF, &20_000).unwrap();
    let (sender, peer) = connect(listener, "127.0.0.1");
    socket::enable_zerocopy(sender.as_fd()).unwrap();
    (sender, peer)
}

pub(super) fn listen(address: impl ToSocketAddrs) -> TcpListener {
    TcpListener::bind(address).unwrap()
}

/// Connects to the port of the listener at `host`. No read of the peer blocks for ever.
pub(super) fn connect(listener: TcpListener, host: &str) -> (TcpStream, TcpStream) {
    let port = listener.local_addr().unwrap().port();
    let sender = TcpStream::connect((host, port)).unwrap();
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(SOON)).unwrap();
    (sender, peer)
}

pub(super) fn send(fd: impl AsFd, len: usize, zerocopy: bool) -> io::Result<usize> {
    let range = IoVec::new(BYTES.as_ptr(), len.min(BYTES.len()));
    // SAFETY: `send` needs a range that stays readable and unwritten until its release: `BYTES` is
    // an immutable static.
    unsafe { socket::send(fd.as_fd(), &[range], SendFlags { zerocopy, more: false }) }
}

/// Reads the error queue until `done` or, failing that, [`SOON`].
pub(super) fn records_until(fd: impl AsFd, done: impl Fn(&[Record]) -> bool) -> Vec<Record> {
    let end = Instant::now() + SOON;
    let mut records = Vec::new();
    while !done(&records) && Instant::now() < end {
        socket::poll(fd.as_fd(), false, Some(Duration::from_millis(100))).unwrap();
        let batch = errqueue::with_scratch(|scratch| {
            errqueue::recv(fd.as_fd(), scratch, &mut |record| records.push(record)).unwrap()
        });
        assert!(!batch.truncated, "no message needs more than the room there is");
    }
    assert!(done(&records), "still missing something after {SOON:?}: {records:?}");
    records
}

/// Reports a skipped test, past the capture of the test harness, which shows only failed tests.
pub(super) fn skipped(test: &str, why: &str) {
    let _ = writeln!(io::stderr(), "skipped: {test}: {why}");
}
