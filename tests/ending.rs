//! How senders end: closed, dropped, dropped in the middle, with peers that read, stall or are
//! gone. No end makes a buffer free that the kernel may still read, and none looks like the
//! orderly end of a stream that was cut.

mod common;

use std::{
    any::Any,
    io::{self, Read, Write},
    net::{TcpStream, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use common::{
    Buffers, STALLED, TCP_CLOSE, TCP_FIN_WAIT1, TIGHT, after, assert_all_free, assert_arrived,
    assert_same, census, duplicate, eventually, filled, pair, pair_at, pattern, pool, reader,
    reset, soon, tcp_state,
};
use pinbuf::{
    Fate, MappedSlice, Payload, Policy, Pool, Sender,
    sender::{CloseReport, HandBack},
};

const LEN: usize = 64 << 10;

/// Sends `count` buffers to a peer that takes few of them.
fn send_some(sender: &mut Sender<TcpStream>, pool: &Pool, count: usize) {
    for seed in 0..count {
        sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
    }
}

/// Writes into every slot that can be had, and keeps them.
fn scribble(pool: &Pool) -> Vec<pinbuf::PinnedBuf> {
    let take = std::iter::from_fn(|| pool.try_alloc(1).ok());
    take.map(|mut buf| {
        buf.resize(buf.capacity(), 0xDD);
        buf
    })
    .collect()
}

/// Waits until the pool's records agree and nothing is with the program, and says how many slots
/// are not free.
fn accounted_for(pool: &Pool) -> usize {
    eventually("every slot is accounted for", || {
        let audit = pool.audit();
        audit.is_clean() && audit.stats.owned() == 0
    });
    let stats = pool.stats();
    stats.in_flight() + stats.quarantined()
}

#[test]
fn close_ends_the_stream_in_order() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let pool = pool(LEN, 8);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let peer = reader(far, Duration::from_millis(50));
    for seed in 0..20 {
        let buf = filled(pool.alloc(LEN).unwrap(), LEN, seed);
        // The last one is left in part to `close`.
        if seed < 19 { sender.send(buf) } else { sender.try_send(buf) }.unwrap();
    }
    let report = sender.close(soon().unwrap());
    assert!(report.drained, "{report:?}");
    assert_eq!((report.quarantined, report.error), (0, None));
    assert_arrived(&peer.join().unwrap(), LEN, 20);
    assert_all_free(&pool);
}

#[test]
fn a_dropped_sender_with_nothing_in_flight_closes_its_socket() {
    let (near, far) = pair();
    let peer = reader(far, Duration::ZERO);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let ticket = sender.send(pattern(1 << 20, 1)).unwrap();
    sender.wait(ticket, soon()).unwrap();
    drop(sender);
    assert_same(&peer.join().unwrap(), &pattern(1 << 20, 1));
}

#[test]
fn a_dropped_sender_frees_nothing_that_the_peer_has_yet_to_get() {
    let (near, mut far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 12);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    send_some(&mut sender, &pool, 12);
    drop(sender);
    assert!(accounted_for(&pool) > 4);
    let scribbled = scribble(&pool);
    let mut got = vec![0; 12 * LEN];
    far.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    thread::sleep(Duration::from_millis(50));
    far.read_exact(&mut got).unwrap();
    assert_arrived(&got, LEN, 12);
    drop(scribbled);
    accounted_for(&pool);
}

#[test]
fn a_panic_in_the_senders_thread_frees_nothing_either() {
    let (near, mut far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 12);
    let panicked = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sender = common::zero_copy().adopt(near).unwrap();
            send_some(&mut sender, &pool, 12);
            let _owned = pool.try_alloc(1);
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        sending.join().is_err()
    });
    assert!(panicked);
    assert!(accounted_for(&pool) > 4);
    let scribbled = scribble(&pool);
    let mut got = vec![0; 12 * LEN];
    far.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    far.read_exact(&mut got).unwrap();
    assert_arrived(&got, LEN, 12);
    drop(scribbled);
}

