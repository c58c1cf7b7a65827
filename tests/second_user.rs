//! A second user of `MSG_ZEROCOPY` on the sender's socket: against the rules, and noticed as far
//! as it can be. What is noticed ends zero copy and quarantines; the stream stays right.

mod common;

use std::{
    future::poll_fn,
    io::Write,
    net::TcpStream,
    os::fd::AsFd,
    task::{Context, Waker},
    time::Duration,
};

use common::{
    STALLED, assert_all_free, assert_arrived, assert_same, block_on, census, duplicate, eventually,
    filled, optmem, pair, pair_at, pattern, pool, read_error_queue, reader, send_static, soon,
};
use pinbuf::{
    AllocError, Fate, Pool, Sender, Ticket, WaitError,
    sender::{CopyReason, Poison},
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
fn a_note_for_an_id_never_given_out_poisons() {
    let (near, far) = pair();
    let pool = pool(LEN, 4);
    let peer = reader(far, Duration::ZERO);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let first = send(&mut sender, &pool, 0);
    assert!(sender.wait(first, soon()).is_ok());
    send_static(duplicate(&sender).as_fd(), &FOREIGN).unwrap();
    eventually("the foreign note is read", || {
        sender.reap().unwrap();
        !sender.capabilities().zero_copy
    });
    assert_eq!(poison(&sender), Some(Poison::UnknownIds { lo: 1, hi: 1 }));
    // It goes on by copy.
    let calls = sender.stats().zero_copy_calls;
    for seed in 2..5 {
        let ticket = send(&mut sender, &pool, seed);
        let fate = Fate::Released { accepted: LEN, copied: Some(true) };
        assert_eq!(sender.wait(ticket, soon()), Ok(fate));
    }
    assert_eq!(sender.stats().zero_copy_calls, calls);
    assert_all_free(&pool);
    assert!(sender.close(soon().unwrap()).drained);
    let messages = [2, 3, 4].map(|seed| pattern(LEN, seed).to_vec()).concat();
    let want = [&pattern(LEN, 0)[..], &FOREIGN, &messages].concat();
    assert_same(&peer.join().unwrap(), &want);
}

#[test]
fn what_is_in_flight_when_a_foreign_note_shows_is_quarantined_until_the_gauge_reads_0() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 4);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    // The peer takes this one at once, so that its note, id 0, is there although it reads
    // nothing; ours are then 1, 2 and 3, and the sender takes them for 0, 1 and 2.
    send_static(duplicate(&sender).as_fd(), &FOREIGN[..100]).unwrap();
    eventually("the foreign note is there", || optmem(&sender) > 0);
    sender.reap().unwrap();
    assert_eq!(poison(&sender), Some(Poison::UnknownIds { lo: 0, hi: 0 }), "noticed in time");
    drop(sender);

    let (near, far) = {
        drop(far);
        pair_at("127.0.0.1:0", STALLED)
    };
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let tickets: Vec<_> = (0..4).map(|seed| send(&mut sender, &pool, seed)).collect();
    // A foreign send behind ours: its id is the next one, 4.
    send_static(duplicate(&sender).as_fd(), &FOREIGN).unwrap();
    let peer = reader(far, Duration::from_millis(50));
    // Ours may be released by notes of their own; a range that names id 4 as well releases none.
    eventually("noticed", || {
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
    // The gauge reads 0 once all is released and read: the proof comes late, and is taken.
    eventually("all is released", || {
        sender.reap().unwrap();
        tickets
            .iter()
            .all(|ticket| matches!(sender.fate(*ticket).unwrap(), Some(Fate::Released { .. })))
    });
    assert_all_free(&pool);
    assert!(sender.close(soon().unwrap()).drained);
    let messages = [0, 1, 2, 3].map(|seed| pattern(LEN, seed).to_vec()).concat();
    assert_same(&peer.join().unwrap(), &[&messages[..], &FOREIGN].concat());
}

#[test]
fn a_poisoned_sender_recycles_nothing_early() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 4);
    // Used before: its next id is 10, and the sender is not told so. (With a next id of 1 to 3 the
    // sender would take the first note for one of its own later sends: the rule is not for fun.)
    common::enable_zerocopy(&near);
    for part in FOREIGN[..100].chunks(10) {
        send_static(near.as_fd(), part).unwrap();
    }
    eventually("released", || {
        read_error_queue(near.as_fd());
        optmem(&near) == 0
    });
    let mut sender = common::zero_copy().adopt(near).unwrap();
    // Of its first send, which goes out at once, the note names id 10: not one of ours.
    let mut buf = pool.try_alloc(LEN).unwrap();
    buf.extend_from_slice(&pattern(16 << 10, 9));
    let first = sender.send(buf).unwrap();
    let rest: Vec<_> = (0..3).map(|seed| send(&mut sender, &pool, seed)).collect();
    eventually("noticed", || {
        sender.reap().unwrap();
        poison(&sender).is_some()
    });
    assert_eq!(sender.wait(first, soon()), Err(WaitError::Poisoned), "at once");
    assert!(!sender.interest().released, "no notification proves anything");
    assert_eq!(sender.drain(soon()), Err(WaitError::Poisoned));
    let [free, owned, in_flight, quarantined] = census(&pool);
    // What went by copy after the poison is free.
    assert_eq!((owned, in_flight), (0, 0));
    assert!(quarantined > 0 && free + quarantined == 4);
    // Whatever can be had may be written: the peer must not see it.
    while let Ok(mut buf) = pool.try_alloc(LEN) {
        buf.resize(LEN, 0xDD);
        std::mem::forget(buf);
    }
    if quarantined == 4 {
        assert_eq!(pool.alloc(LEN).unwrap_err(), AllocError::Exhausted, "not waited for");
    }
    let peer = reader(far, Duration::ZERO);
    eventually("all is released", || {
        sender.reap().unwrap();
        sender.stats().leases == 0
    });
    for ticket in rest {
        assert!(matches!(sender.fate(ticket).unwrap(), Some(Fate::Released { .. })));
    }
    assert!(sender.close(soon().unwrap()).drained);
    assert_eq!(census(&pool), [quarantined, free, 0, 0]);
    let messages = [0, 1, 2].map(|seed| pattern(LEN, seed).to_vec()).concat();
    let want = [&FOREIGN[..100], &pattern(16 << 10, 9), &messages].concat();
    assert_same(&peer.join().unwrap(), &want);
}

