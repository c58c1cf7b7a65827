//! Waits for slots and for fates never deadlock: one slot, one thread, blocking and as a future,
//! and slots in flight on several senders.

use std::{
    io::Write,
    net::TcpStream,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use pinbuf::{AllocError, Fate, Policy, Pool, SendError, Sender, Ticket, WaitError};

use crate::{
    calls,
    common::{
        self, Buffers, STALLED, TIGHT, assert_all_free, assert_arrived, assert_same, block_on,
        census, closed_window, eventually, filled, pair, pair_at, pattern, pool, process::alone,
        reader, soon, within,
    },
};

const LEN: usize = 64 << 10;
const PAUSE: Duration = Duration::from_millis(150);

/// The reaper may still be dropping released buffers.
fn comes_home(pool: &Pool) {
    eventually("all slots are free", || pool.stats().free() == pool.stats().classes[0].slots);
    assert_all_free(pool);
}

fn fill_up(sender: &mut Sender<TcpStream>, pool: &Pool) -> Vec<Ticket> {
    let bufs = std::iter::from_fn(|| pool.try_alloc(LEN).ok());
    let sends = bufs.enumerate().map(|(seed, buf)| sender.send(filled(buf, LEN, seed)).unwrap());
    sends.collect()
}

#[test]
fn one_thread_with_one_slot_makes_progress() {
    for buffers in [STALLED, TIGHT] {
        let (near, far) = pair_at("127.0.0.1:0", buffers);
        let pool = pool(LEN, 1);
        let mut sender = common::zero_copy().adopt(near).unwrap();
        let peer = reader(far, PAUSE);
        for seed in 0..50 {
            let buf = pool.alloc(LEN).unwrap();
            sender.try_send(filled(buf, LEN, seed)).unwrap();
        }
        assert!(sender.close(soon()).drained);
        assert_arrived(&peer.join().unwrap(), LEN, 50);
        comes_home(&pool);
    }
}

#[test]
fn one_task_with_one_slot_makes_progress() {
    for buffers in [STALLED, TIGHT] {
        let (near, far) = pair_at("127.0.0.1:0", buffers);
        let pool = pool(LEN, 1);
        let mut sender = common::zero_copy().adopt(near).unwrap();
        let peer = reader(far, PAUSE);
        let mut polls = 0;
        for seed in 0..50 {
            let (buf, polled) = block_on(pool.alloc_async(LEN));
            polls += polled;
            sender.try_send(filled(buf.unwrap(), LEN, seed)).unwrap();
        }
        // Woken for a slot, not polled in a loop.
        assert!(polls < 50 * 20, "{polls}");
        assert!(sender.close(soon()).drained);
        assert_arrived(&peer.join().unwrap(), LEN, 50);
        comes_home(&pool);
    }
}

#[test]
fn a_waiter_drives_otherwise_undriven_senders() {
    // All slots are in flight on two idle senders.
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let (other_near, other_far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 8);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let mut other = common::zero_copy().adopt(other_near).unwrap();
    for seed in 0..4 {
        sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
        other.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
    }
    // Only the peer of the second sender reads, so only the slots of one sender become free.
    let peer = reader(other_far, PAUSE);
    let mut bufs = Vec::new();
    while other.stats().leases > 0 {
        let (buf, _) = block_on(pool.alloc_async(LEN));
        bufs.push(buf.unwrap());
    }
    assert!(sender.stats().leases > 0, "its peer stalls");
    // And blocking, with the senders exchanged.
    let first = reader(far, PAUSE);
    while bufs.len() < 8 {
        bufs.push(pool.alloc(LEN).unwrap());
    }
    drop(bufs);
    comes_home(&pool);
    assert!(sender.close(soon()).drained);
    assert!(other.close(soon()).drained);
    for got in [peer.join().unwrap(), first.join().unwrap()] {
        assert_arrived(&got, LEN, 4);
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Queues a task for a slot of `pool`, calls `then`, and checks that the task is woken without a
/// further call of the task or of a sender's owner.
fn is_woken<R>(pool: &Pool, then: impl FnOnce() -> R) {
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut alloc = pin!(pool.alloc_async(1));
    assert!(alloc.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let _kept = then();
    eventually("the task is woken", || woken.0.load(Ordering::Relaxed));
}

#[test]
fn a_task_that_asks_again_leaves_one_waker() {
    let (near, _far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let ticket = sender.try_send(pattern(LEN, 0)).unwrap();
    let woken = Arc::new(Woken::default());
    for _ in 0..10 {
        let waker = Waker::from(Arc::clone(&woken));
        assert!(sender.poll_fate(&mut Context::from_waker(&waker), ticket).is_pending());
    }
    assert_eq!(Arc::strong_count(&woken), 2);
}

#[test]
fn a_task_is_woken_by_a_send_that_begins_after_its_wait() {
    alone(|| {
        for (buffers, len) in [(Buffers::default(), LEN), (TIGHT, 1 << 20)] {
            let (near, far) = pair_at("127.0.0.1:0", buffers);
            let (mut sender, pool) = (common::zero_copy().adopt(near).unwrap(), pool(len, 2));
            let mut far = Some(far);
            if len == LEN {
                // The next similar send needs a grant only.
                reader(far.take().unwrap(), Duration::ZERO);
                sender.send(filled(pool.try_alloc(len).unwrap(), len, 0)).unwrap();
                sender.drain(soon()).unwrap();
            }
            let [buf, _kept] = [1, 2].map(|seed| filled(pool.try_alloc(len).unwrap(), len, seed));
            is_woken(&pool, || {
                eventually("the reaper watches no sender", || pinbuf::reaper::stats().watched == 0);
                sender.try_send(buf).unwrap();
                far.map(|far| reader(far, Duration::ZERO))
            });
        }
    });
}

#[test]
fn a_task_is_woken_by_the_end_of_a_partial_copy() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let pool = pool(1 << 20, 1);
    let mut sender = Sender::builder().policy(Policy::Never).adopt(near).unwrap();
    sender.try_send(filled(pool.try_alloc(1).unwrap(), 1 << 20, 0)).unwrap();
    is_woken(&pool, || reader(far, Duration::ZERO));
}

#[test]
fn a_task_is_woken_by_the_reaper() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(1 << 20, 1);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    sender.send(filled(pool.alloc(1).unwrap(), 1 << 20, 0)).unwrap();
    assert_eq!(census(&pool), [0, 0, 1, 0]);
    let peer = reader(far, PAUSE);
    let (buf, polls) = block_on(pool.alloc_async(1));
    assert!(polls <= 4, "{polls}");
    drop(buf.unwrap());
    comes_home(&pool);
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &pattern(1 << 20, 0));
}

/// The waiter came before the sender's first buffer of the pool, so only the send can have the
/// sender watched.
#[test]
fn a_send_with_a_waiter_has_its_sender_watched() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 1);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let buf = filled(pool.alloc(1).unwrap(), LEN, 0);
    let mut waiting = std::pin::pin!(pool.alloc_async(1));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(waiting.as_mut().poll(&mut cx).is_pending());
    sender.try_send(buf).unwrap();
    assert_eq!(census(&pool), [0, 0, 1, 0]);
    let peer = reader(far, Duration::ZERO);
    // No call of this thread reads the notification.
    eventually("the slot is released", || pool.stats().in_flight() == 0);
    assert!(matches!(waiting.poll(&mut cx), Poll::Ready(Ok(_))));
    comes_home(&pool);
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &pattern(LEN, 0));
}

