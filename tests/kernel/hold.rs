//! `max_hold` and `send_timeout`: a peer without acknowledgements holds a call, or memory, up to
//! the limit and no longer.

use std::{
    net::TcpStream,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use pinbuf::{Fate, Policy, SendError, Sender};

use crate::common::{
    self, STALLED, TIGHT, assert_same, closed_window, eventually, pair_at, pattern, soon,
};

const LIMIT: Duration = Duration::from_millis(200);
const LARGE: usize = 8 << 20;

/// Runs `body`, which must not hang.
fn promptly<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(body()));
    ended.recv_timeout(Duration::from_secs(60)).expect("the call returns")
}

fn limited(policy: Policy) -> (Sender<TcpStream>, TcpStream) {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    (Sender::builder().policy(policy).max_hold(LIMIT).adopt(near).unwrap(), far)
}

#[test]
fn a_stalled_peer_ends_a_blocking_send_on_every_path() {
    for policy in [Policy::Never, Policy::Auto, Policy::Prefer] {
        let (mut sender, _far) = limited(policy);
        let sender = promptly(move || {
            match sender.send(pattern(LARGE, 1)) {
                Err(SendError::Truncated { error, .. }) => assert_eq!(error.raw(), libc::ETIMEDOUT),
                other => panic!("{policy:?}: {other:?}"),
            }
            sender
        });
        assert_eq!(sender.connection_error().map(|error| error.raw()), Some(libc::ETIMEDOUT));
    }
}

#[test]
fn a_socket_full_of_copies_ends_an_unaccepted_send() {
    let (mut sender, _far) = limited(Policy::Never);
    promptly(move || {
        let error = loop {
            if let Err(error) = sender.send(&[7; 1000][..]) {
                break error;
            }
        };
        assert!(
            matches!(&error, SendError::Connection { error, .. } if error.raw() == libc::ETIMEDOUT),
            "{error:?}"
        );
    });
}

/// A lag policy of the program rests on this, whatever the way of the bytes.
#[test]
fn a_stalled_peer_is_told_by_copied_sends_too() {
    for policy in [Policy::Never, Policy::Auto, Policy::Prefer] {
        let (near, _far) = pair_at("127.0.0.1:0", STALLED);
        let mut sender = Sender::builder().policy(policy).adopt(near).unwrap();
        assert_eq!(sender.held_for(), None);
        while sender.try_send(&[7; 20_000][..]).is_ok() {}
        closed_window(&sender);
        sender.held_for().expect("the peer reads nothing");
        thread::sleep(Duration::from_millis(30));
        assert!(sender.held_for() >= Some(Duration::from_millis(30)), "{policy:?}");
        let _ = sender.abort();
    }
}

#[test]
fn accepted_copies_without_a_waiting_call_count_as_held() {
    let (near, _far) = pair_at("127.0.0.1:0", STALLED);
    let builder = Sender::builder().policy(Policy::Never).max_hold(LIMIT);
    let mut sender = builder.adopt(near).unwrap();
    // More than the peer takes, less than the socket does.
    for _ in 0..20 {
        sender.try_send(&[7; 10_000][..]).unwrap();
    }
    assert!(sender.held_for().is_some(), "the peer cannot have acknowledged all");
    eventually("the connection is aborted", || sender.connection_error().is_some());
    assert_eq!(sender.held_for(), None, "no call is held any more");
}

#[test]
fn a_close_after_the_limit_reports_the_abort() {
    for policy in [Policy::Never, Policy::Prefer] {
        let (mut sender, _far) = limited(policy);
        sender.try_send(pattern(LARGE, 1)).unwrap();
        eventually("the connection is aborted", || sender.connection_error().is_some());
        let report = sender.close(soon());
        assert!(report.aborted && !report.drained, "{policy:?}: {report:?}");
        assert!(report.unacked_bytes > Some(0), "{policy:?}: {report:?}");
        assert_eq!(report.error.map(|error| error.raw()), Some(libc::ETIMEDOUT), "{report:?}");
    }
}

