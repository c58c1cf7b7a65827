//! The error queue of a socket: decoding its messages and reading them.
//!
//! Decoding is a pure function over bytes; reading is one `recvmmsg`. The two are apart so that
//! tests cover every form of message without a kernel.

use std::{
    cell::Cell,
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
    time::Duration,
};

use super::{Batch, ErrorQueueEvent, Record, Timestamps};
use crate::error::OsError;

/// `linux/socket.h`; libc lacks all constants here.
const SOL_VSOCK: libc::c_int = 287;
/// `linux/vm_sockets.h`
const VSOCK_RECVERR: libc::c_int = 1;
/// `asm-generic/socket.h`: stamps of the word size of the program.
const SCM_TIMESTAMPING_OLD: libc::c_int = 37;
/// `asm-generic/socket.h`: stamps of 64 bits everywhere.
const SCM_TIMESTAMPING_NEW: libc::c_int = 65;
/// `linux/errqueue.h`
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;
/// `linux/errqueue.h`: a flag of `ee_code`.
const SO_EE_CODE_ZEROCOPY_COPIED: u8 = 1;

/// Calls `on_record` for each record in the control data of one message of the error queue.
///
/// The walk checks level and type of every control message, and skips unknown messages in any
/// order. Time stamps belong to the record behind them, as the kernel writes them. The walk ends at
/// an impossible header: the place of the next message is then unknown.
pub(crate) fn decode(control: &[u8], on_record: &mut dyn FnMut(Record)) {
    let mut timestamps = None;
    let mut rest = control;
    while let Some((message, behind)) = ControlMessage::split(rest) {
        rest = behind;
        match (message.level, message.kind) {
            (libc::SOL_IP, libc::IP_RECVERR)
            | (libc::SOL_IPV6, libc::IPV6_RECVERR)
            | (SOL_VSOCK, VSOCK_RECVERR) => {
                if let Some(record) = parse_record(message.data, timestamps.take()) {
                    on_record(record);
                }
            }
            (libc::SOL_SOCKET, SCM_TIMESTAMPING_OLD | SCM_TIMESTAMPING_NEW) => {
                timestamps = parse_timestamps(message.data);
            }
            _ => {}
        }
    }
}

/// One `struct cmsghdr` and its data. The bytes need no alignment.
struct ControlMessage<'a> {
    level: i32,
    kind: i32,
    data: &'a [u8],
}

impl<'a> ControlMessage<'a> {
    /// `cmsg_len` (a word), `cmsg_level` and `cmsg_type`. The size is a whole number of words, so
    /// the data follow without padding. A test compares the size with libc's `CMSG_LEN`.
    const HEADER: usize = size_of::<usize>() + 2 * size_of::<i32>();

    /// Takes one control message off the front of `bytes`, with the padding behind it.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (len, fields) = bytes.split_first_chunk()?;
        let (level, fields) = fields.split_first_chunk()?;
        let (kind, _) = fields.split_first_chunk()?;
        let len = usize::from_ne_bytes(*len);
        let message = Self {
            level: i32::from_ne_bytes(*level),
            kind: i32::from_ne_bytes(*kind),
            data: bytes.get(Self::HEADER..len)?,
        };
        // No overflow: `len` is at most the length of a slice. The padding of the last message may
        // be missing.
        let padded = len.next_multiple_of(size_of::<usize>());
        Some((message, bytes.get(padded..).unwrap_or_default()))
    }
}

/// Reads a `struct sock_extended_err`, without the offender's address behind it.
fn parse_record(data: &[u8], timestamps: Option<Timestamps>) -> Option<Record> {
    let &[e0, e1, e2, e3, origin, kind, code, _pad, i0, i1, i2, i3, d0, d1, d2, d3] =
        data.first_chunk()?;
    let errno = i32::from_ne_bytes([e0, e1, e2, e3]);
    let info = u32::from_ne_bytes([i0, i1, i2, i3]);
    let data = u32::from_ne_bytes([d0, d1, d2, d3]);
    Some(if origin == SO_EE_ORIGIN_ZEROCOPY && errno == 0 {
        let copied = code & SO_EE_CODE_ZEROCOPY_COPIED != 0;
        Record::Released { lo: info, hi: data, copied }
    } else {
        let error = OsError::from_raw(errno);
        Record::Foreign(ErrorQueueEvent { origin, error, kind, code, info, data, timestamps })
    })
}