#[test]
fn a_waiter_flushes_an_unsent_part() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let pool = pool(4 << 20, 1);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let ticket = sender.try_send(filled(pool.alloc(1).unwrap(), 4 << 20, 0)).unwrap();
    assert!(sender.reap().unwrap().unsent, "the send is partial");
    let peer = reader(far, PAUSE);
    let (buf, _) = block_on(pool.alloc_async(1));
    drop(buf.unwrap());
    assert!(matches!(
        sender.fate(ticket).unwrap(),
        Some(Fate::Released { accepted: 4_194_304, .. })
    ));
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &pattern(4 << 20, 0));
    comes_home(&pool);
}

#[test]
fn a_fate_is_awaited_without_a_runtime() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 8);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let tickets = fill_up(&mut sender, &pool);
    let last = *tickets.last().unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(sender.poll_fate(&mut cx, last), Poll::Pending));
    let peer = reader(far, PAUSE);
    let (fate, polls) = block_on(std::future::poll_fn(|cx| sender.poll_fate(cx, last)));
    assert!(matches!(fate, Ok(Fate::Released { accepted: LEN, .. })), "{fate:?}");
    assert!(polls <= 4, "{polls}");
    for ticket in &tickets {
        assert!(sender.fate(*ticket).unwrap().is_some(), "released in order on loopback");
    }
    comes_home(&pool);
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, tickets.len());
}

