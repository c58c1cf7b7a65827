//! The sockets that a stream takes over.

use std::{
    io::{self, Read},
    net,
    os::unix,
};

use crate::sender::Socket;

/// A socket that a [`Stream`](super::Stream) can take over.
///
/// | socket | sends |
/// |---|---|
/// | `tokio::net::TcpStream`, `std::net::TcpStream` | without copy where that pays |
/// | `tokio::net::UdpSocket`, `std::net::UdpSocket`, connected or not | the same, datagrams |
/// | `tokio::net::UnixStream`, `std::os::unix::net::UnixStream` | by copy |
///
/// A socket of tokio is deregistered from its runtime first. A socket of the standard library is made
/// non-blocking. Sealed.
///
/// ```
/// use pinbuf::tokio::{IntoSocket, Stream};
/// use std::io;
///
/// fn take_over<T: IntoSocket>(socket: T) -> io::Result<Stream<T::Socket>> {
///     Stream::new(socket)
/// }
/// ```
pub trait IntoSocket: private::Sealed {
    /// The socket of the standard library.
    type Socket: Socket;

    /// Takes the socket out of its runtime.
    #[doc(hidden)]
    fn into_socket(self) -> io::Result<Self::Socket>;
}

/// A stream socket of the standard library, which a [`Stream`](super::Stream) reads from. Sealed.
pub trait ReadSocket: Socket + private::Sealed {
    /// Reads without waiting.
    #[doc(hidden)]
    fn read_now(&self, into: &mut [u8]) -> io::Result<usize>;
}

macro_rules! sockets {
    ($($of_tokio:ty => $of_std:ty),+ $(,)?) => {$(
        impl IntoSocket for $of_tokio {
            type Socket = $of_std;

            fn into_socket(self) -> io::Result<$of_std> {
                self.into_std()
            }
        }

        impl IntoSocket for $of_std {
            type Socket = Self;

            fn into_socket(self) -> io::Result<Self> {
                self.set_nonblocking(true)?;
                Ok(self)
            }
        }

        impl private::Sealed for $of_tokio {}
        impl private::Sealed for $of_std {}
    )+};
}

sockets! {
    ::tokio::net::TcpStream => net::TcpStream,
    ::tokio::net::UdpSocket => net::UdpSocket,
    ::tokio::net::UnixStream => unix::net::UnixStream,
}

macro_rules! read_sockets {
    ($($socket:ty),+) => {$(
        impl ReadSocket for $socket {
            fn read_now(&self, into: &mut [u8]) -> io::Result<usize> {
                let mut socket = self;
                socket.read(into)
            }
        }
    )+};
}

read_sockets!(net::TcpStream, unix::net::UnixStream);

mod private {
    /// Not to be implemented elsewhere.
    pub trait Sealed {}
}
