//! Options of a pool: the source and time of the memory, and quotas.

use std::{
    fs,
    io::Read,
    task::{Context, Waker},
    thread,
    time::Duration,
};

use pinbuf::{
    AllocError, BuildError, Payload, Policy, Pool, SendError, Sender,
    pool::{Backing, Pages, PoolBuilder, Refusal},
    sender::{Interest, OnRelease},
};

use crate::common::{
    self, STALLED, assert_all_free, assert_same, filled, pair_at, pattern, pool,
    process::smaps_kib, reader, skip, soon, test_of,
};

const LEN: usize = 64 << 10;

fn on(pages: Pages) -> PoolBuilder {
    Pool::builder().class(LEN, 64).backing(Backing::Require(pages))
}

mod memory {
    use super::*;

    /// Resident bytes of the mapping around an address.
    fn resident_bytes(address: *const u8) -> usize {
        smaps_kib("Rss:", address) << 10
    }

    #[test]
    fn an_unpopulated_pool_of_any_size_has_no_memory_until_its_use() {
        for (backing, pages) in
            [(Backing::Require(Pages::Base), Pages::Base), (Backing::Auto, Pages::Thp)]
        {
            let pool = Pool::builder().class(1 << 20, 64 << 10).backing(backing);
            let pool = pool.populate(false).build().unwrap();
            let region = &pool.region();
            assert_eq!((region.bytes, region.populated), (64 << 30, false));
            assert!(region.to_string().contains("not populated"), "{region}");
            if region.pages != pages {
                skip(test_of(&|| ()), &format!("{region}"));
            }
            let mut buf = pool.try_alloc(1 << 20).unwrap();
            let start = buf.spare_capacity_mut().as_ptr().cast();
            assert_eq!(resident_bytes(start), 0);
            buf.resize(1 << 20, 7);
            assert!((1 << 20..=4 << 20).contains(&resident_bytes(start)));
        }
    }

    #[test]
    fn a_populated_pool_is_resident() {
        let pool = on(Pages::Base).build().unwrap();
        let start = pool.try_alloc(1).unwrap().spare_capacity_mut().as_ptr().cast();
        assert_eq!(resident_bytes(start), 64 * LEN);
        assert!(pool.region().populated);
    }

    #[test]
    fn reserved_pages_are_always_populated() {
        let pages = Pages::HugeTlb { page_bytes: 2 << 20 };
        let error = on(pages).populate(false).build().unwrap_err();
        assert_eq!(error, BuildError::Unavailable { pages, refusal: Refusal::Unpopulated });
        let pool = Pool::builder().class(LEN, 64).populate(false).build().unwrap();
        let region = &pool.region();
        assert!(matches!(region.refused[0], (Pages::HugeTlb { .. }, Refusal::Unpopulated)));
    }

    #[test]
    fn unpopulated_pages_are_locked_at_their_first_touch() {
        let pool = match on(Pages::Base).populate(false).mlock(true).build() {
            Ok(pool) => pool,
            Err(error) => return skip(test_of(&|| ()), &error.to_string()),
        };
        let mut buf = pool.try_alloc(1).unwrap();
        let start: *const u8 = buf.spare_capacity_mut().as_ptr().cast();
        assert_eq!(resident_bytes(start), 0);
        buf.resize(LEN, 1);
        assert_eq!(resident_bytes(start), LEN);
        assert_eq!(smaps_kib("Locked:", start) << 10, LEN);
    }

    #[test]
    fn all_memory_comes_from_the_chosen_node() {
        let nodes = fs::read_to_string("/sys/devices/system/node/has_memory");
        let Some(node) = nodes.ok().and_then(|nodes| {
            nodes.trim().split([',', '-']).next().and_then(|node| node.parse().ok())
        }) else {
            return skip(test_of(&|| ()), "the system knows no nodes");
        };
        for pages in [Pages::Base, Pages::Thp] {
            let pool = match on(pages).numa_node(node).build() {
                Ok(pool) => pool,
                Err(error) => {
                    skip(test_of(&|| ()), &error.to_string());
                    continue;
                }
            };
            let region = &pool.region();
            assert_eq!(region.numa_node, Some(node));
            assert!(region.to_string().contains(&format!("of NUMA node {node}")), "{region}");
            let start = pool.try_alloc(1).unwrap().spare_capacity_mut().as_ptr().addr();
            let maps = fs::read_to_string("/proc/self/numa_maps").unwrap();
            let line = maps.lines().find(|line| line.starts_with(&format!("{start:x} ")));
            assert!(line.unwrap().contains(&format!("bind:{node}")), "{line:?}");
        }
    }

