//! Senders without an owner: one thread for all of them, started on demand, and a substitute for a
//! missing thread.

use std::{
    io::Read,
    net::TcpStream,
    task::{Context, Waker},
    time::Duration,
};

use pinbuf::{Policy, Sender, reaper::wait_idle};

use crate::common::{
    self, STALLED, assert_all_free, assert_arrived, eventually, filled, pair_at, pattern, pool,
    process::{alone, hoard_descriptors, reapers},
    road::wrong,
    take_error, within,
};

const LEN: usize = 64 << 10;

fn prefer(near: TcpStream) -> Sender<TcpStream> {
    Sender::builder().policy(Policy::Prefer).adopt(near).unwrap()
}

#[test]
fn the_reaper_starts_on_demand() {
    alone(|| {
        let (near, far) = common::pair();
        let peer = common::reader(far, Duration::ZERO);
        let pool = pool(LEN, 4);
        let mut sender = prefer(near);
        for seed in 0..100 {
            sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
            sender.drain(within(60_000)).unwrap();
        }
        assert!(sender.close(within(60_000)).drained);
        assert_arrived(&peer.join().unwrap(), LEN, 100);
        assert!(reapers().is_empty());
    });
}

/// The owner does nothing between the second send and its end.
#[test]
fn max_hold_counts_for_a_send_behind_a_released_send() {
    alone(|| {
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        // Long enough for the first send on a busy machine.
        let limit = Duration::from_secs(3);
        let builder = Sender::builder().policy(Policy::Prefer).threshold_bytes(4096);
        let mut sender = builder.max_hold(limit).adopt(near).unwrap();
        // The peer's socket takes the first send at once, and no more of the second.
        sender.send(pattern(4096, 0)).unwrap();
        sender.drain(within(10_000)).unwrap();
        eventually("the reaper watches no sender", || pinbuf::reaper::stats().watched == 0);
        sender.send(pattern(LEN, 1)).unwrap();
        eventually("the peer sees a reset", || take_error(&far) == libc::ECONNRESET);
    });
}

#[test]
fn a_sender_is_watched_only_during_a_wait() {
    alone(|| {
        let (near, _far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(LEN, 1);
        let mut sender = prefer(near);
        sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, 0)).unwrap();
        {
            let mut waiting = std::pin::pin!(pool.alloc_async(1));
            let mut cx = Context::from_waker(Waker::noop());
            assert!(waiting.as_mut().poll(&mut cx).is_pending());
            assert_eq!(pinbuf::reaper::stats().watched, 1);
        }
        eventually("the sender is watched no longer", || pinbuf::reaper::stats().watched == 0);
        assert_eq!(pinbuf::reaper::stats().ended, 0, "it has its owner");
        assert_eq!(pool.stats().in_flight(), 1);
        let _ = sender.abort();
    });
}

#[test]
fn an_abort_frees_a_stalled_peers_slots_at_once() {
    let (near, mut far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 12);
    let mut sender = prefer(near);
    for seed in 0..12 {
        let buf = filled(pool.try_alloc(LEN).unwrap(), LEN, seed);
        // Copies of them all do not fit: another program of this user may have the locked memory.
        sender.send_timeout(buf, Duration::from_secs(60)).unwrap();
    }
    assert!(pool.stats().in_flight() > 0, "{:?}", pool.stats());
    let report = sender.abort();
    assert_all_free(&pool);
    assert!(report.aborted && !report.drained && report.error.is_none(), "{report:?}");
    assert!(report.unacked_bytes.is_some_and(|bytes| bytes > LEN), "{report:?}");
    let scribbled: Vec<_> =
        (0..12).map(|_| filled(pool.try_alloc(LEN).unwrap(), LEN, 99)).collect();
    let mut got = Vec::new();
    let _ = far.read_to_end(&mut got);
    assert!(got.len() > 10_000 && got.len() < 12 * LEN, "{} bytes", got.len());
    assert_eq!(wrong(&got, LEN), (0, 0));
    drop(scribbled);
    assert_all_free(&pool);
}

#[test]
fn without_a_reaper_every_call_serves_dropped_senders() {
    alone(|| {
        let (near, mut far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(LEN, 8);
        let mut sender = prefer(near);
        for seed in 0..8 {
            sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
        }
        assert!(pool.stats().in_flight() > 0);
        // No descriptor is left for the reaper.
        let hoard = hoard_descriptors(0);
        drop(sender);
        assert_eq!(pinbuf::reaper::stats().unserved, 1);
        assert!(pool.stats().in_flight() > 0);
        far.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut got = vec![0; 8 * LEN];
        far.read_exact(&mut got).unwrap();
        assert_arrived(&got, LEN, 8);
        // To take all slots at once, the call must reap the sends in flight; no other thread does.
        let all: Vec<_> = (0..8).map(|_| pool.alloc(LEN).unwrap()).collect();
        drop(all);
        assert!(wait_idle(within(60_000)), "{:?}", pinbuf::reaper::stats());
        drop(hoard);
        assert!(reapers().is_empty());
        assert_all_free(&pool);
    });
}

/// The buffers of the dropped sender are of a pool that no call waits for.
#[test]
fn without_a_reaper_a_wait_for_any_pool_serves_dropped_senders() {
    alone(|| {
        let (near, mut far) = pair_at("127.0.0.1:0", STALLED);
        let (pool, other) = (pool(LEN, 8), pool(64, 1));
        let mut sender = prefer(near);
        for seed in 0..8 {
            sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
        }
        let hoard = hoard_descriptors(0);
        drop(sender);
        assert_eq!(pinbuf::reaper::stats().unserved, 1);
        let mut got = vec![0; 8 * LEN];
        let last = other.try_alloc(1).unwrap();
        let mut waiting = std::pin::pin!(other.alloc_async(1));
        let mut cx = Context::from_waker(Waker::noop());
        // What does not fit into the sockets is sent by the waits.
        far.set_nonblocking(true).unwrap();
        let mut read = 0;
        eventually("all arrives", || {
            assert!(waiting.as_mut().poll(&mut cx).is_pending());
            while let Ok(more @ 1..) = far.read(&mut got[read..]) {
                read += more;
            }
            read == got.len()
        });
        eventually("all slots are free", || {
            assert!(waiting.as_mut().poll(&mut cx).is_pending());
            pool.stats().free() == 8
        });
        assert_arrived(&got, LEN, 8);
        drop((last, hoard));
        assert!(wait_idle(within(60_000)), "{:?}", pinbuf::reaper::stats());
    });
}
