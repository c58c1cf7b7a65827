//! System-call filters. Adoption tries the indispensable calls, and a later refusal frees no buffer
//! early and makes no wait hang.
//!
//! A filter is irrevocable, so every test runs in child processes.

#![cfg(target_os = "linux")]

use std::{
    future::poll_fn,
    io::Read,
    net::{TcpStream, UdpSocket},
    sync::Arc,
    task::{Context, Waker},
    thread,
    time::Duration,
};

use pinbuf::{
    AdoptError, AllocError, Fate, Payload, Policy, Pool, SendError, Sender, WaitError,
    error::OsError,
    reaper::wait_idle,
    sender::{CopyReason, Poison, Reaped},
};

use crate::{
    allow_list::{calls_in, rows},
    calls,
    common::{
        self, STALLED, TIGHT, again, assert_all_free, assert_arrived, assert_same, block_on,
        census, duplicate, eventually, filled,
        filter::{Call, any, refuse},
        must_succeed, pair_at, pattern, plays, pool, reader, skip, soon, test_of, unacked, within,
    },
};

const LEN: usize = 64 << 10;

const READ: Call = (libc::SYS_recvmmsg, None);
const OPTION_MEMORY: Call = (libc::SYS_getsockopt, Some((2, libc::SO_MEMINFO as u32)));

/// Runs the calling test, with `body` as its closure, in a child process for each error number.
fn for_each_errno<F: Fn(i32)>(body: F) {
    let test = test_of(&body);
    let errnos = [libc::EPERM, libc::ENOSYS];
    match errnos.iter().find(|errno| plays(&errno.to_string())) {
        Some(errno) => body(*errno),
        None => {
            errnos.iter().for_each(|errno| must_succeed(again(&[], test, &errno.to_string())));
        }
    }
}

/// Returns `false`, with a report, where filters are unavailable.
fn refused(test: &str, calls: &[Call], errno: i32) -> bool {
    let refused = refuse(calls, errno);
    if let Err(error) = &refused {
        skip(test, &format!("no system-call filter is possible: {error}"));
    }
    refused.is_ok()
}

/// Sends `count` messages from one slot of a pool, and ends in order.
fn assert_copies(mut sender: Sender<TcpStream>, far: TcpStream, count: usize) {
    let pool = pool(LEN, 1);
    let peer = reader(far, Duration::ZERO);
    for seed in 0..count {
        let ticket = sender.send(filled(pool.alloc(LEN).unwrap(), LEN, seed)).unwrap();
        let fate = Fate::Released { accepted: LEN, copied: Some(true) };
        assert_eq!(sender.wait(ticket, soon()), Ok(fate));
        assert_eq!(sender.reap().unwrap().messages, 0);
    }
    assert!(!sender.reap().unwrap().unsent);
    assert_eq!(sender.drain(soon()), Ok(()));
    assert_eq!(sender.stats().zero_copy_calls, 0);
    assert!(sender.close(soon()).drained);
    assert_all_free(&pool);
    assert_arrived(&peer.join().unwrap(), LEN, count);
}

fn is_refused_at_adoption(test: &str, call: Call, errno: i32) {
    if !refused(test, &[call], errno) {
        return;
    }
    let unprovable = CopyReason::Unprovable(OsError::from_raw(errno));
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let near = match Sender::builder().policy(Policy::Require).adopt(near) {
        Err(AdoptError::ZeroCopyUnavailable { reason, socket }) if reason == unprovable => socket,
        other => panic!("{other:?}"),
    };
    let sender = Sender::builder().adopt(near).unwrap();
    assert_eq!(sender.capabilities().reason, Some(unprovable));
    assert!(!sender.capabilities().supported);
    // The sender can also be taken apart and made again.
    let (near, ids) = sender.into_parts().unwrap();
    let sender = common::zero_copy().resume(ids).adopt(near).unwrap();
    assert_eq!(sender.capabilities().reason, Some(unprovable));
    assert_copies(sender, far, 40);

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(socket.local_addr().unwrap()).unwrap();
    let mut sender = Sender::builder().adopt(socket).unwrap();
    assert_eq!(sender.capabilities().reason, Some(unprovable));
    sender.send(pattern(20_000, 1)).unwrap();
    let mut got = vec![0; LEN];
    let received = sender.get_ref().recv(&mut got).unwrap();
    assert_same(&got[..received], &pattern(20_000, 1));

    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let mut sender = Sender::builder().adopt(near).unwrap();
    let peer = reader(far, Duration::ZERO);
    sender.send(pattern(1 << 20, 1)).unwrap();
    drop(sender);
    assert!(wait_idle(soon()));
    assert_same(&peer.join().unwrap(), &pattern(1 << 20, 1));
}

