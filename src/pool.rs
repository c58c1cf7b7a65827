//! The pool: buffers of equal size, or of a few sizes, in memory that can be sent without copying.
//!
//! | to | use |
//! |---|---|
//! | take a buffer | [`Pool::alloc`], [`Pool::try_alloc`], [`Pool::alloc_timeout`] |
//! | wait for a buffer in a future | [`Pool::alloc_async`], [`Alloc`] |
//! | wait for a buffer in an event loop | [`Pool::waiter`], [`Waiter`] |
//! | take many buffers at a lower cost | [`Pool::try_alloc_many`], [`Pool::local`], [`LocalPool`] |
//! | choose sizes, pages and limits | [`PoolBuilder`], [`Backing`], [`Pages`] |
//! | learn what pages the pool got, and why not better ones | [`RegionReport`], [`Refusal`] |
//! | count slots | [`PoolStats`], [`ClassStats`] |
//! | account for every slot | [`Audit`], [`SlotState`] |
//!
//! ```
//! use pinbuf::{pool::{Backing, Pages}, Pool};
//!
//! let pool = Pool::builder()
//!     .class(4096, 64)
//!     .class(1 << 20, 16)
//!     .backing(Backing::Prefer(Pages::Thp))
//!     .build()?;
//! let buf = pool.alloc(100_000)?;
//! assert_eq!(buf.capacity(), 1 << 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::time::{Duration, Instant};

use crate::{
    buf::PinnedBuf,
    error::{AllocError, BuildError},
    raw::{Options, PoolHandle, RawPool},
    sync::Arc,
};

mod local;
mod stats;
mod wait;

pub use local::LocalPool;
pub use stats::{Audit, ClassStats, Mismatch, MismatchKind, PoolStats};
pub use wait::{Alloc, Waiter};

pub use crate::{
    backing::{Backing, Pages},
    error::Refusal,
    raw::{RegionReport, SlotState},
};

/// A fixed stock of equal buffers, or of a few sizes, in memory that can be sent without copying.
///
/// All memory is mapped, populated and accounted for when the pool is built: afterwards an
/// allocation takes a free slot or reports that all are taken. No page fault or out-of-memory
/// follows.
///
/// Clones are handles of the same pool. Dropping the last handle before buffers are dropped, or
/// released, is fine: the memory is unmapped after the last buffer.
///
/// # Fork
///
/// The memory is kept out of forked children (`MADV_DONTFORK`), so that the parent's buffers in
/// flight stay intact. In a child the pool answers [`AllocError::Forked`]. Pool and buffers can be
/// dropped there without effect, and reading or writing a buffer ends in a segmentation fault. A
/// child can build new pools. A child forked by a signal handler must not return from the handler,
/// but call `exec` or `_exit`, because the handler may have interrupted an allocation.
///
/// # Performance
///
/// An allocation and the drop of its buffer take some two nanoseconds together, without an atomic
/// read-modify-write: each thread has a magazine of free slots for each class in use. Threads do
/// not slow each other down. A thread that finds no slot elsewhere takes the slots in the magazines
/// of all threads.
///
/// There are no magazines in classes of fewer than 64 slots, in pools with
/// [`zero_on_recycle`](PoolBuilder::zero_on_recycle), and on systems without `membarrier(2)`. There
/// a pair takes some ten nanoseconds, and all threads contend for a cache line. The magazines take
/// up to 32 KiB of memory per thread, for any number of pools.
///
/// # Examples
///
/// ```
/// use pinbuf::{AllocError, Pool};
///
/// let pool = Pool::builder().class(4096, 2).class(64 * 1024, 1).build()?;
/// let small = pool.try_alloc(100)?;
/// assert_eq!(small.capacity(), 4096);
/// let large = pool.try_alloc(4097)?;
/// assert_eq!(large.capacity(), 64 * 1024);
/// assert_eq!(pool.try_alloc(4097).unwrap_err(), AllocError::Exhausted);
/// drop(large);
/// assert!(pool.try_alloc(4097).is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Pool {
    handle: Arc<PoolHandle>,
}

