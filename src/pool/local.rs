//! A handle of a pool for one thread.

use crate::{
    buf::PinnedBuf,
    error::AllocError,
    raw::{LocalMagazine, SizeClass},
};

/// A handle of one size class of a pool for one thread, with a magazine of its own; from
/// [`Pool::local`](crate::Pool::local).
///
/// The handle saves the look-up of the thread's magazine and of the class. The buffers are ordinary
/// ones, free to go to other threads and to be dropped there. [`recycle`](Self::recycle) keeps a
/// buffer for the next alloc.
///
/// The slots in the handle's magazine are free: threads take them when the pool has nothing else
/// left. Dropping the handle empties the magazine.
///
/// # Performance
///
/// Takes a page of memory. There are no magazines in a pool of fewer than 64 slots, with
/// [`zero_on_recycle`](crate::pool::PoolBuilder::zero_on_recycle), and on a system without
/// `membarrier(2)`. Then the handle is as good as the pool itself.
///
/// # Examples
///
/// ```
/// use std::thread;
///
/// let pool = pinbuf::Pool::new(4096, 256)?;
/// thread::scope(|scope| {
///     for _ in 0..2 {
///         scope.spawn(|| {
///             let local = pool.local(4096).unwrap();
///             for _ in 0..1000 {
///                 let mut buf = local.try_alloc().unwrap();
///                 buf.extend_from_slice(b"each thread from its own");
///                 local.recycle(buf);
///             }
///         });
///     }
/// });
/// assert_eq!(pool.stats().free(), 256);
/// # Ok::<(), pinbuf::BuildError>(())
/// ```
#[derive(Debug)]
pub struct LocalPool<'a> {
    magazine: LocalMagazine<'a>,
}

static_assertions::assert_not_impl_any!(LocalPool<'static>: Send, Sync);

impl<'a> LocalPool<'a> {
    pub(super) fn new(class: &'a SizeClass) -> Self {
        Self { magazine: LocalMagazine::new(class) }
    }

    /// Takes a buffer, if one is free now.
    ///
    /// # Errors
    ///
    /// [`Exhausted`](AllocError::Exhausted): no slot of the class is free. There is no fallback
    /// to a larger class.
    ///
    /// ```
    /// use pinbuf::{AllocError, Pool};
    ///
    /// let pool = Pool::new(4096, 64)?;
    /// let local = pool.local(4096)?;
    /// let bufs: Vec<_> = (0..64).map(|_| local.try_alloc()).collect::<Result<_, _>>()?;
    /// assert_eq!(local.try_alloc().unwrap_err(), AllocError::Exhausted);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_alloc(&self) -> Result<PinnedBuf, AllocError> {
        self.magazine.alloc().map(PinnedBuf::new)
    }

    /// Recycles a buffer into this handle's magazine, or drops a buffer of another class.
    ///
    /// ```
    /// let pool = pinbuf::Pool::new(4096, 64)?;
    /// let local = pool.local(4096)?;
    /// let buf = local.try_alloc()?;
    /// let start = buf.as_ptr();
    /// local.recycle(buf);
    /// assert_eq!(local.try_alloc()?.as_ptr(), start);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn recycle(&self, buf: PinnedBuf) {
        buf.recycle_into(&self.magazine);
    }
}
