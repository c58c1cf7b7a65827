//! Sending: the library against plain sends, the least zero-copy code, and `io_uring`.
//!
//! All contestants send the same lengths from 32 MiB in turn, colder than the caches next to the
//! CPU, over sockets of the same kind. Notifications are read after every 32 sends. Routes without
//! copies need a private network namespace and the device kind `ifb`.
//!
//! User instructions are counted by `valgrind --tool=callgrind`, if installed: they depend neither
//! on the machine nor on its other load.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "send/contestant.rs"]
mod contestant;
#[path = "send/count.rs"]
mod count;
#[path = "../tests/lab/fake_peer.rs"]
mod fake_peer;
#[path = "send/floor.rs"]
mod floor;
mod harness;
#[path = "send/memory.rs"]
mod memory;
#[path = "send/uring.rs"]
mod uring;
#[path = "send/way.rs"]
mod way;

use std::{rc::Rc, time::Duration};

use common::{namespace, set_option};
use contestant::{Contestant, Pinbuf};
use fake_peer::DEVICE;
use floor::Floor;
use harness::{AtMost, Bench, Case};
use memory::Memory;
use pinbuf::{
    Policy, Sender,
    sender::{DataHint, Datagram, SenderBuilder},
};
use uring::Uring;
use way::{BATCH, FarEnd, Way};

const PLAIN: &str = "plain send";
const LOOP: &str = "floor: loop with MSG_ZEROCOPY";
const PREFER: &str = "pinbuf, Prefer";
const AUTO: &str = "pinbuf, Auto";
const NEVER: &str = "pinbuf, Never";
const AUTO_COLD: &str = "pinbuf, Auto, cold";
const AUTO_CACHED: &str = "pinbuf, Auto, cached";
const TIMED: &str = "pinbuf, Prefer, with release times";
const URING: &str = "io_uring SEND_ZC";
const ONE_A_CALL: &str = "plain send, one datagram a call";
const REGISTERED: &str = "io_uring SEND_ZC, registered";

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

const EVERYBODY: [&str; 6] = [PLAIN, LOOP, PREFER, AUTO, URING, REGISTERED];

/// The bytes sent in turn: more than the caches of the processor hold, and less than the cache of a
/// core, together with the buffers in flight.
const COLD: usize = 128 * MIB;
const CACHED: usize = MIB / 2;

/// `linux/udp.h`
const UDP_SEGMENT: i32 = 103;

/// The bytes of a datagram in a train.
const SEGMENT: usize = 1400;

const UNIT: &str = "ms of CPU per GB";
const ROUNDS: usize = 11;

