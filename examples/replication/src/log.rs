//! The log of all accepted blocks, with the recent ones in memory.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex},
};

use pinbuf::Pool;
use tokio::task::spawn_blocking;

use crate::{
    block::{Block, fill},
    open,
    wire::{Message, Position},
};

/// A file of records, and the last `window` blocks.
#[derive(Debug)]
pub(crate) struct Log {
    file: Arc<File>,
    pool: Pool,
    /// Bytes of a record, but for the last one.
    record_bytes: usize,
    window: usize,
    recent: Mutex<VecDeque<Block>>,
}

impl Log {
    pub(crate) fn create(
        path: &Path,
        pool: Pool,
        record_bytes: usize,
        window: usize,
    ) -> io::Result<Self> {
        let file = open(File::options().read(true).write(true).create_new(true), path)?;
        let recent = Mutex::new(VecDeque::with_capacity(window));
        Ok(Self { file: Arc::new(file), pool, record_bytes, window, recent })
    }

    pub(crate) fn record_bytes(&self) -> usize {
        self.record_bytes
    }

    /// Adds the next block. Called by one thread.
    pub(crate) fn append(&self, block: Block) -> io::Result<()> {
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("the log: {error}"));
        (&*self.file).write_all(block.record()).map_err(failed)?;
        let mut recent = self.recent.lock().expect("no holder panics");
        if recent.len() == self.window {
            recent.pop_front();
        }
        recent.push_back(block);
        Ok(())
    }

    /// Block `number`, which was appended: the buffer of all readers if the block is recent, and a buffer of
    /// its own, from the file, otherwise.
    pub(crate) async fn get(&self, number: u64) -> io::Result<Block> {
        if let Some(block) = self.recent(number) {
            return Ok(block);
        }
        let mut buf = self.pool.alloc_async(self.record_bytes).await?;
        let (file, record_bytes) = (Arc::clone(&self.file), self.record_bytes);
        let read = spawn_blocking(move || {
            let offset = number * record_bytes as u64;
            fill(&mut buf, &mut At { file: &file, offset }, record_bytes)?;
            Block::parse(buf, number)
        });
        read.await?
    }

    /// The place behind the first `blocks` blocks, which were appended.
    pub(crate) async fn position(&self, blocks: u64) -> io::Result<Position> {
        match blocks.checked_sub(1) {
            None => Ok(Position::default()),
            Some(last) => Ok(self.get(last).await?.position),
        }
    }

    /// The length of the first `blocks` blocks, which were appended.
    pub(crate) async fn bytes(&self, blocks: u64) -> io::Result<u64> {
        match blocks.checked_sub(1) {
            None => Ok(0),
            Some(last) => {
                let block_bytes = (self.record_bytes - Message::LEN) as u64;
                Ok(last * block_bytes + self.get(last).await?.data().len() as u64)
            }
        }
    }

    /// Drops the blocks in memory, at the end.
    pub(crate) fn forget(&self) {
        self.recent.lock().expect("no holder panics").clear();
    }

    fn recent(&self, number: u64) -> Option<Block> {
        let recent = self.recent.lock().expect("no holder panics");
        let first = recent.front()?.position.blocks - 1;
        let index = number.checked_sub(first)?;
        recent.get(usize::try_from(index).ok()?).cloned()
    }
}

/// Reads a file from an offset on.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(into, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}