#[test]
fn memory_outlives_pool_and_sender_while_the_kernel_may_read_it() {
    let (near, mut far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 12);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    send_some(&mut sender, &pool, 12);
    drop(pool);
    drop(sender);
    // Whoever gets the next mapping must not get this memory.
    let other = common::pool(LEN, 12);
    let scribbled = scribble(&other);
    let mut got = vec![0; 12 * LEN];
    far.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    far.read_exact(&mut got).unwrap();
    assert_arrived(&got, LEN, 12);
    drop(scribbled);
}

/// What ended the stream: `Ok` in order, an error, or nothing within `patience`.
fn end_of(mut far: TcpStream, patience: Duration) -> (Vec<u8>, Result<(), io::ErrorKind>) {
    far.set_read_timeout(Some(patience)).unwrap();
    let mut got = Vec::new();
    let end = far.read_to_end(&mut got).map(|_| ()).map_err(|error| error.kind());
    (got, end)
}

#[test]
fn the_rest_of_a_dropped_sender_reaches_a_peer_that_reads() {
    for policy in [Policy::Never, Policy::Prefer] {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let mut sender = Sender::builder().policy(policy).adopt(near).unwrap();
        sender.try_send(pattern(4 << 20, 1)).unwrap();
        assert!(!sender.flush().unwrap());
        drop(sender);
        let (got, end) = end_of(far, Duration::from_secs(30));
        assert_eq!(end, Ok(()), "{} bytes", got.len());
        assert_same(&got, &pattern(4 << 20, 1));
    }
    assert!(pinbuf::reaper::wait_idle(after(60_000)), "{:?}", pinbuf::reaper::stats());
}

#[test]
fn a_part_sent_by_copy_ends_in_a_reset_if_the_peer_stalls() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let linger = Duration::from_millis(50);
    let builder = Sender::builder().policy(Policy::Never).linger(linger);
    let mut sender = builder.adopt(near).unwrap();
    sender.try_send(pattern(4 << 20, 1)).unwrap();
    assert!(!sender.flush().unwrap());
    drop(sender);
    assert!(pinbuf::reaper::wait_idle(after(60_000)), "{:?}", pinbuf::reaper::stats());
    let (got, end) = end_of(far, Duration::from_secs(30));
    assert_eq!(end, Err(io::ErrorKind::ConnectionReset), "{} bytes", got.len());
    assert_same(&got, &pattern(4 << 20, 1)[..got.len()]);
}

#[test]
fn a_part_sent_without_copy_never_ends_in_order() {
    for close in [false, true] {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let pool = pool(4 << 20, 1);
        let linger = Duration::from_millis(50);
        let mut sender = common::zero_copy().linger(linger).adopt(near).unwrap();
        sender.try_send(filled(pool.try_alloc(1).unwrap(), 4 << 20, 1)).unwrap();
        assert!(!sender.flush().unwrap());
        if close {
            let report = sender.close(after(50));
            assert!(!report.drained, "{report:?}");
        } else {
            drop(sender);
            assert!(pinbuf::reaper::wait_idle(after(60_000)), "{:?}", pinbuf::reaper::stats());
        }
        let scribbled = scribble(&pool);
        let (got, end) = end_of(far, Duration::from_millis(300));
        assert!(end.is_err(), "an orderly end after {} bytes", got.len());
        assert_same(&got, &pattern(4 << 20, 1)[..got.len()]);
        drop(scribbled);
        accounted_for(&pool);
    }
}

#[test]
fn close_ends_by_its_deadline_when_the_peer_stalls() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 12);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    send_some(&mut sender, &pool, 12);
    let deadline = after(200);
    let report = sender.close(deadline);
    assert!(Instant::now() >= deadline, "it gave up early");
    assert!(!report.drained, "{report:?}");
    assert!(report.unacked_bytes.is_some_and(|bytes| bytes > LEN), "{report:?}");
    assert_eq!(accounted_for(&pool), report.quarantined);
    // Whatever is free now may be written, and the peer does not see that.
    let scribbled = scribble(&pool);
    let (got, _) = end_of(far, Duration::from_millis(300));
    for (seed, message) in got.chunks(LEN).enumerate() {
        assert_same(message, &pattern(LEN, seed)[..message.len()]);
    }
    drop(scribbled);
}

