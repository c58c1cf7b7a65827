//! The bytes of files, in buffers of the pool.

use std::{
    collections::HashMap,
    io, iter,
    ops::{Deref, Range},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pinbuf::{PinnedBuf, Pool, SharedBuf};
use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    conditions::is_settled,
    root::{OpenFile, Version},
};

/// The capacity of a buffer.
pub(crate) const PIECE: usize = 256 << 10;

/// The most pieces of a send. They share a visit of the thread that reads, and a system call.
pub(crate) const MOST_PIECES: usize = 4;

/// The wait for a buffer of the pool.
pub(crate) const PATIENCE: Duration = Duration::from_millis(100);

/// The length of a piece without a buffer: below the threshold from which sends go without a copy.
pub(crate) const SMALL_PIECE: usize = 12 << 10;

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

    /// The first pieces of the range.
    ///
    /// While slow clients hold all buffers, pieces are small and on the heap: such clients slow the rest
    /// down, and stop nothing.
    pub(crate) async fn read(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        range: Range<u64>,
    ) -> io::Result<Vec<Piece>> {
        let cached: Vec<_> = cut(&range).map_while(|part| self.cached(file, part)).collect();
        if !cached.is_empty() {
            return Ok(cached);
        }
        let buf = timeout(PATIENCE, self.pool.alloc_async(PIECE)).await.ok().transpose();
        let buf = buf.map_err(io::Error::other)?;
        let (this, file) = (Arc::clone(self), Arc::clone(file));
        let reading = spawn_blocking(move || match buf {
            Some(buf) => this.read_now(&file, range, Some(buf)),
            None => {
                let end = range.end.min(range.start + SMALL_PIECE as u64);
                let mut bytes = vec![0; (end - range.start) as usize];
                file.file.read_exact_at(&mut bytes, range.start)?;
                Ok(vec![Piece::Owned(bytes)])
            }
        });
        reading.await?
    }

    /// The first pieces of the range, as many as there are buffers for now. `buf` is the first. Blocks.
    pub(crate) fn read_now(
        &self,
        file: &OpenFile,
        range: Range<u64>,
        mut buf: Option<PinnedBuf>,
    ) -> io::Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        for part in cut(&range) {
            if let Some(piece) = self.cached(file, part.clone()) {
                pieces.push(piece);
            } else if let Some(buf) = buf.take().or_else(|| self.pool.try_alloc(PIECE).ok()) {
                pieces.push(self.fill(file, part, buf)?);
            } else {
                break;
            }
        }
        Ok(pieces)
    }

    fn cached(&self, file: &OpenFile, part: Range<u64>) -> Option<Piece> {
        let (start, within) = place(&part);
        let buf = self.cache().get((file.version, start))?;
        Some(Piece::Shared(buf.slice(within)))
    }

    /// Reads a part into the buffer; the whole piece around it if the cache takes the file.
    fn fill(&self, file: &OpenFile, part: Range<u64>, mut buf: PinnedBuf) -> io::Result<Piece> {
        let admitted = self.cache().admits(&file.version);
        let (start, within) = place(&part);
        let range = match admitted {
            true => start..file.version.len.min(start + PIECE as u64),
            false => part,
        };
        let mut result = Ok(());
        buf.append_with(|room| {
            let room = &mut room[..(range.end - range.start) as usize];
            result = file.file.read_exact_at(room, range.start);
            if result.is_ok() { room.len() } else { 0 }
        });
        result?;
        let buf = buf.freeze();
        if !admitted {
            return Ok(Piece::Shared(buf));
        }
        self.cache().insert((file.version, start), buf.clone());
        Ok(Piece::Shared(buf.slice(within)))
    }

    /// Gives all cached buffers back, and returns the pool.
    pub(crate) fn empty(&self) -> &Pool {
        self.cache().pieces.clear();
        &self.pool
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts off the first parts of the range, each within one piece of the file.
fn cut(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let mut left = range.clone();
    let parts = iter::from_fn(move || {
        let end = left.end.min((left.start / PIECE as u64 + 1) * PIECE as u64);
        let part = left.start..end;
        left.start = end;
        (!part.is_empty()).then_some(part)
    });
    parts.take(MOST_PIECES)
}

/// The start of the piece around a part, and the part's place within.
fn place(part: &Range<u64>) -> (u64, Range<usize>) {
    let start = part.start - part.start % PIECE as u64;
    (start, (part.start - start) as usize..(part.end - start) as usize)
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