#[test]
fn a_sender_that_cannot_read_its_error_queue_copies() {
    for_each_errno(|errno| {
        is_refused_at_adoption(test_of(&|| ()), READ, errno);
    });
}

#[test]
fn a_sender_that_cannot_read_its_option_memory_copies() {
    for_each_errno(|errno| {
        let name = test_of(&|| ());
        is_refused_at_adoption(name, OPTION_MEMORY, errno);
    });
}

/// Asserts that every wait fails at once, and that `held` leases are left.
fn assert_quarantined(sender: &mut Sender<TcpStream>, held: usize) {
    assert_eq!(sender.drain(None), Err(WaitError::Poisoned));
    assert_eq!(sender.capabilities().reason, Some(CopyReason::Poisoned(Poison::Unread)));
    assert_eq!(sender.stats().leases, held);
    assert!(!sender.interest().released, "there is no release to wait for");
}

#[test]
fn a_refused_read_quarantines_sends_in_flight() {
    for_each_errno(|errno| {
        let name = test_of(&|| ());
        let (near, mut far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(LEN, 2);
        let mut sender = common::zero_copy().adopt(near).unwrap();
        let send = |seed| sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
        let tickets = [0, 1].map(send);
        assert_eq!(census(&pool), [0, 0, 2, 0]);
        if !refused(name, &[READ], errno) {
            return;
        }
        for ticket in tickets {
            assert_eq!(sender.wait(ticket, None), Err(WaitError::Poisoned));
            assert_eq!(sender.fate(ticket), Ok(Some(Fate::Quarantined)));
        }
        assert_quarantined(&mut sender, 2);
        assert_eq!(sender.reap().unwrap_err().raw_os_error(), Some(errno), "a loop does not spin");
        assert_eq!(pool.alloc(LEN).unwrap_err(), AllocError::Exhausted, "not waited for");
        // The stream continues by copy. In the end the kernel has released all sends, but the
        // library cannot know.
        let peer = thread::spawn(move || {
            let mut got = vec![0; 3 * LEN];
            far.read_exact(&mut got).unwrap();
            (got, far)
        });
        let ticket = sender.send(pattern(LEN, 2)).unwrap();
        let fate = Fate::Released { accepted: LEN, copied: Some(true) };
        assert_eq!(sender.wait(ticket, soon()), Ok(fate));
        let (got, _far) = peer.join().unwrap();
        assert_arrived(&got, LEN, 3);
        eventually("all bytes are acknowledged", || unacked(&sender) == 0);
        assert_quarantined(&mut sender, 2);
        assert_eq!(census(&pool), [0, 0, 0, 2]);
        let report = sender.close(within(20));
        assert!(!report.drained, "{report:?}");
        assert_eq!(report.quarantined, 2);
        assert!(!wait_idle(within(20)), "the descriptor stays for a proof");
    });
}

#[test]
fn waits_end_when_reading_is_refused_meanwhile() {
    for_each_errno(|errno| {
        if !refused(test_of(&|| ()), &[], errno) {
            return;
        }
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(LEN, 2);
        let builder = common::zero_copy().max_in_flight_sends(2);
        let (mut sending, mut reaping) = builder.adopt(near).unwrap().split();
        let mut send =
            |seed| sending.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
        let tickets = [0, 1].map(&mut send);
        let for_a_slot = thread::spawn({
            let pool = pool.clone();
            move || pool.alloc(LEN).map(drop)
        });
        let for_the_window = thread::spawn(move || {
            sending.send(pattern(LEN, 2)).unwrap();
            sending
        });
        let mut cx = Context::from_waker(Waker::noop());
        assert!(reaping.poll_fate(&mut cx, tickets[1]).is_pending());
        let for_a_fate = thread::spawn(move || {
            let (fate, _) = block_on(poll_fn(|cx| reaping.poll_fate(cx, tickets[1])));
            (fate, reaping.wait(tickets[0], None), reaping)
        });
        // The pause lets the waits begin first, but either order must work.
        thread::sleep(Duration::from_millis(100));
        refuse(&[READ], errno).unwrap();
        let (fate, waited, reaping) = for_a_fate.join().unwrap();
        assert_eq!((fate, waited), (Ok(Fate::Quarantined), Err(WaitError::Poisoned)));
        assert_eq!(for_a_slot.join().unwrap(), Err(AllocError::Exhausted));
        assert_eq!(census(&pool), [0, 0, 0, 2]);
        let peer = reader(far, Duration::ZERO);
        let sending = for_the_window.join().unwrap();
        drop(sending);
        assert_arrived(&peer.join().unwrap(), LEN, 3);
        assert_eq!(reaping.stats().leases, 2);
    });
}

#[test]
fn a_sender_with_nothing_in_flight_copies_when_reading_is_refused() {
    for_each_errno(|errno| {
        let name = test_of(&|| ());
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let mut sender = common::zero_copy().adopt(near).unwrap();
        let mut first = TcpStream::from(duplicate(&far));
        sender.send(pattern(20_000, 0)).unwrap();
        first.read_exact(&mut [0; 20_000]).unwrap();
        sender.drain(soon()).unwrap();
        if !refused(name, &[READ], errno) {
            return;
        }
        assert_eq!(sender.reap().unwrap(), Reaped::default());
        let unprovable = CopyReason::Unprovable(OsError::from_raw(errno));
        assert_eq!(sender.capabilities().reason, Some(unprovable));
        let (near, ids) = sender.into_parts().unwrap();
        let sender = common::zero_copy().resume(ids).adopt(near).unwrap();
        assert_copies(sender, far, 40);
    });
}

/// Waits in every way for messages in flight from a pool of one slot.
fn assert_waits(mut sender: Sender<TcpStream>, far: TcpStream, pool: &Pool, errno: i32) {
    const COUNT: usize = 20;
    let peer = reader(far, Duration::ZERO);
    for seed in 0..COUNT {
        let ticket = sender.send(filled(pool.alloc(LEN).unwrap(), LEN, seed)).unwrap();
        match seed % 3 {
            0 => assert!(matches!(sender.wait(ticket, soon()), Ok(Fate::Released { .. }))),
            1 => {
                let (fate, _) = block_on(poll_fn(|cx| sender.poll_fate(cx, ticket)));
                assert!(matches!(fate, Ok(Fate::Released { .. }) | Err(WaitError::NoThread)));
            }
            _ => drop(block_on(pool.alloc_async(LEN)).0.unwrap()),
        }
    }
    assert!(sender.stats().zero_copy_calls > 0 && sender.stats().copied_calls == 0, "{errno}");
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, COUNT);
    assert_all_free(pool);

    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let peer = reader(far, Duration::ZERO);
    sender.send(filled(pool.alloc(LEN).unwrap(), LEN, 0)).unwrap();
    drop(sender);
    drop(pool.alloc(LEN).unwrap());
    assert!(wait_idle(soon()));
    assert_arrived(&peer.join().unwrap(), LEN, 1);
}