static_assertions::assert_impl_all!(Pool: Send, Sync);

impl Pool {
    /// A pool of `count` slots of `capacity` bytes with the default options.
    ///
    /// # Errors
    ///
    /// See [`PoolBuilder::build`].
    ///
    /// ```
    /// let pool = pinbuf::Pool::new(64 * 1024, 16)?;
    /// assert_eq!(pool.stats().free(), 16);
    /// # Ok::<(), pinbuf::BuildError>(())
    /// ```
    pub fn new(capacity: usize, count: usize) -> Result<Self, BuildError> {
        Self::builder().class(capacity, count).build()
    }

    /// Starts a pool with several size classes or with options.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    /// Takes a buffer of at least `capacity` bytes, if one is free now.
    ///
    /// The buffer comes from the smallest sufficient size class. An empty class borrows from a
    /// larger class only with [`PoolBuilder::fallback`]. A class with a waiter is empty.
    ///
    /// # Errors
    ///
    /// [`Exhausted`](AllocError::Exhausted): no slot of the class is free.
    /// [`TooLarge`](AllocError::TooLarge): no class fits.
    ///
    /// ```
    /// use pinbuf::{AllocError, Pool};
    ///
    /// let pool = Pool::new(4096, 1)?;
    /// let _buf = pool.try_alloc(4096)?;
    /// assert_eq!(pool.try_alloc(1).unwrap_err(), AllocError::Exhausted);
    /// assert!(matches!(pool.try_alloc(4097), Err(AllocError::TooLarge { largest: 4096, .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_alloc(&self, capacity: usize) -> Result<PinnedBuf, AllocError> {
        let class = self.handle.class(capacity)?;
        self.raw().alloc(class).map(PinnedBuf::new)
    }

    /// Takes up to `count` buffers of at least `capacity` bytes, as many as are free now. Adds the
    /// buffers to `bufs` and returns their number.
    ///
    /// [`PinnedBuf::recycle_all`] is the counterpart.
    ///
    /// # Errors
    ///
    /// As [`try_alloc`](Self::try_alloc), if no buffer is free.
    ///
    /// # Performance
    ///
    /// Costs less than half of so many single calls. Keep the vector for the next time.
    ///
    /// ```
    /// use pinbuf::{AllocError, PinnedBuf, Pool};
    ///
    /// let pool = Pool::new(4096, 40)?;
    /// let mut bufs = Vec::with_capacity(32);
    /// assert_eq!(pool.try_alloc_many(4096, 32, &mut bufs)?, 32);
    /// assert_eq!(pool.try_alloc_many(4096, 32, &mut bufs)?, 8);
    /// assert_eq!(pool.try_alloc_many(4096, 32, &mut bufs), Err(AllocError::Exhausted));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_alloc_many(
        &self,
        capacity: usize,
        count: usize,
        bufs: &mut Vec<PinnedBuf>,
    ) -> Result<usize, AllocError> {
        let class = self.handle.class(capacity)?;
        // A wish beyond the pool's size reserves no room.
        bufs.reserve(count.min(class.slots().len()));
        let before = bufs.len();
        let taken = self.raw().alloc_many(class, count, bufs, PinnedBuf::new);
        match bufs.len() - before {
            0 => taken.map(|()| 0),
            number => Ok(number),
        }
    }

    /// A handle for one thread, with a magazine of its own for buffers of at least `capacity`
    /// bytes.
    ///
    /// # Errors
    ///
    /// [`TooLarge`](AllocError::TooLarge): no class fits.
    /// [`Forked`](AllocError::Forked): the pool is the parent process's.
    ///
    /// ```
    /// let pool = pinbuf::Pool::new(4096, 64)?;
    /// let local = pool.local(4096)?;
    /// let mut buf = local.try_alloc()?;
    /// buf.extend_from_slice(b"mine");
    /// local.recycle(buf);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn local(&self, capacity: usize) -> Result<LocalPool<'_>, AllocError> {
        let class = self.handle.class(capacity)?;
        if class.is_forked() { Err(AllocError::Forked) } else { Ok(LocalPool::new(class)) }
    }

    /// Takes a buffer of at least `capacity` bytes, waiting until one is free.
    ///
    /// Waiters are served in order. Before and during the sleep, the library reads the
    /// notifications of all senders with buffers of this pool. So even a wait on the thread of
    /// these senders comes to an end.
    ///
    /// # Errors
    ///
    /// [`TooLarge`](AllocError::TooLarge): no class fits.
    /// [`Exhausted`](AllocError::Exhausted): every slot of the class is Quarantined, so that no
    /// slot may ever become free.
    ///
    /// ```
    /// use std::{thread, time::Duration};
    ///
    /// let pool = pinbuf::Pool::new(4096, 1)?;
    /// let buf = pool.alloc(4096)?;
    /// let other = thread::spawn(move || {
    ///     thread::sleep(Duration::from_millis(10));
    ///     drop(buf);
    /// });
    /// let buf = pool.alloc(4096)?; // Waits for the other thread.
    /// # other.join().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn alloc(&self, capacity: usize) -> Result<PinnedBuf, AllocError> {
        self.try_alloc(capacity).or_else(|error| self.wait_after(error, capacity))
    }

    #[cold]
    fn wait_after(&self, error: AllocError, capacity: usize) -> Result<PinnedBuf, AllocError> {
        match error {
            AllocError::Exhausted => self.alloc_async(capacity).block(None),
            error => Err(error),
        }
    }

    /// As [`alloc`](Self::alloc), but waits no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](AllocError::TimedOut), and the errors of [`alloc`](Self::alloc).
    ///
    /// ```
    /// use std::time::Duration;
    /// use pinbuf::{AllocError, Pool};
    ///
    /// let pool = Pool::new(4096, 1)?;
    /// let _buf = pool.alloc(4096)?;
    /// let error = pool.alloc_timeout(4096, Duration::from_millis(5)).unwrap_err();
    /// assert_eq!(error, AllocError::TimedOut);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn alloc_timeout(
        &self,
        capacity: usize,
        timeout: Duration,
    ) -> Result<PinnedBuf, AllocError> {
        match self.try_alloc(capacity) {
            // A time too far away to be told is no limit.
            Err(AllocError::Exhausted) => {
                self.alloc_async(capacity).block(Instant::now().checked_add(timeout))
            }
            result => result,
        }
    }

    /// As [`alloc`](Self::alloc), as a future for any runtime.
    ///
    /// Nothing happens before the first poll. See [`Alloc`] for the effect of a drop.
    ///
    /// ```
    /// # fn block_on<F: Future>(future: F) -> F::Output {
    /// #     let mut future = std::pin::pin!(future);
    /// #     let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     loop {
    /// #         if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut cx) {
    /// #             return output;
    /// #         }
    /// #     }
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = pinbuf::Pool::new(4096, 1)?;
    /// let buf = block_on(async { pool.alloc_async(4096).await })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn alloc_async(&self, capacity: usize) -> Alloc<'_> {
        Alloc::new(self.raw(), self.handle.class(capacity))
    }

    /// A waiter for buffers of at least `capacity` bytes, which an event loop or a hand-written future
    /// stores and polls.
    ///
    /// # Errors
    ///
    /// [`TooLarge`](AllocError::TooLarge): no class fits.
    /// [`Forked`](AllocError::Forked): the pool is the parent process's.
    ///
    /// ```
    /// use std::task::{Context, Waker};
    ///
    /// let pool = pinbuf::Pool::new(4096, 1)?;
    /// let mut waiter = pool.waiter(4096)?;
    /// assert!(waiter.poll_alloc(&mut Context::from_waker(Waker::noop())).is_ready());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn waiter(&self, capacity: usize) -> Result<Waiter, AllocError> {
        let class = self.handle.class(capacity)?;
        if class.is_forked() {
            return Err(AllocError::Forked);
        }
        Ok(Waiter::new(Arc::clone(&self.handle), capacity))
    }

    /// The pages behind the pool's memory, and the reason against each better kind.
    ///
    /// ```
    /// let pool = pinbuf::Pool::new(64 * 1024, 64)?;
    /// let region = pool.region();
    /// assert!(region.bytes >= 64 * 64 * 1024);
    /// println!("{region}");
    /// # Ok::<(), pinbuf::BuildError>(())
    /// ```
    pub fn region(&self) -> &RegionReport {
        self.raw().region().report()
    }

    /// The number of slots in each state, now.
    ///
    /// The counts are read in a row. While slots move, the sum may be wrong.
    ///
    /// # Performance
    ///
    /// Reads one word per slot, about a microsecond per thousand; alloc and recycle pay
    /// nothing.
    ///
    /// ```
    /// let pool = pinbuf::Pool::new(4096, 4)?;
    /// let _buf = pool.try_alloc(4096)?;
    /// let stats = pool.stats();
    /// assert_eq!((stats.free(), stats.owned()), (3, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stats(&self) -> PoolStats {
        PoolStats::read(self.raw())
    }

    /// Checks that every slot is accounted for, and names the rest.
    ///
    /// Call this while no thread allocates or drops buffers of the pool and no send is being
    /// released: a slot between two states is named too.
    ///
    /// ```
    /// let pool = pinbuf::Pool::new(4096, 4)?;
    /// drop(pool.try_alloc(4096)?);
    /// let audit = pool.audit();
    /// assert!(audit.is_clean(), "{audit}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn audit(&self) -> Audit {
        Audit::run(self.raw())
    }

    pub(crate) fn raw(&self) -> &RawPool {
        &self.handle
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self.raw(), f)
    }
}

