//! Counts, quotas, budgets and ages of a sender.

use std::mem;

use super::*;
use crate::{
    lease::Payload,
    sender::{budget::MemlockBudget, config::OnRelease},
};

const ENOBUFS: i32 = 105;

/// A pool whose senders have at most so many slots in flight.
fn pool_with_quota(quota: usize) -> Pool {
    let builder = Pool::builder().class(4096, 8).backing(Backing::Require(Pages::Base));
    builder.sender_quota(quota).build().unwrap()
}

type Send = fn(&Core<FakeKernel>, PinnedBuf) -> Result<(), SendError<()>>;

fn lone(sender: &Core<FakeKernel>, buf: PinnedBuf) -> Result<(), SendError<()>> {
    sender.try_send(buf).map(drop).map_err(|error| error.map(drop))
}

fn vectored(sender: &Core<FakeKernel>, buf: PinnedBuf) -> Result<(), SendError<()>> {
    sender.try_send_vectored(&mut vec![buf.into()]).map(drop)
}

const WAYS: [Send; 2] = [lone, vectored];

#[test]
fn a_returned_payload_names_the_ticket_of_its_send() {
    let kernel = stream([]);
    let sender = kernel.sender(Config { on_release: OnRelease::Return, ..config() });
    let send = |count: usize| {
        let mut bufs = (0..count).map(|_| Payload::from(&PAGE[..])).collect();
        sender.try_send_vectored(&mut bufs)
    };
    let first = send(3).unwrap();
    kernel.will([Fail(EAGAIN)]);
    send(2).unwrap_err();
    let lone = send(1).unwrap();
    let last = send(2).unwrap();
    assert_eq!([first, lone, last].map(|ticket| ticket.len() / PAGE.len()), [3, 1, 2]);
    (0..3).for_each(|_| kernel.release());
    sender.step().unwrap();
    let tickets: Vec<_> =
        std::iter::from_fn(|| sender.next_returned()).map(|returned| returned.ticket).collect();
    assert_eq!(tickets, [first, first, first, lone, last, last]);
}

#[test]
fn bytes_and_calls_that_the_socket_did_not_take_are_not_counted() {
    let by_copy = Config::default();
    for (config, answers, calls, bytes) in [
        (by_copy, vec![Fail(EAGAIN)], 0, 0),
        (config(), vec![Part(0), Fail(EAGAIN)], 0, 0),
        (by_copy, vec![Part(1000), Fail(EAGAIN)], 1, 1000),
        (by_copy, vec![Part(1000), Part(1000), Fail(EAGAIN)], 2, 2000),
        (config(), vec![Fail(EAGAIN)], 0, 0),
        (config(), vec![Part(1000), Fail(EAGAIN)], 1, 1000),
    ] {
        for send in WAYS {
            let kernel = stream(answers.clone());
            let sender = kernel.sender(config);
            let pool = pool();
            assert_eq!(send(&sender, filled(&pool)).is_ok(), calls > 0);
            let stats = sender.stats();
            let copied = (stats.copied_calls, stats.copied_bytes);
            let zero_copy = (stats.zero_copy_calls, stats.zero_copy_bytes);
            let (counted, other) =
                if config.threshold_bytes > 1 { (copied, zero_copy) } else { (zero_copy, copied) };
            assert_eq!((counted, other), ((calls, bytes), (0, 0)), "{answers:?}");
        }
    }
    let kernel = stream([Part(0)]);
    let sender = kernel.sender(by_copy);
    vectored(&sender, filled(&pool())).unwrap_err();
    assert_eq!((sender.stats().copied_calls, sender.stats().copied_bytes), (0, 0));
}

#[test]
fn a_quota_is_never_exceeded_and_a_release_is_found_without_the_owner() {
    for send in WAYS {
        let kernel = stream([Fail(EAGAIN)]);
        let sender = kernel.sender(config());
        let pool = pool_with_quota(2);
        assert!(
            send(&sender, filled(&pool)).is_err(),
            "the socket has no room, and nothing is held"
        );
        for _ in 0..2 {
            send(&sender, filled(&pool)).unwrap();
        }
        for _ in 0..4 {
            let mut small = pool.try_alloc(1).unwrap();
            small.extend_from_slice(b"x");
            for buf in [small, filled(&pool)] {
                let refused = send(&sender, buf).unwrap_err();
                assert!(matches!(refused, SendError::WouldBlock(())), "{refused:?}");
            }
            assert!(!sender.interest().writable, "room in the socket does not help");
            kernel.release();
            send(&sender, filled(&pool)).unwrap();
        }
    }
}

