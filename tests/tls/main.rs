//! TLS streams against peers that are not ours: `rustls::StreamOwned`, OpenSSL and curl.

#[path = "../common/mod.rs"]
mod common;
mod ends;
mod foreign;
mod identity;
mod keys;
mod peer;
mod reuse;
mod roundtrip;
#[cfg(feature = "tokio")]
mod tokio;
