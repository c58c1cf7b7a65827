//! A shortage of locked memory and of option memory: sends are copied, without any other change.
//!
//! The limits belong to a process or to a network namespace, so each test runs in a child process.

use std::{fs, io::Read, net::TcpStream, os::fd::AsFd, process::Command, thread, time::Duration};

use pinbuf::{Fate, SendError, Sender, sender::SenderStats};

use crate::{
    calls,
    common::{
        self, STALLED, TIGHT, again, assert_all_free, assert_arrived, become_ordinary,
        enable_zerocopy, eventually, filled, limit_memlock, must_succeed, network_namespace,
        pair_at, pattern, plays, pool, raise_loopback, reader, send_static, skip, soon, test_of,
        turn, wait_until_all_free,
    },
};

/// Sends `count` messages of `len` bytes, to a peer that starts to read when the socket is full or
/// the pool is empty.
fn messages_arrive(
    mut sender: Sender<TcpStream>,
    far: TcpStream,
    len: usize,
    count: usize,
) -> SenderStats {
    let pool = pool(len, 48);
    let mut tickets = Vec::new();
    let mut refused = None;
    while refused.is_none()
        && tickets.len() < count
        && let Ok(buf) = pool.try_alloc(len)
    {
        match sender.try_send(filled(buf, len, tickets.len())) {
            Ok(ticket) => tickets.push(ticket),
            Err(SendError::WouldBlock(buf)) => refused = Some(buf),
            Err(error) => panic!("{error}"),
        }
    }
    let peer = reader(far, Duration::ZERO);
    while tickets.len() < count {
        let fill = || filled(pool.alloc(len).unwrap(), len, tickets.len());
        let buf = refused.take().unwrap_or_else(fill);
        tickets.push(sender.send(buf).unwrap());
    }
    for ticket in tickets {
        let fate = sender.wait(ticket, soon()).unwrap();
        assert!(matches!(fate, Fate::Released { accepted, .. } if accepted == len), "{fate:?}");
    }
    wait_until_all_free(&pool);
    let stats = sender.stats();
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), len, count);
    assert_eq!((stats.in_flight_calls, stats.in_flight_bytes, stats.leases), (0, 0, 0));
    let bytes = stats.zero_copy_bytes + stats.copied_bytes;
    assert_eq!(bytes, (len * count) as u64, "{stats:?}");
    stats
}

/// Sends to a slow peer. The sender must wait for the peer and must not spin.
fn sustained(mut sender: Sender<TcpStream>, mut far: TcpStream) -> SenderStats {
    const LEN: usize = 128 << 10;
    const COUNT: usize = 100;
    let pool = pool(LEN, 6);
    let before = calls::of_all();
    let peer = thread::spawn(move || {
        eventually("the pool is empty", || calls::of_all().waits > before.waits);
        let mut got = vec![0; LEN * COUNT];
        for part in got.chunks_mut(LEN) {
            thread::sleep(Duration::from_millis(15));
            far.read_exact(part).unwrap();
        }
        got
    });
    for seed in 0..COUNT {
        sender.send(filled(pool.alloc(LEN).unwrap(), LEN, seed)).unwrap();
    }
    sender.drain(soon()).unwrap();
    let calls = calls::of_all() - before;
    // About three calls for each message. A loop makes a hundred thousand during the peer's pauses.
    assert!(calls.all() < 20 * COUNT, "{calls:?}");
    assert_arrived(&peer.join().unwrap(), LEN, COUNT);
    assert_all_free(&pool);
    sender.stats()
}

fn in_a_process(test: &str, part: &str) {
    run_in_turn(again(&[], test, part));
}

/// The processes of an ordinary user share the limit, so only one runs at a time.
fn run_in_turn(test: Command) {
    let _turn = turn();
    must_succeed(test);
}

