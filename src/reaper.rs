//! The reaper: the thread of the library that drives dropped senders to their end.
//!
//! The reaper also drives the senders with buffers of a pool in which a thread or task waits for a
//! slot, and senders with a limit of silence
//! ([`max_hold`](crate::sender::SenderBuilder::max_hold)). The thread starts when the first sender
//! needs it, and lives as long as the process. A forked child has a reaper of its own. Without the
//! thread, refused by the system or [forbidden](forbid_thread), calls of the program do the work.
//!
//! | to | use |
//! |---|---|
//! | have all dropped senders finish before the program exits | [`wait_idle`] |
//! | count what the reaper has in its care | [`stats`] |
//! | have a program without the thread | [`forbid_thread`], and [`serve`] from time to time |
//!
//! ```
//! # use std::{io::{copy, sink}, net::{TcpListener, TcpStream}, thread, time::Duration};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let socket = TcpStream::connect(listener.local_addr()?)?;
//! # let peer = thread::spawn(move || copy(&mut listener.accept().unwrap().0, &mut sink()));
//! let mut sender = pinbuf::Sender::new(socket)?;
//! sender.send(&[7; 1 << 20][..])?;
//! drop(sender); // The reaper sends on and ends the stream.
//! assert!(pinbuf::reaper::wait_idle(Some(Duration::from_secs(30))));
//! # assert_eq!(peer.join().unwrap()?, 1 << 20);
//! # Ok(())
//! # }
//! ```

// The reaper knows senders only as `Reclaim`, and so lies below them. Waits are for edges: a socket
// with a lasting error condition costs nothing.

use std::{
    collections::{BTreeSet, HashMap},
    os::fd::BorrowedFd,
    panic::{self, AssertUnwindSafe},
    time::{Duration, Instant},
};

use crate::{
    lock::{Mutex, lock},
    raw::Reclaim,
    sync::{Arc, OnceLock, Parker, Weak, sleep, spawn, unmodelled::Flag},
    sys::{epoll::Watcher, process::PerProcess},
};

/// Names one entry of the reaper; never reused.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Token(u64);

/// Counts of the reaper's senders.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ReaperStats {
    /// Senders watched for a waiting thread.
    pub watched: usize,
    /// Senders without an owner, before their end.
    pub owned: usize,
    /// Owned senders without a thread or a descriptor. Meanwhile [`serve`], [`wait_idle`], every
    /// wait for a buffer and every end of a sender drive them.
    pub unserved: usize,
    /// Senders without an owner that have ended, since the start of the process.
    pub ended: u64,
}

/// Delay until the next look at a sender after a panic in its driving, and the longest delay for a
/// sender without a descriptor.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// A sender in the reaper's table.
enum Sender {
    Watched(Weak<dyn Reclaim>),
    Owned(Arc<dyn Reclaim>),
}

/// Set for good by [`forbid_thread`], also for forked children.
static IS_FORBIDDEN: Flag = Flag::new();

/// The state of the reaper, present from the start; the thread comes later.
#[derive(Default)]
struct State {
    last: u64,
    senders: HashMap<Token, Sender>,
    /// Number of owned senders.
    owned: usize,
    /// The time of a sender's next look without an event; at most one time per sender.
    due: HashMap<Token, Instant>,
    /// The same in order of time.
    timers: BTreeSet<(Instant, Token)>,
    /// Owned senders without a watching descriptor.
    unserved: Vec<Token>,
    ended: u64,
    /// Threads in [`wait_idle`].
    idle_waiters: Vec<Arc<Parker>>,
}

#[derive(Default)]
struct Reaper {
    state: Mutex<State>,
    /// Set once the thread runs.
    watcher: OnceLock<Watcher>,
}

/// From now on drives `sender` at each event of its socket; the present state counts as an event.
/// Returns `None` if there is no thread or descriptor, or if the thread cannot be woken.
pub(crate) fn watch(fd: BorrowedFd<'_>, sender: Weak<dyn Reclaim>) -> Option<Token> {
    Reaper::get().watch(fd, sender)
}

