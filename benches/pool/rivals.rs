//! pinbuf and those it is compared with.

use pinbuf::{Backing, Pages, PinnedBuf, Pool};

use super::{COUNT, SIZE, stock::Stock};

pub(crate) struct Pinbuf(Pool);

impl Pinbuf {
    pub(crate) fn new() -> Self {
        // The backing makes no difference to what only the handles are passed around for.
        let builder = Pool::builder().class(SIZE, COUNT).backing(Backing::Require(Pages::Base));
        Self(builder.populate(false).build().expect("64 MiB of address space"))
    }
}

impl Stock for Pinbuf {
    type Buf = PinnedBuf;

    #[inline]
    fn alloc(&self) -> PinnedBuf {
        self.0.try_alloc(SIZE).expect("the pool is larger than what is out")
    }
}
