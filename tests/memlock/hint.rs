//! The threshold that follows a hint: measured once a process, at an adoption that asks for it.

#![cfg(target_env = "gnu")]

use std::net::{Ipv4Addr, UdpSocket};

use pinbuf::{
    Policy, Sender,
    probe::calibrate_threshold,
    sender::{DataHint, SenderBuilder},
};

use crate::{
    calls::{self, Calls},
    common::{
        become_ordinary, limit_memlock,
        process::{alone, thread_count},
        skip, soon, turn,
    },
};

static BYTES: [u8; 60 << 10] = [7; 60 << 10];

const SENDS: usize = 320;

/// A sender of datagrams that end before any device, never copied late.
fn adopt(builder: SenderBuilder) -> Sender<UdpSocket> {
    let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    near.set_multicast_ttl_v4(0).unwrap();
    near.set_multicast_loop_v4(false).unwrap();
    near.connect((Ipv4Addr::new(239, 255, 255, 250), 9)).unwrap();
    builder.adopt(near).unwrap()
}

fn with(data: DataHint) -> SenderBuilder {
    Sender::builder().policy(Policy::Prefer).data_hint(data)
}

/// Returns `true` if a send of so many bytes goes without copy.
fn goes_without_copy(sender: &mut Sender<UdpSocket>, bytes: usize) -> bool {
    let before = sender.stats().zero_copy_calls;
    sender.try_send(&BYTES[..bytes]).unwrap();
    sender.stats().zero_copy_calls > before
}

/// The threshold of a sender, in KiB; 64 for more than a datagram.
fn threshold_kib(builder: SenderBuilder) -> usize {
    let mut sender = adopt(builder);
    let kib = [4, 8, 16, 32, 60].into_iter();
    let mut without = kib.filter(|kib| goes_without_copy(&mut sender, kib << 10));
    without.next().unwrap_or(64)
}

/// Returns `true` if the kernel copies a datagram to a group after all.
fn copies_late() -> bool {
    let mut sender = adopt(Sender::builder().policy(Policy::Prefer));
    sender.try_send(&BYTES[..]).unwrap();
    sender.drain(soon()).unwrap();
    sender.stats().deferred_copies > 0
}

/// The sends that measure during an adoption.
fn measured(builder: SenderBuilder) -> usize {
    calls::during(|| drop(adopt(builder))).sends
}

#[test]
fn an_adoption_measures_only_with_a_hint_and_once() {
    let _turn = turn();
    alone(|| {
        assert_eq!(measured(Sender::builder()), 0, "no hint");
        let hint = || Sender::builder().data_hint(DataHint::Cold);
        assert_eq!(measured(hint().policy(Policy::Never)), 0, "nothing goes without copy");
        assert_eq!(measured(hint().threshold_bytes(1)), 0, "a fixed threshold");
        let threads = thread_count();
        assert!(measured(hint()) > 0);
        assert_eq!(thread_count(), threads);
        assert_eq!(measured(hint()), 0, "measured before");
        assert_eq!(measured(with(DataHint::Cached)), 0, "measured before");
    });
}

#[test]
fn a_sender_follows_its_hint_and_the_first_measurement() {
    let _turn = turn();
    alone(|| {
        let found = calibrate_threshold();
        if found.is_err() && copies_late() {
            let why = "this kernel copies for loopback before it looks for members";
            return skip("hint::a_sender_follows_its_hint_and_the_first_measurement", why);
        }
        let found = found.expect("the locked memory is free");
        assert_eq!(measured(with(DataHint::Cold)), 0, "measured before");
        let [cold, cached] = [&found.cold, &found.cached].map(|of| of.threshold_bytes >> 10);
        let cold = cold.min(16);
        assert_eq!(threshold_kib(with(DataHint::Cold)), cold, "{found:?}");
        assert_eq!(threshold_kib(with(DataHint::Cached)), cached.max(cold), "{found:?}");
        assert_eq!(threshold_kib(with(DataHint::Unknown)), cached.clamp(cold, 16), "{found:?}");
        assert_eq!(threshold_kib(with(DataHint::Cold).threshold_bytes(32 << 10)), 32, "fixed");
    });
}

#[test]
fn a_failed_measurement_leaves_fixed_sizes_and_is_not_repeated() {
    let _turn = turn();
    alone(|| {
        become_ordinary();
        assert!(limit_memlock(64 << 10), "too little for a batch of sends");
        let goes = |data, bytes| goes_without_copy(&mut adopt(with(data)), bytes);
        assert!(measured(with(DataHint::Cold)) > 0);
        assert_eq!(measured(with(DataHint::Cold)), 0, "no second try");
        assert!(!goes(DataHint::Cold, 8 << 10));
        assert!(goes(DataHint::Cold, 16 << 10));
        assert!(!goes(DataHint::Cached, 16 << 10));
        assert!(calibrate_threshold().is_err());
    });
}

#[test]
fn a_hint_adds_no_call_and_no_thread_to_a_send() {
    let _turn = turn();
    alone(|| {
        for data in [DataHint::Cold, DataHint::Cached] {
            let fixed = with(data).threshold_bytes(threshold_kib(with(data)) << 10);
            let threads = thread_count();
            for bytes in [4 << 10, 60 << 10] {
                let [hinted, fixed] = [with(data), fixed].map(|builder| {
                    let mut sender = adopt(builder);
                    calls::during(|| {
                        for _ in 0..SENDS {
                            sender.try_send(&BYTES[..bytes]).unwrap();
                        }
                    })
                });
                assert_eq!(hinted, fixed, "{data:?}, {bytes} bytes");
                // One read of the error queue, and of the clock, for many sends.
                let Calls { sends, looks, clocks, .. } = hinted;
                assert_eq!(sends, SENDS);
                assert!(looks * 10 <= SENDS && clocks * 10 <= SENDS, "{hinted:?}");
            }
            assert_eq!(thread_count(), threads);
        }
    });
}