/// Takes over a sender without an owner, and drives it until [`unwatch`]. Keeps the sender even
/// without a thread. The flag beside the token is `true` if the thread drives the sender, be it by
/// timers alone for lack of a descriptor.
pub(crate) fn adopt(fd: BorrowedFd<'_>, sender: Arc<dyn Reclaim>) -> (Token, bool) {
    Reaper::get().adopt(fd, sender)
}

/// Ends a [`watch`], or drops an [adopted](adopt) sender at its end.
pub(crate) fn unwatch(fd: BorrowedFd<'_>, token: Token) {
    let reaper = Reaper::get();
    let mut state = lock(&reaper.state);
    let sender = state.senders.remove(&token);
    state.disarm(token);
    state.unserved.retain(|unserved| *unserved != token);
    if let Some(Sender::Owned(_)) = sender {
        state.ended += 1;
        state.owned -= 1;
        if state.owned == 0 {
            state.wake_idle_waiters();
        }
    }
    if let Some(watcher) = reaper.watcher.get() {
        // Fails only if the descriptor is not in the set.
        let _ = watcher.remove(fd);
    }
    drop(state);
    // May drop the last reference to a sender, so not under the lock.
    drop(sender);
}

/// Keeps the library from starting its thread, for the life of the process and in forked children.
/// Returns `true` if the thread does not run; a thread that runs already stays.
///
/// For programs under a policy against threads, and for filters that kill at `clone`. All memory
/// stays as safe as with the thread, and the calls of the program do the work:
///
/// - A dropped sender with anything unsent or in flight waits, with its descriptor, for [`serve`],
///   [`wait_idle`], a wait for a buffer, or the end of another sender. The end looks at some of
///   such senders in turn, each other call at all. The time limit [`linger`](crate::sender::SenderBuilder::linger) counts in
///   these calls only.
/// - These calls also run the user code of such senders: drops of payloads, wakers, subscribers. Make
///   none of them with a lock held that this code takes.
/// - [`close`](crate::Sender::close), [`drain`](crate::Sender::drain) and
///   [`wait`](crate::Sender::wait) wait as ever. An [`alloc`](crate::Pool::alloc) that waits looks at
///   the senders every 5 ms.
/// - [`alloc_async`](crate::Pool::alloc_async) and [`Waiter`](crate::pool::Waiter) ask to be polled
///   again at once, and so keep a processor busy. Better take buffers with
///   [`try_alloc`](crate::Pool::try_alloc) after a release.
/// - The `poll_` methods of a sender need an [`event_fd`](crate::Sender::event_fd) in the program's
///   loop, and fail with [`NoThread`](crate::WaitError::NoThread) otherwise.
/// - [`max_hold`](crate::sender::SenderBuilder::max_hold) counts in the calls of the owner only.
///
/// ```
/// # use std::{io::{copy, sink}, net::{TcpListener, TcpStream}, thread, time::Duration};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let socket = TcpStream::connect(listener.local_addr()?)?;
/// # let peer = thread::spawn(move || copy(&mut listener.accept().unwrap().0, &mut sink()));
/// assert!(pinbuf::reaper::forbid_thread(), "called first");
/// let mut sender = pinbuf::Sender::new(socket)?;
/// sender.send(&[7; 1 << 20][..])?;
/// drop(sender); // The end begins.
/// while pinbuf::reaper::serve() > 0 {
///     // The rest of the program's loop.
/// #   thread::sleep(Duration::from_millis(1));
/// }
/// # assert_eq!(peer.join().unwrap()?, 1 << 20);
/// # Ok(())
/// # }
/// ```
#[must_use = "`false` means that the thread runs already"]
pub fn forbid_thread() -> bool {
    let reaper = Reaper::get();
    let _starting = lock(&reaper.state);
    IS_FORBIDDEN.set();
    reaper.watcher.get().is_none()
}

/// Drives the dropped senders that have no thread. Returns the number of those left.
///
/// Never blocks. Cheap if there are none, as is usual: see [`forbid_thread`].
///
/// ```
/// assert_eq!(pinbuf::reaper::serve(), 0);
/// ```
pub fn serve() -> usize {
    // Models have no reaper: its state would outlive an execution.
    if cfg!(loom) { 0 } else { Reaper::get().serve(usize::MAX) }
}

