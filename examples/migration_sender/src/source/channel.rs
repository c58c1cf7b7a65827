//! A connection of the source: the use of pinbuf.
//!
//! A packet is one vectored send: a header with its run table in a pool buffer, and the pages in
//! place, as [`MappedSlice`](pinbuf::MappedSlice)s. The sender copies the small header and sends the pages without
//! copies. Both stay with the sender until their release, and no thread waits for a release before
//! the end. With TLS the pages are copied once, to be encrypted into pool buffers, which stay with
//! the sender in the same way.
//!
//! A guest may write a page while the kernel reads it: the page may arrive torn, and is sent again
//! in a later round.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use pinbuf::{
    AdoptError, AllocError, Payload, PinnedBuf, Policy, Pool, SendError, Sender, error::OsError,
    rustls::TlsStream,
};

use crate::{
    cli::ZeroCopy,
    clock::thread_cpu,
    failure::{Code, Failure},
    memory::GuestMemory,
    report::{PoolReport, ZeroCopyReport},
    wire::{Header, Run, Tls},
};

/// Room for a header and the largest run table, in bytes.
const HEADER_BUFFER: usize = 4096;
/// Room for a piece of the device state, in bytes.
const DEVICE_BUFFER: usize = 64 << 10;
/// Room for records of TLS, in bytes.
const RECORD_BUFFER: usize = 256 << 10;
/// Buffers of records per channel: as many are with the kernel at once.
const RECORDS: usize = 16;
/// Buffers per size and channel. Headers are copied and recycled at once, so a few suffice.
const BUFFERS: usize = 16;

/// The settings of a channel.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    pub tls: Option<&'a Tls>,
    pub zerocopy: ZeroCopy,
    pub threshold: Option<usize>,
    /// The longest wait for a free buffer of the pool.
    pub patience: Duration,
}

/// The pool for the headers and the device state of all channels.
#[derive(Clone, Debug)]
pub struct Buffers(Pool);

impl Buffers {
    pub fn new(channels: usize, tls: bool) -> Result<Self, Failure> {
        let pool = match tls {
            false => Pool::builder()
                .class(HEADER_BUFFER, BUFFERS * channels)
                .class(DEVICE_BUFFER, BUFFERS)
                .build(),
            true => Pool::new(RECORD_BUFFER, RECORDS * channels),
        };
        let pool = pool.map_err(|e| Failure::new(Code::Io, format!("the buffer pool: {e}")))?;
        Ok(Self(pool))
    }

    /// The states of all slots at the end, without concurrent changes.
    pub fn audit(&self) -> PoolReport {
        let audit = self.0.audit();
        PoolReport {
            free: audit.stats.free(),
            owned: audit.stats.owned(),
            in_flight: audit.stats.in_flight(),
            quarantined: audit.stats.quarantined(),
            mismatches: audit.mismatches.len(),
        }
    }
}

/// The cause of a failed send.
#[derive(Debug)]
pub enum SendFailure {
    /// The connection is over.
    Connection(io::Error),
    /// The kernel cannot read the guest memory.
    Memory,
    /// The pool gave no buffer in time.
    Pool(AllocError),
}

impl From<io::Error> for SendFailure {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

impl From<SendError<()>> for SendFailure {
    fn from(error: SendError<()>) -> Self {
        let unreadable = OsError::from_raw(libc::EFAULT);
        match error {
            SendError::BadAddress(()) => Self::Memory,
            // A part of the packet was readable: the stream is truncated inside a packet.
            SendError::Truncated { error, .. } | SendError::Connection { error, .. }
                if error == unreadable =>
            {
                Self::Memory
            }
            error => Self::Connection(error.into()),
        }
    }
}

/// A connection of either kind.
#[derive(Debug)]
enum Link {
    Plain(Sender<TcpStream>),
    Tls(Box<TlsStream>),
}

/// One connection to the destination.
#[derive(Debug)]
pub struct Channel {
    link: Link,
    pool: Pool,
    policy: ZeroCopy,
    patience: Duration,
    /// The parts of the next send; kept to reuse their memory.
    parts: Vec<Payload>,
    sent: u64,
}

impl Channel {
    /// Takes over a connected stream without other senders.
    pub fn open(
        stream: TcpStream,
        buffers: &Buffers,
        settings: Settings<'_>,
    ) -> Result<Self, Failure> {
        let Settings { tls, zerocopy, threshold, patience } = settings;
        let mut builder = Sender::builder().policy(match zerocopy {
            ZeroCopy::Auto => Policy::default(),
            ZeroCopy::Prefer => Policy::Prefer,
            ZeroCopy::Require => Policy::Require,
            ZeroCopy::Never => Policy::Never,
        });
        if let Some(bytes) = threshold {
            builder = builder.threshold_bytes(bytes);
        }
        let sender = builder.adopt(stream).map_err(|error| match error {
            AdoptError::ZeroCopyUnavailable { .. } => {
                Failure::new(Code::Environment, error.to_string())
            }
            _ => Failure::io("taking over a connection", &error.into()),
        })?;
        let pool = buffers.0.clone();
        let link = match tls {
            None => Link::Plain(sender),
            Some(tls) => {
                let stream = tls.connect(sender, &pool);
                Link::Tls(Box::new(stream.map_err(|e| Failure::io("TLS handshake", &e.into()))?))
            }
        };
        Ok(Self { link, pool, policy: zerocopy, patience, parts: Vec::new(), sent: 0 })
    }

