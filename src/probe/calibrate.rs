//! The size from which on zero copy pays on this machine.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use crate::{
    error::SendError,
    pool::{Backing, Pages, Pool},
    sender::{Policy, Sender, SenderBuilder},
    shared::SharedBuf,
};

/// Sizes to try, in the range of a datagram.
const SIZES: [usize; 5] = [4 << 10, 8 << 10, 16 << 10, 32 << 10, 60 << 10];

/// Bytes of memory sent in turn: more than the caches next to the CPU hold, and less.
const COLD: usize = 32 << 20;
const CACHED: usize = 256 << 10;

/// Sends timed at once. Notifications are read as often as in a busy sender.
const BATCH: usize = 32;

/// No round begins later.
const LIMIT: Duration = Duration::from_millis(70);

/// The result of [`calibrate_threshold`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Calibration {
    /// For data written long ago.
    pub cold: Crossover,
    /// For data in the caches next to the CPU, where copying is fast.
    pub cached: Crossover,
}

/// The size from which on zero copy is cheaper.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Crossover {
    /// The smallest size tried from which on zero copy was cheaper; 64 KiB if no size was.
    pub threshold_bytes: usize,
    /// Cost of a send at each size, smallest first.
    pub costs: Vec<SendCost>,
}

/// Cost of a send of one size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SendCost {
    /// Length of the send.
    pub bytes: usize,
    /// By copy.
    pub copied: Duration,
    /// Without copy, including the notification.
    pub zero_copy: Duration,
}

/// Measures from which size on zero copy pays on this machine, for
/// [`SenderBuilder::threshold_bytes`]. Takes less than 100 ms and sends nothing out of the host.
///
/// Both ways of sending are timed on UDP datagrams to a multicast group with a time to live of 0.
/// The kernel builds the packet and frees it before any device sees it, so no late copy is made, as
/// there would be on loopback proper. Only the costs that differ are timed: copying against
/// referencing pages, keeping a lease, posting and reading a notification. The best of several
/// rounds counts.
///
/// Not measured: the network card; TCP, where notifications cost more, so the next larger size is
/// the safe choice for TCP; huge pages, which make zero copy cheaper still.
///
/// # Errors
///
/// The error of the system, or [`io::ErrorKind::Unsupported`] where the kernel copied some of the
/// data: there is no zero copy, locked memory is short, or loopback has a packet capture open.
///
/// ```
/// let threshold_bytes = match pinbuf::probe::calibrate_threshold() {
///     Ok(found) => found.cold.threshold_bytes,
///     Err(_) => 16 * 1024,
/// };
/// let builder = pinbuf::Sender::builder().threshold_bytes(threshold_bytes);
/// # let _ = builder;
/// ```
pub fn calibrate_threshold() -> io::Result<Calibration> {
    let start = Instant::now();
    let memory = memory(COLD)?;
    let mut copying = Side::new(Sender::builder().policy(Policy::Never), &memory)?;
    let without = Sender::builder().policy(Policy::Prefer).threshold_bytes(1);
    let mut without = Side::new(without, &memory)?;
    let never = SendCost { bytes: 0, copied: Duration::MAX, zero_copy: Duration::MAX };
    let mut tried =
        [COLD, CACHED].map(|reach| (reach, SIZES.map(|bytes| SendCost { bytes, ..never })));
    // The first round warms everything up; the last one is short of time.
    for round in 0.. {
        if round > 1 && start.elapsed() > LIMIT {
            break;
        }
        for (reach, costs) in &mut tried {
            for cost in costs {
                let copied = copying.batch(cost.bytes, *reach)?;
                let zero_copy = without.batch(cost.bytes, *reach)?;
                if round > 0 {
                    cost.copied = cost.copied.min(copied);
                    cost.zero_copy = cost.zero_copy.min(zero_copy);
                }
            }
        }
    }
    let stats = without.sender.stats();
    if stats.deferred_copies > 0 || stats.copied_calls > 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let [cold, cached] = tried
        .map(|(_, costs)| Crossover { threshold_bytes: threshold(&costs), costs: costs.into() });
    Ok(Calibration { cold, cached })
}

/// Filled memory on base pages.
fn memory(len: usize) -> io::Result<SharedBuf> {
    let pool = Pool::builder().class(len, 1).backing(Backing::Require(Pages::Base)).build()?;
    let mut buf = pool.try_alloc(len)?;
    buf.resize(len, 1);
    Ok(buf.freeze())
}

