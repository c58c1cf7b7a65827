//! Waits of tasks: which news wakes which task, and how often.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use super::*;
use crate::{
    error::WaitError,
    lease::Payload,
    sys::socket::{News, Ready},
};

const EPIPE: i32 = 32;
const ECONNRESET: i32 = 104;

/// Counts its wake-ups.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A task that polls when told to.
#[derive(Default)]
struct Task(Arc<Count>);

impl Task {
    fn poll<T>(&self, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        poll(&mut Context::from_waker(&Waker::from(Arc::clone(&self.0))))
    }

    fn woken(&self) -> usize {
        self.0.0.load(Ordering::Relaxed)
    }
}

fn ready<T>(polled: Poll<T>) -> T {
    match polled {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("still pending"),
    }
}

/// A socket without room, until told otherwise, for its reaper and its loop alike.
fn full(kernel: &FakeKernel) -> Arc<AtomicBool> {
    let room = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&room);
    kernel.with(|state| {
        state.on_wait = Some(Arc::new(move |_, _| Ready {
            writable: told.load(Ordering::Relaxed),
            ..Ready::default()
        }));
    });
    room
}

#[test]
fn a_sender_is_ready_until_it_refuses_a_buffer() {
    let kernel = FakeKernel::new(Transport::Stream, Fail(EAGAIN));
    let sender = kernel.sender(config());
    let room = full(&kernel);
    let task = Task::default();
    assert!(ready(task.poll(|cx| sender.poll_ready(cx))).is_ok());
    assert_eq!(kernel.with(|state| state.reads), 0, "no system call");
    sender.try_send(&PAGE[..]).unwrap_err();
    assert!(task.poll(|cx| sender.poll_ready(cx)).is_pending());
    for _ in 0..5 {
        sender.attend();
        kernel.foreign(1);
    }
    assert_eq!(task.woken(), 0, "there is no room");
    room.store(true, Ordering::Relaxed);
    sender.attend();
    assert_eq!(task.woken(), 1);
    sender.attend();
    assert_eq!(task.woken(), 1, "told once");
    assert!(ready(task.poll(|cx| sender.poll_ready(cx))).is_ok());
    kernel.will([Answer::Take]);
    sender.try_send(&PAGE[..]).unwrap();
    assert!(ready(task.poll(|cx| sender.poll_ready(cx))).is_ok(), "nothing was refused since");
}

/// Without a waker yet, no look asks for room.
#[test]
fn room_before_the_first_poll_is_found_by_the_poll() {
    let kernel = FakeKernel::new(Transport::Stream, Fail(EAGAIN));
    let sender = kernel.sender(config());
    let room = full(&kernel);
    sender.try_send(&PAGE[..]).unwrap_err();
    room.store(true, Ordering::Relaxed);
    sender.attend();
    let task = Task::default();
    assert!(ready(task.poll(|cx| sender.poll_ready(cx))).is_ok());
    assert_eq!(task.woken(), 0);
}

#[test]
fn a_release_lets_a_buffer_in_that_the_window_refused() {
    for by_visitor in [false, true] {
        let kernel = stream([]);
        let sender = kernel.sender(Config { max_in_flight_sends: 1, ..config() });
        let task = Task::default();
        sender.try_send(&PAGE[..]).unwrap();
        sender.try_send(&PAGE[..]).unwrap_err();
        if by_visitor {
            kernel.release();
            sender.attend();
        } else {
            assert!(task.poll(|cx| sender.poll_ready(cx)).is_pending());
            kernel.foreign(0);
            sender.attend();
            assert_eq!(task.woken(), 0);
            kernel.release();
            sender.attend();
            assert_eq!(task.woken(), 1);
        }
        assert!(ready(task.poll(|cx| sender.poll_ready(cx))).is_ok());
        assert!(sender.try_send(&PAGE[..]).is_ok());
    }
}

