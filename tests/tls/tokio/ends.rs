//! Ends in order, truncated streams, and faults of the peer.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    thread,
    time::Duration,
};

use ::tokio::io::{AsyncReadExt, AsyncWriteExt};
use pinbuf::{
    Sender,
    rustls::{TlsError, tokio::TlsStream},
    tokio::Stream,
};
use rustls::{AlertDescription, Error, version::TLS13};

use super::{PATIENCE, in_all_runtimes, join, one_thread, soon};
use crate::{
    common::{
        STALLED, TIGHT, assert_all_free, assert_same, pair, pair_at, pattern, pool,
        wait_until_all_free,
    },
    peer::{Role, SetUp, server_name},
};

#[test]
fn close_notify_of_the_peer_ends_the_reading_and_not_the_writing() {
    in_all_runtimes(async |set_up| {
        let (mut stream, mut peer) = set_up.connect_in_task(&pool(64 << 10, 2)).await;
        peer.write_all(b"last").unwrap();
        peer.close();
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"last");
        assert_eq!(stream.read(&mut [0; 10]).await.unwrap(), 0, "and again");
        stream.send(b"answer").await.unwrap();
        assert_eq!(peer.fetch(6), b"answer");
        assert!(stream.close(PATIENCE).await.drained);
        assert_eq!(peer.read(&mut [0; 10]).unwrap(), 0);
    });
}

#[test]
fn finish_and_shutdown_end_the_writing_and_not_the_reading() {
    in_all_runtimes(async |set_up| {
        for shuts_down in [false, true] {
            let (mut stream, mut peer) = set_up.connect_in_task(&pool(64 << 10, 2)).await;
            stream.write_all(b"last").await.unwrap();
            if shuts_down {
                stream.shutdown().await.unwrap();
                stream.shutdown().await.unwrap();
            } else {
                stream.finish().await.unwrap();
                stream.finish().await.unwrap();
            }
            assert_eq!(peer.fetch(4), b"last");
            assert_eq!(peer.read(&mut [0; 10]).unwrap(), 0);
            let error = stream.send(b"more").await.unwrap_err();
            assert!(matches!(error, TlsError::Finished), "{error}");
            assert_eq!(stream.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
            peer.write_all(b"answer").unwrap();
            let mut answer = [0; 6];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"answer");
            peer.close();
            assert!(stream.close(PATIENCE).await.drained);
        }
    });
}

#[test]
fn a_truncated_stream_is_an_error_behind_its_data() {
    in_all_runtimes(async |set_up| {
        let (mut stream, mut peer) = set_up.connect_in_task(&pool(64 << 10, 2)).await;
        let data = pattern(100_000, 0);
        peer.write_all(&data).unwrap();
        peer.socket().shutdown(Shutdown::Write).unwrap();
        let mut read = Vec::new();
        let error = stream.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert!(matches!(error.downcast::<TlsError>(), Ok(TlsError::Truncated)));
        assert_same(&read, &data);
        // The other direction goes on.
        stream.send(b"answer").await.unwrap();
        assert_eq!(peer.fetch(6), b"answer");
    });
}

#[test]
fn a_dropped_stream_is_truncated_for_the_peer() {
    in_all_runtimes(async |set_up| {
        let pool = pool(64 << 10, 2);
        let (mut stream, mut peer) = set_up.connect_in_task(&pool).await;
        stream.send(b"sent").await.unwrap();
        stream.write_all(b"collected").await.unwrap();
        drop(stream);
        let reading = thread::spawn(move || {
            let mut read = Vec::new();
            let error = peer.read_to_end(&mut read).unwrap_err();
            (read, error.kind())
        });
        let (read, error) = join(reading).await;
        assert!([ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&error));
        assert_eq!(read, b"sent");
        wait_until_all_free(&pool);
    });
}

