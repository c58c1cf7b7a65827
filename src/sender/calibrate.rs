//! The size from which on zero copy pays on this machine.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use super::{
    budget::MemlockBudget,
    config::{Config, DataHint},
    driver::Core,
    handle::Sender,
    kernel::SocketKernel,
};
use crate::{
    error::{CopyReason, SendError},
    id::NotificationId,
    pool::{Backing, Pages, Pool},
    shared::SharedBuf,
    sync::OnceLock,
    sys::{
        limits,
        process::PerProcess,
        socket::{self, Kind},
    },
};

/// Sizes to try, in the range of a datagram.
const SIZES: [usize; 5] = [4 << 10, 8 << 10, 16 << 10, 32 << 10, 60 << 10];

/// The threshold if no size pays.
const NO_SIZE: usize = 64 << 10;

/// Bytes of memory sent in turn: more than the caches next to the CPU hold, and less.
const COLD: usize = 32 << 20;
const CACHED: usize = 256 << 10;

/// Sends timed at once.
const BATCH: usize = 16;

/// Times of each batch. The shortest counts, so other load on the machine has to hit all of them.
const ROUNDS: usize = 4;

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

/// Measures from which size on zero copy pays on this machine. Sends nothing out of the host.
///
/// Senders with a [`DataHint`] follow the first measurement of the process. Without an earlier one,
/// the first adoption with a hint measures. A program that adopts sockets where nothing may
/// wait, such as in a task, calls this function first. If the measurement of an adoption fails, senders
/// follow the usual sizes from then on, also after a success of this function.
///
/// Both ways of sending are timed on UDP datagrams to a multicast group with a time to live of 0.
/// The kernel builds the packet and frees it before any device sees it, so no late copy is made, as
/// there would be on loopback proper. Only the costs that differ are timed: copying against
/// referencing pages, keeping a lease, posting and reading a notification. The shortest of several
/// times counts, so on a busy machine the measurement takes longer, and finds much the same.
///
/// Not measured: the network card; TCP, with ratios that differ by up to a fifth at 8 KiB and a
/// tenth above; base pages, where transparent huge pages are to be had.
///
/// # Errors
///
/// The error of the system, or [`io::ErrorKind::Unsupported`] where the kernel copied some of the
/// data: there is no zero copy, locked memory is short, or loopback has a packet capture open.
///
/// # Performance
///
/// Some 8 ms of processor time on an idle machine, and 33 MiB of memory meanwhile. No thread is started.
///
/// # Examples
///
/// ```
/// use pinbuf::sender::DataHint;
///
/// if let Ok(found) = pinbuf::probe::calibrate_threshold() {
///     println!("{} for cold data", found.cold.threshold_bytes);
/// }
/// // Follows the measurement.
/// let builder = pinbuf::Sender::builder().data_hint(DataHint::Cold);
/// # let _ = builder;
/// ```
pub fn calibrate_threshold() -> io::Result<Calibration> {
    let found = measure()?;
    // Kept only if there is no earlier measurement.
    let _ = FOUND.get(OnceLock::new).set(Some(found.clone()));
    Ok(found)
}

/// The first measurement of this process; `None` if it failed.
static FOUND: PerProcess<OnceLock<Option<Calibration>>> = PerProcess::new();

/// The threshold for such data. With a hint, the first call of the process measures.
pub(super) fn threshold_bytes(data: DataHint) -> usize {
    let first = FOUND.get(OnceLock::new);
    let found = match data {
        DataHint::Unknown => first.get(),
        DataHint::Cold | DataHint::Cached => Some(first.get_or_init(|| measure().ok())),
    };
    choose(data, found.and_then(Option::as_ref))
}

/// The threshold for such data on a machine with these costs, if the costs are known.
fn choose(data: DataHint, found: Option<&Calibration>) -> usize {
    let usual = Config::default().threshold_bytes;
    let measured = found.map(|found| [found.cold.threshold_bytes, found.cached.threshold_bytes]);
    let [cold, cached] = measured.unwrap_or([usual, NO_SIZE]);
    // Bounds against a measurement disturbed by other load: a hint of cold data never raises the
    // threshold, and cached data gains no earlier than cold data.
    let cold = cold.min(usual);
    let cached = cached.max(cold);
    match data {
        DataHint::Cold => cold,
        DataHint::Cached => cached,
        // Between the two sizes cold data gains and cached data loses.
        DataHint::Unknown => usual.min(cached),
    }
}

