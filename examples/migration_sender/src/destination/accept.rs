//! The destination's part in opening and closing the channels.

use std::{
    fmt,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    destination::Config,
    failure::{Code, Failure},
    protocol::{Header, Layout, MAX_CHANNELS, ProtocolError, goodbye, read_message},
    report::mib,
    source::pump::KEEP_ALIVE,
};

/// The channels of one migration, in order.
pub struct Channels {
    pub streams: Vec<TcpStream>,
    pub layout: Layout,
    pub session: u64,
}

impl Channels {
    /// Waits for a source and all its channels. Sets `started` at the first.
    pub fn accept(
        listener: &TcpListener,
        config: &Config<'_>,
        started: &mut Option<Instant>,
    ) -> Result<Self, Failure> {
        let accepting = |e: io::Error| Failure::io("accepting a connection", &e);
        listener.set_nonblocking(true).map_err(accepting)?;
        let mut streams: Vec<Option<TcpStream>> = Vec::new();
        let mut first: Option<(u64, u64)> = None;
        while first.is_none() || streams.iter().any(Option::is_none) {
            let until = started.map(|at| at + config.stall_timeout);
            if !config.stop.wait_readable(listener, until)? {
                return Err(Failure::peer_gone("the source did not open all its channels"));
            }
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                // A vanished source leaves no connection to accept.
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    continue;
                }
                Err(e) => return Err(accepting(e)),
            };
            started.get_or_insert_with(Instant::now);
            let result = Self::greet(&stream, config, &mut first, &mut streams);
            match result {
                Ok(channel) => streams[channel] = Some(stream),
                Err(failure) => {
                    let _ = (&stream).write_all(&goodbye(failure.code as u8, &failure.message));
                    linger(&stream, Duration::from_millis(200));
                    return Err(failure);
                }
            }
        }
        let streams: Vec<_> = streams.into_iter().flatten().collect();
        let (session, memory_len) = first.unwrap_or_default();
        let layout = Layout { memory_len: memory_len as usize, channels: streams.len() };
        Ok(Self { streams, layout, session })
    }

    /// Reads the `Hello` of a connection and returns its channel.
    fn greet(
        mut stream: &TcpStream,
        config: &Config<'_>,
        first: &mut Option<(u64, u64)>,
        streams: &mut Vec<Option<TcpStream>>,
    ) -> Result<usize, Failure> {
        let prepared = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(config.stall_timeout)))
            .and_then(|()| stream.set_write_timeout(Some(config.stall_timeout)))
            .and_then(|()| stream.set_nodelay(true));
        prepared.map_err(|e| Failure::io("preparing a connection", &e))?;
        let header = Header::read(&mut stream)
            .map_err(|e| lost(&e, "before the first round", config.stall_timeout))?;
        let Header::Hello { session, memory_len, channel, channels } = header else {
            return Err(refuse(&mut stream, header));
        };
        let hello = |why| Err(protocol(ProtocolError::Hello(why)));
        let (channel, channels) = (usize::from(channel), usize::from(channels));
        if memory_len == 0 || channel >= channels || channels > MAX_CHANNELS {
            return hello("the source's Hello is out of range");
        }
        if memory_len > config.max_memory || usize::try_from(memory_len).is_err() {
            return Err(Failure::new(
                Code::Io,
                format!(
                    "the guest has {} of memory, more than --max-memory allows ({})",
                    mib(memory_len),
                    mib(config.max_memory)
                ),
            ));
        }
        if first.is_none() {
            streams.resize_with(channels, || None);
        }
        if *first.get_or_insert((session, memory_len)) != (session, memory_len)
            || streams.len() != channels
        {
            return hello("another source connected while the channels were being opened");
        }
        match streams[channel] {
            None => Ok(channel),
            Some(_) => hello("the source opened a channel twice"),
        }
    }

    /// Runs a long task, with a sign of life to the source every second.
    pub fn keep_alive_while<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let (done, waiting) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                while waiting.recv_timeout(KEEP_ALIVE) == Err(RecvTimeoutError::Timeout) {
                    // A vanished source shows at the next read.
                    let _ = (&self.streams[0]).write_all(&Header::KeepAlive.encode());
                }
            });
            let result = work();
            drop(done);
            result
        })
    }

    /// Tells the outcome, in time for the source to read, and closes.
    pub fn goodbye(self, failure: Option<&Failure>, patience: Duration) {
        let last = match failure {
            None => goodbye(0, ""),
            Some(failure) => goodbye(failure.code as u8, &failure.message),
        };
        let _ = (&self.streams[0]).write_all(&last);
        // A close with unread bytes would reset the connection and might overtake the goodbye.
        let patience = if failure.is_some() { Duration::from_millis(500) } else { patience };
        linger(&self.streams[0], patience);
    }
}

/// Ends the destination's stream and waits for the end of the source's.
fn linger(mut stream: &TcpStream, patience: Duration) {
    let until = Instant::now() + patience;
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.set_read_timeout(Some(patience.min(Duration::from_millis(100))));
    let mut scrap = [0; 16 << 10];
    while Instant::now() < until {
        match stream.read(&mut scrap) {
            Ok(0) => return,
            Err(e) if e.kind() != ErrorKind::WouldBlock && e.kind() != ErrorKind::TimedOut => {
                return;
            }
            _ => {}
        }
    }
}

/// The failure for an unexpected frame; a `Goodbye` explains itself.
pub fn refuse(stream: &mut impl Read, header: Header) -> Failure {
    match header {
        Header::Goodbye { code, bytes } => {
            let message = read_message(stream, bytes).unwrap_or_default();
            Failure::new(Code::from_wire(code), format!("the source gave up: {message}"))
        }
        header => protocol(ProtocolError::Unexpected(header.name())),
    }
}

/// The failure for an error of a read from the source.
pub fn lost(error: &io::Error, when: impl fmt::Display, stall: Duration) -> Failure {
    match error.kind() {
        ErrorKind::InvalidData => Failure::new(Code::Io, error.to_string()),
        ErrorKind::Interrupted => Failure::interrupted(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Failure::new(
            Code::Io,
            format!(
                "the source was silent for {} s {when}: is it stopped, or the network down?",
                stall.as_secs_f64()
            ),
        ),
        ErrorKind::UnexpectedEof => {
            Failure::peer_gone(format!("the source closed the connection {when}: was it killed?"))
        }
        _ => Failure::peer_gone(format!(
            "the source closed the connection {when}: was it killed? ({error})"
        )),
    }
}

/// The failure for a violation of the protocol.
pub fn protocol(error: ProtocolError) -> Failure {
    Failure::new(Code::Io, error.to_string())
}