#[test]
fn a_quota_does_not_bind_a_sender_that_copies() {
    for send in WAYS {
        let kernel = stream([]);
        let sender = kernel.sender(config());
        let pool = pool_with_quota(1);
        send(&sender, filled(&pool)).unwrap();
        kernel.note(7, 7);
        sender.step().unwrap();
        assert!(sender.is_poisoned());
        send(&sender, filled(&pool)).unwrap();
    }
}

#[test]
fn the_age_of_a_call_in_flight_is_exact_to_ten_milliseconds() {
    const CALLS: u32 = 1000;
    let moment = Duration::from_millis(1);
    let kernel = FakeKernel::new(Transport::Datagram, Answer::Take);
    let sender = kernel.sender(config());
    for _ in 0..CALLS {
        sender.try_send(&PAGE[..]).unwrap();
        sender.step().unwrap();
        kernel.pass(moment);
    }
    for released in 0..CALLS {
        let (age, true_age) = (sender.held_for().unwrap(), (CALLS - released) * moment);
        let error = true_age.saturating_sub(age);
        assert!(age <= true_age && error <= Duration::from_millis(10), "{age:?} for {true_age:?}");
        kernel.release();
        sender.step().unwrap();
    }
    assert_eq!(sender.held_for(), None);
}

#[test]
fn a_vectored_send_alone_in_flight_has_an_age_from_the_beginning() {
    let kernel = FakeKernel::new(Transport::Datagram, Answer::Take);
    let sender = kernel.sender(config());
    sender.try_send_vectored(&mut vec![Payload::from(&PAGE[..])]).unwrap();
    kernel.pass(Duration::from_secs(1));
    assert_eq!(sender.held_for(), Some(Duration::from_secs(1)));
}

#[test]
fn a_call_that_failed_while_the_ages_were_told_makes_no_later_call_old() {
    let kernel = FakeKernel::new(Transport::Datagram, Answer::Take);
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap();
    kernel.will([Fail(EAGAIN)]);
    let (visitor, clock) = (Arc::clone(&sender), kernel.clone());
    let visits = move || {
        for _ in 0..2 {
            clock.pass(Duration::from_millis(20));
            visitor.step().unwrap();
        }
    };
    kernel.with(|state| state.meanwhile = Some(Box::new(visits)));
    sender.try_send(&PAGE[..]).unwrap_err();
    kernel.pass(Duration::from_secs(9));
    sender.try_send(&PAGE[..]).unwrap();
    kernel.release();
    sender.step().unwrap();
    assert_eq!(sender.held_for(), Some(Duration::ZERO));
}

#[test]
fn no_more_foreign_messages_are_kept_than_the_latest_64() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    (0..70).for_each(|number| kernel.foreign(number));
    sender.step().unwrap();
    let kept: Vec<_> = std::iter::from_fn(|| sender.next_event()).map(|event| event.data).collect();
    assert_eq!(kept, (6..70).collect::<Vec<_>>());
    assert_eq!(sender.stats().events_dropped, 6);
}

#[test]
fn a_call_that_finds_no_place_for_its_id_costs_no_budget() {
    const KEPT: u32 = 1100;
    let budget = Arc::new(MemlockBudget::new(Some(usize::MAX)));
    for send in WAYS {
        let pool = Pool::builder().class(4096, 1 << 15).populate(false).build().unwrap();
        let kernel = stream([]);
        let sender = kernel.sender_of(Arc::clone(&budget), 1 << 20, config());
        let mut next = 0;
        // The kernel keeps more calls than the side list has room for, and releases the later ones.
        while sender.stats().copied_calls == 0 {
            assert!(next < 1 << 16, "the side list never gets full");
            sender.try_send(&PAGE[..]).unwrap();
            if next >= KEPT {
                kernel.note(next, next);
                sender.step().unwrap();
            }
            next += 1;
        }
        let charged = budget.charged_bytes();
        send(&sender, filled(&pool)).unwrap();
        assert_eq!(sender.stats().copied_calls, 2);
        assert_eq!(budget.charged_bytes(), charged);
        for id in 0..KEPT {
            kernel.note(id, id);
        }
        sender.step().unwrap();
        assert_eq!(budget.charged_bytes(), 0);
    }
}

