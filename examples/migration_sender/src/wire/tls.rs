//! TLS 1.3 with certificates from files, required of both ends.

use std::{net::TcpStream, path::Path, sync::Arc};

use pinbuf::{
    Pool, Sender,
    rustls::{TlsError, TlsStream},
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
    version::TLS13,
};

use crate::failure::{Code, Failure};

/// The configurations of both roles, from one folder of files.
#[derive(Clone, Debug)]
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// Reads `ca.pem`, `cert.pem` and `key.pem`. `name` is the name that the destination's
    /// certificate must have; the source's certificate needs the signature alone.
    pub fn from_folder(folder: &Path, name: &str) -> Result<Self, Failure> {
        let failed = |file: &str, why: &dyn std::fmt::Display| {
            let path = folder.join(file);
            Failure::new(Code::Io, format!("--tls: {}: {why}", path.display()))
        };
        let certificates = |file: &str| {
            let read = CertificateDer::pem_file_iter(folder.join(file));
            let all: Result<Vec<_>, _> = read.and_then(Iterator::collect);
            match all {
                Ok(all) if all.is_empty() => Err(failed(file, &"no certificate in the file")),
                Ok(all) => Ok(all),
                Err(error) => Err(failed(file, &error)),
            }
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates("ca.pem")? {
            roots.add(certificate).map_err(|e| failed("ca.pem", &e))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates("cert.pem")?;
        let key = || {
            PrivateKeyDer::from_pem_file(folder.join("key.pem")).map_err(|e| failed("key.pem", &e))
        };
        let provider = Arc::new(ring::default_provider());
        let config = |error: rustls::Error| failed("cert.pem", &error);
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(config)?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key()?)
            .map_err(config)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|e| failed("ca.pem", &e))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(config)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key()?)
            .map_err(config)?;
        // A channel has one direction: the source would never read a ticket.
        server.send_tls13_tickets = 0;
        let name = ServerName::try_from(name.to_string())
            .map_err(|e| Failure::new(Code::Usage, format!("--tls-name {name}: {e}")))?;
        Ok(Self { client: Arc::new(client), server: Arc::new(server), name })
    }

    /// The source's handshake.
    pub fn connect(&self, sender: Sender<TcpStream>, pool: &Pool) -> Result<TlsStream, TlsError> {
        TlsStream::connect(sender, pool, Arc::clone(&self.client), self.name.clone())
    }

    /// The destination's handshake.
    pub fn accept(&self, sender: Sender<TcpStream>, pool: &Pool) -> Result<TlsStream, TlsError> {
        TlsStream::accept(sender, pool, Arc::clone(&self.server))
    }
}
