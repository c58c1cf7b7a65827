//! The primary.

use std::{
    future::pending,
    io::{self, Read},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    thread,
};

use pinbuf::Pool;
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::{Notify, Semaphore, oneshot},
    task::JoinSet,
    time::timeout,
};

pub use crate::{config::Config, report::Report};
use crate::{shared::Shared, source};

/// A primary that listens.
#[derive(Debug)]
pub struct Primary {
    shared: Arc<Shared>,
    listener: TcpListener,
    tail: Option<TcpListener>,
}

impl Primary {
    /// Makes the pool and the log, and listens.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for settings that contradict each other, and the errors of the pool, the log file and the
    /// addresses.
    pub async fn bind(config: Config) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let tail = match config.tail {
            Some(address) => Some(TcpListener::bind(address).await?),
            None => None,
        };
        let shared = Arc::new(Shared::new(config)?);
        Ok(Self { shared, listener, tail })
    }

    /// The address for replicas.
    ///
    /// # Errors
    ///
    /// The error of `getsockname(2)`.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The address for clients of the tail port.
    ///
    /// # Errors
    ///
    /// The error of `getsockname(2)`.
    pub fn tail_address(&self) -> io::Result<Option<SocketAddr>> {
        self.tail.as_ref().map(TcpListener::local_addr).transpose()
    }

    /// The pool of all connections.
    pub fn pool(&self) -> Pool {
        self.shared.pool.clone()
    }

    /// Replicates the input to its end, or until `stop` is notified. A second notification ends the wait for the
    /// replicas.
    pub async fn run(self, input: impl Read + Send + 'static, stop: &Notify) -> Report {
        let Self { shared, listener, tail } = self;
        let mut source = start_source(Arc::clone(&shared), input);
        let mut connections = JoinSet::new();
        let ended = {
            let mut serving = pin!(serve(&shared, &listener, tail.as_ref(), &mut connections));
            let ended = tokio::select! {
                () = &mut serving => unreachable!("the stream has not ended"),
                ended = &mut source => ended.unwrap_or_else(|_| Err(io::Error::other("the source panicked"))),
                () = stop.notified() => Ok(()),
            };
            shared.ledger.end();
            tokio::select! {
                _ = timeout(shared.config.patience(), serving) => {}
                () = stop.notified() => {}
            }
            ended
        };
        connections.shutdown().await;
        Report::new(ended, &shared.ledger, &shared.log, &shared.pool).await
    }
}

/// Serves all connections until the stream has ended, all is committed and no connection is left.
async fn serve(
    shared: &Arc<Shared>,
    replicas: &TcpListener,
    tails: Option<&TcpListener>,
    connections: &mut JoinSet<()>,
) {
    let mut committed = shared.ledger.committed();
    let most_tails = shared.config.tails;
    let most = 2 * shared.config.replicas as usize + 16 + most_tails as usize;
    let free_tails = Arc::new(Semaphore::new(most_tails as usize));
    while !(committed.borrow_and_update().ended && connections.is_empty()) {
        let accept_tail = async {
            let Some(tails) = tails else { return pending().await };
            let place = Arc::clone(&free_tails).acquire_owned().await;
            let (socket, peer) = tails.accept().await?;
            io::Result::Ok((socket, peer, place))
        };
        // A failed accept is tried again after the next event: descriptors may be free then.
        tokio::select! {
            Ok((socket, peer)) = replicas.accept(), if connections.len() < most => {
                connections.spawn(Arc::clone(shared).replica(socket, peer));
            }
            Ok((socket, peer, place)) = accept_tail, if connections.len() < most => {
                let tail = Arc::clone(shared).tail(socket, peer);
                connections.spawn(async move {
                    tail.await;
                    drop(place);
                });
            }
            Some(_) = connections.join_next() => {}
            _ = committed.changed() => {}
        }
    }
}

fn start_source(
    shared: Arc<Shared>,
    input: impl Read + Send + 'static,
) -> oneshot::Receiver<io::Result<()>> {
    let (done, source) = oneshot::channel();
    let runtime = Handle::current();
    // Never joined: a read of a terminal or a pipe can last for ever.
    thread::spawn(move || {
        let result = source::run(&shared, input, &runtime);
        drop(shared);
        let _ = done.send(result);
    });
    source
}
