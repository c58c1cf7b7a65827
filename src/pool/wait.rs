//! Waiting for a slot.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use crate::{
    buf::PinnedBuf,
    error::AllocError,
    raw::{Joined, PoolHandle, RawPool, SizeClass, SlotRef, WaitTicket},
    reaper,
    sync::{Arc, Parker},
};

/// The longest sleep of a blocked thread while no other thread can drive the senders.
const DRIVE_EVERY: Duration = Duration::from_millis(5);

/// A future that takes a buffer as soon as one is free; from
/// [`Pool::alloc_async`](crate::Pool::alloc_async).
///
/// The first poll takes a place in the queue, and dropping the future gives the place up. A slot
/// that was already granted goes to the next waiter, or back to the pool. A forgotten future
/// (`mem::forget`) can keep a slot for ever. The output is that of
/// [`Pool::alloc`](crate::Pool::alloc).
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::{pin::pin, task::{Context, Poll, Waker}};
///
/// let pool = pinbuf::Pool::new(4096, 1)?;
/// let held = pool.try_alloc(4096)?;
/// let mut alloc = pin!(pool.alloc_async(4096));
/// let mut cx = Context::from_waker(Waker::noop());
/// assert!(alloc.as_mut().poll(&mut cx).is_pending());
/// drop(held);
/// assert!(matches!(alloc.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
/// # Ok(())
/// # }
/// ```
///
/// If no thread can be started to drive the senders with buffers of the pool, the future drives
/// them, and asks to be polled again at once until a buffer is free.
#[must_use = "a future does nothing unless polled"]
pub struct Alloc<'a> {
    pool: &'a RawPool,
    class: Result<&'a SizeClass, AllocError>,
    place: Place,
}

static_assertions::assert_impl_all!(Alloc<'static>: Send, Sync);

impl<'a> Alloc<'a> {
    pub(super) fn new(pool: &'a RawPool, class: Result<&'a SizeClass, AllocError>) -> Self {
        Self { pool, class, place: Place::new() }
    }

    /// Drives the future on this thread, asleep in between.
    #[cold]
    pub(super) fn block(mut self, deadline: Option<Instant>) -> Result<PinnedBuf, AllocError> {
        let class = self.class?;
        let parker = Arc::new(Unpark(Parker::new()));
        let waker = Waker::from(Arc::clone(&parker));
        loop {
            if let Poll::Ready(result) = self.place.advance(self.pool, class, &waker) {
                return result;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return self.place.leave(class).ok_or(AllocError::TimedOut);
            }
            let nap = (!self.place.watched).then_some(DRIVE_EVERY);
            parker.0.park(left.into_iter().chain(nap).min());
        }
    }
}

impl Future for Alloc<'_> {
    type Output = Result<PinnedBuf, AllocError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (pool, class) = (self.pool, self.class?);
        self.place.poll(pool, class, cx)
    }
}

impl Drop for Alloc<'_> {
    fn drop(&mut self) {
        if let Ok(class) = self.class {
            self.place.give_up(class);
        }
    }
}

impl fmt::Debug for Alloc<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_queued = self.place.ticket.is_some();
        f.debug_struct("Alloc").field("queued", &is_queued).finish_non_exhaustive()
    }
}

