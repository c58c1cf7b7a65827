//! Sends over real, connected UDP sockets.

use std::{
    net::{Ipv4Addr, UdpSocket},
    process::Command,
    time::Duration,
};

use pinbuf::{Fate, Payload, Policy, SendError, Sender, sender::RouteMode};

use crate::common::{
    self, again, assert_all_free, assert_same, eventually, filled, must_succeed, network_namespace,
    option, optmem, pattern, plays, pool, raise_loopback, set_option, skip, soon, take_error,
    test_of, within, zero_copy,
};

const SOL_UDP: i32 = 17;
const UDP_SEGMENT: i32 = 103;

/// Two sockets, connected to each other, without endless reads.
fn pair_at(host: &str) -> (UdpSocket, UdpSocket) {
    let [near, far] = [(); 2].map(|()| UdpSocket::bind((host, 0)).unwrap());
    near.connect(far.local_addr().unwrap()).unwrap();
    far.connect(near.local_addr().unwrap()).unwrap();
    far.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    (near, far)
}

fn received(far: &UdpSocket) -> Vec<u8> {
    let mut got = vec![0; 1 << 16];
    let len = far.recv(&mut got).unwrap();
    got.truncate(len);
    got
}

#[test]
fn datagrams_arrive_whole_by_copy_and_zero_copy() {
    for host in ["127.0.0.1", "::1"] {
        let (near, far) = pair_at(host);
        let mut sender = zero_copy().adopt(near).unwrap();
        assert!(sender.capabilities().supported);
        for (round, len) in [1, 0, 100, 16_384, 60_000, 65_487, 0, 16_383].into_iter().enumerate() {
            let data = pattern(len, round);
            let ticket = sender.send(data.clone()).unwrap();
            assert_same(&received(&far), &data);
            let fate = sender.wait(ticket, soon()).unwrap();
            assert!(matches!(fate, Fate::Released { accepted, .. } if accepted == len), "{fate:?}");
        }
        let stats = sender.stats();
        assert_eq!((stats.zero_copy_calls, stats.copied_calls), (3, 5), "{host}: {stats:?}");
        assert_eq!((stats.released_calls, stats.leases), (3, 0));
        let report = sender.close(soon());
        assert!(report.drained && !report.aborted, "{report:?}");
    }
}

#[test]
fn an_ipv6_socket_sends_to_an_ipv4_peer() {
    let near = UdpSocket::bind("[::]:0").unwrap();
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = far.local_addr().unwrap().port();
    near.connect(format!("[::ffff:127.0.0.1]:{port}")).unwrap();
    let mut sender = zero_copy().adopt(near).unwrap();
    let data = pattern(30_000, 1);
    let ticket = sender.send(data.clone()).unwrap();
    assert_same(&received(&far), &data);
    assert!(sender.wait(ticket, soon()).unwrap().is_released());
    assert_eq!(sender.stats().released_calls, 1);
}

#[test]
fn a_vectored_send_is_one_datagram() {
    let (near, far) = pair_at("127.0.0.1");
    let mut sender = zero_copy().adopt(near).unwrap();
    let parts = [pattern(64, 1), pattern(20_000, 2), pattern(20_000, 3)];
    let mut bufs: Vec<Payload> = parts.iter().cloned().map(Payload::from).collect();
    let ticket = sender.send_vectored(&mut bufs).unwrap();
    assert_same(&received(&far), &parts.concat());
    let fate = sender.wait(ticket, soon()).unwrap();
    assert_eq!(fate, Fate::Released { accepted: 40_064, copied: Some(true) });
    assert_eq!((sender.stats().zero_copy_calls, sender.stats().copied_calls), (1, 0));
}

#[test]
fn a_datagram_of_segments_takes_one_id() {
    let (near, far) = pair_at("127.0.0.1");
    set_option(&near, SOL_UDP, UDP_SEGMENT, &1400);
    let mut sender = zero_copy().adopt(near).unwrap();
    let data = pattern(50_000, 5);
    let ticket = sender.send(data.clone()).unwrap();
    for segment in data.chunks(1400) {
        assert_same(&received(&far), segment);
    }
    assert!(sender.wait(ticket, soon()).unwrap().is_released());
    let stats = sender.stats();
    assert_eq!((stats.zero_copy_calls, stats.released_calls, stats.notifications), (1, 1, 1));
}

#[test]
fn a_refused_datagram_with_a_used_id_keeps_ids_right() {
    let (near, far) = pair_at("127.0.0.1");
    // More segments than the kernel makes from one datagram: EINVAL, after taking an id.
    set_option(&near, SOL_UDP, UDP_SEGMENT, &10);
    let mut sender = zero_copy().adopt(near).unwrap();
    let data = pattern(20_000, 1);
    for round in 0..10 {
        match sender.try_send(data.clone()) {
            Err(SendError::Os { error, buf }) => {
                assert_eq!(error.raw(), libc::EINVAL);
                assert_same(&buf, &data);
            }
            other => panic!("{other:?}"),
        }
        set_option(sender.get_ref(), SOL_UDP, UDP_SEGMENT, &0);
        let other = pattern(20_000, round);
        let ticket = sender.try_send(other.clone()).unwrap();
        assert_same(&received(&far), &other);
        assert!(sender.wait(ticket, soon()).unwrap().is_released());
        set_option(sender.get_ref(), SOL_UDP, UDP_SEGMENT, &10);
    }
    let stats = sender.stats();
    assert_eq!((stats.zero_copy_calls, stats.released_calls), (20, 20), "{stats:?}");
    assert_eq!(sender.capabilities().reason, None, "not poisoned");
    assert_eq!(optmem(sender.get_ref()), 0);
}

