//! Waits of threads: what a wait is for, how it ends, and what happens around it.

use super::{super::fake::Waited, *};
use crate::{
    error::WaitError,
    lock::{Mutex, lock},
    sender::{budget::MemlockBudget, config::OnRelease, kernel::Kernel, machine::OVERDUE},
    sys::socket::Ready,
};

const EMFILE: i32 = 24;
const ECONNRESET: i32 = 104;

type Step = Box<dyn Fn(&FakeKernel, Waited) -> Ready + Send + Sync>;

/// Each wait of a thread does the next of these steps. A wait too many is a failure.
fn script(kernel: &FakeKernel, steps: Vec<Step>) {
    let next = AtomicUsize::new(0);
    kernel.with(|state| {
        state.on_wait = Some(Arc::new(move |kernel, waited| {
            let step = steps.get(next.fetch_add(1, Ordering::Relaxed)).expect("a wait too many");
            step(kernel, waited)
        }));
    });
}

macro_rules! script {
    ($kernel:expr, $($step:expr),+ $(,)?) => { script($kernel, vec![$(Box::new($step)),+]) };
}

fn error() -> Ready {
    Ready { error: true, ..Ready::default() }
}

fn by_edges(kernel: FakeKernel) -> FakeKernel {
    kernel.with(|state| state.edges = Some(Ok(())));
    kernel
}

#[test]
fn a_blocked_send_under_a_limit_finds_the_peers_silence() {
    let kernel = by_edges(FakeKernel::new(Transport::Stream, Fail(EAGAIN)));
    kernel.will([Answer::Take]);
    let max_hold = Some(Duration::from_secs(1));
    let sender = kernel.sender(Config { max_hold, ..config() });
    sender.try_send(&PAGE[..]).unwrap();
    let silence = |kernel: &FakeKernel, _: Waited| {
        kernel.pass(Duration::from_millis(1100));
        Ready::default()
    };
    script!(&kernel, silence, silence, silence);
    sender.send(&PAGE[..]).unwrap_err();
    assert_eq!(kernel.with(|state| state.aborts), 1);
}

#[test]
fn a_blocked_send_under_a_limit_is_watched() {
    let kernel = FakeKernel::new(Transport::Stream, Fail(EAGAIN));
    let max_hold = Some(Duration::from_secs(1));
    let sender = kernel.sender(Config { max_hold, ..config() });
    script!(&kernel, |kernel, _| {
        assert_eq!(kernel.with(|state| state.watches), 1);
        kernel.will([Answer::Take]);
        Ready::default()
    });
    sender.send(&PAGE[..100]).unwrap();
}

#[test]
fn a_wait_for_room_reads_the_notifications_that_alone_end_it() {
    let kernel = by_edges(FakeKernel::new(Transport::Stream, Fail(EAGAIN)));
    kernel.will([Answer::Take; 2]);
    let sender = kernel.sender(config());
    (0..2).for_each(|_| assert!(sender.try_send(&PAGE[..]).is_ok()));
    let looking = Arc::downgrade(&sender);
    let in_flight = move || looking.upgrade().unwrap().stats().in_flight_calls;
    let in_flight_later = in_flight.clone();
    script!(
        &kernel,
        |kernel, _| {
            kernel.release();
            error()
        },
        move |kernel, _| {
            assert_eq!(in_flight(), 1, "the notification is read");
            kernel.release();
            Ready { writable: true, ..error() }
        },
        move |kernel, _| {
            assert_eq!(in_flight_later(), 1, "the notification is left to the calls to come");
            kernel.will([Answer::Take]);
            Ready { writable: true, ..Ready::default() }
        },
    );
    sender.send(&PAGE[..]).unwrap();
}

#[test]
fn the_descriptors_of_a_wait_serve_the_next_without_a_second_look() {
    let kernel = by_edges(stream([]));
    let sender = kernel.sender(config());
    for _ in 0..2 {
        sender.try_send(&PAGE[..]).unwrap();
        let reads = kernel.with(|state| state.reads);
        script!(&kernel, move |kernel, waited| {
            assert_eq!(waited.writable, None);
            let looks = kernel.with(|state| state.reads) - reads;
            assert_eq!(looks, 1);
            kernel.release();
            Ready::default()
        });
        sender.drain(None).unwrap();
    }
    assert_eq!(kernel.with(|state| state.edges_made), 1);
}

