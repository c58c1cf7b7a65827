//! The pool against other pools, against allocators, and against the least code for the same job;
//! and the cost of a pool's set-up.

mod harness;

#[path = "pool/crew.rs"]
mod crew;
#[path = "pool/dpdk.rs"]
mod dpdk;
#[path = "pool/floor.rs"]
mod floor;
#[path = "pool/ours.rs"]
mod ours;
#[path = "pool/rivals.rs"]
mod rivals;
#[path = "pool/set_up.rs"]
mod set_up;
#[path = "pool/stock.rs"]
mod stock;
#[path = "pool/workload.rs"]
mod workload;

use std::sync::Arc;

use dpdk::Dpdk;
use floor::{BareStack, MagazineAndDepot, Nothing, Wide};
use harness::{AtMost, Bench, Case};
use ours::Pinbuf;
use pinbuf::pool::Pages;
use rivals::{
    LockfreeObjectPool, MIMALLOC, Opool, OpoolLocal, PinbufLocal, SYSTEM, ShardedSlab, Zeropool,
    array_queue, mutex, seg_queue,
};
use stock::Stock;
use workload::Workload;

/// Buffers of each pool.
const COUNT: usize = 1024;
/// Bytes of each buffer.
const SIZE: usize = 64 << 10;

const BARE: &str = "floor: bare stack of a thread";
const MAGAZINE: &str = "floor: magazine and depot";
const WIDE: &str = "floor, a slot in 8 bytes";
const PINBUF: &str = "pinbuf";
const OPOOL_LOCAL: &str = "opool, local pool";
const PINBUF_LOCAL: &str = "pinbuf, local handle";
const ONE_THREAD: &str = "pinbuf, one thread";

/// Enters all contestants for several threads.
macro_rules! enter_shared {
    ($case:ident, $workload:path) => {
        enter($case, MAGAZINE, || Ok(MagazineAndDepot::new()), $workload);
        enter($case, PINBUF, || Ok(Pinbuf::new()), $workload);
        enter($case, "DPDK mempool", Dpdk::get, $workload);
        enter($case, "opool", || Ok(Opool::new()), $workload);
        enter($case, "zeropool", || Ok(Zeropool::new()), $workload);
        enter($case, "lockfree-object-pool", || Ok(LockfreeObjectPool::new()), $workload);
        enter($case, "crossbeam ArrayQueue", || Ok(array_queue()), $workload);
        enter($case, "crossbeam SegQueue", || Ok(seg_queue()), $workload);
        enter($case, "Mutex<Vec>", || Ok(mutex()), $workload);
        enter($case, "sharded-slab", || Ok(ShardedSlab::new()), $workload);
        enter($case, "mimalloc", || Ok(MIMALLOC), $workload);
        enter($case, "system allocator", || Ok(SYSTEM), $workload);
    };
}

/// Enters all contestants.
macro_rules! enter_all {
    ($case:ident, $workload:path) => {
        enter($case, BARE, || Ok(BareStack), $workload);
        enter_shared!($case, $workload);
        enter($case, OPOOL_LOCAL, || Ok(OpoolLocal::new()), $workload);
        enter($case, PINBUF_LOCAL, || Ok(PinbufLocal::new()), $workload);
    };
}

fn main() {
    let mut bench = Bench::new("pool");
    bench
        .table("One alloc and drop", "ns of CPU")
        .case("one thread", MAGAZINE, |case| {
            enter_all!(case, workload::pair);
            case.goal(PINBUF, MAGAZINE, AtMost::Times(1.5));
            case.goal(PINBUF_LOCAL, OPOOL_LOCAL, AtMost::Times(1.0));
        })
        .case("batch of 32", MAGAZINE, |case| {
            enter_all!(case, workload::batch);
        })
        .case("bulk of 32", BARE, |case| {
            enter_all!(case, workload::bulk);
            case.goal(PINBUF, BARE, AtMost::Times(1.5));
        })
        .case("two threads", MAGAZINE, |case| {
            enter_shared!(case, workload::two_threads);
            enter(case, ONE_THREAD, || Ok(Pinbuf::new()), workload::one_thread);
            case.goal(PINBUF, ONE_THREAD, AtMost::Times(1.1));
        });
    bench.table("Alloc here, drop there", "ns on the wall").case("full hands", MAGAZINE, |case| {
        enter(case, "the hand-over alone", || Ok(Nothing), workload::hand_over);
        enter_shared!(case, workload::hand_over);
        enter(case, WIDE, || Ok(Wide(MagazineAndDepot::new())), workload::hand_over);
        case.goal(PINBUF, MAGAZINE, AtMost::Times(1.2));
    });
    let small = "pinbuf, 64 MiB";
    let large = "pinbuf, 64 GiB";
    let many = (64 << 30) / SIZE;
    bench
        .table("One alloc and drop in address space without pages", "ns of CPU")
        .case("one thread", small, |case| {
            enter(case, small, || Ok(Pinbuf::new()), workload::pair);
            enter(case, large, move || Ok(Pinbuf::of(many)), workload::pair);
            case.goal(large, small, AtMost::Times(1.1));
        })
        .case("batch of 32", small, |case| {
            enter(case, small, || Ok(Pinbuf::new()), workload::batch);
            enter(case, large, move || Ok(Pinbuf::of(many)), workload::batch);
            case.goal(large, small, AtMost::Times(1.1));
        });
    let (len, name) = bench.size((256 << 20, "256 MiB"), (8 << 20, "8 MiB"));
    let mut table = bench.table(&format!("Set-up of {name}"), "ms of CPU");
    for (name, pages) in [
        ("base pages", Pages::Base),
        ("transparent huge pages", Pages::Thp),
        ("hugetlb pages", Pages::HugeTlb { page_bytes: 2 << 20 }),
    ] {
        let raw = "floor: mmap and populate";
        table.case(name, raw, |case| {
            for (row, set_up) in [(raw, set_up::raw as fn(_, _) -> _), (PINBUF, set_up::pinbuf)] {
                case.row(row, move || {
                    set_up(pages, len)?;
                    Ok(move |_| set_up(pages, len).expect("it worked a moment ago"))
                });
            }
            case.goal(PINBUF, raw, AtMost::Times(1.05));
        });
    }
    drop(table);
    bench.finish();
}

fn enter<S: Stock + 'static>(
    case: &mut Case<'_>,
    name: &str,
    stock: impl FnOnce() -> Result<S, String> + 'static,
    workload: Workload<S>,
) {
    case.row(name, move || {
        let stock = Arc::new(stock()?);
        Ok(move |slice| workload(&stock, slice))
    });
}
