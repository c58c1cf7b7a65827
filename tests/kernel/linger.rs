//! Long ends, and ends of sockets with the user's linger time: a reading peer gets all bytes at any
//! speed, a stopped peer is reset, and no end blocks.

#![cfg(target_os = "linux")]

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use pinbuf::{
    Policy, Sender,
    sender::{CloseReport, SenderBuilder},
};

use crate::{
    calls,
    common::{
        self, Buffers, STALLED, TCP_CLOSE, assert_same, duplicate, eventually, pair, pair_at,
        pattern, set_option, skip, soon, tcp_state, test_of, unacked, within, zero_copy,
    },
};

/// From linux/tcp.h: the end of the stream is sent and not acknowledged.
const TCP_FIN_WAIT1: u8 = 4;

/// The linger time of slow senders.
const LINGER: Duration = Duration::from_secs(1);

/// With a longer pause between two reads the peer itself is late, on a busy machine.
const LATE: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Drop,
    /// The sending half is dropped first, or last.
    Halves(bool),
    Close,
}

/// A sender that ends before its peer has all bytes.
#[derive(Clone, Copy, Debug)]
struct Slow {
    policy: Policy,
    /// `SO_SNDBUF`; the kernel doubles it.
    send_buffer: i32,
    /// Bytes that the peer reads per second.
    rate: usize,
    /// Bytes that the user writes to the socket before the sender's first send.
    header: usize,
    end: End,
}

impl Slow {
    fn all() -> Vec<Self> {
        let ends = [End::Drop, End::Halves(true), End::Halves(false), End::Close];
        let reads = [(100_000, 0), (200_000, 0), (600_000, 0), (300_000, 100_000)];
        let mut all = Vec::new();
        for policy in [Policy::Prefer, Policy::Auto, Policy::Never] {
            for send_buffer in [50_000, 300_000] {
                let shift = all.len() / reads.len();
                for (at, (rate, header)) in reads.into_iter().enumerate() {
                    let end = ends[(at + shift) % ends.len()];
                    all.push(Self { policy, send_buffer, rate, header, end });
                }
            }
        }
        all
    }

    /// All bytes: more than the socket holds, and three linger times of reading.
    fn total(self) -> usize {
        2 * self.send_buffer as usize + 3 * self.rate + self.header
    }

    /// Ends the sender. The peer reads `stop` bytes, then none until the sender is gone.
    fn play(self, stop: usize) -> Outcome {
        let buffers = Buffers { send: Some(self.send_buffer), ..STALLED };
        let (near, far) = pair_at("127.0.0.1:0", buffers);
        let builder = Sender::builder().policy(self.policy).linger(LINGER);
        let mut sender = builder.adopt(near).unwrap();
        let content = pattern(self.total(), 1);
        let (header, rest) = content.split_at(self.header);
        sender.get_ref().write_all(header).unwrap();
        let gone = duplicate(&sender);
        let ending = thread::spawn({
            let rest = <std::sync::Arc<[u8]>>::from(rest);
            move || -> Option<CloseReport> {
                // The header alone fills a small socket, until the peer reads.
                eventually("a part is accepted", || sender.try_send(rest.clone()).is_ok());
                match self.end {
                    End::Drop => drop(sender),
                    End::Halves(sending_first) => match (sending_first, sender.split()) {
                        (true, (send, reap)) => drop((send, reap)),
                        (false, (send, reap)) => drop((reap, send)),
                    },
                    End::Close => return Some(sender.close(soon())),
                }
                None
            }
        });
        let mut outcome = read_slowly(far, self.rate, stop, &gone);
        outcome.report = ending.join().unwrap();
        assert_same(&outcome.got, &content[..outcome.got.len()]);
        outcome
    }
}

/// The peer's view.
struct Outcome {
    got: Vec<u8>,
    /// The end of the stream.
    end: Result<(), io::ErrorKind>,
    /// The longest unwanted pause of the peer itself.
    late: Duration,
    report: Option<CloseReport>,
}

