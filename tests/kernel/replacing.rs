//! Page replacement: an address is free before the kernel has released its former pages.

use std::os::fd::AsFd;

use pinbuf::{
    __internals::{Lease, Replaced},
    PinnedBuf, Pool,
    pool::{Backing, Pages, PoolBuilder},
};

use crate::common::{
    self, Buffers, assert_all_free, assert_same, census, enable_zerocopy, fill, filled, pair_at,
    pattern,
    process::{alone, smaps_kib},
    reader,
    reserve::Reserve,
    skip, test_of,
};

const LEN: usize = 64 << 10;

fn build(pages: Pages) -> PoolBuilder {
    // With room for the former pages of four slots.
    Pool::builder().class(LEN, 16).backing(Backing::Require(pages))
}

fn quarantined(pool: &Pool, seed: usize) -> PinnedBuf {
    let mut buf = filled(pool.try_alloc(LEN).unwrap(), LEN, seed);
    buf.begin_lease();
    buf.quarantine();
    buf
}

/// Sends buffers to a stalled peer, frees them with `free`, overwrites all their memory, and
/// returns the bytes that the peer then reads.
fn sent_then_overwritten(pool: &Pool, free: impl Fn(PinnedBuf) -> Option<Replaced>) -> Vec<u8> {
    let buffers = Buffers { send: Some(1 << 20), receive: Some(20_000) };
    let (near, far) = pair_at("127.0.0.1:0", buffers);
    near.set_nonblocking(true).unwrap();
    enable_zerocopy(&near);
    let mut replaced = Vec::new();
    let mut addresses = Vec::new();
    for message in 0..4 {
        let buf = quarantined(pool, message);
        // SAFETY: a pool's memory stays mapped while a buffer is in use, and the pool lives longer.
        let sent = unsafe { common::send_raw(near.as_fd(), &raw const buf[..]) };
        assert_eq!(sent.unwrap(), LEN);
        addresses.push(buf.as_ptr());
        replaced.push(free(buf));
    }
    for _ in 0..16 {
        let Ok(mut buf) = pool.try_alloc(LEN) else { break };
        addresses.retain(|address| *address != buf.as_ptr());
        buf.resize(LEN, 0);
        fill(&mut buf, 99);
        std::mem::forget(buf);
    }
    assert!(addresses.is_empty(), "the slots were handed out again");
    drop(near);
    reader(far, std::time::Duration::ZERO).join().unwrap()
}

fn messages() -> Vec<u8> {
    (0..4).flat_map(|message| pattern(LEN, message).to_vec()).collect()
}

/// Without replacement the peer reads the later contents: the control of the tests below.
#[test]
fn without_new_pages_the_peer_reads_later_contents() {
    let pool = build(Pages::Base).build().unwrap();
    let got = sent_then_overwritten(&pool, |mut buf| {
        buf.quarantine_released();
        None
    });
    assert_ne!(got, messages());
}

#[test]
fn sent_bytes_arrive_although_their_address_is_reused() {
    let name = test_of(&|| ());
    for (pages, mlock) in
        [(Pages::Base, false), (Pages::Base, true), (Pages::Thp, false), (Pages::Thp, true)]
    {
        let pool = match build(pages).mlock(mlock).build() {
            Ok(pool) => pool,
            Err(error) => {
                skip(name, &format!("{pages}, mlock {mlock}: {error}"));
                continue;
            }
        };
        let got = sent_then_overwritten(&pool, |mut buf| {
            let replaced = buf.replace_pages().expect("no other holder is left");
            assert!(buf.is_empty());
            assert!(buf.spare_capacity_mut().iter().all(|byte| *byte == 0));
            Some(replaced)
        });
        assert_same(&got, &messages());
    }
}

#[test]
fn new_pages_are_there_before_their_first_use() {
    alone(|| {
        let pool = build(Pages::Base).build().unwrap();
        let mut buf = quarantined(&pool, 0);
        let before = smaps_kib("Rss:", buf.as_ptr());
        let _replaced = buf.replace_pages().unwrap();
        assert_eq!(smaps_kib("Rss:", buf.as_ptr()), before);
    });
}

#[test]
fn former_pages_count_until_the_proof() {
    let pool = build(Pages::Base).build().unwrap();
    let mut bufs: Vec<_> = (0..5).map(|seed| quarantined(&pool, seed)).collect();
    let mut last = bufs.pop().unwrap();
    let replaced: Vec<_> = bufs.iter_mut().map(|buf| buf.replace_pages().unwrap()).collect();
    drop(bufs);
    assert_eq!(pool.stats().replaced_bytes, 4 * LEN);
    assert!(last.replace_pages().is_none(), "the limit is a quarter");
    assert_eq!(census(&pool), [15, 0, 0, 1]);
    assert_eq!(pool.stats().replaced_bytes, 4 * LEN);
    drop(replaced);
    assert_eq!(pool.stats().replaced_bytes, 0);
    let replaced = last.replace_pages().unwrap();
    drop(last);
    assert_all_free(&pool);
    drop(pool);
    drop(replaced);
}

#[test]
fn shared_pages_are_not_replaced() {
    let pool = build(Pages::Base).build().unwrap();
    let mut owned = pool.try_alloc(1).unwrap();
    assert!(owned.replace_pages().is_none());
    owned.begin_lease();
    assert!(owned.replace_pages().is_none(), "in flight");
    owned.end_lease();

    let shared = filled(owned, LEN, 3).freeze();
    let (mut one, mut two) = (shared.clone(), shared.clone());
    for lease in [&mut one, &mut two] {
        lease.begin_lease();
        lease.quarantine();
    }
    assert!(one.replace_pages().is_none(), "a handle and another lease");
    assert_same(&shared, &pattern(LEN, 3));
    drop(shared);
    assert!(one.replace_pages().is_none(), "another lease");
    two.quarantine_released();
    assert_same(&two, &pattern(LEN, 3));
    drop(two);
    assert!(one.replace_pages().is_some());
    assert!(one.is_empty());
    drop(one);
    assert_all_free(&pool);

    // Two slots on each page.
    let pool = Pool::builder().class(2000, 16).backing(Backing::Require(Pages::Base));
    let pool = pool.build().unwrap();
    let mut buf = pool.try_alloc(1).unwrap();
    buf.begin_lease();
    buf.quarantine();
    assert!(buf.replace_pages().is_none());
    assert_eq!(pool.stats().replaced_bytes, 0);
}

#[test]
fn hugetlb_pages_are_not_replaced() {
    let name = test_of(&|| ());
    let _reserve = match Reserve::add(6) {
        Ok(reserve) => reserve,
        Err(error) => return skip(name, &error),
    };
    // Whole pages, and room for one more: only their kind forbids the replacement.
    let huge = Reserve::PAGE;
    let pool = Pool::builder().class(huge, 4);
    let pool = pool.backing(Backing::Require(Pages::HugeTlb { page_bytes: huge })).build();
    let refused = pool.as_ref().map(|pool| {
        let mut buf = filled(pool.try_alloc(huge).unwrap(), huge, 1);
        buf.begin_lease();
        buf.quarantine();
        let refused = buf.replace_pages().is_none();
        buf.quarantine_released();
        refused && buf.len() == huge && pool.stats().replaced_bytes == 0
    });
    match refused {
        Ok(refused) => assert!(refused),
        Err(error) => skip(name, &error.to_string()),
    }
}