#[test]
fn sends_are_copied_after_a_lower_memlock_limit() {
    let name = test_of(&|| ());
    if !plays("lowered") {
        return in_a_process(name, "lowered");
    }
    let _ = become_ordinary();
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let sender = common::zero_copy().adopt(near).unwrap();
    assert!(limit_memlock(64 << 10) || limit_memlock(0));
    let stats = messages_arrive(sender, far, 32 << 10, 200);
    assert!(stats.no_bufs_memlock > 0, "{stats:?}");
    assert!(stats.copied_calls > 0, "{stats:?}");
    assert_eq!(stats.no_bufs_optmem, 0, "{stats:?}");
}

#[test]
fn load_with_little_locked_memory_does_not_spin() {
    let name = test_of(&|| ());
    if !plays("sustained") {
        return in_a_process(name, "sustained");
    }
    let _ = become_ordinary();
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    // Unknown to the sender, so that it meets the limit repeatedly.
    let sender = common::zero_copy().adopt(near).unwrap();
    assert!(limit_memlock(256 << 10) || limit_memlock(0));
    let stats = sustained(sender, far);
    assert!(stats.no_bufs_memlock > 0 && stats.no_bufs_optmem == 0, "{stats:?}");
}

#[test]
fn sends_are_copied_while_another_process_takes_all_memlock() {
    let name = test_of(&|| ());
    static MEMORY: [u8; 16 << 10] = [1; 16 << 10];
    if !plays("hog") {
        return in_a_process(name, "hog");
    }
    let _ = become_ordinary();
    if !limit_memlock(512 << 10) {
        return skip(name, "RLIMIT_MEMLOCK is below 512 KiB");
    }
    // A second process would have the same effect: the kernel counts by user.
    let (hog, hogs_peer) = pair_at("127.0.0.1:0", STALLED);
    enable_zerocopy(&hog);
    let take_all = |len: usize| {
        let sends = std::iter::repeat_with(|| send_static(hog.as_fd(), &MEMORY[..len])).take(1000);
        let taken = sends.take_while(Result::is_ok).count();
        let error = std::io::Error::last_os_error().raw_os_error();
        assert_eq!(error, Some(libc::ENOBUFS), "a limit of 512 KiB");
        taken
    };
    // With a delay, the first packets are acknowledged only later. The remaining bytes, less than a
    // message, go too.
    while take_all(MEMORY.len()) + take_all(1) > 0 {
        thread::sleep(Duration::from_millis(50));
    }
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let stats = messages_arrive(common::zero_copy().adopt(near).unwrap(), far, 32 << 10, 100);
    assert!(stats.no_bufs_memlock > 0, "{stats:?}");
    assert_eq!(stats.zero_copy_calls, 0, "{stats:?}");
    drop(hogs_peer);
}

#[test]
fn a_small_memlock_limit_loses_no_byte_and_few_calls() {
    let name = test_of(&|| ());
    let limits = [0, 8 << 10, 64 << 10, 256 << 10];
    let Some(bytes) = limits.into_iter().find(|bytes| plays(&format!("small {bytes}"))) else {
        for bytes in limits {
            in_a_process(name, &format!("small {bytes}"));
        }
        return;
    };
    let alone = become_ordinary();
    if !limit_memlock(bytes) {
        return skip(name, &format!("RLIMIT_MEMLOCK is below {bytes} bytes"));
    }
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let stats = messages_arrive(common::zero_copy().adopt(near).unwrap(), far, 128 << 10, 60);
    let calls = stats.zero_copy_calls + stats.copied_calls;
    // No call need be smaller than 16 KiB, except calls truncated by a full socket.
    assert!(calls < 60 * 8 * 2, "{calls} calls for 60 messages of 128 KiB: {stats:?}");
    if alone {
        assert_eq!(stats.no_bufs_memlock, 0, "kept below the limit: {stats:?}");
    }
}

