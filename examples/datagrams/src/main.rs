//! Sends one paced stream of trains of datagrams to many receivers. Every train is one buffer, sent to all
//! receivers without a copy for each, in one call for each.
//!
//! ```text
//! python3 tests/receiver.py                       # a receiver; prints its port
//! datagrams --to 127.0.0.1:PORT --to ... FILE
//! ```
//!
//! A datagram begins with the position of its payload in the stream, eight bytes, the highest first. A receiver
//! puts payloads at their positions, and sees gaps. The end is a datagram without payload, three times: its
//! position is the length of the stream.
//!
//! # Pacing
//!
//! With the queue `fq` on every way the trains have transmit times: the program runs [`AHEAD`] of the wire and
//! sleeps seldom. Otherwise the program sleeps before each train, and says so.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program, not the library")]

use std::{
    error::Error,
    fs::File,
    io::{self, Read},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    num::NonZero,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use pinbuf::{PinnedBuf, Policy, Pool, SendError, Sender, SharedBuf, pacing, sender::Datagram};
use sha2::{Digest, Sha256};

/// Length of the position that a datagram begins with.
const HEAD: usize = 8;

/// Buffers of the pool.
const TRAINS: usize = 64;

/// The program's lead over the wire, with transmit times.
const AHEAD: Duration = Duration::from_millis(20);

/// Datagrams that tell the end.
const ENDS: usize = 3;

#[derive(Parser)]
#[command(version, about)]
struct Options {
    /// The input; standard input if there is none
    input: Option<PathBuf>,
    /// A receiver
    #[arg(long, required = true)]
    to: Vec<SocketAddr>,
    /// Bytes a second, for all receivers together
    #[arg(long, default_value_t = NonZero::new(20_000_000).unwrap())]
    rate: NonZero<u32>,
    /// Bytes of a datagram
    #[arg(long, default_value_t = 1400, value_parser = clap::value_parser!(u16).range(9..))]
    datagram: u16,
    /// Datagrams of a train
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..=128))]
    train: u16,
    /// Whether the trains go without a copy
    #[arg(long, value_enum, default_value_t = ZeroCopy::Auto)]
    zerocopy: ZeroCopy,
}

#[derive(Clone, Copy, ValueEnum)]
enum ZeroCopy {
    /// Where the kernel does not copy anyway
    Auto,
    /// Wherever the kernel accepts it
    Prefer,
    /// Never
    Never,
}

impl From<ZeroCopy> for Policy {
    fn from(choice: ZeroCopy) -> Self {
        match choice {
            ZeroCopy::Auto => Self::Auto,
            ZeroCopy::Prefer => Self::Prefer,
            ZeroCopy::Never => Self::Never,
        }
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("datagrams: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let input: Box<dyn Read> = match &options.input {
        Some(path) => Box::new(File::open(path).map_err(|error| at(path, &error))?),
        None => Box::new(io::stdin()),
    };
    let mut stream = Stream::new(input, options)?;
    let mut out = Out::new(options)?;
    let mut trains = 0_u64;
    while let Some(train) = stream.next_train()? {
        for receiver in &options.to {
            out.send(&train, *receiver)?;
        }
        trains += 1;
    }
    for _ in 0..ENDS {
        let end = stream.end()?;
        for receiver in &options.to {
            out.send(&end, *receiver)?;
        }
    }
    out.sender.drain(Some(Duration::from_secs(30)))?;
    let digest: String =
        stream.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{trains} trains, {} bytes, sha256 {digest}", stream.position);
    let stats = out.sender.stats();
    println!("{stats}");
    println!("{:?}", stats.drops);
    let audit = stream.pool.audit();
    println!("pool: {audit}");
    Ok(())
}

fn at(path: &std::path::Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// The input, cut into trains.
struct Stream {
    input: Box<dyn Read>,
    pool: Pool,
    datagram: usize,
    train: usize,
    /// Bytes of the input so far.
    position: u64,
    digest: Sha256,
}

impl Stream {
    fn new(input: Box<dyn Read>, options: &Options) -> Result<Self, Box<dyn Error>> {
        let (datagram, train) = (options.datagram.into(), options.train.into());
        let pool = Pool::new(datagram * train, TRAINS)?;
        Ok(Self { input, pool, datagram, train, position: 0, digest: Sha256::new() })
    }

    /// The next train; `None` at the end of the input.
    fn next_train(&mut self) -> Result<Option<SharedBuf>, Box<dyn Error>> {
        let mut buf = self.pool.alloc(self.datagram * self.train)?;
        for _ in 0..self.train {
            let start = buf.len();
            buf.extend_from_slice(&self.position.to_be_bytes());
            let len = self.fill(&mut buf)?;
            if len == 0 {
                buf.truncate(start);
                break;
            }
            self.digest.update(&buf[start + HEAD..]);
            self.position += len as u64;
        }
        Ok(if buf.is_empty() { None } else { Some(buf.freeze()) })
    }

    /// Appends the payload of a datagram, and returns its length.
    fn fill(&mut self, buf: &mut PinnedBuf) -> io::Result<usize> {
        let most = self.datagram - HEAD;
        let mut len = 0;
        while len < most {
            match buf.read_from(&mut self.input, most - len)? {
                0 => break,
                read => len += read,
            }
        }
        Ok(len)
    }

    /// The datagram of the end.
    fn end(&self) -> Result<SharedBuf, Box<dyn Error>> {
        let mut buf = self.pool.alloc(HEAD)?;
        buf.extend_from_slice(&self.position.to_be_bytes());
        Ok(buf.freeze())
    }
}

/// The socket, and the time of the next train.
struct Out {
    sender: Sender<UdpSocket>,
    segment: u16,
    rate: u32,
    /// A queue paces the datagrams, each at its time.
    by_queue: bool,
    next: Instant,
}

impl Out {
    fn new(options: &Options) -> Result<Self, Box<dyn Error>> {
        // A socket of both families reaches receivers of either.
        let v6 = options.to.iter().any(SocketAddr::is_ipv6);
        let socket = if v6 {
            UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?
        } else {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?
        };
        let sender = Sender::builder().policy(options.zerocopy.into()).adopt(socket)?;
        let paces = options.to.iter().try_for_each(|receiver| pacing::check(*receiver));
        let by_queue = match paces.and_then(|()| pacing::allow_transmit_times(&sender)) {
            Ok(()) => {
                println!("paced by the queue");
                true
            }
            Err(error) => {
                println!("paced by the program: {error}");
                false
            }
        };
        let (segment, rate) = (options.datagram, options.rate.get());
        Ok(Self { sender, segment, rate, by_queue, next: Instant::now() })
    }

    /// Sends a train at its turn. A loss is counted by the sender, and the stream goes on.
    fn send(&mut self, train: &SharedBuf, receiver: SocketAddr) -> Result<(), Box<dyn Error>> {
        let now = Instant::now();
        let lead = if self.by_queue { AHEAD } else { Duration::ZERO };
        thread::sleep(self.next.saturating_duration_since(now + lead));
        // A late program does not hurry afterwards.
        self.next = self.next.max(now);
        let mut to = Datagram::to(receiver).segment_size(self.segment);
        if self.by_queue {
            to = to.at(self.next);
        }
        self.next += Duration::from_secs_f64(train.len() as f64 / f64::from(self.rate));
        match self.sender.send_to(train.clone(), to) {
            // A full queue, a filter, or word of an earlier train.
            Ok(_) | Err(SendError::Dropped { .. } | SendError::Os { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