#[test]
fn a_lack_of_memory_halves_the_window_and_its_cause_is_counted() {
    const OPTMEM_PER_CALL: u32 = 832;
    for (in_flight, is_optmem) in [(8, false), (9, true)] {
        let kernel = stream([]);
        let budget = Arc::new(MemlockBudget::new(None));
        let sender = kernel.sender_of(budget, 9 * OPTMEM_PER_CALL, config());
        for _ in 0..in_flight {
            sender.try_send(&PAGE[..]).unwrap();
        }
        kernel.will([Fail(ENOBUFS)]);
        sender.try_send(&PAGE[..]).unwrap();
        let stats = sender.stats();
        assert_eq!((stats.copied_calls, stats.window_sends), (1, in_flight / 2));
        let counted = (stats.no_bufs_optmem, stats.no_bufs_memlock);
        assert_eq!(counted, (u64::from(is_optmem), u64::from(!is_optmem)), "{in_flight} in flight");
    }
}

#[test]
fn a_call_without_memory_is_tried_once_more_after_a_release_and_then_copied() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    for _ in 0..4 {
        sender.try_send(&PAGE[..]).unwrap();
    }
    kernel.seen();
    kernel.will([Fail(ENOBUFS); 3]);
    // During every call one more call is released.
    fn release_during_each_call(kernel: &FakeKernel) {
        let again = kernel.clone();
        kernel.with(|state| {
            state.meanwhile = Some(Box::new(move || {
                if !again.with(|state| state.is_all_released()) {
                    again.release();
                    release_during_each_call(&again);
                }
            }));
        });
    }
    release_during_each_call(&kernel);
    sender.try_send(&PAGE[..]).unwrap_err();
    let ways: Vec<_> = kernel.seen().iter().map(|seen| seen.zero_copy).collect();
    assert_eq!(ways, [true, true, false]);
}

#[test]
fn every_send_without_memory_has_a_try_of_its_own_after_a_release() {
    let kernel = stream([Answer::Take; 3]);
    let budget = Arc::new(MemlockBudget::new(Some(64 << 10)));
    let sender = kernel.sender_of(Arc::clone(&budget), 1 << 20, config());
    (0..3).for_each(|_| assert!(sender.try_send(&PAGE[..]).is_ok()));
    kernel.seen();
    // Before the second try another sender takes the budget that the release gave back.
    kernel.will([Fail(ENOBUFS)]);
    kernel.release();
    let (rival, charged) = (Arc::clone(&budget), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&charged);
    kernel.with(|state| {
        state.on_read = Some(Box::new(move || {
            while rival.charge(PAGE.len()) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }));
    });
    assert!(sender.try_send(&PAGE[..]).unwrap_err().is_backpressure());
    let calls = charged.load(Ordering::Relaxed);
    budget.refund(calls, calls * PAGE.len());
    kernel.will([Fail(ENOBUFS)]);
    kernel.release();
    sender.try_send(&PAGE[..]).unwrap();
    let without_copy: Vec<_> = kernel.seen().iter().map(|seen| seen.zero_copy).collect();
    assert_eq!(without_copy, [true; 3]);
}

#[test]
fn the_rest_of_a_send_without_memory_goes_without_copy_again_later() {
    let kernel = stream([Part(4096), Fail(ENOBUFS), Fail(EAGAIN)]);
    let sender = kernel.sender(config());
    let mut bufs = [(); 2].map(|()| Payload::from(&PAGE[..])).into();
    sender.try_send_vectored(&mut bufs).unwrap();
    kernel.seen();
    kernel.release();
    sender.step().unwrap();
    assert!(kernel.seen()[0].zero_copy);
}

