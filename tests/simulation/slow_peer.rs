//! Dropped senders whose peers read slowly, or stop.

use std::{sync::Arc, time::Duration};

use pinbuf::{
    __internals::{Config, Core, MemlockBudget},
    NotificationId, Payload,
};

use crate::{
    choices::Choices,
    kernel::SimKernel,
    memory::{Memory, Text},
    nature::{FOR_EVER, MILLISECOND, Nature, SECOND, Weather},
    notes::{Notes, User},
    socket::{Socket, Wire},
    stream::Stream,
    world::Shared,
};

const LINGER: u64 = SECOND;
const OPTMEM_MAX: usize = 128 << 10;
const PAYLOADS: usize = 16;
const PAYLOAD_BYTES: usize = 64 << 10;

/// A dropped sender and its peer.
#[derive(Clone, Copy, Debug)]
struct Case {
    send_room: usize,
    /// Bytes of each read of the peer, and the pause after it.
    pace: (u64, u64),
    /// Sends from so many bytes on go without copy.
    threshold_bytes: usize,
    /// Bytes that the user wrote to the socket before.
    header_bytes: u64,
    /// Whether the sender was dropped in two halves.
    is_split: bool,
    /// The peer reads so many bytes, then nothing any more.
    stops_after: u64,
}

impl Case {
    /// Every sender and every pace.
    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        let paces = [(1000, 10 * MILLISECOND), (10_000, 100 * MILLISECOND), (30_000, SECOND / 2)];
        for (at, pace) in (0..).zip(paces) {
            for send_room in [16 << 10, 400 << 10] {
                for threshold_bytes in [1, usize::MAX] {
                    for header_bytes in [0, 2 << 20] {
                        let is_split = (at + cases.len()) % 2 == 0;
                        let stops_after = FOR_EVER;
                        cases.push(Self {
                            send_room,
                            pace,
                            threshold_bytes,
                            header_bytes,
                            is_split,
                            stops_after,
                        });
                    }
                }
            }
        }
        cases
    }

    /// Drops a sender and waits for its end. Returns when the stream was cut short, if it was, and
    /// when the peer had last acknowledged something.
    fn play(self, seed: u64) -> Option<(u64, u64)> {
        let mut choices = Choices::random(seed);
        let texts = [(); PAYLOADS].map(|()| Text::new(&mut choices, PAYLOAD_BYTES));
        let user = User { limit_pages: None, charged_pages: 0, others_pages: 0 };
        let (memory, weather) = (Memory::new(), Weather::default());
        let world = Shared::new(Nature { choices, now: 0, memory, user, weather });
        let mut stream = Stream::new(self.send_room, 64 << 10);
        stream.pace(Some(self.pace));
        stream.write(self.header_bytes);
        let kernel =
            SimKernel::open(&world, Socket::new(Wire::Stream(stream), Notes::new(0, OPTMEM_MAX)));
        let number = kernel.number();
        let config = Config {
            threshold_bytes: self.threshold_bytes,
            linger: Duration::from_nanos(LINGER),
            ..Config::default()
        };
        let budget = Arc::new(MemlockBudget::new(None));
        let core = Core::new(kernel, config, None, budget, OPTMEM_MAX as u32, NotificationId(0));
        world.lock().socket(number).0.expected.push(&texts);
        let mut payloads: Vec<_> = texts.iter().map(|text| Payload::from(text.bytes())).collect();
        // A header may leave no room at first.
        while core.try_send_vectored(&mut payloads).is_err() {
            world.advance(FOR_EVER);
        }
        {
            let mut world = world.lock();
            let now = world.nature.now;
            world.socket(number).0.dropped = Some((LINGER, now));
        }
        if self.is_split {
            core.share();
            Arc::clone(&core).leave(true);
        }
        core.leave(false);
        world.lock().begin_call();
        while world.lock().closed == 0 {
            assert!(world.advance(FOR_EVER), "the end never comes");
            let mut world = world.lock();
            if let Some(socket) = &mut world.sockets[number]
                && let Wire::Stream(stream) = &mut socket.wire
                && stream.acknowledged() >= self.stops_after
            {
                stream.stall(FOR_EVER);
            }
        }
        world.lock().last_cut
    }
}

#[test]
fn a_peer_that_goes_on_reading_is_never_reset() {
    for (seed, case) in (0..).zip(Case::all()) {
        assert_eq!(case.play(seed), None, "{case:?}");
    }
}

#[test]
fn a_peer_that_stops_after_progress_is_reset_at_linger() {
    for (seed, case) in (0..).zip(Case::all()) {
        let total = case.header_bytes + (PAYLOADS * PAYLOAD_BYTES) as u64;
        let case = Case { stops_after: total - (500 << 10), ..case };
        let (cut_at, acknowledged_at) = case.play(seed).unwrap_or_else(|| panic!("{case:?}"));
        let idle = cut_at - acknowledged_at;
        assert!((LINGER..2 * LINGER).contains(&idle), "{idle} ns, {case:?}");
    }
}
