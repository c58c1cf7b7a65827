//! The judgement alone, over a socket with merging notifications, and senders on routes that copy.

use std::collections::VecDeque;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    lease::Payload,
    sender::{
        config::Config,
        driver::Core,
        fake::{Answer, FakeKernel, Seen},
        report::SenderStats,
        transport::Transport,
    },
};

const MIB: usize = 1 << 20;

/// A socket whose notifications merge as the kernel's do, under a route.
struct Socket {
    route: Route,
    now: Instant,
    next: u64,
    /// Groups of ids under one notification, and `true` if the whole group was copied: `(lo, hi, copied)`.
    unsent: VecDeque<(u64, u64, bool)>,
    error_queue: VecDeque<(u64, u64, bool)>,
    /// What became of each id.
    truth: Vec<bool>,
    zero_copy_bytes: u64,
    unread_calls: u32,
    changes: u64,
}

impl Socket {
    fn new() -> Self {
        Self {
            route: Route::new(true),
            now: Instant::now(),
            next: 0,
            unsent: VecDeque::new(),
            error_queue: VecDeque::new(),
            truth: Vec::new(),
            zero_copy_bytes: 0,
            unread_calls: 0,
            changes: 0,
        }
    }

    /// As `tracker.outstanding()`: not released, or not read.
    fn outstanding(&self) -> usize {
        let ids = |(lo, hi, _): &(u64, u64, bool)| (hi - lo + 1) as usize;
        self.unsent.iter().chain(&self.error_queue).map(ids).sum()
    }

    fn mode(&self) -> RouteMode {
        self.route.stats.mode
    }

    /// One call, as the sender makes it; `joins` the group queued before it if there is one.
    /// Returns whether it went without copy.
    fn call(&mut self, bytes: usize, copies: bool, joins: bool) -> bool {
        let mut admitted = false;
        let outstanding = self.outstanding();
        if self.route.concerns() {
            if self.route.wants_notifications(outstanding) || self.unread_calls == 32 {
                self.read();
            }
            let (outstanding, now) = (self.outstanding(), self.now);
            admitted = self.route.admits(outstanding, || now);
        } else {
            assert!(!self.route.admits(outstanding, || self.now), "not concerned, not admitted");
        }
        if admitted {
            let probing = self.route.is_exclusive();
            assert!(self.route.probe.is_none(), "a probe is alone");
            assert!(!probing || self.outstanding() == 0, "a probe is alone");
            self.route.began(NotificationId(self.next));
            self.route.returned();
            match self.unsent.back_mut() {
                // The group counts as copied if any of it was.
                Some((_, hi, copied)) if joins => {
                    (*hi, *copied) = (self.next, *copied | copies);
                }
                _ => self.unsent.push_back((self.next, self.next, copies)),
            }
            self.truth.push(copies);
            self.next += 1;
            self.zero_copy_bytes += bytes as u64;
        }
        self.unread_calls += u32::from(admitted);
        self.route.accepted(bytes);
        admitted
    }

    /// The kernel lets go of the oldest group, or of the one behind it.
    fn release(&mut self, out_of_order: bool) {
        let at = usize::from(out_of_order && self.unsent.len() > 1);
        let Some((lo, hi, copied)) = self.unsent.remove(at) else { return };
        match self.error_queue.back_mut() {
            Some((_, tail, _)) if *tail + 1 == lo => *tail = hi,
            _ => self.error_queue.push_back((lo, hi, copied)),
        }
    }

    fn read(&mut self) {
        self.unread_calls = 0;
        while let Some((lo, hi, copied)) = self.error_queue.pop_front() {
            let ids = IdRange { start: NotificationId(lo), end: NotificationId(hi + 1) };
            if let Some(probe) = self.route.probe {
                assert_eq!((lo, hi), (probe.id.0, probe.id.0), "the probe's note names it alone");
                assert_eq!(copied, self.truth[lo as usize], "and its flag is the probe's");
            }
            let mode = self.mode();
            self.route.notified(ids, copied);
            self.changes += u64::from(self.mode() != mode);
        }
    }

    /// A call whose notification is there before the next call, as on loopback.
    fn paced_call(&mut self, copies: bool) -> bool {
        let zero_copy = self.call(MIB, copies, false);
        self.release(false);
        self.now += Duration::from_millis(10);
        zero_copy
    }

