//! An HTTP/1.1 file server over `pinbuf::tokio`, as an example of a server whose memory is bounded.
//!
//! ```console
//! $ cargo run --release -p file_server -- FOLDER --listen 127.0.0.1:8080
//! ```
//!
//! # The way of the bytes
//!
//! | bytes | way |
//! |---|---|
//! | head of an answer | by copy, in one call with the first piece of the body |
//! | body of 16 KiB or more | `pread` into a buffer of the pool, and from there without a copy |
//! | file sent lately | out of the cache: one `SharedBuf`, on its way to any number of clients |
//!
//! A send takes the buffer, and the pool gets the buffer back after the release. So a changed file, a slow client or
//! a reset connection never changes bytes on their way.
//!
//! # TLS
//!
//! ```console
//! $ cargo run --release -p file_server -- FOLDER --tls-cert chain.pem --tls-key key.pem
//! ```
//!
//! The same code, over `pinbuf::rustls::tokio::TlsStream`. Plaintext comes from the same buffers and the same cache, and
//! records are encrypted into buffers of a second pool of the same size, plus 16 KiB for each connection. `sendfile` cannot
//! do this without kernel TLS.
//!
//! # When `sendfile` is the better choice
//!
//! For a file on disk, sent unchanged and without TLS: usually. `sendfile` needs no buffers, and saves the `pread`,
//! which copies from the page cache into the buffer. `benches/README.md` compares both.
//!
//! This server is for the rest: bytes made or kept in memory. The cache shows the point. A hot file is read once,
//! and then costs no copy and no file system for any client. The same code would send rendered pages, rows of a
//! database or pieces of an object store.
//!
//! # Bounds
//!
//! | limit | against |
//! |---|---|
//! | one pool, allocated at the start | bodies that fill the memory |
//! | 8 buffers in flight for each connection | a slow client with all buffers |
//! | pieces of 12 KiB by copy while no buffer is free | many slow clients with all buffers |
//! | a time for a TLS handshake, that of a head | clients that stop halfway |
//! | connections at a time; further clients wait in the listener's queue | floods |
//! | 16 KiB and 100 fields for a head, and a time for the whole head | endless and slow heads |
//! | a time without a request | idle connections |
//! | a time without progress of an answer | clients that do not read |
//! | no bodies of requests | uploads, and requests smuggled in bodies |
//! | 2000 names in a listing | huge folders |
//!
//! A client that reads a little now and then keeps its connection. Such clients can use up the connections, as with
//! most servers. A proxy in front can demand a least rate. The log is written by the threads that serve: a reader of the
//! log that stops reading stops the server, and `--quiet` writes none.
//!
//! # Files
//!
//! Links are followed inside the root. The check comes after the open, on the file itself, so no exchange of a folder
//! for a link comes between. The server needs `/proc` for that. Names with a dot in front are not served: neither `..`
//! nor `.git`. Devices, pipes and sockets are never opened.
//!
//! A cached file is found by device, inode, length and both time stamps, so any change leaves the cached bytes behind.
//! A file changed within the last seconds is not cached, because a second change could leave the stamps as they are.
//! Programs that write through a mapping change the stamps late: start the server with `--cache 0` for such files.
//!
//! # Parsers
//!
//! Heads are parsed by `httparse`, dates by `httpdate`, paths by `percent-encoding`, and `mime_guess` names the types.
//! hyper has more of HTTP, but takes bodies as `&[u8]` in its writes, which cannot lend a buffer to the kernel.
//! Several ranges in one request are answered with the whole file, as RFC 9110 allows.

mod answer;
mod conditions;
mod connection;
mod pieces;
mod request;
mod root;
mod server;
mod settings;
mod shared;
mod status;
mod tls;
mod transport;

pub use self::{
    server::{Server, Summary},
    settings::{Settings, ZeroCopy},
};
