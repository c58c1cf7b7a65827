//! A connection of the source: the use of pinbuf.
//!
//! A packet is one vectored send: a header with its run table in a pool buffer, and the pages in
//! place, as [`MappedSlice`]s. The sender copies the small header and sends the pages without
//! copies. Both stay with the sender until their release, and no thread waits for a release before
//! the end.
//!
//! A guest may write a page while the kernel reads it: the page may arrive torn, and is sent again
//! in a later round.

use std::{
    io,
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use pinbuf::{
    AdoptError, AllocError, MappedSlice, Payload, PinnedBuf, Policy, Pool, SendError, Sender,
    error::OsError,
};

use crate::{
    cli::ZeroCopy,
    clock::thread_cpu,
    failure::{Code, Failure},
    memory::GuestMemory,
    protocol::{Header, Run},
    report::{PoolReport, ZeroCopyReport},
};

/// Room for a header and the largest run table, in bytes.
const HEADER_BUFFER: usize = 4096;
/// Room for a piece of the device state, in bytes.
const DEVICE_BUFFER: usize = 64 << 10;
/// Buffers per size and channel. Headers are copied and recycled at once, so a few suffice.
const BUFFERS: usize = 16;

/// The settings of a channel.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub zerocopy: ZeroCopy,
    pub threshold: Option<usize>,
    /// The longest wait for a free buffer of the pool.
    pub patience: Duration,
}

/// The pool for the headers and the device state of all channels.
#[derive(Clone, Debug)]
pub struct Buffers(Pool);

impl Buffers {
    pub fn new(channels: usize) -> Result<Self, Failure> {
        let pool = Pool::builder()
            .class(HEADER_BUFFER, BUFFERS * channels)
            .class(DEVICE_BUFFER, BUFFERS)
            .build();
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

/// One connection to the destination.
#[derive(Debug)]
pub struct Channel {
    sender: Sender<Arc<TcpStream>>,
    pool: Pool,
    settings: Settings,
    /// The parts of the next send; kept to reuse their memory.
    parts: Vec<Payload>,
    sent: u64,
}

impl Channel {
    /// Takes over a connected stream without other senders.
    pub fn open(
        stream: Arc<TcpStream>,
        buffers: &Buffers,
        settings: Settings,
    ) -> Result<Self, Failure> {
        let mut builder = Sender::builder().policy(match settings.zerocopy {
            ZeroCopy::Auto => Policy::default(),
            ZeroCopy::Prefer => Policy::Prefer,
            ZeroCopy::Require => Policy::Require,
            ZeroCopy::Never => Policy::Never,
        });
        if let Some(bytes) = settings.threshold {
            builder = builder.threshold_bytes(bytes);
        }
        let sender = builder.adopt(stream).map_err(|error| match error {
            AdoptError::ZeroCopyUnavailable { .. } => {
                Failure::new(Code::Environment, error.to_string())
            }
            _ => Failure::io("taking over a connection", &error.into()),
        })?;
        Ok(Self { sender, pool: buffers.0.clone(), settings, parts: Vec::new(), sent: 0 })
    }

    /// Sends a frame that is a header alone.
    pub fn send(&mut self, header: Header) -> Result<(), SendFailure> {
        let mut buf = self.alloc(HEADER_BUFFER)?;
        buf.extend_from_slice(&header.encode());
        self.parts.push(buf.into());
        self.send_parts()
    }

    /// Sends bytes through pool buffers, like a device that saves its state.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), SendFailure> {
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
        let mut buf = self.alloc(HEADER_BUFFER)?;
        buf.extend_from_slice(&header.encode());
        for run in runs {
            buf.extend_from_slice(&run.encode());
        }
        self.parts.push(buf.into());
        if let Some(memory) = payload {
            for run in runs {
                let range = run.offset..run.end();
                let slice = MappedSlice::new(Arc::clone(memory.map()), range)
                    .expect("runs lie within the memory");
                self.parts.push(slice.into());
            }
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
    pub fn close(mut self, deadline: Option<Instant>) -> ZeroCopyReport {
        let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if deadline.is_some() {
            // Only for the counts after the last notification; `close` reports errors too.
            let _ = self.sender.drain(left());
        }
        let stats = self.sender.stats();
        let capabilities = self.sender.capabilities();
        let closed = match left() {
            Some(left) => self.sender.close(Some(left)),
            None => self.sender.abort(),
        };
        ZeroCopyReport {
            policy: self.settings.zerocopy.name(),
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
        self.pool.alloc_timeout(bytes, self.settings.patience).map_err(SendFailure::Pool)
    }

    fn send_parts(&mut self) -> Result<(), SendFailure> {
        let bytes: usize = self.parts.iter().map(Payload::len).sum();
        let sent = self.sender.send_vectored(&mut self.parts);
        // Refused parts are useless: a failure ends the channel.
        self.parts.clear();
        sent?;
        self.sent += bytes as u64;
        Ok(())
    }
}
