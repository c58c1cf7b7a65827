//! pinbuf's pool as a contestant.

use pinbuf::{
    PinnedBuf, Pool,
    pool::{Backing, Pages},
};

use super::{
    COUNT, SIZE,
    stock::{BULK, Stock},
};

pub(crate) struct Pinbuf(pub(crate) Pool);

impl Pinbuf {
    /// A pool of `count` buffers. Their memory stays untouched, and so without pages.
    pub(crate) fn of(count: usize) -> Self {
        let builder = Pool::builder().class(SIZE, count).backing(Backing::Require(Pages::Base));
        Self(builder.populate(false).build().expect("address space is not scarce"))
    }

    pub(crate) fn new() -> Self {
        Self::of(COUNT)
    }
}

impl Stock for Pinbuf {
    type Buf = PinnedBuf;

    #[inline]
    fn alloc(&self) -> PinnedBuf {
        self.0.try_alloc(SIZE).expect("the pool has free slots")
    }

    #[inline]
    fn alloc_bulk(&self, bufs: &mut Vec<PinnedBuf>) {
        self.0.try_alloc_many(SIZE, BULK, bufs).expect("the pool has free slots");
    }

    #[inline]
    fn recycle_bulk(&self, bufs: &mut Vec<PinnedBuf>) {
        PinnedBuf::recycle_all(bufs);
    }
}
