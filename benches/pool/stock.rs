//! The one trait that every contestant of the pool bench implements.

use std::hint::black_box;

/// Buffers that are taken together.
pub(crate) const BULK: usize = 32;

/// Gives out buffers and takes them back.
///
/// The loops are here so that what is written in another language can run its own.
pub(crate) trait Stock {
    type Buf;

    fn alloc(&self) -> Self::Buf;

    fn recycle(&self, buf: Self::Buf) {
        drop(buf);
    }

    /// Adds `BULK` buffers, one by one.
    fn alloc_each(&self, bufs: &mut Vec<Self::Buf>) {
        bufs.extend((0..BULK).map(|_| black_box(self.alloc())));
    }

    /// Takes all of `bufs`, one by one.
    fn recycle_each(&self, bufs: &mut Vec<Self::Buf>) {
        bufs.drain(..).for_each(|buf| self.recycle(black_box(buf)));
    }

    /// Adds `BULK` buffers in one call, if there is one.
    fn alloc_bulk(&self, bufs: &mut Vec<Self::Buf>) {
        self.alloc_each(bufs);
    }

    /// Takes all of `bufs` in one call, if there is one.
    fn recycle_bulk(&self, bufs: &mut Vec<Self::Buf>) {
        self.recycle_each(bufs);
    }

    /// Takes a buffer and gives it back, `count` times.
    fn pairs(&self, count: usize) {
        for _ in 0..count {
            self.recycle(black_box(self.alloc()));
        }
    }

    /// Takes `BULK` buffers, one by one, and gives them back so, until it was `count` buffers.
    fn batches(&self, count: usize) {
        let mut bufs = Vec::with_capacity(BULK);
        for _ in 0..count / BULK {
            self.alloc_each(&mut bufs);
            self.recycle_each(&mut bufs);
        }
    }

    /// Takes `BULK` buffers in one call, gives them back in one, until it was `count` buffers.
    fn bulks(&self, count: usize) {
        let mut bufs = Vec::with_capacity(BULK);
        for _ in 0..count / BULK {
            self.alloc_bulk(&mut bufs);
            black_box(&mut bufs);
            self.recycle_bulk(&mut bufs);
        }
    }
}
