//! The rules for streams and for datagrams.
//!
//! | | stream | datagram |
//! |---|---|---|
//! | a send is | cut into calls | one call, wholly by copy or wholly without |
//! | an empty send is | nothing | a datagram |
//! | a failed call | takes no id | may take one; then its notification is on the queue already |
//! | `ENOBUFS`, `EPERM` | a limit | the same, or the datagram was dropped below the socket |
//! | `EMSGSIZE` without copy | – | more than 17 parts of pages: goes by copy |
//! | the end | shut down, aborted | the peer knows of none |

use super::budget::MemlockBudget;
use crate::sys::{errno, socket::Kind};

/// Elements that one call may have: `IOV_MAX`.
const MAX_CALL_ELEMENTS: usize = 1024;

/// Elements below this size always go by copy: referencing a page costs more than copying so
/// little.
pub(super) const MIN_ZERO_COPY_ELEMENT: usize = 4096;

/// The longest possible datagram. The kernel refuses longer ones without counting their pages.
const MAX_DATAGRAM_BYTES: usize = u16::MAX as usize;

/// Largest call of a stream, in bytes.
const MAX_CALL_BYTES: usize = 1 << 20;

/// The socket's use of the sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// A row of bytes.
    Stream,
    /// Every send is a message.
    Datagram,
}

/// Limits of one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CallLimits {
    pub(super) elements: usize,
    pub(super) bytes: usize,
}

impl Transport {
    /// The transport of a kind of socket.
    #[inline]
    pub(super) fn of(kind: Kind) -> Self {
        match kind {
            Kind::Tcp | Kind::OtherStream | Kind::Listener => Self::Stream,
            Kind::Udp | Kind::OtherDatagram => Self::Datagram,
        }
    }

    /// The limits of one call. A datagram is never cut: the kernel refuses a datagram that is too
    /// large.
    #[inline]
    pub(super) fn call_limits(self, budget: &MemlockBudget) -> CallLimits {
        match self {
            Self::Stream => CallLimits {
                elements: MAX_CALL_ELEMENTS,
                bytes: budget.max_call_bytes().min(MAX_CALL_BYTES),
            },
            Self::Datagram => CallLimits { elements: usize::MAX, bytes: usize::MAX },
        }
    }

    /// Returns `true` if neighbours go without copy: together they reach the threshold, and their
    /// average size is large enough.
    #[inline]
    pub(super) fn goes_without_copy(
        self,
        threshold_bytes: usize,
        elements: usize,
        bytes: usize,
    ) -> bool {
        bytes >= threshold_bytes.max(elements * MIN_ZERO_COPY_ELEMENT)
            && bytes <= self.most_without_copy()
    }

    /// Above this a send goes by copy.
    #[inline]
    pub(super) fn most_without_copy(self) -> usize {
        match self {
            Self::Stream => usize::MAX,
            Self::Datagram => MAX_DATAGRAM_BYTES,
        }
    }

    /// Returns `true` if a call of no bytes means something. Such a call always goes by copy, since
    /// with the flag it would take an id.
    #[inline]
    pub(super) fn sends_nothing(self) -> bool {
        self == Self::Datagram
    }

    /// Returns `true` if a failed call may have taken its id: where the layer that frees the packet
    /// also reports the failure. The notification is on the error queue before the call returns.
    pub(super) fn failures_take_ids(self) -> bool {
        self == Self::Datagram
    }

    /// Returns `true` if this error means a datagram dropped on this host: a queue was full, or a
    /// filter refused the packet.
    pub(super) fn is_drop(self, errno: i32) -> bool {
        self == Self::Datagram && matches!(errno, errno::ENOBUFS | errno::EPERM)
    }

    /// Returns `true` if ending the connection takes back sent data.
    pub(super) fn has_end(self) -> bool {
        self == Self::Stream
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        error::SendError,
        lease::Payload,
        sender::{
            DropStats, Fate,
            config::Config,
            driver::Core,
            fake::{Answer, FakeKernel, Seen},
        },
        sync::Arc,
        sys::{message::Header, socket::Ready},
    };

    static BYTES: [u8; 1 << 20] = [7; 1 << 20];
    const LEN: usize = 20_000;

    fn datagrams() -> (FakeKernel, Arc<Core<FakeKernel>>) {
        let kernel = FakeKernel::new(Transport::Datagram, Answer::Take);
        let sender = kernel.sender(Config::default());
        (kernel, sender)
    }

    fn call(elements: usize, bytes: usize, zero_copy: bool) -> Seen {
        Seen { elements, bytes, zero_copy, more: false }
    }

