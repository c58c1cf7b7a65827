//! Ends of senders: closed, dropped, dropped in the middle, with peers that read, stall or vanish.
//! No end frees a buffer under the kernel's read, and no end of a truncated stream looks orderly.

use std::{
    any::Any,
    io::{self, Read, Write},
    net::{TcpStream, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use pinbuf::{
    Fate, MappedSlice, Payload, Policy, Pool, Sender,
    sender::{CloseReport, OnRelease},
};

use crate::common::{
    self, Buffers, STALLED, TCP_CLOSE, TCP_FIN_WAIT1, TIGHT, after, assert_all_free,
    assert_arrived, assert_same, census, duplicate, eventually, filled, pair, pair_at, pattern,
    pool, reader, reset, soon, tcp_state, within,
};

const LEN: usize = 64 << 10;

/// Sends `count` buffers to a peer that takes few of them.
fn send_some(sender: &mut Sender<TcpStream>, pool: &Pool, count: usize) {
    for seed in 0..count {
        sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
    }
}

/// Overwrites every available slot, and keeps all of them.
fn scribble(pool: &Pool) -> Vec<pinbuf::PinnedBuf> {
    let take = std::iter::from_fn(|| pool.try_alloc(1).ok());
    take.map(|mut buf| {
        buf.resize(buf.capacity(), 0xDD);
        buf
    })
    .collect()
}

/// Waits until the pool's audit is clean and the program has no buffer, and returns the number of
/// slots in use.
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
        // `close` has to send a part of the last buffer.
        if seed < 19 { sender.send(buf) } else { sender.try_send(buf) }.unwrap();
    }
    let report = sender.close(soon());
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
    assert!(sender.wait(ticket, soon()).unwrap().is_released());
    drop(sender);
    assert_same(&peer.join().unwrap(), &pattern(1 << 20, 1));
}

#[test]
fn a_dropped_sender_frees_no_undelivered_buffer() {
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
fn a_panic_in_the_senders_thread_frees_no_buffer() {
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
    // The next mapping must not get this memory.
    let other = common::pool(LEN, 12);
    let scribbled = scribble(&other);
    let mut got = vec![0; 12 * LEN];
    far.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    far.read_exact(&mut got).unwrap();
    assert_arrived(&got, LEN, 12);
    drop(scribbled);
}

/// The end of the stream: `Ok` in order, an error, or none within `patience`.
fn end_of(mut far: TcpStream, patience: Duration) -> (Vec<u8>, Result<(), io::ErrorKind>) {
    far.set_read_timeout(Some(patience)).unwrap();
    let mut got = Vec::new();
    let end = far.read_to_end(&mut got).map(|_| ()).map_err(|error| error.kind());
    (got, end)
}

#[test]
fn the_unsent_part_of_a_dropped_sender_reaches_its_peer() {
    for policy in [Policy::Never, Policy::Prefer] {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let mut sender = Sender::builder().policy(policy).adopt(near).unwrap();
        sender.try_send(pattern(4 << 20, 1)).unwrap();
        assert!(sender.reap().unwrap().unsent);
        drop(sender);
        let (got, end) = end_of(far, Duration::from_secs(30));
        assert_eq!(end, Ok(()), "{} bytes", got.len());
        assert_same(&got, &pattern(4 << 20, 1));
    }
    assert!(pinbuf::reaper::wait_idle(within(60_000)), "{:?}", pinbuf::reaper::stats());
}

#[test]
fn a_partial_copy_ends_in_a_reset_at_a_stalled_peer() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let linger = Duration::from_millis(50);
    let builder = Sender::builder().policy(Policy::Never).linger(linger);
    let mut sender = builder.adopt(near).unwrap();
    sender.try_send(pattern(4 << 20, 1)).unwrap();
    assert!(sender.reap().unwrap().unsent);
    drop(sender);
    assert!(pinbuf::reaper::wait_idle(within(60_000)), "{:?}", pinbuf::reaper::stats());
    let (got, end) = end_of(far, Duration::from_secs(30));
    assert_eq!(end, Err(io::ErrorKind::ConnectionReset), "{} bytes", got.len());
    assert_same(&got, &pattern(4 << 20, 1)[..got.len()]);
}

