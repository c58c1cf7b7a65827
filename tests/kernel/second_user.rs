//! A second user of `MSG_ZEROCOPY` on the sender's socket: a breach of the contract, detected as
//! far as possible. A detection ends zero copy and quarantines; the stream stays right.

use std::{
    future::poll_fn,
    io::Write,
    net::TcpStream,
    os::fd::AsFd,
    task::{Context, Waker},
    time::Duration,
};

use pinbuf::{
    AllocError, Fate, Pool, Sender, Ticket, WaitError,
    sender::{CopyReason, Poison},
};

use crate::common::{
    self, STALLED, assert_all_free, assert_arrived, assert_same, block_on, census, duplicate,
    eventually, filled, optmem, pair, pair_at, pattern, pool, read_error_queue, reader,
    send_static, soon,
};

static FOREIGN: [u8; 20_000] = [0xEE; 20_000];
const LEN: usize = 64 << 10;

fn send(sender: &mut Sender<TcpStream>, pool: &Pool, seed: usize) -> Ticket {
    sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap()
}

fn poison(sender: &Sender<TcpStream>) -> Option<Poison> {
    match sender.capabilities().reason {
        Some(CopyReason::Poisoned(poison)) => Some(poison),
        _ => None,
    }
}

#[test]
fn a_notification_for_an_unissued_id_poisons() {
    let (near, far) = pair();
    let pool = pool(LEN, 4);
    let peer = reader(far, Duration::ZERO);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let first = send(&mut sender, &pool, 0);
    assert!(sender.wait(first, soon()).is_ok());
    send_static(duplicate(&sender).as_fd(), &FOREIGN).unwrap();
    eventually("the foreign notification is read", || {
        sender.reap().unwrap();
        !sender.capabilities().supported
    });
    assert_eq!(poison(&sender), Some(Poison::UnknownIds { lo: 1, hi: 1 }));
    // The sender continues by copy.
    let calls = sender.stats().zero_copy_calls;
    for seed in 2..5 {
        let ticket = send(&mut sender, &pool, seed);
        let fate = Fate::Released { accepted: LEN, copied: Some(true) };
        assert_eq!(sender.wait(ticket, soon()), Ok(fate));
    }
    assert_eq!(sender.stats().zero_copy_calls, calls);
    assert_all_free(&pool);
    assert!(sender.close(soon()).drained);
    let messages = [2, 3, 4].map(|seed| pattern(LEN, seed).to_vec()).concat();
    let want = [&pattern(LEN, 0)[..], &FOREIGN, &messages].concat();
    assert_same(&peer.join().unwrap(), &want);
}

#[test]
fn a_foreign_notification_quarantines_sends_until_the_proof() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 4);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    // The peer takes this send at once, so its notification, id 0, comes although the peer reads
    // nothing. The sender's ids are then 1, 2 and 3, while the sender counts 0, 1 and 2.
    send_static(duplicate(&sender).as_fd(), &FOREIGN[..100]).unwrap();
    eventually("the foreign notification is there", || optmem(&sender) > 0);
    sender.reap().unwrap();
    assert_eq!(poison(&sender), Some(Poison::UnknownIds { lo: 0, hi: 0 }), "noticed in time");
    drop(sender);

    let (near, far) = {
        drop(far);
        pair_at("127.0.0.1:0", STALLED)
    };
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let tickets: Vec<_> = (0..4).map(|seed| send(&mut sender, &pool, seed)).collect();
    // A foreign send behind the sender's: its id is the next, 4.
    send_static(duplicate(&sender).as_fd(), &FOREIGN).unwrap();
    let peer = reader(far, Duration::from_millis(50));
    // The sender's sends may be released by their own notifications; a range with id 4 releases
    // none.
    eventually("the sender is poisoned", || {
        sender.reap().unwrap();
        poison(&sender).is_some()
    });
    for ticket in &tickets {
        match sender.wait(*ticket, soon()) {
            Ok(Fate::Released { accepted: LEN, .. }) => {}
            Err(WaitError::Poisoned) => {
                assert_eq!(sender.fate(*ticket).unwrap(), Some(Fate::Quarantined));
            }
            other => panic!("{other:?}"),
        }
    }
    // The option memory reads 0 after all releases and reads: a late proof, and valid.
    eventually("all sends are released", || {
        sender.reap().unwrap();
        tickets
            .iter()
            .all(|ticket| matches!(sender.fate(*ticket).unwrap(), Some(Fate::Released { .. })))
    });
    assert_all_free(&pool);
    assert!(sender.close(soon()).drained);
    let messages = [0, 1, 2, 3].map(|seed| pattern(LEN, seed).to_vec()).concat();
    assert_same(&peer.join().unwrap(), &[&messages[..], &FOREIGN].concat());
}

