//! TLS streams in tokio's runtimes, with the feature `tokio`.

mod cancel;
mod ends;
mod foreign;
mod roundtrip;
#[path = "../../common/tasks.rs"]
mod tasks;
mod wakeups;

use std::{io, net::TcpStream, thread::JoinHandle, time::Duration};

use ::tokio::task::spawn_blocking;
use pinbuf::{
    Pool, Sender,
    rustls::{TlsError, tokio::TlsStream},
    tokio::Stream,
};

use crate::{
    common::pair,
    peer::{Peer, Role, SetUp, everywhere, server_name},
};
use tasks::{counted, dropped_after, one_thread, runtimes, soon};

const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));

/// Runs a test in both roles, both versions and both kinds of runtimes.
fn in_all_runtimes(test: impl AsyncFn(&SetUp)) {
    everywhere(|set_up| {
        for runtime in runtimes() {
            runtime.block_on(soon(test(set_up)));
        }
    });
}

impl SetUp {
    /// As `shake_hands`, in a task.
    async fn shake_hands_in_task(
        &self,
        (near, far): (TcpStream, TcpStream),
        pool: &Pool,
    ) -> (Result<TlsStream, TlsError>, io::Result<Box<dyn Peer>>) {
        let stream = Stream::adopt(Sender::builder().policy(self.policy), near).unwrap();
        let peer = self.start_peer(far);
        let stream = match self.role {
            Role::Client => TlsStream::connect(stream, pool, self.client(), server_name()).await,
            Role::Server => TlsStream::accept(stream, pool, self.server()).await,
        };
        (stream, join(peer).await)
    }

    async fn over_in_task(
        &self,
        sockets: (TcpStream, TcpStream),
        pool: &Pool,
    ) -> (TlsStream, Box<dyn Peer>) {
        let (stream, peer) = self.shake_hands_in_task(sockets, pool).await;
        (stream.unwrap(), peer.unwrap())
    }

    async fn connect_in_task(&self, pool: &Pool) -> (TlsStream, Box<dyn Peer>) {
        self.over_in_task(pair(), pool).await
    }
}

/// The result of a thread, without holding up the runtime.
async fn join<T: Send + 'static>(thread: JoinHandle<T>) -> T {
    spawn_blocking(|| thread.join().unwrap()).await.unwrap()
}
