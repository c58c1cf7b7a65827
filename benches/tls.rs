//! TLS: records encrypted into buffers of a pool, against `rustls::StreamOwned` over plain sends.
//!
//! Both contestants send the same plaintext, out of 32 MiB in turn. The handshake is made in memory, so
//! that a fake peer can take the records: see the bench of plain sends, `send`.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/lab/fake_peer.rs"]
mod fake_peer;
mod harness;
#[allow(dead_code, reason = "TLS is over streams")]
#[path = "send/way.rs"]
mod way;

use std::{
    io::{self, Write},
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use common::namespace;
use harness::{Bench, Case};
use pinbuf::{Policy, Pool, Sender, rustls::Session};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivatePkcs8KeyDer, ServerName},
};
use way::{BATCH, Way};

const OWNED: &str = "rustls::StreamOwned";
const LARGER: &str = "rustls::StreamOwned, larger buffer";
const PREFER: &str = "pinbuf, Prefer";
const AUTO: &str = "pinbuf, Auto";
const TASKS: &str = "pinbuf in a task of tokio, Auto";
const ALONE: &str = "encryption into buffers, unsent";

const KIB: usize = 1 << 10;
/// The largest buffers; those of `rustls` have 64 KiB by default.
const LARGEST: usize = 256 * KIB;
/// Colder than the caches next to the CPU.
const DATA: usize = 32 << 20;

fn main() {
    let furnished = namespace::enter().and_then(|()| fake_peer::furnish());
    let mut bench = Bench::new("tls");
    let warm_up = bench.size(Duration::from_secs(1), Duration::from_millis(10));
    let lens = bench.size(&[16, 256, 1024][..], &[256]);
    for (way, ends) in [(Way::FakePeer, ""), (Way::Loopback, ", both ends")] {
        let name = format!("TLS 1.3, {way}{ends}");
        let mut table = bench.table(&name, "ms of CPU per GB").rounds(11);
        for &kib in lens {
            table.case(&format!("{kib} KiB"), OWNED, |case| {
                enter(case, way, kib * KIB, warm_up, &furnished);
            });
        }
    }
    bench.finish();
}

fn enter<'a>(
    case: &mut Case<'a>,
    way: Way,
    len: usize,
    warm_up: Duration,
    furnished: &'a Result<(), String>,
) {
    for name in [OWNED, LARGER, PREFER, AUTO, TASKS, ALONE] {
        case.row(name, move || {
            if way == Way::FakePeer {
                furnished.clone()?;
            }
            let (near, mut far) = way.connect();
            let mut contestant: Box<dyn Contestant> = match name {
                OWNED => Box::new(StreamOwned::new(client(), TcpStream::from(near))),
                LARGER => {
                    let mut client = client();
                    client.set_buffer_limit(Some(LARGEST));
                    Box::new(StreamOwned::new(client, TcpStream::from(near)))
                }
                PREFER => Box::new(Pinbuf::new(near, Some(Policy::Prefer))),
                AUTO => Box::new(Pinbuf::new(near, Some(Policy::Auto))),
                #[cfg(feature = "tokio")]
                TASKS => Box::new(tasks::Pinbuf::new(near)),
                #[cfg(not(feature = "tokio"))]
                TASKS => return Err("no feature `tokio`".to_owned()),
                ALONE => Box::new(Pinbuf::new(near, None)),
                other => unreachable!("{other}"),
            };
            let data = vec![7; DATA];
            let mut pieces = (0..DATA / len).cycle();
            let batch = move || {
                for at in pieces.by_ref().take(BATCH / len) {
                    contestant.send(&data[at * len..][..len]);
                    far.take(contestant.fd(), len);
                }
                far.take_all(contestant.fd());
                contestant.drain();
            };
            Ok(way.ms_per_gb(len, warm_up, batch))
        });
    }
}

trait Contestant {
    /// Sends `plaintext` as records.
    fn send(&mut self, plaintext: &[u8]);
    /// Waits for all releases.
    fn drain(&mut self);
    fn fd(&self) -> BorrowedFd<'_>;
}

impl Contestant for StreamOwned<ClientConnection, TcpStream> {
    fn send(&mut self, plaintext: &[u8]) {
        self.write_all(plaintext).and_then(|()| self.flush()).expect("the connection lasts");
    }

    fn drain(&mut self) {}

    fn fd(&self) -> BorrowedFd<'_> {
        self.sock.as_fd()
    }
}

/// A session and a sender, as in `TlsStream::send`.
struct Pinbuf {
    session: Session,
    sender: Sender,
    pool: Pool,
    is_sent: bool,
}

impl Pinbuf {
    /// Without a policy the buffers are dropped.
    fn new(near: OwnedFd, policy: Option<Policy>) -> Self {
        let sender = Sender::builder().policy(policy.unwrap_or_default()).adopt(near);
        Self {
            session: session(),
            sender: sender.expect("the socket is connected"),
            pool: pool(),
            is_sent: policy.is_some(),
        }
    }
}

