//! The tracker against maps, scans, and the least code for the same job.
//!
//! A tracked value has 80 bytes, somewhat more than a sender's lease. The floor is a bare ring with
//! the lease and the bytes of each id: found by one index, without checks. The tracker is used like
//! the sender uses it around the call of a lone buffer: enter a lease with an id of its own, settle
//! it, and later release the ids of a notification, all or none.

mod harness;

#[path = "tracker/order.rs"]
mod order;
#[path = "tracker/rivals.rs"]
mod rivals;

use std::{rc::Rc, time::Duration};

use harness::{AtMost, Bench, Case, Counting, allocated, per_op, thread_cpu};
use order::{Driver, Order};
use pinbuf::__internals::CompletionTracker;
use rivals::{
    Foldhash, Fx, IndexedDeque, Lease, ListScan, Nothing, Place, Ring, ScannedDeque,
    SlabBehindRing, Sorted, Std, Tracker, TwoMaps,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const RING: &str = "floor: ring";
const PINBUF: &str = "pinbuf";

/// The number of ids per measurement.
const COUNT: usize = 1024;

/// The largest window for a search id by id.
const MAX_SCANNED: usize = 1 << 13;

macro_rules! enter_all {
    ($case:ident, $order:ident, $measure:ident) => {
        enter($case, "the driver alone", $order, $measure::<Nothing>);
        enter($case, RING, $order, $measure::<Ring>);
        enter($case, PINBUF, $order, $measure::<CompletionTracker<Lease>>);
        enter($case, "VecDeque, indexed", $order, $measure::<IndexedDeque>);
        enter($case, "slab behind a ring", $order, $measure::<SlabBehindRing>);
        enter($case, "HashMap, Fx", $order, $measure::<Fx>);
        enter($case, "HashMap, foldhash", $order, $measure::<Foldhash>);
        enter($case, "HashMap, std", $order, $measure::<Std>);
        enter($case, "BTreeMap", $order, $measure::<Sorted>);
        enter($case, "two maps (folly)", $order, $measure::<TwoMaps>);
        enter_scan($case, "list scan (SPDK)", $order, $measure::<ListScan>);
        enter_scan($case, "VecDeque scan", $order, $measure::<ScannedDeque>);
    };
}

fn main() {
    let mut bench = Bench::new("tracker");
    let windows = bench.size(&[64, 1 << 10, 1 << 13, 1 << 16, 1 << 20][..], &[64, 1 << 10]);
    for order in [Order::ranges, Order::singles, Order::a_tenth_astray, Order::random] {
        let name = order(32).name;
        let title = format!("Issue and release, {name}");
        let mut table = bench.table(&title, "ns of CPU for an id").rounds(9);
        for &window in windows {
            table.case(&format!("{window} ids"), RING, |case| {
                let order = &Rc::new(order(window));
                enter_all!(case, order, time);
                case.goal(PINBUF, RING, AtMost::Times(1.5));
            });
        }
    }
    let mut table = bench.table("Memory of a full window", "bytes for an id").rounds(1);
    for &window in windows {
        table.case(&format!("{window} ids"), RING, |case| {
            let order = &Rc::new(Order::random(window));
            enter_all!(case, order, memory);
            case.goal(PINBUF, RING, AtMost::Value(2.0 * size_of::<Place>() as f64 + 2.0));
        });
    }
    drop(table);
    bench.finish();
}

fn enter<C: FnMut(Duration) -> f64 + 'static>(
    case: &mut Case<'_>,
    name: &str,
    order: &Rc<Order>,
    measure: fn(Rc<Order>) -> C,
) {
    let order = Rc::clone(order);
    case.row(name, move || Ok(measure(order)));
}

/// Leaves out cases of minutes.
fn enter_scan<C: FnMut(Duration) -> f64 + 'static>(
    case: &mut Case<'_>,
    name: &str,
    order: &Rc<Order>,
    measure: fn(Rc<Order>) -> C,
) {
    if !order.is_scattered() || order.window <= MAX_SCANNED {
        enter(case, name, order, measure);
    }
}

/// The time for an id, in and out.
fn time<T: Tracker>(order: Rc<Order>) -> impl FnMut(Duration) -> f64 + use<T> {
    let mut driver = Driver::<T>::new(order);
    move |slice| per_op(thread_cpu, slice, COUNT, || driver.run(COUNT))
}

/// The memory for an id, after a while with a full window.
fn memory<T: Tracker>(order: Rc<Order>) -> impl FnMut(Duration) -> f64 + use<T> {
    let window = order.window;
    let before = allocated();
    let mut driver = Driver::<T>::new(order);
    driver.run(window * 5 / 2);
    let bytes = allocated() - before;
    move |_| bytes as f64 / window as f64
}
