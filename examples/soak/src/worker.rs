//! A thread that plays sessions in a row.

use std::{
    panic::{self, AssertUnwindSafe},
    thread::JoinHandle,
    time::Instant,
};

use crate::{
    datagrams,
    payload::Stock,
    peer::End,
    place::Place,
    random::Random,
    settings, signals, stream,
    tally::{Tally, add},
};

/// The peer of a session, which may live longer.
pub(crate) struct Peer {
    pub(crate) receiving: JoinHandle<Result<(u64, End), String>>,
    /// `true` if the sender reported that all bytes arrived.
    pub(crate) must_be_whole: bool,
}

pub(crate) struct Worker<'a> {
    pub(crate) name: String,
    pub(crate) stock: &'a Stock,
    pub(crate) tally: &'a Tally,
    pub(crate) until: Instant,
}

impl Worker<'_> {
    pub(crate) fn work(&self, mut random: Random) {
        let place = Place::enter(&mut random);
        add(&self.tally.lossy_workers, u64::from(place.is_lossy));
        if random.percent(30) {
            settings::bind_to_memlock();
        }
        let mut peers = Vec::new();
        for number in 0.. {
            if Instant::now() >= self.until || signals::interrupted() || self.tally.faults() > 0 {
                break;
            }
            let name = format!("{} session {number}", self.name);
            let mut random = random.branch();
            // Some have a pool of their own, dropped during its use.
            let own = random.percent(15).then(|| Stock::new(vec![settings::pool(&mut random)]));
            let stock = own.as_ref().unwrap_or(self.stock);
            let mut new = Vec::new();
            let session = AssertUnwindSafe(|| match random.percent(80) {
                true => stream::play(&mut random, stock, place, self.tally, &mut new),
                false => datagrams::play(&mut random, stock, self.tally, &mut new),
            });
            match panic::catch_unwind(session) {
                Ok(Ok(())) => {}
                Ok(Err(what)) => self.tally.fault(&name, &what),
                Err(_) => self.tally.fault(&name, "a panic"),
            }
            add(&self.tally.sessions, 1);
            peers.extend(new.into_iter().map(|peer| (name.clone(), peer)));
            let (ended, going): (Vec<_>, Vec<_>) =
                peers.into_iter().partition(|(_, peer)| peer.receiving.is_finished());
            self.join(ended);
            peers = going;
        }
        self.join(peers);
    }

    fn join(&self, peers: Vec<(String, Peer)>) {
        for (name, peer) in peers {
            match peer.receiving.join() {
                Ok(Ok((bytes, end))) => {
                    add(&self.tally.received, bytes);
                    if peer.must_be_whole && end != End::Whole {
                        self.tally.fault(&name, &format!("drained, but the peer saw {end:?}"));
                    }
                }
                Ok(Err(what)) => self.tally.fault(&name, &what),
                Err(_) => self.tally.fault(&name, "the peer panicked"),
            }
        }
    }
}