#[test]
fn a_fate_decided_by_a_reset_wakes_its_task() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let pool = pool(4 << 20, 1);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let ticket = sender.try_send(filled(pool.alloc(1).unwrap(), 4 << 20, 0)).unwrap();
    let peer = thread::spawn(move || {
        thread::sleep(PAUSE);
        common::reset(far);
    });
    let (fate, _) = block_on(std::future::poll_fn(|cx| sender.poll_fate(cx, ticket)));
    assert!(matches!(fate, Ok(Fate::Truncated { accepted: 1.., len: 4_194_304, .. })), "{fate:?}");
    peer.join().unwrap();
    comes_home(&pool);
}

#[test]
fn many_threads_share_few_slots() {
    const THREADS: usize = 6;
    const MESSAGES: usize = 60;
    for slots in [1, 3] {
        let pool = pool(LEN, slots);
        thread::scope(|scope| {
            for worker in 0..THREADS {
                let pool = &pool;
                scope.spawn(move || {
                    let buffers = [STALLED, TIGHT, Buffers::default()][worker % 3];
                    let (near, far) = pair_at("127.0.0.1:0", buffers);
                    let mut sender = common::zero_copy().adopt(near).unwrap();
                    let peer = reader(far, Duration::from_millis(20 * worker as u64));
                    for seed in 0..MESSAGES {
                        let buf = match (worker + seed) % 3 {
                            0 => block_on(pool.alloc_async(LEN)).0,
                            1 => pool.alloc_timeout(LEN, Duration::from_secs(30)),
                            _ => pool.alloc(LEN),
                        };
                        sender.try_send_or_wait(filled(buf.unwrap(), LEN, seed));
                    }
                    assert!(sender.close(soon()).drained);
                    assert_arrived(&peer.join().unwrap(), LEN, MESSAGES);
                });
            }
        });
        comes_home(&pool);
    }
}

trait TrySendOrWait {
    fn try_send_or_wait(&mut self, buf: pinbuf::PinnedBuf);
}

impl TrySendOrWait for Sender<TcpStream> {
    /// Leaves the unsent part of a send to the next waiter for a slot, unless the waiter blocks this send.
    fn try_send_or_wait(&mut self, buf: pinbuf::PinnedBuf) {
        if let Err(error) = self.try_send(buf) {
            assert!(error.is_backpressure(), "{error}");
            self.send(error.into_buf().unwrap()).unwrap();
        }
    }
}

