//! The parts that the source and all connections share.

use std::{io, sync::Arc};

use pinbuf::{PinnedBuf, Pool};
use tokio::sync::watch;

use crate::{
    block::Block,
    config::Config,
    ledger::{Ledger, Tip},
    log::Log,
    wire::Message,
};

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) pool: Pool,
    pub(crate) log: Log,
    pub(crate) ledger: Arc<Ledger>,
}

impl Shared {
    pub(crate) fn new(config: Config) -> io::Result<Self> {
        config.check()?;
        let record_bytes = Message::LEN + config.block_bytes as usize;
        let pool = Pool::builder()
            .class(record_bytes, config.buffers() as usize)
            .sender_quota(config.quota as usize)
            .build()?;
        let log = Log::create(&config.log, pool.clone(), record_bytes, config.window as usize)?;
        let ledger = Arc::new(Ledger::new(config.replicas as usize, config.quorum() as usize));
        Ok(Self { config, pool, log, ledger })
    }

    /// A buffer for the block behind the first `accepted`, once there is room in the window. `None` at the end
    /// of the stream.
    pub(crate) async fn room(&self, accepted: u64) -> io::Result<Option<PinnedBuf>> {
        let (mut stream, mut committed) = (self.ledger.accepted(), self.ledger.committed());
        let room = async {
            let window = u64::from(self.config.window);
            let _ = committed.wait_for(|tip| accepted - tip.blocks < window).await;
            self.pool.alloc_async(self.log.record_bytes()).await
        };
        tokio::select! {
            buf = room => Ok(Some(buf?)),
            _ = stream.wait_for(|tip| tip.ended) => Ok(None),
        }
    }

    /// Waits for block `number` to be before the tip. `None` at the end of the stream.
    pub(crate) async fn next(
        &self,
        number: u64,
        tip: &mut watch::Receiver<Tip>,
    ) -> io::Result<Option<Block>> {
        let found = tip.wait_for(|tip| number < tip.blocks || tip.ended).await;
        let tip = *found.expect("the ledger outlives the connections");
        if number < tip.blocks { self.log.get(number).await.map(Some) } else { Ok(None) }
    }
}