#[test]
fn a_reset_peer_releases_everything_and_every_fate_is_known() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 4);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let tickets: Vec<_> = (0..4)
        .map(|seed| sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap())
        .collect();
    reset(far);
    thread::sleep(Duration::from_millis(10));
    sender.drain(soon()).unwrap();
    for ticket in tickets {
        assert!(matches!(sender.fate(ticket).unwrap(), Some(Fate::Released { accepted: LEN, .. })));
    }
    assert_all_free(&pool);
}

#[test]
fn close_of_a_dead_connection_does_not_wait_for_its_deadline() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 12);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    send_some(&mut sender, &pool, 12);
    reset(far);
    let deadline = after(60_000);
    let report = sender.close(deadline);
    assert!(Instant::now() < deadline, "it waited to the end");
    assert_eq!(report.quarantined, 0);
    assert_all_free(&pool);
}

#[test]
fn a_deadline_in_the_past_still_reads_what_is_there() {
    let (near, far) = pair();
    let pool = pool(LEN, 4);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let peer = reader(far, Duration::ZERO);
    send_some(&mut sender, &pool, 4);
    eventually("the kernel let go", || common::unacked(&sender) == 0);
    // Where the path is no longer than the machine, what is acknowledged is released.
    thread::sleep(Duration::from_millis(50));
    let report = sender.close(Instant::now());
    assert_eq!(report.quarantined, 0, "{report:?}");
    assert_all_free(&pool);
    assert_arrived(&peer.join().unwrap(), LEN, 4);
}

#[test]
fn an_owner_that_panics_when_dropped_takes_nothing_else_along() {
    struct Bomb(Vec<u8>);
    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
    }
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 4);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let bomb = Arc::new(Bomb(pattern(LEN, 2).to_vec()));
    let start = bomb.0.as_ptr();
    let owner: Arc<dyn Any + Send + Sync> = bomb;
    // SAFETY: the owner keeps the bytes where they are, and nobody writes them.
    let slice = unsafe { MappedSlice::from_raw_parts(owner, start, LEN) };
    let mut tickets = Vec::new();
    for seed in [0, 1] {
        tickets.push(sender.send(filled(pool.try_alloc(1).unwrap(), LEN, seed)).unwrap());
    }
    tickets.push(sender.send(slice).unwrap());
    for seed in [3, 4] {
        tickets.push(sender.send(filled(pool.try_alloc(1).unwrap(), LEN, seed)).unwrap());
    }
    let peer = reader(far, Duration::ZERO);
    let mut panics = 0;
    for ticket in tickets {
        loop {
            match catch_unwind(AssertUnwindSafe(|| sender.wait(ticket, soon()))) {
                Ok(fate) => {
                    assert!(matches!(fate, Ok(Fate::Released { accepted: LEN, .. })), "{fate:?}");
                    break;
                }
                Err(_) => panics += 1,
            }
        }
    }
    assert_eq!(panics, 1);
    assert_all_free(&pool);
    assert!(sender.close(soon().unwrap()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, 5);
}

#[test]
fn two_owners_that_panic_when_dropped_at_once_do_not_abort() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
    }
    static BYTES: [u8; LEN] = [7; LEN];
    let bomb = || {
        let owner: Arc<dyn Any + Send + Sync> = Arc::new(Bomb);
        // SAFETY: the bytes are there for ever, and nobody writes them.
        Payload::from(unsafe { MappedSlice::from_raw_parts(owner, BYTES.as_ptr(), LEN) })
    };
    let (near, far) = pair_at("127.0.0.1:0", Buffers::default());
    let pool = pool(LEN, 1);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let peer = reader(far, Duration::ZERO);
    let buf = filled(pool.try_alloc(1).unwrap(), LEN, 0);
    // One send, so that all of it is let go of at once.
    let ticket = sender.send_vectored(&mut vec![bomb(), bomb(), buf.into()]).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| sender.wait(ticket, soon()))).is_err());
    assert!(matches!(sender.fate(ticket).unwrap(), Some(Fate::Released { .. })));
    assert_all_free(&pool);
    assert!(sender.close(soon().unwrap()).drained);
    assert_eq!(peer.join().unwrap().len(), 3 * LEN);
}

