//! OpenSSL and curl as peers.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
};

use pinbuf::{Policy, Pool, Sender, rustls::TlsStream};
use rustls::{
    ClientConfig, ServerConfig, SupportedProtocolVersion,
    crypto::ring::default_provider,
    version::{TLS12, TLS13},
};

use crate::{
    common::{assert_same, pattern, pool, skip, soon, test_of},
    peer::{Identity, client_config, server_config, server_name},
};

pub(crate) const BYTES: usize = 3_000_000;

/// A certificate for `localhost`, in a folder of its own, for programs too.
pub(crate) struct Place {
    identity: Identity,
    folder: PathBuf,
}

impl Place {
    /// `None`, with a line about the skipped test, if a program is missing.
    pub(crate) fn of(test: &str, programs: &[&str]) -> Option<Self> {
        for program in programs {
            if Command::new(program).arg("version").output().is_err() {
                skip(test, &format!("no {program}"));
                return None;
            }
        }
        let name = format!("pinbuf-{}-{}", std::process::id(), test.replace("::", "-"));
        let place =
            Self { identity: Identity::new("localhost"), folder: std::env::temp_dir().join(name) };
        fs::create_dir_all(&place.folder).unwrap();
        place.write("certificate.der", &place.identity.certificate);
        place.write("key.der", place.identity.key.secret_der());
        place.write("data", &pattern(BYTES, 1));
        place.openssl("x509 -inform DER -in certificate.der -out certificate.pem");
        place.openssl("pkey -inform DER -in key.der -out key.pem");
        Some(place)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.folder.join(name), bytes).unwrap();
    }

    /// Runs `openssl` to its end.
    fn openssl(&self, words: &str) {
        let output = self.command("openssl", words).output().unwrap();
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn command(&self, program: &str, words: &str) -> Command {
        let mut command = Command::new(program);
        command.args(words.split_whitespace()).current_dir(&self.folder);
        command
    }

    /// Starts a program with pipes.
    pub(crate) fn start(&self, program: &str, words: &str) -> Running {
        let mut command = self.command(program, words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    }

    /// Starts `openssl s_client`.
    pub(crate) fn start_client(&self, port: u16) -> Running {
        let words = format!(
            "s_client -quiet -connect 127.0.0.1:{port} -servername localhost \
             -CAfile certificate.pem -verify_return_error"
        );
        self.start("openssl", &words)
    }

    /// Starts `curl`, for the file `data`.
    pub(crate) fn start_curl(&self, port: u16) -> Running {
        let words = format!(
            "-sS --max-time 60 --cacert certificate.pem --resolve localhost:{port}:127.0.0.1 \
             https://localhost:{port}/data"
        );
        self.start("curl", &words)
    }

    /// Starts `openssl s_server`, and makes a connection without TLS yet.
    pub(crate) fn start_server(
        &self,
        words: &str,
    ) -> (Running, BufReader<impl Read + use<>>, TcpStream) {
        let words = format!(
            "s_server -accept 127.0.0.1:0 -cert certificate.pem -key key.pem -naccept 1 {words}"
        );
        let mut server = self.start("openssl", &words);
        let mut output = BufReader::new(server.0.stdout.take().unwrap());
        let port = loop {
            let mut line = String::new();
            assert!(output.read_line(&mut line).unwrap() > 0, "the server has ended");
            if let Some(address) = line.strip_prefix("ACCEPT 127.0.0.1:") {
                break address.trim().parse::<u16>().unwrap();
            }
        };
        (server, output, TcpStream::connect(("127.0.0.1", port)).unwrap())
    }

    pub(crate) fn client(&self, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
        client_config(version, default_provider(), self.identity.roots(), None).into()
    }

    pub(crate) fn server(&self, version: &'static SupportedProtocolVersion) -> Arc<ServerConfig> {
        server_config(version, default_provider(), &self.identity, None).into()
    }

    /// Starts `openssl s_server`, and connects.
    fn connect(
        &self,
        words: &str,
        version: &'static SupportedProtocolVersion,
        pool: &Pool,
    ) -> (Running, BufReader<impl Read + use<>>, TlsStream) {
        let (server, output, socket) = self.start_server(words);
        let config = self.client(version);
        let stream = TlsStream::connect(sender(socket), pool, config, server_name()).unwrap();
        (server, output, stream)
    }

    /// Accepts the next connection.
    fn accept(
        &self,
        listener: &TcpListener,
        version: &'static SupportedProtocolVersion,
        pool: &Pool,
    ) -> TlsStream {
        let socket = listener.accept().unwrap().0;
        TlsStream::accept(sender(socket), pool, self.server(version)).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A program that ends with its test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sender(socket: TcpStream) -> Sender<TcpStream> {
    Sender::builder().policy(Policy::Prefer).adopt(socket).unwrap()
}

/// Reads to the end, on a thread.
pub(crate) fn rest(mut output: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

#[test]
fn openssl_s_server_receives_everything() {
    let test = test_of(&|| ());
    let Some(place) = Place::of(test, &["openssl"]) else { return };
    for version in [&TLS12, &TLS13] {
        let pool = pool(64 << 10, 4);
        let (_server, output, mut stream) = place.connect("", version, &pool);
        let output = rest(output);
        let data = pattern(BYTES, 2);
        stream.send(&data).unwrap();
        assert!(stream.close(soon()).drained);
        // Between lines about the connection.
        let printed = output.join().unwrap();
        let start = printed.windows(32).position(|bytes| *bytes == data[..32]).unwrap();
        assert_same(&printed[start..][..BYTES], &data);
    }
}

#[test]
fn openssl_s_server_sends_everything_and_its_end() {
    let test = test_of(&|| ());
    let Some(place) = Place::of(test, &["openssl"]) else { return };
    for version in [&TLS12, &TLS13] {
        let pool = pool(64 << 10, 4);
        let (_server, _output, mut stream) = place.connect("-WWW", version, &pool);
        write!(stream, "GET /data HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        assert_same(&answer[head..], &pattern(BYTES, 1));
    }
}

#[test]
fn openssl_s_client_sends_and_receives_everything() {
    let test = test_of(&|| ());
    let Some(place) = Place::of(test, &["openssl"]) else { return };
    for version in [&TLS12, &TLS13] {
        let pool = pool(64 << 10, 4);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = place.start_client(port);
        let mut input = client.0.stdin.take().unwrap();
        let output = rest(client.0.stdout.take().unwrap());
        let upload = thread::spawn(move || {
            input.write_all(&pattern(BYTES, 3)).unwrap();
            input
        });
        let mut stream = place.accept(&listener, version, &pool);
        let mut received = vec![0; BYTES];
        stream.read_exact(&mut received).unwrap();
        assert_same(&received, &pattern(BYTES, 3));
        // The client's input stays open.
        let _input = upload.join().unwrap();
        stream.send(&pattern(BYTES, 4)).unwrap();
        assert!(stream.close(soon()).drained);
        assert_same(&output.join().unwrap(), &pattern(BYTES, 4));
    }
}

#[test]
fn openssl_s_client_gets_new_keys_on_request() {
    let test = test_of(&|| ());
    let Some(place) = Place::of(test, &["openssl"]) else { return };
    let pool = pool(64 << 10, 4);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut client = place.start("openssl", &format!("s_client -connect 127.0.0.1:{port}"));
    let mut input = client.0.stdin.take().unwrap();
    let output = rest(client.0.stdout.take().unwrap());
    let mut notes = BufReader::new(client.0.stderr.take().unwrap()).lines();
    let mut stream = place.accept(&listener, &TLS13, &pool);
    for round in 0..3 {
        // A line `K`, alone in a read, is the command for new keys on both sides.
        input.write_all(b"K\n").unwrap();
        assert!(notes.any(|line| line.unwrap().contains("KEYUPDATE")));
        input.write_all(b"text\n").unwrap();
        let mut text = [0; 5];
        stream.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"text\n");
        stream.refresh_keys().unwrap();
        stream.send(format!("answer {round}\n").as_bytes()).unwrap();
    }
    assert!(stream.close(soon()).drained);
    let output = String::from_utf8_lossy(&output.join().unwrap()).into_owned();
    assert!((0..3).all(|round| output.contains(&format!("answer {round}\n"))), "{output}");
}

#[test]
fn curl_receives_a_file() {
    let test = test_of(&|| ());
    let Some(place) = Place::of(test, &["openssl", "curl"]) else { return };
    for version in [&TLS12, &TLS13] {
        let pool = pool(256 << 10, 4);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = place.start_curl(port);
        let output = rest(client.0.stdout.take().unwrap());
        let mut stream = place.accept(&listener, version, &pool);
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        assert!(request.starts_with(b"GET /data HTTP/1.1\r\n"));
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {BYTES}\r\nconnection: close\r\n\r\n")
            .unwrap();
        stream.send(&pattern(BYTES, 5)).unwrap();
        // With the whole body curl resets the connection, perhaps before `close_notify` comes.
        let _ = stream.close(soon());
        assert_same(&output.join().unwrap(), &pattern(BYTES, 5));
        assert!(client.0.wait().unwrap().success());
    }
}
