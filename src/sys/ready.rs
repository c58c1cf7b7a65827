//! The outcome of waiting on a socket.

/// The events of a socket; none after a timeout or a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ready {
    /// The socket takes bytes; only asked for on request.
    pub writable: bool,
    /// The error queue is not empty, or the socket has an error.
    pub error: bool,
    /// The connection is gone in both directions. Stays set for good.
    pub hangup: bool,
}

/// The state of a socket, according to the news that was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct News {
    /// A read would not wait; only asked for on request.
    pub readable: bool,
    /// As [`Ready::error`].
    pub error: bool,
    /// As [`Ready::hangup`].
    pub hangup: bool,
}
