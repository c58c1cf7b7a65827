//! Split senders: one thread sends, a second thread reaps, and either may end first.

use std::{
    io::Read,
    thread,
    time::{Duration, Instant},
};

use pinbuf::{Fate, Policy, Sender, sender::OnRelease};

use crate::{
    calls,
    common::{
        Buffers, STALLED, TIGHT, assert_all_free, assert_arrived, eventually, filled, pair,
        pair_at, pattern, pool, reader, soon, within,
    },
};

const LEN: usize = 64 << 10;

#[test]
fn one_thread_sends_while_a_second_reaps() {
    let (near, far) = pair();
    let peer = reader(far, Duration::ZERO);
    let pool = pool(LEN, 16);
    let sender = Sender::builder().policy(Policy::Prefer).adopt(near).unwrap();
    let (mut send, reap) = sender.split();
    thread::scope(|scope| {
        scope.spawn(|| {
            let deadline = Instant::now() + Duration::from_secs(30);
            while reap.stats().released_calls < 500 && Instant::now() < deadline {
                reap.reap().unwrap();
                thread::yield_now();
            }
            assert_eq!(reap.stats().released_calls, 500);
        });
        for seed in 0..500 {
            send.send(filled(pool.alloc(LEN).unwrap(), LEN, seed)).unwrap();
        }
    });
    drop(send);
    drop(reap);
    assert_arrived(&peer.join().unwrap(), LEN, 500);
    assert_all_free(&pool);
}

#[test]
fn the_reaping_half_ends_the_stream() {
    let (near, far) = pair_at("127.0.0.1:0", Buffers { send: Some(50_000), receive: None });
    let peer = reader(far, Duration::from_millis(100));
    let pool = pool(1 << 20, 4);
    let sender =
        Sender::builder().policy(Policy::Prefer).on_release(OnRelease::Return).adopt(near).unwrap();
    let (mut send, mut reap) = sender.split();
    let ticket = send.try_send(filled(pool.try_alloc(1 << 20).unwrap(), 1 << 20, 0)).unwrap();
    drop(send);
    let fate = reap.wait(ticket, soon()).unwrap();
    assert!(matches!(fate, Fate::Released { accepted, .. } if accepted == 1 << 20), "{fate:?}");
    let returned = reap.next_returned().expect("handed back");
    assert_eq!(returned.ticket, ticket);
    assert_arrived(&peer.join().unwrap(), 1 << 20, 1);
    drop(returned);
    drop(reap);
    assert_all_free(&pool);
}

#[test]
fn the_reaper_ends_halves_dropped_in_either_order() {
    for send_first in [false, true] {
        let (near, mut far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(LEN, 8);
        let sender = Sender::builder().policy(Policy::Prefer).adopt(near).unwrap();
        let (mut send, reap) = sender.split();
        for seed in 0..8 {
            send.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
        }
        if send_first {
            drop(send);
            drop(reap);
        } else {
            drop(reap);
            drop(send);
        }
        assert!(pool.stats().in_flight() > 0, "the kernel may still read");
        far.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        assert_arrived(&got, LEN, 8);
        eventually("the reaper frees every slot", || pool.stats().free() == 8);
        assert_all_free(&pool);
    }
    assert!(pinbuf::reaper::wait_idle(within(60_000)), "{:?}", pinbuf::reaper::stats());
}

/// A peer that reads little at a time: the sender has to wait all the while.
fn slow_reader(mut far: std::net::TcpStream) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut got = Vec::new();
        while Read::by_ref(&mut far).take(16 << 10).read_to_end(&mut got).unwrap() > 0 {
            thread::sleep(Duration::from_micros(300));
        }
        got
    })
}

#[test]
fn reads_of_a_half_wake_the_waiting_half() {
    const LEN: usize = 32 << 10;
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let peer = slow_reader(far);
    let sender = Sender::builder().policy(Policy::Prefer).max_in_flight_sends(4).adopt(near);
    let (mut send, mut reap) = sender.unwrap().split();
    let calls = thread::scope(|scope| {
        scope.spawn(|| {
            while reap.stats().zero_copy_bytes < (100 * LEN) as u64 {
                let _ = reap.drain(within(100));
            }
        });
        calls::patiently(|| {
            for seed in 0..100 {
                send.send(pattern(LEN, seed)).unwrap();
            }
        })
    });
    assert!(calls.waits > 0 && calls.hangs == 0, "{calls:?}");
    drop((send, reap));
    assert_arrived(&peer.join().unwrap(), LEN, 100);
}

#[test]
fn dropping_the_reaping_half_keeps_the_stream_open() {
    let (near, far) = pair();
    let peer = reader(far, Duration::ZERO);
    let sender = Sender::builder().policy(Policy::Prefer).adopt(near).unwrap();
    let (mut send, reap) = sender.split();
    send.send(pattern(LEN, 0)).unwrap();
    drop(reap);
    send.send(pattern(LEN, 1)).unwrap();
    drop(send);
    assert_arrived(&peer.join().unwrap(), LEN, 2);
}
