//! The two ways of the bytes, and the client at their end.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    thread,
    time::Duration,
};

use rustls::StreamOwned;

use crate::{fake_peer::FakePeer, identity::Identity};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// All bytes are copied.
    Loopback,
    /// The same, with a TLS client.
    TlsOverLoopback,
    /// A device that drops everything, and forged acknowledgements: no byte is copied.
    FakePeer,
}

/// A stream of the client.
pub(crate) trait Far: Read + Write {}

impl<S: Read + Write> Far for S {}

/// The client's end.
pub(crate) enum Client {
    Loopback {
        far: Box<dyn Far>,
        room: Vec<u8>,
    },
    /// `answer` is the length of an answer, once known.
    FakePeer {
        peer: FakePeer,
        near: TcpStream,
        answer: Option<u64>,
    },
}

impl Way {
    /// The server's end and the client's.
    pub(crate) fn connect(self, identity: &Identity) -> (TcpStream, Client) {
        match self {
            Self::Loopback | Self::TlsOverLoopback => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let far: Box<dyn Far> = match self {
                    Self::Loopback => Box::new(far),
                    _ => Box::new(StreamOwned::new(identity.client(), far)),
                };
                (listener.accept().unwrap().0, Client::Loopback { far, room: vec![0; 1 << 20] })
            }
            Self::FakePeer => {
                let (near, peer) = FakePeer::connect();
                let copy = near.try_clone().unwrap();
                (near, Client::FakePeer { peer, near: copy, answer: None })
            }
        }
    }
}

impl Client {
    /// Asks for a file of `len` bytes, and takes the answer.
    pub(crate) fn fetch(&mut self, request: &str, len: usize) {
        match self {
            Self::Loopback { far, room } => {
                far.write_all(request.as_bytes()).unwrap();
                let mut read = far.read(room).unwrap();
                let head = room[..read].windows(4).position(|end| end == b"\r\n\r\n");
                let all = head.expect("a head in one piece") + 4 + len;
                while read < all {
                    read += far.read(room).unwrap();
                }
            }
            Self::FakePeer { peer, near, answer } => {
                let before = sent(near);
                peer.say(request.as_bytes());
                let mut taken = || {
                    let sent = sent(near);
                    // The first byte is before the stream.
                    peer.ack(sent - 1);
                    sent - before
                };
                match answer {
                    // To the byte: an unacknowledged rest would be sent again, and slow the connection down.
                    Some(all) => {
                        while taken() < *all {
                            thread::sleep(Duration::from_micros(20));
                        }
                    }
                    none => {
                        while taken() <= len as u64 {}
                        thread::sleep(Duration::from_millis(100));
                        *none = Some(taken());
                    }
                }
            }
        }
    }
}

/// The number of bytes that the kernel has sent.
///
/// The server writes on another thread, and the kernel may take an acknowledgement late. So the difference of
/// unacknowledged and unsent bytes would count some bytes twice.
fn sent(socket: &TcpStream) -> u64 {
    // From linux/tcp.h, `struct tcp_info`: `tcpi_bytes_sent` and `tcpi_bytes_retrans`.
    let mut info = [0_u64; 27];
    let mut len = size_of_val(&info) as libc::socklen_t;
    let (fd, into) = (socket.as_raw_fd(), (&raw mut info).cast());
    // SAFETY: getsockopt(2) writes at most `len` bytes to the array and then `len`; both outlive the call.
    let done =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut len) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    info[25] - info[26]
}