#[test]
fn a_poisoned_sender_recycles_nothing_early() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 4);
    // Used before: its next id is 10, unknown to the sender. (With a next id of 1 to 3 the sender
    // would take the first notification for one of its later sends: the contract is necessary.)
    common::enable_zerocopy(&near);
    for part in FOREIGN[..100].chunks(10) {
        send_static(near.as_fd(), part).unwrap();
    }
    eventually("released", || {
        read_error_queue(near.as_fd());
        optmem(&near) == 0
    });
    let mut sender = common::zero_copy().adopt(near).unwrap();
    // The notification of the first send, which leaves at once, names id 10, unknown to the sender.
    let mut buf = pool.try_alloc(LEN).unwrap();
    buf.extend_from_slice(&pattern(16 << 10, 9));
    let first = sender.send(buf).unwrap();
    let rest: Vec<_> = (0..3).map(|seed| send(&mut sender, &pool, seed)).collect();
    eventually("noticed", || {
        sender.reap().unwrap();
        poison(&sender).is_some()
    });
    assert_eq!(sender.wait(first, soon()), Err(WaitError::Poisoned), "at once");
    assert!(!sender.interest().released, "no notification counts any more");
    assert_eq!(sender.drain(soon()), Err(WaitError::Poisoned));
    let [free, owned, in_flight, quarantined] = census(&pool);
    // Buffers copied after the poison are free.
    assert_eq!((owned, in_flight), (0, 0));
    assert!(quarantined > 0 && free + quarantined == 4);
    // All available slots may be overwritten: the peer must not see that.
    while let Ok(mut buf) = pool.try_alloc(LEN) {
        buf.resize(LEN, 0xDD);
        std::mem::forget(buf);
    }
    if quarantined == 4 {
        assert_eq!(pool.alloc(LEN).unwrap_err(), AllocError::Exhausted, "not waited for");
    }
    let peer = reader(far, Duration::ZERO);
    eventually("all sends are released", || {
        sender.reap().unwrap();
        sender.stats().leases == 0
    });
    for ticket in rest {
        assert!(matches!(sender.fate(ticket).unwrap(), Some(Fate::Released { .. })));
    }
    assert!(sender.close(soon()).drained);
    assert_eq!(census(&pool), [quarantined, free, 0, 0]);
    let messages = [0, 1, 2].map(|seed| pattern(LEN, seed).to_vec()).concat();
    let want = [&FOREIGN[..100], &pattern(16 << 10, 9), &messages].concat();
    assert_same(&peer.join().unwrap(), &want);
}

#[test]
fn a_stolen_notification_is_replaced_by_the_proof() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 4);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let tickets: Vec<_> = (0..4).map(|seed| send(&mut sender, &pool, seed)).collect();
    let thief = duplicate(&sender);
    let peer = reader(far, Duration::ZERO);
    eventually("all notifications are stolen", || {
        read_error_queue(thief.as_fd());
        optmem(&thief) == 0
    });
    // No event will come. The sender asks for the option memory during a long wait.
    for ticket in tickets {
        assert!(matches!(sender.wait(ticket, soon()), Ok(Fate::Released { accepted: LEN, .. })));
    }
    assert_eq!(poison(&sender), Some(Poison::NotificationStolen));
    assert_all_free(&pool);
    drop(thief);
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, 4);
}

/// Only a task waits: no thread of the owner looks again after a while.
#[test]
fn a_task_is_woken_without_its_stolen_notification() {
    for (awaits_slot, is_full) in [(false, false), (true, false), (false, true)] {
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(LEN, 1);
        let mut sender = common::zero_copy().threshold_bytes(4096).adopt(near).unwrap();
        // Few enough bytes for the peer's socket to take at once.
        let mut buf = pool.try_alloc(LEN).unwrap();
        buf.extend_from_slice(&FOREIGN[..4096]);
        let ticket = sender.send(buf).unwrap();
        let mut thief = TcpStream::from(duplicate(&sender));
        eventually("the notification is stolen", || {
            read_error_queue(thief.as_fd());
            optmem(&thief) == 0
        });
        if is_full {
            // Then the socket has no event, not even room.
            thief.set_nonblocking(true).unwrap();
            while thief.write(&FOREIGN).is_ok() {}
        }
        if awaits_slot {
            drop(block_on(pool.alloc_async(1)).0.unwrap());
        }
        let (fate, polls) = block_on(poll_fn(|cx| sender.poll_fate(cx, ticket)));
        assert!(matches!(fate, Ok(Fate::Released { accepted: 4096, .. })), "{fate:?}");
        assert!(polls <= 4, "{polls}");
        assert_eq!(poison(&sender), Some(Poison::NotificationStolen));
        eventually("the slot is free", || census(&pool) == [1, 0, 0, 0]);
        drop((far, thief));
    }
}

