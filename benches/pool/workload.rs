//! What the contestants of the pool bench are made to do.

use std::{hint::black_box, time::Duration};

use super::{
    harness::{per_op, thread_cpu},
    stock::Stock,
};

/// Buffers that are taken together.
pub(crate) const BULK: usize = 32;

/// Pairs that are timed together.
const PAIRS: usize = 1024;

/// Takes a buffer and gives it back: the nanoseconds of a pair.
pub(crate) fn pair<S: Stock>(stock: &S, slice: Duration) -> f64 {
    per_op(thread_cpu, slice, PAIRS, || {
        for _ in 0..PAIRS {
            stock.recycle(black_box(stock.alloc()));
        }
    })
}

/// Takes `BULK` buffers, one by one, then gives all back.
pub(crate) fn batch<S: Stock>(stock: &S, slice: Duration) -> f64 {
    let mut bufs = Vec::with_capacity(BULK);
    per_op(thread_cpu, slice, PAIRS, || {
        for _ in 0..PAIRS / BULK {
            for _ in 0..BULK {
                bufs.push(black_box(stock.alloc()));
            }
            bufs.drain(..).for_each(|buf| stock.recycle(black_box(buf)));
        }
    })
}

/// Takes `BULK` buffers in one call, and gives them back in one.
pub(crate) fn bulk<S: Stock>(stock: &S, slice: Duration) -> f64 {
    let mut bufs = Vec::with_capacity(BULK);
    per_op(thread_cpu, slice, PAIRS, || {
        for _ in 0..PAIRS / BULK {
            stock.alloc_bulk(&mut bufs);
            black_box(&mut bufs);
            stock.recycle_bulk(&mut bufs);
        }
    })
}