#[test]
fn a_note_read_by_somebody_else_is_missed_and_made_up_for() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 4);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let tickets: Vec<_> = (0..4).map(|seed| send(&mut sender, &pool, seed)).collect();
    let thief = duplicate(&sender);
    let peer = reader(far, Duration::ZERO);
    eventually("all notes are stolen", || {
        read_error_queue(thief.as_fd());
        optmem(&thief) == 0
    });
    // No event will come. The sender asks the gauge when a wait drags on.
    for ticket in tickets {
        assert!(matches!(sender.wait(ticket, soon()), Ok(Fate::Released { accepted: LEN, .. })));
    }
    assert_eq!(poison(&sender), Some(Poison::NoteStolen));
    assert_all_free(&pool);
    drop(thief);
    assert!(sender.close(soon().unwrap()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, 4);
}

/// Whoever waits is a task: no thread of the owner's looks again after a while.
#[test]
fn a_task_is_woken_though_somebody_else_has_read_the_note_it_waits_for() {
    for (awaits_slot, is_full) in [(false, false), (true, false), (false, true)] {
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let pool = pool(LEN, 1);
        let mut sender = common::zero_copy().threshold_bytes(4096).adopt(near).unwrap();
        // So little that the peer's socket takes it at once.
        let mut buf = pool.try_alloc(LEN).unwrap();
        buf.extend_from_slice(&FOREIGN[..4096]);
        let ticket = sender.send(buf).unwrap();
        let mut thief = TcpStream::from(duplicate(&sender));
        eventually("the note is stolen", || {
            read_error_queue(thief.as_fd());
            optmem(&thief) == 0
        });
        if is_full {
            // The socket has no news at all then, not even room.
            thief.set_nonblocking(true).unwrap();
            while thief.write(&FOREIGN).is_ok() {}
        }
        if awaits_slot {
            drop(block_on(pool.alloc_async(1)).0.unwrap());
        }
        let (fate, polls) = block_on(poll_fn(|cx| sender.poll_fate(cx, ticket)));
        assert!(matches!(fate, Ok(Fate::Released { accepted: 4096, .. })), "{fate:?}");
        assert!(polls <= 4, "{polls}");
        assert_eq!(poison(&sender), Some(Poison::NoteStolen));
        eventually("the slot is home", || census(&pool) == [1, 0, 0, 0]);
        drop((far, thief));
    }
}

