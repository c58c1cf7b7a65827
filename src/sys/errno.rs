//! The error numbers that decide what a caller does.

pub(crate) use libc::{
    EAGAIN, ECANCELED, ECONNREFUSED, EFAULT, EHOSTDOWN, EHOSTUNREACH, EINVAL, EMSGSIZE,
    ENETUNREACH, ENOBUFS, ENOTCONN, EOPNOTSUPP, EPERM, EPIPE, ETIMEDOUT,
};

/// Returns `true` if a repetition of the failed call may succeed.
pub(crate) fn may_pass(errno: i32) -> bool {
    matches!(errno, libc::ENOMEM | ENOBUFS | EAGAIN | libc::EINTR)
}

/// Returns `true` if an error of a send means the end of the connection.
pub(crate) fn ends_connection(errno: i32) -> bool {
    matches!(
        errno,
        EPIPE
            | libc::ECONNRESET
            | libc::ECONNABORTED
            | ETIMEDOUT
            | ENOTCONN
            | libc::ESHUTDOWN
            | libc::EBADF
    )
}