/// Builds a [`Pool`].
///
/// ```
/// use pinbuf::{pool::{Backing, Pages}, Pool};
///
/// let pool = Pool::builder()
///     .class(4096, 64)
///     .class(256 * 1024, 16)
///     .backing(Backing::Prefer(Pages::Thp))
///     .dont_dump(true)
///     .build()?;
/// # Ok::<(), pinbuf::BuildError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct PoolBuilder {
    options: Options,
}

impl PoolBuilder {
    /// Adds a size class of `count` slots of `capacity` bytes.
    ///
    /// In memory a slot takes whole pages, or, below a page, a power of two of at least 64 bytes. Each
    /// slot starts at a multiple of that power of two, or at the start of a page. So buffers of a page
    /// or more suit `O_DIRECT` and the fixed buffers of `io_uring`.
    ///
    /// ```
    /// let pool = pinbuf::Pool::builder().class(1000, 4).class(100_000, 4).build()?;
    /// assert!(pool.try_alloc(1000)?.as_ptr().addr().is_multiple_of(1024));
    /// assert!(pool.try_alloc(100_000)?.as_ptr().addr().is_multiple_of(4096));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn class(mut self, capacity: usize, count: usize) -> Self {
        self.options.classes.push((capacity, count));
        self
    }

    /// The kind of pages. Default: [`Backing::Auto`].
    pub fn backing(mut self, backing: Backing) -> Self {
        self.options.backing = backing;
        self
    }

    /// Keeps the memory out of core dumps (`MADV_DONTDUMP`). Default: no. Linux only, without
    /// effect elsewhere.
    pub fn dont_dump(mut self, dont_dump: bool) -> Self {
        self.options.dont_dump = dont_dump;
        self
    }

    /// Locks the memory into RAM (`mlock`), out of reach for swapping. Default: no.
    ///
    /// The memory counts against RLIMIT_MEMLOCK, like bytes in flight.
    pub fn mlock(mut self, mlock: bool) -> Self {
        self.options.mlock = mlock;
        self
    }

    /// Takes all memory from this NUMA node, best the node of the network card. Default: the
    /// kernel's choice. Linux only.
    ///
    /// If the node lacks memory, the build fails. If the node lacks hugetlb pages alone, the next kind
    /// of pages is tried; see [`RegionReport::numa_node`].
    pub fn numa_node(mut self, node: usize) -> Self {
        self.options.supply.numa_node = Some(node);
        self
    }

    /// `true`: all memory is there when the pool is built. Default: `true`.
    ///
    /// With `false` a pool of any size is built at once, and takes memory with the first write to
    /// each slot. The price: each first write faults, a lack of memory ends a process instead of
    /// being an error here, hugetlb pages are not used, and transparent huge pages are a wish.
    /// [`mlock`](Self::mlock) locks pages as they come.
    ///
    /// ```
    /// use pinbuf::{pool::{Backing, Pages}, Pool};
    ///
    /// let pool = Pool::builder()
    ///     .class(1 << 20, 4096)
    ///     .backing(Backing::Prefer(Pages::Thp))
    ///     .populate(false)
    ///     .build()?; // 4 GiB, of which none is there yet.
    /// assert!(!pool.region().populated);
    /// # Ok::<(), pinbuf::BuildError>(())
    /// ```
    pub fn populate(mut self, populate: bool) -> Self {
        self.options.supply.populate = populate;
        self
    }

    /// `true`: an empty class borrows from larger classes, the next larger first. Default: `false`.
    ///
    /// Every call looks once. A call that then waits, waits for a slot of the best class, and does
    /// not take a larger slot meanwhile.
    ///
    /// ```
    /// let pool = pinbuf::Pool::builder().class(4096, 1).class(65536, 1).fallback(true).build()?;
    /// let small = pool.try_alloc(100)?;
    /// let large = pool.try_alloc(100)?;
    /// assert_eq!((small.capacity(), large.capacity()), (4096, 65536));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fallback(mut self, fallback: bool) -> Self {
        self.options.fallback = fallback;
        self
    }

    /// The limit of slots in flight for each sender, so that a sender with a slow peer does not
    /// take all slots. Default: no limit.
    ///
    /// A send beyond the limit is refused with [`WouldBlock`](crate::SendError::WouldBlock) until
    /// enough is released. Two sends are not refused: a single send with more slots than the limit,
    /// while the sender has no slot of the pool in flight, and a send of a sender that copies
    /// everything. A frozen buffer counts once for every send.
    pub fn sender_quota(mut self, slots: usize) -> Self {
        self.options.sender_quota = Some(slots);
        self
    }

    /// Overwrites a recycled slot with zeros, so that no later user and no stray read finds the old
    /// bytes. Default: no.
    ///
    /// # Performance
    ///
    /// Each recycle writes the whole capacity, whatever the length was.
    pub fn zero_on_recycle(mut self, zero_on_recycle: bool) -> Self {
        self.options.zero_on_recycle = zero_on_recycle;
        self
    }

    /// Maps and populates the memory.
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the setting or the lack, and the remedy.
    ///
    /// # Performance
    ///
    /// Populating takes some 0.05 to 0.3 seconds per GiB, least with huge pages; see
    /// [`populate`](Self::populate).
    ///
    /// ```
    /// use pinbuf::{BuildError, Pool};
    ///
    /// let error = Pool::builder().build().unwrap_err();
    /// assert_eq!(error, BuildError::NoClass);
    /// ```
    pub fn build(self) -> Result<Pool, BuildError> {
        let handle = Arc::new(PoolHandle::build(self.options)?);
        Ok(Pool { handle })
    }
}
