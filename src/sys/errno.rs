//! The error numbers that callers tell apart.

pub(crate) use libc::{
    EAGAIN, ECANCELED, EFAULT, EMSGSIZE, ENOBUFS, ENOTCONN, EOPNOTSUPP, EPERM, ETIMEDOUT,
};

/// Returns `true` if a call that failed so may succeed when it is made again.
pub(crate) fn may_pass(errno: i32) -> bool {
    matches!(errno, libc::ENOMEM | ENOBUFS | EAGAIN | libc::EINTR)
}

/// Whether a failed send means that the connection is over.
pub(crate) fn ends_connection(errno: i32) -> bool {
    matches!(
        errno,
        libc::EPIPE
            | libc::ECONNRESET
            | libc::ECONNABORTED
            | ETIMEDOUT
            | ENOTCONN
            | libc::ESHUTDOWN
            | libc::EBADF
    )
}
