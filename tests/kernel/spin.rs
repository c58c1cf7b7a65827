//! No spinning: counts of waits where `poll(2)` would return at once for ever.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::{
    io::{self, Read},
    net::{Shutdown, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::{Duration, Instant},
};

use pinbuf::{
    Fate, Policy, SendError, Sender, WaitError,
    reaper::wait_idle,
    sender::{Reaped, SenderBuilder},
};

use crate::{
    calls,
    common::{
        self, STALLED, TIGHT, after, assert_all_free, assert_arrived, assert_same, block_on,
        disconnect, eventually, filled,
        namespace::{in_a_namespace, run},
        pair, pair_at, pattern, pool,
        process::{alone, hoard_descriptors},
        raise_loopback, reader, reset, soon, take_error, times_since, within,
    },
};

/// The number of this thread's waits in `body`.
fn waits(body: impl FnOnce()) -> usize {
    calls::during(body).waits
}

/// A spinning thread waits about a hundred thousand times during the pauses below.
const MANY: usize = 2000;
const PAUSE: Duration = Duration::from_millis(400);

/// A peer that reads some bytes, so that notifications come, pauses, and then reads to the end.
fn fitful(mut far: TcpStream, first: usize) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut got = vec![0; first];
        far.read_exact(&mut got).unwrap();
        thread::sleep(PAUSE);
        far.read_to_end(&mut got).unwrap();
        got
    })
}

#[test]
fn waits_are_counted() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let ticket = sender.send(pattern(1 << 20, 1)).unwrap();
    // A thread without a processor for so long finds the time up before the first wait.
    eventually("the library calls the functions of this binary", || {
        waits(|| assert!(sender.wait(ticket, within(20)).is_err())) > 0
    });
    drop(far);
}

#[test]
fn a_wait_for_room_does_not_spin_on_notifications() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let peer = fitful(far, 300_000);
    let data = pattern(1 << 20, 1);
    let waits = waits(|| {
        let _ = sender.send(data.clone()).unwrap();
    });
    assert!(waits > 0, "the socket had room: the test shows nothing");
    assert!(waits < MANY, "{waits}");
    // The notifications may be left to the next call.
    sender.reap().unwrap();
    assert!(sender.stats().notifications > 0);
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &data);
}

#[test]
fn a_blocked_send_does_not_wake_its_own_thread() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let peer = fitful(far, 300_000);
    // A kernel may take all of a send after one wait.
    let (data, mut sent) = (pattern(1 << 20, 1), 0);
    let calls = calls::during(|| {
        let before = calls::of_this_thread();
        while sent < 100 && (calls::of_this_thread() - before).waits < 2 {
            sender.send(data.clone()).unwrap();
            sent += 1;
        }
    });
    assert!(calls.waits > 1, "the socket had room: the test shows nothing");
    assert_eq!(calls.wakes, 0, "{calls:?}");
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &data.repeat(sent));
}

#[test]
fn a_loop_over_interest_does_not_spin() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let mut sender = common::zero_copy().max_in_flight_sends(2).adopt(near).unwrap();
    let peer = fitful(far, 300_000);
    let mut rounds = 0;
    for seed in 0..30 {
        let mut buf = pattern(50_000, seed);
        loop {
            match sender.try_send(buf) {
                Ok(_) => break,
                Err(SendError::WouldBlock(back)) => buf = back,
                Err(error) => panic!("{error}"),
            }
            let interest = sender.interest();
            let events = if interest.writable { libc::POLLOUT } else { 0 };
            let mut entry = libc::pollfd { fd: sender.as_fd().as_raw_fd(), events, revents: 0 };
            // SAFETY: poll(2) reads and writes one entry, alive during the call.
            assert_eq!(unsafe { libc::poll(&raw mut entry, 1, 10_000) }, 1, "{interest:?}");
            sender.reap().unwrap();
            rounds += 1;
        }
    }
    assert!(rounds > 0 && rounds < MANY, "{rounds}");
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), 50_000, 30);
}