/// Reads a `struct scm_timestamping`: stamps of software, unused and hardware, each a pair of
/// seconds and nanoseconds. The size tells numbers of 64 bits from numbers of 32.
fn parse_timestamps(data: &[u8]) -> Option<Timestamps> {
    let width = match data.len() {
        48 => 8,
        24 => 4,
        _ => return None,
    };
    let stamp = |index: usize| {
        let mut numbers = data.chunks_exact(width).skip(2 * index).map(parse_signed);
        let seconds = u64::try_from(numbers.next()??).ok()?;
        let nanos = u32::try_from(numbers.next()??).ok().filter(|nanos| *nanos < 1_000_000_000)?;
        Some(Duration::new(seconds, nanos)).filter(|stamp| !stamp.is_zero())
    };
    Some(Timestamps { software: stamp(0), hardware: stamp(2) })
}

fn parse_signed(bytes: &[u8]) -> Option<i64> {
    match bytes.len() {
        8 => bytes.try_into().ok().map(i64::from_ne_bytes),
        _ => bytes.try_into().ok().map(i32::from_ne_bytes).map(i64::from),
    }
}

/// Messages asked for in one system call.
const MESSAGES: usize = 32;

/// Room for the control data of one message, in bytes. With every option of the kernel enabled
/// about 416 are used. A notification without enough room is lost.
const CONTROL_BYTES: usize = 512;

/// Room for one read of an error queue, 18 KiB. A scratch belongs to a thread, not to a socket.
pub(crate) struct Scratch {
    headers: [libc::mmsghdr; MESSAGES],
    control: [Control; MESSAGES],
}

/// The alignment of a `struct cmsghdr`.
#[repr(align(8))]
struct Control([u8; CONTROL_BYTES]);

impl Scratch {
    fn new() -> Box<Self> {
        // SAFETY: mem::zeroed needs a type with an all-zero value: `mmsghdr` has only integers and
        // raw pointers.
        let headers = unsafe { mem::zeroed() };
        Box::new(Self { headers, control: [const { Control([0; CONTROL_BYTES]) }; MESSAGES] })
    }
}

/// Lends the calling thread's scratch to `body`.
///
/// A nested call gets a fresh scratch, and so does a call while the thread's locals are destroyed.
pub(crate) fn with_scratch<R>(body: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local! {
        static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
    }
    let kept = SCRATCH.try_with(Cell::take).ok().flatten();
    let mut scratch = kept.unwrap_or_else(Scratch::new);
    let result = body(&mut scratch);
    // Fails only at the thread's end, where the scratch ends too.
    let _ = SCRATCH.try_with(|cell| cell.set(Some(scratch)));
    result
}

/// Reads up to 32 messages of the error queue in one system call, without blocking.
///
/// An empty queue is no error. A pending error of the socket is none either, and stays pending.
/// `on_record` must not panic: the remaining messages of the batch would be lost.
pub(crate) fn recv(
    fd: BorrowedFd<'_>,
    scratch: &mut Scratch,
    on_record: &mut dyn FnMut(Record),
) -> io::Result<Batch> {
    recv_within(CONTROL_BYTES, fd, scratch, on_record)
}