    #[test]
    fn the_error_names_a_node_without_memory() {
        for node in [1000, 1024, usize::MAX] {
            let error = Pool::builder().class(LEN, 1).numa_node(node).build().unwrap_err();
            let BuildError::NumaNode { node: named, .. } = error else { panic!("{error}") };
            assert_eq!(named, node);
            assert!(error.to_string().starts_with(&format!("NUMA node {node} has no memory")));
        }
    }
}

mod fallback {
    use super::*;

    #[test]
    fn an_empty_class_borrows_from_the_next_larger_class() {
        let pool = Pool::builder().class(100, 1).class(200, 1).class(300, 2).fallback(true);
        let pool = pool.build().unwrap();
        let mut bufs: Vec<_> = (0..3).map(|_| pool.try_alloc(1).unwrap()).collect();
        assert_eq!(bufs.iter().map(|buf| buf.capacity()).collect::<Vec<_>>(), [100, 200, 300]);
        assert_eq!(pool.alloc(150).unwrap().capacity(), 300);
        let future = std::pin::pin!(pool.alloc_async(1));
        let polled = future.poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.map(|buf| buf.unwrap().capacity() == 300).is_ready());
        bufs.push(pool.try_alloc(1).unwrap());
        assert_eq!(pool.try_alloc(1).unwrap_err(), AllocError::Exhausted);
        bufs.remove(0);
        assert_eq!(pool.try_alloc(101).unwrap_err(), AllocError::Exhausted, "not from smaller");
        assert!(matches!(pool.try_alloc(301), Err(AllocError::TooLarge { .. })));
        bufs.clear();
        assert_all_free(&pool);
    }

    #[test]
    fn a_waiter_waits_for_the_class_that_fits() {
        let pool = Pool::builder().class(100, 1).class(200, 1).fallback(true).build().unwrap();
        let small = pool.try_alloc(1).unwrap();
        let large = pool.try_alloc(1).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| pool.alloc(1).unwrap().capacity());
            common::eventually("it waits", || pool.stats().classes[0].waiting == 1);
            drop(large);
            assert_eq!(pool.stats().classes[1].free, 1, "the waiter waits for another class");
            drop(small);
            assert_eq!(waiter.join().unwrap(), 100);
        });
        assert_all_free(&pool);
    }
}

mod quota {
    use super::*;

    fn quota(slots: usize) -> Pool {
        on(Pages::Base).sender_quota(slots).build().unwrap()
    }

    fn buf(pool: &Pool, seed: usize) -> pinbuf::PinnedBuf {
        filled(pool.try_alloc(LEN).unwrap(), LEN, seed)
    }

    #[test]
    fn a_sender_keeps_its_quota_of_slots_in_flight() {
        let pool = quota(2);
        let free = super::pool(LEN, 4);
        let mut ends = Vec::new();
        for seed in [0, 10] {
            let (near, far) = pair_at("127.0.0.1:0", STALLED);
            let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
            sender.try_send(buf(&pool, seed)).unwrap();
            sender.try_send(buf(&pool, seed + 1)).unwrap();
            for _ in 0..2 {
                let refused = sender.try_send(buf(&pool, 99)).unwrap_err();
                assert!(matches!(&refused, SendError::WouldBlock(_)), "{refused}");
                assert_same(&refused.into_buf().unwrap(), &pattern(LEN, 99));
            }
            assert_eq!(sender.interest(), Interest { writable: false, released: true });
            assert_eq!(sender.stats().leases, 2);
            // A different pool has its own quota, or none.
            sender.try_send(buf(&free, seed + 2)).unwrap();
            ends.push((seed, sender, far));
        }
        for (seed, mut sender, far) in ends {
            let peer = reader(far, Duration::from_millis(10));
            for more in 3..9 {
                sender.send(buf(&pool, seed + more)).unwrap();
                assert!(sender.stats().leases <= 3);
            }
            assert!(sender.close(soon()).drained);
            let want: Vec<u8> = (0..9).flat_map(|at| pattern(LEN, seed + at).to_vec()).collect();
            assert_same(&peer.join().unwrap(), &want);
        }
        assert_all_free(&pool);
    }

