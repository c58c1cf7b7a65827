//! A socket without a limit, and a sender over it.

#![allow(dead_code, reason = "each bench uses a part of it")]

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use pinbuf::{
    __internals::{
        Batch, Config, Core, Edges, Interest, IoVec, Kernel, MemlockBudget, NotificationId, Ready,
        Reclaim, Record, SendFlags, Token,
    },
    PinnedBuf, Pool,
};

use super::{MILLION, SIZE};

/// `true` if the far ends post notifications, of all taken bytes.
static POSTS: AtomicBool = AtomicBool::new(false);

/// Makes the far ends post a notification at the next look of a sender, from now on.
pub(crate) fn post_at_once() {
    // Relaxed: set before the first use of the senders.
    POSTS.store(true, Ordering::Relaxed);
}

/// A sender over an unlimited socket.
pub(crate) struct Line(Arc<Core<Sink>>);

impl Line {
    /// `budget` is shared by all lines, as by the senders of a process.
    pub(crate) fn new(budget: &Arc<MemlockBudget>) -> Self {
        let config = Config {
            threshold_bytes: 1,
            max_in_flight_bytes: usize::MAX,
            max_in_flight_sends: MILLION,
            ..Config::default()
        };
        let (sink, budget) = (Sink::default(), Arc::clone(budget));
        Self(Core::new(sink, config, None, budget, 1 << 20, NotificationId(0)))
    }

    /// Sends `count` buffers.
    pub(crate) fn send(&self, pool: &Pool, count: usize) {
        for _ in 0..count {
            self.send_one(pool.try_alloc(SIZE).expect("the pool has free slots"));
        }
    }

    /// Sends a buffer.
    pub(crate) fn send_one(&self, mut buf: PinnedBuf) {
        // SAFETY: the capacity is SIZE. The bytes are the zeros of a new mapping, and the far end
        // reads none.
        unsafe { buf.set_len(SIZE) };
        self.0.try_send(buf).expect("the socket takes all bytes");
    }

    /// Makes the far end post one notification for all sends, and reads it.
    pub(crate) fn release(&self) {
        // Relaxed, here and below: a single thread has the flag.
        POSTS.store(true, Ordering::Relaxed);
        self.reap();
        POSTS.store(false, Ordering::Relaxed);
    }

    /// Reads the present notifications.
    pub(crate) fn reap(&self) {
        self.0.reap().expect("no connection can fail");
    }

    /// A second handle of the sender, for a second thread.
    pub(crate) fn share(&self) -> Self {
        self.0.share();
        Self(Arc::clone(&self.0))
    }
}

/// The lower bounds of ids not yet taken, and not yet notified. The fields lie in the sender, like
/// a descriptor: the kernel's side of a socket is not measured.
#[derive(Default)]
struct Sink {
    taken: AtomicU32,
    notified: AtomicU32,
}

impl Kernel for Sink {
    fn send(&self, memory: &[IoVec], flags: SendFlags) -> io::Result<usize> {
        assert!(flags.zerocopy, "only zero-copy sends are measured");
        self.taken.fetch_add(1, Ordering::Relaxed);
        Ok(memory.iter().map(IoVec::len).sum())
    }

    fn read_batch(&self, on_record: &mut dyn FnMut(Record)) -> io::Result<Batch> {
        let taken = self.taken.load(Ordering::Relaxed);
        let notified = self.notified.load(Ordering::Relaxed);
        let messages = usize::from(POSTS.load(Ordering::Relaxed) && taken != notified);
        if messages > 0 {
            self.notified.store(taken, Ordering::Relaxed);
            on_record(Record::Released { lo: notified, hi: taken.wrapping_sub(1), copied: false });
        }
        Ok(Batch { messages, truncated: false, drained: true })
    }

    fn wait(&self, _: Interest, _: Option<Duration>) -> io::Result<Ready> {
        Ok(Ready::default())
    }

    fn edges(&self) -> io::Result<Option<Arc<dyn Edges>>> {
        Ok(None)
    }

    fn optmem(&self) -> io::Result<u32> {
        let out = self.taken.load(Ordering::Relaxed) - self.notified.load(Ordering::Relaxed);
        Ok(832 * out)
    }

    fn unacked(&self) -> io::Result<usize> {
        Ok(0)
    }

    fn is_over(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        Ok(())
    }

    fn abort(&self) -> io::Result<()> {
        Ok(())
    }

    fn reset_on_close(&self) -> io::Result<()> {
        Ok(())
    }

    fn linger_off(&self) -> io::Result<()> {
        Ok(())
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn watch(&self, _: Weak<dyn Reclaim>) -> Option<Token> {
        None
    }

    fn adopt(&self, _: Arc<dyn Reclaim>) -> (Token, bool) {
        (Token::default(), false)
    }

    fn unwatch(&self, _: Token) {}
}
