//! The destination's part in opening and closing the channels.

use std::{
    fmt,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    destination::Config,
    failure::{Code, Failure},
    source::pump::KEEP_ALIVE,
    wire::{
        ANSWERS, Abilities, Header, MAX_CHANNELS, Offer, ProtocolError, Stream, goodbye,
        read_exact, read_message,
    },
};

/// The connections of one migration.
pub struct Channels {
    /// The channels, in order.
    pub streams: Vec<Stream>,
    pub answers: Answers,
    /// The sockets of all connections, to end them: the channels', then the answers'.
    pub sockets: Vec<TcpStream>,
    pub offer: Offer,
    pub session: u64,
}

/// The connections so far.
#[derive(Default)]
struct Arrived {
    /// Session and number of channels.
    first: Option<(u64, u16)>,
    offer: Option<Offer>,
    /// The channels, then the answers.
    streams: Vec<Option<(Stream, TcpStream)>>,
}

impl Channels {
    /// Waits for a source and all its connections. Sets `started` at the first.
    pub fn accept(
        listener: &TcpListener,
        config: &Config<'_>,
        started: &mut Option<Instant>,
    ) -> Result<Self, Failure> {
        let accepting = |e: io::Error| Failure::io("accepting a connection", &e);
        listener.set_nonblocking(true).map_err(accepting)?;
        let mut arrived = Arrived::default();
        while arrived.first.is_none() || arrived.streams.iter().any(Option::is_none) {
            let until = started.map(|at| at + config.stall_timeout);
            if !config.stop.wait_readable(listener, until)? {
                return Err(Failure::peer_gone("the source did not open all its channels"));
            }
            let tcp = match listener.accept() {
                Ok((tcp, _)) => tcp,
                // A vanished source leaves no connection to accept.
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    continue;
                }
                Err(e) => return Err(accepting(e)),
            };
            started.get_or_insert_with(Instant::now);
            let prepared = prepare(&tcp, config.stall_timeout);
            let socket = prepared.map_err(|e| Failure::io("preparing a connection", &e))?;
            let opened = Stream::accept(tcp, config.tls, config.stall_timeout);
            let mut stream = opened.map_err(|e| Failure::io("TLS handshake", &e))?;
            match arrived.greet(&mut stream, &socket, config) {
                Ok(place) => arrived.streams[place] = Some((stream, socket)),
                Err(failure) => {
                    let last = goodbye(failure.code as u8, &failure.message);
                    let _ = stream.write_all(&last).and_then(|()| stream.flush());
                    linger(&socket, Duration::from_millis(200));
                    return Err(failure);
                }
            }
        }
        let (mut streams, mut sockets): (Vec<_>, Vec<_>) =
            arrived.streams.into_iter().flatten().unzip();
        let (Some(offer), Some((session, _)), Some(answers)) =
            (arrived.offer, arrived.first, streams.pop())
        else {
            return Err(protocol(ProtocolError::Hello("the source's offer is missing")));
        };
        let patience = Some(config.stall_timeout);
        sockets.iter_mut().for_each(|socket| _ = socket.set_read_timeout(patience));
        Ok(Self { streams, answers: Answers(Mutex::new(answers)), sockets, offer, session })
    }

    /// Tells every connection that the migration can begin.
    pub fn welcome(&mut self) -> io::Result<()> {
        let abilities = Abilities(Abilities::ALL);
        let welcome = Header::Welcome { session: self.session, abilities }.encode();
        for stream in &mut self.streams {
            stream.write_all(&welcome)?;
            stream.flush()?;
        }
        self.answers.send(&welcome)
    }

    /// Tells the outcome, in time for the source to read, and closes.
    pub fn goodbye(self, failure: Option<&Failure>, patience: Duration) {
        let Some(socket) = self.sockets.last() else { return };
        if let Some(failure) = failure {
            let _ = self.answers.send(&goodbye(failure.code as u8, &failure.message));
        }
        // A close with unread bytes would reset the connection and might overtake the goodbye.
        let patience = if failure.is_some() { Duration::from_millis(500) } else { patience };
        linger(socket, patience);
    }
}

impl Arrived {
    /// Reads the `Hello` of a connection and returns its place.
    fn greet(
        &mut self,
        stream: &mut Stream,
        socket: &TcpStream,
        config: &Config<'_>,
    ) -> Result<usize, Failure> {
        let mut timed = Timed { stream, socket, until: Instant::now() + config.stall_timeout };
        let lost = |e| lost(&e, "before the first round", config.stall_timeout);
        let header = Header::read(&mut timed).map_err(lost)?;
        let Header::Hello { session, abilities, channel, channels, bytes } = header else {
            return Err(refuse(&mut timed, header));
        };
        let hello = |why| Err(protocol(ProtocolError::Hello(why)));
        let place = match channel {
            ANSWERS => usize::from(channels),
            channel => usize::from(channel),
        };
        let is_channel = channel < channels || channel == ANSWERS;
        if channels == 0 || usize::from(channels) > MAX_CHANNELS || !is_channel {
            return hello("the source's Hello is out of range");
        }
        if *self.first.get_or_insert((session, channels)) != (session, channels) {
            return hello("another source connected while the channels were being opened");
        }
        self.streams.resize_with(usize::from(channels) + 1, || None);
        if self.streams[place].is_some() {
            return hello("the source opened a channel twice");
        }
        if channel == 0 {
            let mut offer = vec![0; bytes as usize];
            read_exact(&mut timed, &mut offer).map_err(lost)?;
            self.offer = Some(Offer::decode(abilities, &offer).map_err(protocol)?);
        } else if bytes != 0 {
            return hello("the source made a second offer");
        }
        Ok(place)
    }
}

/// Prepares a connection, and returns a second handle of its socket.
fn prepare(tcp: &TcpStream, patience: Duration) -> io::Result<TcpStream> {
    tcp.set_nonblocking(false)?;
    tcp.set_read_timeout(Some(patience))?;
    tcp.set_write_timeout(Some(patience))?;
    tcp.set_nodelay(true)?;
    tcp.try_clone()
}

/// A stream with a time for all reads together, against a source that sends byte by byte.
struct Timed<'a> {
    stream: &'a mut Stream,
    socket: &'a TcpStream,
    until: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => {
                self.socket.set_read_timeout(Some(left))?;
                self.stream.read(out)
            }
            _ => Err(ErrorKind::TimedOut.into()),
        }
    }
}

/// The connection of the answers, for all threads of the destination.
#[derive(Debug)]
pub struct Answers(Mutex<Stream>);

impl Answers {
    /// Sends the bytes of a frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(frame)?;
        stream.flush()
    }

    /// Runs a long task, with a sign of life to the source every second.
    pub fn keep_alive_while<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let (done, waiting) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                while waiting.recv_timeout(KEEP_ALIVE) == Err(RecvTimeoutError::Timeout) {
                    // A vanished source shows at the next read.
                    let _ = self.send(&Header::KeepAlive.encode());
                }
            });
            let result = work();
            drop(done);
            result
        })
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
