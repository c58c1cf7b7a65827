//! The source's part in opening a channel.

use std::{
    io::{ErrorKind, Read},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use crate::{
    failure::{Code, Failure},
    wire::{Header, ProtocolError, read_message},
};

/// Connects to the first answering target.
pub fn connect(targets: &[SocketAddr], patience: Duration) -> Result<TcpStream, Failure> {
    let mut failure = Failure::new(Code::Io, "the address has no IP addresses");
    for target in targets {
        match TcpStream::connect_timeout(target, patience) {
            Ok(stream) => {
                // Small frames must not wait; without the option the socket is only slower.
                let _ = stream.set_nodelay(true);
                let _ = stream.set_read_timeout(Some(patience));
                return Ok(stream);
            }
            Err(error) => {
                failure = Failure::io(
                    format_args!(
                        "cannot connect to {target}; is `migration_sender receive` running there?"
                    ),
                    &error,
                );
            }
        }
    }
    Err(failure)
}

/// The name of the socket's congestion control, where the system tells.
pub fn congestion_control(stream: &TcpStream) -> Option<String> {
    let name = socket2::SockRef::from(stream).tcp_congestion().ok()?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8(name[..end].to_vec()).ok()
}

/// Waits for the destination's consent on one connection.
pub fn welcome(stream: &mut impl Read, session: u64) -> Result<(), Failure> {
    match Header::read(stream) {
        Ok(Header::Welcome { session: theirs, .. }) if theirs == session => Ok(()),
        Ok(Header::Goodbye { code, bytes }) => {
            Err(their_failure(code, &read_message(stream, bytes).unwrap_or_default()))
        }
        Ok(header) => {
            Err(Failure::new(Code::Io, ProtocolError::Unexpected(header.name()).to_string()))
        }
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            Err(Failure::io("from the destination", &error))
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(Failure::interrupted()),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Err(Failure::new(Code::Io, "the destination does not answer: is it stopped?"))
        }
        Err(error) => Err(Failure::peer_gone(format!(
            "the destination closed the connection before the migration began: {error}"
        ))),
    }
}

/// The failure in the destination's `Goodbye`.
pub fn their_failure(code: u8, message: &str) -> Failure {
    Failure::new(Code::from_wire(code), format!("the destination gave up: {message}"))
}

/// Ends all connections in both directions, and so wakes every thread blocked in one.
pub fn hang_up(streams: &[TcpStream]) {
    for stream in streams {
        // A closed connection needs no shutdown.
        let _ = stream.shutdown(Shutdown::Both);
    }
}
