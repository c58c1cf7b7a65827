//! Datagrams to chosen destinations, from chosen sources, and trains of them, over real sockets.

use std::{
    mem,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use pinbuf::{
    Fate, Policy, SendError, Sender,
    error::{InvalidDatagram, PacingError},
    pacing,
    sender::{Datagram, DropStats},
};

use crate::common::{
    assert_all_free, assert_same, filled, namespace::in_a_namespace, namespace::run, optmem,
    pattern, pool, set_option, soon, wait_until_all_free, zero_copy,
};

const HOSTS: [&str; 2] = ["127.0.0.1", "::1"];

fn bound(host: &str) -> UdpSocket {
    let socket = UdpSocket::bind((host, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &(4 << 20));
    socket
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().unwrap()
}

fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut got = vec![0; 1 << 16];
    let (len, from) = socket.recv_from(&mut got).unwrap();
    got.truncate(len);
    (got, from)
}

/// Receives `count` datagrams by `recvmmsg(2)`; each is as long as `room` at most.
fn received_many(socket: &UdpSocket, count: usize, room: usize) -> Vec<Vec<u8>> {
    let mut bytes = vec![vec![0_u8; room]; count];
    let mut ranges: Vec<_> = bytes
        .iter_mut()
        .map(|bytes| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: room })
        .collect();
    // SAFETY: mem::zeroed needs a type with an all-zero value: integers and raw pointers.
    let mut headers: Vec<libc::mmsghdr> = (0..count).map(|_| unsafe { mem::zeroed() }).collect();
    for (header, range) in headers.iter_mut().zip(&mut ranges) {
        header.msg_hdr.msg_iov = range;
        header.msg_hdr.msg_iovlen = 1;
    }
    let mut done = 0;
    while done < count {
        let rest = &mut headers[done..];
        let flags = libc::MSG_WAITFORONE as _;
        // SAFETY: recvmmsg(2) writes the headers, and the ranges that they name: all live.
        let got = unsafe {
            let (first, len) = (rest.as_mut_ptr(), rest.len() as _);
            libc::recvmmsg(socket.as_raw_fd(), first, len, flags, std::ptr::null_mut())
        };
        assert!(got > 0, "{done} of {count}: {}", std::io::Error::last_os_error());
        done += got as usize;
    }
    for (bytes, header) in bytes.iter_mut().zip(&headers) {
        bytes.truncate(header.msg_len as usize);
    }
    bytes
}

