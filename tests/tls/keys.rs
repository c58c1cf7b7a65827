//! New keys in the middle of a stream.

use std::{
    io::{Read, Write},
    thread,
    time::Duration,
};

use pinbuf::rustls::TlsError;
use rustls::{
    CipherSuiteCommon, SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
    crypto::{CryptoProvider, ring::default_provider},
    version::{TLS12, TLS13},
};

use crate::{
    common::{assert_same, pattern, pool, soon},
    peer::{Role, SetUp},
};

const ROLES: [Role; 2] = [Role::Client, Role::Server];

#[test]
fn a_request_for_new_keys_is_answered_without_a_write() {
    for role in ROLES {
        let pool = pool(64 << 10, 2);
        let mut set_up = SetUp::new(role, &TLS13);
        // No bytes that look like an answer.
        set_up.server.send_tls13_tickets = 0;
        let (mut stream, mut peer) = set_up.connect(&pool);
        peer.refresh_keys();
        peer.write_all(b"request").unwrap();
        let mut request = [0; 7];
        stream.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"request");
        // With everything read, the next read waits for the peer.
        stream.sender().get_ref().set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        stream.read(&mut request).unwrap_err();
        peer.socket().set_read_timeout(soon()).unwrap();
        assert_eq!(peer.socket().peek(&mut [0]).unwrap(), 1, "an answer");
        stream.send(b"after").unwrap();
        assert_eq!(peer.fetch(5), b"after");
    }
}

#[test]
fn keys_are_replaced_by_either_side_at_any_time() {
    for role in ROLES {
        let pool = pool(64 << 10, 2);
        let (mut stream, mut peer) = SetUp::new(role, &TLS13).connect(&pool);
        let echo = thread::spawn(move || {
            for round in 0..100 {
                let bytes = peer.fetch(20_000 + round);
                if round % 3 == 0 {
                    peer.refresh_keys();
                }
                peer.write_all(&bytes).unwrap();
            }
        });
        for round in 0..100 {
            let data = pattern(20_000 + round, round);
            let (first, rest) = data.split_at(10_000);
            // Collected records are sent before the request.
            stream.write_all(first).unwrap();
            if round % 2 == 0 {
                stream.refresh_keys().unwrap();
            }
            stream.write_all(rest).unwrap();
            let mut answer = vec![0; data.len()];
            stream.read_exact(&mut answer).unwrap();
            assert_same(&answer, &data);
        }
        echo.join().unwrap();
    }
}

#[test]
fn keys_of_tls_1_2_cannot_be_replaced() {
    for role in ROLES {
        let pool = pool(64 << 10, 2);
        let (mut stream, mut peer) = SetUp::new(role, &TLS12).connect(&pool);
        assert!(matches!(stream.refresh_keys(), Err(TlsError::Tls(_))));
        stream.send(b"the connection lasts").unwrap();
        assert_eq!(peer.fetch(20), b"the connection lasts");
    }
}

/// The usual provider, with keys that are used up after `records` records.
fn short_lived(records: u64) -> CryptoProvider {
    let mut provider = default_provider();
    let common = |common: &CipherSuiteCommon| CipherSuiteCommon {
        suite: common.suite,
        hash_provider: common.hash_provider,
        confidentiality_limit: records,
    };
    for suite in &mut provider.cipher_suites {
        *suite = match *suite {
            SupportedCipherSuite::Tls13(suite) => {
                let common = common(&suite.common);
                SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
                    common,
                    ..*suite
                })))
            }
            SupportedCipherSuite::Tls12(suite) => {
                let common = common(&suite.common);
                SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
                    common,
                    ..*suite
                })))
            }
        };
    }
    provider
}

#[test]
fn keys_are_replaced_before_they_are_used_up() {
    for role in ROLES {
        // Four records in a buffer: the requests come at every place.
        let pool = pool(64 << 10, 2);
        let set_up = SetUp::with_provider(role, &TLS13, short_lived(7));
        let (mut stream, mut peer) = set_up.connect(&pool);
        let data = pattern(4 << 20, 0);
        let len = data.len();
        let reader = thread::spawn(move || {
            let read = [peer.fetch(len), peer.fetch(len)];
            // The answers.
            peer.flush().unwrap();
            read
        });
        stream.send(&data).unwrap();
        stream.write_all(&data).unwrap();
        stream.flush().unwrap();
        reader.join().unwrap().iter().for_each(|read| assert_same(read, &data));
        stream.drain(soon()).unwrap();
    }
}

#[test]
fn keys_of_tls_1_2_that_are_used_up_are_an_error() {
    for role in ROLES {
        let pool = pool(64 << 10, 2);
        let set_up = SetUp::with_provider(role, &TLS12, short_lived(20));
        let (mut stream, mut peer) = set_up.connect(&pool);
        let mut sent = 0;
        let error = loop {
            // Three records, for which the keys do not last in the end.
            match stream.send(&[7; 40_000]) {
                Ok(_) => sent += 40_000,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, TlsError::KeysUsedUp), "{error}");
        assert!(sent > 100_000, "{sent}");
        // The peer has it all, and the end.
        drop(stream);
        let mut read = Vec::new();
        peer.read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), sent);
    }
}
