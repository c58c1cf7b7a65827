//! Settings of a sender, and the checks before a socket is taken over.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use super::{
    budget::MemlockBudget,
    calibrate,
    config::{Config, DataHint, OnRelease, Policy, ZeroCopyState},
    driver::Core,
    handle::Sender,
    kernel::{Socket, SocketKernel},
};
use crate::{
    error::{AdoptError, CopyReason, OsError},
    id::NotificationId,
    sys::{
        errno, limits,
        socket::{self, Kind},
    },
};

/// Settings for a [`Sender`].
///
/// ```
/// # use std::net::{TcpListener, TcpStream};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// let sender = pinbuf::Sender::builder()
///     .policy(pinbuf::Policy::Prefer)
///     .threshold_bytes(32 * 1024)
///     .max_in_flight_bytes(16 << 20)
///     .adopt(TcpStream::connect(listener.local_addr()?)?)?;
/// # drop(sender);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct SenderBuilder {
    policy: Policy,
    config: Config,
    threshold_bytes: Option<usize>,
    data: DataHint,
    first: Result<NotificationId, CopyReason>,
}

impl SenderBuilder {
    pub(super) fn new() -> Self {
        Self {
            policy: Policy::default(),
            config: Config::default(),
            threshold_bytes: None,
            data: DataHint::default(),
            first: Ok(NotificationId(0)),
        }
    }

    /// When sends go without copy. Default: [`Policy::Auto`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Fixes the size in bytes from which a send, or a run of large neighbours in a vectored send,
    /// goes without copy. Default: 16 KiB, unless a [hint](Self::data_hint) says more.
    ///
    /// Smaller sends are cheaper to copy. The right size depends on the processor, and on the place
    /// of the data. Figures: `benches/README.md`.
    pub fn threshold_bytes(mut self, bytes: usize) -> Self {
        self.threshold_bytes = Some(bytes);
        self
    }

    /// Chooses the threshold for such data on this machine. Default: [`DataHint::Unknown`]. A
    /// [fixed threshold](Self::threshold_bytes) takes precedence.
    ///
    /// | hint | threshold, from 4 to 64 KiB | not measured |
    /// |---|---|---|
    /// | [`Cold`](DataHint::Cold) | as measured, at most 16 KiB | 16 KiB |
    /// | [`Unknown`](DataHint::Unknown) | 16 KiB, or less if cached data gains from less on | 16 KiB |
    /// | [`Cached`](DataHint::Cached) | as measured | 64 KiB |
    ///
    /// [`calibrate_threshold`](crate::probe::calibrate_threshold) measures, once a process.
    ///
    /// # Performance
    ///
    /// Without an earlier measurement the first [`adopt`](Self::adopt) with a hint measures: some 8 ms of
    /// processor time. Adoptions without a hint do not measure, nor do adoptions of sockets without
    /// zero copy. A send makes no look and no call for the threshold: the size is fixed at adoption.
    pub fn data_hint(mut self, data: DataHint) -> Self {
        self.data = data;
        self
    }

    /// Bytes that may be in flight at once; further sends wait. Default: 64 MiB.
    ///
    /// Under a finite `RLIMIT_MEMLOCK` the senders of the process also share half of the limit. A
    /// single call is never refused for its size.
    pub fn max_in_flight_bytes(mut self, bytes: usize) -> Self {
        self.config.max_in_flight_bytes = bytes;
        self
    }

    /// Zero-copy calls that may be in flight at once; further sends wait. Default: 4096.
    ///
    /// The kernel's own bound is about `net.core.optmem_max / 832` groups of calls (157 by
    /// default, 24 on kernels before 6.2), where TCP groups calls of up to 512 KiB in all.
    pub fn max_in_flight_sends(mut self, sends: usize) -> Self {
        self.config.max_in_flight_sends = sends;
        self
    }

    /// The use of released payloads. Default: [`OnRelease::Recycle`].
    pub fn on_release(mut self, on_release: OnRelease) -> Self {
        self.config.on_release = on_release;
        self
    }

