//! The dirtier, in the role of a running guest: writes pages and marks them.

use std::{
    io,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    bitmap::DirtyBitmap,
    memory::{GuestMemory, mix},
    wire::{PAGE, Run},
};

/// One of this many dirtied pages becomes zero.
const ZERO_EVERY: u64 = 32;

/// The settings of a dirtier.
#[derive(Clone, Copy, Debug)]
pub struct DirtierConfig {
    /// Bytes of pages to write per second; 0: no dirtier.
    pub bytes_per_second: u64,
    /// The length of the written part of the memory, from its start.
    pub working_set: usize,
    pub seed: u64,
}

/// A thread that writes pages of a guest memory, like a running guest.
#[derive(Debug)]
pub struct Dirtier {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Dirtier {
    /// Starts writing random pages of the working set at the configured rate.
    pub fn start(
        config: DirtierConfig,
        memory: Arc<GuestMemory>,
        bitmap: Arc<DirtyBitmap>,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = match config.bytes_per_second {
            0 => None,
            _ => Some(
                thread::Builder::new()
                    .name("dirtier".into())
                    .spawn(move || dirty(config, &memory, &bitmap, &flag))?,
            ),
        };
        Ok(Self { stop, thread })
    }

    /// Stops the thread and returns the number of written pages. All writes and marks of the thread
    /// are then visible to the caller: a join synchronizes with the whole thread.
    pub fn stop(mut self) -> u64 {
        self.halt()
    }

    fn halt(&mut self) -> u64 {
        // Relaxed: only a request. The caller relies on the join.
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(0, |thread| thread.join().unwrap_or(0))
    }
}

impl Drop for Dirtier {
    fn drop(&mut self) {
        self.halt();
    }
}

fn dirty(
    config: DirtierConfig,
    memory: &GuestMemory,
    bitmap: &DirtyBitmap,
    stop: &AtomicBool,
) -> u64 {
    const TICK: Duration = Duration::from_millis(1);
    let start = Instant::now();
    let pages = config.working_set.min(memory.len() as usize).div_ceil(PAGE).max(1) as u64;
    let rate = config.bytes_per_second as f64 / PAGE as f64;
    let mut written = 0;
    let mut random = config.seed;
    while !stop.load(Ordering::Relaxed) && memory.check_backing().is_ok() {
        let due = (start.elapsed().as_secs_f64() * rate) as u64;
        // At most 64 between two looks at `stop`, since they count as downtime.
        for _ in 0..due.saturating_sub(written).min(64) {
            random = mix(random);
            let page = (random % pages) as usize;
            write_page(memory, memory.layout().page_run(page), random);
            bitmap.mark(page);
            written += 1;
        }
        if written >= due {
            thread::sleep(TICK);
        }
    }
    written
}

/// Writes one line of a page, or rarely zeroes the page.
fn write_page(memory: &GuestMemory, run: Run, random: u64) {
    const LINE: usize = 64;
    let words = run.len / 8 * 8;
    if (random >> 32).is_multiple_of(ZERO_EVERY) {
        for at in (0..words).step_by(8) {
            memory.write_word(run.offset + at, 0);
        }
        return;
    }
    let line = (random >> 40) as usize % (PAGE / LINE) * LINE;
    for at in (line..words.min(line + LINE)).step_by(8) {
        memory.write_word(run.offset + at, random ^ at as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bitmap::Cursor,
        wire::{CHUNK, Layout},
    };

    #[test]
    fn the_dirtier_marks_its_writes_in_the_working_set() {
        let memory =
            Arc::new(GuestMemory::zeroed(Layout::new([("ram".into(), CHUNK)]).unwrap()).unwrap());
        let bitmap = Arc::new(DirtyBitmap::clean(CHUNK / PAGE));
        let config =
            DirtierConfig { bytes_per_second: 1 << 30, working_set: 10 * PAGE + 1, seed: 1 };
        let dirtier = Dirtier::start(config, Arc::clone(&memory), Arc::clone(&bitmap)).unwrap();
        while bitmap.count() < 11 {
            thread::yield_now();
        }
        assert!(dirtier.stop() >= 11);
        let pages: Vec<_> =
            bitmap.harvest(&Cursor::default()).flat_map(|chunk| chunk.pages()).collect();
        assert_eq!(pages, (0..11).collect::<Vec<_>>());
        let clean = 11 * PAGE;
        assert!(memory.is_zero(clean, CHUNK - clean));
        assert_eq!(bitmap.count(), 0, "it stopped");
    }
}
