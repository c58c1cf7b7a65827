//! Policy `Auto` over real routes.

use std::{io::Read, net::TcpStream, thread, time::Duration};

use pinbuf::{
    Fate, Payload, Policy, Sender,
    sender::{CopyReason, RouteMode},
};

use crate::common::{STALLED, eventually, filled, has_error, pair, pair_at, pool, soon, turn};

const LEN: usize = 64 << 10;

fn swallow(mut far: TcpStream) -> thread::JoinHandle<u64> {
    thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()).unwrap())
}

fn bytes(len: usize) -> &'static [u8] {
    vec![7; len].leak()
}

#[test]
fn auto_leaves_a_copying_route() {
    let _turn = turn();
    let (near, far) = pair();
    let peer = swallow(far);
    let mut sender = Sender::new(near).unwrap();
    let capabilities = sender.capabilities();
    assert!(capabilities.supported && capabilities.reason.is_none(), "{capabilities:?}");
    assert_eq!(sender.stats().route.mode, RouteMode::Trying);
    // Pipelined: no waits and no reaps.
    let sends = 2000;
    let data = bytes(LEN);
    for _ in 0..sends {
        sender.send(data).unwrap();
    }
    let stats = sender.stats();
    assert_eq!((stats.route.mode, stats.route.leaves), (RouteMode::Copied, 1), "{stats:?}");
    assert_eq!(stats.zero_copy_calls, stats.route.probes);
    assert!((3..=10).contains(&stats.route.probes), "{stats:?}");
    let capabilities = sender.capabilities();
    assert!(capabilities.supported, "zero copy works, but the route copies");
    assert_eq!(capabilities.reason, Some(CopyReason::Route));
    assert!(sender.close(soon()).drained);
    assert_eq!(peer.join().unwrap(), sends * LEN as u64);
}

/// Optional copies wait while a probe is in flight.
#[test]
fn the_next_send_reads_the_notification_of_a_probe() {
    let _turn = turn();
    for vectored in [false, true] {
        let (near, far) = pair();
        let peer = swallow(far);
        let mut sender = Sender::new(near).unwrap();
        let data = bytes(LEN);
        eventually("the route is left", || {
            sender.send(data).unwrap();
            sender.stats().route.mode == RouteMode::Copied
        });
        sender.send(data).unwrap();
        // The time and the bytes until the next probe pass with small sends.
        let small = bytes(15 << 10);
        (0..300).for_each(|_| _ = sender.send(small).unwrap());
        thread::sleep(Duration::from_millis(100));
        let probes = sender.stats().route.probes;
        if vectored {
            sender.send_vectored(&mut vec![Payload::Static(data)]).unwrap();
        } else {
            sender.send(filled(pool(LEN, 1).try_alloc(LEN).unwrap(), LEN, 0)).unwrap();
        }
        assert_eq!(sender.stats().route.probes, probes + 1);
        eventually("the probe's notification is there", || has_error(&sender));
        let notes = sender.stats().notifications;
        sender.send(data).unwrap();
        assert_eq!(sender.stats().notifications, notes + 1);
        assert!(sender.close(soon()).drained);
        drop(peer);
    }
}

#[test]
fn one_large_send_learns_of_a_copying_route() {
    let _turn = turn();
    let (near, far) = pair();
    let peer = swallow(far);
    let mut sender = Sender::new(near).unwrap();
    // With rarely scheduled threads, a sender accepts the contents of two sockets, some ten MiB,
    // between two looks for notifications, and needs three notifications. Eight references save
    // memory.
    let part = bytes(32 << 20);
    let mut bufs: Vec<_> = (0..8).map(|_| Payload::Static(part)).collect();
    let ticket = sender.send_vectored(&mut bufs).unwrap();
    assert_eq!(sender.stats().route.mode, RouteMode::Copied);
    let fate = sender.wait(ticket, soon()).unwrap();
    assert_eq!(fate, Fate::Released { accepted: 256 << 20, copied: Some(true) });
    let stats = sender.stats();
    assert!(stats.zero_copy_bytes <= 16 << 20, "{stats:?}");
    drop(sender);
    assert_eq!(peer.join().unwrap(), 256 << 20);
}

#[test]
fn a_stalled_peer_delays_only_the_probe() {
    let _turn = turn();
    let (near, mut far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = Sender::new(near).unwrap();
    let (mut sent, data) = (0, bytes(LEN));
    // Until the socket is full.
    while let Ok(ticket) = sender.try_send(data) {
        sent += ticket.len();
    }
    let stats = sender.stats();
    assert_eq!((stats.zero_copy_calls, stats.route.mode), (1, RouteMode::Trying), "{stats:?}");
    assert!(stats.copied_calls > 10, "{stats:?}");
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        got
    });
    sender.drain(soon()).unwrap();
    assert!(sender.close(soon()).drained);
    let got = reader.join().unwrap();
    assert!(got.len() == sent && got.iter().all(|byte| *byte == 7));
}

#[test]
fn prefer_and_require_ignore_the_route() {
    let _turn = turn();
    for policy in [Policy::Prefer, Policy::Require] {
        let (near, far) = pair();
        let peer = swallow(far);
        let mut sender = Sender::builder().policy(policy).adopt(near).unwrap();
        for _ in 0..200 {
            let mut bufs = vec![Payload::from(bytes(LEN))];
            sender.send_vectored(&mut bufs).unwrap();
        }
        let stats = sender.stats();
        assert!(stats.zero_copy_calls >= 150, "{stats:?}");
        assert_eq!((stats.route.mode, stats.route.probes), (RouteMode::Ignored, 0));
        assert_eq!(sender.capabilities().reason, None);
        assert!(sender.close(soon()).drained);
        assert_eq!(peer.join().unwrap(), 200 * LEN as u64);
    }
}
