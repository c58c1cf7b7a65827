//! TLS streams against peers that are not ours: `rustls::StreamOwned`, OpenSSL and curl.

#[path = "../common/mod.rs"]
mod common;
mod ends;
mod identity;
mod keys;
mod peer;
mod roundtrip;
