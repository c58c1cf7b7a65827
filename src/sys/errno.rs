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

/// Returns `true` if an error of a send, though none of [`ends_connection`], may be the reason for the end of the
/// connection. When TCP gives up, the kernel reports the last soft error instead of `ETIMEDOUT`, such as
/// `EHOSTUNREACH`. On a connection that goes on, the same error is of the call alone.
pub(crate) fn may_end_connection(errno: i32) -> bool {
    let is_of_call = may_pass(errno) || matches!(errno, EFAULT | EMSGSIZE | EOPNOTSUPP);
    !is_of_call && !ends_connection(errno)
}

/// Returns `true` if the error of a connection proves that the peer's stream was cut. `EPIPE` and `ENOTCONN`
/// follow a whole stream too, and the other two are the sender's own.
pub(crate) fn cuts_stream(errno: i32) -> bool {
    !matches!(errno, EPIPE | ENOTCONN | ECANCELED | EFAULT)
}
