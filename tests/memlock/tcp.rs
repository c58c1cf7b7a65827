//! Sends over real TCP sockets on loopback: the arriving bytes, and the fate of every buffer.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use pinbuf::{
    Fate, Payload, Policy, SendError, Sender, Ticket, WaitError,
    sender::{IntoPayload, OnRelease},
};

use crate::common::{
    Buffers, STALLED, TIGHT, assert_all_free, assert_arrived, assert_same, census, closed_window,
    duplicate, eventually, filled, mapped_pair, option, pair, pair_at, pattern, pool, reader,
    reset, set_option, soon, take_error, turn, unacked, within, zero_copy,
};

fn assert_released<S: std::os::fd::AsFd + Send + Sync + 'static>(
    sender: &mut Sender<S>,
    ticket: Ticket,
) {
    let fate = sender.wait(ticket, soon()).unwrap();
    let len = ticket.len();
    assert!(matches!(fate, Fate::Released { accepted, .. } if accepted == len), "{fate:?}");
}

/// Sends until the socket stays full. Returns the tickets and the refused buffer.
fn send_until_full<S: std::os::fd::AsFd + Send + Sync + 'static, P: IntoPayload>(
    sender: &mut Sender<S>,
    mut next: impl FnMut(usize) -> P,
) -> (Vec<Ticket>, P) {
    let mut tickets = Vec::new();
    let (mut refused, mut is_closed) = (None, false);
    loop {
        let buf = refused.take().unwrap_or_else(|| next(tickets.len()));
        match sender.try_send(buf) {
            Ok(ticket) => {
                tickets.push(ticket);
                is_closed = false;
            }
            Err(SendError::WouldBlock(buf)) if is_closed => return (tickets, buf),
            Err(SendError::WouldBlock(buf)) => {
                closed_window(sender);
                (refused, is_closed) = (Some(buf), true);
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn all_bytes_arrive_in_order_by_copy_and_zero_copy() {
    let _turn = turn();
    let pairs = [pair(), pair_at("[::1]:0", Buffers::default()), mapped_pair()];
    for (near, far) in pairs {
        let lens = [1, 100, 5000, 16384, 70_000, 1 << 20, 1_500_001, 17, 0, 65536];
        let peer = reader(far, Duration::ZERO);
        let mut sender = zero_copy().adopt(near).unwrap();
        assert!(sender.capabilities().supported);
        let mut want = Vec::new();
        let mut tickets = Vec::new();
        for round in 0..5 {
            for len in lens {
                let data = pattern(len, round);
                want.extend_from_slice(&data);
                tickets.push(sender.send(data).unwrap());
            }
        }
        for ticket in tickets {
            assert_released(&mut sender, ticket);
        }
        let stats = sender.stats();
        assert!(stats.zero_copy_calls >= 25 && stats.copied_calls >= 20, "{stats:?}");
        assert_eq!(stats.released_calls, stats.zero_copy_calls);
        assert_eq!((stats.in_flight_calls, stats.in_flight_bytes, stats.leases), (0, 0, 0));
        let report = sender.close(soon());
        assert!(report.drained, "{report:?}");
        assert_eq!(report.quarantined, 0);
        assert_same(&peer.join().unwrap(), &want);
    }
}

#[test]
fn every_kind_of_payload_is_dropped_after_its_release() {
    let _turn = turn();
    static CONSTANT: [u8; 40_000] = [7; 40_000];
    let (near, far) = pair();
    let peer = reader(far, Duration::ZERO);
    let mut sender = zero_copy().adopt(near).unwrap();
    let shared = pattern(50_000, 1);
    let map = Arc::new(memmap2::MmapRaw::from(
        memmap2::MmapOptions::new().len(65536).map_anon().unwrap(),
    ));
    let tickets = [
        sender.send(&CONSTANT[..]).unwrap(),
        sender.send(Arc::clone(&shared)).unwrap(),
        sender.send(pinbuf::MappedSlice::new(Arc::clone(&map), 0..20_000).unwrap()).unwrap(),
    ];
    #[allow(unused_mut)]
    let mut want = [&CONSTANT[..], &shared, &[0; 20_000]].concat();
    #[cfg(feature = "bytes")]
    {
        let bytes = bytes::Bytes::from(pattern(30_000, 2).to_vec());
        want.extend_from_slice(&bytes);
        let ticket = sender.send(bytes.slice(10_000..)).unwrap();
        want.drain(want.len() - 30_000..want.len() - 20_000);
        assert_released(&mut sender, ticket);
        assert!(bytes.is_unique(), "the sender's clone is gone");
    }
    for ticket in tickets {
        assert_released(&mut sender, ticket);
    }
    assert_eq!((Arc::strong_count(&shared), Arc::strong_count(&map)), (1, 1));
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &want);
}

#[test]
fn a_payload_has_a_length_and_a_ticket_a_position() {
    let _turn = turn();
    let (near, far) = pair();
    let peer = reader(far, Duration::ZERO);
    let mut sender = zero_copy().adopt(near).unwrap();
    for (sequence, len) in [0, 1, 40_000].into_iter().enumerate() {
        let payload = Payload::from(pattern(len, sequence));
        assert_eq!((payload.len(), payload.is_empty()), (len, len == 0));
        let ticket = sender.send(payload).unwrap();
        assert_eq!((ticket.sequence(), ticket.len()), (sequence as u64, len));
        assert_eq!(ticket.is_empty(), len == 0);
    }
    assert!(sender.close(soon()).drained);
    assert_eq!(peer.join().unwrap().len(), 40_001);
}

#[test]
fn a_vectored_send_is_one_ticket() {
    let _turn = turn();
    let (near, mut far) = pair();
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
    assert!(sender.close(soon()).drained);
}

#[test]
fn vectored_sends_accepted_in_parts_arrive_byte_for_byte() {
    let _turn = turn();
    let (near, mut far) = pair_at("127.0.0.1:0", TIGHT);
    let pool = pinbuf::Pool::builder().class(64, 64).class(4096, 128).class(60_000, 8).build();
    let pool = pool.unwrap();
    let mut sender = zero_copy().adopt(near).unwrap();
    // A peer that reads at irregular times, so that calls end anywhere in a buffer.
    let peer = thread::spawn(move || {
        let (mut got, mut piece) = (Vec::new(), vec![0; 70_001]);
        loop {
            match far.read(&mut piece).unwrap() {
                0 => return got,
                read => got.extend_from_slice(&piece[..read]),
            }
            if got.len() % 3 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let (mut want, mut tickets) = (Vec::new(), Vec::new());
    for round in 0..40 {
        let mut bufs: Vec<Payload> = Vec::new();
        let mut lens = vec![64];
        lens.extend([4096; 24]);
        lens.extend([33, 0, 60_000, 59_999, 64, 5]);
        for (at, len) in lens.into_iter().enumerate() {
            let buf = filled(pool.alloc(len).unwrap(), len, round * 100 + at);
            want.extend_from_slice(&buf);
            bufs.push(buf.into());
        }
        tickets.push(sender.send_vectored(&mut bufs).unwrap());
        assert!(bufs.is_empty());
    }
    for ticket in tickets {
        assert_released(&mut sender, ticket);
    }
    let stats = sender.stats();
    assert!(stats.zero_copy_calls > 2 * 40, "no call was partial: {stats:?}");
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &want);
    assert_all_free(&pool);
}

#[test]
fn a_partial_buffer_is_kept_until_its_last_release() {
    let _turn = turn();
    let (near, mut far) = pair_at("127.0.0.1:0", TIGHT);
    let pool = pool(2 << 20, 1);
    let mut sender = zero_copy().adopt(near).unwrap();
    let buf = filled(pool.alloc(2 << 20).unwrap(), 2 << 20, 1);
    let want = buf.to_vec();
    let ticket = sender.try_send(buf).unwrap();
    assert!(sender.interest().writable, "{:?}", sender.interest());
    let refused = sender.try_send(pattern(20_000, 2)).unwrap_err();
    assert!(refused.is_backpressure());
    assert_eq!(refused.into_buf().unwrap(), pattern(20_000, 2));
    // Half of the buffer arrives; the slot stays in flight although all calls so far may be
    // released.
    let mut got = vec![0; 1 << 20];
    let read = thread::scope(|scope| {
        let half = scope.spawn(|| far.read_exact(&mut got));
        while !half.is_finished() {
            assert!(sender.reap().unwrap().unsent);
            assert_eq!(census(&pool), [0, 0, 1, 0]);
            assert_eq!(sender.fate(ticket).unwrap(), None);
            thread::sleep(Duration::from_millis(1));
        }
        half.join().unwrap()
    });
    read.unwrap();
    let rest = reader(far, Duration::ZERO);
    assert_released(&mut sender, ticket);
    assert!(sender.stats().zero_copy_calls > 2, "{:?}", sender.stats());
    assert_all_free(&pool);
    assert!(sender.close(soon()).drained);
    got.extend(rest.join().unwrap());
    assert_same(&got, &want);
}

#[test]
fn a_reset_resolves_every_send_in_flight() {
    let _turn = turn();
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(64 << 10, 200);
    let mut sender = zero_copy().max_in_flight_bytes(1 << 30).adopt(near).unwrap();
    let (mut tickets, last) = send_until_full(&mut sender, |seed| {
        filled(pool.try_alloc(64 << 10).unwrap(), 64 << 10, seed)
    });
    let accepted_bytes =
        sender.stats().zero_copy_bytes as usize + sender.stats().copied_bytes as usize;
    let last_seed = tickets.len();
    assert_same(&last, &pattern(64 << 10, last_seed));
    reset(far);
    eventually("the reset shows", || {
        sender.reap().unwrap();
        sender.stats().in_flight_calls == 0
    });
    let cut = tickets.pop().unwrap();
    for ticket in &tickets {
        assert_released(&mut sender, *ticket);
    }
    let whole: usize = tickets.iter().map(|ticket| ticket.len()).sum();
    let error = match sender.send(last) {
        Err(SendError::Connection { error, buf }) => {
            assert_same(&buf, &pattern(64 << 10, last_seed));
            error
        }
        other => panic!("{other:?}"),
    };
    match sender.wait(cut, soon()).unwrap() {
        Fate::Truncated { accepted, len, error: why } => {
            assert_eq!((whole + accepted, len, why), (accepted_bytes, 64 << 10, error));
            assert_eq!(sender.stats().truncated_sends, 1);
        }
        // The socket was full exactly between two sends.
        Fate::Released { accepted, .. } => assert_eq!(whole + accepted, accepted_bytes),
        other => panic!("{other:?}"),
    }
    assert_eq!(sender.connection_error(), Some(error));
    assert_eq!(sender.connection_error(), Some(error), "stays readable");
    assert!(sender.drain(soon()).is_ok());
    let report = sender.close(soon());
    assert_eq!((report.drained, report.error), (false, Some(error)));
    assert_eq!(report.quarantined, 0);
    assert_all_free(&pool);
}

#[test]
fn a_reset_between_calls_stays_in_so_error() {
    let _turn = turn();
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(64 << 10, 4);
    let mut sender = zero_copy().adopt(near).unwrap();
    let send = |seed| sender.send(filled(pool.try_alloc(1).unwrap(), 64 << 10, seed)).unwrap();
    let tickets: Vec<_> = (0..4).map(send).collect();
    assert!(sender.stats().in_flight_calls > 0);
    let resetter = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        reset(far);
    });
    for ticket in tickets {
        assert_released(&mut sender, ticket);
    }
    resetter.join().unwrap();
    sender.drain(soon()).unwrap();
    assert_all_free(&pool);
    assert_eq!(sender.connection_error(), None, "no call met the reset");
    assert_eq!(take_error(sender.get_ref()), libc::ECONNRESET);
}

#[test]
fn a_waiting_send_returns_the_end_of_the_connection() {
    let _turn = turn();
    let (near, mut far) = pair_at("127.0.0.1:0", TIGHT);
    let mut sender = zero_copy().adopt(near).unwrap();
    let message = pattern(4 << 20, 1);
    let peer = thread::spawn(move || {
        // Not before the start of the send.
        far.read_exact(&mut [0; 10_000]).unwrap();
        thread::sleep(Duration::from_millis(50));
        reset(far);
    });
    let (ticket, error) = match sender.send(message) {
        Err(SendError::Truncated { ticket, error }) => (ticket, error),
        other => panic!("{other:?}"),
    };
    peer.join().unwrap();
    assert_eq!(error.raw(), libc::ECONNRESET);
    let fate = sender.wait(ticket, soon()).unwrap();
    assert!(
        matches!(fate, Fate::Truncated { accepted: 1.., len: 4_194_304, error: why } if why == error),
        "{fate:?}"
    );
    let stats = sender.stats();
    let Fate::Truncated { accepted, .. } = fate else { unreachable!() };
    assert_eq!(accepted as u64, stats.zero_copy_bytes + stats.copied_bytes);
    let refused = sender.send(pattern(10, 2)).unwrap_err();
    assert!(matches!(refused, SendError::Connection { .. }));
}

#[test]
fn a_stalled_peer_costs_only_time() {
    let _turn = turn();
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(64 << 10, 200);
    let mut sender = zero_copy().adopt(near).unwrap();
    let (tickets, refused) =
        send_until_full(&mut sender, |seed| filled(pool.alloc(64 << 10).unwrap(), 64 << 10, seed));
    assert_same(&refused, &pattern(64 << 10, tickets.len()));
    let last = *tickets.last().unwrap();
    assert_eq!(sender.wait(last, within(50)), Err(WaitError::TimedOut));
    assert_eq!(sender.drain(within(50)), Err(WaitError::TimedOut));
    assert_eq!(sender.fate(last).unwrap(), None);
    assert!(matches!(sender.try_send(refused), Err(SendError::WouldBlock(_))));
    let interest = sender.interest();
    assert!(interest.released, "{interest:?}");
    let [free, owned, in_flight, quarantined] = census(&pool);
    assert_eq!((owned, quarantined), (0, 0));
    assert!(in_flight > 0 && free + in_flight == 200);
    // The peer reads at last: no byte is lost.
    let peer = reader(far, Duration::ZERO);
    for ticket in &tickets {
        assert_released(&mut sender, *ticket);
    }
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), 64 << 10, tickets.len());
    assert_all_free(&pool);
}

/// The id of a refused call goes to the next call. Its age does not.
#[test]
fn a_refused_call_does_not_age_the_next_call() {
    const LEN: usize = 64 << 10;
    let _turn = turn();
    let (near, mut far) = pair_at("127.0.0.1:0", TIGHT);
    let mut sender = zero_copy().adopt(near).unwrap();
    // Bytes of a second handle fill the socket, so that the sender has nothing in flight.
    let mut other = TcpStream::from(duplicate(&sender));
    other.set_nonblocking(true).unwrap();
    let mut bytes = 0;
    for _ in 0..2 {
        while let Ok(written) = other.write(&[0; 1000]) {
            bytes += written;
        }
        closed_window(&other);
    }
    let Err(SendError::WouldBlock(buf)) = sender.try_send(pattern(LEN, 0)) else {
        panic!("the socket is full");
    };
    far.read_exact(&mut vec![0; bytes]).unwrap();
    eventually("all bytes are acknowledged", || unacked(&sender) == 0);
    // So that the two ages differ.
    thread::sleep(Duration::from_millis(20));
    let before = Instant::now();
    sender.try_send(buf).unwrap();
    let oldest = sender.held_for().expect("the peer reads nothing more");
    assert!(oldest <= Instant::now() - before, "{oldest:?} is the age of the refused call");
}

/// A send of more buffers than one place in the history counts.
#[test]
fn a_send_of_many_buffers_is_told_as_copied() {
    let _turn = turn();
    let (near, far) = pair();
    let peer = reader(far, Duration::ZERO);
    let mut sender = zero_copy().adopt(near).unwrap();
    let mut bufs: Vec<_> = (0..200).map(|seed| pattern(4096, seed).into()).collect();
    let ticket = sender.send_vectored(&mut bufs).unwrap();
    let fate = Fate::Released { accepted: 200 * 4096, copied: Some(true) };
    assert_eq!(sender.wait(ticket, soon()), Ok(fate), "loopback copies");
    assert_eq!(sender.stats().copied_calls, 0);
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), 4096, 200);
}

