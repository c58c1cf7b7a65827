//! One round: pools are made, loaded by many threads, and must be whole again.

use std::{
    thread,
    time::{Duration, Instant},
};

use pinbuf::reaper::wait_idle;

use crate::{
    footprint::Baseline,
    payload::Stock,
    random::Random,
    settings, signals,
    tally::{Clock, Tally, add},
    worker::Worker,
};

/// A thread that takes longer after the end of a round hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Plays a round and checks its remains.
pub(crate) fn play(
    number: usize,
    mut random: Random,
    tally: &Tally,
    baseline: &mut Baseline,
    end: Instant,
) {
    let until = end.min(Instant::now() + random.millis(2000..=12_000));
    let pools: Vec<_> = (0..random.within(1..=3)).map(|_| settings::pool(&mut random)).collect();
    add(&tally.huge_pools, pools.iter().filter(|pool| settings::is_huge(pool)).count() as u64);
    let stock = Stock::new(pools);
    let workers = random.within(1..=6);
    thread::scope(|scope| {
        let running: Vec<_> = (0..workers)
            .map(|worker| {
                let name = format!("round {number} worker {worker}");
                let worker = Worker { name, stock: &stock, tally, until };
                let random = random.branch();
                scope.spawn(move || worker.work(random))
            })
            .collect();
        let mut clock = Clock::new(tally);
        while !running.iter().all(|worker| worker.is_finished()) {
            thread::sleep(Duration::from_millis(20));
            if clock.strikes() {
                tally.line(number, &stock.pools);
            }
            if Instant::now() > until + PATIENCE {
                tally.fault(&format!("round {number}"), "a worker hangs");
                tally.line(number, &stock.pools);
                std::process::exit(1);
            }
        }
        for worker in running {
            // The end of the scope waits for the closures, not for the end of their threads, which
            // the footprint counts.
            worker.join().expect("a worker reports its faults");
        }
    });
    if let Err(what) = settle(&stock, baseline) {
        // After an interrupt in the middle, slots may be in use.
        if !signals::interrupted() || tally.faults() > 0 {
            tally.fault(&format!("after round {number}"), &what);
        }
    }
}

/// Waits until all senders have ended and all slots are free, and checks.
fn settle(stock: &Stock, baseline: &mut Baseline) -> Result<(), String> {
    if !wait_idle(Some(PATIENCE)) {
        return Err(format!("the reaper is not done: {:?}", pinbuf::reaper::stats()));
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    // The reaper may hold the last reference to a sender for a moment after its end.
    while let Err(what) = accounts(stock) {
        if Instant::now() > deadline {
            return Err(what);
        }
        thread::sleep(Duration::from_millis(5));
    }
    baseline.check()
}

fn accounts(stock: &Stock) -> Result<(), String> {
    for pool in &stock.pools {
        let audit = pool.audit();
        let slots: usize = audit.stats.classes.iter().map(|class| class.slots).sum();
        if !audit.is_clean() || audit.stats.free() != slots || audit.stats.replaced_bytes != 0 {
            return Err(format!("not every slot is home: {audit} ({:?})", audit.stats));
        }
    }
    match stock.mappings_held() {
        0 => Ok(()),
        count => Err(format!("{count} mappings are leaked")),
    }
}