/// A waiter for buffers that is stored and polled by hand, for event loops and for hand-written
/// futures; from [`Pool::waiter`](crate::Pool::waiter).
///
/// A poll without a free buffer takes a place in the queue of the pool, as
/// [`Pool::alloc_async`](crate::Pool::alloc_async) does, and keeps it over the next polls. The waker of
/// the last poll is called once a buffer is granted. Dropping the waiter gives the place up. A waiter
/// that is woken and not polled again holds a buffer back. The waiter is a handle of the pool, as a
/// clone is.
///
/// A loop of `epoll`, `poll` or mio makes a waker that ends its own wait: of `mio::Waker`, an eventfd
/// or a pipe.
///
/// ```
/// use pinbuf::Pool;
/// use std::{
///     io::{PipeWriter, Read, Write, pipe},
///     sync::Arc,
///     task::{Context, Poll, Wake, Waker},
/// };
///
/// /// Makes the other end of a pipe readable, which the loop watches.
/// struct EndsTheWait(PipeWriter);
///
/// impl Wake for EndsTheWait {
///     fn wake(self: Arc<Self>) {
///         let _ = (&self.0).write(&[0]);
///     }
/// }
///
/// let (mut watched, end) = pipe()?;
/// let waker = Waker::from(Arc::new(EndsTheWait(end)));
/// let pool = Pool::new(4096, 1)?;
/// let mut waiter = pool.waiter(4096)?;
/// let mut cx = Context::from_waker(&waker);
/// let Poll::Ready(Ok(buf)) = waiter.poll_alloc(&mut cx) else { panic!("one is free") };
/// assert!(waiter.poll_alloc(&mut cx).is_pending());
/// drop(buf);
/// watched.read_exact(&mut [0])?; // The loop of the program.
/// assert!(waiter.poll_alloc(&mut cx).is_ready());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Waiter {
    pool: Arc<PoolHandle>,
    capacity: usize,
    place: Place,
}

static_assertions::assert_impl_all!(Waiter: Send, Sync, Unpin);

impl Waiter {
    pub(super) fn new(pool: Arc<PoolHandle>, capacity: usize) -> Self {
        Self { pool, capacity, place: Place::new() }
    }

    /// Polls for a buffer. After a buffer the next poll is for another one.
    ///
    /// See the example of [`Waiter`].
    ///
    /// # Errors
    ///
    /// As [`Pool::alloc`](crate::Pool::alloc).
    pub fn poll_alloc(&mut self, cx: &mut Context<'_>) -> Poll<Result<PinnedBuf, AllocError>> {
        let class = self.pool.class(self.capacity)?;
        self.place.poll(&self.pool, class, cx)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Ok(class) = self.pool.class(self.capacity) {
            self.place.give_up(class);
        }
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_queued = self.place.ticket.is_some();
        f.debug_struct("Waiter").field("queued", &is_queued).finish_non_exhaustive()
    }
}

/// The state of one wait: a place in the queue of a class, if any.
#[derive(Debug)]
struct Place {
    /// Set while queued.
    ticket: Option<WaitTicket>,
    /// `true` if all holders of slots in flight are being watched.
    watched: bool,
}

impl Place {
    fn new() -> Self {
        Self { ticket: None, watched: true }
    }

    /// The one path of waiting. The order matters:
    ///
    /// 1. queue, so that a slot recycled from here on is granted;
    /// 2. drive the senders, since this thread may be the only one to do so;
    /// 3. have the reaper watch the senders;
    /// 4. sleep.
    fn advance(
        &mut self,
        pool: &RawPool,
        class: &SizeClass,
        waker: &Waker,
    ) -> Poll<Result<PinnedBuf, AllocError>> {
        if class.is_forked() {
            return Poll::Ready(Err(AllocError::Forked));
        }
        if self.ticket.is_none() {
            match pool.alloc(class) {
                Err(AllocError::Exhausted) => {}
                result => return Poll::Ready(result.map(PinnedBuf::new)),
            }
            match class.join(waker.clone()) {
                Joined::Slot(index) => return Poll::Ready(Ok(hand_out(class, index))),
                Joined::Queued(ticket) => self.ticket = Some(ticket),
            }
        } else if let Some(buf) = self.claim(class, waker) {
            return Poll::Ready(Ok(buf));
        }
        reaper::serve();
        let reclaimers = pool.reclaimers();
        for reclaim in &reclaimers {
            reclaim.drive();
        }
        let mut result = self.claim(class, waker).map(Ok);
        if result.is_none() && class.is_wholly_quarantined() {
            result = Some(self.leave(class).ok_or(AllocError::Exhausted));
        }
        if let Some(result) = result {
            // The last handle of a sender may end here, which drops payloads of the user. If one
            // panics, the buffer must be in a variable: a value on its way out would be lost.
            drop(reclaimers);
            return Poll::Ready(result);
        }
        self.watched = true;
        for reclaim in reclaimers {
            self.watched &= reclaim.watch();
        }
        Poll::Pending
    }