/// Waits for events of a sender without an interest, and reaps after each return, until `ended`.
/// Returns the number of waits.
fn turns_until_told(
    fd: i32,
    mut reap: impl FnMut() -> io::Result<Reaped>,
    mut ended: impl FnMut() -> bool,
) -> usize {
    let mut turns = 0;
    while !ended() && turns < MANY {
        let mut entry = libc::pollfd { fd, events: 0, revents: 0 };
        // SAFETY: poll(2) reads and writes one entry, alive during the call.
        assert_eq!(unsafe { libc::poll(&raw mut entry, 1, 60_000) }, 1);
        reap().unwrap();
        turns += 1;
    }
    turns
}

#[test]
fn an_event_loop_learns_of_an_idle_connections_reset() {
    for builder in [Sender::builder(), common::zero_copy(), Sender::builder().policy(Policy::Never)]
    {
        let (near, far) = pair();
        let mut sender = builder.adopt(near).unwrap();
        let fd = sender.as_fd().as_raw_fd();
        reset(far);
        let sender = std::cell::RefCell::new(&mut sender);
        let turns = turns_until_told(
            fd,
            || sender.borrow_mut().reap(),
            || sender.borrow().connection_error().is_some(),
        );
        assert!(turns < 10, "{turns}");
        assert_eq!(
            take_error(*sender.borrow()),
            libc::ECONNRESET,
            "the error is left to the owner"
        );
    }
}

#[test]
fn a_reaping_half_learns_of_an_idle_connections_reset() {
    let (near, far) = pair();
    let (_send, reap) = Sender::new(near).unwrap().split();
    let fd = reap.as_fd().as_raw_fd();
    reset(far);
    let reap = std::cell::RefCell::new(reap);
    let turns = turns_until_told(
        fd,
        || reap.borrow_mut().reap(),
        || reap.borrow().connection_error().is_some(),
    );
    assert!(turns < 10, "{turns}");
}

#[test]
fn the_next_send_returns_the_cause_of_a_noticed_reset() {
    let (near, far) = pair();
    let mut sender = Sender::new(near).unwrap();
    reset(far);
    eventually("the reset is noticed", || {
        sender.reap().unwrap();
        sender.connection_error().is_some()
    });
    let Err(SendError::Connection { error, .. }) = sender.try_send(&[7; 10][..]) else {
        panic!("the connection is over");
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(sender.connection_error(), Some(error));
}

#[test]
fn the_end_of_the_peers_stream_keeps_the_connection() {
    let (near, far) = pair();
    let mut sender = Sender::new(near).unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    let mut entry =
        libc::pollfd { fd: sender.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: poll(2) reads and writes one entry, alive during the call.
    assert_eq!(unsafe { libc::poll(&raw mut entry, 1, 60_000) }, 1);
    sender.reap().unwrap();
    assert_eq!(sender.connection_error(), None);
    let peer = reader(far, Duration::ZERO);
    sender.send(&[7; 1000][..]).unwrap();
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &[7; 1000]);
}

#[test]
fn an_icmp_error_does_not_end_a_datagram_sender() {
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    let near = UdpSocket::bind("127.0.0.1:0").unwrap();
    near.connect(far.local_addr().unwrap()).unwrap();
    drop(far);
    let mut sender = Sender::new(near).unwrap();
    sender.try_send(&[7; 10][..]).unwrap();
    let mut entry = libc::pollfd { fd: sender.as_fd().as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: poll(2) reads and writes one entry, alive during the call.
    assert_eq!(unsafe { libc::poll(&raw mut entry, 1, 60_000) }, 1);
    sender.reap().unwrap();
    assert_eq!(sender.connection_error(), None);
    assert_eq!(take_error(&sender), libc::ECONNREFUSED, "the error is left to the owner");
}

#[test]
fn waiting_for_the_window_does_not_spin_on_room() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = common::zero_copy().max_in_flight_sends(1).adopt(near).unwrap();
    let data = pattern(256 << 10, 1);
    let ticket = sender.send(data.clone()).unwrap();
    assert_eq!(sender.fate(ticket).unwrap(), None, "the window is full, the socket is not");
    assert!(!sender.interest().writable);
    let peer = reader(far, PAUSE);
    let waits = waits(|| {
        let _ = sender.send(data.clone()).unwrap();
    });
    assert!(waits > 0 && waits < MANY, "{waits}");
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &[&data[..], &data].concat());
}