/// Measures the costs of both ways for cold and for cached data.
fn measure() -> io::Result<Calibration> {
    let memory = memory(COLD)?;
    let mut copying = Side::new(Some(CopyReason::Policy), &memory)?;
    let mut without = Side::new(None, &memory)?;
    let never = SendCost { bytes: 0, copied: Duration::MAX, zero_copy: Duration::MAX };
    let mut tried =
        [COLD, CACHED].map(|reach| (reach, SIZES.map(|bytes| SendCost { bytes, ..never })));
    // One place after the other: cold data would drive the cached data out.
    for (reach, costs) in &mut tried {
        for _ in 0..ROUNDS {
            for cost in costs.iter_mut() {
                cost.copied = cost.copied.min(copying.batch(cost.bytes, *reach)?);
                cost.zero_copy = cost.zero_copy.min(without.batch(cost.bytes, *reach)?);
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

/// Filled memory, on the pages of a usual pool without a reserve of huge pages.
fn memory(len: usize) -> io::Result<SharedBuf> {
    let pool = Pool::builder().class(len, 1).backing(Backing::Prefer(Pages::Thp)).build()?;
    let mut buf = pool.try_alloc(len)?;
    buf.resize(len, 1);
    Ok(buf.freeze())
}

/// The smallest size from which on zero copy is cheaper at every size.
fn threshold(costs: &[SendCost]) -> usize {
    let pays = |cost: &&SendCost| cost.zero_copy < cost.copied;
    costs.iter().rev().take_while(pays).last().map_or(NO_SIZE, |cost| cost.bytes)
}

/// One of the two ways.
struct Side {
    sender: Sender<UdpSocket>,
    memory: SharedBuf,
    offset: usize,
}

impl Side {
    /// A sender as adoption makes it, without the builder, which asks for measurements.
    fn new(copy_reason: Option<CopyReason>, memory: &SharedBuf) -> io::Result<Self> {
        // With this address the group is reached by the loopback device.
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_multicast_ttl_v4(0)?;
        socket.set_multicast_loop_v4(false)?;
        socket.connect((Ipv4Addr::new(239, 255, 255, 250), 9))?;
        socket::prepare(socket.as_fd())?;
        if copy_reason.is_none() {
            socket::enable_zerocopy(socket.as_fd())?;
        }
        let kernel = SocketKernel::new(socket, Kind::Udp);
        let config = Config { threshold_bytes: 1, ..Config::default() };
        let (budget, optmem_max) = (MemlockBudget::of_process(), limits::optmem_max()?);
        let first = NotificationId(0);
        let core = Core::new(kernel, config, copy_reason, budget, optmem_max, first);
        Ok(Self { sender: Sender { core: Some(core) }, memory: memory.clone(), offset: 0 })
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

    /// The thresholds for cold, unknown and cached data.
    fn chosen(cold: &[(u64, u64)], cached: &[(u64, u64)]) -> [usize; 3] {
        let crossover = |pairs| {
            let costs = costs(pairs);
            Crossover { threshold_bytes: threshold(&costs), costs }
        };
        let found = Calibration { cold: crossover(cold), cached: crossover(cached) };
        [DataHint::Cold, DataHint::Unknown, DataHint::Cached]
            .map(|data| choose(data, Some(&found)) >> 10)
    }

    const ALWAYS: [(u64, u64); 5] = [(9, 5); 5];
    const NEVER: [(u64, u64); 5] = [(5, 9); 5];

    #[test]
    fn the_hint_and_the_machine_choose_the_threshold() {
        let from_8 = [(5, 9), (9, 8), (9, 8), (9, 7), (9, 6)];
        let from_60 = [(5, 9), (5, 6), (5, 6), (5, 6), (6, 5)];
        // AMD Zen 5, and an Intel machine whose cold data gains from the smallest size on.
        assert_eq!(chosen(&from_8, &from_60), [8, 16, 60]);
        assert_eq!(chosen(&ALWAYS, &from_60), [4, 16, 60]);
        // Where zero copy always pays, no hint is needed.
        assert_eq!(chosen(&ALWAYS, &from_8), [4, 8, 8]);
    }

    #[test]
    fn a_disturbed_measurement_is_bounded() {
        assert_eq!(chosen(&NEVER, &NEVER), [16, 16, 64]);
        assert_eq!(chosen(&NEVER, &ALWAYS), [16, 16, 16], "cached data gains no earlier than cold");
        assert_eq!(chosen(&ALWAYS, &ALWAYS), [4, 4, 4]);
    }

    #[test]
    fn without_a_measurement_sizes_are_fixed() {
        let chosen = [DataHint::Cold, DataHint::Unknown, DataHint::Cached]
            .map(|data| choose(data, None) >> 10);
        assert_eq!(chosen, [16, 16, 64]);
    }

    #[test]
    fn each_side_goes_its_own_way() {
        let memory = memory(CACHED).unwrap();
        let ways = [Some(CopyReason::Policy), None].map(|copy_reason| {
            let mut side = Side::new(copy_reason, &memory).unwrap();
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