#[test]
fn a_large_buffer_in_parts_stays_within_the_budget() {
    let name = test_of(&|| ());
    if !plays("parts") {
        return in_a_process(name, "parts");
    }
    let alone = become_ordinary();
    if !limit_memlock(8 << 20) {
        return skip(name, "RLIMIT_MEMLOCK is below 8 MiB");
    }
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let peer = reader(far, Duration::from_millis(100));
    let data = pattern(16 << 20, 1);
    let ticket = sender.send(data.clone()).unwrap();
    let fate = sender.wait(ticket, soon()).unwrap();
    assert!(matches!(fate, Fate::Released { .. }), "{fate:?}");
    let stats = sender.stats();
    assert!(sender.close(soon()).drained);
    common::assert_same(&peer.join().unwrap(), &data);
    assert!(!alone || stats.copied_bytes < 1 << 20, "the budget never ran out: {stats:?}");
}

const OPTMEM: &str = "/proc/sys/net/core/optmem_max";

/// Runs this test again in a network namespace with this much option memory.
fn with_optmem(test: &str, bytes: u32) -> bool {
    if plays("optmem") {
        raise_loopback();
        return true;
    }
    let Some(way) = network_namespace() else {
        skip(test, "this user may not make a network namespace");
        return false;
    };
    let there = Command::new(way[0]).args(&way[1..]).args(["test", "-e", OPTMEM]).status();
    if !there.is_ok_and(|there| there.success()) {
        skip(test, "this kernel has one net.core.optmem_max for all network namespaces");
        return false;
    }
    let script = format!("echo {bytes} > {OPTMEM} && exec \"$0\" \"$@\"");
    let through: Vec<_> = way.iter().copied().chain(["sh", "-c", &script]).collect();
    run_in_turn(again(&through, test, "optmem"));
    false
}

#[test]
fn little_option_memory_makes_some_sends_copy() {
    if !with_optmem(test_of(&|| ()), 1024) {
        return;
    }
    let setting = fs::read_to_string(OPTMEM).unwrap();
    assert_eq!(setting.trim(), "1024", "room for one notification");
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let stats = messages_arrive(common::zero_copy().adopt(near).unwrap(), far, 256 << 10, 100);
    assert!(stats.no_bufs_optmem > 0, "{stats:?}");
    assert!(stats.zero_copy_calls > 0 && stats.copied_calls > 0, "{stats:?}");
}

#[test]
fn load_with_little_option_memory_does_not_spin() {
    if !with_optmem(test_of(&|| ()), 900) {
        return;
    }
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let stats = sustained(common::zero_copy().adopt(near).unwrap(), far);
    assert!(stats.zero_copy_calls > 0, "{stats:?}");
    assert!(stats.no_bufs_optmem > 0 && stats.no_bufs_memlock == 0, "{stats:?}");
}

#[test]
fn all_sends_are_copied_without_option_memory() {
    if !with_optmem(test_of(&|| ()), 500) {
        return;
    }
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let stats = messages_arrive(common::zero_copy().adopt(near).unwrap(), far, 64 << 10, 60);
    assert_eq!(stats.zero_copy_calls, 0, "{stats:?}");
    assert!(stats.no_bufs_optmem > 0, "{stats:?}");
}

#[test]
fn a_sender_reads_before_its_option_memory_is_full() {
    if !with_optmem(test_of(&|| ()), 20_480) {
        return;
    }
    // Every second send is copied: no two notifications merge, each holds its 832 bytes until its
    // read, and 24 would fill the option memory.
    let (near, far) = common::pair();
    let peer = reader(far, Duration::ZERO);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    for seed in 0..2000 {
        sender.send(pattern(if seed % 2 == 0 { 16 << 10 } else { 100 }, seed)).unwrap();
    }
    sender.drain(soon()).unwrap();
    let stats = sender.stats();
    assert!(stats.zero_copy_calls > 900, "{stats:?}");
    assert!(sender.close(soon()).drained);
    assert_eq!(peer.join().unwrap().len(), 1000 * ((16 << 10) + 100));
}