    /// The time for which a dropped sender continues without progress. While the peer acknowledges
    /// bytes within this time, unsent bytes are flushed and sends in flight awaited. After this
    /// time without progress the connection is aborted. Default: 30 s.
    ///
    /// Every acknowledged byte counts, including bytes that the user wrote to the socket. Where the
    /// system does not tell acknowledgements, every byte accepted by the socket counts.
    ///
    /// # Performance
    ///
    /// The reaper thread looks again at a dropped sender without news after a tenth of this time,
    /// and after one second at most. The abort can come late by two of these intervals.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.config.linger = linger;
        self
    }

    /// The longest time without an acknowledgement while something is held: a send in flight,
    /// copied bytes not yet acknowledged, or the unsent part of a send. After this time the
    /// connection is aborted. Default: no limit.
    ///
    /// - The peer sees a reset, sends fail with `ETIMEDOUT`, a blocked send too, and the memory
    ///   comes back. [`CloseReport::aborted`](super::CloseReport::aborted) is `true` then.
    /// - Any acknowledgement starts the time anew. So a large send to a slow peer is not aborted
    ///   as long as the peer reads something within each such time.
    /// - A peer that has acknowledged everything is not reset, though a packet in a queue of this
    ///   host may still hold memory.
    /// - The state is looked at every quarter of the limit, at least once a second, by the owner's
    ///   calls or the library's thread, so the abort may come that much later.
    /// - Streams only: a datagram waits for this host alone.
    ///
    /// Without a limit a peer that is gone holds memory, and blocks sends, for as long as TCP
    /// retransmits (about a quarter of an hour). A peer that never reads does so for ever.
    pub fn max_hold(mut self, limit: Duration) -> Self {
        self.config.max_hold = Some(limit);
        self
    }

    /// Keeps a histogram of the time from each zero-copy call to its release, for
    /// [`Sender::release_times`]. Default: off.
    ///
    /// # Performance
    ///
    /// The clock is read once for each zero-copy call, and once for each reading of notifications. Off,
    /// no send reads the clock. Costs: `benches/README.md`. The histogram takes 27 KiB, and the calls in
    /// flight some 25 bytes each.
    #[cfg(feature = "histogram")]
    #[cfg_attr(docsrs, doc(cfg(feature = "histogram")))]
    pub fn release_times(mut self, on: bool) -> Self {
        self.config.release_times = on;
        self
    }

    /// Continues a socket that an earlier sender used: `ids` come from
    /// [`Sender::into_parts`](super::Sender::into_parts).
    pub fn resume(mut self, ids: ZeroCopyState) -> Self {
        self.first = ids.0;
        self
    }

    /// Takes over a socket that has never sent with `MSG_ZEROCOPY`, or one that
    /// [resumes](Self::resume): a connected one, or a UDP socket.
    ///
    /// The sender keeps the socket as the type that it is. For a plain [`Sender`], with a type
    /// that does not name the socket's, adopt the descriptor: `adopt(OwnedFd::from(socket))`.
    ///
    /// ```
    /// # use std::{io::Read, net::{TcpListener, TcpStream}, sync::Arc};
    /// use pinbuf::Sender;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = TcpListener::bind("127.0.0.1:0")?;
    /// # let address = listener.local_addr()?;
    /// // One thread sends, another one reads from the same socket.
    /// let socket = Arc::new(TcpStream::connect(address)?);
    /// let mut sender = Sender::builder().adopt(Arc::clone(&socket))?;
    /// # let mut peer = listener.accept()?.0;
    /// sender.send(&b"question"[..])?;
    /// # peer.read_exact(&mut [0; 8])?;
    /// # drop(peer);
    /// let mut answer = Vec::new();
    /// (&*socket).read_to_end(&mut answer)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`AdoptError`], with the socket, as [`Sender::new`]; also [`AdoptError::ZeroCopyUnavailable`] with [`Policy::Require`], and
    /// [`AdoptError::InvalidSetting`] when a window is 0, or above 2^30 sends.
    pub fn adopt<S: Socket>(self, socket: S) -> Result<Sender<S>, AdoptError<S>> {
        let (kind, copy_reason) = match self.examine(socket.as_fd()) {
            Ok(found) => found,
            Err(error) => return Err(error.with(socket)),
        };
        let requires = self.policy == Policy::Require;
        let optmem_max = limits::optmem_max().unwrap_or(DEFAULT_OPTMEM_MAX);
        let first = self.first.unwrap_or_default();
        let budget = MemlockBudget::of_process();
        let kernel = SocketKernel::new(socket, kind);
        let mut config = Config { observe_route: self.policy == Policy::Auto, ..self.config };
        if let Some(bytes) = self.threshold_bytes {
            config.threshold_bytes = bytes;
        } else if copy_reason.is_none() {
            config.threshold_bytes = calibrate::threshold_bytes(self.data);
        }
        let core = Core::new(kernel, config, copy_reason, budget, optmem_max, first);
        if copy_reason.is_none()
            && let Some(reason) = core.try_reading().filter(|_| requires)
        {
            let SocketKernel { socket, .. } =
                core.into_kernel().expect("only this function has the core");
            return Err(AdoptError::ZeroCopyUnavailable { reason, socket });
        }
        Ok(Sender { core: Some(core) })
    }

    /// Checks the settings and the socket, and switches zero copy on; tells why there is none, if
    /// so.
    fn examine(&self, fd: BorrowedFd<'_>) -> Result<(Kind, Option<CopyReason>), AdoptError<()>> {
        let invalid = |setting| Err(AdoptError::InvalidSetting { setting, socket: () });
        if self.config.max_in_flight_bytes == 0 {
            return invalid("max_in_flight_bytes must be above 0");
        }
        if !(1..=1 << 30).contains(&self.config.max_in_flight_sends) {
            return invalid("max_in_flight_sends must be between 1 and 2^30");
        }
        let kind = socket::kind(fd).map_err(os)?;
        if kind == Kind::Listener {
            return Err(AdoptError::Listener(()));
        }
        match self.enable(fd, kind)?.or(self.first.err()) {
            Some(reason) if self.policy == Policy::Require => {
                Err(AdoptError::ZeroCopyUnavailable { reason, socket: () })
            }
            copy_reason => Ok((kind, copy_reason)),
        }
    }

    fn enable(&self, fd: BorrowedFd<'_>, kind: Kind) -> Result<Option<CopyReason>, AdoptError<()>> {
        // A datagram may name its destination.
        if kind != Kind::Udp && !socket::is_connected(fd).map_err(os)? {
            return Err(AdoptError::NotConnected(()));
        }
        socket::prepare(fd).map_err(os)?;
        if self.policy == Policy::Never {
            return Ok(Some(CopyReason::Policy));
        }
        if !matches!(kind, Kind::Tcp | Kind::Udp) {
            return Ok(Some(CopyReason::UnsupportedSocket));
        }
        match socket::optmem(fd) {
            Ok(0) => {}
            Ok(_) => return Err(AdoptError::SocketInUse(())),
            // Without the gauge a use cannot be seen, nor can the option be trusted.
            Err(error) => return Ok(Some(CopyReason::Unprovable(OsError::from(&error)))),
        }
        Ok(socket::enable_zerocopy(fd).err().map(|error| {
            CopyReason::Refused(match error.raw_os_error() {
                Some(_) => OsError::from(&error),
                None => OsError::from_raw(errno::EOPNOTSUPP),
            })
        }))
    }
}

