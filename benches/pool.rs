//! The pool against other pools and against the least code that could do its job.

#[path = "pool/floor.rs"]
mod floor;
mod harness;
#[path = "pool/rivals.rs"]
mod rivals;
#[path = "pool/stock.rs"]
mod stock;
#[path = "pool/workload.rs"]
mod workload;

use floor::{BareStack, MagazineAndDepot};
use harness::{AtMost, Bench, Case};
use rivals::Pinbuf;
use std::time::Duration;
use stock::Stock;

/// Buffers of each pool.
const COUNT: usize = 1024;
/// Bytes of each buffer.
const SIZE: usize = 64 << 10;

const BARE: &str = "floor: bare stack of a thread";
const MAGAZINE: &str = "floor: magazine and depot";
const PINBUF: &str = "pinbuf";

fn main() {
    let mut bench = Bench::new("pool");
    bench
        .table("one alloc and drop", "ns of CPU")
        .case("one thread", MAGAZINE, |case| {
            enter(case, BARE, || BareStack, workload::pair);
            enter(case, MAGAZINE, || MagazineAndDepot::new(COUNT as u32), workload::pair);
            enter(case, PINBUF, Pinbuf::new, workload::pair);
            case.goal(PINBUF, MAGAZINE, AtMost::Times(1.5));
        })
        .case("batch of 32, each", MAGAZINE, |case| {
            enter(case, BARE, || BareStack, workload::batch);
            enter(case, MAGAZINE, || MagazineAndDepot::new(COUNT as u32), workload::batch);
            enter(case, PINBUF, Pinbuf::new, workload::batch);
        })
        .case("bulk of 32, each", BARE, |case| {
            enter(case, BARE, || BareStack, workload::bulk);
            enter(case, PINBUF, Pinbuf::new, workload::bulk);
            case.goal(PINBUF, BARE, AtMost::Times(1.5));
        });
    bench.finish();
}

fn enter<S: Stock + 'static>(
    case: &mut Case<'_>,
    name: &str,
    stock: impl FnOnce() -> S + 'static,
    workload: fn(&S, Duration) -> f64,
) {
    case.row(name, move || {
        let stock = stock();
        Ok(move |slice| workload(&stock, slice))
    });
}