/// Runs the calling test in a child process for each group of calls behind waits.
fn for_each_way_to_wait<F: Fn(&[Call])>(body: F) {
    let test = test_of(&body);
    // Only wake-ups write 8 bytes here.
    let wake_up = (libc::SYS_write, Some((2, 8)));
    let ways: [&[Call]; 6] = [
        &[any(libc::SYS_epoll_create1)],
        &[any(libc::SYS_eventfd2)],
        &[any(libc::SYS_epoll_ctl)],
        &[
            #[cfg(target_arch = "x86_64")]
            any(libc::SYS_epoll_wait),
            any(libc::SYS_epoll_pwait),
        ],
        &[wake_up],
        &[wake_up, any(libc::SYS_epoll_ctl)],
    ];
    match (0..ways.len()).find(|way| plays(&way.to_string())) {
        Some(way) => body(ways[way]),
        None => {
            (0..ways.len()).for_each(|way| must_succeed(again(&[], test, &way.to_string())));
        }
    }
}

#[test]
fn waits_work_without_the_refused_calls() {
    for_each_way_to_wait(|calls| {
        if !refused(test_of(&|| ()), calls, libc::EPERM) {
            return;
        }
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let sender = common::zero_copy().adopt(near).unwrap();
        assert_waits(sender, far, &pool(LEN, 1), libc::EPERM);
    });
}

#[test]
fn waits_work_without_the_later_refused_calls() {
    for_each_way_to_wait(|calls| {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let mut sender = common::zero_copy().adopt(near).unwrap();
        let pool = pool(LEN, 1);
        let ticket = sender.send(filled(pool.alloc(LEN).unwrap(), 1 << 14, 0)).unwrap();
        assert!(sender.wait(ticket, soon()).unwrap().is_released());
        far.try_clone().unwrap().read_exact(&mut [0; 1 << 14]).unwrap();
        let other = pair_at("127.0.0.1:0", STALLED);
        let mut watched = common::zero_copy().adopt(other.0).unwrap();
        let ticket = watched.send(filled(pool.alloc(LEN).unwrap(), LEN, 0)).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(watched.poll_fate(&mut cx, ticket).is_pending(), "the reaper runs");
        assert_eq!(watched.wait(ticket, within(1)), Err(WaitError::TimedOut));
        if !refused(test_of(&|| ()), calls, libc::EPERM) {
            return;
        }
        let peer = reader(other.1, Duration::ZERO);
        let fate = watched.wait(ticket, soon());
        assert!(matches!(fate, Ok(Fate::Released { .. })), "{fate:?}");
        assert!(watched.close(soon()).drained);
        peer.join().unwrap();
        assert_waits(sender, far, &pool, libc::EPERM);
    });
}