#[test]
fn a_send_does_not_have_an_earlier_sends_age() {
    let _turn = turn();
    let (near, _far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = zero_copy().threshold_bytes(4096).adopt(near).unwrap();
    // The peer's socket takes the first send at once.
    let first = sender.send(pattern(4096, 0)).unwrap();
    assert_released(&mut sender, first);
    // So that the two ages differ.
    thread::sleep(Duration::from_millis(20));
    let before = Instant::now();
    sender.send(pattern(64 << 10, 1)).unwrap();
    let oldest = sender.held_for().expect("the peer reads nothing");
    assert!(oldest <= Instant::now() - before, "{oldest:?} is the age of the send before");
}

/// A sender with an owner that only sends needs no other calls to learn of releases.
#[test]
fn every_32nd_call_reads_notifications() {
    let _turn = turn();
    for vectored in [false, true] {
        let (near, far) = pair();
        let peer = reader(far, Duration::ZERO);
        let mut sender = zero_copy().adopt(near).unwrap();
        let mut sent = Vec::new();
        for seed in 0..80 {
            sent.push(pattern(16 << 10, seed));
            let mut bufs = vec![Payload::Arc(Arc::clone(&sent[seed]))];
            match vectored {
                true => sender.send_vectored(&mut bufs).map(|_| ()).unwrap(),
                false => sender.send(bufs.remove(0)).map(|_| ()).unwrap(),
            }
            eventually("the send is acknowledged", || unacked(&sender) == 0);
            let stats = sender.stats();
            assert!(stats.in_flight_calls <= 32, "{stats:?}");
            let held = sent.iter().filter(|payload| Arc::strong_count(payload) > 1).count();
            assert_eq!(held, stats.in_flight_calls, "released payloads are dropped");
        }
        assert_eq!(sender.stats().zero_copy_calls, 80);
        assert!(sender.close(soon()).drained);
        assert_arrived(&peer.join().unwrap(), 16 << 10, 80);
    }
}

#[test]
fn released_payloads_come_back_in_order_with_their_contents() {
    let _turn = turn();
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let pool = pool(32 << 10, 8);
    let mut sender = zero_copy().on_release(OnRelease::Return).adopt(near).unwrap();
    let peer = reader(far, Duration::from_millis(50));
    let mut want = Vec::new();
    let mut bufs: Vec<_> = (0..8).map(|_| pool.try_alloc(1).unwrap()).collect();
    let (mut sent, mut back) = (0, 0);
    let deadline = Instant::now() + soon().unwrap();
    while back < 60 {
        assert!(Instant::now() < deadline, "{back} of {sent} came back");
        while sent < 60
            && let Some(mut buf) = bufs.pop()
        {
            buf.clear();
            // Some are copied.
            let buf = filled(buf, if sent % 5 == 4 { 1000 } else { 32 << 10 }, sent);
            want.extend_from_slice(&buf);
            let ticket = sender.send(buf).unwrap();
            assert_eq!(ticket.sequence(), sent as u64);
            sent += 1;
        }
        let oldest = sender.next_returned();
        let Some(returned) = oldest else {
            sender.reap().unwrap();
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let Payload::Pinned(buf) = returned.payload else { panic!("{:?}", returned.payload) };
        assert_same(&buf, &pattern(buf.len(), returned.ticket.sequence() as usize));
        back += 1;
        bufs.push(buf);
    }
    assert!(sender.next_returned().is_none());
    assert_eq!(census(&pool), [0, 8, 0, 0]);
    drop(bufs);
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &want);
    assert_all_free(&pool);
}

#[test]
fn refused_buffers_come_back_unchanged_and_once() {
    let _turn = turn();
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(64 << 10, 8);
    let mut sender = zero_copy().on_release(OnRelease::Return).adopt(near).unwrap();
    let (tickets, _) = send_until_full(&mut sender, |seed| pattern(64 << 10, seed));
    let mut bufs: Vec<Payload> = (0..3)
        .map(|seed| filled(pool.try_alloc(1).unwrap(), 10_000 * seed, seed).into())
        .chain([Payload::Static(b"constant"), pattern(100, 9).into()])
        .collect();
    for _ in 0..3 {
        let refused = sender.try_send_vectored(&mut bufs).unwrap_err();
        assert!(refused.is_backpressure());
        assert_eq!(census(&pool), [5, 3, 0, 0], "owned, not in flight");
    }
    assert!(matches!(&bufs[4], Payload::Arc(bytes) if **bytes == *pattern(100, 9)));
    for (seed, payload) in bufs.drain(..).take(3).enumerate() {
        let Payload::Pinned(buf) = payload else { panic!("{payload:?}") };
        assert_same(&buf, &pattern(10_000 * seed, seed));
    }
    assert_all_free(&pool);
    reset(far);
    eventually("all slots are free", || {
        sender.reap().unwrap();
        sender.stats().leases == 0
    });
    let back: Vec<_> = std::iter::from_fn(|| sender.next_returned()).collect();
    assert_eq!(back.len(), tickets.len());
    for returned in back {
        let Payload::Arc(bytes) = returned.payload else { panic!("{returned:?}") };
        assert_same(&bytes, &pattern(64 << 10, returned.ticket.sequence() as usize));
    }
}

#[test]
fn a_leading_empty_buffer_comes_back_too() {
    let _turn = turn();
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(64 << 10, 3);
    let mut sender = zero_copy().max_in_flight_sends(1).adopt(near).unwrap();
    sender.send(pattern(256 << 10, 0)).unwrap();
    let lens = [0, 32 << 10, 0];
    let full = |len| Payload::from(filled(pool.try_alloc(1).unwrap(), len, 1));
    let mut bufs: Vec<_> = lens.into_iter().map(full).collect();
    let refused = sender.try_send_vectored(&mut bufs).unwrap_err();
    assert!(refused.is_backpressure());
    assert_eq!(bufs.iter().map(Payload::len).collect::<Vec<_>>(), lens);
    let peer = reader(far, Duration::ZERO);
    let ticket = sender.send_vectored(&mut bufs).unwrap();
    assert_released(&mut sender, ticket);
    let ticket = sender.send_vectored(&mut vec![Payload::Static(&[]), Payload::Static(&[])]);
    assert_released(&mut sender, ticket.unwrap());
    let ticket = sender.send_vectored(&mut Vec::new());
    assert_released(&mut sender, ticket.unwrap());
    let calls = sender.stats().copied_calls;
    let ticket = sender.send(Payload::Static(&[])).unwrap();
    let fate = Fate::Released { accepted: 0, copied: Some(false) };
    assert_eq!(sender.wait(ticket, soon()), Ok(fate));
    assert_eq!(sender.stats().copied_calls, calls);
    assert_all_free(&pool);
    assert!(sender.close(soon()).drained);
    let want = [&pattern(256 << 10, 0)[..], &pattern(32 << 10, 1)].concat();
    assert_same(&peer.join().unwrap(), &want);
}

#[test]
fn copied_sends_are_released_at_once() {
    let _turn = turn();
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(64 << 10, 2);
    let mut sender = Sender::builder().policy(Policy::Never).adopt(near).unwrap();
    assert!(!sender.capabilities().supported);
    for seed in 0..10 {
        let buf = filled(pool.try_alloc(64 << 10).unwrap(), 64 << 10, seed);
        let ticket = sender.try_send(buf).unwrap();
        let fate = Fate::Released { accepted: 64 << 10, copied: Some(true) };
        assert_eq!(sender.fate(ticket).unwrap(), Some(fate));
        assert_all_free(&pool);
    }
    let peer = reader(far, Duration::ZERO);
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), 64 << 10, 10);
}

