//! The histogram of the time from a zero-copy call to its release.

use super::{
    super::fake::Answer::{Note, Take},
    *,
};

/// Of Linux.
const ENOBUFS: i32 = 105;

fn timed() -> Config {
    Config { release_times: true, ..config() }
}

fn buf() -> Arc<[u8]> {
    Arc::from([1; 4096])
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_release_is_counted_with_its_time() {
    let kernel = stream([]);
    let sender = kernel.sender(timed());
    for time in [10, 20, 400] {
        sender.try_send(buf()).unwrap();
        kernel.pass(ms(time));
        kernel.release();
        sender.step().unwrap();
    }
    let times = sender.release_times().unwrap();
    assert_eq!((times.count(), times.total()), (3, ms(430)));
    assert_eq!([9, 11, 21, 405].map(|bound| times.count_within(ms(bound))), [0, 1, 2, 3]);
    for (share, exact) in [(0.3, 10), (0.5, 20), (1.0, 400)] {
        let told = times.quantile(share);
        assert!(told >= ms(exact) && told <= ms(exact) * 101 / 100, "{share}: {told:?}");
    }
    assert!(times.max() >= ms(400) && times.quantile(1.0) == times.max());
}

#[test]
fn every_released_call_is_counted_once() {
    let kernel = stream([Part(1000), Fail(EAGAIN), Take, Fail(ENOBUFS), Note(false), Note(false)]);
    let sender = kernel.sender(timed());
    // A part, the rest in a call of its own, a call that fails and is made anew, and a run of two.
    sender.try_send(buf()).unwrap();
    sender.step().unwrap();
    kernel.release();
    sender.try_send(buf()).unwrap();
    sender.try_send_vectored(&mut vec![buf().into(), buf().into()]).unwrap();
    sender.try_send(buf()).unwrap();
    sender.try_send(buf()).unwrap();
    // The last call is released before the call in front.
    let taken = sender.stats().zero_copy_calls as u32;
    kernel.note(taken - 1, taken - 1);
    sender.step().unwrap();
    while !kernel.with(|state| state.is_all_released()) {
        kernel.release();
    }
    sender.step().unwrap();
    let stats = sender.stats();
    assert_eq!(stats.in_flight_calls, 0);
    assert_eq!(sender.release_times().unwrap().count(), stats.released_calls);
    assert_eq!(stats.released_calls, stats.zero_copy_calls);
}

#[test]
fn a_release_by_proof_alone_has_no_time() {
    let kernel = stream([]);
    let sender = kernel.sender(timed());
    sender.try_send(buf()).unwrap();
    kernel.steal();
    kernel.pass(Duration::from_secs(2));
    sender.step().unwrap();
    assert_eq!(sender.stats().released_calls, 1);
    assert_eq!(sender.release_times().unwrap().count(), 0);
}

#[test]
fn only_a_timed_sender_reads_the_clock_per_send() {
    for (config, per_send) in [(config(), 0), (timed(), 1)] {
        let kernel = stream([]);
        let sender = kernel.sender(config);
        sender.try_send(buf()).unwrap();
        let before = kernel.with(|state| (state.clocks, state.reads));
        (0..10).for_each(|_| _ = sender.try_send(buf()).unwrap());
        assert_eq!(
            kernel.with(|state| (state.clocks, state.reads)),
            (before.0 + 10 * per_send, before.1)
        );
        assert_eq!(sender.release_times().is_some(), config.release_times);
        assert_eq!(sender.stats().zero_copy_calls, 11);
    }
}

#[test]
fn copied_sends_read_no_clock_even_if_timed() {
    let kernel = stream([]);
    let sender = kernel.sender(Config { release_times: true, ..Config::default() });
    (0..10).for_each(|_| _ = sender.try_send(buf()).unwrap());
    assert_eq!(kernel.with(|state| state.clocks), 0);
    assert_eq!(sender.release_times().unwrap().count(), 0);
}
