//! OpenSSL and curl as peers.

use std::{
    io::{BufRead, BufReader, Write},
    thread,
};

use ::tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use pinbuf::{Pool, rustls::tokio::TlsStream, tokio::Stream};
use rustls::{SupportedProtocolVersion, version::TLS13};

use super::{PATIENCE, join, one_thread, runtimes, soon};
use crate::{
    common::{assert_same, pattern, pool, test_of, zero_copy},
    foreign::{BYTES, Place, Running, rest},
    peer::{VERSIONS, server_name},
};

/// Runs a test against programs in both versions and both kinds of runtimes.
fn against_programs(
    test: &str,
    programs: &[&str],
    run: impl AsyncFn(&Place, &'static SupportedProtocolVersion),
) {
    let Some(place) = Place::of(test, programs) else { return };
    for version in VERSIONS {
        for runtime in runtimes() {
            runtime.block_on(soon(run(&place, version)));
        }
    }
}

/// Accepts the connection of a program that `start` starts.
async fn accept(
    place: &Place,
    version: &'static SupportedProtocolVersion,
    pool: &Pool,
    start: impl FnOnce(u16) -> Running,
) -> (Running, TlsStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let program = start(listener.local_addr().unwrap().port());
    let socket = listener.accept().await.unwrap().0;
    let stream = Stream::adopt(zero_copy(), socket).unwrap();
    (program, TlsStream::accept(stream, pool, place.server(version)).await.unwrap())
}

#[test]
fn openssl_s_server_receives_everything() {
    against_programs(test_of(&|| ()), &["openssl"], async |place, version| {
        let pool = pool(64 << 10, 4);
        let (_server, output, socket) = place.start_server("");
        let output = rest(output);
        let stream = Stream::adopt(zero_copy(), socket).unwrap();
        let config = place.client(version);
        let mut stream = TlsStream::connect(stream, &pool, config, server_name()).await.unwrap();
        let data = pattern(BYTES, 2);
        stream.send(&data).await.unwrap();
        assert!(stream.close(PATIENCE).await.drained);
        // Between lines about the connection.
        let printed = join(output).await;
        let start = printed.windows(32).position(|bytes| *bytes == data[..32]).unwrap();
        assert_same(&printed[start..][..BYTES], &data);
    });
}

#[test]
fn openssl_s_server_sends_everything_and_its_end() {
    against_programs(test_of(&|| ()), &["openssl"], async |place, version| {
        let pool = pool(64 << 10, 4);
        let (_server, _output, socket) = place.start_server("-WWW");
        let config = place.client(version);
        let stream = Stream::new(socket).unwrap();
        let mut stream = TlsStream::connect(stream, &pool, config, server_name()).await.unwrap();
        stream.write_all(b"GET /data HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        assert_same(&answer[head..], &pattern(BYTES, 1));
    });
}

#[test]
fn openssl_s_client_sends_and_receives_everything() {
    against_programs(test_of(&|| ()), &["openssl"], async |place, version| {
        let pool = pool(64 << 10, 4);
        let (mut client, mut stream) =
            accept(place, version, &pool, |port| place.start_client(port)).await;
        let mut input = client.0.stdin.take().unwrap();
        let output = rest(client.0.stdout.take().unwrap());
        let upload = thread::spawn(move || {
            input.write_all(&pattern(BYTES, 3)).unwrap();
            input
        });
        let mut received = vec![0; BYTES];
        stream.read_exact(&mut received).await.unwrap();
        assert_same(&received, &pattern(BYTES, 3));
        // The client's input stays open.
        let _input = join(upload).await;
        stream.write_all(&pattern(BYTES, 4)).await.unwrap();
        assert!(stream.close(PATIENCE).await.drained);
        assert_same(&join(output).await, &pattern(BYTES, 4));
    });
}

#[test]
fn openssl_s_client_gets_new_keys_on_request() {
    let Some(place) = Place::of(test_of(&|| ()), &["openssl"]) else { return };
    one_thread().block_on(soon(async {
        let pool = pool(64 << 10, 4);
        let (mut client, mut stream) = accept(&place, &TLS13, &pool, |port| {
            place.start("openssl", &format!("s_client -connect 127.0.0.1:{port}"))
        })
        .await;
        let mut input = client.0.stdin.take().unwrap();
        let output = rest(client.0.stdout.take().unwrap());
        let mut notes = BufReader::new(client.0.stderr.take().unwrap()).lines();
        for round in 0..3 {
            // A line `K`, alone in a read, is the command for new keys on both sides.
            input.write_all(b"K\n").unwrap();
            assert!(notes.any(|line| line.unwrap().contains("KEYUPDATE")));
            input.write_all(b"text\n").unwrap();
            let mut text = [0; 5];
            stream.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"text\n");
            stream.refresh_keys().await.unwrap();
            stream.send(format!("answer {round}\n").as_bytes()).await.unwrap();
        }
        assert!(stream.close(PATIENCE).await.drained);
        let output = String::from_utf8_lossy(&join(output).await).into_owned();
        assert!((0..3).all(|round| output.contains(&format!("answer {round}\n"))), "{output}");
    }));
}

#[test]
fn curl_receives_a_file() {
    against_programs(test_of(&|| ()), &["openssl", "curl"], async |place, version| {
        let pool = pool(256 << 10, 4);
        let (mut client, mut stream) =
            accept(place, version, &pool, |port| place.start_curl(port)).await;
        let output = rest(client.0.stdout.take().unwrap());
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        assert!(request.starts_with(b"GET /data HTTP/1.1\r\n"));
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {BYTES}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.send(&pattern(BYTES, 5)).await.unwrap();
        // With the whole body curl resets the connection, perhaps before `close_notify` comes.
        let _ = stream.close(PATIENCE).await;
        assert_same(&join(output).await, &pattern(BYTES, 5));
        assert!(client.0.wait().unwrap().success());
    });
}