#[test]
fn a_poisoned_sender_admits_the_buffer_that_its_window_refused() {
    let kernel = stream([]);
    let sender = kernel.sender(Config { max_in_flight_sends: 1, ..config() });
    let task = Task::default();
    sender.try_send(&PAGE[..]).unwrap();
    sender.try_send(&PAGE[..]).unwrap_err();
    assert!(task.poll(|cx| sender.poll_ready(cx)).is_pending());
    kernel.note(7, 7);
    sender.attend();
    assert!(sender.is_poisoned());
    assert!(ready(task.poll(|cx| sender.poll_ready(cx))).is_ok(), "it goes by copy");
}

#[test]
fn a_buffer_refused_behind_an_unsent_part_waits_for_no_room_of_its_own() {
    let kernel = stream([Part(1000), Fail(EAGAIN), Fail(EAGAIN)]);
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap();
    sender.try_send(&PAGE[..]).unwrap_err();
    assert!(sender.interest().writable);
    sender.abort();
    sender.step().unwrap();
    assert!(!sender.interest().writable, "the part is given up");
}

#[test]
fn a_buffer_behind_an_unsent_part_waits_for_the_part() {
    let kernel = stream([Part(1000)]);
    kernel.will([Fail(EAGAIN); 4]);
    let sender = kernel.sender(config());
    let (sending, flushing) = (Task::default(), Task::default());
    sender.try_send(&PAGE[..]).unwrap();
    sender.try_send(&PAGE[..]).unwrap_err();
    assert!(sending.poll(|cx| sender.poll_ready(cx)).is_pending());
    assert!(flushing.poll(|cx| sender.poll_flush(cx)).is_pending());
    assert_eq!(sending.woken() + flushing.woken(), 0);
    sender.attend();
    assert_eq!((sending.woken(), flushing.woken()), (1, 1), "the reaper sent the part");
    assert!(ready(flushing.poll(|cx| sender.poll_flush(cx))).is_ok());
    assert!(ready(sending.poll(|cx| sender.poll_ready(cx))).is_ok());
}

#[test]
fn a_flush_tells_that_the_last_send_was_cut_short() {
    let kernel = stream([Part(1000), Fail(EAGAIN), Fail(EAGAIN), Fail(ECONNRESET)]);
    let sender = kernel.sender(config());
    let (sending, flushing) = (Task::default(), Task::default());
    sender.try_send(&PAGE[..]).unwrap();
    assert!(flushing.poll(|cx| sender.poll_flush(cx)).is_pending());
    sender.try_send(&PAGE[..]).unwrap_err();
    for _ in 0..2 {
        let error = ready(flushing.poll(|cx| sender.poll_flush(cx))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(ECONNRESET));
        assert_eq!(sender.flush().unwrap_err().raw_os_error(), Some(ECONNRESET));
    }
    assert!(ready(sending.poll(|cx| sender.poll_ready(cx))).is_ok(), "the next send tells");
}

#[test]
fn an_unsent_part_that_is_refused_for_good_ends_a_flush() {
    const EINVAL: i32 = 22;
    let kernel = stream([Part(1000), Fail(EAGAIN), Fail(EINVAL)]);
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap();
    let task = Task::default();
    let error = ready(task.poll(|cx| sender.poll_flush(cx))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EINVAL));
}

#[test]
fn a_drain_is_told_after_the_last_drop() {
    let pool = pool();
    let kernel = stream([]);
    let sender = kernel.sender(config());
    let task = Task::default();
    assert!(ready(task.poll(|cx| sender.poll_drain(cx))).is_ok(), "nothing is in flight");
    sender.try_send(filled(&pool)).unwrap();
    sender.try_send(&PAGE[..]).unwrap();
    assert!(task.poll(|cx| sender.poll_drain(cx)).is_pending());
    kernel.release();
    sender.attend();
    assert_eq!(task.woken(), 0, "one of two is in flight");
    kernel.release();
    sender.attend();
    assert_eq!((task.woken(), pool.stats().free()), (1, 1));
    assert!(ready(task.poll(|cx| sender.poll_drain(cx))).is_ok());
    sender.try_send(&PAGE[..]).unwrap();
    assert!(task.poll(|cx| sender.poll_drain(cx)).is_pending());
    kernel.note(7, 7);
    sender.attend();
    assert_eq!(task.woken(), 2);
    let drained = ready(task.poll(|cx| sender.poll_drain(cx)));
    assert_eq!(drained, Err(WaitError::Poisoned));
}