fn main() {
    if count::counts() {
        return;
    }
    // Otherwise the kernel cuts a datagram into fragments, and copies them.
    let whole_datagrams = || namespace::run(&format!("ip link set {DEVICE} mtu 65535"));
    let furnished =
        namespace::enter().and_then(|()| fake_peer::furnish()).and_then(|()| whole_datagrams());
    let mut bench = Bench::new("send");
    let warm_up = bench.size(Duration::from_secs(1), Duration::from_millis(10));
    let streams = bench.size(&[4, 16, 64, 256, 1024][..], &[64]);
    let datagrams = bench.size(&[4, 16, 60][..], &[60]);
    let loopback = SetUp { warm_up, ..SetUp::LOOPBACK };
    let on_device = SetUp { furnished: &furnished, ..loopback };
    for huge in [true, false] {
        let pages = if huge { "huge pages" } else { "base pages" };
        for way in [Way::FakePeer, Way::Datagrams] {
            let lens = if way == Way::Datagrams { datagrams } else { streams };
            let name = format!("{way}, {pages}");
            let mut table = bench.table(&name, UNIT).rounds(ROUNDS);
            for &kib in lens {
                table.case(&format!("{kib} KiB"), PLAIN, |case| {
                    enter(case, &EVERYBODY, SetUp { way, len: kib * KIB, huge, ..on_device });
                    if kib >= 16 {
                        case.goal(PREFER, LOOP, AtMost::Times(1.03));
                    }
                });
            }
        }
    }
    let mut table = bench.table(&format!("{}, both ends", Way::Loopback), UNIT).rounds(ROUNDS);
    for &kib in streams {
        table.case(&format!("{kib} KiB"), PLAIN, |case| {
            enter(case, &EVERYBODY, SetUp { len: kib * KIB, ..loopback });
            case.goal(AUTO, PLAIN, AtMost::Times(1.05));
            if kib >= 16 {
                case.goal(PREFER, LOOP, AtMost::Times(1.03));
            }
        });
    }
    drop(table);
    let name = format!("{}, by the bytes sent in turn", Way::Datagrams);
    let lens = bench.size(&[4, 16, 32, 60][..], &[60]);
    let mut table = bench.table(&name, UNIT).rounds(ROUNDS);
    for kib in lens {
        for mib in [1, 512] {
            table.case(&format!("{kib} KiB of {mib} MiB"), PLAIN, |case| {
                let (way, len, data) = (Way::Datagrams, kib * KIB, mib * MIB);
                enter(case, &[PLAIN, LOOP, PREFER], SetUp { way, len, data, ..on_device });
            });
        }
    }
    drop(table);
    let trains = bench.size(&[10, 42][..], &[42]);
    let mut table =
        bench.table("Trains of 1,400 bytes, UDP to ifb, true zero copy", UNIT).rounds(ROUNDS);
    for &segments in trains {
        table.case(&format!("{segments} datagrams"), PLAIN, |case| {
            let set_up = SetUp { way: Way::Datagrams, len: SEGMENT, ..on_device };
            let len = segments * SEGMENT;
            enter(case, &[PLAIN, LOOP, PREFER, NEVER], SetUp { len, train: true, ..set_up });
            enter(case, &[ONE_A_CALL], set_up);
            if segments == 42 {
                case.goal(PREFER, PLAIN, AtMost::Times(0.6));
            }
        });
    }
    drop(table);
    // The choice of the way: against the better way, and without a hint against the earlier choice.
    let lens = bench.size(&[4, 8, 16, 32, 64][..], &[16]);
    for way in [Way::FakePeer, Way::Datagrams] {
        let name = format!("Threshold, {way}");
        let mut table = bench.table(&name, UNIT).rounds(ROUNDS);
        for kib in lens {
            for (place, hinted, data) in
                [("cold", AUTO_COLD, COLD), ("cached", AUTO_CACHED, CACHED)]
            {
                let kib = if way == Way::Datagrams { *kib.min(&60) } else { *kib };
                table.case(&format!("{kib} KiB, {place}"), NEVER, |case| {
                    let len = kib * KIB;
                    enter(
                        case,
                        &[NEVER, PREFER, AUTO, hinted],
                        SetUp { way, len, data, ..on_device },
                    );
                    case.goal_of_better(hinted, [NEVER, PREFER], AtMost::Times(1.05));
                    let earlier = if kib < 16 { NEVER } else { PREFER };
                    case.goal(AUTO, earlier, AtMost::Times(1.05));
                });
            }
        }
    }
    let mut table = bench.table("Release times", UNIT).rounds(ROUNDS);
    for way in [Way::FakePeer, Way::NoDevice] {
        for kib in [16, 60] {
            table.case(&format!("{way}, {kib} KiB"), PREFER, |case| {
                enter(case, &[PREFER, TIMED], SetUp { way, len: kib * KIB, ..on_device });
            });
        }
    }
    drop(table);
    let mut table = bench.table("User instructions", "of a send and its release").rounds(1);
    for way in [Way::NoDevice, Way::Loopback] {
        table.case(&way.to_string(), LOOP, |case| {
            for name in [PLAIN, LOOP, PREFER, TIMED, AUTO] {
                case.row(name, move || count::instructions(name, way).map(|count| move |_| count));
            }
            case.goal(PREFER, LOOP, AtMost::More(300.0));
        });
    }
    drop(table);
    bench.finish();
}

