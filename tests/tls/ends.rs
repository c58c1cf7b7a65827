//! Ends in order, truncated streams, and faults of the peer.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    sync::Arc,
    thread,
    time::Duration,
};

use pinbuf::{
    Sender,
    rustls::{TlsError, TlsStream},
};
use rustls::{AlertDescription, Error, version::TLS13};

use crate::{
    common::{
        STALLED, TIGHT, assert_all_free, assert_same, pair, pair_at, pattern, pool, soon,
        wait_until_all_free,
    },
    peer::{Role, SetUp, everywhere},
};

#[test]
fn close_notify_of_the_peer_ends_the_reading_and_not_the_writing() {
    everywhere(|set_up| {
        let (mut stream, mut peer) = set_up.connect(&pool(64 << 10, 2));
        peer.write_all(b"last").unwrap();
        peer.close();
        let mut read = Vec::new();
        stream.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"last");
        assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0, "and again");
        stream.send(b"answer").unwrap();
        assert_eq!(peer.fetch(6), b"answer");
        assert!(stream.close(soon()).drained);
        assert_eq!(peer.read(&mut [0; 10]).unwrap(), 0);
    });
}

#[test]
fn finish_ends_the_writing_and_not_the_reading() {
    everywhere(|set_up| {
        let (mut stream, mut peer) = set_up.connect(&pool(64 << 10, 2));
        stream.write_all(b"last").unwrap();
        stream.finish().unwrap();
        stream.finish().unwrap();
        assert_eq!(peer.fetch(4), b"last");
        assert_eq!(peer.read(&mut [0; 10]).unwrap(), 0);
        let error = stream.send(b"more").unwrap_err();
        assert!(matches!(error, TlsError::Finished), "{error}");
        assert_eq!(stream.write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
        peer.write_all(b"answer").unwrap();
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
        peer.close();
        assert!(stream.close(soon()).drained);
    });
}

#[test]
fn a_truncated_stream_is_an_error_behind_its_data() {
    everywhere(|set_up| {
        let (mut stream, mut peer) = set_up.connect(&pool(64 << 10, 2));
        let data = pattern(100_000, 0);
        peer.write_all(&data).unwrap();
        peer.socket().shutdown(Shutdown::Write).unwrap();
        let mut read = Vec::new();
        let error = stream.read_to_end(&mut read).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert!(matches!(error.downcast::<TlsError>(), Ok(TlsError::Truncated)));
        assert_same(&read, &data);
        // The other direction goes on.
        stream.send(b"answer").unwrap();
        assert_eq!(peer.fetch(6), b"answer");
    });
}

#[test]
fn a_dropped_stream_is_truncated_for_the_peer() {
    everywhere(|set_up| {
        let pool = pool(64 << 10, 2);
        let (mut stream, mut peer) = set_up.connect(&pool);
        stream.send(b"sent").unwrap();
        stream.write_all(b"collected").unwrap();
        drop(stream);
        let mut read = Vec::new();
        let error = peer.read_to_end(&mut read).unwrap_err();
        assert!([ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&error.kind()));
        assert_eq!(read, b"sent");
        wait_until_all_free(&pool);
    });
}

/// The peer's tickets lie unread in the socket, and the peer takes its time.
#[test]
fn close_waits_until_the_peer_has_read_everything() {
    everywhere(|set_up| {
        let pool = pool(64 << 10, 8);
        let (mut stream, mut peer) = set_up.over(pair_at("127.0.0.1:0", STALLED), &pool);
        let data = pattern(200_000, 0);
        let peer = thread::spawn(move || {
            // So that the stream is closed with most of the data in its socket.
            thread::sleep(Duration::from_millis(200));
            peer.write_all(b"unread").unwrap();
            let mut read = Vec::new();
            peer.read_to_end(&mut read).unwrap();
            read
        });
        stream.write_all(&data).unwrap();
        let report = stream.close(soon());
        assert!(report.drained, "{report:?}");
        assert_same(&peer.join().unwrap(), &data);
        assert_all_free(&pool);
    });
}

#[test]
fn close_gives_up_a_peer_without_an_end() {
    everywhere(|set_up| {
        let pool = pool(64 << 10, 8);
        let (mut stream, mut peer) = set_up.connect(&pool);
        stream.send(b"all that there is").unwrap();
        assert_eq!(peer.fetch(17), b"all that there is");
        // Everything is released, so the end is in order on this side.
        let report = stream.close(Some(Duration::from_millis(10)));
        assert!(report.drained && !report.aborted, "{report:?}");
    });
}

#[test]
fn close_gives_up_a_peer_that_takes_nothing() {
    everywhere(|set_up| {
        let pool = pool(1 << 20, 1);
        let (mut stream, peer) = set_up.over(pair_at("127.0.0.1:0", TIGHT), &pool);
        // More than the sockets take, and less than a buffer: `close` sends it.
        stream.write_all(&[7; 900_000]).unwrap();
        let report = stream.close(Some(Duration::from_millis(10)));
        assert!(report.aborted && !report.drained, "{report:?}");
        drop(peer);
        wait_until_all_free(&pool);
    });
}

#[test]
fn an_abort_resets_the_peer() {
    everywhere(|set_up| {
        let (mut stream, mut peer) = set_up.connect(&pool(64 << 10, 2));
        stream.write_all(b"collected").unwrap();
        assert!(stream.abort().aborted);
        let error = peer.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_forged_record_is_refused_for_good_and_the_peer_is_told() {
    everywhere(|set_up| {
        let (mut stream, mut peer) = set_up.connect(&pool(64 << 10, 2));
        peer.write_all(b"good").unwrap();
        let forged = [23, 3, 3, 0, 30].into_iter().chain([7; 30]).collect::<Vec<u8>>();
        peer.socket().write_all(&forged).unwrap();
        let mut read = Vec::new();
        let error = stream.read_to_end(&mut read).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert_eq!(read, b"good");
        let told = peer.read(&mut [0; 10]).unwrap_err().into_inner().unwrap();
        let alert = Error::AlertReceived(AlertDescription::BadRecordMac);
        assert_eq!(told.downcast_ref::<Error>(), Some(&alert), "{told}");
        for _ in 0..2 {
            let error = stream.send(b"more").unwrap_err();
            assert!(matches!(error, TlsError::Tls(Error::DecryptError)), "{error}");
        }
    });
}

#[test]
fn an_end_within_the_handshake_is_an_error() {
    for role in [Role::Client, Role::Server] {
        let set_up = SetUp::new(role, &TLS13);
        let (near, far) = pair();
        far.shutdown(Shutdown::Write).unwrap();
        let sender = Sender::builder().adopt(near).unwrap();
        let pool = pool(4096, 1);
        let stream = match role {
            Role::Client => {
                let name = "localhost".try_into().unwrap();
                TlsStream::connect(sender, &pool, Arc::new(set_up.client), name)
            }
            Role::Server => TlsStream::accept(sender, &pool, Arc::new(set_up.server)),
        };
        let error = stream.unwrap_err();
        assert!(matches!(error, TlsError::Truncated), "{error}");
    }
}

#[test]
fn a_read_that_ran_out_of_time_can_be_tried_again() {
    everywhere(|set_up| {
        let (mut stream, mut peer) = set_up.connect(&pool(64 << 10, 2));
        let timeout = Some(Duration::from_millis(1));
        stream.sender().get_ref().set_read_timeout(timeout).unwrap();
        assert_eq!(stream.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
        stream.sender().get_ref().set_read_timeout(None).unwrap();
        peer.write_all(b"late").unwrap();
        let mut late = [0; 4];
        stream.read_exact(&mut late).unwrap();
        assert_eq!(&late, b"late");
    });
}

#[test]
fn a_failed_send_fails_all_later_sends() {
    everywhere(|set_up| {
        let (mut stream, peer) = set_up.connect(&pool(64 << 10, 2));
        drop(peer);
        let error = loop {
            if let Err(error) = stream.send(b"to nobody") {
                break error;
            }
        };
        let TlsError::Io(error) = error else { panic!("{error}") };
        assert!([ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind()));
        let again = stream.flush().and_then(|()| stream.write_all(&[0; 100_000]));
        assert_eq!(again.unwrap_err().kind(), error.kind());
        assert!(!stream.close(soon()).drained);
    });
}
