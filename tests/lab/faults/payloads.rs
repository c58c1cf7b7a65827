//! Payloads whose drop panics or calls the library.

use std::{
    any::Any,
    net::TcpStream,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use pinbuf::{MappedSlice, Pool, Sender, reaper::wait_idle};

use crate::common::{
    STALLED, assert_all_free, assert_arrived, assert_same, census, eventually, filled, pair,
    pair_at, pattern, pool,
    process::{alone, the_reaper},
    reader, soon, within, zero_copy,
};

const LEN: usize = 64 << 10;

/// Owns bytes, and runs an action at its drop.
struct Owner {
    bytes: Box<[u8]>,
    last_act: Box<dyn Fn() + Send + Sync>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        (self.last_act)();
    }
}

fn owned(seed: usize, last_act: impl Fn() + Send + Sync + 'static) -> MappedSlice {
    let bytes = pattern(LEN, seed).to_vec().into_boxed_slice();
    let owner = Arc::new(Owner { bytes, last_act: Box::new(last_act) });
    let start = owner.bytes.as_ptr();
    let owner: Arc<dyn Any + Send + Sync> = owner;
    // SAFETY: the owner keeps the bytes in place, and they have no writers.
    unsafe { MappedSlice::from_raw_parts(owner, start, LEN) }
}

fn panic_on_purpose() {
    std::panic::resume_unwind(Box::new("on purpose"));
}

/// Buffers before and after an owner with a panic, in flight.
fn sent_around_a_bomb(pool: &Pool) -> (Sender<TcpStream>, TcpStream) {
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut sender = zero_copy().adopt(near).unwrap();
    for seed in 0..5 {
        if seed == 2 {
            sender.send(owned(seed, panic_on_purpose)).unwrap();
        } else {
            sender.send(filled(pool.try_alloc(1).unwrap(), LEN, seed)).unwrap();
        }
    }
    assert!(pool.stats().in_flight() > 0);
    (sender, far)
}

#[test]
fn a_panic_of_a_payload_in_a_waiter_costs_no_slot() {
    let pool = pool(LEN, 4);
    let (sender, far) = sent_around_a_bomb(&pool);
    let peer = reader(far, Duration::from_millis(100));
    // Several threads wait for slots and drive the sender meanwhile, or the reaper does.
    let held: Vec<_> = thread::scope(|scope| {
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let attempts = std::iter::repeat_with(|| {
                        catch_unwind(AssertUnwindSafe(|| {
                            pool.alloc_timeout(1, Duration::from_secs(60))
                        }))
                    });
                    attempts.take(2).find_map(Result::ok).expect("one panic at most").unwrap()
                })
            })
            .collect();
        waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect()
    });
    assert_eq!(census(&pool), [0, 4, 0, 0]);
    drop(held);
    assert_all_free(&pool);
    assert!(sender.close(soon()).drained);
    assert_arrived(&peer.join().unwrap(), LEN, 5);
}

#[test]
fn a_panic_of_a_payload_does_not_end_the_reaper() {
    alone(|| {
        let pool = pool(LEN, 8);
        let (bombed, far) = sent_around_a_bomb(&pool);
        let (other, other_far) = {
            let (near, far) = pair_at("127.0.0.1:0", STALLED);
            let mut sender = zero_copy().adopt(near).unwrap();
            for seed in 0..4 {
                sender.send(filled(pool.try_alloc(1).unwrap(), LEN, seed)).unwrap();
            }
            (sender, far)
        };
        drop((bombed, other));
        let before = the_reaper();
        let peers = [reader(far, Duration::ZERO), reader(other_far, Duration::from_millis(50))];
        eventually("all slots are free", || pool.stats().free() == 8);
        for (peer, count) in peers.into_iter().zip([5, 4]) {
            assert_arrived(&peer.join().unwrap(), LEN, count);
        }
        assert!(wait_idle(within(60_000)));
        assert_eq!(the_reaper(), before);
        assert_all_free(&pool);
    });
}

#[test]
fn a_payload_may_use_the_library_in_its_drop() {
    let pool = pool(LEN, 2);
    let (near, far) = pair();
    let second = Arc::new(Mutex::new(zero_copy().adopt(near).unwrap()));
    let peer = reader(far, Duration::ZERO);
    let last_act = {
        let (pool, second) = (pool.clone(), Arc::clone(&second));
        move || {
            let buf = filled(pool.alloc(1).unwrap(), LEN, 7);
            let mut second = second.lock().unwrap();
            let ticket = second.send(buf).unwrap();
            assert!(second.wait(ticket, soon()).unwrap().is_released());
            // Makes and drops a sender too.
            let (near, _far) = pair_at("127.0.0.1:0", STALLED);
            let mut third = zero_copy().adopt(near).unwrap();
            third.send(filled(pool.alloc(1).unwrap(), LEN, 8)).unwrap();
            let _ = third.abort();
            drop((pool.stats(), pool.audit()));
        }
    };
    let (near, far) = pair_at("127.0.0.1:0", STALLED);
    let mut first = zero_copy().adopt(near).unwrap();
    first.send(owned(1, last_act)).unwrap();
    let first_peer = reader(far, Duration::from_millis(20));
    first.drain(soon()).unwrap();
    assert!(first.close(soon()).drained);
    assert_same(&first_peer.join().unwrap(), &pattern(LEN, 1));
    eventually("all slots are free", || pool.stats().free() == 2);
    // The owner and its last action are gone.
    let second = Arc::into_inner(second).unwrap().into_inner().unwrap();
    assert!(second.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &pattern(LEN, 7));
}