#[derive(Clone, Copy)]
struct SetUp<'a> {
    way: Way,
    len: usize,
    /// The number of bytes sent in turn.
    data: usize,
    huge: bool,
    /// The kernel cuts each send into datagrams of [`SEGMENT`] bytes.
    train: bool,
    /// The reason of a missing device.
    furnished: &'a Result<(), String>,
    /// The time for a contestant to probe its route, and for a connection to speed up.
    warm_up: Duration,
}

impl SetUp<'_> {
    const LOOPBACK: Self = Self {
        way: Way::Loopback,
        len: 16 * KIB,
        // Colder than the caches next to the CPU.
        data: 32 * MIB,
        huge: true,
        train: false,
        furnished: &Ok(()),
        warm_up: Duration::ZERO,
    };

    fn memory(self) -> Result<Rc<Memory>, String> {
        Memory::new(self.data, self.huge).map(Rc::new)
    }

    fn contestant(self, name: &str) -> Result<(Box<dyn Contestant>, FarEnd), String> {
        if !matches!(self.way, Way::Loopback | Way::NoDevice) {
            self.furnished.clone()?;
        }
        let (near, far) = self.way.connect();
        let Self { len, data, huge, .. } = self;
        if self.train {
            set_option(&near, libc::SOL_UDP, UDP_SEGMENT, &(SEGMENT as i32));
        }
        let contestant: Box<dyn Contestant> = match name {
            PLAIN | ONE_A_CALL => Box::new(Floor::new(near, false, self.memory()?, len)),
            LOOP => Box::new(Floor::new(near, true, self.memory()?, len)),
            URING => Box::new(Uring::new(near, self.memory()?, len, false)?),
            REGISTERED => Box::new(Uring::new(near, self.memory()?, len, true)?),
            other => {
                let train = self.train.then(|| Datagram::to_peer().segment_size(SEGMENT as u16));
                Box::new(Pinbuf::new(near, builder(other)?, data, len, huge)?.in_trains(train))
            }
        };
        Ok((contestant, far))
    }
}

/// The settings of a row of the library.
fn builder(name: &str) -> Result<SenderBuilder, String> {
    let builder = Sender::builder();
    // All sends are zero-copy, and compare with the loop.
    let prefer = builder.policy(Policy::Prefer).threshold_bytes(1);
    Ok(match name {
        NEVER => builder.policy(Policy::Never),
        PREFER => prefer,
        TIMED => timed(prefer)?,
        // Decides as for a user.
        AUTO => builder,
        AUTO_COLD => builder.data_hint(DataHint::Cold),
        AUTO_CACHED => builder.data_hint(DataHint::Cached),
        other => unreachable!("{other}"),
    })
}

#[cfg(feature = "histogram")]
fn timed(sender: SenderBuilder) -> Result<SenderBuilder, String> {
    Ok(sender.release_times(true))
}

#[cfg(not(feature = "histogram"))]
fn timed(_: SenderBuilder) -> Result<SenderBuilder, String> {
    Err("built without --features histogram".to_owned())
}

fn enter<'a>(case: &mut Case<'a>, names: &[&'static str], set_up: SetUp<'a>) {
    for &name in names {
        case.row(name, move || {
            let (mut contestant, mut far) = set_up.contestant(name)?;
            let SetUp { way, len, warm_up, .. } = set_up;
            let batch = move || {
                for _ in 0..BATCH / len {
                    contestant.send(&mut far);
                    far.take(contestant.fd(), len);
                }
                far.take_all(contestant.fd());
                contestant.drain();
            };
            Ok(way.ms_per_gb(len, warm_up, batch))
        });
    }
}
