//! TLS streams whose records are encrypted straight into buffers of a pool, over the `rustls` crate.
//!
//! A TLS library with a ciphertext buffer of its own writes the next record where the kernel may still
//! read the last one, so such a library needs a copy. Here each record is written into a
//! [`PinnedBuf`](crate::PinnedBuf), which belongs to the [`Sender`](crate::Sender) until the kernel has
//! released the memory.
//!
//! | type | does |
//! |---|---|
//! | [`TlsStream`] | a blocking stream over TCP: `Read`, `Write`, sends with tickets, an end in order |
//! | [`Session`] | the TLS connection without a socket: received bytes to plaintext, plaintext to filled buffers |
//! | `tokio::TlsStream` | the same stream for tasks of tokio, with the feature `tokio` too |
//! | [`TlsError`] | the errors of all |
//!
//! The user makes the [`ClientConfig`](::rustls::ClientConfig) or
//! [`ServerConfig`](::rustls::ServerConfig), and so chooses the provider of the ciphers, the
//! certificates of both sides, the versions and ALPN. This crate depends on `rustls` 0.23.46 or
//! newer, without any provider. Early data (0-RTT) is neither sent nor accepted.
//!
//! ```no_run
//! use pinbuf::{Pool, Sender, rustls::TlsStream};
//! use std::{error::Error, net::TcpStream, sync::Arc, time::Duration};
//! use ::rustls::{ClientConfig, pki_types::ServerName};
//!
//! fn upload(data: &[u8], config: Arc<ClientConfig>) -> Result<(), Box<dyn Error>> {
//!     let pool = Pool::new(256 << 10, 16)?;
//!     let socket = TcpStream::connect("example.com:443")?;
//!     let sender = Sender::builder().adopt(socket)?;
//!     let name = ServerName::try_from("example.com")?;
//!     let mut stream = TlsStream::connect(sender, &pool, config, name)?;
//!     stream.send(data)?; // encrypted into buffers of the pool, which are the kernel's from here on
//!     let report = stream.close(Some(Duration::from_secs(30)));
//!     assert!(report.drained, "{report:?}");
//!     Ok(())
//! }
//! ```
//!
//! The chapter [`guide::tls`](crate::guide::tls) has a whole program. The module `tokio` has another, in tasks.
//!
//! # Copies
//!
//! With `rustls` 0.23, for each byte:
//!
//! | sending | receiving |
//! |---|---|
//! | `rustls` copies the plaintext into a `Vec` for each record, and encrypts there | the kernel copies the ciphertext into the session's memory |
//! | `rustls` copies the record from the `Vec` into the buffer of the pool | `rustls` decrypts there, and copies the plaintext into a `Vec` |
//! | none by the kernel, where zero copy works | the session copies the plaintext to the reader |
//!
//! So `rustls` itself makes two copies for a send, both within the caches next to the processor, and the
//! kernel's copy is replaced rather than removed. `rustls::StreamOwned` has the first copy and the
//! kernel's. The gain is therefore smaller than for plain sends: a tenth to a fifth of the processor time
//! for writes of 256 KiB and more where the kernel does not copy, and a loss at 16 KiB. The repository's
//! `benches/README.md` has the figures.
//!
//! A reader's slice that is smaller than the next record costs one more copy of what does not fit.
//!
//! # No kernel TLS
//!
//! With kernel TLS (`TCP_ULP`) the program gives plaintext to the kernel, which encrypts into pages of its
//! own. The memory of the program is read during the call, so there is nothing to release, and the kernel
//! refuses `MSG_ZEROCOPY` on such a socket (`EOPNOTSUPP`, measured on Linux 6.1 and 6.12). The other direction
//! is no better: ciphertext of this module on such a socket would be encrypted again. Use either: kernel TLS
//! with `sendfile` for files, this module for memory.
//!
//! # Secrets in memory
//!
//! The buffers of the pool hold ciphertext and nothing else, also before a send and after a failed one.
//! [`zero_on_recycle`](crate::pool::PoolBuilder::zero_on_recycle) has no use for them. It has one for a
//! pool from which the program takes the buffers of its plaintext.
//!
//! Plaintext lies in the memory of the program, in the `Vec`s of `rustls`, and, when it was received, in the
//! session. None of the last three is wiped: `rustls` frees received plaintext as it is, so that wiping the
//! session's part alone would give no assurance. A program that needs one can wipe in its allocator. Keys are
//! wiped by `rustls`.

mod error;
mod records;
mod session;
mod stream;
#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub mod tokio;

pub use self::{error::TlsError, session::Session, stream::TlsStream};