#[test]
fn waiting_for_a_release_does_not_spin_on_room() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let ticket = sender.send(pattern(1 << 20, 1)).unwrap();
    let peer = reader(far, PAUSE);
    let waits = waits(|| {
        let fate = sender.wait(ticket, soon()).unwrap();
        assert!(matches!(fate, Fate::Released { .. }), "{fate:?}");
    });
    assert!(waits < MANY, "{waits}");
    assert!(sender.close(soon()).drained);
    peer.join().unwrap();
}

#[test]
fn waiting_behind_a_hangup_does_not_spin() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(256 << 10, 2);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let ticket = sender.send(filled(pool.try_alloc(1).unwrap(), 256 << 10, 1)).unwrap();
    reset(far);
    // The notifications of a reset come at once; here they seem late. All the while the socket
    // hangs up.
    calls::blind_until(Some(after(30_000)));
    let waits = waits(|| {
        assert_eq!(sender.wait(ticket, within(200)), Err(WaitError::TimedOut));
        calls::blind_until(Some(after(200)));
        let fate = sender.wait(ticket, soon()).unwrap();
        assert!(matches!(fate, Fate::Released { .. }), "{fate:?}");
    });
    assert!(waits > 0 && waits < MANY, "{waits}");
    assert_all_free(&pool);
}

#[test]
fn waiting_for_packets_stuck_below_a_dead_connection_does_not_spin() {
    in_a_namespace(|| {
        raise_loopback();
        // The queue drops larger packets than its burst, and one packet could carry several sends.
        run("ip link set lo mtu 9000")?;
        run("tc qdisc add dev lo root tbf rate 100kbit burst 20kb latency 30s")?;
        let (near, _far) = pair();
        let pool = pool(16 << 10, 4);
        let mut sender = common::zero_copy().adopt(near).unwrap();
        for seed in 0..4 {
            sender.send(filled(pool.try_alloc(1).unwrap(), 16 << 10, seed)).unwrap();
        }
        // The first packets leave at once, the next packets wait in the queue for some seconds. The
        // connection ends; queued packets keep their ids until they leave.
        thread::sleep(Duration::from_millis(150));
        disconnect(&sender);
        let waits = waits(|| {
            let early = sender.drain(within(200));
            assert_eq!(early, Err(WaitError::TimedOut), "no packet was stuck");
            let census = common::census(&pool);
            assert!(census[2] > 0, "no early release: {census:?}");
            sender.drain(soon()).unwrap();
        });
        assert!(waits < MANY, "{waits}");
        assert_all_free(&pool);
        Ok(())
    });
}

#[test]
fn sends_of_a_half_do_not_wake_a_waiting_half() {
    const SENDS: usize = 1000;
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let (mut send, mut reap) = Sender::new(near).unwrap().split();
    let held = send.send(pattern(256 << 10, 1)).unwrap();
    let sends = thread::spawn(move || {
        for _ in 0..SENDS {
            send.try_send(&[7; 10][..]).unwrap();
            thread::sleep(Duration::from_micros(20));
        }
        // Ends the wait.
        reset(far);
        send
    });
    let waits = waits(|| {
        let fate = reap.wait(held, soon()).unwrap();
        assert!(matches!(fate, Fate::Released { .. }), "{fate:?}");
    });
    let _send = sends.join().unwrap();
    assert!(waits < SENDS / 4, "{waits} for {SENDS} sends");
}

#[test]
fn a_waiter_without_a_reaper_sleeps_between_its_looks() {
    alone(|| {
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(256 << 10, 1);
        let mut sender = common::zero_copy().adopt(near).unwrap();
        sender.send(filled(pool.try_alloc(1).unwrap(), 256 << 10, 1)).unwrap();
        let peer = reader(far, PAUSE);
        // The reaper cannot start.
        let hoard = hoard_descriptors(0);
        let (begun, mut buf) = (Instant::now(), None);
        let looks = calls::during(|| buf = Some(pool.alloc(1).unwrap())).looks;
        // One or two every five milliseconds.
        let most = 2 * times_since(begun, Duration::from_millis(5));
        assert!(looks > 3 && looks < most, "{looks} of at most {most}");
        drop((hoard, buf));
        assert!(sender.close(soon()).drained);
        assert_same(&peer.join().unwrap(), &pattern(256 << 10, 1));
    });
}

