//! Tickets: only the sender of a ticket answers for it.

#![cfg(target_os = "linux")]

use std::{
    net::TcpStream,
    task::{Context, Poll, Waker},
    time::Duration,
};

use pinbuf::{Fate, Sender, Ticket, WaitError};

use crate::common::{self, STALLED, pair_at, pattern, reader, soon};

const LEN: usize = 256 << 10;

/// A sender with `released` released sends and an open one, the peer, and the tickets.
fn sender(released: usize) -> (Sender<TcpStream>, TcpStream, Vec<Ticket>) {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let mut tickets = Vec::new();
    for _ in 0..released {
        tickets.push(sender.send(&[7; 10][..]).unwrap());
    }
    tickets.push(sender.send(pattern(LEN, 1)).unwrap());
    (sender, far, tickets)
}

/// Asks in all three ways; `wait` has no deadline, and would hang.
#[track_caller]
fn assert_foreign(sender: &mut Sender<TcpStream>, tickets: &[Ticket]) {
    let mut cx = Context::from_waker(Waker::noop());
    for ticket in tickets {
        assert_eq!(sender.fate(*ticket), Err(WaitError::ForeignTicket));
        let polled = sender.poll_fate(&mut cx, *ticket);
        assert_eq!(polled, Poll::Ready(Err(WaitError::ForeignTicket)));
        assert_eq!(sender.wait(*ticket, None), Err(WaitError::ForeignTicket));
    }
}

#[test]
fn a_ticket_of_another_sender_is_an_error() {
    let (mut few, _few_far, of_few) = sender(1);
    let (mut many, _many_far, of_many) = sender(3);
    // Numbers of sends: released by the asked sender, open, and never made.
    assert_foreign(&mut few, &of_many);
    assert_foreign(&mut many, &of_few);
    let (sending, mut reaping) = many.split();
    for ticket in of_few {
        assert_eq!(sending.fate(ticket), Err(WaitError::ForeignTicket));
        assert_eq!(reaping.wait(ticket, None), Err(WaitError::ForeignTicket));
    }
}

#[test]
fn no_fate_means_an_open_send() {
    let (mut sender, far, tickets) = sender(3);
    let (open, released) = tickets.split_last().unwrap();
    for ticket in released {
        assert!(matches!(sender.fate(*ticket), Ok(Some(Fate::Released { accepted: 10, .. }))));
    }
    assert_eq!(sender.fate(*open), Ok(None));
    let peer = reader(far, Duration::ZERO);
    assert!(matches!(sender.wait(*open, soon()), Ok(Fate::Released { accepted: LEN, .. })));
    assert!(matches!(sender.fate(*open), Ok(Some(Fate::Released { accepted: LEN, .. }))));
    drop(sender);
    peer.join().unwrap();
}

#[test]
fn both_halves_answer_for_the_whole_sender() {
    let (sender, far, mut tickets) = sender(2);
    let (mut sending, mut reaping) = sender.split();
    let peer = reader(far, Duration::ZERO);
    tickets.push(sending.send(pattern(LEN, 2)).unwrap());
    for ticket in tickets {
        let fate = reaping.wait(ticket, soon()).unwrap();
        assert_eq!(sending.fate(ticket), Ok(Some(fate)));
    }
    drop((sending, reaping));
    peer.join().unwrap();
}

#[test]
fn a_sender_from_parts_has_new_tickets() {
    let (mut sender, far, tickets) = sender(3);
    let peer = reader(far, Duration::ZERO);
    sender.drain(soon()).unwrap();
    let (socket, ids) = sender.into_parts().unwrap();
    let mut sender = common::zero_copy().resume(ids).adopt(socket).unwrap();
    assert_foreign(&mut sender, &tickets);
    // Also after sends with the same numbers.
    let again: Vec<_> = (0..5).map(|_| sender.send(&[7; 10][..]).unwrap()).collect();
    assert_eq!(again[3].sequence(), tickets[3].sequence());
    assert_foreign(&mut sender, &tickets);
    assert!(again.iter().all(|ticket| matches!(sender.fate(*ticket), Ok(Some(_)))));
    drop(sender);
    peer.join().unwrap();
}

#[test]
fn a_ticket_takes_sixteen_bytes() {
    assert_eq!(size_of::<Ticket>(), 16);
    let (_sender, _far, tickets) = sender(2);
    let parts: Vec<_> = tickets.iter().map(|ticket| (ticket.sequence(), ticket.len())).collect();
    assert_eq!(parts, [(0, 10), (1, 10), (2, LEN)]);
    assert!(tickets.is_sorted(), "in the order of the sends");
}
