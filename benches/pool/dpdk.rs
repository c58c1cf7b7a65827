//! DPDK's mempool, if built by `benches/pool/dpdk.sh`.

use std::{
    ffi::{CStr, CString},
    mem,
    os::unix::ffi::OsStrExt,
    ptr,
    sync::OnceLock,
};

use super::{
    COUNT, SIZE, harness,
    stock::{BULK, Stock},
};

/// The functions of `dpdk.c`.
#[derive(Clone, Copy)]
pub(crate) struct Dpdk {
    alloc: EachBuf,
    recycle: EachBuf,
    pairs: Loop,
    bulks: Loop,
}

type Address = *mut libc::c_void;
type Init = unsafe extern "C" fn(u32, u32) -> i32;
type EachBuf = unsafe extern "C" fn(*mut Buf, u64);
type Loop = unsafe extern "C" fn(u64);

/// The address of a buffer.
#[repr(transparent)]
pub(crate) struct Buf(Address);

// SAFETY: a buffer belongs to no thread.
unsafe impl Send for Buf {}

impl Dpdk {
    /// The one pool of the process.
    pub(crate) fn get() -> Result<Self, String> {
        static POOL: OnceLock<Result<Dpdk, String>> = OnceLock::new();
        POOL.get_or_init(Self::load).clone()
    }

    fn load() -> Result<Self, String> {
        let path = harness::directory().join("dpdk.so");
        if !path.exists() {
            return Err("not built: see benches/pool/dpdk.sh".to_owned());
        }
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        // SAFETY: dlopen(3) of a C string; the library has only DPDK's constructors, which register
        // drivers.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return Err("DPDK's libraries cannot be loaded".to_owned());
        }
        let symbol = |name: &'static CStr| {
            // SAFETY: dlsym(3) with a loaded library, never unloaded, and a C string.
            let address = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!address.is_null()).then_some(address).ok_or(format!("no {name:?} in dpdk.so"))
        };
        let init = symbol(c"pinbuf_dpdk_init")?;
        // SAFETY: dpdk.c defines the function with this signature.
        let init = unsafe { mem::transmute::<Address, Init>(init) };
        // SAFETY: called once; any numbers are valid.
        let error = unsafe { init(COUNT as u32, SIZE as u32) };
        if error != 0 {
            return Err(format!("DPDK cannot start: error {error}"));
        }
        let (alloc, recycle) = (symbol(c"pinbuf_dpdk_alloc")?, symbol(c"pinbuf_dpdk_recycle")?);
        let (pairs, bulks) = (symbol(c"pinbuf_dpdk_pairs")?, symbol(c"pinbuf_dpdk_bulks")?);
        Ok(Self {
            // SAFETY: dpdk.c defines the function with this signature.
            alloc: unsafe { mem::transmute::<Address, EachBuf>(alloc) },
            // SAFETY: dpdk.c defines the function with this signature.
            recycle: unsafe { mem::transmute::<Address, EachBuf>(recycle) },
            // SAFETY: dpdk.c defines the function with this signature.
            pairs: unsafe { mem::transmute::<Address, Loop>(pairs) },
            // SAFETY: dpdk.c defines the function with this signature.
            bulks: unsafe { mem::transmute::<Address, Loop>(bulks) },
        })
    }
}

impl Stock for Dpdk {
    type Buf = Buf;

    fn alloc(&self) -> Buf {
        let mut buf = Buf(ptr::null_mut());
        // SAFETY: the library is started; there is room for one buffer.
        unsafe { (self.alloc)(&raw mut buf, 1) };
        buf
    }

    fn recycle(&self, mut buf: Buf) {
        // SAFETY: the library is started, and handed out the buffer.
        unsafe { (self.recycle)(&raw mut buf, 1) };
    }

    fn alloc_each(&self, bufs: &mut Vec<Buf>) {
        bufs.reserve(BULK);
        // SAFETY: the library is started; there is room for as many behind the length.
        unsafe { (self.alloc)(bufs.spare_capacity_mut().as_mut_ptr().cast(), BULK as u64) };
        // SAFETY: as many were written behind the length.
        unsafe { bufs.set_len(bufs.len() + BULK) };
    }

    fn recycle_each(&self, bufs: &mut Vec<Buf>) {
        // SAFETY: the library is started, and handed out all of the buffers.
        unsafe { (self.recycle)(bufs.as_mut_ptr(), bufs.len() as u64) };
        bufs.clear();
    }

    fn pairs(&self, count: usize) {
        // SAFETY: the library is started.
        unsafe { (self.pairs)(count as u64) };
    }

    fn bulks(&self, count: usize) {
        // SAFETY: the library is started.
        unsafe { (self.bulks)(count as u64) };
    }
}
