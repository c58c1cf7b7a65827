//! The one trait that every contestant of the pool bench implements.

use super::workload::BULK;

/// Gives out buffers and takes them back.
pub(crate) trait Stock {
    type Buf;

    fn alloc(&self) -> Self::Buf;

    fn recycle(&self, buf: Self::Buf) {
        drop(buf);
    }

    /// Adds `BULK` buffers.
    fn alloc_bulk(&self, bufs: &mut Vec<Self::Buf>) {
        bufs.extend((0..BULK).map(|_| self.alloc()));
    }

    fn recycle_bulk(&self, bufs: &mut Vec<Self::Buf>) {
        bufs.drain(..).for_each(|buf| self.recycle(buf));
    }
}
