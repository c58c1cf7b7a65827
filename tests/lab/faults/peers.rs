//! Killed peers.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use pinbuf::{Fate, SendError, Sender, Ticket, reaper::wait_idle};

use crate::common::{
    again, assert_all_free, duplicate, eventually, filled, option, pattern, plays, pool,
    set_option, soon, test_of, unacked, within, zero_copy,
};

const LEN: usize = 64 << 10;

/// A process that takes connections, reads this many bytes from each, and prints its address.
fn play(connections: usize, bytes: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    set_option(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, &20_000_i32);
    let _ = io::stderr().write_all(format!("{}\n", listener.local_addr().unwrap()).as_bytes());
    let mut held: Vec<_> = (0..connections).map(|_| listener.accept().unwrap().0).collect();
    held.iter_mut().for_each(|far| far.read_exact(&mut vec![0; bytes]).unwrap());
    // The standard input ends with the test.
    let _ = io::stdin().read_to_end(&mut Vec::new());
}

fn start(test: &str) -> (Child, String) {
    let mut command = again(&[], test, "peer");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut address = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut address).unwrap();
    (child, address.trim().to_owned())
}

fn send(sender: &mut Sender<TcpStream>, pool: &pinbuf::Pool, count: usize) -> Vec<Ticket> {
    let send = |seed| sender.send(filled(pool.try_alloc(1).unwrap(), LEN, seed)).unwrap();
    (0..count).map(send).collect()
}

#[test]
fn a_killed_peer_costs_no_slot_and_no_fate() {
    let name = test_of(&|| ());
    const COUNT: usize = 16;
    if plays("peer") {
        return play(COUNT, 3 * LEN);
    }
    let (mut peer, address) = start(name);
    let pool = pool(LEN, 8 * COUNT);
    let adopt = || zero_copy().adopt(TcpStream::connect(&address).unwrap()).unwrap();
    let mut blocked = adopt();
    let socket = duplicate(&blocked);
    let mut senders: Vec<_> = (1..COUNT).map(|_| adopt()).collect();
    let mut tickets: Vec<_> = senders.iter_mut().map(|sender| send(sender, &pool, 8)).collect();
    // A sender blocks in a send larger than the socket, when the peer is killed.
    let (mut blocked, refused) = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let refused = blocked.send(pattern(32 << 20, 1));
            (blocked, refused)
        });
        eventually("the send has begun", || unacked(&socket) > 0);
        thread::sleep(Duration::from_millis(100));
        assert!(!sending.is_finished() && pool.stats().in_flight() > 2 * COUNT);
        peer.kill().unwrap();
        peer.wait().unwrap();
        sending.join().unwrap()
    });
    let Err(SendError::Truncated { ticket, error }) = refused else {
        panic!("the send is not truncated")
    };
    assert!(matches!(error.raw(), libc::ECONNRESET | libc::EPIPE), "{error}");
    let fate = blocked.wait(ticket, soon()).unwrap();
    assert!(matches!(fate, Fate::Truncated { accepted, .. } if accepted > 0), "{fate:?}");
    senders.push(blocked);
    tickets.push(Vec::new());
    for (number, (mut sender, tickets)) in senders.into_iter().zip(tickets).enumerate() {
        eventually("the connection is known to be gone", || {
            let refused = sender.try_send(&b"more"[..]);
            matches!(refused, Err(SendError::Connection { .. }))
        });
        sender.drain(soon()).unwrap();
        for ticket in tickets {
            let fate = sender.wait(ticket, soon()).unwrap();
            assert!(matches!(fate, Fate::Released { accepted: LEN, .. }), "{fate:?}");
        }
        let kept = option(&sender, libc::SOL_SOCKET, libc::SO_ZEROCOPY);
        assert_eq!(kept, 1, "the socket is unchanged");
        match number % 3 {
            0 => drop(sender),
            1 => assert!(!sender.close(soon()).drained),
            _ => assert!(sender.abort().error.is_some()),
        }
    }
    assert!(wait_idle(within(60_000)));
    assert_all_free(&pool);
}
