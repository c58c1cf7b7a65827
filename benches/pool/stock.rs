//! The trait of the contestants in the pool bench.

use std::hint::black_box;

/// The number of buffers per batch.
pub(crate) const BULK: usize = 32;

/// Hands out buffers and takes them back.
///
/// The loops are here so that a contestant in C can run its own.
pub(crate) trait Stock {
    type Buf;

    fn alloc(&self) -> Self::Buf;

    fn recycle(&self, buf: Self::Buf) {
        drop(buf);
    }

    /// Adds `BULK` buffers singly.
    fn alloc_each(&self, bufs: &mut Vec<Self::Buf>) {
        bufs.extend((0..BULK).map(|_| black_box(self.alloc())));
    }

    /// Returns all of `bufs` singly.
    fn recycle_each(&self, bufs: &mut Vec<Self::Buf>) {
        bufs.drain(..).for_each(|buf| self.recycle(black_box(buf)));
    }

    /// Adds `BULK` buffers in one call, if possible.
    fn alloc_bulk(&self, bufs: &mut Vec<Self::Buf>) {
        self.alloc_each(bufs);
    }

    /// Returns all of `bufs` in one call, if possible.
    fn recycle_bulk(&self, bufs: &mut Vec<Self::Buf>) {
        self.recycle_each(bufs);
    }

    /// Takes and returns a buffer, `count` times.
    fn pairs(&self, count: usize) {
        for _ in 0..count {
            self.recycle(black_box(self.alloc()));
        }
    }

    /// Takes `BULK` buffers singly and returns them singly, until `count` buffers.
    fn batches(&self, count: usize) {
        let mut bufs = Vec::with_capacity(BULK);
        for _ in 0..count / BULK {
            self.alloc_each(&mut bufs);
            self.recycle_each(&mut bufs);
        }
    }

    /// Takes `BULK` buffers in one call and returns them in one call, until `count` buffers.
    fn bulks(&self, count: usize) {
        let mut bufs = Vec::with_capacity(BULK);
        for _ in 0..count / BULK {
            self.alloc_bulk(&mut bufs);
            black_box(&mut bufs);
            self.recycle_bulk(&mut bufs);
        }
    }
}