    /// Sends a frame that is a header alone.
    pub fn send(&mut self, header: Header) -> Result<(), SendFailure> {
        self.send_runs(header, &[], None)
    }

    /// Sends bytes through pool buffers, like a device that saves its state.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), SendFailure> {
        if let Link::Tls(stream) = &mut self.link {
            stream.write_all(bytes).and_then(|()| stream.flush())?;
            self.sent += bytes.len() as u64;
            return Ok(());
        }
        for piece in bytes.chunks(DEVICE_BUFFER) {
            let mut buf = self.alloc(piece.len())?;
            buf.extend_from_slice(piece);
            self.parts.push(buf.into());
            self.send_parts()?;
        }
        Ok(())
    }

    /// Sends a header with its run table and, for pages, the runs of the memory.
    pub fn send_runs(
        &mut self,
        header: Header,
        runs: &[Run],
        payload: Option<&GuestMemory>,
    ) -> Result<(), SendFailure> {
        if let Link::Tls(stream) = &mut self.link {
            self.sent += encrypt_runs(stream, header, runs, payload)?;
            return Ok(());
        }
        let mut buf = self.alloc(HEADER_BUFFER)?;
        buf.extend_from_slice(&header.encode());
        for run in runs {
            buf.extend_from_slice(&run.encode());
        }
        self.parts.push(buf.into());
        if let Some(memory) = payload {
            self.parts.extend(runs.iter().map(|run| Payload::from(memory.slice(*run))));
        }
        self.send_parts()
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Ends the stream in order, waits for the release of all sends, and adds up the counts of the
    /// channel and the calling thread. Without a deadline the migration is cancelled and the
    /// connection aborted.
    pub fn close(self, deadline: Option<Instant>) -> ZeroCopyReport {
        let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let counts = |sender: &Sender<TcpStream>| (sender.stats(), sender.capabilities());
        let ((stats, capabilities), closed) = match self.link {
            // The drain is only for the counts after the last notification; `close` reports errors.
            Link::Plain(mut sender) => {
                let _ = deadline.is_some().then(|| sender.drain(left()));
                let counts = counts(&sender);
                let is_aborted = deadline.is_none();
                (counts, if is_aborted { sender.abort() } else { sender.close(left()) })
            }
            Link::Tls(mut stream) => {
                let _ = deadline.is_some().then(|| stream.drain(left()));
                let counts = counts(stream.sender());
                let is_aborted = deadline.is_none();
                (counts, if is_aborted { stream.abort() } else { stream.close(left()) })
            }
        };
        ZeroCopyReport {
            policy: self.policy.name(),
            available: capabilities.supported,
            reason: capabilities.reason.map(|reason| reason.to_string()),
            sends_zero_copy: stats.zero_copy_calls,
            sends_copied: stats.copied_calls,
            bytes_zero_copy: stats.zero_copy_bytes,
            bytes_copied: stats.copied_bytes,
            notifications: stats.notifications,
            completions_copied: stats.deferred_copies,
            no_bufs_optmem: stats.no_bufs_optmem,
            no_bufs_memlock: stats.no_bufs_memlock,
            unreleased: closed.quarantined as u64,
            cpu_us: thread_cpu().as_micros() as u64,
        }
    }

    fn alloc(&self, bytes: usize) -> Result<PinnedBuf, SendFailure> {
        self.pool.alloc_timeout(bytes, self.patience).map_err(SendFailure::Pool)
    }

    fn send_parts(&mut self) -> Result<(), SendFailure> {
        let bytes: usize = self.parts.iter().map(Payload::len).sum();
        let Link::Plain(sender) = &mut self.link else { unreachable!("TLS has no parts") };
        let sent = sender.send_vectored(&mut self.parts);
        // Refused parts are useless: a failure ends the channel.
        self.parts.clear();
        sent?;
        self.sent += bytes as u64;
        Ok(())
    }
}

/// Encrypts a frame into pool buffers and sends them. Returns the bytes of the frame.
fn encrypt_runs(
    stream: &mut TlsStream,
    header: Header,
    runs: &[Run],
    payload: Option<&GuestMemory>,
) -> Result<u64, SendFailure> {
    let mut head = header.encode().to_vec();
    runs.iter().for_each(|run| head.extend(run.encode()));
    stream.write_all(&head)?;
    let mut sent = head.len() as u64;
    for (memory, run) in payload.iter().flat_map(|memory| runs.iter().map(move |run| (memory, run)))
    {
        let mut failed = None;
        let read = memory.for_each_piece(run.offset..run.end(), |_, piece| {
            stream.write_all(piece).map_err(|error| {
                failed = Some(SendFailure::Connection(error));
                io::ErrorKind::Other.into()
            })
        });
        read.map_err(|_| failed.unwrap_or(SendFailure::Memory))?;
        sent += run.len as u64;
    }
    stream.flush()?;
    Ok(sent)
}

/// Reads the destination's greeting.
impl Read for Channel {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match &mut self.link {
            Link::Plain(sender) => sender.get_ref().read(out),
            Link::Tls(stream) => stream.read(out),
        }
    }
}