#[test]
fn a_drain_waits_for_no_room_and_looks_again_after_a_while() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    for deadline in [None, Some(kernel.now() + 100 * OVERDUE)] {
        sender.try_send(&PAGE[..]).unwrap();
        kernel.will([Fail(EAGAIN)]);
        sender.try_send(&PAGE[..]).unwrap_err();
        assert!(sender.interest().writable);
        script!(&kernel, |kernel, waited| {
            assert_eq!(waited.writable, Some(false));
            assert_eq!(waited.timeout, Some(OVERDUE), "a notification may be lost");
            kernel.release();
            Ready::default()
        });
        sender.drain(deadline).unwrap();
    }
}

#[test]
fn a_lasting_error_condition_ends_a_wait_without_descriptors() {
    for ready in [error(), Ready { hangup: true, ..Ready::default() }] {
        let kernel = stream([]);
        kernel.with(|state| state.edges = Some(Err(EMFILE)));
        let sender = kernel.sender(config());
        sender.try_send(&PAGE[..]).unwrap();
        let waits = Arc::new(AtomicUsize::new(0));
        let last = Arc::clone(&waits);
        script!(
            &kernel,
            move |kernel, _| {
                // The message explains the condition.
                kernel.foreign(0);
                ready
            },
            |_, _| Ready::default(),
            move |_, _| {
                last.store(3, Ordering::Relaxed);
                ready
            },
        );
        let Err(WaitError::Os(error)) = sender.drain(None) else { panic!("it would spin") };
        assert_eq!(error.raw(), EMFILE);
        assert_eq!(waits.load(Ordering::Relaxed), 3, "the condition was gone in between");
    }
}

#[test]
fn a_thread_that_waits_hears_of_a_visitors_proof_and_of_a_cut() {
    // The option memory proves the release of a poisoned sender's call.
    for on_release in [OnRelease::Recycle, OnRelease::Return] {
        let pool = pool();
        let kernel = by_edges(stream([]));
        let sender = kernel.sender(Config { on_release, ..config() });
        sender.try_send(filled(&pool)).unwrap();
        kernel.note(7, 7);
        sender.step().unwrap();
        assert!(sender.is_poisoned());
        let visitor = Arc::downgrade(&sender);
        script!(&kernel, move |kernel, _| {
            kernel.steal();
            visitor.upgrade().unwrap().step().unwrap();
            assert!(kernel.with(|state| state.wakes) > 0);
            Ready::default()
        });
        let _ = sender.close(None);
    }
    // The connection fails in the middle of a send.
    let kernel = by_edges(FakeKernel::new(Transport::Stream, Fail(EAGAIN)));
    kernel.will([Part(1000)]);
    let sender = kernel.sender(config());
    let visitor = Arc::downgrade(&sender);
    script!(&kernel, move |kernel, _| {
        kernel.will([Fail(ECONNRESET)]);
        visitor.upgrade().unwrap().step().unwrap();
        assert!(kernel.with(|state| state.wakes) > 0);
        Ready::default()
    });
    assert!(matches!(sender.send(&PAGE[..]), Err(SendError::Truncated { .. })));
}

#[test]
fn a_blocked_send_hears_of_a_visitors_proof() {
    for on_release in [OnRelease::Recycle, OnRelease::Return] {
        let kernel = by_edges(FakeKernel::new(Transport::Stream, Fail(EAGAIN)));
        kernel.will([Answer::Take]);
        let sender = kernel.sender(Config { on_release, ..config() });
        sender.try_send(&PAGE[..]).unwrap();
        kernel.note(7, 7);
        sender.step().unwrap();
        assert!(sender.is_poisoned());
        kernel.will([Part(1000)]);
        let visitor = Arc::downgrade(&sender);
        script!(&kernel, move |kernel, _| {
            kernel.steal();
            visitor.upgrade().unwrap().step().unwrap();
            assert_eq!(kernel.with(|state| state.wakes), 1);
            kernel.will([Answer::Take]);
            Ready { writable: true, ..Ready::default() }
        });
        sender.send(&PAGE[..]).unwrap();
    }
}