#[test]
fn a_task_whose_notes_are_stolen_while_it_waits_is_woken() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 4);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let last = (0..4).map(|seed| send(&mut sender, &pool, seed)).last().unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(sender.poll_fate(&mut cx, last).is_pending(), "watched from here on");
    let thief = duplicate(&sender);
    let peer = reader(far, Duration::ZERO);
    // Or the reaper is faster; either way it is told.
    eventually("all notes are read", || {
        read_error_queue(thief.as_fd());
        optmem(&thief) == 0
    });
    let (fate, _) = block_on(poll_fn(|cx| sender.poll_fate(cx, last)));
    assert!(matches!(fate, Ok(Fate::Released { accepted: LEN, .. })), "{fate:?}");
    drop(thief);
    assert!(sender.close(soon().unwrap()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, 4);
}

#[test]
fn a_full_window_whose_notes_were_stolen_opens_again() {
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
    eventually("all is released", || {
        sender.reap().unwrap();
        sender.stats().leases == 0
    });
    assert_all_free(&pool);
    assert!(sender.close(soon().unwrap()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, 20);
}

/// The owner would wait for an event that never comes.
#[test]
fn a_full_window_whose_notes_were_stolen_is_open_to_the_next_send() {
    let (near, far) = pair();
    let pool = pool(LEN, 3);
    let mut sender = common::zero_copy().max_in_flight_sends(2).adopt(near).unwrap();
    let thief = duplicate(&sender);
    let peer = reader(far, Duration::ZERO);
    (0..2).for_each(|seed| _ = send(&mut sender, &pool, seed));
    eventually("all notes are stolen", || {
        read_error_queue(thief.as_fd());
        optmem(&thief) == 0
    });
    sender.try_send(filled(pool.try_alloc(LEN).unwrap(), LEN, 2)).unwrap();
    assert_eq!(poison(&sender), Some(Poison::NoteStolen));
    drop(thief);
    assert!(sender.close(soon().unwrap()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, 3);
    assert_all_free(&pool);
}

#[test]
fn a_poisoned_sender_taken_apart_stays_poisoned_when_put_together() {
    let (near, far) = pair();
    let peer = reader(far, Duration::ZERO);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    // The kernel's ids are one ahead of the sender's from here on: a note would free the send
    // behind the one it is about.
    send_static(duplicate(&sender).as_fd(), &FOREIGN).unwrap();
    eventually("the foreign note is read", || {
        sender.reap().unwrap();
        poison(&sender).is_some()
    });
    let reason = sender.capabilities().reason;
    let (near, ids) = sender.into_parts().unwrap();
    let mut sender = Sender::builder().resume(ids).adopt(near).unwrap();
    assert_eq!(sender.capabilities().reason, reason);
    sender.send(pattern(LEN, 0)).unwrap();
    assert_eq!(sender.stats().zero_copy_calls, 0);
    assert!(sender.close(soon().unwrap()).drained);
    assert_eq!(peer.join().unwrap().len(), FOREIGN.len() + LEN);
}