    fn paced_calls(&mut self, count: usize, copies: bool) -> usize {
        (0..count).filter(|_| self.paced_call(copies)).count()
    }
}

const NOT_COPIED: bool = false;
const COPIED: bool = true;

#[test]
fn one_call_opens_a_route_that_does_not_copy() {
    let mut socket = Socket::new();
    assert!(socket.call(MIB, NOT_COPIED, false));
    assert!(!socket.call(MIB, NOT_COPIED, false), "alone until its note is read");
    socket.release(false);
    assert!(socket.call(MIB, NOT_COPIED, false));
    assert_eq!(socket.mode(), RouteMode::ZeroCopy);
    assert_eq!(socket.paced_calls(10_000, NOT_COPIED), 10_000);
    let RouteStats { probes, leaves, returns, .. } = socket.route.stats();
    assert_eq!((probes, leaves, returns), (1, 0, 0));
}

#[test]
fn three_probes_close_a_copying_route() {
    let mut socket = Socket::new();
    assert_eq!(socket.paced_calls(4, COPIED), 3);
    assert!(socket.route.is_copied());
    // 64 GiB: ten probes on the way to the longest interval, then one for every 4 GiB.
    let probes = socket.paced_calls(64 << 10, COPIED);
    assert!((20..=27).contains(&probes), "{probes}");
    assert_eq!(socket.route.stats().leaves, 1);
}

#[test]
fn a_closed_route_is_probed_after_bytes_and_time() {
    let mut socket = Socket::new();
    socket.paced_calls(4, COPIED);
    socket.now += Duration::from_secs(3600);
    assert!(!socket.call(INTERVAL_BYTES as usize - MIB - 1, COPIED, false));
    assert!(!socket.call(1, COPIED, false), "a byte was missing");
    assert!(socket.call(1, COPIED, false));
    socket.release(false);
    socket.read();
    socket.call(2 * INTERVAL_BYTES as usize, COPIED, false);
    socket.now += 2 * INTERVAL_TIME - Duration::from_nanos(1);
    assert!(!socket.call(1, COPIED, false));
    socket.now += Duration::from_nanos(1);
    let part = 2 * INTERVAL_BYTES / LOOKS;
    assert!(!socket.call(part as usize - 2, COPIED, false), "the time is not looked at");
    assert!(!socket.call(1, COPIED, false), "a byte was missing");
    assert!(socket.call(1, COPIED, false));
}

#[test]
fn the_way_back_takes_three_probes() {
    let mut socket = Socket::new();
    socket.paced_calls(4, COPIED);
    socket.paced_calls(10_000, COPIED);
    let before = socket.route.stats();
    while socket.route.streak == 0 {
        socket.paced_call(NOT_COPIED);
    }
    assert!(!socket.paced_call(NOT_COPIED), "the next probe takes a while");
    for _ in 0..20 {
        socket.paced_call(NOT_COPIED);
    }
    assert!(!socket.route.is_copied(), "but not as long as the first");
    assert_eq!(socket.route.level, MAX_LEVEL);
    let after = socket.route.stats();
    assert_eq!(after.probes - before.probes, u64::from(RETURN_AFTER));
    assert_eq!((after.mode, after.returns), (RouteMode::ZeroCopy, 1));
    assert_eq!(socket.paced_calls(100, NOT_COPIED), 100);
}

#[test]
fn a_long_stay_without_copies_makes_the_next_way_back_short() {
    const STAY: usize = (INTERVAL_BYTES << MAX_LEVEL) as usize;
    for (stay, level) in [(STAY - 10 * MIB, 4), (STAY, 0)] {
        let mut socket = Socket::new();
        socket.route.level = 3;
        assert!(socket.paced_call(NOT_COPIED));
        assert_eq!(socket.paced_calls(stay / MIB, NOT_COPIED), stay / MIB);
        while !socket.route.is_copied() {
            assert!(socket.paced_call(COPIED));
            socket.read();
        }
        assert_eq!(socket.route.level, level);
    }
}