/// Drives some of the dropped senders that have no thread, in turn: thousands of them make no end of a
/// sender long.
pub(crate) fn serve_some() {
    const SOME: usize = 16;
    if !cfg!(loom) {
        Reaper::get().serve(SOME);
    }
}

/// Returns the present counts of the reaper.
///
/// ```
/// let stats = pinbuf::reaper::stats();
/// assert_eq!(stats.owned, 0);
/// ```
pub fn stats() -> ReaperStats {
    let state = lock(&Reaper::get().state);
    ReaperStats {
        watched: state.senders.len() - state.owned,
        owned: state.owned,
        unserved: state.unserved.len(),
        ended: state.ended,
    }
}

/// Blocks until every sender without an owner has ended, for `timeout` at most (`None`: without
/// limit). Returns `true` if all have ended.
///
/// The exit of a program loses unsent data. Call `wait_idle` before, after dropping the senders.
///
/// ```
/// use std::time::Duration;
///
/// assert!(pinbuf::reaper::wait_idle(Some(Duration::from_secs(5))));
/// ```
#[must_use = "`false` means that the process would take unsent data with it"]
pub fn wait_idle(timeout: Option<Duration>) -> bool {
    /// Time between two rounds over senders without a watching descriptor.
    const SERVE_EVERY: Duration = Duration::from_millis(5);
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let parker = Arc::new(Parker::new());
    loop {
        serve();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let mut state = lock(&Reaper::get().state);
        state.idle_waiters.retain(|waiter| !Arc::ptr_eq(waiter, &parker));
        if state.owned == 0 || left == Some(Duration::ZERO) {
            return state.owned == 0;
        }
        state.idle_waiters.push(Arc::clone(&parker));
        let round = (!state.unserved.is_empty()).then_some(SERVE_EVERY);
        drop(state);
        parker.park(left.into_iter().chain(round).min());
    }
}

impl State {
    fn enter(&mut self, sender: Sender) -> Token {
        self.last += 1;
        let token = Token(self.last);
        self.owned += usize::from(matches!(sender, Sender::Owned(_)));
        self.senders.insert(token, sender);
        token
    }

    /// Removes an entry that cannot be watched.
    fn forget(&mut self, token: Token) {
        self.disarm(token);
        self.senders.remove(&token);
    }

    /// Wakes every thread in [`wait_idle`]: the last owned sender has ended, or a sender has to be
    /// served.
    fn wake_idle_waiters(&self) {
        self.idle_waiters.iter().for_each(|waiter| waiter.unpark());
    }

    /// Sets the timer of a sender, in place of its earlier timer. A new entry starts with a time of
    /// 0, because a socket without notifications and without room reports no event.
    fn arm(&mut self, token: Token, after: Duration) {
        self.disarm(token);
        if self.senders.contains_key(&token) {
            let at = Instant::now() + after;
            self.due.insert(token, at);
            self.timers.insert((at, token));
        }
    }

    fn disarm(&mut self, token: Token) {
        if let Some(at) = self.due.remove(&token) {
            self.timers.remove(&(at, token));
        }
    }
}