/// Reads at a rate up to `stop` bytes, and continues when the connection of `gone` is over.
fn read_slowly(mut far: TcpStream, rate: usize, stop: usize, gone: &impl AsFd) -> Outcome {
    far.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let (begun, mut late, mut last) = (Instant::now(), Duration::ZERO, Instant::now());
    let mut got = Vec::new();
    let mut part = vec![0; 64 << 10];
    let end = loop {
        let owed = (begun.elapsed().as_secs_f64() * rate as f64) as usize;
        let most = owed.min(stop).saturating_sub(got.len()).min(part.len());
        if got.len() >= stop {
            eventually("the connection is over", || tcp_state(gone) == TCP_CLOSE);
            break far.read_to_end(&mut got).map(|_| ());
        }
        if most == 0 {
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        late = late.max(last.elapsed());
        let read = far.read(&mut part[..most]);
        last = Instant::now();
        match read {
            Ok(0) => break Ok(()),
            Ok(count) => got.extend_from_slice(&part[..count]),
            Err(error) => break Err(error),
        }
    };
    Outcome { got, end: end.map_err(|error| error.kind()), late, report: None }
}

/// Plays all senders at once.
fn each(play: impl Fn(Slow) + Sync) {
    thread::scope(|scope| {
        for slow in Slow::all() {
            let play = &play;
            scope.spawn(move || play(slow));
        }
    });
}

#[test]
fn a_reading_peer_gets_all_bytes() {
    each(|slow| {
        for _ in 0..5 {
            let Outcome { got, end, late, report } = slow.play(usize::MAX);
            if end.is_ok() && got.len() == slow.total() {
                assert!(report.is_none_or(|report| report.drained), "{report:?}");
                return;
            }
            let count = got.len();
            assert!(late >= LATE, "{end:?} after {count} of {} bytes, {slow:?}", slow.total());
        }
        skip(test_of(&|| ()), "the peer was late each time");
    });
}

#[test]
fn a_stopped_peer_is_reset() {
    each(|slow| {
        if slow.end == End::Close {
            return;
        }
        let outcome = slow.play(slow.header + slow.rate);
        assert_eq!(outcome.end, Err(io::ErrorKind::ConnectionReset), "{slow:?}");
        assert!(outcome.got.len() < slow.total(), "{slow:?}");
    });
}

#[test]
fn a_large_header_hides_no_progress() {
    // Linux allows this buffer size without further settings, and the header fits.
    let slow = Slow {
        policy: Policy::Prefer,
        send_buffer: 200_000,
        rate: 80_000,
        header: 250_000,
        end: End::Drop,
    };
    for _ in 0..5 {
        let (near, far) =
            pair_at("127.0.0.1:0", Buffers { send: Some(slow.send_buffer), ..STALLED });
        let mut sender = zero_copy().linger(LINGER).adopt(near).unwrap();
        let content = pattern(slow.header + (100 << 10), 1);
        let (header, rest) = content.split_at(slow.header);
        sender.get_ref().write_all(header).unwrap();
        sender.try_send(<std::sync::Arc<[u8]>>::from(rest)).unwrap();
        assert!(sender.stats().in_flight_bytes > 0 && unacked(&sender) > slow.header as u64 / 2);
        let gone = duplicate(&sender);
        drop(sender);
        let Outcome { got, end, late, .. } = read_slowly(far, slow.rate, usize::MAX, &gone);
        assert_same(&got, &content[..got.len()]);
        if end.is_ok() && got.len() == content.len() {
            return;
        }
        assert!(late >= LATE, "{end:?} after {} of {} bytes", got.len(), content.len());
    }
    skip(test_of(&|| ()), "the peer was late each time");
}

/// While the sender asks for unacknowledged bytes, the peer acknowledges the end of the stream and
/// ends its own stream.
#[test]
fn a_peer_that_closes_during_a_close_is_no_failure() {
    for policy in [Policy::Never, Policy::Prefer] {
        let (near, mut far) = pair_at("127.0.0.1:0", STALLED);
        let mut sender = Sender::builder().policy(policy).adopt(near).unwrap();
        sender.send(pattern(200_000, 1)).unwrap();
        let gone = duplicate(&sender);
        let peer = thread::spawn(move || {
            eventually("the stream is shut down", || tcp_state(&gone) == TCP_FIN_WAIT1);
            let mut got = Vec::new();
            far.read_to_end(&mut got).unwrap();
            got
        });
        calls::before_answers(Some(|fd| {
            // SAFETY: the caller of ioctl has the fd open.
            let socket = unsafe { BorrowedFd::borrow_raw(fd) };
            if tcp_state(&socket) == TCP_FIN_WAIT1 {
                eventually("the connection is over", || tcp_state(&socket) == TCP_CLOSE);
            }
        }));
        let report = sender.close(soon());
        calls::before_answers(None);
        assert!(report.drained && report.error.is_none(), "{policy:?}: {report:?}");
        assert_same(&peer.join().unwrap(), &pattern(200_000, 1));
    }
}

// The user's linger time.

/// Switches lingering on with this time.
fn set_linger(socket: &impl AsFd, seconds: i32) {
    let linger = libc::linger { l_onoff: 1, l_linger: seconds };
    set_option(socket, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
}

/// The linger time in seconds, if lingering is on.
fn linger_of(socket: &impl AsFd) -> Option<i32> {
    use std::os::fd::AsRawFd;

    let mut linger = libc::linger { l_onoff: 0, l_linger: 0 };
    let mut len = size_of_val(&linger) as libc::socklen_t;
    let (fd, level, name) = (socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER);
    // SAFETY: getsockopt(2) writes at most `len` bytes to the struct of integers and then `len`;
    // both live through the call.
    let done = unsafe { libc::getsockopt(fd, level, name, (&raw mut linger).cast(), &raw mut len) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    (linger.l_onoff != 0).then_some(linger.l_linger)
}

/// Ways to end a sender.
const ENDS: [fn(Sender<TcpStream>); 5] = [
    |sender| {
        let report = sender.close(within(10));
        assert!(report.drained != report.aborted, "{report:?}");
    },
    |sender| assert!(sender.abort().aborted),
    |sender| drop(sender),
    |sender| drop(sender.split()),
    |sender| {
        let (send, reap) = sender.split();
        drop((reap, send));
    },
];

fn builders() -> [SenderBuilder; 2] {
    [Sender::builder().policy(Policy::Never), zero_copy()]
}

#[test]
fn no_end_waits_for_the_users_linger_time() {
    // Longer than any test.
    const HOURS: i32 = 10_000;
    for builder in builders() {
        for end in ENDS {
            let (near, _far) = pair_at("127.0.0.1:0", STALLED);
            set_linger(&near, HOURS);
            let mut sender = builder.linger(Duration::from_millis(50)).adopt(near).unwrap();
            sender.try_send(pattern(200_000, 1)).unwrap();
            let (tell, told) = mpsc::channel();
            thread::spawn(move || {
                end(sender);
                tell.send(()).unwrap();
            });
            told.recv_timeout(Duration::from_secs(60)).expect("the end blocks");
        }
    }
    // The thread that ends dropped senders does not wait either.
    assert!(pinbuf::reaper::wait_idle(within(60_000)), "{:?}", pinbuf::reaper::stats());
}

#[test]
fn no_end_loses_bytes_to_the_users_linger_time() {
    let close: fn(Sender<TcpStream>) = |sender| {
        let report = sender.close(soon());
        assert!(report.drained && !report.aborted, "{report:?}");
    };
    for builder in builders() {
        for end in [close, ENDS[2], ENDS[3], ENDS[4]] {
            let (near, mut far) = pair_at("127.0.0.1:0", STALLED);
            set_linger(&near, 0);
            let mut sender = builder.adopt(near).unwrap();
            // In copied pieces.
            for seed in 0..20 {
                sender.try_send(pattern(8000, seed)).unwrap();
            }
            let ending = thread::spawn(move || end(sender));
            let mut got = Vec::new();
            far.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            thread::sleep(Duration::from_millis(50));
            far.read_to_end(&mut got).unwrap();
            common::assert_arrived(&got, 8000, 20);
            ending.join().unwrap();
        }
    }
}

#[test]
fn a_duplicate_sees_lingering_switched_off_by_the_end() {
    for builder in builders() {
        for end in ENDS {
            let (near, _far) = pair();
            set_linger(&near, 5);
            let mut sender = builder.adopt(near).unwrap();
            sender.send(pattern(100, 1)).unwrap();
            let other = duplicate(&sender);
            assert_eq!(linger_of(&other), Some(5), "before the end");
            end(sender);
            assert_eq!(linger_of(&other), None);
        }
    }
}

#[test]
fn a_socket_from_into_parts_has_the_users_linger_time() {
    for builder in builders() {
        for linger in [None, Some(0), Some(5)] {
            let (near, far) = pair();
            if let Some(seconds) = linger {
                set_linger(&near, seconds);
            }
            let mut sender = builder.adopt(near).unwrap();
            let peer = common::reader(far, Duration::ZERO);
            sender.send(pattern(100_000, 1)).unwrap();
            sender.drain(soon()).unwrap();
            let (near, _) = sender.into_parts().unwrap();
            assert_eq!(linger_of(&near), linger);
            eventually("all bytes are acknowledged", || unacked(&near) == 0);
            drop(near);
            let _ = peer.join();
        }
    }
}