#[test]
fn the_reaper_does_not_spin() {
    alone(|| {
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let (dead_near, dead_far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(256 << 10, 2);
        let mut sender = common::zero_copy().adopt(near).unwrap();
        let mut dead = common::zero_copy().adopt(dead_near).unwrap();
        let send = |sender: &mut Sender<TcpStream>, seed| {
            sender.send(filled(pool.alloc(1).unwrap(), 256 << 10, seed)).unwrap()
        };
        // One socket has room all the while, the second hangs up.
        send(&mut sender, 1);
        send(&mut dead, 2);
        let before = calls::of_the_reaper().waits;
        let peer = reader(far, PAUSE);
        reset(dead_far);
        let (first, _) = block_on(pool.alloc_async(1));
        let (second, _) = block_on(pool.alloc_async(1));
        drop((first.unwrap(), second.unwrap()));
        let waits = calls::of_the_reaper().waits - before;
        assert!(waits > 0 && waits < MANY, "{waits}");
        eventually("all slots are free", || pool.stats().free() == 2);
        let report = sender.close(soon());
        assert!(report.drained, "{report:?}");
        assert_same(&peer.join().unwrap(), &pattern(256 << 10, 1));
    });
}

/// Drops senders with unsent bytes and full peers.
fn drop_stalled(builder: SenderBuilder, count: usize) -> Vec<TcpStream> {
    let builder = builder.policy(Policy::Never);
    let data = pattern(4 << 20, 1);
    let peers = (0..count).map(|_| {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        builder.adopt(near).unwrap().try_send(data.clone()).unwrap();
        far
    });
    peers.collect()
}

#[test]
fn a_stalled_dropped_sender_gets_ten_looks_per_linger() {
    alone(|| {
        const COUNT: usize = 10;
        // Ten times twice the fixed time between two looks: with the fixed time the reaper would
        // make many more looks.
        let linger = Duration::from_secs(4);
        let _peers = drop_stalled(Sender::builder().linger(linger), COUNT);
        assert!(wait_idle(soon()), "the reset comes");
        let looks = calls::of_the_reaper().questions;
        // Some more at the start, at the reset, and at events of the first segments.
        assert!((COUNT..20 * COUNT).contains(&looks), "{looks} looks at {COUNT} senders");
    });
}

#[test]
fn a_stalled_dropped_sender_gets_at_most_a_look_per_second() {
    alone(|| {
        const COUNT: usize = 100;
        let begun = Instant::now();
        let peers = drop_stalled(Sender::builder(), COUNT);
        thread::sleep(Duration::from_secs(3));
        let looks = calls::of_the_reaper().questions;
        let seconds = times_since(begun, Duration::from_secs(1));
        // Some more at the start.
        assert!(looks >= COUNT && looks < COUNT * (seconds + 4), "{looks} looks in {seconds} s");
        peers.into_iter().for_each(reset);
        assert!(wait_idle(soon()));
    });
}

/// The number of sleeps of this thread.
fn sleeps() -> i64 {
    // SAFETY: all zero bytes are a value of a struct of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: getrusage(2) writes one `rusage`, alive during the call.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) }, 0);
    usage.ru_nvcsw
}

#[test]
fn threads_in_wait_idle_sleep_until_the_last_sender_ends() {
    alone(|| {
        let mut peers = drop_stalled(Sender::builder(), 2);
        let waits: Vec<_> = (0..2)
            .map(|_| {
                thread::spawn(|| {
                    let before = sleeps();
                    let hour = after(3_600_000);
                    assert!(wait_idle(within(3_600_000)) && Instant::now() < hour);
                    sleeps() - before
                })
            })
            .collect();
        thread::sleep(PAUSE);
        reset(peers.pop().unwrap());
        thread::sleep(PAUSE);
        assert!(waits.iter().all(|wait| !wait.is_finished()), "one sender has not ended");
        reset(peers.pop().unwrap());
        eventually("both waits are woken", || waits.iter().all(|wait| wait.is_finished()));
        for wait in waits {
            // One sleep, and a few for locks and the start of the thread.
            let sleeps = wait.join().unwrap();
            assert!((1..20).contains(&sleeps), "{sleeps}");
        }
        assert!(!wait_idle_of_one_stalled(), "the deadline ends the wait");
    });
}

fn wait_idle_of_one_stalled() -> bool {
    let peers = drop_stalled(Sender::builder(), 1);
    let idle = wait_idle(within(50));
    peers.into_iter().for_each(reset);
    idle
}