#[test]
fn a_cancelled_waiter_leaves_the_queue() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(1 << 20, 1);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let ticket = sender.send(filled(pool.alloc(1).unwrap(), 1 << 20, 0)).unwrap();
    let timed_out = pool.alloc_timeout(1, Duration::from_millis(30)).unwrap_err();
    assert_eq!(timed_out, AllocError::TimedOut);
    {
        let mut given_up = std::pin::pin!(pool.alloc_async(1));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(given_up.as_mut().poll(&mut cx).is_pending());
    }
    assert_eq!(sender.wait(ticket, within(30)), Err(WaitError::TimedOut));
    let peer = reader(far, Duration::ZERO);
    // The reaper or this thread reads the notification; in either case the slot becomes free.
    eventually("the slot is free", || {
        sender.reap().unwrap();
        pool.stats().free() == 1
    });
    assert!(sender.wait(ticket, soon()).is_ok());
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &pattern(1 << 20, 0));
}

#[test]
fn a_dropped_pool_keeps_its_memory_until_the_release() {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(LEN, 8);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let tickets = fill_up(&mut sender, &pool);
    drop(pool);
    let peer = reader(far, PAUSE);
    for ticket in &tickets {
        assert!(sender.wait(*ticket, soon()).is_ok());
    }
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, tickets.len());
}

#[test]
fn a_full_window_opens_with_the_next_notification() {
    let (near, far) = pair();
    let pool = pool(LEN, 2);
    let builder = common::zero_copy().max_in_flight_sends(1).max_in_flight_bytes(1);
    let mut sender = builder.adopt(near).unwrap();
    let peer = reader(far, PAUSE);
    for seed in 0..40 {
        sender.send(filled(pool.alloc(1).unwrap(), LEN, seed)).unwrap();
        assert!(sender.stats().in_flight_calls <= 1);
    }
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, 40);
    comes_home(&pool);
}

/// Fills a socket by plain writes, until no more bytes are taken.
fn stuff(socket: &TcpStream) -> usize {
    socket.set_nonblocking(true).unwrap();
    let mut filled = 0;
    for _ in 0..2 {
        while let Ok(written) = (&mut &*socket).write(&[7; 1 << 16]) {
            filled += written;
        }
        closed_window(socket);
    }
    filled
}

#[test]
fn a_refused_send_waits_for_room_and_no_longer() {
    alone(|| {
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let mut sender = Sender::builder().policy(Policy::Never).adopt(near).unwrap();
        let filled = stuff(sender.get_ref());
        let before = calls::of_all().waits;
        let peer = thread::spawn(move || {
            eventually("the sender waits", || calls::of_all().waits > before);
            reader(far, Duration::ZERO).join().unwrap()
        });
        let calls = calls::patiently(|| _ = sender.send(&[8; 1000][..]).unwrap());
        assert!(calls.waits > 0 && calls.hangs == 0, "{calls:?}");
        assert!(sender.close(soon()).drained);
        assert_eq!(peer.join().unwrap().len(), filled + 1000);
    });
}

#[test]
fn a_refused_sender_asks_for_room_after_a_visit() {
    let (near, _far) = pair_at("127.0.0.1:0", STALLED);
    let pool = pool(16 << 10, 1);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    stuff(sender.get_ref());
    let buf = filled(pool.try_alloc(1).unwrap(), 16 << 10, 0);
    let Err(SendError::WouldBlock(buf)) = sender.try_send(buf) else { panic!("there is no room") };
    assert!(sender.interest().writable);
    pool.alloc_timeout(1, Duration::from_millis(5)).unwrap_err();
    assert!(sender.interest().writable);
    // Until the owner drops the buffer.
    drop(buf);
    sender.reap().unwrap();
    assert!(!sender.interest().writable);
}

/// No event ever comes: the first send fills the socket, and the peer reads nothing.
#[test]
fn max_hold_works_for_a_socket_full_from_the_start() {
    let (near, _far) = pair_at("127.0.0.1:0", TIGHT);
    let pool = pool(4 << 20, 1);
    let limit = Duration::from_millis(200);
    let mut sender = common::zero_copy().max_hold(limit).adopt(near).unwrap();
    let ticket = sender.try_send(filled(pool.alloc(1).unwrap(), 4 << 20, 0)).unwrap();
    eventually("the connection is aborted", || sender.fate(ticket).unwrap().is_some());
    comes_home(&pool);
}
