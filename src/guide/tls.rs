//! TLS: an upload and a download, encrypted into buffers of a pool.
//!
//! ```
//! use pinbuf::{Pool, Sender, rustls::TlsStream};
//! use std::{
//!     error::Error,
//!     io::{BufWriter, Read, Write},
//!     net::{TcpListener, TcpStream},
//!     sync::Arc,
//!     thread,
//!     time::Duration,
//! };
//! use ::rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
//!
//! const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));
//!
//! /// Reads a request up to its end, and answers with its length.
//! fn serve(socket: TcpStream, pool: &Pool, config: Arc<ServerConfig>) -> Result<(), Box<dyn Error + Send + Sync>> {
//!     let mut stream = TlsStream::accept(Sender::builder().adopt(socket)?, pool, config)?;
//!     let mut request = Vec::new();
//!     stream.read_to_end(&mut request)?; // a truncated request is an error
//!     writeln!(stream, "{} bytes", request.len())?;
//!     let report = stream.close(PATIENCE);
//!     assert!(report.drained, "{report:?}");
//!     Ok(())
//! }
//!
//! fn upload(
//!     socket: TcpStream,
//!     pool: &Pool,
//!     config: Arc<ClientConfig>,
//!     name: ServerName<'static>,
//! ) -> Result<String, Box<dyn Error>> {
//!     let sender = Sender::builder().adopt(socket)?;
//!     let mut stream = TlsStream::connect(sender, pool, config, name)?;
//!
//!     // Small writes are collected into records of 16 KiB, and the records into buffers.
//!     let mut writer = BufWriter::with_capacity(16 << 10, &mut stream);
//!     for line in 0..10_000 {
//!         writeln!(writer, "{line:09}")?;
//!     }
//!     writer.flush()?;
//!     drop(writer);
//!
//!     // A large piece goes straight into buffers. The tickets tell of the release.
//!     let tickets = stream.send(&[7; 1 << 20])?;
//!     for ticket in tickets {
//!         let fate = stream.sender_mut().wait(ticket, PATIENCE)?;
//!         assert!(fate.is_released(), "{fate:?}");
//!     }
//!
//!     stream.finish()?; // the end of the request
//!     let mut answer = String::new();
//!     stream.read_to_string(&mut answer)?;
//!     let report = stream.close(PATIENCE);
//!     assert!(report.drained, "{report:?}");
//!     Ok(answer)
//! }
//! # use ::rustls::{RootCertStore, pki_types::PrivatePkcs8KeyDer};
//! # let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
//! # let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
//! # let mut roots = RootCertStore::empty();
//! # roots.add(made.cert.der().clone())?;
//! # let client = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
//! # let server = Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into())?);
//!
//! // `client` and `server` are configurations of `rustls`, with the provider of your choice.
//! let pool = Pool::new(256 << 10, 8)?;
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let socket = TcpStream::connect(listener.local_addr()?)?;
//! let peer = thread::spawn({
//!     let pool = pool.clone();
//!     move || serve(listener.accept()?.0, &pool, server)
//! });
//! let answer = upload(socket, &pool, client, ServerName::try_from("localhost")?)?;
//! assert_eq!(answer, format!("{} bytes\n", 100_000 + (1 << 20)));
//! peer.join().unwrap().map_err(|error| error.to_string())?;
//! assert_eq!(pool.stats().free(), 8, "all memory is back");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Sizes
//!
//! A record holds up to 16 KiB of plaintext. A buffer gets as many records as fit, the last one shortened, and is
//! sent with one system call. Sends of less than the threshold of 16 KiB go by copy, so take buffers of 64 KiB or
//! more. A buffer of 256 KiB has 16 records.
//!
//! # The end
//!
//! `close_notify` is the only proof that the peer's stream is whole, and a read tells the difference: 0 bytes with
//! it, an error without it. [`finish`](crate::rustls::TlsStream::finish) sends ours, and the answer can still be
//! read. [`close`](crate::rustls::TlsStream::close) sends it too, and then waits for the peer's end, so that no
//! unread byte makes the kernel reset the connection.
//!
//! # Without blocking
//!
//! With the feature `tokio` too, the module `rustls::tokio` has the same stream for tasks: `send` waits for free
//! buffers and for room in the socket, and the traits are `AsyncRead` and `AsyncWrite`. The page of the module has
//! this chapter's program in tasks, and a table of the methods with the effect of a dropped future.
//!
//! [`Session`](crate::rustls::Session) is the TLS connection without the socket, for event loops and other runtimes.
