//! Shared set-up of the concurrency models in `tests/`.
//!
//! Under `--cfg loom` a model runs once for every interleaving that matters; otherwise it is an
//! ordinary test, repeated, with whatever interleavings the machine happens to produce.

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

/// Explores `body` and prints how many executions that took.
///
/// The number of the execution under way goes into the file that `LOOM_TESTS_COUNT` names: one that
/// fails may abort the process, or worse.
pub fn model(body: impl Fn() + Send + Sync + 'static) {
    let tell = env::var_os("LOOM_TESTS_COUNT").map(|path| File::create(path).unwrap());
    let executions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executions);
    let start = Instant::now();
    explore(move || {
        // Relaxed: of no concern to the model.
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

/// Where threads pass one at a time, in every order, without learning of each other.
///
/// loom looks for another order of two threads only where the *last* accesses to an atomic
/// conflict: a thread that loads before it exchanges hides the exchange from the loads of others.
/// To pass here before and after brings these orders back.
#[derive(Clone, Debug, Default)]
pub struct Turnstile(Arc<Passes>);

impl Turnstile {
    /// Passes.
    pub fn pass(&self) {
        // Relaxed: nothing may be ordered by it.
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

/// Tells whether a pool's memory is still there, its handles being gone: the pool holds a weak
/// reference of whoever registered with it.
#[derive(Debug)]
pub struct Alive(Arc<Nobody>);

#[derive(Debug)]
struct Nobody;

impl Reclaim for Nobody {
    fn drive(&self) {}

    fn watch(self: Arc<Self>) -> bool {
        true
    }
}

impl Alive {
    /// Starts watching a pool.
    pub fn probe(pool: &Pool) -> Self {
        let nobody = Arc::new(Nobody);
        let weak: Weak<Nobody> = Arc::downgrade(&nobody);
        raw(pool).register(weak);
        Self(nobody)
    }

    /// Whether the pool has not been freed.
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