#[test]
fn a_close_beyond_the_limit_reports_the_abort() {
    let (mut sender, _far) = limited(Policy::Never);
    sender.try_send(pattern(LARGE, 1)).unwrap();
    let report = promptly(move || sender.close(soon()));
    assert!(report.aborted && !report.drained, "{report:?}");
    assert_eq!(report.error.map(|error| error.raw()), Some(libc::ETIMEDOUT), "{report:?}");
}

#[test]
fn a_peer_that_acknowledged_all_bytes_is_never_reset() {
    let (near, _far) = pair_at("127.0.0.1:0", STALLED);
    // A delayed acknowledgement comes within 200 ms.
    let limit = Duration::from_millis(500);
    let mut sender = Sender::builder().max_hold(limit).adopt(near).unwrap();
    for _ in 0..3 {
        sender.try_send(&[7; 1000][..]).unwrap();
        eventually("all bytes are acknowledged", || common::unacked(sender.get_ref()) == 0);
        thread::sleep(2 * limit);
    }
    assert_eq!(sender.connection_error(), None);
}

#[test]
fn a_timed_out_send_returns_an_unaccepted_buffer() {
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let mut sender = Sender::builder().policy(Policy::Never).adopt(near).unwrap();
    let data = pattern(1000, 1);
    promptly(move || {
        let mut sends = 0;
        let error = loop {
            match sender.send_timeout(Arc::clone(&data), Duration::from_millis(50)) {
                Ok(_) => sends += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, SendError::TimedOut(_)), "{error:?}");
        assert!(error.is_backpressure());
        let back = error.into_buf().expect("no byte is accepted");
        let peer = common::reader(far, Duration::ZERO);
        let ticket = sender.send(back).unwrap();
        assert_eq!(ticket.sequence(), sends, "the refused sends have no tickets");
        assert!(sender.close(soon()).drained);
        assert_same(&peer.join().unwrap(), &data.repeat(sends as usize + 1));
    });
}

#[test]
fn a_timed_out_send_keeps_its_unsent_part() {
    for policy in [Policy::Never, Policy::Prefer] {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let mut sender = Sender::builder().policy(policy).adopt(near).unwrap();
        let data = pattern(LARGE, 1);
        promptly(move || {
            let Err(SendError::Unfinished { ticket }) =
                sender.send_timeout(Arc::clone(&data), Duration::from_millis(20))
            else {
                panic!("{policy:?}: the socket takes less");
            };
            assert_eq!((ticket.len(), sender.fate(ticket)), (LARGE, Ok(None)));
            // The next send waits for its turn.
            let second = sender.send_timeout(Arc::clone(&data), Duration::ZERO);
            assert!(matches!(second, Err(SendError::TimedOut(_))), "{policy:?}: {second:?}");
            let peer = common::reader(far, Duration::ZERO);
            let fate = sender.wait(ticket, soon()).unwrap();
            assert!(matches!(fate, Fate::Released { accepted: LARGE, .. }), "{fate:?}");
            let whole = sender.send_timeout(Arc::clone(&data), Duration::MAX).unwrap();
            assert_eq!(whole.sequence(), 1);
            assert!(sender.close(soon()).drained);
            assert_same(&peer.join().unwrap(), &[&data[..], &data].concat());
        });
    }
}

#[test]
fn a_timed_send_of_a_sending_half_times_out_too() {
    let (near, _far) = pair_at("127.0.0.1:0", TIGHT);
    let (mut send, _reap) = Sender::new(near).unwrap().split();
    promptly(move || {
        let sent = send.send_timeout(pattern(LARGE, 1), Duration::from_millis(20));
        assert!(matches!(sent, Err(SendError::Unfinished { .. })), "{sent:?}");
    });
}
