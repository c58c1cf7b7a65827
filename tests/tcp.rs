//! Sending over real TCP sockets on loopback.

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use pinbuf::{Fate, Payload, Policy, Sender};

fn pair(address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn pattern(len: usize, seed: usize) -> Arc<[u8]> {
    (0..len).map(|at| (at * 31 + seed * 7 + at / 4096) as u8).collect()
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(20))
}

#[test]
fn everything_arrives_in_order_whatever_way_it_went() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (near, mut far) = pair(address);
        let lens = [1, 100, 5000, 16384, 70_000, 1 << 20, 3_000_001, 17, 0, 65536];
        let peer = thread::spawn(move || {
            let mut got = Vec::new();
            far.read_to_end(&mut got).unwrap();
            got
        });
        let mut sender = Sender::new(near).unwrap();
        assert!(sender.capabilities().zero_copy);
        let mut want = Vec::new();
        let mut tickets = Vec::new();
        for round in 0..20 {
            for len in lens {
                let data = pattern(len, round);
                want.extend_from_slice(&data);
                tickets.push((len, sender.send(data).unwrap()));
            }
        }
        for (len, ticket) in tickets {
            let fate = sender.wait(ticket, soon()).unwrap();
            assert!(matches!(fate, Fate::Released { accepted, .. } if accepted == len), "{fate:?}");
        }
        let stats = sender.stats();
        assert!(stats.zero_copy_calls >= 120 && stats.copied_calls >= 80, "{stats:?}");
        assert_eq!(stats.released_calls, stats.zero_copy_calls);
        assert_eq!((stats.in_flight_calls, stats.in_flight_bytes, stats.leases), (0, 0, 0));
        let report = sender.close(soon().unwrap());
        assert!(report.drained, "{report:?}");
        assert!(peer.join().unwrap() == want);
    }
}

#[test]
fn a_vectored_send_is_one_ticket() {
    let (near, mut far) = pair("127.0.0.1:0");
    let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
    let parts = [pattern(10, 1), pattern(40_000, 2), pattern(40_000, 3), pattern(20, 4)];
    let mut bufs: Vec<Payload> = parts.iter().map(|part| Arc::clone(part).into()).collect();
    let ticket = sender.send_vectored(&mut bufs).unwrap();
    assert!(bufs.is_empty());
    let mut got = vec![0; ticket.len()];
    far.read_exact(&mut got).unwrap();
    assert_eq!(got, parts.concat());
    let fate = sender.wait(ticket, soon()).unwrap();
    assert_eq!(fate, Fate::Released { accepted: 80_030, copied: Some(true) });
    assert_eq!(sender.stats().zero_copy_calls, 1);
    assert_eq!(sender.stats().copied_calls, 2);
    assert!(sender.close(soon().unwrap()).drained);
}
