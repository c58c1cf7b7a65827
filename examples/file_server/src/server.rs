//! The listener, the limits and the end.

use std::{
    fmt, io, iter,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pinbuf::{Pool, Sender, pool::Audit, reaper, tokio::Stream};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{
    connection::Connection,
    pieces::{MOST_PIECES, PIECE, Pieces},
    root::Root,
    settings::Settings,
    shared::{Phase, Shared},
    tls::Tls,
    transport::Transport,
};

/// The most buffers of one connection in flight.
const MOST_IN_FLIGHT: usize = 2 * MOST_PIECES;

/// The pause after a failed accept, for example for lack of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// A file server that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    /// A permit for each connection.
    limit: Arc<Semaphore>,
}

impl Server {
    /// Allocates all memory for bodies, raises the limit of descriptors, and listens. Where few descriptors are
    /// allowed, the limit of connections is lower than in the settings.
    ///
    /// # Errors
    ///
    /// The root is no folder, the memory is not to be had, or the address is in use.
    pub async fn bind(mut settings: Settings) -> io::Result<Self> {
        settings.max_connections = settings.max_connections.min(affordable_connections());
        let root = Root::new(&settings.root)?;
        let tls = Tls::new(&settings)?;
        let slots = settings.slots();
        let pool = Pool::builder().class(PIECE, slots).sender_quota(MOST_IN_FLIGHT);
        let pool = pool.build().map_err(io::Error::other)?;
        let pieces = Arc::new(Pieces::new(pool, slots * settings.cache as usize / 100));
        let listener = TcpListener::bind(settings.listen).await?;
        let address = listener.local_addr()?;
        let limit = Arc::new(Semaphore::new(settings.max_connections as usize));
        let (phase, requests) = (watch::Sender::new(Phase::Running), AtomicU64::new(0));
        let shared = Arc::new(Shared { settings, root, pieces, tls, phase, requests });
        Ok(Self { listener, address, shared, limit })
    }

    /// The address that the server listens at.
    pub fn url(&self) -> String {
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/", self.address)
    }

    /// Serves a connection that was accepted elsewhere. The limit of connections does not count it.
    pub fn serve(
        &self,
        socket: TcpStream,
        client: SocketAddr,
    ) -> impl Future<Output = ()> + Send + use<> {
        serve(socket, client, Arc::clone(&self.shared))
    }

    /// Serves until `end` is ready. Then open transfers have some time to finish.
    pub async fn run(self, end: impl Future<Output = ()>) -> Summary {
        let Self { listener, shared, limit, .. } = self;
        tokio::select! {
            () = end => {}
            () = accept(&listener, &shared, &limit) => {}
        }
        drop(listener);
        shared.phase.send_replace(Phase::Ending);
        let all = shared.settings.max_connections;
        let is_in_order =
            timeout(shared.settings.end_timeout(), limit.acquire_many(all)).await.is_ok();
        if !is_in_order {
            shared.phase.send_replace(Phase::Aborting);
            let _ = limit.acquire_many(all).await;
        }
        let auditing = spawn_blocking(move || {
            let is_idle = reaper::wait_idle(Some(shared.settings.stall_timeout()));
            let requests = shared.requests.load(Ordering::Relaxed);
            let pools = iter::once(shared.pieces.empty()).chain(shared.tls.as_ref().map(Tls::pool));
            let audits = pools.map(Pool::audit).collect();
            Summary { requests, is_in_order, audits: if is_idle { audits } else { Vec::new() } }
        });
        auditing.await.expect("the audit does not panic")
    }
}

/// The number of connections for which there are descriptors: a socket, its error queue and a file for each.
fn affordable_connections() -> u32 {
    const OTHERS: u64 = 64;
    // An error leaves the limit as it was.
    let descriptors = rlimit::increase_nofile_limit(u64::MAX)
        .or_else(|_| rlimit::Resource::NOFILE.get_soft())
        .unwrap_or(1024);
    (descriptors.saturating_sub(OTHERS) / 3).clamp(1, 1_000_000) as u32
}

/// Accepts connections up to the limit. Further clients wait in the listener's queue.
async fn accept(listener: &TcpListener, shared: &Arc<Shared>, limit: &Arc<Semaphore>) {
    while let Ok(permit) = Arc::clone(limit).acquire_owned().await {
        match listener.accept().await {
            Ok((socket, client)) => {
                let serving = serve(socket, client, Arc::clone(shared));
                tokio::spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn serve(socket: TcpStream, client: SocketAddr, shared: Arc<Shared>) {
    // A client that is gone already is no error of the server.
    if let Ok(transport) = adopt(&shared, socket).await {
        Connection::new(transport, client, shared).serve().await;
    }
}

async fn adopt(shared: &Shared, socket: TcpStream) -> io::Result<Transport> {
    let Shared { settings, tls, .. } = shared;
    socket.set_nodelay(true)?;
    let patience = settings.stall_timeout();
    let builder = Sender::builder().policy(settings.zerocopy.into());
    let stream = Stream::adopt(builder.max_hold(patience).linger(patience), socket)?;
    let Some(tls) = tls else { return Ok(Transport::Plain(stream)) };
    let mut phase = shared.phase.subscribe();
    tokio::select! {
        accepted = tls.accept(stream, settings.head_timeout()) => Ok(Transport::Tls(accepted?.into())),
        _ = phase.wait_for(|phase| *phase == Phase::Aborting) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The work of a server, and the state of its memory at the end.
#[derive(Debug)]
pub struct Summary {
    /// Requests answered, refusals included.
    pub requests: u64,
    /// `true` if every connection ended within its time.
    pub is_in_order: bool,
    /// Of the pool, and of that for records. None: some memory was still the kernel's.
    pub audits: Vec<Audit>,
}

impl Summary {
    /// Returns `true` if all memory is back in the pool.
    pub fn is_clean(&self) -> bool {
        let is_free = |audit: &Audit| {
            let stats = &audit.stats;
            audit.is_clean() && stats.owned() + stats.in_flight() + stats.quarantined() == 0
        };
        !self.audits.is_empty() && self.audits.iter().all(is_free)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.is_in_order { "in order" } else { "with transfers cut short" };
        write!(f, "ended {end} after {} requests", self.requests)?;
        if self.audits.is_empty() {
            f.write_str("; some buffers are in flight")?;
        }
        self.audits.iter().try_for_each(|audit| write!(f, "; buffers: {audit}"))
    }
}