/// No datagram is left unread.
fn assert_silent(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    let error = socket.recv(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    socket.set_nonblocking(false).unwrap();
}

#[test]
fn one_socket_sends_to_many_by_copy_and_zero_copy() {
    for host in HOSTS {
        let receivers = [(); 5].map(|()| bound(host));
        let mut sender = zero_copy().adopt(bound(host)).unwrap();
        let near = address(sender.get_ref());
        let pool = pool(60_000, 4);
        let mut tickets = Vec::new();
        for (seed, len) in [1, 0, 100, 16_384, 60_000, 16_383].into_iter().enumerate() {
            for receiver in &receivers {
                let buf = filled(pool.alloc(len.max(1)).unwrap(), len, seed);
                tickets.push(sender.send_to(buf, address(receiver)).unwrap());
                let (got, from) = received(receiver);
                assert_same(&got, &pattern(len, seed));
                assert_eq!(from, near);
            }
        }
        for ticket in tickets {
            assert!(sender.wait(ticket, soon()).unwrap().is_released());
        }
        let stats = sender.stats();
        assert_eq!((stats.zero_copy_calls, stats.copied_calls), (10, 20), "{host}: {stats:?}");
        assert_eq!((stats.released_calls, stats.drops), (10, DropStats::default()));
        assert_all_free(&pool);
        assert!(sender.close(soon()).drained);
    }
}

#[test]
fn a_socket_of_both_families_sends_to_either() {
    let mut sender = zero_copy().adopt(UdpSocket::bind("[::]:0").unwrap()).unwrap();
    let (v4, v6) = (bound("127.0.0.1"), bound("::1"));
    let IpAddr::V4(ip) = address(&v4).ip() else { unreachable!() };
    let mapped = SocketAddr::from((ip.to_ipv6_mapped(), address(&v4).port()));
    let own: IpAddr = "127.0.0.9".parse().unwrap();
    for (to, receiver) in [(address(&v4), &v4), (mapped, &v4), (address(&v6), &v6)] {
        let ticket = sender.send_to(pattern(20_000, 1), to).unwrap();
        assert_same(&received(receiver).0, &pattern(20_000, 1));
        assert!(sender.wait(ticket, soon()).unwrap().is_released());
    }
    let IpAddr::V4(own_v4) = own else { unreachable!() };
    for to in [address(&v4), mapped] {
        // The second is the form in which a socket of both families tells of the address of a question.
        for source in [own, own_v4.to_ipv6_mapped().into()] {
            for to in
                [Datagram::to(to).source(source), Datagram::to(to).source(source).interface(1)]
            {
                sender.send_to(&b"from here"[..], to).unwrap();
                assert_eq!(received(&v4).1.ip(), own);
            }
        }
    }
}

#[test]
fn a_datagram_leaves_from_the_chosen_address_and_interface() {
    const LOOPBACK: u32 = 1;
    let v4 = ["127.0.0.7", "127.0.0.9"];
    for (host, sources) in HOSTS.into_iter().zip([&v4[..], &["::1"]]) {
        let far = bound(host);
        let any = if host == "::1" { "::" } else { "0.0.0.0" };
        let mut sender = zero_copy().adopt(UdpSocket::bind((any, 0)).unwrap()).unwrap();
        let port = address(sender.get_ref()).port();
        for len in [100, 20_000] {
            for source in sources {
                let ip: IpAddr = source.parse().unwrap();
                let to = Datagram::to(address(&far)).source(ip);
                for to in [to, to.interface(LOOPBACK)] {
                    let ticket = sender.send_to(pattern(len, 3), to).unwrap();
                    let (got, from) = received(&far);
                    assert_same(&got, &pattern(len, 3));
                    assert_eq!(from, SocketAddr::from((ip, port)));
                    assert!(sender.wait(ticket, soon()).unwrap().is_released());
                }
            }
            let to = Datagram::to(address(&far)).interface(LOOPBACK);
            sender.send_to(pattern(len, 3), to).unwrap();
            assert_eq!(received(&far).1.ip().to_string(), host);
        }
    }
}

#[test]
fn a_train_arrives_as_single_datagrams() {
    for host in HOSTS {
        let far = bound(host);
        let mut sender = zero_copy().adopt(bound(host)).unwrap();
        for (len, size) in
            [(60_000, 1200), (64 * 1000, 1000), (65_507, 1472), (1400, 500), (100, 1400)]
        {
            let train = Datagram::to(address(&far)).segment_size(size);
            let data = pattern(len, size.into());
            let ticket = sender.send_to(data.clone(), train).unwrap();
            let expected: Vec<_> = data.chunks(size.into()).collect();
            let got = received_many(&far, expected.len(), 2000);
            assert_eq!(got.len(), expected.len());
            got.iter().zip(expected).for_each(|(got, sent)| assert_same(got, sent));
            assert_silent(&far);
            let fate = sender.wait(ticket, soon()).unwrap();
            assert!(matches!(fate, Fate::Released { accepted, .. } if accepted == len), "{fate:?}");
        }
        let stats = sender.stats();
        assert_eq!((stats.zero_copy_calls, stats.copied_calls), (3, 2), "one id for a train");
        assert_eq!((stats.released_calls, stats.notifications), (3, 3));
    }
}

#[test]
fn a_connected_socket_sends_trains_to_its_peer() {
    let (near, far) = (bound("127.0.0.1"), bound("127.0.0.1"));
    near.connect(address(&far)).unwrap();
    let mut sender = zero_copy().adopt(near).unwrap();
    let train = Datagram::to_peer().segment_size(1000);
    sender.send_to(pattern(50_000, 1), train).unwrap();
    let got = received_many(&far, 50, 2000);
    assert_same(&got.concat(), &pattern(50_000, 1));
    // A destination beside the peer is the datagram's own.
    let other = bound("127.0.0.1");
    sender.send_to(&b"other"[..], address(&other)).unwrap();
    assert_eq!(received(&other).0, b"other");
    assert_silent(&far);
}

/// Sends that the kernel refuses, with and without a used id, and sends that arrive in between.
#[test]
fn refused_datagrams_keep_ids_right() {
    in_a_namespace(|| {
        run("ip link set lo up mtu 1500")?;
        for host in HOSTS {
            let far = bound(host);
            let to = Datagram::to(address(&far));
            let foreign = if host == "::1" { "2001:db8::9" } else { "192.0.2.9" };
            let mut sender = zero_copy().adopt(bound(host)).unwrap();
            // 1,472 bytes fit over IPv4, 20 fewer over IPv6.
            let longest = if host == "::1" { 1452 } else { 1472 };
            let too_long = to.segment_size(longest + 1);
            let foreign = to.source(foreign.parse().unwrap());
            for round in 0..5 {
                match sender.send_to(pattern(20_000, round), too_long).unwrap_err() {
                    SendError::Invalid { reason, buf } => {
                        assert_same(&buf, &pattern(20_000, round));
                        let bytes = usize::from(longest) + 1;
                        assert_eq!(reason, InvalidDatagram::SegmentTooLong { bytes });
                    }
                    // Before Linux 6.14.
                    SendError::Os { error, .. } => assert_eq!(error.raw(), libc::EINVAL),
                    error => panic!("{error:?}"),
                }
                match sender.send_to(pattern(20_000, round), foreign).unwrap_err() {
                    SendError::Os { error, buf } => {
                        let errors = [libc::ENETUNREACH, libc::EINVAL];
                        assert!(errors.contains(&error.raw()), "{error}");
                        assert_same(&buf, &pattern(20_000, round));
                    }
                    error => panic!("{error:?}"),
                }
                let error = sender.send(pattern(20_000, round)).unwrap_err();
                assert_eq!(std::io::Error::from(error).raw_os_error(), Some(libc::EDESTADDRREQ));
                let ticket = sender.send_to(pattern(20_000, round), to.segment_size(longest));
                let ticket = ticket.unwrap();
                let count = 20_000_usize.div_ceil(longest.into());
                let got = received_many(&far, count, 2000);
                assert_same(&got.concat(), &pattern(20_000, round));
                assert!(sender.wait(ticket, soon()).unwrap().is_released());
            }
            let stats = sender.stats();
            assert_eq!(sender.capabilities().reason, None, "not poisoned: {stats:?}");
            // The kernel takes an id for the train before it looks at the MTU.
            assert_eq!((stats.zero_copy_calls, stats.released_calls), (10, 10), "{stats:?}");
            assert_eq!((optmem(sender.get_ref()), stats.leases), (0, 0));
            assert!(sender.close(soon()).drained);
        }
        Ok(())
    });
}

#[test]
fn a_known_limit_is_named_before_the_call() {
    let far = bound("127.0.0.1");
    let to = Datagram::to(address(&far));
    let mut sender = zero_copy().adopt(bound("127.0.0.1")).unwrap();
    for (len, datagram, expected) in [
        (65_508, to, InvalidDatagram::TooLong { len: 65_508, most: 65_507 }),
        (
            64_501,
            to.segment_size(500),
            InvalidDatagram::TooManySegments { segments: 130, most: 128 },
        ),
        (100, to.segment_size(0), InvalidDatagram::EmptySegments),
        (100, to.source("::1".parse().unwrap()), InvalidDatagram::Families),
        (100, to.at(Instant::now()), InvalidDatagram::NoTransmitTimes),
    ] {
        match sender.send_to(pattern(len, 1), datagram) {
            Err(SendError::Invalid { reason, buf }) => {
                assert_eq!((reason, buf.len()), (expected, len));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_silent(&far);
    assert_eq!((sender.stats().zero_copy_calls, sender.stats().copied_calls), (0, 0));
}

#[test]
fn a_stream_takes_no_datagram() {
    let (near, _far) = crate::common::pair();
    let mut sender = Sender::builder().adopt(near).unwrap();
    let error = sender.send_to(&b"hello"[..], Datagram::to_peer()).unwrap_err();
    assert!(matches!(error, SendError::Invalid { reason: InvalidDatagram::Stream, .. }), "{error}");
}

#[test]
fn a_halfs_datagrams_and_fates_are_the_others() {
    let far = bound("127.0.0.1");
    let sender = zero_copy().policy(Policy::Prefer).adopt(bound("127.0.0.1")).unwrap();
    let (mut send, mut reap) = sender.split();
    let train = Datagram::to(address(&far)).segment_size(1000);
    let ticket = send.try_send_to(pattern(20_000, 1), train).unwrap();
    assert_same(&received_many(&far, 20, 2000).concat(), &pattern(20_000, 1));
    assert!(reap.wait(ticket, soon()).unwrap().is_released());
}

#[test]
fn a_full_socket_refuses_a_try_and_holds_up_a_send() {
    in_a_namespace(|| {
        run("ip link set lo up")?;
        run("tc qdisc add dev lo root tbf rate 8mbit burst 70kb limit 10mb")?;
        let far = bound("127.0.0.1");
        let near = bound("127.0.0.1");
        set_option(&near, libc::SOL_SOCKET, libc::SO_SNDBUF, &100_000);
        let mut sender = zero_copy().adopt(near).unwrap();
        let pool = pool(60_000, 8);
        let train = Datagram::to(address(&far)).segment_size(1200);
        let refused = (0..100).find_map(|seed| {
            let buf = filled(pool.alloc(60_000).unwrap(), 60_000, seed);
            match sender.try_send_to(buf, train) {
                Ok(_) => None,
                Err(SendError::WouldBlock(buf)) => Some((seed, buf)),
                Err(error) => panic!("{error:?}"),
            }
        });
        let (seed, buf) = refused.expect("the socket has little room");
        sender.send_to(buf, train).unwrap();
        let got = received_many(&far, 50 * (seed + 1), 1200);
        for (at, train) in got.chunks(50).enumerate() {
            assert_same(&train.concat(), &pattern(60_000, at));
        }
        sender.drain(soon()).unwrap();
        wait_until_all_free(&pool);
        Ok(())
    });
}

#[test]
fn a_socket_without_a_pacing_queue_is_refused() {
    in_a_namespace(|| {
        run("ip link set lo up")?;
        let sender = zero_copy().adopt(bound("127.0.0.1")).unwrap();
        assert_eq!(pacing::set_max_rate(&sender, Some(1 << 20)), Err(PacingError::NoQueue));
        assert_eq!(pacing::allow_transmit_times(&sender), Err(PacingError::NoQueue));
        assert_eq!(pacing::set_max_rate(&sender, None), Ok(()), "no limit needs no queue");
        let near = bound("127.0.0.1");
        near.connect("127.0.0.1:9").unwrap();
        let refusal = |queue: &str| {
            Err(PacingError::Queue { interface: "lo".to_owned(), queue: queue.to_owned() })
        };
        assert_eq!(pacing::set_max_rate(&near, Some(1 << 20)), refusal("noqueue"));
        run("tc qdisc add dev lo root pfifo")?;
        assert_eq!(pacing::allow_transmit_times(&near), refusal("pfifo"));
        let (stream, _far) = crate::common::pair();
        assert_eq!(pacing::set_max_rate(&stream, Some(1 << 20)), Ok(()), "TCP paces by itself");
        Ok(())
    });
}

/// With the queue `fq`, which not every kernel has.
#[test]
fn a_train_leaves_at_its_time() {
    in_a_namespace(|| {
        run("ip link set lo up")?;
        run("tc qdisc add dev lo root fq")?;
        let far = bound("127.0.0.1");
        let mut sender = zero_copy().adopt(bound("127.0.0.1")).unwrap();
        pacing::check(address(&far)).map_err(|error| error.to_string())?;
        pacing::allow_transmit_times(&sender).unwrap();
        let at = Instant::now() + Duration::from_millis(300);
        let to = Datagram::to(address(&far)).segment_size(1000).at(at);
        let ticket = sender.send_to(pattern(20_000, 1), to).unwrap();
        let early = sender.fate(ticket).unwrap();
        assert!(early.is_none() || Instant::now() >= at, "held until its time");
        let got = received_many(&far, 20, 2000);
        assert!(Instant::now() >= at);
        assert_same(&got.concat(), &pattern(20_000, 1));
        assert!(sender.wait(ticket, soon()).unwrap().is_released());
        Ok(())
    });
}

/// With the queue `fq`, which not every kernel has.
#[test]
fn a_rate_holds_trains_back() {
    in_a_namespace(|| {
        run("ip link set lo up")?;
        // The first credit of a flow is ten packets of the MTU, which is long for loopback.
        run("tc qdisc add dev lo root fq quantum 3028 initial_quantum 15140")?;
        let far = bound("127.0.0.1");
        let mut sender = zero_copy().adopt(bound("127.0.0.1")).unwrap();
        for limit in [1_000_000, 500_000] {
            pacing::set_max_rate(&sender, Some(limit)).unwrap();
        }
        for higher in [Some(1_000_000), None] {
            let error = Err(PacingError::OnlyLower { limit: 500_000 });
            assert_eq!(pacing::set_max_rate(&sender, higher), error);
        }
        let earliest = Instant::now() + Duration::from_millis(500);
        let to = Datagram::to(address(&far)).segment_size(1000);
        // The socket has no room for all of them unread.
        let receiving = thread::spawn(move || received_many(&far, 500, 2000));
        for seed in 0..10 {
            sender.send_to(pattern(50_000, seed), to).unwrap();
        }
        let got = receiving.join().unwrap();
        // The queue lets the first ones go at once.
        assert!(Instant::now() >= earliest);
        for (seed, train) in got.chunks(50).enumerate() {
            assert_same(&train.concat(), &pattern(50_000, seed));
        }
        sender.drain(soon()).unwrap();
        Ok(())
    });
}
