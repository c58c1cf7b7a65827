//! What the contestants of the pool bench are made to do.

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

/// Buffers that are timed together.
const COUNT: usize = 1024;

/// Hands in which buffers go to the other thread.
const HANDS: usize = 8;

/// A contestant and the work; answers nanoseconds for each buffer.
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

/// Pairs on two threads at the same time: what one of them pays.
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

/// Pairs on one of the threads that last.
pub(crate) fn one_thread<S: Stock + Send + Sync + 'static>(stock: &Arc<S>, slice: Duration) -> f64 {
    let stock = Arc::clone(stock);
    crew::together(move || pair(&stock, slice), || 0.0)[0]
}

/// Buffers taken on one thread and given back on another, handed over in full hands of `BULK`: the
/// time on the wall that passes for each.
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
                    // An empty hand: the end.
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

/// Looks until there is something; the other thread may need this processor to put it there.
fn waited<T>(queue: &SegQueue<T>) -> T {
    for looks in 1_u32.. {
        if let Some(found) = queue.pop() {
            return found;
        }
        if looks.is_multiple_of(64) {
            thread::yield_now();
        }
    }
    unreachable!("the other thread gets to run");
}
