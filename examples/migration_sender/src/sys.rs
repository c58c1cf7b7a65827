//! System calls without a wrapper in the standard library, for the hypervisor's process and memory.

use std::{
    fs::File,
    io, mem,
    ops::Range,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

/// Sends the start of `bytes` with a descriptor. Returns the number of bytes sent: at least one.
pub fn send_with_fd(socket: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // In words, for the alignment of `cmsghdr`: header and descriptor take 24 bytes.
    let mut control = [0_u64; 4];
    // SAFETY: CMSG_SPACE only calculates.
    let space = unsafe { libc::CMSG_SPACE(4) };
    // SAFETY: CMSG_LEN only calculates.
    let len = unsafe { libc::CMSG_LEN(4) };
    // SAFETY: an all-zero `msghdr` is valid: no address, no parts, no control data.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = space as _;
    let header = control.as_mut_ptr().cast::<libc::cmsghdr>();
    let description = libc::cmsghdr {
        cmsg_len: len as _,
        cmsg_level: libc::SOL_SOCKET,
        cmsg_type: libc::SCM_RIGHTS,
    };
    // SAFETY: `control` is aligned for and larger than a `cmsghdr`.
    unsafe { header.write(description) };
    // SAFETY: `control` has room for CMSG_SPACE(4) bytes, so the data begins inside of it.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: CMSG_LEN(4) bytes are inside of `control`, so four bytes of data are.
    unsafe { data.cast::<i32>().write_unaligned(fd.as_raw_fd()) };
    // SAFETY: sendmsg(2) reads the message, its part and its control data, all alive during the
    // call. MSG_NOSIGNAL: a closed peer is an error.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// The process that made the listener of a connected unix socket; 0 from another pid namespace.
pub fn peer_pid(socket: &UnixStream) -> io::Result<i32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    let place = (&raw mut peer).cast();
    // SAFETY: getsockopt(2) writes at most `len` bytes to `peer`, plain numbers.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, place, &raw mut len) })?;
    Ok(peer.pid)
}

/// A descriptor of a process, which never becomes another process's.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two numbers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Returns `true` if the process has not ended.
pub fn is_alive(pidfd: BorrowedFd<'_>) -> bool {
    let mut entry = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: poll(2) reads and writes one entry, alive during the call.
    unsafe { libc::poll(&raw mut entry, 1, 0) == 0 }
}

/// Duplicates a descriptor of another process. Needs the permission to trace the process.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_getfd(2) takes three numbers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// The first data at or behind `offset`, up to its end. `None` behind the last data.
pub fn next_data(file: &File, offset: u64) -> io::Result<Option<Range<u64>>> {
    let seek = |offset: u64, whence| {
        let offset = offset.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: lseek(2) takes three numbers.
        let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    let start = match seek(offset, libc::SEEK_DATA) {
        Ok(start) => start,
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    match seek(start, libc::SEEK_HOLE) {
        Ok(end) => Ok(Some(start..end)),
        // A hole has taken the place of the data between the calls, up to the end of the file.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Magic number and block size of the file system of a file. The blocks of hugetlbfs are huge pages.
pub fn file_system(file: &File) -> io::Result<(i64, u64)> {
    // SAFETY: an all-zero `statfs` is valid: plain numbers.
    let mut found: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: fstatfs(2) writes to `found`, alive during the call.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut found) })?;
    Ok((found.f_type as i64, found.f_bsize as u64))
}

/// A run of pages in the answer of [`pagemap_scan`]: addresses and categories.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct PageRegion {
    pub start: u64,
    pub end: u64,
    pub categories: u64,
}

pub const PAGE_IS_WRITTEN: u64 = 1 << 1;
pub const PAGE_IS_PRESENT: u64 = 1 << 3;
pub const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// The argument of PAGEMAP_SCAN in linux/fs.h.
#[repr(C)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Tells the pages of `range` that are written or not present, and protects them against the next
/// write, in one step for each page. Returns the number of regions and the end of the walk.
///
/// Fails with EPERM where no userfaultfd with UFFD_FEATURE_WP_ASYNC is registered.
pub fn pagemap_scan(
    pagemap: &File,
    range: Range<u64>,
    regions: &mut [PageRegion],
) -> io::Result<(usize, u64)> {
    const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
    const PM_SCAN_WP_MATCHING: u64 = 1;
    const PM_SCAN_CHECK_WPASYNC: u64 = 2;
    let mut scan = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        start: range.start,
        end: range.end,
        walk_end: 0,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: PAGE_IS_PRESENT,
        category_mask: 0,
        category_anyof_mask: PAGE_IS_WRITTEN | PAGE_IS_PRESENT,
        return_mask: PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
    };
    // SAFETY: PAGEMAP_SCAN reads and writes its argument and at most `vec_len` regions at `vec`, all
    // alive during the call. Every bit pattern is valid for both.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
    let found = usize::try_from(found).map_err(|_| io::Error::last_os_error())?;
    Ok((found, scan.walk_end))
}

/// Chooses the features of a new userfaultfd. Fails with EINVAL where the kernel lacks one, and
/// where the features are chosen already.
pub fn userfaultfd_choose(uffd: BorrowedFd<'_>, features: u64) -> io::Result<()> {
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    const UFFD_API: u64 = 0xaa;
    let mut argument = [UFFD_API, features, 0];
    // SAFETY: UFFDIO_API reads and writes a `struct uffdio_api`, three words.
    check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, argument.as_mut_ptr()) })
}

/// Makes addresses of the userfaultfd's process ready for write protection.
pub fn userfaultfd_register(uffd: BorrowedFd<'_>, range: &Range<u64>) -> io::Result<()> {
    const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
    const UFFDIO_REGISTER_MODE_WP: u64 = 2;
    let mut argument = [range.start, range.end - range.start, UFFDIO_REGISTER_MODE_WP, 0];
    // SAFETY: UFFDIO_REGISTER reads and writes a `struct uffdio_register`, four words.
    check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER, argument.as_mut_ptr()) })
}

/// Takes registration and protection back.
pub fn userfaultfd_unregister(uffd: BorrowedFd<'_>, range: &Range<u64>) -> io::Result<()> {
    const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
    let mut argument = [range.start, range.end - range.start];
    // SAFETY: UFFDIO_UNREGISTER reads a `struct uffdio_range`, two words.
    check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_UNREGISTER, argument.as_mut_ptr()) })
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor, and this is its only owner.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