impl Sender {
    /// Takes over a connected socket that has never sent with `MSG_ZEROCOPY`: a `TcpStream`, a
    /// `UdpSocket`, any type that is an `OwnedFd` underneath.
    ///
    /// The sender keeps the descriptor alone, so that its type does not name the socket's. Use
    /// [`SenderBuilder::adopt`] to keep the socket as the type that it is, for
    /// [`get_ref`](Self::get_ref), or to share it with a reader (`Arc<TcpStream>`).
    ///
    /// ```
    /// # use std::net::{TcpListener, TcpStream};
    /// use pinbuf::Sender;
    ///
    /// struct Client {
    ///     sender: Sender,
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let listener = TcpListener::bind("127.0.0.1:0")?;
    /// # let address = listener.local_addr()?;
    /// let mut client = Client { sender: Sender::new(TcpStream::connect(address)?)? };
    /// client.sender.send(&b"hello"[..])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`AdoptError`], with the descriptor: another zero-copy sender uses the socket, the socket is a
    /// listener, or neither connected nor UDP, or a system call failed. A socket without zero copy is no error:
    /// everything goes by copy, and [`capabilities`](Self::capabilities) gives the reason.
    pub fn new(socket: impl Into<OwnedFd>) -> Result<Self, AdoptError<OwnedFd>> {
        SenderBuilder::new().adopt(socket.into())
    }

    /// Settings for a sender.
    pub fn builder() -> SenderBuilder {
        SenderBuilder::new()
    }
}

/// The kernel's default since 6.2; used where `/proc` does not tell.
const DEFAULT_OPTMEM_MAX: u32 = 128 << 10;

fn os(error: io::Error) -> AdoptError<()> {
    AdoptError::Os { error: OsError::from(&error), socket: () }
}
