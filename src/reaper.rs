//! The reaper: one thread per process that drives senders whose buffers somebody waits for.
//!
//! There is none until it is needed. It knows no sender, only [`Reclaim`]: that is why it lies
//! below them. It waits by edges, so a socket whose error condition stays costs nothing.

use std::{
    collections::HashMap,
    os::fd::BorrowedFd,
    panic::{self, AssertUnwindSafe},
};

use crate::{
    raw::Reclaim,
    sync::{Arc, Mutex, OnceLock, Weak, lock, sleep, spawn},
    sys::epoll::Watcher,
};

/// Names one watched socket; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(u64);

struct Reaper {
    watcher: Watcher,
    watched: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    last: u64,
    senders: HashMap<u64, Weak<dyn Reclaim>>,
}

/// Has `sender` driven whenever its socket has news, from now on; its present state counts as
/// news. `None` when no thread or descriptor can be had.
pub(crate) fn watch(fd: BorrowedFd<'_>, sender: Weak<dyn Reclaim>) -> Option<Token> {
    let reaper = Reaper::get()?;
    let mut watched = lock(&reaper.watched);
    watched.last += 1;
    let token = watched.last;
    watched.senders.insert(token, sender);
    if reaper.watcher.add(fd, token).is_err() {
        watched.senders.remove(&token);
        return None;
    }
    Some(Token(token))
}

/// Ends a [`watch`].
pub(crate) fn unwatch(fd: BorrowedFd<'_>, token: Token) {
    if let Some(reaper) = Reaper::get() {
        lock(&reaper.watched).senders.remove(&token.0);
        // Fails only if the socket is gone from the set already.
        let _ = reaper.watcher.remove(fd);
    }
}

impl Reaper {
    /// The reaper of this process, started if it is not running.
    fn get() -> Option<&'static Arc<Self>> {
        static REAPER: OnceLock<Arc<Reaper>> = OnceLock::new();
        static STARTING: OnceLock<Mutex<()>> = OnceLock::new();
        if let Some(reaper) = REAPER.get() {
            return Some(reaper);
        }
        // Not `get_or_init`: a start that fails is tried again by the next caller.
        let _starting = lock(STARTING.get_or_init(Mutex::default));
        if REAPER.get().is_none() {
            let reaper =
                Arc::new(Self { watcher: Watcher::new().ok()?, watched: Mutex::default() });
            let running = Arc::clone(&reaper);
            spawn("pinbuf-reaper", move || running.run()).ok()?;
            let _ = REAPER.set(reaper);
        }
        REAPER.get()
    }

    fn run(&self) {
        let mut tokens = Vec::new();
        loop {
            if self.watcher.wait(&mut tokens, None).is_err() {
                // Cannot happen with a descriptor of our own; must not spin if it does.
                sleep(std::time::Duration::from_millis(10));
            }
            for token in &tokens {
                let sender = lock(&self.watched).senders.get(token).and_then(Weak::upgrade);
                // With no lock of ours held: to drive recycles buffers and wakes tasks.
                // What it drops can panic, which must not end the thread that others count on.
                sender.into_iter().for_each(|sender| {
                    let _ = panic::catch_unwind(AssertUnwindSafe(|| sender.drive()));
                });
            }
        }
    }
}