/// Reads the last notification on a second thread while the first drops its buffers.
struct SecondReader(Arc<Core<FakeKernel>>, FakeKernel);

impl Wake for SecondReader {
    fn wake(self: Arc<Self>) {
        self.1.release();
        self.0.attend();
    }
}

#[test]
fn a_drain_waits_for_the_drops_of_another_thread() {
    let pool = pool();
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.try_send(filled(&pool)).unwrap();
    sender.try_send(&PAGE[..]).unwrap();
    let task = Task::default();
    assert!(task.poll(|cx| sender.poll_drain(cx)).is_pending());
    // The waiter for the slot is woken in the drop of the buffer.
    let waker = Waker::from(Arc::new(SecondReader(Arc::clone(&sender), kernel.clone())));
    let mut alloc = std::pin::pin!(pool.alloc_async(1));
    assert!(alloc.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    kernel.release();
    sender.attend();
    assert_eq!(task.woken(), 1);
    assert!(ready(task.poll(|cx| sender.poll_drain(cx))).is_ok());
}

#[test]
fn an_end_is_told_once_and_refuses_further_buffers() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap();
    let task = Task::default();
    assert!(task.poll(|cx| sender.poll_close(cx)).is_pending());
    assert!(kernel.with(|state| state.shut_down));
    kernel.will([Fail(EPIPE)]);
    let error = sender.try_send(&PAGE[..]).unwrap_err();
    assert!(matches!(error, SendError::Connection { error, .. } if error.raw() == EPIPE));
    sender.attend();
    assert_eq!(task.woken(), 0);
    kernel.release();
    sender.attend();
    sender.attend();
    assert_eq!(task.woken(), 1);
    for _ in 0..2 {
        let report = ready(task.poll(|cx| sender.poll_close(cx))).unwrap();
        assert!(report.drained, "{report:?}");
    }
    sender.leave(false);
}

/// A poll reads the news itself. Its task needs no wake-up for that.
#[test]
fn a_poll_that_finds_its_event_wakes_no_task() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    let ticket = sender.try_send(&PAGE[..]).unwrap();
    let task = Task::default();
    assert!(task.poll(|cx| sender.poll_fate(cx, ticket)).is_pending());
    kernel.release();
    assert!(ready(task.poll(|cx| sender.poll_fate(cx, ticket))).is_ok());
    sender.attend();
    assert_eq!(task.woken(), 0);
}

#[test]
fn the_task_of_the_last_poll_is_woken() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    let ticket = sender.try_send(&PAGE[..]).unwrap();
    let (first, last) = (Task::default(), Task::default());
    assert!(first.poll(|cx| sender.poll_fate(cx, ticket)).is_pending());
    assert!(last.poll(|cx| sender.poll_fate(cx, ticket)).is_pending());
    kernel.release();
    sender.attend();
    assert_eq!((first.woken(), last.woken()), (0, 1));
}

#[test]
fn a_failed_look_leaves_no_waker() {
    let kernel = FakeKernel::new(Transport::Stream, Fail(EAGAIN));
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap_err();
    kernel.with(|state| state.unreadable = 1);
    let task = Task::default();
    let Err(WaitError::Os(error)) = ready(task.poll(|cx| sender.poll_ready(cx))) else {
        panic!("the queue cannot be read")
    };
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::OutOfMemory);
    full(&kernel).store(true, Ordering::Relaxed);
    sender.attend();
    assert_eq!(task.woken(), 0);
}

/// A loop that reaps for the owner forgets a refusal only if no task waits to send the buffer.
#[test]
fn a_reap_keeps_the_refusal_that_a_task_waits_for() {
    let kernel = FakeKernel::new(Transport::Stream, Fail(EAGAIN));
    let sender = kernel.sender(config());
    let room = full(&kernel);
    sender.try_send(&PAGE[..]).unwrap_err();
    let task = Task::default();
    assert!(task.poll(|cx| sender.poll_ready(cx)).is_pending());
    sender.reap_and_flush().unwrap();
    assert_eq!(task.woken(), 0);
    room.store(true, Ordering::Relaxed);
    sender.reap_and_flush().unwrap();
    assert_eq!(task.woken(), 1);
}