#[test]
fn a_partial_zero_copy_send_never_ends_in_order() {
    for close in [false, true] {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let pool = pool(4 << 20, 1);
        let linger = Duration::from_millis(50);
        let mut sender = common::zero_copy().linger(linger).adopt(near).unwrap();
        sender.try_send(filled(pool.try_alloc(1).unwrap(), 4 << 20, 1)).unwrap();
        assert!(sender.reap().unwrap().unsent);
        if close {
            let report = sender.close(within(50));
            assert!(!report.drained, "{report:?}");
        } else {
            drop(sender);
            assert!(pinbuf::reaper::wait_idle(within(60_000)), "{:?}", pinbuf::reaper::stats());
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
fn close_at_a_stalled_peer_ends_at_its_deadline() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 12);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    send_some(&mut sender, &pool, 12);
    let deadline = Instant::now() + Duration::from_millis(200);
    let report = sender.close(within(200));
    assert!(Instant::now() >= deadline, "the close ended early");
    assert!(!report.drained, "{report:?}");
    assert!(report.unacked_bytes.is_some_and(|bytes| bytes > LEN), "{report:?}");
    assert_eq!(accounted_for(&pool), report.quarantined);
    // Free slots may be overwritten now, without effect on the peer.
    let scribbled = scribble(&pool);
    let (got, _) = end_of(far, Duration::from_millis(300));
    for (seed, message) in got.chunks(LEN).enumerate() {
        assert_same(message, &pattern(LEN, seed)[..message.len()]);
    }
    drop(scribbled);
}

#[test]
fn a_reset_releases_all_slots_and_decides_every_fate() {
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
    let report = sender.close(within(60_000));
    assert!(Instant::now() < deadline, "the close waited for its deadline");
    assert_eq!(report.quarantined, 0);
    assert_all_free(&pool);
}

#[test]
fn a_past_deadline_still_reads_notifications() {
    let (near, far) = pair();
    let pool = pool(LEN, 4);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let peer = reader(far, Duration::ZERO);
    send_some(&mut sender, &pool, 4);
    eventually("the peer has acknowledged", || common::unacked(&sender) == 0);
    // On loopback, acknowledged bytes are released.
    thread::sleep(Duration::from_millis(50));
    let report = sender.close(within(0));
    assert_eq!(report.quarantined, 0, "{report:?}");
    assert_all_free(&pool);
    assert_arrived(&peer.join().unwrap(), LEN, 4);
}

#[test]
fn a_panic_in_a_payloads_drop_affects_no_other_payload() {
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
    // SAFETY: the owner keeps the bytes in place, and they have no writers.
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
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, 5);
}

#[test]
fn panics_in_two_drops_do_not_abort() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
    }
    static BYTES: [u8; LEN] = [7; LEN];
    let bomb = || {
        let owner: Arc<dyn Any + Send + Sync> = Arc::new(Bomb);
        // SAFETY: the bytes are static and have no writers.
        Payload::from(unsafe { MappedSlice::from_raw_parts(owner, BYTES.as_ptr(), LEN) })
    };
    let (near, far) = pair_at("127.0.0.1:0", Buffers::default());
    let pool = pool(LEN, 1);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let peer = reader(far, Duration::ZERO);
    let buf = filled(pool.try_alloc(1).unwrap(), LEN, 0);
    // One send, so that all payloads are dropped at once.
    let ticket = sender.send_vectored(&mut vec![bomb(), bomb(), buf.into()]).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| sender.wait(ticket, soon()))).is_err());
    assert!(matches!(sender.fate(ticket).unwrap(), Some(Fate::Released { .. })));
    assert_all_free(&pool);
    assert!(sender.close(soon()).drained);
    assert_eq!(peer.join().unwrap().len(), 3 * LEN);
}

#[test]
fn unfetched_payloads_end_with_the_sender() {
    let (near, far) = pair_at("127.0.0.1:0", Buffers::default());
    let pool = pool(LEN, 4);
    let shared = pattern(LEN, 4);
    let mut sender = common::zero_copy().on_release(OnRelease::Return).adopt(near).unwrap();
    let peer = reader(far, Duration::ZERO);
    send_some(&mut sender, &pool, 4);
    sender.send(Payload::from(Arc::clone(&shared))).unwrap();
    sender.drain(soon()).unwrap();
    assert_eq!(census(&pool), [0, 4, 0, 0], "owned by the program, though not fetched");
    assert!(sender.close(soon()).drained);
    assert_all_free(&pool);
    assert_eq!(Arc::strong_count(&shared), 1);
    assert_arrived(&peer.join().unwrap(), LEN, 5);
}

// Reasons of an end that was not in order.

fn assert_tells_why(report: CloseReport) {
    assert!(!report.drained, "{report:?}");
    assert!(report.aborted || report.error.is_some(), "{report:?}");
}

#[test]
fn a_close_after_a_reset_tells_its_cause() {
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
            let report = sender.close(soon());
            assert_tells_why(report);
            assert_eq!(report.error.map(|error| error.kind()), Some(io::ErrorKind::NotConnected));
            assert!(!report.aborted, "{report:?}");
        }
    }
}

#[test]
fn a_reset_during_a_close_is_not_drained() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    sender.try_send(pattern(300_000, 1)).unwrap();
    let state = duplicate(&sender);
    let closing = thread::spawn(move || sender.close(soon()));
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
    assert!(sender.close(soon()).drained);
    // The end in order came before the reset.
    let end = far.read(&mut [0]);
    assert!(matches!(end, Ok(0)) || end.unwrap_err().kind() == io::ErrorKind::ConnectionReset);
    eventually("the reset is there", || tcp_state(&far) == TCP_CLOSE);
    assert_eq!(far.write(b"more").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn an_abort_of_a_datagram_socket_is_an_error() {
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    let near = UdpSocket::bind("127.0.0.1:0").unwrap();
    near.connect(far.local_addr().unwrap()).unwrap();
    let report = common::zero_copy().adopt(near).unwrap().abort();
    assert_tells_why(report);
}
