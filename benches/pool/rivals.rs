//! pinbuf and its rivals, each used as its documentation recommends for speed.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr::NonNull,
    sync::{Mutex, PoisonError},
};

use crossbeam::queue::{ArrayQueue, SegQueue};
use lockfree_object_pool::{LinearObjectPool, LinearReusable};
use mimalloc::MiMalloc;
use opool::{LocalPool, PoolAllocator, RefGuard, RefLocalGuard};
use pinbuf::PinnedBuf;
use zeropool::{BufUninit, ZeroPool};

use super::{COUNT, SIZE, ours::Pinbuf, stock::Stock};

type Memory = Vec<u8>;

fn memory() -> Memory {
    Vec::with_capacity(SIZE)
}

/// For pools with borrowing buffers.
fn for_ever<T>(pool: T) -> &'static T {
    Box::leak(Box::new(pool))
}

/// A thread's own handle.
pub(crate) struct PinbufLocal(pinbuf::pool::LocalPool<'static>);

impl PinbufLocal {
    pub(crate) fn new() -> Self {
        Self(for_ever(Pinbuf::new()).0.local(SIZE).expect("the pool has one class"))
    }
}

impl Stock for PinbufLocal {
    type Buf = PinnedBuf;

    #[inline]
    fn alloc(&self) -> PinnedBuf {
        self.0.try_alloc().expect("the pool has free slots")
    }

    #[inline]
    fn recycle(&self, buf: PinnedBuf) {
        self.0.recycle(buf);
    }
}

/// The maker of buffers for opool.
pub(crate) struct Maker;

impl PoolAllocator<Memory> for Maker {
    fn allocate(&self) -> Memory {
        memory()
    }
}

pub(crate) struct Opool(&'static opool::Pool<Maker, Memory>);

impl Opool {
    pub(crate) fn new() -> Self {
        Self(for_ever(opool::Pool::new_prefilled(COUNT, Maker)))
    }
}

impl Stock for Opool {
    type Buf = RefGuard<'static, Maker, Memory>;

    #[inline]
    fn alloc(&self) -> Self::Buf {
        self.0.get()
    }
}

pub(crate) struct OpoolLocal(&'static LocalPool<Maker, Memory>);

impl OpoolLocal {
    pub(crate) fn new() -> Self {
        Self(for_ever(LocalPool::new_prefilled(COUNT, Maker)))
    }
}

impl Stock for OpoolLocal {
    type Buf = RefLocalGuard<'static, Maker, Memory>;

    #[inline]
    fn alloc(&self) -> Self::Buf {
        self.0.get()
    }
}

pub(crate) struct Zeropool(&'static ZeroPool);

impl Zeropool {
    pub(crate) fn new() -> Self {
        // As many in a thread's cache as the floor has; the default of two would be exchanged
        // constantly.
        let pool = ZeroPool::new().tls_cache_size(512).max_buffers_per_class(COUNT);
        pool.warm(COUNT, SIZE);
        Self(for_ever(pool))
    }
}

impl Stock for Zeropool {
    type Buf = BufUninit<'static>;

    #[inline]
    fn alloc(&self) -> Self::Buf {
        self.0.alloc_uninit(SIZE)
    }
}

pub(crate) struct LockfreeObjectPool(&'static LinearObjectPool<Memory>);

impl LockfreeObjectPool {
    pub(crate) fn new() -> Self {
        Self(for_ever(LinearObjectPool::new(memory, Vec::clear)))
    }
}

impl Stock for LockfreeObjectPool {
    type Buf = LinearReusable<'static, Memory>;

    #[inline]
    fn alloc(&self) -> Self::Buf {
        self.0.pull()
    }
}

/// Clears its vectors and keeps their memory.
pub(crate) struct ShardedSlab(sharded_slab::Pool<Memory>);

impl ShardedSlab {
    pub(crate) fn new() -> Self {
        Self(sharded_slab::Pool::new())
    }
}

impl Stock for ShardedSlab {
    type Buf = usize;

    #[inline]
    fn alloc(&self) -> usize {
        self.0.create_with(|memory| memory.reserve_exact(SIZE)).expect("there is room")
    }

    #[inline]
    fn recycle(&self, key: usize) {
        self.0.clear(key);
    }
}

impl Stock for ArrayQueue<Memory> {
    type Buf = Memory;

    #[inline]
    fn alloc(&self) -> Memory {
        self.pop().expect("the pool has free slots")
    }

    #[inline]
    fn recycle(&self, memory: Memory) {
        self.push(memory).expect("a popped buffer has room");
    }
}

pub(crate) fn array_queue() -> ArrayQueue<Memory> {
    let queue = ArrayQueue::new(COUNT);
    (0..COUNT).for_each(|_| Stock::recycle(&queue, memory()));
    queue
}

impl Stock for SegQueue<Memory> {
    type Buf = Memory;

    #[inline]
    fn alloc(&self) -> Memory {
        self.pop().expect("the pool has free slots")
    }

    #[inline]
    fn recycle(&self, memory: Memory) {
        self.push(memory);
    }
}

pub(crate) fn seg_queue() -> SegQueue<Memory> {
    let queue = SegQueue::new();
    (0..COUNT).for_each(|_| queue.push(memory()));
    queue
}

impl Stock for Mutex<Vec<Memory>> {
    type Buf = Memory;

    #[inline]
    fn alloc(&self) -> Memory {
        let mut free = self.lock().unwrap_or_else(PoisonError::into_inner);
        free.pop().expect("the pool has free slots")
    }

    #[inline]
    fn recycle(&self, memory: Memory) {
        self.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }
}

pub(crate) fn mutex() -> Mutex<Vec<Memory>> {
    Mutex::new((0..COUNT).map(|_| memory()).collect())
}

/// An allocator in place of a pool.
pub(crate) struct Heap<A>(A);

pub(crate) const SYSTEM: Heap<System> = Heap(System);
pub(crate) const MIMALLOC: Heap<MiMalloc> = Heap(MiMalloc);

const LAYOUT: Layout = match Layout::array::<u8>(SIZE) {
    Ok(layout) => layout,
    Err(_) => panic!("64 KiB are not too large"),
};

/// An allocation of [`LAYOUT`].
pub(crate) struct Allocated(NonNull<u8>);

// SAFETY: an allocation belongs to no thread.
unsafe impl Send for Allocated {}

impl<A: GlobalAlloc> Stock for Heap<A> {
    type Buf = Allocated;

    #[inline]
    fn alloc(&self) -> Allocated {
        // SAFETY: the layout has a size.
        let memory = unsafe { self.0.alloc(LAYOUT) };
        Allocated(NonNull::new(memory).expect("64 KiB are available"))
    }

    #[inline]
    fn recycle(&self, memory: Allocated) {
        // SAFETY: `alloc` of the same allocator returned this memory for the same layout.
        unsafe { self.0.dealloc(memory.0.as_ptr(), LAYOUT) };
    }
}