#[test]
fn the_users_options_and_flags_stay_unchanged() {
    let _turn = turn();
    fn all(socket: &TcpStream) -> Vec<i32> {
        // SAFETY: F_GETFL takes no pointer.
        let flags = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) };
        let named = [
            (libc::SOL_SOCKET, libc::SO_SNDBUF),
            (libc::SOL_SOCKET, libc::SO_RCVBUF),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            (libc::SOL_SOCKET, libc::SO_LINGER),
            (libc::IPPROTO_TCP, libc::TCP_NODELAY),
            (libc::IPPROTO_TCP, libc::TCP_CORK),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
        ];
        let mut values: Vec<_> =
            named.iter().map(|(level, name)| option(socket, *level, *name)).collect();
        let timeouts = [socket.read_timeout().unwrap(), socket.write_timeout().unwrap()];
        values.extend(timeouts.map(|time| time.map_or(0, |time| time.as_millis() as i32)));
        values.push(flags);
        values
    }
    for nonblocking in [false, true] {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        near.set_nonblocking(nonblocking).unwrap();
        near.set_read_timeout(Some(Duration::from_millis(1000))).unwrap();
        near.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        set_option(&near, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1_i32);
        let before = all(&near);
        let mut sender = zero_copy().adopt(near).unwrap();
        let peer = reader(far, Duration::from_millis(100));
        // Longer than the user's write timeout, which is for the user's calls.
        let ticket = sender.send(pattern(1 << 20, 3)).unwrap();
        assert_released(&mut sender, ticket);
        let (near, _) = sender.into_parts().unwrap();
        assert_eq!(all(&near), before);
        drop(near);
        assert_eq!(peer.join().unwrap().len(), 1 << 20);
    }
}

