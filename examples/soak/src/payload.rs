//! Random payloads.

use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::Duration,
};

use memmap2::{MmapOptions, MmapRaw};
use pinbuf::{MappedSlice, Payload, Pool, SharedBuf};

use crate::{
    contents::{self, Piece},
    random::Random,
};

const STATIC_SEED: u64 = 1;
static STATIC: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![0; 1 << 20];
    contents::fill(&mut bytes, STATIC_SEED);
    bytes
});

/// The common state of a round's sessions.
#[derive(Debug)]
pub(crate) struct Stock {
    pub(crate) pools: Vec<Pool>,
    mappings: Mutex<Vec<Weak<MmapRaw>>>,
}

impl Stock {
    pub(crate) fn new(pools: Vec<Pool>) -> Self {
        Self { pools, mappings: Mutex::default() }
    }

    /// The number of mappings still referenced.
    pub(crate) fn mappings_held(&self) -> usize {
        let mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        mappings.iter().filter(|mapping| mapping.strong_count() > 0).count()
    }
}

/// Makes payloads for one session.
pub(crate) struct Payloads<'a> {
    stock: &'a Stock,
    shared: Option<(SharedBuf, u64)>,
    mapped: Option<(Arc<MmapRaw>, u64)>,
}

impl<'a> Payloads<'a> {
    pub(crate) fn new(stock: &'a Stock) -> Self {
        Self { stock, shared: None, mapped: None }
    }

    /// A random pool.
    pub(crate) fn pool(&self) -> Option<&Pool> {
        self.stock.pools.first()
    }

    /// A payload of at most `max` bytes, and its contents; `None` if the pools lack buffers.
    pub(crate) fn make(&mut self, random: &mut Random, max: usize) -> Option<(Payload, Piece)> {
        let seed = random.next();
        let len = random.magnitude(1..=max);
        match random.within(0..=9) {
            0 => {
                let mut bytes = vec![0; len];
                contents::fill(&mut bytes, seed);
                Some((Arc::<[u8]>::from(bytes).into(), Piece::first(seed, len)))
            }
            1 => {
                let at = random.within(0..=STATIC.len() - len);
                let bytes: &'static [u8] = &STATIC[at..at + len];
                Some((bytes.into(), Piece { seed: STATIC_SEED, at, len }))
            }
            2 | 3 => self.part_of_mapping(random, len),
            4 | 5 => self.part_of_shared(random, len),
            _ => {
                let buf = self.pinned(random, len, seed)?;
                let len = buf.len();
                Some((buf.into(), Piece::first(seed, len)))
            }
        }
    }

    /// A buffer with the start of a pattern, shorter than `len` if a pool has no larger slots.
    fn pinned(&self, random: &mut Random, len: usize, seed: u64) -> Option<pinbuf::PinnedBuf> {
        let pool = &self.stock.pools[random.within(0..=self.stock.pools.len() - 1)];
        let largest = pool.stats().classes.last().map_or(0, |class| class.capacity);
        let len = len.min(largest);
        let mut buf = match random.within(0..=2) {
            0 => pool.try_alloc(len).ok()?,
            _ => pool.alloc_timeout(len, Duration::from_millis(200)).ok()?,
        };
        buf.resize(len, 0);
        contents::fill(&mut buf, seed);
        Some(buf)
    }

    fn part_of_shared(&mut self, random: &mut Random, len: usize) -> Option<(Payload, Piece)> {
        if self.shared.is_none() || random.percent(20) {
            // First the old buffer: it may be in the only slot.
            self.shared = None;
            let (seed, len) = (random.next(), random.magnitude(len..=1 << 20));
            self.shared = Some((self.pinned(random, len, seed)?.freeze(), seed));
        }
        let (shared, seed) = self.shared.as_ref()?;
        let len = len.min(shared.len());
        let at = random.within(0..=shared.len() - len);
        Some((shared.slice(at..at + len).into(), Piece { seed: *seed, at, len }))
    }

    fn part_of_mapping(&mut self, random: &mut Random, len: usize) -> Option<(Payload, Piece)> {
        if self.mapped.is_none() || random.percent(5) {
            let seed = random.next();
            let mut map = MmapOptions::new().len(1 << 20).map_anon().ok()?;
            contents::fill(&mut map, seed);
            let map = Arc::new(MmapRaw::from(map));
            let mut mappings = self.stock.mappings.lock().unwrap_or_else(PoisonError::into_inner);
            mappings.push(Arc::downgrade(&map));
            self.mapped = Some((map, seed));
        }
        let (map, seed) = self.mapped.as_ref()?;
        let at = random.within(0..=map.len() - len);
        let slice = MappedSlice::new(Arc::clone(map), at..at + len).ok()?;
        Some((slice.into(), Piece { seed: *seed, at, len }))
    }
}