#[test]
fn a_buffer_copied_twice_was_copied() {
    let kernel = stream([Fail(ENOBUFS), Part(100), Fail(EAGAIN)]);
    let sender = kernel.sender(config());
    let ticket = sender.try_send(&PAGE[..]).unwrap();
    sender.step().unwrap();
    assert!(kernel.seen().last().unwrap().zero_copy, "the rest goes without copy");
    kernel.note_of(0, 0, true);
    sender.step().unwrap();
    let fate = sender.fate(ticket).unwrap();
    assert!(matches!(fate, Some(Fate::Released { copied: Some(true), .. })), "{fate:?}");
}

#[test]
fn a_release_that_the_option_memory_proves_is_counted() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    for _ in 0..3 {
        sender.try_send(&PAGE[..]).unwrap();
        kernel.steal();
    }
    kernel.pass(Duration::from_secs(1));
    sender.step().unwrap();
    let stats = sender.stats();
    assert_eq!((stats.released_calls, stats.in_flight_calls, stats.in_flight_bytes), (3, 0, 0));
}

#[test]
fn a_reap_tells_of_the_releases_that_the_option_memory_proves() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    for _ in 0..3 {
        sender.try_send(&PAGE[..]).unwrap();
        kernel.steal();
    }
    kernel.pass(Duration::from_secs(1));
    assert_eq!(sender.reap().unwrap().calls, 3);
}

#[test]
fn a_failed_call_is_not_counted_whatever_became_of_its_id() {
    for (transport, answer, calls) in [
        (Transport::Stream, Fail(EAGAIN), 0),
        (Transport::Datagram, Fail(EAGAIN), 0),
        (Transport::Datagram, Answer::FailWithNote(EAGAIN), 1),
    ] {
        let kernel = FakeKernel::new(transport, answer);
        let sender = kernel.sender(config());
        sender.try_send(&PAGE[..]).unwrap_err();
        assert_eq!(sender.stats().zero_copy_calls, calls, "{answer:?}");
    }
    // A foreign notification comes for the id before the call fails.
    let kernel = stream([Fail(EAGAIN)]);
    let sender = kernel.sender(config());
    let (visitor, socket) = (Arc::clone(&sender), kernel.clone());
    kernel.with(|state| {
        state.meanwhile = Some(Box::new(move || {
            socket.note(0, 0);
            visitor.step().unwrap();
        }));
    });
    sender.try_send(&PAGE[..]).unwrap_err();
    assert_eq!(sender.stats().zero_copy_calls, 0);
}

#[test]
fn a_send_reads_the_clock_only_with_nothing_in_flight() {
    let clocks = |kernel: &FakeKernel| kernel.with(|state| mem::take(&mut state.clocks));
    // Every send of a sender that gives buffers back asks.
    let kernel = stream([]);
    let sender = kernel.sender(Config { on_release: OnRelease::Return, ..config() });
    sender.try_send(&PAGE[..]).unwrap();
    assert_eq!(clocks(&kernel), 1);
    sender.try_send(&PAGE[..]).unwrap();
    assert_eq!(clocks(&kernel), 0);
    // On a copied route only the time of a probe counts.
    let kernel = FakeKernel::new(Transport::Stream, Answer::Note(true));
    let sender = kernel.sender(Config { observe_route: true, ..config() });
    for _ in 0..3 {
        sender.try_send(&PAGE[..]).unwrap();
        sender.step().unwrap();
    }
    clocks(&kernel);
    for send in [false, true].repeat(3) {
        let bufs = &mut vec![Payload::from(&PAGE[..])];
        let sent = if send {
            sender.try_send(&PAGE[..]).map(drop).map_err(drop)
        } else {
            sender.try_send_vectored(bufs).map(drop).map_err(drop)
        };
        sent.unwrap();
    }
    assert_eq!(clocks(&kernel), 0);
    // While a probe is out, only readings of the error queue look at the time: each after twice as
    // many calls as the one before.
    let kernel = stream([Answer::Note(true); 3]);
    let sender = kernel.sender(Config { observe_route: true, ..config() });
    (0..3).for_each(|_| _ = sender.try_send(&PAGE[..]).unwrap());
    sender.step().unwrap();
    kernel.pass(Duration::from_secs(3600));
    while sender.stats().in_flight_calls == 0 {
        let mut bufs = [(); 16].map(|()| Payload::from(&PAGE[..])).into();
        sender.try_send_vectored(&mut bufs).unwrap();
    }
    clocks(&kernel);
    (0..32).for_each(|_| _ = sender.try_send(&PAGE[..]).unwrap());
    assert!(clocks(&kernel) <= 6);
}