#[test]
fn notifications_release_without_the_option_memory() {
    for_each_errno(|errno| {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let sender = common::zero_copy().adopt(near).unwrap();
        let name = test_of(&|| ());
        if refused(name, &[OPTION_MEMORY], errno) {
            assert_waits(sender, far, &pool(LEN, 1), errno);
        }
    });
}

#[test]
fn an_end_works_without_the_unacknowledged_bytes() {
    for_each_errno(|errno| {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let sender = common::zero_copy().adopt(near).unwrap();
        let (stuck, _stuck_far) = pair_at("127.0.0.1:0", STALLED);
        let linger = Duration::from_millis(100);
        let mut stuck = common::zero_copy().linger(linger).adopt(stuck).unwrap();
        let name = test_of(&|| ());
        let ioctl = (libc::SYS_ioctl, Some((1, libc::TIOCOUTQ as u32)));
        if refused(name, &[ioctl], errno) {
            let pool = pool(LEN, 1);
            stuck.send(filled(pool.alloc(LEN).unwrap(), LEN, 1)).unwrap();
            drop(stuck);
            assert!(wait_idle(soon()), "the connection is aborted, and all slots are free");
            assert_all_free(&pool);
            assert_waits(sender, far, &pool, errno);
        }
    });
}

/// The calls in a row of the page about system calls.
fn calls_of(row: &str) -> Vec<Call> {
    let option = |number, name| vec![(number, Some((2, name as u32)))];
    match row {
        "`getsockopt` of `SO_MEMINFO`" => vec![OPTION_MEMORY],
        "`getsockopt` of `TCP_INFO`" => option(libc::SYS_getsockopt, libc::TCP_INFO),
        "`setsockopt` of `SO_ZEROCOPY`" => option(libc::SYS_setsockopt, libc::SO_ZEROCOPY),
        "`setsockopt` of `SO_LINGER`" => option(libc::SYS_setsockopt, libc::SO_LINGER),
        "`ioctl` of `SIOCOUTQ`" => vec![(libc::SYS_ioctl, Some((1, libc::TIOCOUTQ as u32)))],
        whole => calls_in(whole),
    }
}

/// The effect on a program that fills buffers, sends them singly and together, and aborts a sender
/// with a stalled peer.
fn effect_of(calls: &[Call]) -> &'static str {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let (stalled, _stalled_far) = pair_at("127.0.0.1:0", STALLED);
    let peer = reader(far, Duration::ZERO);
    refuse(calls, libc::EPERM).unwrap();
    let Ok(pool) = Pool::new(LEN, 64) else { return "no pool" };
    let Ok(mut sender) = common::zero_copy().adopt(near) else { return "no sender" };
    let mut stalled = common::zero_copy().adopt(stalled).unwrap();
    // More than the socket takes, so that a call waits, unless its time is up before: then the next one
    // has more.
    let too_much: Arc<[u8]> = vec![7; 32 << 20].into();
    let mut time = Duration::from_millis(1);
    while calls::of_this_thread().waits == 0 {
        match stalled.send_timeout(Arc::clone(&too_much), time) {
            Err(SendError::Unfinished { .. } | SendError::TimedOut(_)) => time *= 2,
            _ => return "sends fail",
        }
    }
    for seed in 0..5 {
        let ticket = sender.send(filled(pool.alloc(LEN).unwrap(), LEN, seed)).unwrap();
        assert!(matches!(sender.wait(ticket, soon()), Ok(Fate::Released { .. })));
    }
    let mut words = [&b"some"[..], b"more"].map(Payload::from).into();
    let Ok(_) = sender.send_vectored(&mut words) else { return "vectored sends fail" };
    let is_copied = sender.stats().zero_copy_calls == 0;
    let report = sender.close(soon());
    assert_arrived(&peer.join().unwrap()[..5 * LEN], LEN, 5);
    match (report.drained, stalled.abort().aborted, is_copied) {
        (false, ..) => "no end in order",
        (true, false, _) => "no abort",
        (true, true, true) => "copies",
        (true, true, false) => "works",
    }
}

#[test]
fn each_refused_call_has_the_documented_effect() {
    let name = test_of(&|| ());
    if !refused(name, &[], libc::EPERM) {
        return;
    }
    let rows = rows("## Without each call");
    if let Some(refused) = rows.iter().map(|row| row[0]).find(|refused| plays(refused)) {
        println!("EFFECT {}.", effect_of(&calls_of(refused)));
        return;
    }
    assert!(rows.len() > 20, "the table is there");
    for row in rows {
        let (refused, effect) = (row[0], row[1]);
        let output = again(&[], name, refused).output().unwrap();
        let output = String::from_utf8_lossy(&output.stdout);
        assert!(output.contains(&format!("EFFECT {effect}.")), "{refused}: {output}");
    }
}
