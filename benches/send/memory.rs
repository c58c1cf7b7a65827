//! Memory for sends.

use pinbuf::{
    PinnedBuf, Pool,
    pool::{Backing, Pages},
};

/// The kind of pages for all contestants, without alternatives.
pub(crate) fn backing(huge: bool) -> Backing {
    Backing::Require(if huge { Pages::Thp } else { Pages::Base })
}

/// One buffer, written to its end.
pub(crate) struct Memory(PinnedBuf);

impl Memory {
    pub(crate) fn new(len: usize, huge: bool) -> Result<Self, String> {
        let pool = Pool::builder().class(len, 1).backing(backing(huge)).build();
        let buf = pool.map_err(|error| error.to_string())?.try_alloc(len);
        let mut buf = buf.map_err(|error| error.to_string())?;
        buf.resize(len, 1);
        Ok(Self(buf))
    }

    pub(crate) fn start(&self) -> *const u8 {
        self.0.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