    #[test]
    fn a_send_larger_than_the_quota_goes_alone() {
        let pool = quota(2);
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
        let mut bufs: Vec<Payload> = (0..3).map(|seed| buf(&pool, seed).into()).collect();
        sender.try_send_vectored(&mut bufs).unwrap();
        let shared = buf(&pool, 3).freeze();
        let refused = sender.try_send(shared.clone());
        assert!(matches!(refused, Err(SendError::WouldBlock(_))));
        drop(refused);
        let peer = reader(far, Duration::ZERO);
        sender.send(shared.clone()).unwrap();
        sender.send(shared).unwrap();
        sender.drain(soon()).unwrap();
        bufs.extend((4..7).map(|seed| Payload::from(buf(&pool, seed))));
        sender.try_send_vectored(&mut bufs).unwrap();
        assert!(sender.close(soon()).drained);
        let want = [0, 1, 2, 3, 3, 4, 5, 6].map(|seed| pattern(LEN, seed).to_vec()).concat();
        assert_same(&peer.join().unwrap(), &want);
        assert_all_free(&pool);
    }

    #[test]
    fn a_send_counts_with_all_its_slots() {
        let pool = quota(3);
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
        sender.try_send(buf(&pool, 0)).unwrap();
        let mut bufs: Vec<Payload> = (1..4).map(|seed| buf(&pool, seed).into()).collect();
        let refused = sender.try_send_vectored(&mut bufs);
        assert!(matches!(refused, Err(SendError::WouldBlock(()))));
        let last = bufs.pop().unwrap();
        sender.try_send_vectored(&mut bufs).unwrap();
        assert!(matches!(sender.try_send(last), Err(SendError::WouldBlock(_))));
        let peer = reader(far, Duration::ZERO);
        assert!(sender.close(soon()).drained);
        assert_eq!(peer.join().unwrap().len(), 3 * LEN);
        assert_all_free(&pool);
    }

    #[test]
    fn released_slots_make_room_without_a_reap() {
        let pool = quota(1);
        let (near, mut far) = common::pair();
        let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
        let mut got = vec![0; LEN];
        for seed in 0..5 {
            sender.try_send(buf(&pool, seed)).unwrap();
            far.read_exact(&mut got).unwrap();
            common::eventually("the notification is there", || common::has_error(&sender));
        }
    }

    #[test]
    fn returned_and_refused_buffers_do_not_count() {
        let pool = quota(1);
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let builder = Sender::builder().policy(Policy::Require).on_release(OnRelease::Return);
        let mut sender = builder.max_in_flight_sends(1).adopt(near).unwrap();
        // Fills the window with memory of no pool, so that the pool's buffer is refused.
        sender.try_send(pattern(LEN, 0)).unwrap();
        for _ in 0..3 {
            let refused = sender.try_send(buf(&pool, 1));
            assert!(matches!(refused, Err(SendError::WouldBlock(_))));
        }
        let peer = reader(far, Duration::ZERO);
        let mut kept = Vec::new();
        for seed in 0..4 {
            let ticket = sender.send(buf(&pool, seed)).unwrap();
            assert!(sender.wait(ticket, soon()).unwrap().is_released());
            kept.extend(std::iter::from_fn(|| sender.next_returned()));
        }
        assert_eq!(kept.len(), 5);
        assert!(sender.close(soon()).drained);
        peer.join().unwrap();
    }

    #[test]
    fn a_quota_does_not_limit_copies() {
        let pool = quota(1);
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let mut sender = Sender::builder().policy(Policy::Never).adopt(near).unwrap();
        let peer = reader(far, Duration::ZERO);
        let mut bufs: Vec<Payload> = (0..5).map(|seed| buf(&pool, seed).into()).collect();
        sender.send_vectored(&mut bufs).unwrap();
        sender.send(buf(&pool, 5)).unwrap();
        assert!(sender.close(soon()).drained);
        assert_eq!(peer.join().unwrap().len(), 6 * LEN);
        assert_all_free(&pool);
    }

    #[test]
    fn a_quota_of_zero_is_refused() {
        let error = on(Pages::Base).sender_quota(0).build().unwrap_err();
        assert_eq!(error, BuildError::NoQuota);
    }
}
