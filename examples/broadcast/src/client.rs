//! One client: the frames that it has, and its end.

use std::{
    future::pending,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use pinbuf::{
    SharedBuf,
    sender::CloseReport,
    tokio::{Released, Stream, WriteHalf},
};
use tokio::{
    io::{copy, sink},
    select,
    sync::{Notify, broadcast, broadcast::error::RecvError, mpsc},
};

use crate::Late;

/// No frame.
const NONE: u64 = u64::MAX;

/// A frame and its number.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) number: u64,
    pub(crate) bytes: SharedBuf,
}

/// What the publisher knows of a client.
// The orderings are Relaxed: a number that is seen late cuts the client off a frame later, and the pool
// alone decides when memory is free.
pub(crate) struct Client {
    /// The oldest frame in flight.
    in_flight: AtomicU64,
    /// The frame that the socket has not accepted as a whole.
    unsent: AtomicU64,
    cut: Notify,
}

/// The end of a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Everything is released; so many frames were lost before.
    Whole { lost: u64 },
    /// The client was cut off, because it was too far behind.
    Late,
    /// The client left, or the connection failed.
    Left,
}

impl Client {
    pub(crate) fn new() -> Self {
        Self { in_flight: AtomicU64::new(NONE), unsent: AtomicU64::new(NONE), cut: Notify::new() }
    }

    /// Cuts the client off if it holds a frame older than `oldest`.
    pub(crate) fn cut_if_older(&self, oldest: u64) {
        if self.in_flight.load(Relaxed).min(self.unsent.load(Relaxed)) < oldest {
            self.cut.notify_one();
        }
    }

    /// Sends the frames until the stream ends.
    pub(crate) async fn serve(
        &self,
        stream: Stream,
        frames: broadcast::Receiver<Frame>,
        late: Late,
        linger: Duration,
    ) -> End {
        let (mut read, mut write) = stream.into_split();
        let (sent, accepted) = mpsc::unbounded_channel();
        let mut lost = 0;
        let fed = {
            // Requests are read and ignored: input left unread would turn the end into a reset.
            let discard = async {
                // An error shows in the next send too.
                let _ = copy(&mut read, &mut sink()).await;
                pending::<()>().await;
            };
            select! {
                biased;
                () = self.cut.notified() => Err(End::Late),
                () = self.watch(accepted) => unreachable!("the frames are sent meanwhile"),
                fed = self.feed(&mut write, frames, &sent, late, &mut lost) => fed,
                () = discard => unreachable!("never ready"),
            }
        };
        match fed {
            Ok(()) => match write.close(Some(linger)).await {
                CloseReport { drained: true, .. } => End::Whole { lost },
                _ => End::Left,
            },
            Err(end) => {
                // Resets the connection, so that its memory is released now.
                let _: CloseReport = write.abort();
                end
            }
        }
    }

    async fn feed(
        &self,
        write: &mut WriteHalf,
        mut frames: broadcast::Receiver<Frame>,
        sent: &mpsc::UnboundedSender<(u64, Released)>,
        late: Late,
        lost: &mut u64,
    ) -> Result<(), End> {
        loop {
            match frames.recv().await {
                Ok(frame) => {
                    self.unsent.store(frame.number, Relaxed);
                    let ticket = write.send(frame.bytes).await.map_err(|_| End::Left)?;
                    // The receiver lives as long as this future.
                    let _ = sent.send((frame.number, write.released(ticket)));
                    self.unsent.store(NONE, Relaxed);
                }
                Err(RecvError::Lagged(count)) if late == Late::Frames => *lost += count,
                Err(RecvError::Lagged(_)) => return Err(End::Late),
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    }

    /// Follows the releases, which come in the order of the frames or later.
    async fn watch(&self, mut accepted: mpsc::UnboundedReceiver<(u64, Released)>) {
        while let Some((number, released)) = accepted.recv().await {
            self.in_flight.store(number, Relaxed);
            // A failed connection shows in the next send too.
            let _ = released.await;
            if accepted.is_empty() {
                self.in_flight.store(NONE, Relaxed);
            }
        }
    }
}
