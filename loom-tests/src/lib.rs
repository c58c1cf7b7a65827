//! Shared set-up of the concurrency models in `tests/`.
//!
//! Under `--cfg loom` a model runs once for every relevant interleaving. Otherwise a model is an
//! ordinary test, repeated, with the interleavings of the machine.

#[cfg(loom)]
use loom::sync::atomic::AtomicUsize as Passes;
#[cfg(loom)]
pub use loom::{
    future::block_on,
    sync::{Condvar, Mutex, atomic::AtomicU32},
    thread,
};
#[cfg(not(loom))]
use std::sync::atomic::AtomicUsize as Passes;
#[cfg(not(loom))]
pub use std::{
    sync::{Condvar, Mutex, atomic::AtomicU32},
    thread,
};

#[allow(unsafe_code)]
pub mod fake;

use std::{
    env,
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    thread as test_thread,
    time::Instant,
};

use pinbuf::{
    __internals::{Reclaim, raw},
    Pool,
    pool::{Backing, Pages},
};

/// Explores `body` and prints the number of executions.
///
/// The number of the current execution goes to the file named by `LOOM_TESTS_COUNT`, since a failed
/// execution may abort the process, or worse.
pub fn model(body: impl Fn() + Send + Sync + 'static) {
    let tell = env::var_os("LOOM_TESTS_COUNT").map(|path| File::create(path).unwrap());
    let executions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executions);
    let start = Instant::now();
    explore(move || {
        // Relaxed: no concern of the model.
        let execution = count.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(file) = &tell {
            file.write_all_at(execution.to_string().as_bytes(), 0).unwrap();
        }
        body();
    });
    // The test harness names its threads after the tests.
    let test = test_thread::current();
    let executions = executions.load(Ordering::Relaxed);
    report(test.name().unwrap_or("?"), start.elapsed().as_secs(), executions);
}

#[cfg(loom)]
fn explore(body: impl Fn() + Send + Sync + 'static) {
    loom::model(body);
}

#[cfg(not(loom))]
fn explore(body: impl Fn() + Send + Sync + 'static) {
    for _ in 0..300 {
        body();
    }
}

#[allow(clippy::print_stdout, reason = "run.sh reads it")]
fn report(name: &str, seconds: u64, executions: usize) {
    println!("model {name} holds, {seconds} s, {executions}");
}

/// A place for threads to pass in turn, in every order, without synchronisation.
///
/// loom looks for a different order of two threads only if the *last* accesses to an atomic
/// conflict. A load before an exchange hides the exchange from the loads of other threads. A pass
/// before and after restores these orders.
#[derive(Clone, Debug, Default)]
pub struct Turnstile(Arc<Passes>);

impl Turnstile {
    /// Passes.
    pub fn pass(&self) {
        // Relaxed: must not order anything.
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A pool of `count` slots on ordinary memory.
pub fn pool(count: usize) -> Pool {
    pool_of(64, count)
}

/// A pool of `count` slots of a page.
pub fn pool_of_pages(count: usize) -> Pool {
    pool_of(4096, count)
}

fn pool_of(capacity: usize, count: usize) -> Pool {
    Pool::builder().class(capacity, count).backing(Backing::Require(Pages::Base)).build().unwrap()
}

/// Tells whether a pool's memory still exists after its handles: the pool holds weak references to
/// registered senders.
#[derive(Debug)]
pub struct Alive(Arc<Registered>);

#[derive(Debug)]
struct Registered;

impl Reclaim for Registered {
    fn drive(&self) {}

    fn watch(self: Arc<Self>) -> bool {
        true
    }
}

impl Alive {
    /// Starts watching a pool.
    pub fn probe(pool: &Pool) -> Self {
        let registered = Arc::new(Registered);
        let weak: Weak<Registered> = Arc::downgrade(&registered);
        raw(pool).register(weak);
        Self(registered)
    }

    /// Returns `true` if the pool has not been freed.
    pub fn get(&self) -> bool {
        Arc::weak_count(&self.0) > 0
    }
}

/// Drives a future on this thread.
#[cfg(not(loom))]
pub fn block_on<F: Future>(future: F) -> F::Output {
    use std::task::{Context, Poll, Wake, Waker};

    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}
