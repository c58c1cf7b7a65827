//! The bytes of files, in buffers of the pool.

use std::{
    collections::HashMap,
    io,
    ops::{Deref, Range},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pinbuf::{PinnedBuf, Pool, SharedBuf};
use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    conditions::is_settled,
    root::{OpenFile, Version},
};

/// The capacity of a buffer, and the most bytes of a send.
pub(crate) const PIECE: usize = 256 << 10;

/// The wait for a buffer of the pool.
const PATIENCE: Duration = Duration::from_millis(100);

/// The length of a piece without a buffer: below the threshold from which sends go without a copy.
const SMALL_PIECE: u64 = 12 << 10;

/// Bytes to send.
#[derive(Debug)]
pub(crate) enum Piece {
    /// In a buffer, which the cache may have too.
    Shared(SharedBuf),
    /// On the heap: a page of the server, or a small piece while all buffers are taken.
    Owned(Vec<u8>),
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Shared(buf) => buf,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Reads files into buffers, and keeps those read last.
#[derive(Debug)]
pub(crate) struct Pieces {
    pool: Pool,
    cache: Mutex<Cache>,
}

impl Pieces {
    /// Keeps at most `cached` buffers of the pool.
    pub(crate) fn new(pool: Pool, cached: usize) -> Self {
        Self { pool, cache: Mutex::new(Cache { limit: cached, ..Cache::default() }) }
    }

    /// The first bytes of the range, as many as are at hand.
    ///
    /// While slow clients hold all buffers, pieces are small and on the heap: such clients slow the rest
    /// down, and stop nothing.
    pub(crate) async fn read(&self, file: &Arc<OpenFile>, range: Range<u64>) -> io::Result<Piece> {
        let start = range.start - range.start % PIECE as u64;
        let end = range.end.min(start + PIECE as u64);
        let within = (range.start - start) as usize..(end - start) as usize;
        let key = (file.version, start);
        if let Some(buf) = self.cache().get(key) {
            return Ok(Piece::Shared(buf.slice(within)));
        }
        let Ok(Ok(buf)) = timeout(PATIENCE, self.pool.alloc_async(PIECE)).await else {
            let end = end.min(range.start + SMALL_PIECE);
            return Ok(Piece::Owned(read_owned(file, range.start..end).await?));
        };
        if !self.cache().admits(&file.version) {
            return Ok(Piece::Shared(fill(file, buf, range.start..end).await?));
        }
        // Whole, for ranges to come.
        let whole = start..file.version.len.min(start + PIECE as u64);
        let buf = fill(file, buf, whole).await?;
        self.cache().insert(key, buf.clone());
        Ok(Piece::Shared(buf.slice(within)))
    }

    /// Gives all cached buffers back, and returns the pool.
    pub(crate) fn empty(&self) -> &Pool {
        self.cache().pieces.clear();
        &self.pool
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the range into the buffer.
async fn fill(file: &Arc<OpenFile>, buf: PinnedBuf, range: Range<u64>) -> io::Result<SharedBuf> {
    let file = Arc::clone(file);
    let reading = spawn_blocking(move || {
        let (mut buf, mut result) = (buf, Ok(()));
        buf.append_with(|room| {
            let room = &mut room[..(range.end - range.start) as usize];
            result = file.file.read_exact_at(room, range.start);
            if result.is_ok() { room.len() } else { 0 }
        });
        result.map(|()| buf.freeze())
    });
    reading.await?
}

async fn read_owned(file: &Arc<OpenFile>, range: Range<u64>) -> io::Result<Vec<u8>> {
    let file = Arc::clone(file);
    let reading = spawn_blocking(move || {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    });
    reading.await?
}

/// Pieces by version and offset. A changed file has another version, so an old piece is never found again,
/// and makes room in its turn.
#[derive(Debug, Default)]
struct Cache {
    pieces: HashMap<(Version, u64), (SharedBuf, u64)>,
    limit: usize,
    /// The number of uses so far: the time of the last use of each piece.
    uses: u64,
}

impl Cache {
    fn get(&mut self, key: (Version, u64)) -> Option<SharedBuf> {
        self.uses += 1;
        let (buf, used) = self.pieces.get_mut(&key)?;
        *used = self.uses;
        Some(buf.clone())
    }

    /// Returns `true` for files that leave room for others, and that have not changed just now: a second
    /// change could leave the time stamps as they are.
    fn admits(&self, version: &Version) -> bool {
        let (seconds, _) = version.changed;
        let changed = UNIX_EPOCH + Duration::from_secs(seconds.max(0) as u64 + 1);
        let latest = changed.max(version.modified);
        version.len <= (self.limit * PIECE / 4) as u64 && is_settled(latest, SystemTime::now())
    }

    fn insert(&mut self, key: (Version, u64), buf: SharedBuf) {
        if self.pieces.len() >= self.limit {
            let oldest = self.pieces.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(key) = oldest.map(|(key, _)| *key) {
                self.pieces.remove(&key);
            }
        }
        self.pieces.insert(key, (buf, self.uses));
    }
}