#[test]
fn counters_and_limits_are_told() {
    let kernel = stream([]);
    let max_in_flight_bytes = 5 * PAGE.len();
    let sender = kernel.sender(Config { max_in_flight_bytes, ..config() });
    assert!(!sender.interest().released, "there is nothing to release");
    (0..3).for_each(|_| _ = sender.try_send(&PAGE[..]).unwrap());
    assert!(sender.interest().released);
    assert_eq!(sender.stats().leases, 3);
    for notifications in [1, 2] {
        kernel.release();
        assert_eq!(sender.reap().unwrap().calls, 1);
        let stats = sender.stats();
        assert_eq!(stats.notifications, notifications);
        assert_eq!(stats.window_bytes, max_in_flight_bytes);
    }
    kernel.note(7, 7);
    sender.step().unwrap();
    assert!(sender.is_poisoned() && !sender.is_drained());
    assert!(!sender.interest().released, "no notification is trusted");
}

#[test]
fn the_bytes_that_a_write_did_not_take_are_not_counted() {
    let sender = stream([Part(1000)]).sender(config());
    assert_eq!(sender.try_write(&PAGE).unwrap(), 1000);
    assert_eq!(sender.stats().copied_bytes, 1000);
    assert_eq!(sender.try_write(&PAGE).unwrap(), PAGE.len());
    assert_eq!(sender.stats().copied_bytes, 1000 + PAGE.len() as u64);
}

#[test]
fn a_first_call_released_before_its_end_proves_the_flag() {
    // The option memory reads 0, as if the flag had been ignored.
    let kernel = stream([Answer::Ignore]);
    let sender = kernel.sender(config());
    let (visitor, notified) = (Arc::clone(&sender), kernel.clone());
    kernel.with(|state| {
        state.meanwhile = Some(Box::new(move || {
            notified.note(0, 0);
            visitor.step().unwrap();
        }));
    });
    sender.try_send(&PAGE[..]).unwrap();
    assert!(sender.capabilities().supported);
}

#[test]
fn the_ages_of_many_calls_take_little_memory_and_the_oldest_stay_exact() {
    const CALLS: u32 = 1000;
    let moment = Duration::from_millis(20);
    let kernel = FakeKernel::new(Transport::Datagram, Answer::Take);
    let sender = kernel.sender(config());
    for _ in 0..CALLS {
        sender.try_send(&PAGE[..]).unwrap();
        sender.step().unwrap();
        kernel.pass(moment);
    }
    for released in 0..CALLS {
        let (age, true_age) = (sender.held_for().unwrap(), (CALLS - released) * moment);
        assert!(age <= true_age && 3 * age >= true_age, "{age:?} for {true_age:?}");
        assert!(age == true_age || released > 1);
        kernel.release();
        sender.step().unwrap();
    }
}

#[test]
fn a_limit_is_looked_after_only_where_the_kernel_can_tell() {
    let max_hold = Some(Duration::from_millis(100));
    for (transport, is_over, asked) in [
        (Transport::Stream, false, 1),
        (Transport::Stream, true, 0),
        (Transport::Datagram, false, 0),
    ] {
        let kernel = FakeKernel::new(transport, Answer::Take);
        let sender = kernel.sender(Config { max_hold, ..config() });
        sender.try_send(&PAGE[..]).unwrap();
        kernel.with(|state| state.is_over = is_over);
        sender.reap().unwrap();
        kernel.with(|state| state.unacked_asked = 0);
        sender.step().unwrap();
        assert_eq!(kernel.with(|state| state.unacked_asked), asked, "{transport:?} {is_over}");
        if !is_over {
            assert_eq!(sender.attend(), Some(Duration::from_millis(25)));
        }
    }
}