#[test]
fn a_return_to_zero_copy_leaves_no_suspicion() {
    let mut socket = Socket::new();
    socket.paced_call(NOT_COPIED);
    while !socket.route.is_copied() {
        socket.paced_call(COPIED);
        socket.read();
    }
    while socket.route.is_copied() {
        socket.paced_call(NOT_COPIED);
        socket.read();
    }
    assert!(!socket.route.is_exclusive());
}

#[test]
fn a_merged_notification_is_no_evidence() {
    let mut route = Route::new(true);
    for id in (0..20).step_by(2) {
        route.began(NotificationId(id));
        route.returned();
        let ids = IdRange { start: NotificationId(id), end: NotificationId(id + 2) };
        route.notified(ids, COPIED);
    }
    assert_eq!(route.stats().mode, RouteMode::Trying);
}

#[test]
fn bytes_that_the_socket_did_not_take_bring_no_probe_nearer() {
    let mut socket = Socket::new();
    socket.paced_calls(4, COPIED);
    socket.now += Duration::from_secs(3600);
    for _ in 0..100 {
        assert!(!socket.call(MIB, COPIED, false));
        socket.route.not_accepted(MIB);
    }
}

#[test]
fn a_copied_probe_undoes_the_way_back() {
    let mut socket = Socket::new();
    socket.paced_calls(4, COPIED);
    for copies in [false, false, true, false, false, true].repeat(20) {
        while !socket.paced_call(copies) {}
        socket.read();
    }
    assert_eq!(socket.route.stats().returns, 0);
}

#[test]
fn flags_raise_suspicion_and_probes_decide() {
    let mut socket = Socket::new();
    socket.paced_calls(2, NOT_COPIED);
    socket.read();
    // Merged notifications whose first part happens to be copied, on a route that does not copy.
    for _ in 0..SUSPECT_AFTER {
        assert!(socket.call(MIB, COPIED, false));
        assert!(socket.call(MIB, NOT_COPIED, true));
        socket.release(false);
        socket.read();
    }
    assert!(socket.route.is_exclusive());
    socket.paced_calls(2, NOT_COPIED);
    assert!(!socket.route.is_exclusive(), "cleared by one probe");
    assert_eq!(socket.route.stats().leaves, 0);
    // The same, and it does.
    socket.read();
    for _ in 0..SUSPECT_AFTER + LEAVE_AFTER {
        assert!(socket.call(MIB, COPIED, false));
        socket.release(false);
        socket.read();
    }
    assert_eq!((socket.mode(), socket.route.stats().leaves), (RouteMode::Copied, 1));
}

#[test]
fn notifications_are_looked_for_from_the_first_copy_on() {
    let one = |id| IdRange { start: NotificationId(id), end: NotificationId(id + 1) };
    let looks = |route: &mut Route| -> Vec<usize> {
        (1..=10).filter(|_| route.wants_notifications(1)).collect()
    };
    let mut route = Route::new(true);
    let probe = |route: &mut Route, id| {
        assert!(route.admits(0, Instant::now));
        route.began(NotificationId(id));
        route.returned();
    };
    probe(&mut route, 0);
    assert_eq!(looks(&mut route), [1, 2, 4, 8], "behind the first probe");
    route.notified(one(0), NOT_COPIED);
    assert_eq!(looks(&mut route), [0; 0], "in zero copy");
    (1..=4).for_each(|id| _ = route.notified(one(id), COPIED));
    assert_eq!(looks(&mut route), [1, 2, 4, 8], "on suspicion");
    probe(&mut route, 5);
    assert_eq!(looks(&mut route), [1, 2, 4, 8], "behind the next probe");
}

#[test]
fn few_copied_notifications_raise_no_suspicion() {
    let mut socket = Socket::new();
    socket.paced_calls(2, NOT_COPIED);
    for call in 0..1000 {
        assert!(socket.paced_call(call % 3 == 0));
        socket.read();
    }
    assert_eq!(socket.route.stats().probes, 1);
}

#[test]
fn a_failed_call_is_no_evidence() {
    let mut socket = Socket::new();
    for _ in 0..2 * LEAVE_AFTER {
        assert!(socket.route.admits(0, Instant::now));
        let id = NotificationId(socket.next);
        socket.route.began(id);
        assert!(socket.route.cancelled(id));
        // UDP: the id had been used after all, and its notification is there.
        socket.route.notified(IdRange { start: id, end: NotificationId(id.0 + 1) }, false);
    }
    assert_eq!(socket.mode(), RouteMode::Trying);
}