/// [`recv`] with less room for control data, so that a test can truncate them.
fn recv_within(
    room: usize,
    fd: BorrowedFd<'_>,
    scratch: &mut Scratch,
    on_record: &mut dyn FnMut(Record),
) -> io::Result<Batch> {
    let Scratch { headers, control } = scratch;
    for (header, control) in headers.iter_mut().zip(control.iter_mut()) {
        // The kernel overwrote these fields with the lengths used by the last call.
        header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = room.min(CONTROL_BYTES) as _;
        header.msg_hdr.msg_flags = 0;
    }
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    let received = super::socket::retry(|| {
        // SAFETY: recvmmsg(2) needs `vlen` headers with name, iov and control pointers that are
        // writable for their length. `headers` has MESSAGES of them. Name and iov are null with
        // length 0. Control is at most CONTROL_BYTES of `control`, borrowed mutably and untouched
        // during the call. A null timeout is allowed. The fd is open while borrowed.
        let received = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                headers.as_mut_ptr(),
                MESSAGES as libc::c_uint,
                flags as _,
                ptr::null_mut(),
            )
        };
        received as isize
    });
    let messages = match received {
        Ok(messages) => messages,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    let mut truncated = false;
    for (header, control) in headers.iter().zip(control.iter()).take(messages) {
        truncated |= header.msg_hdr.msg_flags & libc::MSG_CTRUNC != 0;
        let used: usize = header.msg_hdr.msg_controllen as _;
        decode(&control.0[..used.min(CONTROL_BYTES)], on_record);
    }
    // recvmmsg(2) ends early only when the queue is empty.
    Ok(Batch { messages, truncated, drained: messages < MESSAGES })
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd};

    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;
    use crate::sys::{
        socket,
        testing::{self, records_until},
    };

    /// Level, type and data of a control message.
    type Message = (i32, i32, Vec<u8>);

    const IP: (i32, i32) = (0, 11);
    const IPV6: (i32, i32) = (41, 25);
    const VSOCK: (i32, i32) = (287, 1);
    const STAMPS: (i32, i32) = (1, 37);
    const STAMPS_64: (i32, i32) = (1, 65);

    fn encode(messages: &[Message]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (level, kind, data) in messages {
            bytes.extend((size_of::<usize>() + 8 + data.len()).to_ne_bytes());
            bytes.extend(level.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(data);
            bytes.resize(bytes.len().next_multiple_of(size_of::<usize>()), 0xEE);
        }
        bytes
    }

    fn decoded(bytes: &[u8]) -> Vec<Record> {
        let mut records = Vec::new();
        decode(bytes, &mut |record| records.push(record));
        records
    }

    /// A `sock_extended_err` and `rest` bytes of address behind it.
    fn extended_error(
        errno: i32,
        [origin, kind, code]: [u8; 3],
        info: u32,
        data: u32,
        rest: usize,
    ) -> Vec<u8> {
        let mut bytes = errno.to_ne_bytes().to_vec();
        bytes.extend([origin, kind, code, 0]);
        bytes.extend(info.to_ne_bytes());
        bytes.extend(data.to_ne_bytes());
        bytes.resize(bytes.len() + rest, 0);
        bytes
    }

    fn notification((level, kind): (i32, i32), lo: u32, hi: u32, code: u8) -> Message {
        (level, kind, extended_error(0, [5, 0, code], lo, hi, 16))
    }

    fn released(lo: u32, hi: u32, copied: bool) -> Record {
        Record::Released { lo, hi, copied }
    }

    fn numbers_64(numbers: [i64; 6]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    #[test]
    fn the_header_is_laid_out_as_libc_says() {
        // SAFETY: CMSG_LEN is arithmetic; only C's other macros make it unsafe.
        let data_offset = unsafe { libc::CMSG_LEN(0) };
        // SAFETY: as above.
        let space_of_one = unsafe { libc::CMSG_SPACE(1) };
        assert_eq!(ControlMessage::HEADER, data_offset as usize);
        assert_eq!(encode(&[(0, 0, vec![1])]).len(), space_of_one as usize);
    }

    #[test]
    fn notifications_of_every_family_are_decoded() {
        for family in [IP, IPV6, VSOCK] {
            let bytes = encode(&[notification(family, 3, 9, 0)]);
            assert_eq!(decoded(&bytes), [released(3, 9, false)], "{family:?}");
        }
    }

    #[test]
    fn a_wrapped_range_is_decoded_unchanged() {
        let bytes = encode(&[notification(IP, u32::MAX, 1, 0)]);
        assert_eq!(decoded(&bytes), [released(u32::MAX, 1, false)]);
    }

    #[test]
    fn the_copied_flag_is_one_bit_of_the_code() {
        for (code, copied) in [(0, false), (1, true), (2, false), (3, true)] {
            assert_eq!(decoded(&encode(&[notification(IP, 0, 0, code)])), [released(0, 0, copied)]);
        }
    }

    #[test]
    fn a_message_needs_the_right_level_and_type() {
        for family in [(0, 25), (41, 11), (287, 11), (1, 11), (0, 1), (0, 10), (41, 24), (6, 11)] {
            assert_eq!(decoded(&encode(&[notification(family, 0, 0, 0)])), [], "{family:?}");
        }
    }

    #[test]
    fn other_origins_and_errors_are_foreign() {
        for (errno, origin) in [(42, 4), (111, 2), (113, 3), (90, 1), (0, 0), (0, 6), (12, 5)] {
            let data = extended_error(errno, [origin, 3, 1], 1400, 77, 28);
            let expected = Record::Foreign(ErrorQueueEvent {
                origin,
                error: OsError::from_raw(errno),
                kind: 3,
                code: 1,
                info: 1400,
                data: 77,
                timestamps: None,
            });
            assert_eq!(decoded(&encode(&[(IPV6.0, IPV6.1, data)])), [expected], "{origin}");
        }
    }

    #[test]
    fn time_stamps_belong_to_the_foreign_record_behind_them() {
        let stamps = [5, 6, 8, 8, 1 << 33, 999_999_999];
        let narrow = stamps.iter().flat_map(|n| (*n as i32).to_ne_bytes()).collect();
        let software = Some(Duration::new(5, 6));
        for (family, data, hardware) in [
            (STAMPS, numbers_64(stamps), Some(Duration::new(1 << 33, 999_999_999))),
            (STAMPS_64, numbers_64(stamps), Some(Duration::new(1 << 33, 999_999_999))),
            (STAMPS, narrow, Some(Duration::new(0, 999_999_999))),
        ] {
            let records = decoded(&encode(&[
                (family.0, family.1, data),
                (0, 8, vec![0; 12]),
                (IP.0, IP.1, extended_error(42, [4, 0, 0], 0, 0, 16)),
                (IP.0, IP.1, extended_error(42, [4, 0, 0], 0, 0, 16)),
            ]));
            let found: Vec<_> = records
                .iter()
                .map(|record| match record {
                    Record::Foreign(foreign) => foreign.timestamps,
                    Record::Released { .. } => panic!("not a foreign record: {record:?}"),
                })
                .collect();
            assert_eq!(found, [Some(Timestamps { software, hardware }), None]);
        }
    }

    #[test]
    fn an_impossible_time_stamp_is_left_out() {
        for stamps in [[-1, 0, 0, 0, 0, 0], [1, -1, 0, 0, 0, 0], [1, 1_000_000_000, 0, 0, 0, 0]] {
            let none = Timestamps { software: None, hardware: None };
            assert_eq!(parse_timestamps(&numbers_64(stamps)), Some(none), "{stamps:?}");
        }
        for len in [0, 23, 25, 47, 49] {
            assert_eq!(parse_timestamps(&vec![0; len]), None, "{len}");
        }
    }

    #[test]
    fn a_notification_behind_other_messages_is_found() {
        let bytes = encode(&[
            (STAMPS.0, STAMPS.1, numbers_64([1; 6])),
            (1, 35, vec![0; 16]),
            (0, 8, vec![0; 12]),
            (0, 2, vec![0; 1]),
            notification(IP, 4, 5, 1),
            (99, 99, vec![0; 3]),
            notification(IPV6, 6, 6, 0),
        ]);
        assert_eq!(decoded(&bytes), [released(4, 5, true), released(6, 6, false)]);
    }

    #[test]
    fn a_record_needs_no_address_and_all_its_fields() {
        let mut message = notification(IP, 1, 2, 0);
        message.2.truncate(16);
        assert_eq!(decoded(&encode(&[message.clone()])), [released(1, 2, false)]);
        message.2.truncate(15);
        assert_eq!(
            decoded(&encode(&[message, notification(IP, 7, 7, 0)])),
            [released(7, 7, false)]
        );
    }

    #[test]
    fn an_impossible_length_ends_the_walk() {
        for len in [0, 1, ControlMessage::HEADER - 1, 10_000, usize::MAX - 7, usize::MAX] {
            let mut bytes = encode(&[
                notification(IP, 1, 1, 0),
                notification(IP, 2, 2, 0),
                notification(IP, 3, 3, 0),
            ]);
            let second = bytes.len() / 3;
            bytes[second..][..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(decoded(&bytes), [released(1, 1, false)], "{len}");
        }
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let family = prop_oneof![
            Just(IP),
            Just(IPV6),
            Just(VSOCK),
            Just(STAMPS),
            Just(STAMPS_64),
            any::<(i32, i32)>(),
        ];
        let data = prop_oneof![
            any::<(u32, u32, u8)>().prop_map(|(lo, hi, code)| extended_error(
                0,
                [5, 0, code],
                lo,
                hi,
                16
            )),
            vec(any::<u8>(), 0..60),
        ];
        (family, data).prop_map(|((level, kind), data)| (level, kind, data))
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_panic(bytes in vec(any::<u8>(), 0..600), skew in 0..8_usize) {
            decoded(bytes.get(skew..).unwrap_or_default());
        }

        #[test]
        fn damaged_messages_cause_no_panic(
            messages in vec(any_message(), 0..6),
            damage in vec((any::<Index>(), any::<u8>()), 0..6),
        ) {
            let mut bytes = encode(&messages);
            for (place, value) in damage {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = value;
                }
            }
            decoded(&bytes);
        }

        #[test]
        fn messages_are_decoded_independently(messages in vec(any_message(), 0..6)) {
            let without_stamps = |records: Vec<Record>| -> Vec<Record> {
                records.into_iter().map(|record| match record {
                    Record::Foreign(foreign) => {
                        Record::Foreign(ErrorQueueEvent { timestamps: None, ..foreign })
                    }
                    other => other,
                }).collect()
            };
            let alone = messages.iter().flat_map(|m| decoded(&encode(std::slice::from_ref(m))));
            prop_assert_eq!(without_stamps(decoded(&encode(&messages))), alone.collect::<Vec<_>>());
        }

        #[test]
        fn truncated_bytes_yield_the_first_records(
            messages in vec(any_message(), 0..6),
            cut in any::<Index>(),
        ) {
            let bytes = encode(&messages);
            let cut = &bytes[..cut.index(bytes.len() + 1)];
            prop_assert!(decoded(&bytes).starts_with(&decoded(cut)));
        }
    }

    #[test]
    fn an_empty_queue_is_drained() {
        let (sender, _peer) = testing::zerocopy_pair();
        let batch = with_scratch(|scratch| recv(sender.as_fd(), scratch, &mut |_| panic!()));
        assert_eq!(batch.unwrap(), Batch { messages: 0, truncated: false, drained: true });
    }

    #[test]
    fn a_read_error_is_not_an_empty_queue() {
        let no_socket = std::fs::File::open("/dev/null").unwrap();
        let read = with_scratch(|scratch| recv(no_socket.as_fd(), scratch, &mut |_| panic!()));
        assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    }

    #[test]
    fn notifications_of_ipv4_ipv6_and_mapped_peers_are_read() {
        for (bind, host) in
            [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "::ffff:127.0.0.1")]
        {
            let (sender, _peer) = testing::connect(testing::listen(bind), host);
            socket::enable_zerocopy(sender.as_fd()).unwrap();
            for id in 0..3 {
                assert_eq!(testing::send(&sender, 8192, true).unwrap(), 8192);
                let records = records_until(&sender, |records| !records.is_empty());
                assert_eq!(records, [released(id, id, true)], "{host}: loopback copies");
            }
        }
    }

    #[test]
    fn time_stamps_in_the_queue_are_told_apart() {
        const SO_TIMESTAMPING: i32 = 37;
        let stamps: u32 = libc::SOF_TIMESTAMPING_TX_SCHED
            | libc::SOF_TIMESTAMPING_TX_SOFTWARE
            | libc::SOF_TIMESTAMPING_TX_ACK
            | libc::SOF_TIMESTAMPING_SOFTWARE
            | libc::SOF_TIMESTAMPING_OPT_ID;
        let (sender, _peer) = testing::zerocopy_pair();
        socket::set_option(sender.as_fd(), SO_TIMESTAMPING, &stamps).unwrap();
        assert_eq!(testing::send(&sender, 8192, true).unwrap(), 8192);
        let records = records_until(&sender, |records| {
            records.contains(&released(0, 0, true)) && records.len() == 4
        });
        for record in records {
            if let Record::Foreign(foreign) = record {
                assert_eq!((foreign.origin, foreign.error.raw()), (4, libc::ENOMSG));
                assert_eq!(foreign.data, 8191, "the stamp belongs to the last byte");
                let stamps = foreign.timestamps.unwrap();
                assert!(stamps.software.unwrap() > Duration::from_secs(1_000_000_000));
                assert_eq!(stamps.hardware, None);
            }
        }
    }

    #[test]
    fn an_icmp_error_is_foreign() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // SOL_IP, so not with `set_option`. Connected sockets report the error without the option
        // as well, but not on their error queue.
        let on = 1_i32;
        // SAFETY: setsockopt(2) reads 4 bytes of `on`, which has that many. The fd is open.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_IP,
                libc::IP_RECVERR,
                (&raw const on).cast(),
                4,
            )
        };
        assert_eq!(result, 0);
        socket.send_to(&[0; 10], closed).unwrap();
        let records = records_until(&socket, |records| !records.is_empty());
        let Record::Foreign(foreign) = records[0] else { panic!("{records:?}") };
        assert_eq!((foreign.origin, foreign.error.raw()), (2, libc::ECONNREFUSED));
        assert_eq!((foreign.kind, foreign.code), (3, 3), "destination, port unreachable");
    }

    #[test]
    fn a_full_batch_leaves_the_queue_undrained() {
        let (sender, _peer) = testing::zerocopy_pair();
        let stamps = libc::SOF_TIMESTAMPING_TX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE;
        socket::set_option(sender.as_fd(), 37, &stamps).unwrap();
        // The kernel drops stamps beyond the socket's receive room, and each takes some kilobytes.
        socket::set_option(sender.as_fd(), libc::SO_RCVBUF, &200_000).unwrap();
        // A stamp and a notification each: stamps in between keep notifications from merging.
        for _ in 0..MESSAGES {
            testing::send(&sender, 100, true).unwrap();
            // The notification comes with the acknowledgement, and so before the next stamp.
            while socket::unsent(sender.as_fd()).unwrap() > 0 {
                crate::sync::yield_now();
            }
        }
        let mut records = Vec::new();
        let first = with_scratch(|scratch| {
            recv(sender.as_fd(), scratch, &mut |record| records.push(record)).unwrap()
        });
        assert_eq!(first, Batch { messages: MESSAGES, truncated: false, drained: false });
        let ids = |records: &[Record]| -> Vec<u32> {
            let ranges = records.iter().filter_map(|record| match record {
                Record::Released { lo, hi, .. } => Some(*lo..=*hi),
                Record::Foreign(_) => None,
            });
            ranges.flatten().collect()
        };
        let seen = ids(&records).len();
        records.extend(records_until(&sender, |rest| seen + ids(rest).len() == MESSAGES));
        assert_eq!(ids(&records), (0..MESSAGES as u32).collect::<Vec<_>>());
    }

    #[test]
    fn truncated_control_data_is_reported() {
        let (sender, _peer) = testing::zerocopy_pair();
        for (room, truncated, expected) in [(0, true, 0), (40, true, 1), (48, false, 1)] {
            testing::send(&sender, 100, true).unwrap();
            socket::poll(sender.as_fd(), false, Some(testing::SOON)).unwrap();
            let mut count = 0;
            let batch = with_scratch(|scratch| {
                recv_within(room, sender.as_fd(), scratch, &mut |_| count += 1).unwrap()
            });
            assert_eq!(batch, Batch { messages: 1, truncated, drained: true }, "{room}");
            assert_eq!(count, expected, "{room}");
        }
    }

    #[test]
    fn a_truncated_message_before_a_whole_one_is_reported() {
        let (sender, _peer) = testing::zerocopy_pair();
        let stamps = libc::SOF_TIMESTAMPING_TX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE;
        socket::set_option(sender.as_fd(), 37, &stamps).unwrap();
        testing::send(&sender, 100, true).unwrap();
        // The notification comes with the acknowledgement, and so behind the stamp.
        while socket::unsent(sender.as_fd()).unwrap() > 0 {
            crate::sync::yield_now();
        }
        let mut records = Vec::new();
        // Room for a notification. A stamp takes more than twice as much.
        let batch = with_scratch(|scratch| {
            recv_within(48, sender.as_fd(), scratch, &mut |record| records.push(record)).unwrap()
        });
        assert_eq!(batch, Batch { messages: 2, truncated: true, drained: true });
        assert_eq!(records, [released(0, 0, true)]);
    }

    #[test]
    fn stale_bytes_in_the_scratch_are_not_decoded() {
        let (sender, _peer) = testing::zerocopy_pair();
        testing::send(&sender, 100, true).unwrap();
        socket::poll(sender.as_fd(), false, Some(testing::SOON)).unwrap();
        let one = encode(&[notification(IP, 77, 77, 0)]);
        let old = one.repeat(CONTROL_BYTES / one.len());
        let mut records = Vec::new();
        with_scratch(|scratch| {
            for control in &mut scratch.control {
                control.0[..old.len()].copy_from_slice(&old);
            }
            recv(sender.as_fd(), scratch, &mut |record| records.push(record)).unwrap()
        });
        assert_eq!(records, [released(0, 0, true)]);
    }

    #[test]
    fn nested_calls_each_have_a_scratch() {
        let (sender, _peer) = testing::zerocopy_pair();
        let mut seen = Vec::new();
        for id in 0..2 {
            testing::send(&sender, 100, true).unwrap();
            socket::poll(sender.as_fd(), false, Some(testing::SOON)).unwrap();
            with_scratch(|outer| {
                with_scratch(|inner| assert!(!ptr::eq(outer, inner)));
                recv(sender.as_fd(), outer, &mut |record| seen.push(record)).unwrap();
            });
            assert_eq!(seen.pop(), Some(released(id, id, true)));
        }
    }
}