#[test]
fn a_sender_can_be_made_from_its_parts() {
    let _turn = turn();
    let (near, far) = pair();
    let peer = reader(far, Duration::ZERO);
    let mut sender = zero_copy().adopt(near).unwrap();
    let mut want = Vec::new();
    for round in 0..3 {
        for _ in 0..5 {
            let data = pattern(20_000, round);
            want.extend_from_slice(&data);
            sender.send(data).unwrap();
        }
        sender.drain(soon()).unwrap();
        let (near, ids) = sender.into_parts().unwrap();
        (&near).write_all(b"plain").unwrap();
        want.extend_from_slice(b"plain");
        sender = zero_copy().resume(ids).adopt(near).unwrap();
    }
    let ticket = sender.send(pattern(20_000, 9)).unwrap();
    want.extend_from_slice(&pattern(20_000, 9));
    assert_released(&mut sender, ticket);
    assert!(sender.capabilities().supported, "the ids continue");
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &want);
}

#[test]
fn into_parts_refuses_sends_in_flight() {
    let _turn = turn();
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = zero_copy().adopt(near).unwrap();
    sender.send(pattern(256 << 10, 1)).unwrap();
    let mut sender = sender.into_parts().unwrap_err();
    let peer = reader(far, Duration::ZERO);
    sender.drain(soon()).unwrap();
    drop(sender.into_parts().unwrap());
    assert_eq!(peer.join().unwrap().len(), 256 << 10);
}

#[test]
fn time_stamps_on_the_error_queue_reach_the_caller() {
    let _turn = turn();
    let (near, far) = pair();
    let flags = libc::SOF_TIMESTAMPING_TX_SOFTWARE
        | libc::SOF_TIMESTAMPING_SOFTWARE
        | libc::SOF_TIMESTAMPING_OPT_ID
        | libc::SOF_TIMESTAMPING_OPT_TSONLY;
    set_option(&near, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, &flags);
    let peer = reader(far, Duration::ZERO);
    let mut sender = zero_copy().adopt(near).unwrap();
    for seed in 0..10 {
        let ticket = sender.send(pattern(40_000, seed)).unwrap();
        assert_released(&mut sender, ticket);
    }
    let event = sender.next_event().expect("a time stamp");
    assert_eq!((event.origin, event.error.raw()), (4, libc::ENOMSG));
    assert!(event.timestamps.unwrap().software.is_some());
    assert!(sender.capabilities().supported);
    assert!(sender.close(soon()).drained);
    assert_eq!(peer.join().unwrap().len(), 400_000);
}