impl Reaper {
    fn get() -> &'static Arc<Self> {
        static REAPER: PerProcess<Arc<Reaper>> = PerProcess::new();
        REAPER.get(Arc::default)
    }

    fn watch(self: &Arc<Self>, fd: BorrowedFd<'_>, sender: Weak<dyn Reclaim>) -> Option<Token> {
        let watcher = self.watcher()?;
        let mut state = lock(&self.state);
        let token = state.enter(Sender::Watched(sender));
        state.arm(token, Duration::ZERO);
        if watcher.add(fd, token.0).is_err() {
            state.forget(token);
            return None;
        }
        if watcher.wake().is_err() {
            state.forget(token);
            let _ = watcher.remove(fd);
            return None;
        }
        Some(token)
    }

    fn adopt(self: &Arc<Self>, fd: BorrowedFd<'_>, sender: Arc<dyn Reclaim>) -> (Token, bool) {
        self.watcher();
        let mut state = lock(&self.state);
        // Loaded again: another thread may have started the reaper's thread, which may be asleep.
        let watcher = self.watcher.get();
        let token = state.enter(Sender::Owned(sender));
        state.arm(token, Duration::ZERO);
        let is_watched = watcher.is_some_and(|watcher| watcher.add(fd, token.0).is_ok());
        let is_served = watcher.is_some_and(|watcher| watcher.wake().is_ok());
        if !is_watched || !is_served {
            state.unserved.push(token);
            state.wake_idle_waiters();
        }
        (token, is_served)
    }

    /// Drives `most` of the unserved senders, in turn. Returns the number of those left.
    fn serve(&self, most: usize) -> usize {
        let due = {
            let unserved = &mut lock(&self.state).unserved;
            let most = most.min(unserved.len());
            unserved.rotate_left(most);
            // Cloned, not taken: with an empty list a thread in `wait_idle` would sleep without a limit.
            unserved[unserved.len() - most..].to_vec()
        };
        // Timers stay unchanged: the reaper's thread may be about to sleep until the next timer, and an
        // earlier timer would not wake the thread.
        due.into_iter().for_each(|token| _ = self.drive(token));
        lock(&self.state).unserved.len()
    }

    /// Returns the thread's watcher; starts the thread if it is not running and not forbidden.
    fn watcher(self: &Arc<Self>) -> Option<&Watcher> {
        if self.watcher.get().is_none() {
            // Not `get_or_init`: after a failed start the next caller tries again.
            let _starting = lock(&self.state);
            if self.watcher.get().is_none() && !IS_FORBIDDEN.is_set() {
                let watcher = Watcher::new().ok()?;
                let running = Arc::clone(self);
                spawn("pinbuf-reaper", move || running.run()).ok()?;
                let _ = self.watcher.set(watcher);
            }
        }
        self.watcher.get()
    }

    fn run(&self) {
        // The starter holds the lock until the watcher is set.
        drop(lock(&self.state));
        let watcher = self.watcher.get().expect("set by the starting thread");
        let mut tokens = Vec::new();
        loop {
            self.turn(watcher, &mut tokens);
        }
    }

    /// Waits for events or the next timer, and drives every sender that is due.
    fn turn(&self, watcher: &Watcher, tokens: &mut Vec<u64>) {
        if watcher.wait(tokens, self.next_timer()).is_err() {
            // A system-call filter refuses the wait. No event comes, so every sender is due.
            sleep(Duration::from_millis(10));
            tokens.extend(lock(&self.state).senders.keys().map(|token| token.0));
        }
        tokens.iter().for_each(|token| self.drive_and_rearm(Token(*token)));
        let now = Instant::now();
        while let Some(token) = self.due_by(now) {
            self.drive_and_rearm(token);
        }
    }

    /// Time until the next timer.
    fn next_timer(&self) -> Option<Duration> {
        let state = lock(&self.state);
        let (at, _) = state.timers.first()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// A sender with a due timer.
    fn due_by(&self, now: Instant) -> Option<Token> {
        let state = lock(&self.state);
        state.timers.first().filter(|(at, _)| *at <= now).map(|(_, token)| *token)
    }

    /// Drives one sender and restarts its timer.
    fn drive_and_rearm(&self, token: Token) {
        lock(&self.state).disarm(token);
        if let Some(next) = self.drive(token) {
            let mut state = lock(&self.state);
            let unwatched = state.unserved.contains(&token);
            state.arm(token, if unwatched { next.min(RETRY_AFTER) } else { next });
        }
    }

    /// Drives one sender without a lock of the reaper: the sender recycles buffers, wakes tasks,
    /// and may call [`unwatch`]. Returns the time until the next look, if there must be one.
    fn drive(&self, token: Token) -> Option<Duration> {
        let state = lock(&self.state);
        let sender = match state.senders.get(&token)? {
            Sender::Watched(sender) => sender.upgrade()?,
            Sender::Owned(sender) => Arc::clone(sender),
        };
        drop(state);
        // A dropped payload can panic, and must not end the thread that serves all senders. The
        // last reference dropped may be the sender's.
        let next = panic::catch_unwind(AssertUnwindSafe(move || sender.attend()));
        next.unwrap_or(Some(RETRY_AFTER))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd, thread};

    use super::*;
    use crate::sync::{AtomicUsize, Ordering};

    /// Counts its calls, and asks for another one each time.
    #[derive(Default)]
    struct Counter {
        driven: AtomicUsize,
        panics: AtomicUsize,
    }

    impl Reclaim for Counter {
        fn drive(&self) {}

        fn attend(&self) -> Option<Duration> {
            let driven = self.driven.fetch_add(1, Ordering::Relaxed);
            assert!(driven >= self.panics.load(Ordering::Relaxed), "as a payload's drop may");
            Some(Duration::from_millis(20))
        }

        fn watch(self: Arc<Self>) -> bool {
            true
        }
    }

    fn adopted(counter: &Arc<Counter>) -> (UdpSocket, Token) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (token, served) = adopt(socket.as_fd(), Arc::<Counter>::clone(counter));
        assert!(served);
        (socket, token)
    }

    #[test]
    fn events_add_no_timers() {
        let counter = Arc::new(Counter::default());
        let (socket, token) = adopted(&counter);
        (0..200).for_each(|_| Reaper::get().drive_and_rearm(token));
        let timers =
            lock(&Reaper::get().state).timers.iter().filter(|(_, of)| *of == token).count();
        unwatch(socket.as_fd(), token);
        // None while the reaper restarts the timer.
        assert!(timers <= 1, "{timers} timers");
    }

    /// Records whether the sender has a timer while the thread of the test drives it.
    struct Served {
        thread: thread::ThreadId,
        token: OnceLock<Token>,
        with_timer: AtomicUsize,
    }

    impl Reclaim for Served {
        fn drive(&self) {}

        fn attend(&self) -> Option<Duration> {
            if thread::current().id() == self.thread {
                let state = lock(&Reaper::get().state);
                let has_timer = state.due.contains_key(self.token.get().unwrap());
                self.with_timer.fetch_add(usize::from(has_timer), Ordering::Relaxed);
            }
            Some(Duration::from_secs(3600))
        }

        fn watch(self: Arc<Self>) -> bool {
            true
        }
    }

    #[test]
    fn a_served_sender_keeps_its_timer() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let served = Arc::new(Served {
            thread: thread::current().id(),
            token: OnceLock::new(),
            with_timer: AtomicUsize::new(0),
        });
        let (token, _) = adopt(socket.as_fd(), Arc::<Served>::clone(&served));
        served.token.set(token).unwrap();
        lock(&Reaper::get().state).unserved.push(token);
        for _ in 0..100 {
            serve();
        }
        let with_timer = served.with_timer.load(Ordering::Relaxed);
        unwatch(socket.as_fd(), token);
        // None only while the reaper's thread drives the sender too.
        assert!(with_timer > 50, "{with_timer}");
    }

    #[test]
    fn a_panic_does_not_end_the_driving() {
        let counter = Arc::new(Counter::default());
        counter.panics.store(3, Ordering::Relaxed);
        let (socket, token) = adopted(&counter);
        let hang = Instant::now() + Duration::from_secs(60);
        while counter.driven.load(Ordering::Relaxed) <= 3 {
            assert!(Instant::now() < hang, "the reaper drives the sender again");
            sleep(Duration::from_millis(5));
        }
        unwatch(socket.as_fd(), token);
    }

    /// Waits for something that another thread does.
    fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
        let hang = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < hang, "{what}");
            sleep(Duration::from_millis(1));
        }
    }

    /// Counts its calls, and needs no further one.
    #[derive(Default)]
    struct Content(AtomicUsize);

    impl Reclaim for Content {
        fn drive(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn watch(self: Arc<Self>) -> bool {
            true
        }
    }

    impl Drop for Content {
        fn drop(&mut self) {
            // With a lock of the reaper held, this would wait for ever.
            stats();
        }
    }

    #[test]
    fn a_sender_has_one_timer_and_none_after_its_end() {
        let sender: Arc<dyn Reclaim> = Arc::new(Content::default());
        let mut state = State::default();
        let token = state.enter(Sender::Watched(Arc::downgrade(&sender)));
        let timers = |state: &State| (state.due.len(), state.timers.len());
        for seconds in [2, 1, 3] {
            state.arm(token, Duration::from_secs(seconds));
            assert_eq!(timers(&state), (1, 1));
        }
        state.forget(token);
        assert_eq!(timers(&state), (0, 0));
        state.arm(token, Duration::ZERO);
        assert_eq!(timers(&state), (0, 0), "the end came while the reaper drove the sender");
        for _ in 0..20 {
            let counter = Arc::new(Counter::default());
            let (socket, token) = adopted(&counter);
            eventually("driven", || counter.driven.load(Ordering::Relaxed) > 0);
            unwatch(socket.as_fd(), token);
            assert!(!lock(&Reaper::get().state).due.contains_key(&token));
        }
    }

    #[test]
    fn a_sender_without_a_timer_holds_up_no_other_sender() {
        let content = Arc::new(Content::default());
        let (reader, _writer) = std::io::pipe().unwrap();
        let (token, _) = adopt(reader.as_fd(), Arc::<Content>::clone(&content));
        eventually("a pipe without events is driven", || content.0.load(Ordering::Relaxed) > 0);
        let counter = Arc::new(Counter::default());
        let (socket, other) = adopted(&counter);
        eventually("the other is driven", || counter.driven.load(Ordering::Relaxed) > 3);
        unwatch(socket.as_fd(), other);
        drop(content);
        // The last reference.
        unwatch(reader.as_fd(), token);
    }

    #[test]
    fn a_sender_that_no_descriptor_watches_is_driven_often() {
        /// Would be driven once an hour.
        #[derive(Default)]
        struct Rare(AtomicUsize);

        impl Reclaim for Rare {
            fn drive(&self) {}

            fn attend(&self) -> Option<Duration> {
                // A thread in `wait_idle` drives such a sender too.
                if thread::current().name() == Some("pinbuf-reaper") {
                    self.0.fetch_add(1, Ordering::Relaxed);
                }
                Some(Duration::from_secs(3600))
            }

            fn watch(self: Arc<Self>) -> bool {
                true
            }
        }

        // Not a file for epoll.
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let weak: Weak<Rare> = Weak::new();
        assert_eq!(watch(file.as_fd(), weak), None);
        let rare = Arc::new(Rare::default());
        let (token, _) = adopt(file.as_fd(), Arc::<Rare>::clone(&rare));
        assert!(lock(&Reaper::get().state).unserved.contains(&token));
        eventually("driven again", || rare.0.load(Ordering::Relaxed) > 2);
        unwatch(file.as_fd(), token);
        let state = lock(&Reaper::get().state);
        assert!(!state.unserved.contains(&token) && !state.senders.contains_key(&token));
        assert!(state.senders.values().all(|sender| match sender {
            Sender::Watched(sender) => sender.strong_count() > 0,
            Sender::Owned(_) => true,
        }));
    }

    #[test]
    fn a_timer_is_due_at_its_very_time() {
        let reaper = Reaper::default();
        let now = Instant::now();
        lock(&reaper.state).timers.insert((now, Token(1)));
        assert_eq!(reaper.due_by(now), Some(Token(1)));
        assert_eq!(reaper.due_by(now - Duration::from_nanos(1)), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_reaper_that_cannot_be_woken_watches_no_sender_and_says_so() {
        let reaper = Arc::new(Reaper::default());
        reaper.watcher.set(Watcher::deaf()).unwrap();
        let (socket, content) = (UdpSocket::bind("127.0.0.1:0").unwrap(), Arc::default());
        let sender: Arc<dyn Reclaim> = Arc::<Content>::clone(&content);
        assert_eq!(reaper.watch(socket.as_fd(), Arc::downgrade(&sender)), None);
        let state = lock(&reaper.state);
        assert!(state.senders.is_empty() && state.due.is_empty());
        drop(state);
        let removed = reaper.watcher.get().unwrap().remove(socket.as_fd());
        assert!(removed.is_err(), "the thread would wake for a sender that it does not know");
        let (token, is_served) = reaper.adopt(socket.as_fd(), content);
        assert_eq!((is_served, &lock(&reaper.state).unserved), (false, &vec![token]));
    }

    #[test]
    fn some_senders_are_served_in_turn() {
        let (reaper, contents) =
            (Reaper::default(), [(); 40].map(|()| Arc::new(Content::default())));
        for content in &contents {
            let mut state = lock(&reaper.state);
            let token = state.enter(Sender::Owned(Arc::<Content>::clone(content)));
            state.unserved.push(token);
        }
        let driven = || contents.each_ref().map(|content| content.0.load(Ordering::Relaxed));
        for (turn, sum) in [16, 32, 48].into_iter().enumerate() {
            assert_eq!(reaper.serve(16), 40);
            assert_eq!(driven().iter().sum::<usize>(), sum, "turn {turn}");
        }
        assert!(driven().iter().all(|times| (1..=2).contains(times)));
        assert_eq!(reaper.serve(usize::MAX), 40);
        assert_eq!(driven().iter().sum::<usize>(), 88);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_refused_wait_drives_every_sender() {
        let (reaper, content) = (Reaper::default(), Arc::new(Content::default()));
        lock(&reaper.state).enter(Sender::Owned(Arc::<Content>::clone(&content)));
        reaper.turn(&Watcher::blind(), &mut Vec::new());
        assert_eq!(content.0.load(Ordering::Relaxed), 1);
    }

    /// One thread in [`wait_idle`] at a time.
    static IDLE: OnceLock<Mutex<()>> = OnceLock::new();

    #[test]
    fn a_thread_in_wait_idle_drives_senders_without_a_descriptor() {
        /// Counts the calls of that thread.
        #[derive(Default)]
        struct Rare(AtomicUsize);

        impl Reclaim for Rare {
            fn drive(&self) {}

            fn attend(&self) -> Option<Duration> {
                let by_waiter = thread::current().name() == Some("waiter");
                self.0.fetch_add(usize::from(by_waiter), Ordering::Relaxed);
                Some(Duration::from_secs(3600))
            }

            fn watch(self: Arc<Self>) -> bool {
                true
            }
        }

        let _turn = lock(IDLE.get_or_init(|| Mutex::new(())));
        let (reader, _writer) = std::io::pipe().unwrap();
        let (held, _) = adopt(reader.as_fd(), Arc::new(Content::default()));
        let waiter =
            thread::Builder::new().name("waiter".into()).spawn(|| wait_idle(None)).unwrap();
        eventually("a thread waits", || !lock(&Reaper::get().state).idle_waiters.is_empty());
        // Not a file for epoll. The waiting thread must wake up and drive its sender.
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let rare = Arc::new(Rare::default());
        let (token, _) = adopt(file.as_fd(), Arc::<Rare>::clone(&rare));
        eventually("driven again and again", || rare.0.load(Ordering::Relaxed) > 3);
        unwatch(file.as_fd(), token);
        unwatch(reader.as_fd(), held);
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn the_end_of_the_last_sender_ends_the_wait_for_it() {
        let _turn = lock(IDLE.get_or_init(|| Mutex::new(())));
        let (reader, _writer) = std::io::pipe().unwrap();
        let (token, _) = adopt(reader.as_fd(), Arc::new(Content::default()));
        let waiter = thread::spawn(|| wait_idle(None));
        eventually("a thread waits", || !lock(&Reaper::get().state).idle_waiters.is_empty());
        unwatch(reader.as_fd(), token);
        eventually("the wait ends", || waiter.is_finished());
        assert!(waiter.join().unwrap());
        assert!(lock(&Reaper::get().state).idle_waiters.is_empty());
    }
}
