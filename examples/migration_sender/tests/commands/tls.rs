//! TLS with certificates of one authority at both ends.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::{
    lab::{TempDir, text},
    process::{STUCK, receive, start},
};

/// An authority, which makes folders for `--tls`.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    /// A folder with a certificate for the name, and with the certificate of `trusted`.
    fn folder(&self, name: &str, trusted: &Self) -> TempDir {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_string()]).unwrap();
        let dir = TempDir::new();
        fs::write(dir.file("ca.pem"), &trusted.1).unwrap();
        fs::write(dir.file("cert.pem"), params.signed_by(&key, &self.0).unwrap().pem()).unwrap();
        fs::write(dir.file("key.pem"), key.serialize_pem()).unwrap();
        dir
    }
}

/// The exit codes of both ends and their errors.
fn ends(source: &[&str], destination: &[&str]) -> [(Option<i32>, String); 2] {
    let (receiver, target) = receive("127.0.0.1", &[destination, &["--stall-timeout=3"]].concat());
    let args = ["send", &target, "--memory=4M", "--dirty-rate=0", "--stall-timeout=3"];
    let sender = start(&[&args, source].concat());
    [sender, receiver].map(|process| {
        let done = process.wait(STUCK);
        assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
        (done.status.and_then(|status| status.code()), done.stderr)
    })
}

fn option(dir: &TempDir) -> String {
    format!("--tls={}", text(Path::new(&dir.0)))
}

#[test]
fn certificates_of_one_authority_let_the_memory_through() {
    let authority = Authority::new();
    let (source, destination) =
        (authority.folder("here.test", &authority), authority.folder("there.test", &authority));
    let name = "--tls-name=there.test";
    let codes = ends(&[&option(&source), name], &[&option(&destination)]);
    assert_eq!(codes.each_ref().map(|(code, _)| *code), [Some(0); 2], "{codes:?}");
}

#[test]
fn a_peer_without_a_certificate_of_the_authority_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let name = "--tls-name=there.test";
    let good = authority.folder("there.test", &authority);
    let foreign = other.folder("there.test", &authority);
    let distrusting = other.folder("there.test", &other);
    let good = [option(&good), option(&foreign), option(&distrusting)];
    for (source, destination) in [
        // A source of another authority, a destination of another, and both strangers.
        (vec![good[1].as_str(), name], vec![good[0].as_str()]),
        (vec![good[0].as_str(), name], vec![good[1].as_str()]),
        (vec![good[2].as_str(), name], vec![good[0].as_str()]),
        // Another name, and one end without TLS.
        (vec![good[0].as_str(), "--tls-name=elsewhere.test"], vec![good[0].as_str()]),
        (vec![good[0].as_str(), name], vec![]),
        (vec![], vec![good[0].as_str()]),
    ] {
        let codes = ends(&source, &destination);
        for (code, error) in &codes {
            assert!(code.is_some_and(|code| code == 1), "{source:?} {destination:?} {error}");
        }
    }
}

#[test]
fn a_missing_file_of_the_folder_is_named() {
    let authority = Authority::new();
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        let dir = authority.folder("there.test", &authority);
        fs::remove_file(dir.file(file)).unwrap();
        let done = crate::process::run(&["--memory=1M", &option(&dir)]);
        done.expect(1);
        assert!(done.stderr.contains(file), "{}", done.stderr);
    }
}
