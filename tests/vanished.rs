//! A peer that is gone without a word: nothing is acknowledged any more, and no reset comes.

mod common;

use std::{
    io,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use common::{
    STALLED, after, again, assert_all_home, eventually, filled, lower_loopback, must_succeed,
    network_namespace, pair_at, plays, pool, raise_loopback, set_option, skip,
};
use pinbuf::{Fate, Policy, Pool, SendError, Sender, SenderBuilder};

const LEN: usize = 64 << 10;

/// Runs `body` in a network namespace of its own.
fn in_a_namespace(test: &str, body: impl FnOnce()) {
    if plays(test) {
        raise_loopback();
        return body();
    }
    let Some(way) = network_namespace() else {
        return skip(test, "no network namespace can be had");
    };
    must_succeed(again(way, test, test));
}

/// A sender with sends in flight to a peer that has just vanished; the peer's end is kept so that
/// no reset comes of it.
fn vanished(builder: SenderBuilder, pool: &Pool) -> (Sender<TcpStream>, TcpStream) {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = builder.policy(Policy::Prefer).adopt(near).unwrap();
    for seed in 0..4 {
        sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
    }
    lower_loopback();
    assert!(pool.stats().in_flight() > 0, "{:?}", pool.stats());
    (sender, far)
}

#[test]
fn the_users_time_out_ends_the_connection_and_brings_every_slot_back() {
    in_a_namespace("the_users_time_out_ends_the_connection_and_brings_every_slot_back", || {
        let pool = pool(LEN, 8);
        let (mut sender, _far) = vanished(Sender::builder(), &pool);
        set_option(sender.get_ref(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &500_i32);
        sender.drain(Some(after(30_000))).unwrap();
        assert_all_home(&pool);
        let refused = sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, 9));
        assert!(matches!(refused, Err(SendError::Connection { .. })), "{refused:?}");
        let report = sender.close(after(10_000));
        assert!(!report.drained && report.error.is_some(), "{report:?}");
    });
}

#[test]
fn a_limit_on_the_hold_ends_the_connection_though_nobody_drives() {
    in_a_namespace("a_limit_on_the_hold_ends_the_connection_though_nobody_drives", || {
        let pool = pool(LEN, 8);
        let limit = Duration::from_millis(400);
        let begun = Instant::now();
        let (mut sender, _far) = vanished(Sender::builder().max_hold(limit), &pool);
        eventually("the reaper brings every slot home", || pool.stats().free() == 8);
        let took = begun.elapsed();
        assert!(took >= limit, "{took:?}");
        let error = io::Error::from(sender.connection_error().expect("it is over"));
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let refused = sender.try_send(&b"more"[..]);
        assert!(matches!(refused, Err(SendError::Connection { .. })), "{refused:?}");
        assert_all_home(&pool);
    });
}

#[test]
fn an_abort_and_a_drop_with_little_patience_bring_every_slot_back() {
    in_a_namespace("an_abort_and_a_drop_with_little_patience_bring_every_slot_back", || {
        for abort in [true, false] {
            raise_loopback();
            let pool = pool(LEN, 8);
            let builder = Sender::builder().linger(Duration::from_millis(100));
            let (sender, _far) = vanished(builder, &pool);
            assert!(sender.oldest_in_flight().is_some());
            if abort {
                let report = sender.abort();
                assert!(report.aborted && report.unacked_bytes > Some(0), "{report:?}");
            } else {
                drop(sender);
            }
            assert!(pinbuf::wait_idle(after(20_000)), "{:?}", pinbuf::reaper_stats());
            assert_all_home(&pool);
        }
    });
}

#[test]
fn a_reset_peer_releases_everything_and_every_fate_is_known() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 8);
    let mut sender = Sender::builder().policy(Policy::Prefer).adopt(near).unwrap();
    let tickets: Vec<_> = (0..4)
        .map(|seed| sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap())
        .collect();
    common::reset(far);
    thread::sleep(Duration::from_millis(10));
    sender.drain(Some(after(20_000))).unwrap();
    for ticket in tickets {
        assert!(matches!(sender.fate(ticket), Some(Fate::Released { accepted: LEN, .. })));
    }
    assert_all_home(&pool);
}
