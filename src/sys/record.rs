//! The messages of a socket's error queue.

use std::time::Duration;

use crate::error::OsError;

/// One message of the error queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// The kernel released the ids `lo..=hi`; the range may wrap (`lo > hi`).
    Released {
        /// The first id.
        lo: u32,
        /// The last id, inclusive.
        hi: u32,
        /// The kernel copied the bytes after all. A merged notification has the flag of its first
        /// id only.
        copied: bool,
    },
    /// Not about zero-copy sends.
    Foreign(ErrorQueueEvent),
}

/// The outcome of one read of the error queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Messages taken off the queue, of any kind.
    pub messages: usize,
    /// The control data of a message did not fit (`MSG_CTRUNC`): a notification may be lost.
    pub truncated: bool,
    /// The queue was seen empty: another read would find only later messages.
    pub drained: bool,
}

/// A message of a socket's error queue that is not about zero-copy sends.
///
/// The error queue is shared: time stamps of sent packets (`SO_TIMESTAMPING`) and ICMP errors
/// (`IP_RECVERR`) arrive there too. A sender reads the whole queue, and so hands these messages on.
/// The fields are the members of the kernel's `struct sock_extended_err`, see `ip(7)`.
///
/// ```
/// /// Returns the time at which the network card sent the stamped byte of the stream.
/// fn sent_at(event: &pinbuf::sender::ErrorQueueEvent) -> Option<(u32, std::time::Duration)> {
///     const SO_EE_ORIGIN_TIMESTAMPING: u8 = 4;
///     let stamps = event.timestamps.filter(|_| event.origin == SO_EE_ORIGIN_TIMESTAMPING)?;
///     Some((event.data, stamps.hardware?))
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ErrorQueueEvent {
    /// The origin of the message (`ee_origin`): 1 this host, 2 ICMP, 3 ICMPv6, 4 time stamps, 5
    /// zero copy (here only with an error, which no kernel is known to report), 6 a transmit time that a
    /// queue could not keep.
    pub origin: u8,
    /// The error (`ee_errno`); `ENOMSG` for a time stamp.
    pub error: OsError,
    /// The ICMP type (`ee_type`).
    pub kind: u8,
    /// The ICMP code (`ee_code`).
    pub code: u8,
    /// More about the message (`ee_info`): the path MTU for `EMSGSIZE`, the kind of time stamp.
    pub info: u32,
    /// More about the message (`ee_data`): for a time stamp, the stamped byte of the stream.
    pub data: u32,
    /// The time stamps of the message.
    pub timestamps: Option<Timestamps>,
}

/// The time stamps of one message of the error queue, each since the epoch of its clock.
///
/// ```
/// fn earliest(event: &pinbuf::sender::ErrorQueueEvent) -> Option<std::time::Duration> {
///     let stamps = event.timestamps?;
///     stamps.software.into_iter().chain(stamps.hardware).min()
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Timestamps {
    /// Taken by the kernel, on the system's clock.
    pub software: Option<Duration>,
    /// Taken by the network card, on its own clock.
    pub hardware: Option<Duration>,
}
