//! The account of all blocks: accepted, acknowledged, committed.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, watch};

/// How far something has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tip {
    pub(crate) blocks: u64,
    /// No block follows.
    pub(crate) ended: bool,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    accepted: watch::Sender<Tip>,
    committed: watch::Sender<Tip>,
    quorum: usize,
    replicas: Mutex<Vec<Replica>>,
}

/// The account of a replica, kept while it is not connected.
#[derive(Debug)]
struct Replica {
    /// Blocks in its file.
    acknowledged: u64,
    /// The present connection, or the end of the last one.
    state: String,
    /// Notified when another connection takes over.
    current: Option<Arc<Notify>>,
}

impl Ledger {
    /// An account for `replicas` replicas, of which `quorum` commit.
    pub(crate) fn new(replicas: usize, quorum: usize) -> Self {
        let absent = || Replica { acknowledged: 0, state: "never connected".into(), current: None };
        Self {
            accepted: watch::Sender::default(),
            committed: watch::Sender::default(),
            quorum,
            replicas: Mutex::new((0..replicas).map(|_| absent()).collect()),
        }
    }

    pub(crate) fn accepted(&self) -> watch::Receiver<Tip> {
        self.accepted.subscribe()
    }

    pub(crate) fn committed(&self) -> watch::Receiver<Tip> {
        self.committed.subscribe()
    }

    /// Enters one more block. Returns `false` after the end: the block is not accepted.
    pub(crate) fn accept(&self) -> bool {
        self.accepted.send_if_modified(|tip| {
            tip.blocks += u64::from(!tip.ended);
            !tip.ended
        })
    }

    /// Accepts no further block.
    pub(crate) fn end(&self) {
        self.accepted.send_modify(|tip| tip.ended = true);
        self.commit(&self.replicas());
    }

    /// Begins a connection of a replica with `blocks` blocks, and ends the connection before. `None` without
    /// such a replica.
    pub(crate) fn join(self: &Arc<Self>, id: u32, blocks: u64, state: String) -> Option<Seat> {
        let replaced = Arc::new(Notify::new());
        let mut replicas = self.replicas();
        let replica = replicas.get_mut(id as usize)?;
        if let Some(before) = replica.current.replace(Arc::clone(&replaced)) {
            before.notify_one();
        }
        (replica.acknowledged, replica.state) = (blocks, state);
        self.commit(&replicas);
        Some(Seat { ledger: Arc::clone(self), id, replaced })
    }

    /// A line for each replica.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |(id, replica): (usize, &Replica)| {
            format!("replica {id}: {} blocks acknowledged; {}", replica.acknowledged, replica.state)
        };
        self.replicas().iter().enumerate().map(line).collect()
    }

    /// Commits the blocks that a quorum has acknowledged. The count never falls.
    fn commit(&self, replicas: &[Replica]) {
        let mut acknowledged = Vec::from_iter(replicas.iter().map(|replica| replica.acknowledged));
        let (_, blocks, _) = acknowledged.select_nth_unstable_by(self.quorum - 1, |a, b| b.cmp(a));
        let accepted = *self.accepted.borrow();
        self.committed.send_if_modified(|tip| {
            let blocks = tip.blocks.max(*blocks);
            let ended = accepted.ended && blocks == accepted.blocks;
            let new = Tip { blocks, ended };
            std::mem::replace(tip, new) != new
        });
    }

    fn replicas(&self) -> MutexGuard<'_, Vec<Replica>> {
        self.replicas.lock().expect("no holder panics")
    }
}

/// The place of a connected replica in the account.
#[derive(Debug)]
pub(crate) struct Seat {
    ledger: Arc<Ledger>,
    id: u32,
    replaced: Arc<Notify>,
}

impl Seat {
    /// Waits until another connection has the place.
    pub(crate) async fn replaced(&self) {
        self.replaced.notified().await;
    }

    /// The replica has all blocks before `blocks`.
    pub(crate) fn acknowledge(&self, blocks: u64) {
        self.update(|replica| replica.acknowledged = blocks);
    }

    /// The connection has ended.
    pub(crate) fn leave(self, state: String) {
        self.update(|replica| (replica.state, replica.current) = (state, None));
    }

    fn update(&self, change: impl FnOnce(&mut Replica)) {
        let mut replicas = self.ledger.replicas();
        let replica = &mut replicas[self.id as usize];
        // A replaced connection has no say.
        if replica.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &self.replaced)) {
            change(replica);
            self.ledger.commit(&replicas);
        }
    }
}
