//! The workloads of the pool bench.

use std::{
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use crossbeam::queue::SegQueue;

use super::{
    crew,
    harness::{per_op, thread_cpu, wall},
    stock::{BULK, Stock},
};

/// The number of buffers per measurement.
const COUNT: usize = 1024;

/// The number of hands that carry buffers to the second thread.
const HANDS: usize = 8;

/// A workload for a contestant. Returns nanoseconds per buffer.
pub(crate) type Workload<S> = fn(&Arc<S>, Duration) -> f64;

pub(crate) fn pair<S: Stock>(stock: &Arc<S>, slice: Duration) -> f64 {
    per_op(thread_cpu, slice, COUNT, || stock.pairs(COUNT))
}

pub(crate) fn batch<S: Stock>(stock: &Arc<S>, slice: Duration) -> f64 {
    per_op(thread_cpu, slice, COUNT, || stock.batches(COUNT))
}

pub(crate) fn bulk<S: Stock>(stock: &Arc<S>, slice: Duration) -> f64 {
    per_op(thread_cpu, slice, COUNT, || stock.bulks(COUNT))
}

/// Pairs on two threads at the same time: the cost for one of them.
pub(crate) fn two_threads<S: Stock + Send + Sync + 'static>(
    stock: &Arc<S>,
    slice: Duration,
) -> f64 {
    let start = Arc::new(Barrier::new(2));
    let one = || {
        let (stock, start) = (Arc::clone(stock), Arc::clone(&start));
        move || {
            start.wait();
            pair(&stock, slice)
        }
    };
    crew::together(one(), one()).iter().sum::<f64>() / 2.0
}

/// Pairs on one of the lasting threads.
pub(crate) fn one_thread<S: Stock + Send + Sync + 'static>(stock: &Arc<S>, slice: Duration) -> f64 {
    let stock = Arc::clone(stock);
    crew::together(move || pair(&stock, slice), || 0.0)[0]
}

/// Buffers taken on one thread and returned on a second, handed over in full hands of `BULK`: the
/// wall-clock time per buffer.
pub(crate) fn hand_over<S>(stock: &Arc<S>, slice: Duration) -> f64
where
    S: Stock + Send + Sync + 'static,
    S::Buf: Send + 'static,
{
    let (full, empty) = (Arc::new(SegQueue::new()), Arc::new(SegQueue::new()));
    (0..HANDS).for_each(|_| empty.push(Vec::with_capacity(BULK)));
    let giver = {
        let (stock, full, empty) = (Arc::clone(stock), Arc::clone(&full), Arc::clone(&empty));
        move || {
            let start = wall();
            for hands in 0_usize.. {
                let mut bufs = waited(&empty);
                let taken = wall() - start;
                if taken > slice {
                    // An empty hand means the end.
                    full.push(bufs);
                    return taken.as_nanos() as f64 / (hands * BULK) as f64;
                }
                stock.alloc_each(&mut bufs);
                full.push(bufs);
            }
            unreachable!("the slice ends");
        }
    };
    let stock = Arc::clone(stock);
    let taker = move || loop {
        let mut bufs: Vec<S::Buf> = waited(&full);
        if bufs.is_empty() {
            return 0.0;
        }
        stock.recycle_each(&mut bufs);
        empty.push(bufs);
    };
    crew::together(giver, taker)[0]
}

/// Polls the queue; the second thread may need this processor for its push.
fn waited<T>(queue: &SegQueue<T>) -> T {
    for looks in 1_u32.. {
        if let Some(found) = queue.pop() {
            return found;
        }
        if looks.is_multiple_of(64) {
            thread::yield_now();
        }
    }
    unreachable!("the second thread gets to run");
}
