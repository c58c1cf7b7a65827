//! A certificate for both sides.

use std::{fs, path::Path, sync::Arc};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    pki_types::PrivatePkcs8KeyDer,
};

pub(crate) struct Identity {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Identity {
    /// Makes the certificate, and writes `certificate.pem` and `key.pem`.
    pub(crate) fn new(folder: &Path) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a key");
        let write = |name, text| fs::write(folder.join(name), text).expect("room for the files");
        write("certificate.pem", made.cert.pem());
        write("key.pem", made.signing_key.serialize_pem());
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a certificate");
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let server = ServerConfig::builder().with_no_client_auth();
        let server = server.with_single_cert(vec![made.cert.der().clone()], key.into());
        Self { client: Arc::new(client), server: Arc::new(server.expect("the key fits")) }
    }

    pub(crate) fn client(&self) -> ClientConnection {
        let name = "localhost".try_into().expect("a name");
        ClientConnection::new(Arc::clone(&self.client), name).expect("the configuration is right")
    }

    pub(crate) fn server(&self) -> ServerConnection {
        ServerConnection::new(Arc::clone(&self.server)).expect("the configuration is right")
    }
}