#[test]
fn a_refused_vectored_send_leaves_a_reason_to_wait() {
    let pool = Pool::builder().class(4096, 2).sender_quota(1).build().unwrap();
    let kernel = stream([Part(1000)]);
    let sender = kernel.sender(Config { max_in_flight_sends: 1, ..config() });
    sender.try_send(filled(&pool)).unwrap();
    // The release comes behind the look for the unsent part, and before the look for the quota.
    let network = kernel.clone();
    kernel.with(|state| state.on_read = Some(Box::new(move || network.release())));
    let mut bufs = vec![filled(&pool).into()];
    let refused = sender.try_send_vectored(&mut bufs);
    assert!(matches!(refused, Err(SendError::WouldBlock(()))));
    assert!(sender.interest().released, "the unsent part is in flight");
}

#[test]
fn a_blocked_send_does_not_wake_its_own_thread() {
    let kernel = by_edges(FakeKernel::new(Transport::Stream, Fail(EAGAIN)));
    let sender = kernel.sender(config());
    kernel.will([Part(1000)]);
    let room = |part: Answer| {
        move |kernel: &FakeKernel, _: Waited| {
            kernel.seen();
            kernel.will([part]);
            Ready { writable: true, ..Ready::default() }
        }
    };
    script!(&kernel, room(Part(1000)), room(Part(1000)), room(Answer::Take));
    sender.send(&PAGE[..]).unwrap();
    assert_eq!(kernel.with(|state| state.wakes), 0);
}

#[test]
fn a_change_between_the_look_and_the_sleep_ends_a_wait() {
    let kernel = by_edges(stream([]));
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap();
    let deadline = kernel.now() + OVERDUE;
    let (socket, visitor) = (kernel.clone(), Arc::clone(&sender));
    let visit = move || {
        socket.release();
        visitor.step().unwrap();
    };
    // The look reads the clock, and then the thread before its sleep.
    kernel.with(|state| state.at_clock = Some((2, Box::new(visit))));
    kernel.with(|state| state.on_wait = Some(Arc::new(|_, _| panic!("the change is there"))));
    sender.drain(Some(deadline)).unwrap();
}

#[test]
fn the_drops_of_a_refused_attempt_are_no_reason_for_one_more() {
    let pool =
        Pool::builder().class(4096, 8).backing(Backing::Require(Pages::Base)).build().unwrap();
    let kernel = by_edges(FakeKernel::new(Transport::Stream, Fail(EAGAIN)));
    kernel.will([Answer::Take]);
    // The error queue is read before each send behind one in flight.
    let sender = kernel.sender_of(Arc::new(MemlockBudget::new(None)), 2 * 832, config());
    sender.try_send(filled(&pool)).unwrap();
    let room = |kernel: &FakeKernel, _: Waited| {
        kernel.seen();
        kernel.will([Answer::Take]);
        Ready { writable: true, ..Ready::default() }
    };
    script!(&kernel, room, move |kernel, waited| {
        assert_eq!(kernel.seen().len(), 1, "no second attempt before the wait");
        room(kernel, waited)
    });
    sender.send(filled(&pool)).unwrap();
    kernel.seen();
    (0..2).for_each(|_| kernel.release());
    sender.send(filled(&pool)).unwrap();
}

#[test]
fn a_refused_send_makes_no_second_attempt_before_its_first_wait() {
    for taken in [&[][..], &[Part(1000)]] {
        let kernel = by_edges(FakeKernel::new(Transport::Stream, Fail(EAGAIN)));
        kernel.will(taken.iter().copied());
        let sender = kernel.sender(config());
        let attempts = taken.len() + 1;
        script!(&kernel, move |kernel, _| {
            assert_eq!(kernel.seen().len(), attempts);
            kernel.will([Answer::Take]);
            Ready { writable: true, ..Ready::default() }
        });
        sender.send(&PAGE[..]).unwrap();
        assert_eq!(kernel.seen().len(), 1);
    }
}

