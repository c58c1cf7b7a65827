//! Memory, descriptors and threads of this process.

use std::fs;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Footprint {
    pub(crate) rss_bytes: usize,
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
}

impl Footprint {
    pub(crate) fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let number = |key: &str| -> usize {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Self {
            rss_bytes: number("VmRSS:") << 10,
            // Without the descriptor of the listing itself.
            descriptors: fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() - 1),
            threads: number("Threads:"),
        }
    }

    /// Returns the allocator's free memory to the system, so that only used memory is left.
    pub(crate) fn settled() -> Self {
        #[cfg(target_env = "gnu")]
        // SAFETY: malloc_trim(3) takes no pointers.
        unsafe {
            libc::malloc_trim(0)
        };
        Self::now()
    }
}

/// The limits after a round.
#[derive(Debug)]
pub(crate) struct Baseline {
    start: Footprint,
    /// The most memory after the first rounds, with all caches warm.
    rss_bytes: usize,
    rounds: usize,
}

impl Baseline {
    const WARM_AFTER: usize = 4;
    const SLACK_BYTES: usize = 64 << 20;
    /// The reaper's thread, and its two descriptors.
    const REAPER: (usize, usize) = (1, 2);

    pub(crate) fn new() -> Self {
        Self { start: Footprint::now(), rss_bytes: 0, rounds: 0 }
    }

    /// Compares the resources after a round with the limits.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        let (start, now) = (self.start, Footprint::settled());
        self.rounds += 1;
        if now.threads > start.threads + Self::REAPER.0 {
            return Err(format!("{} threads were left, of {}", now.threads, start.threads));
        }
        if now.descriptors > start.descriptors + Self::REAPER.1 {
            let (left, were) = (now.descriptors, start.descriptors);
            return Err(format!("{left} descriptors were left open, of {were}"));
        }
        if self.rounds <= Self::WARM_AFTER {
            self.rss_bytes = self.rss_bytes.max(now.rss_bytes);
        } else if now.rss_bytes > self.rss_bytes + Self::SLACK_BYTES {
            let [rss, were] = [now.rss_bytes, self.rss_bytes].map(|bytes| bytes >> 20);
            return Err(format!("{rss} MiB of memory are in use, where {were} MiB were enough"));
        }
        Ok(())
    }
}