#[test]
fn a_visit_that_releases_reads_the_queue_once() {
    let kernel = stream([]);
    let max_hold = Some(Duration::from_secs(8));
    let sender = kernel.sender(Config { max_hold, ..config() });
    for _ in 0..2 {
        sender.try_send(&PAGE[..]).unwrap();
    }
    kernel.release();
    let reads = kernel.with(|state| state.reads);
    sender.step().unwrap();
    assert_eq!(kernel.with(|state| state.reads) - reads, 1);
}

#[test]
fn only_a_reading_without_a_release_looks_for_lost_notifications() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    let pools = [pool(), pool()];
    pools.iter().for_each(|pool| assert!(sender.try_send(filled(pool)).is_ok()));
    let asked = || kernel.with(|state| mem::take(&mut state.optmem_asked));
    sender.step().unwrap();
    asked();
    kernel.pass(Duration::from_secs(1));
    kernel.release();
    sender.step().unwrap();
    assert_eq!(asked(), 0, "the socket still tells of releases");
    sender.step().unwrap();
    assert_eq!(asked(), 1);
}

#[test]
fn there_is_room_for_every_buffer_that_comes_back() {
    const CALLS: usize = 20;
    let kernel = stream([]);
    let sender = kernel.sender(Config { on_release: OnRelease::Return, ..config() });
    for calls in 1..=CALLS {
        sender.try_send(&PAGE[..]).unwrap();
        let room = sender.enter().cold().map(|cold| cold.returned.capacity());
        assert!(room >= Some(calls), "a release needs no memory: {room:?} for {calls}");
    }
}

#[test]
fn a_notification_of_copies_counts_every_call_that_it_names() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    (0..3).for_each(|_| assert!(sender.try_send(&PAGE[..]).is_ok()));
    kernel.note_of(0, 2, true);
    sender.step().unwrap();
    assert_eq!(sender.stats().deferred_copies, 3);
}

#[test]
fn a_visit_counts_as_a_reading_of_the_queue() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    (0..31).for_each(|_| assert!(sender.try_send(&PAGE[..]).is_ok()));
    sender.step().unwrap();
    let reads = kernel.with(|state| state.reads);
    (0..31).for_each(|_| assert!(sender.try_send(&PAGE[..]).is_ok()));
    assert_eq!(kernel.with(|state| state.reads), reads);
}

#[test]
fn a_reading_that_failed_proves_no_release() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap();
    kernel.steal();
    kernel.pass(Duration::from_secs(1));
    kernel.with(|state| state.unreadable = 1);
    sender.step().unwrap_err();
    assert_eq!(sender.stats().in_flight_calls, 1);
    sender.step().unwrap();
    assert_eq!(sender.stats().in_flight_calls, 0);
}

#[test]
fn a_poisoned_sender_goes_on_looking_for_the_release_of_a_probe() {
    let kernel = stream([]);
    let sender = kernel.sender(Config { observe_route: true, ..config() });
    sender.try_send(&PAGE[..]).unwrap();
    kernel.note(7, 7);
    sender.step().unwrap();
    assert!(sender.is_poisoned());
    for _ in 0..10 {
        sender.try_send(&PAGE[..]).unwrap();
    }
    kernel.steal();
    for _ in 0..20 {
        sender.try_send(&PAGE[..]).unwrap();
    }
    assert_eq!(sender.stats().in_flight_calls, 0);
}

#[test]
fn every_part_of_a_large_copy_but_the_last_says_that_more_is_to_come() {
    let kernel = stream([]);
    let by_copy = Config { threshold_bytes: usize::MAX, ..config() };
    let sender = kernel.sender_within(Some(1 << 20), by_copy);
    sender.try_send(vec![1; 4 << 20]).unwrap();
    let more: Vec<_> = kernel.seen().iter().map(|seen| seen.more).collect();
    let (last, parts) = more.split_last().unwrap();
    assert!(!last && !parts.is_empty() && parts.iter().all(|more| *more), "{more:?}");
}