#[test]
fn a_policy_that_ignores_routes_lets_everything_through() {
    let mut route = Route::new(false);
    for id in 0..1000 {
        assert!(route.concerns() && !route.wants_notifications(7));
        assert!(route.admits(7, || unreachable!("asks for no time")));
        route.began(NotificationId(id));
        let ids = IdRange { start: NotificationId(id), end: NotificationId(id + 1) };
        route.notified(ids, true);
    }
    assert_eq!(route.stats(), RouteStats::default());
}

#[test]
fn a_route_that_begins_to_copy_is_left_for_good() {
    // What a card without scatter-gather was seen to do (virtio-net on 6.12).
    let mut socket = Socket::new();
    let mut true_ones = 16;
    let mut zero_copy = 0;
    for _ in 0..64 << 10 {
        let copies = true_ones == 0;
        if socket.paced_call(copies) {
            zero_copy += 1;
            true_ones -= usize::from(!copies);
        }
    }
    assert!(socket.route.is_copied());
    assert_eq!(socket.route.stats().leaves, 1);
    assert!(zero_copy < 200, "{zero_copy}");
}

proptest! {
    /// Under any queueing, merging, delay and order, the notification of a probe names the
    /// probe alone, and no other notification is taken for it.
    #[test]
    fn a_probe_is_always_alone(
        steps in vec((0..10_u8, any::<bool>(), any::<bool>()), 1..2000),
        bytes in 1_usize..8 << 20,
    ) {
        let mut socket = Socket::new();
        for (step, copies, other) in steps {
            match step {
                0..6 => { socket.call(bytes, copies, other); }
                6..8 => socket.release(other),
                8 => socket.read(),
                _ => socket.now += Duration::from_millis(u64::from(copies) * 30 + 1),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// However the route changes its mind, and if it always does what makes the sender change.
    #[test]
    fn changes_of_mode_are_few(flips in vec(0_u32..20_000, 1..10)) {
        let mut socket = Socket::new();
        let mut calls = 0_u64;
        for (copies, count) in flips.into_iter().enumerate() {
            for _ in 0..count {
                let opponent = !socket.route.is_copied();
                socket.paced_call(if count % 2 == 0 { opponent } else { copies % 2 == 0 });
            }
            calls += u64::from(count);
        }
        let intervals = calls * MIB as u64 / (INTERVAL_BYTES << MAX_LEVEL);
        let limit = 2 * (1 + u64::from(MAX_LEVEL)) * (1 + intervals);
        prop_assert!(socket.changes <= limit, "{} > {limit}", socket.changes);
    }
}

static BYTES: [u8; MIB] = [7; MIB];

/// Which of the calls since this was last asked went without copy.
fn zero_copy_calls(kernel: &FakeKernel) -> Vec<usize> {
    let calls = kernel.seen().into_iter().enumerate();
    calls.filter(|(_, call)| call.zero_copy).map(|(at, _)| at).collect()
}

#[test]
fn a_sender_without_reaps_still_probes() {
    type Send = fn(&Core<FakeKernel>);
    let lone: Send = |sender| _ = sender.try_send(&BYTES[..64 << 10]).unwrap();
    let vectored: Send = |sender| {
        let mut bufs = [(); 2].map(|()| Payload::from(&BYTES[..32 << 10])).into();
        sender.try_send_vectored(&mut bufs).unwrap();
    };
    for send in [lone, vectored] {
        let kernel = FakeKernel::new(Transport::Stream, Answer::Note(COPIED));
        let sender = kernel.sender(Config { observe_route: true, ..Config::default() });
        for _ in 0..100 {
            send(&sender);
        }
        assert_eq!(zero_copy_calls(&kernel), [0, 1, 2]);
        kernel.pass(INTERVAL_TIME);
        for _ in 0..((INTERVAL_BYTES / LOOKS) >> 16) + 2 {
            send(&sender);
        }
        assert_eq!(zero_copy_calls(&kernel).len(), 1, "more than 4 MiB and 20 ms later");
        assert_eq!(sender.stats().in_flight_calls, 0, "and its note was read");
    }
}

#[test]
fn the_first_call_behind_the_interval_is_a_probe() {
    for bytes in [64 << 10, 60_000] {
        let kernel = FakeKernel::new(Transport::Stream, Answer::Note(COPIED));
        let sender = kernel.sender(Config { observe_route: true, ..Config::default() });
        for _ in 0..LEAVE_AFTER {
            sender.try_send(&BYTES[..bytes]).unwrap();
        }
        sender.step().unwrap();
        kernel.pass(INTERVAL_TIME);
        zero_copy_calls(&kernel);
        let copies = (INTERVAL_BYTES as usize).div_ceil(bytes);
        for _ in 0..copies + 2 {
            sender.try_send(&BYTES[..bytes]).unwrap();
        }
        assert_eq!(zero_copy_calls(&kernel), [copies]);
    }
}

#[test]
fn no_call_goes_without_copy_unasked_on_suspicion() {
    let kernel = FakeKernel::new(Transport::Stream, Answer::Take);
    let sender = kernel.sender(Config { observe_route: true, ..Config::default() });
    let copied = [Answer::Note(COPIED); SUSPECT_AFTER as usize];
    kernel.will([Answer::Note(NOT_COPIED)].into_iter().chain(copied));
    for _ in 0..1 + SUSPECT_AFTER + 1 {
        sender.try_send(&BYTES[..64 << 10]).unwrap();
    }
    sender.step().unwrap();
    kernel.seen();
    sender.try_send(&BYTES[..64 << 10]).unwrap();
    assert_eq!(zero_copy_calls(&kernel), [], "it would be no probe: one is outstanding");
}

#[test]
fn a_send_on_a_copied_route_is_not_cut_into_runs() {
    let kernel = FakeKernel::new(Transport::Stream, Answer::Note(COPIED));
    let sender = kernel.sender(Config { observe_route: true, ..Config::default() });
    for _ in 0..4 {
        sender.try_send(&BYTES[..64 << 10]).unwrap();
    }
    kernel.seen();
    let mut bufs: Vec<_> = [64, 60_000, 64].map(|len| Payload::from(&BYTES[..len])).into();
    sender.try_send_vectored(&mut bufs).unwrap();
    assert_eq!(kernel.seen(), [Seen { elements: 3, bytes: 60_128, zero_copy: false, more: false }]);
}

#[test]
fn a_probe_without_room_is_repeated() {
    const EAGAIN: i32 = 11;
    let kernel = FakeKernel::new(Transport::Stream, Answer::Note(NOT_COPIED));
    let sender = kernel.sender(Config { observe_route: true, ..Config::default() });
    kernel.will([Answer::Fail(EAGAIN)]);
    let refused = sender.try_send(&BYTES[..64 << 10]).unwrap_err();
    assert!(refused.is_backpressure());
    for _ in 0..10 {
        sender.try_send(&BYTES[..64 << 10]).unwrap();
    }
    assert_eq!(zero_copy_calls(&kernel), (0..11).collect::<Vec<_>>());
    let SenderStats { route, zero_copy_calls, .. } = sender.stats();
    assert_eq!((route.mode, route.probes), (RouteMode::ZeroCopy, 1), "the refused one is none");
    assert_eq!(zero_copy_calls, 10);
}

#[test]
fn a_dropped_datagram_is_no_evidence_of_the_route() {
    const EPERM: i32 = 1;
    let kernel = FakeKernel::new(Transport::Datagram, Answer::FailWithNote(EPERM));
    let sender = kernel.sender(Config { observe_route: true, ..Config::default() });
    for _ in 0..10 {
        sender.try_send(&BYTES[..20_000]).unwrap_err();
    }
    assert_eq!(sender.stats().route.mode, RouteMode::Trying);
}

#[test]
fn a_contrary_route_wastes_little() {
    let mut socket = Socket::new();
    let calls = 64_u64 << 10;
    for _ in 0..calls {
        let copies = !socket.route.is_copied();
        socket.paced_call(copies);
    }
    assert!(socket.route.stats().returns <= 30, "{:?}", socket.route.stats());
    assert!(socket.zero_copy_bytes * 10 < calls * MIB as u64, "{}", socket.zero_copy_bytes);
}