#[test]
fn payloads_that_nobody_fetched_end_with_the_sender() {
    let (near, far) = pair_at("127.0.0.1:0", Buffers::default());
    let pool = pool(LEN, 4);
    let shared = pattern(LEN, 4);
    let mut sender = common::zero_copy().hand_back(HandBack::Return).adopt(near).unwrap();
    let peer = reader(far, Duration::ZERO);
    send_some(&mut sender, &pool, 4);
    sender.send(Payload::from(Arc::clone(&shared))).unwrap();
    sender.drain(soon()).unwrap();
    assert_eq!(census(&pool), [0, 4, 0, 0], "with the program, though not fetched");
    assert!(sender.close(soon().unwrap()).drained);
    assert_all_free(&pool);
    assert_eq!(Arc::strong_count(&shared), 1);
    assert_arrived(&peer.join().unwrap(), LEN, 5);
}

// Why an end was not in order.

fn assert_tells_why(report: CloseReport) {
    assert!(!report.drained, "{report:?}");
    assert!(report.aborted || report.error.is_some(), "{report:?}");
}

#[test]
fn a_close_after_the_peers_reset_says_why_it_is_not_drained() {
    for policy in [Policy::Never, Policy::Prefer] {
        for bytes in [0, 100, 300_000] {
            let (near, far) = pair_at("127.0.0.1:0", STALLED);
            let mut sender = Sender::builder().policy(policy).adopt(near).unwrap();
            if bytes > 0 {
                sender.try_send(pattern(bytes, 1)).unwrap();
            }
            let state = duplicate(&sender);
            reset(far);
            eventually("the reset is there", || tcp_state(&state) == TCP_CLOSE);
            let report = sender.close(soon().unwrap());
            assert_tells_why(report);
            assert_eq!(report.error.map(|error| error.kind()), Some(io::ErrorKind::NotConnected));
            assert!(!report.aborted, "{report:?}");
        }
    }
}

#[test]
fn a_close_during_which_the_peer_resets_is_not_called_drained() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    sender.try_send(pattern(300_000, 1)).unwrap();
    let state = duplicate(&sender);
    let closing = thread::spawn(move || sender.close(soon().unwrap()));
    eventually("the end is queued", || tcp_state(&state) == TCP_FIN_WAIT1);
    reset(far);
    let report = closing.join().unwrap();
    assert_tells_why(report);
    assert!(report.unacked_bytes.is_some_and(|bytes| bytes > 0), "{report:?}");
}

#[test]
fn a_close_with_unread_input_resets_the_peer() {
    let (near, mut far) = pair();
    far.write_all(b"unread").unwrap();
    eventually("the input is there", || near.peek(&mut [0; 6]).unwrap() == 6);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    sender.send(pattern(20_000, 1)).unwrap();
    far.read_exact(&mut [0; 20_000]).unwrap();
    assert!(sender.close(soon().unwrap()).drained);
    // The end in order came before the reset.
    let end = far.read(&mut [0]);
    assert!(matches!(end, Ok(0)) || end.unwrap_err().kind() == io::ErrorKind::ConnectionReset);
    eventually("the reset is there", || tcp_state(&far) == TCP_CLOSE);
    assert_eq!(far.write(b"more").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn an_abort_of_a_datagram_socket_says_why_it_is_none() {
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    let near = UdpSocket::bind("127.0.0.1:0").unwrap();
    near.connect(far.local_addr().unwrap()).unwrap();
    let report = common::zero_copy().adopt(near).unwrap().abort();
    assert_tells_why(report);
}