/// The smallest size from which on zero copy is cheaper at every size.
fn threshold(costs: &[SendCost]) -> usize {
    let pays = |cost: &&SendCost| cost.zero_copy < cost.copied;
    costs.iter().rev().take_while(pays).last().map_or(64 << 10, |cost| cost.bytes)
}

/// One of the two ways.
struct Side {
    sender: Sender<UdpSocket>,
    memory: SharedBuf,
    offset: usize,
}

impl Side {
    fn new(builder: SenderBuilder, memory: &SharedBuf) -> io::Result<Self> {
        // With this address the group is reached by the loopback device.
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_multicast_ttl_v4(0)?;
        socket.set_multicast_loop_v4(false)?;
        socket.connect((Ipv4Addr::new(239, 255, 255, 250), 9))?;
        Ok(Self { sender: builder.adopt(socket)?, memory: memory.clone(), offset: 0 })
    }

    /// Average cost of a send of `bytes`, over a batch out of the first `reach` bytes of memory.
    fn batch(&mut self, bytes: usize, reach: usize) -> io::Result<Duration> {
        let start = Instant::now();
        for _ in 0..BATCH {
            if self.offset + bytes > reach {
                self.offset = 0;
            }
            let slice = self.memory.slice(self.offset..self.offset + bytes);
            match self.sender.try_send(slice) {
                Ok(_) => {}
                Err(SendError::WouldBlock(_)) => _ = self.sender.reap()?,
                Err(error) => return Err(error.into()),
            }
            self.offset += bytes;
        }
        self.sender.reap()?;
        Ok(start.elapsed() / BATCH as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(pairs: &[(u64, u64)]) -> Vec<SendCost> {
        let cost = |(bytes, (copied, zero_copy)): (&usize, &(u64, u64))| SendCost {
            bytes: *bytes,
            copied: Duration::from_nanos(*copied),
            zero_copy: Duration::from_nanos(*zero_copy),
        };
        SIZES.iter().zip(pairs).map(cost).collect()
    }

    #[test]
    fn the_threshold_is_the_size_where_zero_copy_pays() {
        let threshold = |pairs| threshold(&costs(pairs));
        assert_eq!(threshold(&[(5, 9), (9, 9), (9, 8), (20, 9), (40, 10)]), 16 << 10);
        assert_eq!(threshold(&[(9, 5), (5, 9), (5, 9), (20, 9), (40, 10)]), 32 << 10);
        assert_eq!(threshold(&[(9, 5), (9, 5), (9, 5), (9, 5), (9, 5)]), 4 << 10);
        assert_eq!(threshold(&[(9, 5), (9, 5), (9, 5), (9, 5), (5, 9)]), 64 << 10);
    }

    #[test]
    fn each_side_goes_its_own_way() {
        let memory = memory(CACHED).unwrap();
        let ways = [Policy::Never, Policy::Prefer].map(|policy| {
            let builder = Sender::builder().policy(policy).threshold_bytes(1);
            let mut side = Side::new(builder, &memory).unwrap();
            assert!(side.batch(16 << 10, CACHED).unwrap() > Duration::ZERO);
            let stats = side.sender.stats();
            (stats.copied_calls > 0, stats.zero_copy_calls > 0)
        });
        assert_eq!(ways[0], (true, false));
        // Where other tests have all the locked memory, some of it is copied too.
        assert!(ways[1].1);
    }

    #[test]
    fn every_size_is_measured_both_ways() {
        let mut tries = (0..20).map(|_| calibrate_threshold());
        // Not where a packet capture is open, nor while other tests have all the locked memory.
        let unsupported = |error: &io::Error| error.kind() == io::ErrorKind::Unsupported;
        let found = tries.find(|found| !found.as_ref().is_err_and(unsupported)).unwrap().unwrap();
        for Crossover { threshold_bytes, costs } in [found.cold, found.cached] {
            assert_eq!(costs.iter().map(|cost| cost.bytes).collect::<Vec<_>>(), SIZES);
            let measured = Duration::from_nanos(1)..Duration::MAX;
            for cost in &costs {
                assert!(measured.contains(&cost.copied) && measured.contains(&cost.zero_copy));
            }
            assert_eq!(threshold_bytes, threshold(&costs));
        }
    }
}