#[test]
fn an_error_that_ends_the_connection_is_the_connections() {
    const EHOSTUNREACH: i32 = 113;
    let send: fn(&Core<FakeKernel>) -> bool =
        |sender| matches!(sender.try_send(&PAGE[..]), Err(SendError::Connection { .. }));
    let write: fn(&Core<FakeKernel>) -> bool =
        |sender| matches!(sender.try_write(&PAGE[..]), Err(SendError::Connection { .. }));
    let rest: fn(&Core<FakeKernel>) -> bool =
        |sender| matches!(sender.try_send(&PAGE[..]), Err(SendError::Truncated { .. }));
    let refused = [Fail(EHOSTUNREACH)];
    for (config, answers, call) in [
        (config(), &refused[..], send),
        (Config::default(), &refused, send),
        (config(), &refused, write),
        (config(), &[Part(1000), Fail(EHOSTUNREACH)], rest),
    ] {
        for is_over in [false, true] {
            let kernel = stream(answers.iter().copied());
            kernel.with(|state| state.is_over = is_over);
            let sender = kernel.sender(config);
            assert_eq!(call(&sender), is_over, "{answers:?}");
            let error = sender.connection_error().map(|error| error.raw());
            assert_eq!(error, is_over.then_some(EHOSTUNREACH), "{answers:?}");
        }
    }
}

/// The connection ends, and the loop of the program takes the news.
fn hang_up(kernel: &FakeKernel, sender: &Core<FakeKernel>) {
    let news = News { hangup: true, ..News::default() };
    kernel.with(|state| (state.is_over, state.news) = (true, Some(news)));
    sender.reap().unwrap();
}

#[test]
fn a_hangup_during_a_call_is_noticed_after_the_call() {
    let send: fn(&Core<FakeKernel>) = |sender| _ = sender.try_send(&PAGE[..]).unwrap();
    let send_two: fn(&Core<FakeKernel>) = |sender| {
        let mut bufs = [(); 2].map(|()| Payload::from(&PAGE[..])).into();
        sender.try_send_vectored(&mut bufs).unwrap();
    };
    let write: fn(&Core<FakeKernel>) = |sender| _ = sender.try_write(&PAGE[..]).unwrap();
    for (config, call) in
        [(config(), send), (Config::default(), send), (config(), send_two), (config(), write)]
    {
        let kernel = stream([]);
        kernel.with(|state| state.news = Some(News::default()));
        let sender = kernel.sender(config);
        // Later calls may leave their ends.
        for _ in 0..2 {
            call(&sender);
        }
        let (network, visitor) = (kernel.clone(), Arc::clone(&sender));
        let meanwhile = move || hang_up(&network, &visitor);
        kernel.with(|state| state.meanwhile = Some(Box::new(meanwhile)));
        call(&sender);
        assert!(sender.connection_error().is_some());
    }
}

#[test]
fn a_panic_of_a_task_hides_no_hangup() {
    struct Panicking;
    impl Wake for Panicking {
        fn wake(self: Arc<Self>) {
            resume_unwind(Box::new("a waker"));
        }
    }
    let kernel = stream([]);
    kernel.with(|state| state.news = Some(News::default()));
    let sender = kernel.sender(config());
    sender.try_send(&PAGE[..]).unwrap();
    let waker = Waker::from(Arc::new(Panicking));
    assert!(sender.poll_drain(&mut Context::from_waker(&waker)).is_pending());
    kernel.release();
    let reaped = catch_unwind(AssertUnwindSafe(|| hang_up(&kernel, &sender)));
    assert!(reaped.is_err(), "the panic is the caller's");
    assert!(sender.connection_error().is_some());
    assert_eq!(kernel.with(|state| state.renewals), 1, "the queue may hold more");
}
