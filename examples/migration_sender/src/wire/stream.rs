//! A connection of either kind: plain TCP, or TLS over TCP.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use pinbuf::{Policy, Pool, Sender, rustls::TlsStream};

use super::Tls;

/// A blocking connection. Everything written is sent by [`flush`](Write::flush).
#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

impl Stream {
    /// The source's end of a connection.
    pub fn connect(tcp: TcpStream, tls: Option<&Tls>, patience: Duration) -> io::Result<Self> {
        match tls {
            None => Ok(Self::Plain(tcp)),
            Some(tls) => {
                let stream = tls.connect(sender(tcp, patience)?, &pool()?)?;
                Ok(Self::Tls(Box::new(stream)))
            }
        }
    }

    /// The destination's end of a connection.
    pub fn accept(tcp: TcpStream, tls: Option<&Tls>, patience: Duration) -> io::Result<Self> {
        match tls {
            None => Ok(Self::Plain(tcp)),
            Some(tls) => {
                let stream = tls.accept(sender(tcp, patience)?, &pool()?)?;
                Ok(Self::Tls(Box::new(stream)))
            }
        }
    }
}

/// A sender for few and small frames.
fn sender(tcp: TcpStream, patience: Duration) -> io::Result<Sender<TcpStream>> {
    Ok(Sender::builder().policy(Policy::Never).max_hold(patience).adopt(tcp)?)
}

fn pool() -> io::Result<Pool> {
    Pool::new(16 << 10, 4).map_err(io::Error::other)
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(out),
            Self::Tls(stream) => stream.read(out),
        }
    }

    fn read_vectored(&mut self, out: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read_vectored(out),
            Self::Tls(stream) => stream.read_vectored(out),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