#[test]
fn parts_of_more_than_17_pages_go_by_copy() {
    let (near, far) = pair_at("127.0.0.1");
    let mut sender = zero_copy().adopt(near).unwrap();
    // Each of the 15 parts lies across two pages.
    let memory: &'static [u8] = pattern(1 << 20, 3).to_vec().leak();
    let skew = memory.as_ptr().align_offset(4096) + 3000;
    let parts: Vec<_> = (0..15).map(|at| &memory[at * 16_384 + skew..][..4300]).collect();
    let mut bufs: Vec<Payload> = parts.iter().copied().map(Payload::from).collect();
    let ticket = sender.send_vectored(&mut bufs).unwrap();
    assert_same(&received(&far), &parts.concat());
    assert_eq!(sender.stats().copied_calls, 1);
    assert!(sender.wait(ticket, soon()).unwrap().is_released());
    // As many whole pages fit.
    let ticket = sender.send(&memory[skew - 3000..][..65_000]).unwrap();
    assert_eq!(received(&far).len(), 65_000);
    assert!(sender.wait(ticket, soon()).unwrap().is_released());
    assert_eq!((sender.stats().zero_copy_calls, sender.stats().released_calls), (1, 1));
}

#[test]
fn an_oversized_datagram_comes_back() {
    let (near, _far) = pair_at("127.0.0.1");
    let mut sender = zero_copy().adopt(near).unwrap();
    match sender.send(pattern(70_000, 1)) {
        Err(SendError::Os { error, buf }) => {
            assert_eq!((error.raw(), buf.len()), (libc::EMSGSIZE, 70_000));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_closed_port_is_an_error_of_the_next_send_only() {
    // The kernel clears the error at the read of its record, which an option requests.
    for (with_records, refusals, records) in [(false, 3, 0), (true, 0, 6)] {
        let (near, far) = pair_at("127.0.0.1");
        if with_records {
            set_option(&near, libc::SOL_IP, libc::IP_RECVERR, &1);
        }
        let mut sender = zero_copy().adopt(near).unwrap();
        drop(far);
        let data = pattern(20_000, 1);
        let mut refused = 0;
        for _ in 0..6 {
            match sender.send(data.clone()) {
                Ok(ticket) => {
                    assert!(sender.wait(ticket, soon()).unwrap().is_released());
                    // With a delay on the route, the refusal is late too.
                    std::thread::sleep(Duration::from_millis(20));
                    sender.reap().unwrap();
                }
                Err(SendError::Os { error, buf }) => {
                    assert_eq!(error.raw(), libc::ECONNREFUSED);
                    assert_same(&buf, &data);
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(refused, refusals, "every second send");
        assert_eq!(sender.connection_error(), None);
        let stats = sender.stats();
        let accepted = 6 - refusals;
        assert_eq!((stats.zero_copy_calls, stats.released_calls), (accepted, accepted));
        sender.reap().unwrap();
        let events: Vec<_> = std::iter::from_fn(|| sender.next_event()).collect();
        assert_eq!(events.len(), records);
        for event in events {
            assert_eq!((event.origin, event.error.raw()), (2, libc::ECONNREFUSED));
        }
    }
}

#[test]
fn time_stamps_are_handed_on() {
    let (near, far) = pair_at("127.0.0.1");
    let stamps = libc::SOF_TIMESTAMPING_TX_SOFTWARE
        | libc::SOF_TIMESTAMPING_SOFTWARE
        | libc::SOF_TIMESTAMPING_OPT_ID
        | libc::SOF_TIMESTAMPING_OPT_TSONLY;
    set_option(&near, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, &stamps);
    let mut sender = zero_copy().adopt(near).unwrap();
    for round in 0..3 {
        let ticket = sender.send(pattern(20_000, round)).unwrap();
        received(&far);
        assert!(sender.wait(ticket, soon()).unwrap().is_released());
    }
    let mut events = Vec::new();
    eventually("three stamps", || {
        sender.reap().unwrap();
        events.extend(std::iter::from_fn(|| sender.next_event()));
        events.len() == 3
    });
    for (at, event) in events.iter().enumerate() {
        assert_eq!((event.origin, event.data), (4, at as u32));
        assert!(event.timestamps.is_some_and(|stamps| stamps.software.is_some()));
    }
    assert_eq!(sender.stats().released_calls, 3);
    assert_eq!(take_error(sender.get_ref()), 0);
}

#[test]
fn a_flood_waits_and_every_id_is_released() {
    let (near, _far) = pair_at("127.0.0.1");
    let mut sender = zero_copy().max_in_flight_sends(8).adopt(near).unwrap();
    let data = pattern(60_000, 1);
    for _ in 0..2000 {
        sender.send(data.clone()).unwrap();
    }
    sender.drain(soon()).unwrap();
    let stats = sender.stats();
    assert_eq!(stats.released_calls, stats.zero_copy_calls);
    assert_eq!(stats.zero_copy_calls + stats.copied_calls, 2000);
    assert_eq!(option(sender.get_ref(), libc::SOL_SOCKET, libc::SO_ERROR), 0);
    assert!(sender.close(soon()).drained);
}

/// A socket for datagrams to members of a group on this host. Without members the kernel frees the
/// datagrams before any copy, and the route is a true zero-copy route.
fn group_sender(group: Ipv4Addr, port: u16) -> UdpSocket {
    let near = UdpSocket::bind("127.0.0.1:0").unwrap();
    let lo = libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() };
    set_option(&near, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &lo);
    near.set_multicast_loop_v4(false).unwrap();
    near.set_multicast_ttl_v4(1).unwrap();
    near.connect((group, port)).unwrap();
    near
}

#[test]
fn auto_follows_the_route() {
    let group = Ipv4Addr::new(239, 255, 77, 78);
    let far = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let near = group_sender(group, far.local_addr().unwrap().port());
    let mut sender = Sender::builder().policy(Policy::Auto).adopt(near).unwrap();
    let data: &'static [u8] = vec![7; 60_000].leak();
    sender.send(data).unwrap();
    sender.drain(soon()).unwrap();
    if sender.stats().deferred_copies > 0 {
        let why = "this kernel copies for loopback before it looks for members";
        return skip(test_of(&|| ()), why);
    }
    let mut send_until = |mode| {
        for _ in 0..200_000 {
            if sender.stats().route.mode == mode {
                return sender.stats();
            }
            sender.send(data).unwrap();
        }
        panic!("not {mode:?}: {:?}", sender.stats());
    };
    let stats = send_until(RouteMode::ZeroCopy);
    assert!(stats.zero_copy_calls <= 2, "{stats:?}");
    far.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
    let stats = send_until(RouteMode::Copied);
    assert_eq!((stats.route.leaves, stats.route.returns), (1, 0));
    far.leave_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
    let stats = send_until(RouteMode::ZeroCopy);
    assert_eq!((stats.route.leaves, stats.route.returns), (1, 1), "{stats:?}");
    assert!(sender.close(soon()).drained);
}

/// A queue of 400 kbit/s with room for three datagrams.
#[test]
fn a_full_queue_drops_and_a_slow_queue_waits() {
    let name = test_of(&|| ());
    if !plays("queue") {
        let Some(way) = network_namespace() else {
            return skip(name, "this user may not make a network namespace");
        };
        return must_succeed(again(way, name, "queue"));
    }
    raise_loopback();
    let tc = "qdisc add dev lo root tbf rate 400kbit burst 21kb limit 70kb";
    let made = Command::new("tc").args(tc.split(' ')).output();
    if !made.as_ref().is_ok_and(|made| made.status.success()) {
        return skip(name, &format!("no queue can be made: {made:?}"));
    }
    let (near, _far) = pair_at("127.0.0.1");
    set_option(&near, libc::SOL_IP, libc::IP_RECVERR, &1);
    let pool = pool(20_000, 12);
    let mut sender = zero_copy().adopt(near).unwrap();
    let (mut accepted, mut dropped) = (Vec::new(), 0);
    for seed in 0..10 {
        match sender.try_send(filled(pool.try_alloc(1).unwrap(), 20_000, seed)) {
            Ok(ticket) => accepted.push(ticket),
            Err(SendError::Dropped { error, buf }) => {
                assert_eq!(error.raw(), libc::ENOBUFS);
                assert_same(&buf, &pattern(20_000, seed));
                dropped += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    let stats = sender.stats();
    assert!(dropped >= 5 && accepted.len() >= 3, "{dropped} {}", accepted.len());
    assert_eq!((stats.dropped_sends, stats.zero_copy_calls), (dropped, 10), "{stats:?}");
    assert_eq!((stats.no_bufs_optmem, stats.no_bufs_memlock, stats.copied_calls), (0, 0, 0));
    assert!(stats.in_flight_calls >= 2, "queued datagrams are in flight: {stats:?}");
    // The ids are right: accepted datagrams are released singly, as they leave.
    let first = accepted[1];
    let fate = sender.wait(first, soon()).unwrap();
    assert_eq!(fate, Fate::Released { accepted: 20_000, copied: Some(true) });
    assert!(sender.stats().in_flight_calls > 0);
    let report = sender.close(within(20));
    assert!(!report.drained && !report.aborted && report.quarantined > 0, "{report:?}");
    eventually("all slots are free", || common::census(&pool)[0] == 12);
    assert_all_free(&pool);
}