impl Contestant for Pinbuf {
    fn send(&mut self, mut plaintext: &[u8]) {
        while !plaintext.is_empty() {
            let most = plaintext.len().min(LARGEST);
            let len = self.session.encrypted_len(&plaintext[..most]).expect("established");
            let mut buf = self.pool.alloc(len.min(LARGEST)).expect("slots are recycled");
            let taken = self.session.encrypt(plaintext, &mut buf).expect("established");
            plaintext = &plaintext[taken..];
            if self.is_sent {
                self.sender.send(buf).expect("the connection lasts");
            }
        }
    }

    fn drain(&mut self) {
        self.sender.drain(None).expect("the error queue can be read");
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }
}

/// With a class for a record of 16 KiB.
fn pool() -> Pool {
    let pool = Pool::builder().class(20 * KIB, 128).class(LARGEST, 16).build();
    pool.expect("there is memory")
}

/// The same in a task.
#[cfg(feature = "tokio")]
mod tasks {
    use std::{
        net::TcpStream,
        os::fd::{AsFd, BorrowedFd, OwnedFd},
    };

    use pinbuf::{Pool, rustls::Session, tokio::Stream};
    use tokio::runtime::{Builder, Runtime};

    use super::{Contestant, LARGEST, pool, session};

    /// A session and a stream, as in `rustls::tokio::TlsStream::send`.
    pub(super) struct Pinbuf {
        session: Session,
        stream: Stream,
        pool: Pool,
        runtime: Runtime,
    }

    impl Pinbuf {
        pub(super) fn new(near: OwnedFd) -> Self {
            let runtime = Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("there are descriptors");
            let entered = runtime.enter();
            let stream = Stream::new(TcpStream::from(near)).expect("the socket is connected");
            drop(entered);
            Self { session: session(), stream, pool: pool(), runtime }
        }
    }

    impl Contestant for Pinbuf {
        fn send(&mut self, mut plaintext: &[u8]) {
            let Self { session, stream, pool, runtime } = self;
            runtime.block_on(async {
                while !plaintext.is_empty() {
                    let most = plaintext.len().min(LARGEST);
                    let len = session.encrypted_len(&plaintext[..most]).expect("established");
                    let buf = pool.alloc_async(len.min(LARGEST)).await;
                    let mut buf = buf.expect("slots are recycled");
                    plaintext =
                        &plaintext[session.encrypt(plaintext, &mut buf).expect("established")..];
                    stream.send(buf).await.expect("the connection lasts");
                }
            });
        }

        fn drain(&mut self) {
            self.runtime.block_on(self.stream.drain()).expect("the error queue can be read");
        }

        fn fd(&self) -> BorrowedFd<'_> {
            self.stream.get_ref().as_fd()
        }
    }
}

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a key");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a certificate");
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let server = ServerConfig::builder().with_no_client_auth();
    let server = server.with_single_cert(vec![made.cert.der().clone()], key.into());
    (Arc::new(client), Arc::new(server.expect("the key fits")))
}

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}

/// Lets the server read `bytes`, and returns its answer.
fn answer(server: &mut ServerConnection, mut bytes: &[u8]) -> io::Result<Vec<u8>> {
    while !bytes.is_empty() {
        server.read_tls(&mut bytes)?;
        server.process_new_packets().map_err(io::Error::other)?;
    }
    let mut answer = Vec::new();
    while server.wants_write() {
        server.write_tls(&mut answer)?;
    }
    Ok(answer)
}

/// A client after the handshake.
fn client() -> ClientConnection {
    let (client, server) = configs();
    let mut client = ClientConnection::new(client, name()).expect("the configuration is right");
    let mut server = ServerConnection::new(server).expect("the configuration is right");
    while client.is_handshaking() || client.wants_write() {
        let mut hello = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut hello).expect("a vector takes everything");
        }
        let answer = answer(&mut server, &hello).expect("a handshake");
        let mut answer = &answer[..];
        while !answer.is_empty() {
            client.read_tls(&mut answer).expect("a slice");
            client.process_new_packets().expect("a handshake");
        }
    }
    client
}

/// A session after the handshake.
fn session() -> Session {
    let (client, server) = configs();
    let mut session = Session::client(client, name()).expect("the configuration is right");
    let mut server = ServerConnection::new(server).expect("the configuration is right");
    loop {
        session.process().expect("a handshake");
        let answer = answer(&mut server, &session.take_outgoing()).expect("a handshake");
        if !session.is_handshaking() {
            return session;
        }
        let room = session.room();
        room[..answer.len()].copy_from_slice(&answer);
        session.received(answer.len());
    }
}
