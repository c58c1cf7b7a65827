//! A TLS stream of the library, and a peer of plain `rustls`.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    ops::DerefMut,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use pinbuf::{
    Policy, Pool, Sender,
    rustls::{TlsError, TlsStream},
};
use rcgen::{CertifiedKey, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, CommonState, ConnectionCommon, RootCertStore, ServerConfig,
    ServerConnection, SideData, StreamOwned, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring::default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};

use crate::common::pair;

/// The side of the library.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Client,
    Server,
}

pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// Runs a test in both roles and both versions.
pub(crate) fn everywhere(test: impl Fn(&SetUp)) {
    for version in VERSIONS {
        for role in [Role::Client, Role::Server] {
            test(&SetUp::new(role, version));
        }
    }
}

/// A certificate that signs itself, with its key.
pub(crate) struct Identity {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Identity {
    pub(crate) fn new(name: &str) -> Self {
        let CertifiedKey { cert, signing_key }: CertifiedKey<KeyPair> =
            rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into();
        Self { certificate: cert.der().clone(), key }
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone()]
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        roots
    }
}

/// The settings of both sides.
pub(crate) struct SetUp {
    pub(crate) role: Role,
    pub(crate) version: &'static SupportedProtocolVersion,
    pub(crate) policy: Policy,
    pub(crate) client: ClientConfig,
    pub(crate) server: ServerConfig,
}

impl SetUp {
    pub(crate) fn new(role: Role, version: &'static SupportedProtocolVersion) -> Self {
        Self::with_provider(role, version, default_provider())
    }

    pub(crate) fn with_provider(
        role: Role,
        version: &'static SupportedProtocolVersion,
        provider: CryptoProvider,
    ) -> Self {
        let server = Identity::new("localhost");
        Self {
            role,
            version,
            policy: Policy::Auto,
            client: client_config(version, provider.clone(), server.roots(), None),
            server: server_config(version, provider, &server, None),
        }
    }

    /// As `new`, and the server asks for a certificate of the client; `shown` tells if there is one.
    pub(crate) fn with_client_certificate(
        role: Role,
        version: &'static SupportedProtocolVersion,
        shown: bool,
    ) -> Self {
        let (server, client) = (Identity::new("localhost"), Identity::new("client"));
        let roots = Some(client.roots());
        let shown = shown.then_some(&client);
        Self {
            role,
            version,
            policy: Policy::Auto,
            client: client_config(version, default_provider(), server.roots(), shown),
            server: server_config(version, default_provider(), &server, roots),
        }
    }

    pub(crate) fn copy(&self) -> Self {
        Self { client: self.client.clone(), server: self.server.clone(), ..*self }
    }

    /// The stream of the library over `near`, and the peer over `far`, each with the result of its
    /// handshake.
    pub(crate) fn shake_hands(
        &self,
        (near, far): (TcpStream, TcpStream),
        pool: &Pool,
    ) -> (Result<TlsStream, TlsError>, io::Result<Box<dyn Peer>>) {
        let sender = Sender::builder().policy(self.policy).adopt(near).unwrap();
        let peer = self.start_peer(far);
        let stream = match self.role {
            Role::Client => TlsStream::connect(sender, pool, self.client(), server_name()),
            Role::Server => TlsStream::accept(sender, pool, self.server()),
        };
        (stream, peer.join().unwrap())
    }

    /// The peer over `far`, which makes its handshake on a thread.
    pub(crate) fn start_peer(&self, far: TcpStream) -> JoinHandle<io::Result<Box<dyn Peer>>> {
        // A limit that only a hang reaches.
        far.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut peer: Box<dyn Peer> = match self.role {
            Role::Client => {
                Box::new(StreamOwned::new(ServerConnection::new(self.server()).unwrap(), far))
            }
            Role::Server => {
                let connection = ClientConnection::new(self.client(), server_name()).unwrap();
                Box::new(StreamOwned::new(connection, far))
            }
        };
        thread::spawn(move || {
            // The handshake, and the tickets of a server.
            peer.flush()?;
            Ok(peer)
        })
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        Arc::new(self.client.clone())
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::new(self.server.clone())
    }

    pub(crate) fn over(
        &self,
        sockets: (TcpStream, TcpStream),
        pool: &Pool,
    ) -> (TlsStream, Box<dyn Peer>) {
        let (stream, peer) = self.shake_hands(sockets, pool);
        (stream.unwrap(), peer.unwrap())
    }

    pub(crate) fn connect(&self, pool: &Pool) -> (TlsStream, Box<dyn Peer>) {
        self.over(pair(), pool)
    }
}

pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

pub(crate) fn client_config(
    version: &'static SupportedProtocolVersion,
    provider: CryptoProvider,
    roots: RootCertStore,
    identity: Option<&Identity>,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            builder.with_client_auth_cert(identity.chain(), identity.key.clone_key()).unwrap()
        }
    }
}

pub(crate) fn server_config(
    version: &'static SupportedProtocolVersion,
    provider: CryptoProvider,
    identity: &Identity,
    clients: Option<RootCertStore>,
) -> ServerConfig {
    let provider = Arc::new(provider);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(roots) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap(),
        ),
    };
    builder.with_single_cert(identity.chain(), identity.key.clone_key()).unwrap()
}

/// A stream of plain `rustls`, of either side.
pub(crate) trait Peer: Read + Write + Send {
    fn state(&mut self) -> &mut CommonState;
    fn refresh_keys(&mut self);
    fn socket(&mut self) -> &mut TcpStream;
}

impl<C, D> Peer for StreamOwned<C, TcpStream>
where
    C: DerefMut<Target = ConnectionCommon<D>> + Send,
    D: SideData + 'static,
{
    fn state(&mut self) -> &mut CommonState {
        &mut self.conn
    }

    fn refresh_keys(&mut self) {
        self.conn.refresh_traffic_keys().unwrap();
    }

    fn socket(&mut self) -> &mut TcpStream {
        &mut self.sock
    }
}

impl dyn Peer {
    /// Sends `close_notify`.
    pub(crate) fn close(&mut self) {
        self.state().send_close_notify();
        self.flush().unwrap();
    }

    /// Reads exactly `len` bytes.
    pub(crate) fn fetch(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read_exact(&mut bytes).unwrap();
        bytes
    }
}
