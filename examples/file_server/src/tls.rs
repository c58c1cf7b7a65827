//! TLS: the certificate, and the buffers for records.

use std::{fmt, io, path::Path, sync::Arc, time::Duration};

use pinbuf::{Pool, rustls::tokio::TlsStream, tokio::Stream};
use rustls::{
    ServerConfig,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::time::timeout;

use crate::{
    pieces::{MOST_PIECES, PIECE, SMALL_PIECE},
    settings::Settings,
};

/// Room for a head, and for the frames of the records.
const EXTRA: usize = 4 << 10;

/// Accepts TLS connections.
pub(crate) struct Tls {
    config: Arc<ServerConfig>,
    pool: Pool,
}

impl Tls {
    /// `None`: without TLS.
    pub(crate) fn new(settings: &Settings) -> io::Result<Option<Self>> {
        let (Some(certificate), Some(key)) = (&settings.tls_cert, &settings.tls_key) else {
            return Ok(None);
        };
        let config = config(certificate, key).map_err(io::Error::other)?;
        // A buffer for each connection, whatever the others hold, and large ones.
        let pool = Pool::builder()
            .class(SMALL_PIECE + EXTRA, settings.max_connections as usize)
            .class(PIECE + EXTRA, settings.slots())
            .sender_quota(2 * MOST_PIECES);
        Ok(Some(Self { config: Arc::new(config), pool: pool.build().map_err(io::Error::other)? }))
    }

    /// Makes the handshake.
    pub(crate) async fn accept(&self, stream: Stream, limit: Duration) -> io::Result<TlsStream> {
        let accepting = TlsStream::accept(stream, &self.pool, Arc::clone(&self.config));
        Ok(timeout(limit, accepting).await??)
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }
}

fn config(
    certificate: &Path,
    key: &Path,
) -> Result<ServerConfig, Box<dyn std::error::Error + Send + Sync>> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("pool", &self.pool).finish_non_exhaustive()
    }
}