    #[test]
    fn a_datagram_dropped_below_the_socket_comes_back() {
        let (kernel, sender) = datagrams();
        for (round, errno) in [errno::ENOBUFS, errno::EPERM].into_iter().enumerate() {
            kernel.will([Answer::FailWithNote(errno)]);
            match sender.try_send(&BYTES[..LEN]) {
                Err(SendError::Dropped { error, buf }) => {
                    assert_eq!((error.raw(), buf.len()), (errno, LEN));
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(kernel.seen(), [call(1, LEN, true)], "it is not sent again");
            let ticket = sender.try_send(&BYTES[..LEN]).unwrap();
            assert_eq!(ticket.sequence(), round as u64, "no ticket was used");
            assert_eq!(kernel.seen(), [call(1, LEN, true)]);
            sender.step().unwrap();
            assert_eq!(
                sender.fate(ticket).unwrap(),
                None,
                "the note of the other id does not release it"
            );
            kernel.release();
            sender.step().unwrap();
            assert_eq!(
                sender.fate(ticket).unwrap(),
                Some(Fate::Released { accepted: LEN, copied: Some(false) })
            );
        }
        let stats = sender.stats();
        assert_eq!((stats.dropped_sends, stats.no_bufs_optmem, stats.no_bufs_memlock), (2, 0, 0));
        assert_eq!((stats.zero_copy_calls, stats.released_calls, stats.in_flight_bytes), (4, 4, 0));
        assert!(sender.capabilities().supported);
    }

    #[test]
    fn other_failures_with_a_used_id_keep_their_error() {
        const EINVAL: i32 = 22;
        let (kernel, sender) = datagrams();
        kernel.will([Answer::FailWithNote(EINVAL), Answer::FailWithNote(errno::EMSGSIZE)]);
        for errno in [EINVAL, errno::EMSGSIZE] {
            match sender.try_send(&BYTES[..LEN]) {
                Err(SendError::Os { error, .. }) => assert_eq!(error.raw(), errno),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(kernel.seen().len(), 2);
        sender.try_send(&BYTES[..LEN]).unwrap();
        kernel.release();
        sender.step().unwrap();
        assert_eq!(sender.stats().released_calls, 3);
    }

    #[test]
    fn a_limit_makes_a_datagram_go_by_copy() {
        let (kernel, sender) = datagrams();
        kernel.will([Answer::Fail(errno::ENOBUFS)]);
        let ticket = sender.try_send(&BYTES[..LEN]).unwrap();
        assert_eq!(kernel.seen(), [call(1, LEN, true), call(1, LEN, false)]);
        let fate = Some(Fate::Released { accepted: LEN, copied: Some(true) });
        assert_eq!(sender.fate(ticket).unwrap(), fate);
        // With notifications to be read, the call is tried once more before the copy.
        kernel.will([Answer::Note(false), Answer::Fail(errno::ENOBUFS)]);
        sender.try_send(&BYTES[..LEN]).unwrap();
        sender.try_send(&BYTES[..LEN]).unwrap();
        let zero_copy = call(1, LEN, true);
        assert_eq!(kernel.seen(), [zero_copy, zero_copy, zero_copy]);
        assert_eq!(sender.stats().dropped_sends, 0);
    }

    #[test]
    fn a_copied_datagram_can_be_dropped_too() {
        let (kernel, sender) = datagrams();
        kernel.will([Answer::Fail(errno::ENOBUFS)]);
        let error = sender.try_send(&BYTES[..100]).unwrap_err();
        assert!(matches!(error, SendError::Dropped { .. }), "{error:?}");
        assert_eq!(kernel.seen(), [call(1, 100, false)]);
    }

    #[test]
    fn too_many_parts_of_pages_go_by_copy_once() {
        let (kernel, sender) = datagrams();
        kernel.will([Answer::Fail(errno::EMSGSIZE)]);
        sender.try_send(&BYTES[..LEN]).unwrap();
        assert_eq!(kernel.seen(), [call(1, LEN, true), call(1, LEN, false)]);
        kernel.will([Answer::Fail(errno::EMSGSIZE), Answer::Fail(errno::EMSGSIZE)]);
        match sender.try_send(&BYTES[..LEN]) {
            Err(SendError::Os { error, .. }) => assert_eq!(error.raw(), errno::EMSGSIZE),
            other => panic!("{other:?}"),
        }
        assert_eq!(kernel.seen().len(), 2);
        assert_eq!(sender.stats().in_flight_bytes, 0);
    }

    #[test]
    fn an_earlier_datagrams_error_does_not_end_the_sender() {
        let (kernel, sender) = datagrams();
        for len in [100, LEN] {
            kernel.will([Answer::Fail(errno::ECONNREFUSED)]);
            match sender.try_send(&BYTES[..len]) {
                Err(SendError::Os { error, buf }) => {
                    assert_eq!((error.raw(), buf.len()), (errno::ECONNREFUSED, len));
                }
                other => panic!("{other:?}"),
            }
            sender.try_send(&BYTES[..len]).unwrap();
        }
        assert_eq!(sender.connection_error(), None);
    }

    #[test]
    fn empty_sends_take_no_id() {
        for (transport, seen) in
            [(Transport::Datagram, vec![call(1, 0, false)]), (Transport::Stream, vec![])]
        {
            let kernel = FakeKernel::new(transport, Answer::Take);
            let sender = kernel.sender(Config { threshold_bytes: 0, ..Config::default() });
            sender.try_send(&BYTES[..0]).unwrap();
            assert_eq!(kernel.seen(), seen);
        }
    }

    #[test]
    fn a_datagram_is_one_call_under_any_limit() {
        // A stream would send a quarter of this budget at once, and 1024 elements.
        let kernel = FakeKernel::new(Transport::Datagram, Answer::Take);
        let sender = kernel.sender_within(Some(128 << 10), Config::default());
        let mut bufs: Vec<_> = [64, 60_000, 4096].map(|len| Payload::from(&BYTES[..len])).into();
        sender.try_send_vectored(&mut bufs).unwrap();
        let mut bufs: Vec<_> = (0..1025).map(|_| Payload::from(&BYTES[..1])).collect();
        sender.try_send_vectored(&mut bufs).unwrap();
        assert_eq!(kernel.seen(), [call(3, 64_160, true), call(1025, 1025, false)]);
    }

    #[test]
    fn a_datagram_held_for_long_is_waited_for() {
        let kernel = FakeKernel::new(Transport::Datagram, Answer::Take);
        let max_hold = Some(Duration::from_secs(1));
        let sender = kernel.sender(Config { max_hold, ..Config::default() });
        sender.try_send(&BYTES[..LEN]).unwrap();
        kernel.pass(Duration::from_secs(10));
        sender.step().unwrap();
        assert_eq!(sender.connection_error(), None);
        assert_eq!(sender.stats().in_flight_calls, 1);
    }

    #[test]
    fn every_call_of_a_datagram_has_its_header() {
        let header = Header::default();
        let (zero_copy, copy) = (call(1, LEN, true), call(1, LEN, false));
        let no_bufs = Answer::Fail(errno::ENOBUFS);
        for (answers, calls) in [
            (vec![], vec![zero_copy]),
            (vec![Answer::Fail(errno::EMSGSIZE)], vec![zero_copy, copy]),
            (vec![no_bufs], vec![zero_copy, copy]),
            // After a release the call is tried once more.
            (vec![Answer::Note(false), no_bufs], vec![zero_copy, zero_copy, zero_copy]),
        ] {
            let (kernel, sender) = datagrams();
            let sends = answers.iter().filter(|answer| matches!(answer, Answer::Note(_))).count();
            kernel.will(answers);
            for _ in 0..=sends {
                sender.try_send_with(&BYTES[..LEN], &header).unwrap();
            }
            assert_eq!(kernel.with(|state| state.headers), calls.len());
            assert_eq!(kernel.seen(), calls);
        }
        let (kernel, sender) = datagrams();
        sender.try_send_with(&BYTES[..100], &header).unwrap();
        sender.try_send(&BYTES[..100]).unwrap();
        sender.try_send(&BYTES[..LEN]).unwrap();
        assert_eq!(kernel.with(|state| state.headers), 1, "a small one too, and no other");
    }

    #[test]
    fn a_blocked_datagram_waits_and_keeps_its_header() {
        let (kernel, sender) = datagrams();
        kernel.will([Answer::Fail(errno::EAGAIN), Answer::Fail(errno::EAGAIN)]);
        kernel.with(|state| {
            state.on_wait = Some(Arc::new(|_, _| Ready { writable: true, ..Ready::default() }));
        });
        sender.send_with(&BYTES[..LEN], &Header::default()).unwrap();
        assert_eq!(kernel.seen(), [call(1, LEN, true); 3]);
        assert_eq!(kernel.with(|state| state.headers), 3);
    }

    #[test]
    fn losses_are_counted_by_their_place() {
        let (kernel, sender) = datagrams();
        for len in [100, LEN] {
            for errno in [
                errno::ENOBUFS,
                errno::EPERM,
                errno::ECONNREFUSED,
                errno::ENETUNREACH,
                errno::EFAULT,
            ] {
                kernel.will([Answer::FailWithNote(errno)]);
                sender.try_send(&BYTES[..len]).unwrap_err();
            }
            kernel.will([Answer::Fail(errno::EAGAIN)]);
            sender.try_send(&BYTES[..len]).unwrap_err();
        }
        // The first refusal is one of pages, and the copy arrives.
        kernel.will([
            Answer::Fail(errno::EMSGSIZE),
            Answer::Take,
            Answer::FailWithNote(errno::EMSGSIZE),
        ]);
        sender.try_send(&BYTES[..LEN]).unwrap();
        sender.try_send(&BYTES[..LEN]).unwrap_err();
        kernel.foreign(1);
        sender.step().unwrap();
        let expected =
            DropStats { queue: 2, filter: 2, too_long: 1, unreachable: 4, ..DropStats::default() };
        assert_eq!(sender.stats().drops, expected);
    }

    #[test]
    fn a_stream_drops_nothing() {
        let kernel = FakeKernel::new(Transport::Stream, Answer::Take);
        let sender = kernel.sender(Config::default());
        kernel.will([Answer::Fail(errno::EPERM)]);
        let error = sender.try_send(&BYTES[..LEN]).unwrap_err();
        assert!(matches!(error, SendError::Os { .. }), "{error:?}");
        assert_eq!(sender.stats().drops, DropStats::default());
    }
}
