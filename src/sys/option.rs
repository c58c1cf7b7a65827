//! Options of a socket, and the errors of system calls.

use std::{
    ffi::c_int,
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Reads an option of type int.
pub(super) fn option(fd: BorrowedFd<'_>, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    get_option(fd, libc::SOL_SOCKET, name, std::slice::from_mut(&mut value))?;
    Ok(value)
}

/// Integers: every bit pattern is a valid value.
pub(super) trait Plain: Copy {}
impl Plain for c_int {}
impl Plain for u32 {}
impl Plain for u8 {}
impl Plain for usize {}

/// Reads an option into `value` and returns the number of bytes that were filled.
pub(super) fn get_option<T: Plain>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &mut [T],
) -> io::Result<usize> {
    let mut len = size_of_val(value) as libc::socklen_t;
    let start = value.as_mut_ptr().cast();
    // SAFETY: getsockopt(2) writes at most `len` bytes to the value, and then `len`. The value is
    // as long, and every bit pattern is valid for it (Plain). Both live through the call. The fd is
    // open while borrowed.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, start, &raw mut len) })?;
    Ok(len as usize)
}

/// Sets an option.
pub(super) fn set_option<T>(fd: BorrowedFd<'_>, name: c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: setsockopt(2) reads `len` bytes of the value, which is as long and lives through the
    // call. The fd is open while borrowed.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, value, len) })?;
    Ok(())
}

/// Turns the -1 of a system call into its error.
pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
