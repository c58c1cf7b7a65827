//! Dropped senders with peers that read slowly, or stop.

use std::{sync::Arc, time::Duration};

use pinbuf::{
    __internals::{Config, Core, MemlockBudget, NotificationId},
    Payload,
};

use crate::{
    choices::Choices,
    environment::{Environment, FOR_EVER, MILLISECOND, SECOND, Weather},
    kernel::SimKernel,
    memory::{Memory, Text},
    notifications::{Notifications, User},
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
    linger: u64,
    send_room: usize,
    /// Bytes of each read of the peer, and the pause after it.
    pace: (u64, u64),
    /// Sends of at least this many bytes go by zero copy.
    threshold_bytes: usize,
    /// Bytes that the user wrote to the socket before.
    header_bytes: u64,
    /// `true` if the sender was dropped in two halves.
    is_split: bool,
    /// The peer reads this many bytes, then none.
    stops_after: u64,
    /// The largest number of zero-copy calls in flight.
    window_calls: usize,
}

impl Case {
    /// All senders with all paces.
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
                            linger: LINGER,
                            send_room,
                            pace,
                            threshold_bytes,
                            header_bytes,
                            is_split,
                            stops_after,
                            window_calls: Config::default().max_in_flight_sends,
                        });
                    }
                }
            }
        }
        cases
    }

    /// Drops a sender and waits for its end. Returns the time at which the stream was truncated, if
    /// so, and the time of the peer's last acknowledgement.
    fn play(self, seed: u64) -> Option<(u64, u64)> {
        let mut stream = Stream::new(self.send_room, 64 << 10);
        stream.pace(Some(self.pace));
        stream.write(self.header_bytes);
        let (world, number) = self.drop_sender(seed, stream, Weather::default());
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

    /// Drops a sender over this stream, with all payloads sent.
    fn drop_sender(self, seed: u64, stream: Stream, weather: Weather) -> (Shared, usize) {
        let mut choices = Choices::random(seed);
        let texts = [(); PAYLOADS].map(|()| Text::new(&mut choices, PAYLOAD_BYTES));
        let user = User { limit_pages: None, charged_pages: 0, others_pages: 0 };
        let memory = Memory::new();
        let world = Shared::new(Environment { choices, now: 0, memory, user, weather });
        let kernel = SimKernel::open(
            &world,
            Socket::new(Wire::Stream(stream), Notifications::new(0, OPTMEM_MAX)),
        );
        let number = kernel.number();
        let config = Config {
            threshold_bytes: self.threshold_bytes,
            linger: Duration::from_nanos(self.linger),
            max_in_flight_sends: self.window_calls,
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
            let now = world.environment.now;
            world.socket(number).0.dropped = Some((self.linger, now));
        }
        if self.is_split {
            core.share();
            Arc::clone(&core).leave(true);
        }
        core.leave(false);
        world.lock().begin_call();
        (world, number)
    }
}

#[test]
fn a_reading_peer_is_never_reset() {
    for (seed, case) in (0..).zip(Case::all()) {
        assert_eq!(case.play(seed), None, "{case:?}");
    }
}

#[test]
fn a_stopped_peer_is_reset_after_linger() {
    for (seed, case) in (0..).zip(Case::all()) {
        let total = case.header_bytes + (PAYLOADS * PAYLOAD_BYTES) as u64;
        // A large socket has taken everything before the second stop. Copied bytes then belong to
        // the kernel alone.
        let holds_all = case.send_room > 200 << 10;
        let stops = [total - (500 << 10), total - (200 << 10)];
        for stops_after in stops.into_iter().take(if holds_all { 2 } else { 1 }) {
            if stops_after == stops[1] && case.threshold_bytes > PAYLOAD_BYTES {
                continue;
            }
            for linger in [LINGER, 10 * LINGER, 60 * LINGER] {
                let case = Case { stops_after, linger, ..case };
                let cut = case.play(seed);
                let (cut_at, acknowledged_at) = cut.unwrap_or_else(|| panic!("{case:?}"));
                let idle = cut_at - acknowledged_at;
                // One look to see the last progress, one to see the timeout.
                let late = 2 * SECOND.min(linger / 10);
                assert!((linger..=linger + late).contains(&idle), "{idle} ns, {case:?}");
            }
        }
    }
}

/// The end of the stream counts as one unacknowledged byte.
#[test]
fn a_lost_end_of_the_stream_causes_no_reset() {
    let mut cases = Case::all();
    cases.retain(|case| case.threshold_bytes == 1 && case.header_bytes == 0);
    for seed in 0..20 {
        let case = cases[seed as usize % cases.len()];
        let case = Case { linger: LINGER / 10, send_room: 4 << 20, ..case };
        let mut stream = Stream::new(case.send_room, 4 << 20);
        stream.loses_end = true;
        // Clones of all packets wait in a queue below TCP, for a second at most each.
        let weather = Weather { held: 1000, ..Weather::default() };
        let (world, number) = case.drop_sender(seed, stream, weather);
        let mut turns_held = 0;
        while world.lock().closed == 0 {
            assert!(world.advance(FOR_EVER), "the end never comes");
            let mut world = world.lock();
            if let Some(socket) = &world.sockets[number]
                && let Wire::Stream(stream) = &socket.wire
                && stream.unacked_data() == 0
                && socket.notifications.has_live()
            {
                turns_held += 1;
            }
            if world.environment.now > 10 * MILLISECOND {
                world.environment.weather.held = 0;
            }
        }
        assert!(turns_held > 0);
        assert_eq!(world.lock().last_cut, None);
    }
}

/// The peer has all bytes taken by the socket, and a packet in a queue below TCP fills the window.
#[test]
fn a_stuck_unsent_part_is_cut_off_after_linger() {
    let mut cases = Case::all();
    cases.retain(|case| case.threshold_bytes == 1 && case.header_bytes == 0);
    let case = Case { linger: LINGER / 10, window_calls: 1, ..cases[0] };
    for seed in 0..10 {
        let weather = Weather { held: 1000, ..Weather::default() };
        let stream = Stream::new(case.send_room, 4 << 20);
        let (world, number) = case.drop_sender(seed, stream, weather);
        let mut unsent = 0;
        while world.lock().closed == 0 {
            assert!(world.advance(FOR_EVER), "the end never comes");
            if let Some(socket) = &world.lock().sockets[number] {
                unsent = socket.expected.pending();
            }
        }
        assert!(unsent > 0, "the unsent part waits for the packet");
    }
}