    /// As [`advance`](Self::advance), for a task.
    fn poll(
        &mut self,
        pool: &RawPool,
        class: &SizeClass,
        cx: &mut Context<'_>,
    ) -> Poll<Result<PinnedBuf, AllocError>> {
        let poll = self.advance(pool, class, cx.waker());
        if poll.is_pending() && !self.watched {
            cx.waker().wake_by_ref();
        }
        poll
    }

    /// Takes the granted slot, if any, and leaves the queue.
    fn claim(&mut self, class: &SizeClass, waker: &Waker) -> Option<PinnedBuf> {
        let index = class.claim(self.ticket?, waker)?;
        self.ticket = None;
        Some(hand_out(class, index))
    }

    /// Leaves the queue, with a slot granted at the last moment.
    fn leave(&mut self, class: &SizeClass) -> Option<PinnedBuf> {
        let index = class.leave(self.ticket.take()?)?;
        Some(hand_out(class, index))
    }

    /// Leaves the queue. A slot that was granted goes to the next waiter, or back to the pool.
    fn give_up(&mut self, class: &SizeClass) {
        if let Some(ticket) = self.ticket.take()
            && !class.is_forked()
            && let Some(index) = class.leave(ticket)
        {
            SlotRef::return_grant(class.slot(index));
        }
    }
}

fn hand_out(class: &SizeClass, index: u32) -> PinnedBuf {
    PinnedBuf::new(SlotRef::claim(class.slot(index)))
}

struct Unpark(Parker);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        pin::pin,
    };

    use super::*;
    use crate::{
        Pool,
        lease::Memory,
        lock::{Mutex, lock},
        raw::Reclaim,
        sync::{AtomicUsize, Ordering, Weak},
    };

    /// A sender that the reaper watches from the given look on.
    struct WatchedFrom(AtomicUsize);

    impl Reclaim for WatchedFrom {
        fn drive(&self) {}

        fn watch(self: Arc<Self>) -> bool {
            let left = self.0.load(Ordering::Relaxed);
            self.0.store(left.saturating_sub(1), Ordering::Relaxed);
            left == 0
        }
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_task_polls_until_every_sender_is_watched() {
        let pool = Pool::new(4096, 1).unwrap();
        let held = pool.try_alloc(1).unwrap();
        let senders = [2, 0].map(|looks| Arc::new(WatchedFrom(AtomicUsize::new(looks))));
        for sender in &senders {
            let sender: Arc<dyn Reclaim> = Arc::<WatchedFrom>::clone(sender);
            let weak: Weak<dyn Reclaim> = Arc::downgrade(&sender);
            held.pool().unwrap().register(weak);
        }
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut alloc = pin!(pool.alloc_async(1));
        for woken in [1, 2, 2] {
            assert!(alloc.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            assert_eq!(count.0.load(Ordering::Relaxed), woken);
        }
    }

    /// An ending sender with a buffer and the last handle of itself, and a payload whose drop panics.
    #[derive(Default)]
    struct Ending(Mutex<Option<(PinnedBuf, Arc<Self>)>>);

    impl Reclaim for Ending {
        fn drive(&self) {
            drop(lock(&self.0).take());
        }

        fn watch(self: Arc<Self>) -> bool {
            true
        }
    }

    impl Drop for Ending {
        fn drop(&mut self) {
            panic!("a payload panics");
        }
    }

    #[test]
    fn a_panic_in_the_drop_of_a_driven_sender_loses_no_buffer() {
        let pool = Pool::new(4096, 1).unwrap();
        let held = pool.try_alloc(1).unwrap();
        let sender = Arc::new(Ending::default());
        let weak: Weak<Ending> = Arc::downgrade(&sender);
        held.pool().unwrap().register(weak);
        *lock(&sender.0) = Some((held, Arc::clone(&sender)));
        drop(sender);
        let mut alloc = pin!(pool.alloc_async(1));
        let mut cx = Context::from_waker(Waker::noop());
        let polled = catch_unwind(AssertUnwindSafe(|| alloc.as_mut().poll(&mut cx)));
        assert!(polled.is_err(), "the sender ends after the allocation has its buffer");
        assert_eq!(pool.stats().free(), 1);
    }
}
