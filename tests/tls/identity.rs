//! ALPN and certificates, by the user's own configuration.

use pinbuf::rustls::{Session, TlsError};
use rustls::{AlertDescription, Error, ProtocolVersion, version::TLS13};
use std::sync::Arc;

use crate::{
    common::{pair, pool},
    peer::{Role, SetUp, VERSIONS, everywhere},
};

#[test]
fn the_protocol_of_both_sides_is_agreed_upon() {
    everywhere(|set_up| {
        let mut set_up = set_up.copy();
        set_up.client.alpn_protocols = vec![b"one".to_vec(), b"two".to_vec()];
        set_up.server.alpn_protocols = vec![b"two".to_vec(), b"three".to_vec()];
        let (stream, mut peer) = set_up.connect(&pool(4096, 2));
        assert_eq!(stream.session().connection().alpn_protocol(), Some(&b"two"[..]));
        assert_eq!(peer.state().alpn_protocol(), Some(&b"two"[..]));
        let version = stream.session().connection().protocol_version();
        assert_eq!(version, peer.state().protocol_version());
        assert!(matches!(version, Some(ProtocolVersion::TLSv1_2 | ProtocolVersion::TLSv1_3)));
    });
}

#[test]
fn no_common_protocol_is_an_error() {
    everywhere(|set_up| {
        let mut set_up = set_up.copy();
        set_up.client.alpn_protocols = vec![b"one".to_vec()];
        set_up.server.alpn_protocols = vec![b"two".to_vec()];
        let (stream, _) = set_up.shake_hands(pair(), &pool(4096, 2));
        let error = stream.unwrap_err();
        let expected = match set_up.role {
            Role::Server => matches!(error, TlsError::Tls(Error::NoApplicationProtocol)),
            Role::Client => {
                let alert = AlertDescription::NoApplicationProtocol;
                matches!(&error, TlsError::Tls(Error::AlertReceived(got)) if *got == alert)
            }
        };
        assert!(expected, "{error}");
    });
}

#[test]
fn certificates_of_both_sides_are_shown() {
    for version in VERSIONS {
        for role in [Role::Client, Role::Server] {
            let set_up = SetUp::with_client_certificate(role, version, true);
            let (mut stream, mut peer) = set_up.connect(&pool(4096, 2));
            assert_eq!(stream.session().connection().peer_certificates().unwrap().len(), 1);
            assert_eq!(peer.state().peer_certificates().unwrap().len(), 1);
            stream.send(b"hello").unwrap();
            assert_eq!(peer.fetch(5), b"hello");
        }
    }
}

#[test]
fn a_client_without_the_required_certificate_is_refused() {
    for version in VERSIONS {
        let set_up = SetUp::with_client_certificate(Role::Server, version, false);
        let (stream, _) = set_up.shake_hands(pair(), &pool(4096, 2));
        let error = stream.unwrap_err();
        assert!(matches!(error, TlsError::Tls(Error::NoCertificatesPresented)), "{error}");
    }
}

#[test]
fn an_untrusted_server_is_refused_and_told() {
    for version in VERSIONS {
        let mut set_up = SetUp::new(Role::Client, version);
        let other = SetUp::new(Role::Client, version);
        set_up.client = other.client;
        let (stream, peer) = set_up.shake_hands(pair(), &pool(4096, 2));
        let error = stream.unwrap_err();
        assert!(matches!(error, TlsError::Tls(Error::InvalidCertificate(_))), "{error}");
        let told = peer.err().unwrap().into_inner().unwrap();
        let told = told.downcast_ref::<Error>().unwrap();
        assert!(matches!(told, Error::AlertReceived(AlertDescription::DecryptError)), "{told}");
    }
}

#[test]
fn a_configuration_with_early_data_is_refused() {
    let mut server = SetUp::new(Role::Server, &TLS13).server;
    server.max_early_data_size = 1;
    let error = Session::server(Arc::new(server)).unwrap_err();
    assert!(matches!(error, TlsError::EarlyData), "{error}");
}