/// Acts when woken.
struct OnWake(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Wake for OnWake {
    fn wake(self: Arc<Self>) {
        let act = lock(&self.0).take().expect("woken once");
        act();
    }
}

#[test]
fn the_end_of_a_call_that_began_during_a_look_ends_a_drain() {
    promptly(|| {
        let kernel = by_edges(stream([]));
        let sender = kernel.sender(config());
        let ticket = sender.try_send(&PAGE[..]).unwrap();
        let (started, is_out) = mpsc::channel();
        let (end, may_end) = mpsc::channel();
        let (handle, thread) = mpsc::channel();
        let (socket, other) = (kernel.clone(), Arc::clone(&sender));
        let send = move || {
            let call = move || {
                started.send(()).unwrap();
                may_end.recv().unwrap();
            };
            socket.with(|state| state.meanwhile = Some(Box::new(call)));
            handle.send(thread::spawn(move || _ = other.try_send(&PAGE[..100]).unwrap())).unwrap();
            is_out.recv().unwrap();
        };
        let waker = Waker::from(Arc::new(OnWake(Mutex::new(Some(Box::new(send))))));
        assert!(sender.poll_fate(&mut Context::from_waker(&waker), ticket).is_pending());
        let thread = Mutex::new(thread);
        script!(
            &kernel,
            |kernel, _| {
                kernel.release();
                Ready::default()
            },
            move |kernel, _| {
                end.send(()).unwrap();
                lock(&thread).recv().unwrap().join().unwrap();
                assert_eq!(kernel.with(|state| state.wakes), 1);
                Ready::default()
            },
        );
        sender.drain(None).unwrap();
    });
}

#[test]
fn a_send_waits_for_the_call_of_a_visitor() {
    promptly(|| {
        let kernel = stream([Part(1000), Fail(EAGAIN)]);
        let sender = kernel.sender(config());
        sender.try_send(&PAGE[..]).unwrap();
        let (owner, sent) = (Arc::clone(&sender), Arc::new(AtomicBool::new(false)));
        let is_sent = Arc::clone(&sent);
        let (begun, sending) = mpsc::channel();
        kernel.with(|state| {
            state.meanwhile = Some(Box::new(move || {
                let sender = Arc::clone(&owner);
                let send = move || {
                    is_sent.store(sender.try_send(&PAGE[..]).is_ok(), Ordering::Relaxed);
                };
                let thread = thread::spawn(send);
                while owner.enter().awaiting == 0 && !thread.is_finished() {
                    thread::yield_now();
                }
                begun.send(thread).unwrap();
            }));
        });
        sender.step().unwrap();
        sending.recv().unwrap().join().unwrap();
        assert!(sent.load(Ordering::Relaxed));
    });
}

/// Closes the sender on another thread when woken, and waits for the first word of that thread.
struct Closes(Arc<Core<FakeKernel>>, FakeKernel, AtomicBool);

impl Wake for Closes {
    fn wake(self: Arc<Self>) {
        let (closed, said) = mpsc::channel();
        let waits = closed.clone();
        self.1.with(|state| {
            state.on_wait = Some(Arc::new(move |_, _| {
                _ = waits.send("waits");
                thread::yield_now();
                Ready::default()
            }));
        });
        let sender = Arc::clone(&self.0);
        thread::spawn(move || {
            let _ = sender.close(None);
            _ = closed.send("closed");
        });
        self.2.store(said.recv() == Ok("waits"), Ordering::Relaxed);
    }
}

#[test]
fn a_close_waits_until_another_thread_has_dropped_the_buffers() {
    promptly(|| {
        let pool = pool();
        let kernel = stream([]);
        let sender = kernel.sender(config());
        sender.share();
        sender.try_send(filled(&pool)).unwrap();
        let (socket, waited) = (kernel.clone(), AtomicBool::new(false));
        let closes = Arc::new(Closes(Arc::clone(&sender), socket, waited));
        let waker = Waker::from(Arc::clone(&closes));
        let mut alloc = std::pin::pin!(pool.alloc_async(1));
        assert!(alloc.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        kernel.release();
        sender.step().unwrap();
        assert!(closes.2.load(Ordering::Relaxed));
    });
}
