//! Counters, faults, and a line per minute.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use pinbuf::{Pool, sender::SenderStats};

use crate::footprint::Footprint;

/// The counts so far. All counters are statistics: Relaxed, without other data.
#[derive(Debug)]
pub(crate) struct Tally {
    seed: u64,
    begun: Instant,
    faults: AtomicU64,
    pub(crate) sessions: AtomicU64,
    pub(crate) sends: AtomicU64,
    pub(crate) resets: AtomicU64,
    pub(crate) quarantined: AtomicU64,
    pub(crate) children: AtomicU64,
    /// Bytes compared by the peers.
    pub(crate) received: AtomicU64,
    pub(crate) huge_pools: AtomicU64,
    pub(crate) lossy_workers: AtomicU64,
    zero_copy_bytes: AtomicU64,
    copied_bytes: AtomicU64,
    released: AtomicU64,
    no_bufs_optmem: AtomicU64,
    no_bufs_memlock: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Tally {
    pub(crate) fn new(seed: u64) -> Self {
        say(&format!("seed {seed}"));
        let zero = || AtomicU64::new(0);
        Self {
            seed,
            begun: Instant::now(),
            faults: zero(),
            sessions: zero(),
            sends: zero(),
            resets: zero(),
            quarantined: zero(),
            children: zero(),
            received: zero(),
            huge_pools: zero(),
            lossy_workers: zero(),
            zero_copy_bytes: zero(),
            copied_bytes: zero(),
            released: zero(),
            no_bufs_optmem: zero(),
            no_bufs_memlock: zero(),
        }
    }

    /// Reports a fault at once, with its place in the run.
    pub(crate) fn fault(&self, place: &str, what: &str) {
        add(&self.faults, 1);
        say(&format!("FAULT (seed {}) {place}: {what}", self.seed));
    }

    pub(crate) fn faults(&self) -> u64 {
        get(&self.faults)
    }

    /// Adds the counters of an ending sender.
    pub(crate) fn count(&self, stats: &SenderStats) {
        add(&self.zero_copy_bytes, stats.zero_copy_bytes);
        add(&self.copied_bytes, stats.copied_bytes);
        add(&self.released, stats.released_calls);
        add(&self.no_bufs_optmem, stats.no_bufs_optmem);
        add(&self.no_bufs_memlock, stats.no_bufs_memlock);
    }

    /// Prints the present state.
    pub(crate) fn line(&self, round: usize, pools: &[Pool]) {
        let now = Footprint::now();
        let in_quarantine: usize = pools.iter().map(|pool| pool.stats().quarantined()).sum();
        let (zero_copy, copied) = (get(&self.zero_copy_bytes), get(&self.copied_bytes));
        let copied_share = 100 * copied / (zero_copy + copied).max(1);
        say(&format!(
            "{:5.1} min  round {round}  sends {}  sent {}  checked {}  released {}  copied {copied_share} %  \
             quarantined {} (now {in_quarantine})  resets {}  ENOBUFS optmem {} memlock {}  \
             RSS {} MiB  fds {}  threads {}  faults {}",
            self.begun.elapsed().as_secs_f64() / 60.0,
            get(&self.sends),
            size(zero_copy + copied),
            size(get(&self.received)),
            get(&self.released),
            get(&self.quarantined),
            get(&self.resets),
            get(&self.no_bufs_optmem),
            get(&self.no_bufs_memlock),
            now.rss_bytes >> 20,
            now.descriptors,
            now.threads,
            self.faults(),
        ));
    }

    pub(crate) fn summary(&self, rounds: usize) {
        self.line(rounds, &[]);
        say(&format!(
            "{} sessions, {} forked children, {} pools on hugetlb pages, {} workers in lossy \
             namespaces{}",
            get(&self.sessions),
            get(&self.children),
            get(&self.huge_pools),
            get(&self.lossy_workers),
            if get(&self.lossy_workers) == 0 { " (needs root and iptables-legacy)" } else { "" },
        ));
        match self.faults() {
            0 => say(&format!("nothing was found in {} rounds, seed {}", rounds, self.seed)),
            count => say(&format!("{count} faults, seed {}", self.seed)),
        }
    }
}

/// The time of the next line.
#[derive(Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    const EVERY: Duration = Duration::from_secs(60);

    pub(crate) fn new(tally: &Tally) -> Self {
        let minutes = tally.begun.elapsed().as_secs() / 60;
        Self(tally.begun + Self::EVERY * (minutes + 1) as u32)
    }

    pub(crate) fn strikes(&mut self) -> bool {
        let due = Instant::now() >= self.0;
        if due {
            self.0 += Self::EVERY;
        }
        due
    }
}

fn size(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / (1_u64 << 30) as f64)
}

fn say(line: &str) {
    // A closed stdout is no reason to end.
    let _ = writeln!(io::stdout().lock(), "{line}");
}