#[test]
fn close_waits_until_the_peer_has_read_everything() {
    in_all_runtimes(async |set_up| {
        let pool = pool(64 << 10, 8);
        let (mut stream, mut peer) =
            set_up.over_in_task(pair_at("127.0.0.1:0", STALLED), &pool).await;
        let data = pattern(200_000, 0);
        let peer = thread::spawn(move || {
            // So that the stream is closed with most of the data in its socket.
            thread::sleep(Duration::from_millis(100));
            peer.write_all(b"unread").unwrap();
            let mut read = Vec::new();
            peer.read_to_end(&mut read).unwrap();
            read
        });
        stream.write_all(&data).await.unwrap();
        let report = stream.close(PATIENCE).await;
        assert!(report.drained, "{report:?}");
        assert_same(&join(peer).await, &data);
        assert_all_free(&pool);
    });
}

#[test]
fn close_gives_up_a_peer_without_an_end() {
    in_all_runtimes(async |set_up| {
        let (mut stream, mut peer) = set_up.connect_in_task(&pool(64 << 10, 8)).await;
        stream.send(b"all that there is").await.unwrap();
        assert_eq!(peer.fetch(17), b"all that there is");
        // Everything is released, so the end is in order on this side.
        let report = stream.close(Some(Duration::from_millis(10))).await;
        assert!(report.drained && !report.aborted, "{report:?}");
    });
}

#[test]
fn close_gives_up_a_peer_that_takes_nothing() {
    in_all_runtimes(async |set_up| {
        let pool = pool(1 << 20, 2);
        let (mut stream, peer) = set_up.over_in_task(pair_at("127.0.0.1:0", TIGHT), &pool).await;
        // More than the sockets take, and less than a buffer: `close` sends it.
        stream.write_all(&[7; 900_000]).await.unwrap();
        let report = stream.close(Some(Duration::from_millis(10))).await;
        assert!(report.aborted && !report.drained, "{report:?}");
        drop(peer);
        wait_until_all_free(&pool);
    });
}

/// The end of the time finds records that the socket refused, with nothing else unsent or unreleased.
#[test]
fn close_aborts_a_stream_with_refused_records() {
    in_all_runtimes(async |set_up| {
        let (near, far) = pair_at("127.0.0.1:0", TIGHT);
        let stream = Stream::adopt(Sender::builder().policy(pinbuf::Policy::Never), near).unwrap();
        let peer = set_up.start_peer(far);
        let pool = pool(4096, 2);
        let mut stream = match set_up.role {
            Role::Client => TlsStream::connect(stream, &pool, set_up.client(), server_name()).await,
            Role::Server => TlsStream::accept(stream, &pool, set_up.server()).await,
        }
        .unwrap();
        let _peer = join(peer).await.unwrap();
        let short = Duration::from_millis(50);
        while ::tokio::time::timeout(short, stream.send(&[7; 1000])).await.is_ok() {}
        let report = stream.close(Some(Duration::from_millis(10))).await;
        assert!(report.aborted && !report.drained, "{report:?}");
    });
}

