//! The same over TLS.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring::default_provider,
    pki_types::CertificateDer,
};

use crate::{
    common::{assert_same, pattern, soon, test_of},
    curl::{curl, lack, sha256},
    site::{Server, Site, at_once},
};

const BYTES: usize = 8_000_000;

/// A site with a certificate for `localhost` beside the root.
struct Secure {
    site: Site,
    certificate: CertificateDer<'static>,
}

/// A client that trusts the certificate.
struct Trust(Arc<ClientConfig>);

type Stream = StreamOwned<ClientConnection, TcpStream>;

impl Secure {
    fn with_data(bytes: usize) -> Self {
        let site = Site::with_data(bytes);
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(site.outside().join("certificate.pem"), made.cert.pem()).unwrap();
        fs::write(site.outside().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        Self { site, certificate: made.cert.der().clone() }
    }

    fn serve(&self, more: &str) -> Server {
        let place = self.site.outside().display();
        let files = format!("--tls-cert {place}/certificate.pem --tls-key {place}/key.pem");
        self.site.serve(&format!("{files} {more}"))
    }

    /// The words for curl, but for the path.
    fn words(&self, server: &Server) -> String {
        let port = server.address().rsplit(':').next().unwrap();
        let certificate = self.site.outside().join("certificate.pem");
        format!(
            "--cacert {} --resolve localhost:{port}:127.0.0.1 https://localhost:{port}/data",
            certificate.display()
        )
    }

    fn trust(&self) -> Trust {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        Trust(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
    }
}

impl Trust {
    /// Connects, and asks for the data.
    fn ask(&self, address: &str, fields: &str) -> Stream {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(soon()).unwrap();
        let name = "localhost".try_into().unwrap();
        let mut stream =
            StreamOwned::new(ClientConnection::new(Arc::clone(&self.0), name).unwrap(), socket);
        write!(stream, "GET /data HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n").unwrap();
        stream
    }
}

/// Reads an answer up to the end of its connection.
fn body(mut stream: Stream) -> Vec<u8> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    answer.split_off(head)
}

#[test]
fn curl_receives_files_over_tls() {
    if lack(test_of(&|| ()), &["curl", "sha256sum"]) {
        return;
    }
    let secure = Secure::with_data(BYTES);
    for settings in ["--zerocopy prefer", "--zerocopy never", "--memory 1", ""] {
        let server = secure.serve(settings);
        let copy = secure.site.outside().join("copy");
        for version in ["1.2", "1.3"] {
            let tls = format!("--tlsv{version} --tls-max {version}");
            let words = secure.words(&server);
            curl(&format!("{tls} -o {} {words}", copy.display()), &server);
            assert_eq!(sha256(&copy), sha256(&secure.site.root.join("data")));
        }
        let range = curl(&format!("--range 1000-2999999 {}", secure.words(&server)), &server);
        assert_same(&range, &pattern(BYTES, 1)[1000..3_000_000]);
        server.end().in_order();
    }
}

#[test]
fn many_clients_get_their_bytes_over_tls() {
    let secure = Secure::with_data(700_000);
    let server = secure.serve("--memory 4");
    let (trust, address) = (secure.trust(), server.address().to_owned());
    let data = pattern(700_000, 1);
    at_once(20, move |number| {
        let start = number * 1000;
        for _ in 0..3 {
            let fields = format!("Range: bytes={start}-\r\nConnection: close\r\n");
            assert!(body(trust.ask(&address, &fields)) == data[start..]);
        }
    });
    server.end().in_order();
}

#[test]
fn stalled_clients_with_all_buffers_stop_nothing_over_tls() {
    let secure = Secure::with_data(BYTES);
    let server = secure.serve("--memory 1 --cache 0 --zerocopy prefer --stall-timeout 600");
    let trust = secure.trust();
    let stalled = Vec::from_iter((0..6).map(|_| trust.ask(server.address(), "")));
    let fields = "Range: bytes=0-99999\r\nConnection: close\r\n";
    for _ in 0..3 {
        assert_same(&body(trust.ask(server.address(), fields)), &pattern(BYTES, 1)[..100_000]);
    }
    drop(stalled);
    server.end().in_order();
}

#[test]
fn clients_that_vanish_cost_no_buffer_over_tls() {
    let secure = Secure::with_data(BYTES);
    let server = secure.serve("--memory 4 --zerocopy prefer");
    let (trust, address) = (secure.trust(), server.address().to_owned());
    at_once(20, move |number| {
        let mut stream = trust.ask(&address, "");
        stream.read_exact(&mut vec![0; number * 30_000]).unwrap();
    });
    server.end().in_order();
}

#[test]
fn bytes_that_are_not_tls_end_the_connection() {
    let secure = Secure::with_data(10);
    let server = secure.serve("--head-timeout 1");
    let mut client = server.connect();
    client.write("GET /data HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut rest = Vec::new();
    let _ = client.socket.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP"));
    // A handshake that does not go on ends in time.
    let _ = server.connect().socket.read_to_end(&mut rest);
    server.end().in_order();
}

#[test]
fn an_open_transfer_over_tls_finishes_after_a_signal() {
    let secure = Secure::with_data(BYTES);
    let mut server = secure.serve("");
    let mut stream = secure.trust().ask(server.address(), "");
    let mut first = vec![0; 1000];
    stream.read_exact(&mut first).unwrap();
    server.signal("TERM");
    server.await_the_end();
    let mut answer = first;
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    assert_same(&answer[head..], &pattern(BYTES, 1));
    server.ended().in_order();
}
