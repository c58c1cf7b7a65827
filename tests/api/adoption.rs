//! Adoption of sockets: the kinds that a sender takes over, and the refused kinds.

use std::{
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::net::{UnixDatagram, UnixStream},
    },
    time::Duration,
};

use pinbuf::{AdoptError, Fate, Policy, SendError, Sender, sender::CopyReason};

use crate::common::{
    self, STALLED, enable_zerocopy, eventually, optmem, pair, pair_at, pattern, read_error_queue,
    reader, send_static, soon,
};

#[test]
fn a_listener_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let fd = listener.as_raw_fd();
    let error = Sender::builder().adopt(listener).unwrap_err();
    assert!(matches!(error, AdoptError::Listener(_)), "{error}");
    let listener = error.into_socket();
    assert_eq!(listener.as_raw_fd(), fd);
    let near = TcpStream::connect(listener.local_addr().unwrap());
    assert!(near.is_ok(), "the socket still listens");
}

#[test]
fn an_unconnected_socket_is_refused() {
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0);
    // SAFETY: from_raw_fd needs an open, unowned fd: the call above made this one.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let error = Sender::builder().adopt(socket).unwrap_err();
    assert!(matches!(error, AdoptError::NotConnected(_)), "{error}");
    let (near, far) = pair();
    common::reset(far);
    // The reset needs a moment.
    eventually("the socket has no peer", || near.peer_addr().is_err());
    assert!(matches!(Sender::builder().adopt(near), Err(AdoptError::NotConnected(_))));
}

#[test]
fn an_unconnected_datagram_socket_is_taken_over() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut sender = Sender::builder().adopt(socket).unwrap();
    assert!(sender.capabilities().supported);
    match sender.send(vec![7; 100]) {
        Err(SendError::Os { error, buf }) => {
            assert_eq!((error.raw(), buf.len()), (libc::EDESTADDRREQ, 100));
        }
        other => panic!("{other:?}"),
    }
    let unbound = UnixDatagram::unbound().unwrap();
    assert!(matches!(Sender::builder().adopt(unbound), Err(AdoptError::NotConnected(_))));
}

#[test]
fn datagrams_other_than_udp_are_copied_with_a_reason() {
    let (near, far) = UnixDatagram::pair().unwrap();
    far.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let near = match Sender::builder().policy(Policy::Require).adopt(near) {
        Err(AdoptError::ZeroCopyUnavailable { reason: CopyReason::UnsupportedSocket, socket }) => {
            socket
        }
        other => panic!("{other:?}"),
    };
    let mut sender = Sender::builder().adopt(near).unwrap();
    assert_eq!(sender.capabilities().reason, Some(CopyReason::UnsupportedSocket));
    for len in [0, 100, 60_000] {
        let data = pattern(len, 1);
        let ticket = sender.send(data.clone()).unwrap();
        let fate = Fate::Released { accepted: len, copied: Some(len > 0) };
        assert_eq!(sender.wait(ticket, soon()), Ok(fate));
        let mut got = vec![0; 1 << 16];
        let received = far.recv(&mut got).unwrap();
        common::assert_same(&got[..received], &data);
    }
    assert!(sender.close(soon()).drained);
}

#[test]
fn a_descriptor_of_a_file_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    match Sender::builder().adopt(file) {
        Err(AdoptError::Os { error, .. }) => assert_eq!(error.raw(), libc::ENOTSOCK),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_socket_with_foreign_sends_in_flight_is_refused() {
    static MEMORY: [u8; 64 << 10] = [1; 64 << 10];
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    enable_zerocopy(&near);
    for _ in 0..4 {
        send_static(near.as_fd(), &MEMORY).unwrap();
    }
    assert!(optmem(&near) > 0);
    let error = Sender::builder().adopt(near).unwrap_err();
    assert!(matches!(error, AdoptError::SocketInUse(_)), "{error}");
    // Also after the release, while the notifications are unread.
    let near = error.into_socket();
    let peer = reader(far, Duration::ZERO);
    std::thread::sleep(Duration::from_millis(50));
    let error = Sender::builder().adopt(near).unwrap_err();
    assert!(matches!(error, AdoptError::SocketInUse(_)), "{error}");
    let near = error.into_socket();
    eventually("all notifications are read", || {
        read_error_queue(near.as_fd());
        optmem(&near) == 0
    });
    drop(near);
    assert_eq!(peer.join().unwrap().len(), 4 * MEMORY.len());
}

#[test]
fn a_unix_stream_is_copied_with_a_reason() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let near = match Sender::builder().policy(Policy::Require).adopt(near) {
        Err(AdoptError::ZeroCopyUnavailable { reason: CopyReason::UnsupportedSocket, socket }) => {
            socket
        }
        other => panic!("{other:?}"),
    };
    let mut sender = Sender::builder().adopt(near).unwrap();
    let capabilities = sender.capabilities();
    assert!(!capabilities.supported);
    assert_eq!(capabilities.reason, Some(CopyReason::UnsupportedSocket));
    let peer = std::thread::spawn(move || {
        let mut got = Vec::new();
        std::io::Read::read_to_end(&mut far, &mut got).unwrap();
        got
    });
    let data = pattern(1 << 20, 1);
    let ticket = sender.send(data.clone()).unwrap();
    let fate = Fate::Released { accepted: 1 << 20, copied: Some(true) };
    assert_eq!(sender.wait(ticket, soon()), Ok(fate));
    assert!(sender.close(soon()).drained);
    common::assert_same(&peer.join().unwrap(), &data);
}

#[test]
fn required_zero_copy_refuses_other_sockets() {
    let (near, _far) = pair();
    let sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
    assert!(sender.capabilities().supported);
    let (near, _far) = pair();
    let sender = Sender::builder().policy(Policy::Never).adopt(near).unwrap();
    assert_eq!(sender.capabilities().reason, Some(CopyReason::Policy));
    let (near, ids) = sender.into_parts().unwrap();
    let sender = Sender::builder().resume(ids).adopt(near).unwrap();
    assert!(sender.capabilities().supported);
}

#[test]
fn settings_out_of_range_are_refused() {
    let (near, _far) = pair();
    let error = Sender::builder().max_in_flight_bytes(0).adopt(near).unwrap_err();
    assert!(matches!(error, AdoptError::InvalidSetting { .. }), "{error}");
    let mut near = error.into_socket();
    for sends in [0, (1 << 30) + 1] {
        let error = Sender::builder().max_in_flight_sends(sends).adopt(near).unwrap_err();
        assert!(matches!(error, AdoptError::InvalidSetting { .. }), "{error}");
        near = error.into_socket();
    }
}

#[test]
fn adoption_hands_on_messages_of_the_error_queue() {
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(closed).unwrap();
    common::set_option(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, &1_i32);
    socket.send(b"to a closed port").unwrap();
    eventually("the answer is there", || common::has_error(&socket));
    let mut sender = Sender::builder().adopt(socket).unwrap();
    let event = sender.next_event().expect("adoption has read it");
    assert_eq!(event.error.raw(), libc::ECONNREFUSED);
    assert!(sender.capabilities().supported);
}