#[test]
fn an_abort_resets_the_peer() {
    in_all_runtimes(async |set_up| {
        let (mut stream, mut peer) = set_up.connect_in_task(&pool(64 << 10, 2)).await;
        stream.write_all(b"collected").await.unwrap();
        assert!(stream.abort().aborted);
        let error = peer.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_forged_record_is_refused_for_good_and_the_peer_is_told() {
    in_all_runtimes(async |set_up| {
        let (mut stream, mut peer) = set_up.connect_in_task(&pool(64 << 10, 2)).await;
        peer.write_all(b"good").unwrap();
        let forged = [23, 3, 3, 0, 30].into_iter().chain([7; 30]).collect::<Vec<u8>>();
        peer.socket().write_all(&forged).unwrap();
        let mut read = Vec::new();
        let error = stream.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert_eq!(read, b"good");
        let told = peer.read(&mut [0; 10]).unwrap_err().into_inner().unwrap();
        let alert = Error::AlertReceived(AlertDescription::BadRecordMac);
        assert_eq!(told.downcast_ref::<Error>(), Some(&alert), "{told}");
        for _ in 0..2 {
            let error = stream.send(b"more").await.unwrap_err();
            assert!(matches!(error, TlsError::Tls(Error::DecryptError)), "{error}");
            stream.write(b"more").await.unwrap_err();
            stream.finish().await.unwrap_err();
            stream.shutdown().await.unwrap_err();
        }
    });
}

#[test]
fn a_forged_record_that_no_read_has_met_fails_a_send_and_the_peer_is_told() {
    in_all_runtimes(async |set_up| {
        let (mut stream, mut peer) = set_up.connect_in_task(&pool(64 << 10, 2)).await;
        peer.write_all(b"good").unwrap();
        let forged = [23, 3, 3, 0, 30].into_iter().chain([7; 30]).collect::<Vec<u8>>();
        peer.socket().write_all(&forged).unwrap();
        // So that the stream receives both at once.
        while !stream.stream().get_ref().peek(&mut [0; 1000]).is_ok_and(|there| there > 60) {
            ::tokio::task::yield_now().await;
        }
        stream.read_exact(&mut [0; 4]).await.unwrap();
        let error = stream.send(b"more").await.unwrap_err();
        assert!(matches!(error, TlsError::Tls(Error::DecryptError)), "{error}");
        let told = peer.read(&mut [0; 10]).unwrap_err().into_inner().unwrap();
        let alert = Error::AlertReceived(AlertDescription::BadRecordMac);
        assert_eq!(told.downcast_ref::<Error>(), Some(&alert), "{told}");
    });
}

#[test]
fn a_refused_handshake_is_an_error_and_the_peer_is_told() {
    in_all_runtimes(async |set_up| {
        if set_up.role == Role::Server {
            return;
        }
        let mut untrusting = set_up.copy();
        untrusting.client = SetUp::new(Role::Client, set_up.version).client;
        let (stream, peer) = untrusting.shake_hands_in_task(pair(), &pool(4096, 2)).await;
        let error = stream.unwrap_err();
        assert!(matches!(error, TlsError::Tls(Error::InvalidCertificate(_))), "{error}");
        let told = peer.err().unwrap().into_inner().unwrap();
        let told = told.downcast_ref::<Error>().unwrap();
        assert!(matches!(told, Error::AlertReceived(AlertDescription::DecryptError)), "{told}");
    });
}

#[test]
fn an_end_within_the_handshake_is_an_error() {
    for role in [Role::Client, Role::Server] {
        one_thread().block_on(soon(async {
            let set_up = SetUp::new(role, &TLS13);
            let (near, far) = pair();
            far.shutdown(Shutdown::Write).unwrap();
            let (stream, pool) = (Stream::new(near).unwrap(), pool(4096, 1));
            let stream = match role {
                Role::Client => {
                    TlsStream::connect(stream, &pool, set_up.client(), server_name()).await
                }
                Role::Server => TlsStream::accept(stream, &pool, set_up.server()).await,
            };
            let error = stream.unwrap_err();
            assert!(matches!(error, TlsError::Truncated), "{error}");
        }));
    }
}

#[test]
fn a_failed_send_fails_all_later_sends() {
    in_all_runtimes(async |set_up| {
        let (mut stream, peer) = set_up.connect_in_task(&pool(64 << 10, 2)).await;
        drop(peer);
        let error = loop {
            if let Err(error) = stream.send(b"to nobody").await {
                break error;
            }
        };
        let TlsError::Io(error) = error else { panic!("{error}") };
        assert!([ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind()));
        let again = stream.write_all(&[0; 100_000]).await.and(stream.flush().await);
        assert_eq!(again.unwrap_err().kind(), error.kind());
        assert!(!stream.close(PATIENCE).await.drained);
    });
}
