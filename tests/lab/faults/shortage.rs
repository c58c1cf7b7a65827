//! Shortages of descriptors, threads and huge pages.

use std::{
    io::Read,
    net::TcpStream,
    sync::mpsc,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use pinbuf::{
    BuildError, Pool, Sender,
    pool::{Backing, Pages, Refusal},
    reaper::wait_idle,
};

use crate::{
    calls,
    common::{
        STALLED, TIGHT, assert_all_free, assert_arrived, assert_same, become_ordinary, eventually,
        filled, pair_at, pattern, pool,
        process::{alone, hoard_descriptors, limit, reapers, set_limit, the_reaper},
        reader,
        reserve::Reserve,
        skip, soon, test_of, times_since, within, zero_copy,
    },
};

const LEN: usize = 64 << 10;
const COUNT: usize = 8;

/// A sender with all of a pool in flight, to a peer that reads nothing yet.
fn loaded() -> (Sender<TcpStream>, TcpStream, Pool) {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, COUNT);
    let mut sender = zero_copy().adopt(near).unwrap();
    for seed in 0..COUNT {
        sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
    }
    assert!(pool.stats().in_flight() > 0);
    (sender, far, pool)
}

fn read_all(far: &mut TcpStream) {
    far.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut got = vec![0; COUNT * LEN];
    far.read_exact(&mut got).unwrap();
    assert_arrived(&got, LEN, COUNT);
}

#[test]
fn a_late_reaper_serves_senders_dropped_before() {
    alone(|| {
        let (sender, mut far, pool) = loaded();
        let (late, mut late_far, late_pool) = loaded();
        let hoard = hoard_descriptors(0);
        drop(sender);
        assert_eq!(pinbuf::reaper::stats().unserved, 1);
        drop(hoard);
        assert!(reapers().is_empty());
        read_all(&mut far);
        // This sender starts a reaper; nothing else drives the first sender.
        drop(late);
        the_reaper();
        eventually("the first sender is served too", || pool.stats().free() == COUNT);
        read_all(&mut late_far);
        eventually("both senders are over", || pinbuf::reaper::stats().owned == 0);
        assert_eq!(pinbuf::reaper::stats().unserved, 0);
        assert_all_free(&late_pool);
    });
}

/// Without edges a wait goes by levels. If the wait were an error, `EMFILE` would truncate the
/// send.
#[test]
fn sends_and_waits_need_no_descriptor() {
    alone(|| {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let mut sender = zero_copy().adopt(near).unwrap();
        let peer = reader(far, Duration::from_millis(100));
        let hoard = hoard_descriptors(0);
        let data = pattern(1 << 20, 1);
        let ticket = sender.send(data.clone()).unwrap();
        assert!(sender.wait(ticket, soon()).unwrap().is_released());
        sender.drain(soon()).unwrap();
        assert!(sender.close(soon()).drained);
        drop(hoard);
        assert_same(&peer.join().unwrap(), &data);
    });
}

#[test]
fn without_threads_a_waiter_drives_its_senders_and_sleeps() {
    alone(|| {
        let name = test_of(&|| ());
        let (mut sender, mut far, pool) = loaded();
        let (dropped, mut dropped_far, dropped_pool) = loaded();
        // Before the limit: a peer that reads after some looks of the waiting thread.
        let (begin, begun) = mpsc::channel();
        let peer = thread::spawn(move || {
            let before: usize = begun.recv().unwrap();
            eventually("the waiter looks", || calls::of_all().looks > before + 20);
            let mut got = Vec::new();
            far.read_to_end(&mut got).unwrap();
            got
        });
        // Root may have any number of threads.
        let _ = become_ordinary();
        let before = limit(libc::RLIMIT_NPROC).0;
        assert!(set_limit(libc::RLIMIT_NPROC, 0));
        if thread::Builder::new().spawn(|| ()).is_ok() {
            return skip(name, "this user may have any number of threads");
        }
        let ticket = sender.try_send(&b"and some more"[..]).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        match sender.poll_fate(&mut cx, ticket) {
            Poll::Ready(Err(error)) => assert!(error.to_string().contains("RLIMIT_NPROC")),
            other => assert!(other.is_ready(), "{other:?}"),
        }
        drop(dropped);
        assert_eq!(pinbuf::reaper::stats().unserved, 1);
        let begun = Instant::now();
        begin.send(calls::of_all().looks).unwrap();
        let calls = calls::during(|| drop(pool.alloc(LEN).unwrap()));
        // Twice every five milliseconds at two senders.
        let most = 4 * times_since(begun, Duration::from_millis(5));
        assert!(calls.looks <= most && calls.waits <= most, "{calls:?}, at most {most}");
        read_all(&mut dropped_far);
        assert!(wait_idle(within(60_000)), "{:?}", pinbuf::reaper::stats());
        assert_all_free(&dropped_pool);
        assert!(sender.close(soon()).drained);
        let got = peer.join().unwrap();
        assert_arrived(&got[..COUNT * LEN], LEN, COUNT);
        assert_all_free(&pool);
        assert!(set_limit(libc::RLIMIT_NPROC, before));
        let (sender, mut far, pool) = loaded();
        drop(sender);
        assert_eq!((pinbuf::reaper::stats().unserved, pinbuf::reaper::stats().owned), (0, 1));
        read_all(&mut far);
        eventually("a thread serves the sender", || pool.stats().free() == COUNT);
    });
}

#[test]
fn an_exhausted_reserve_causes_errors_and_loses_no_page() {
    let name = test_of(&|| ());
    let pages = Pages::HugeTlb { page_bytes: Reserve::PAGE };
    let _reserve = match Reserve::add(5) {
        Ok(reserve) => reserve,
        Err(error) => return skip(name, &error),
    };
    let free = Reserve::free();
    let slots = Reserve::PAGE / LEN;
    let build =
        |pages: usize, backing| Pool::builder().class(LEN, pages * slots).backing(backing).build();
    // More pages than the reserve has, from several threads at once, until none is left.
    let pools: Vec<_> = thread::scope(|scope| {
        let building =
            (0..free / 2 + 2).map(|_| scope.spawn(|| build(2, Backing::Prefer(pages)).unwrap()));
        let building: Vec<_> = building.collect();
        building.into_iter().map(|pool| pool.join().unwrap()).collect()
    });
    let (huge, other): (Vec<_>, Vec<_>) =
        pools.iter().partition(|pool| pool.region().pages == pages);
    assert_eq!(huge.len(), free / 2);
    assert!(!other.is_empty(), "the reserve had room for all");
    for pool in &other {
        let refused = &pool.region().refused;
        let [(kind, Refusal::Os(error)), ..] = refused[..] else { panic!("{refused:?}") };
        assert_eq!((kind, error.raw()), (pages, libc::ENOMEM));
    }
    let refused = build(2, Backing::Require(pages)).unwrap_err();
    let BuildError::Unavailable { refusal: Refusal::Os(error), .. } = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(error.raw(), libc::ENOMEM);
    assert_eq!(Reserve::free(), free - 2 * huge.len());
    // All pools work, on any pages.
    for pool in &pools {
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let mut sender = zero_copy().adopt(near).unwrap();
        let peer = reader(far, Duration::from_millis(20));
        for seed in 0..40 {
            sender.send(filled(pool.alloc(LEN).unwrap(), LEN, seed)).unwrap();
        }
        assert!(sender.close(soon()).drained);
        assert_arrived(&peer.join().unwrap(), LEN, 40);
        assert_all_free(pool);
    }
    drop(pools);
    assert_eq!(Reserve::free(), free);
}