#[test]
fn a_theft_of_notifications_still_wakes_the_task() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 4);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let last = (0..4).map(|seed| send(&mut sender, &pool, seed)).last().unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(sender.poll_fate(&mut cx, last).is_pending(), "watched from here on");
    let thief = duplicate(&sender);
    let peer = reader(far, Duration::ZERO);
    // Or the reaper is faster; in either case the task is told.
    eventually("all notifications are read", || {
        read_error_queue(thief.as_fd());
        optmem(&thief) == 0
    });
    let (fate, _) = block_on(poll_fn(|cx| sender.poll_fate(cx, last)));
    assert!(matches!(fate, Ok(Fate::Released { accepted: LEN, .. })), "{fate:?}");
    drop(thief);
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, 4);
}

#[test]
fn a_full_window_opens_after_stolen_notifications() {
    let (near, far) = pair();
    let pool = pool(LEN, 4);
    let mut sender = common::zero_copy().max_in_flight_sends(2).adopt(near).unwrap();
    let thief = duplicate(&sender);
    let peer = reader(far, Duration::ZERO);
    for seed in 0..20 {
        let buf = filled(pool.alloc(LEN).unwrap(), LEN, seed);
        sender.send(buf).unwrap();
        read_error_queue(thief.as_fd());
    }
    drop(thief);
    assert!(matches!(sender.drain(soon()), Ok(()) | Err(WaitError::Poisoned)));
    eventually("all sends are released", || {
        sender.reap().unwrap();
        sender.stats().leases == 0
    });
    assert_all_free(&pool);
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, 20);
}

/// The owner would wait for an event that never comes.
#[test]
fn a_send_opens_a_window_after_stolen_notifications() {
    let (near, far) = pair();
    let pool = pool(LEN, 3);
    let mut sender = common::zero_copy().max_in_flight_sends(2).adopt(near).unwrap();
    let thief = duplicate(&sender);
    let peer = reader(far, Duration::ZERO);
    (0..2).for_each(|seed| _ = send(&mut sender, &pool, seed));
    eventually("all notifications are stolen", || {
        read_error_queue(thief.as_fd());
        optmem(&thief) == 0
    });
    sender.try_send(filled(pool.try_alloc(LEN).unwrap(), LEN, 2)).unwrap();
    assert_eq!(poison(&sender), Some(Poison::NotificationStolen));
    drop(thief);
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, 3);
    assert_all_free(&pool);
}

#[test]
fn a_poisoned_socket_stays_poisoned_through_into_parts() {
    let (near, far) = pair();
    let peer = reader(far, Duration::ZERO);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    // From here on the kernel's ids are ahead of the sender's by one: a notification would free the
    // send behind the right one.
    send_static(duplicate(&sender).as_fd(), &FOREIGN).unwrap();
    eventually("the foreign notification is read", || {
        sender.reap().unwrap();
        poison(&sender).is_some()
    });
    let reason = sender.capabilities().reason;
    let (near, ids) = sender.into_parts().unwrap();
    let mut sender = Sender::builder().resume(ids).adopt(near).unwrap();
    assert_eq!(sender.capabilities().reason, reason);
    sender.send(pattern(LEN, 0)).unwrap();
    assert_eq!(sender.stats().zero_copy_calls, 0);
    assert!(sender.close(soon()).drained);
    assert_eq!(peer.join().unwrap().len(), FOREIGN.len() + LEN);
}

#[test]
fn a_socket_that_ignores_the_flag_is_remembered_through_into_parts() {
    let (near, far) = pair();
    let peer = reader(far, Duration::ZERO);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    common::set_option(sender.get_ref(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, &0_i32);
    sender.send(pattern(LEN, 0)).unwrap();
    assert_eq!(sender.capabilities().reason, Some(CopyReason::Ignored));
    // The kernel has counted no id, and the sender one: a notification would free the send before
    // the right one.
    let (near, ids) = sender.into_parts().unwrap();
    let mut sender = common::zero_copy().resume(ids).adopt(near).unwrap();
    assert_eq!(sender.capabilities().reason, Some(CopyReason::Ignored));
    sender.send(pattern(LEN, 1)).unwrap();
    assert_eq!(sender.stats().zero_copy_calls, 0);
    assert!(sender.close(soon()).drained);
    assert_eq!(peer.join().unwrap().len(), 2 * LEN);
}
