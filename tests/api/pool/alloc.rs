//! Sizes and contents of allocated buffers.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use pinbuf::{AllocError, PinnedBuf, Pool};

use super::{CountedWaker, poll};
use crate::common::{assert_all_free, pool, seed};

#[test]
fn takes_the_smallest_class_that_fits() {
    let pool = Pool::builder().class(65536, 1).class(100, 1).class(4096, 1).build().unwrap();
    assert_eq!(pool.try_alloc(0).unwrap().capacity(), 100);
    assert_eq!(pool.try_alloc(100).unwrap().capacity(), 100);
    assert_eq!(pool.try_alloc(101).unwrap().capacity(), 4096);
    assert_eq!(pool.try_alloc(4097).unwrap().capacity(), 65536);
    let largest = 65536;
    let error = AllocError::TooLarge { requested: 65537, largest };
    assert_eq!(pool.try_alloc(65537).unwrap_err(), error);
    assert_eq!(pool.alloc(65537).unwrap_err(), error);
    assert_eq!(pool.alloc_timeout(65537, Duration::MAX).unwrap_err(), error);
}

#[test]
fn an_empty_class_does_not_borrow_from_a_larger_one() {
    let pool = Pool::builder().class(4096, 1).class(8192, 1).build().unwrap();
    let _buf = pool.try_alloc(1).unwrap();
    assert_eq!(pool.try_alloc(1).unwrap_err(), AllocError::Exhausted);
}

#[test]
fn hands_out_every_slot_once_and_none_overlap() {
    for capacity in [1, 64, 100, 4095, 4096, 5000] {
        let pool = pool(capacity, 50);
        let mut bufs: Vec<_> = (0..50).map(|_| pool.try_alloc(capacity).unwrap()).collect();
        assert_eq!(pool.try_alloc(capacity).unwrap_err(), AllocError::Exhausted);
        for (n, buf) in bufs.iter_mut().enumerate() {
            buf.resize(capacity, n as u8);
        }
        for (n, buf) in bufs.iter().enumerate() {
            assert!(buf.iter().all(|&byte| byte == n as u8), "capacity {capacity}, buffer {n}");
            let start = buf.as_ptr() as usize;
            let alignment = capacity.next_power_of_two().clamp(64, 4096);
            assert_eq!(start % alignment, 0, "capacity {capacity}, buffer {n}");
            if capacity < 4096 {
                let last = start + capacity - 1;
                assert_eq!(start / 4096, last / 4096, "capacity {capacity} straddles a page");
            }
        }
        drop(bufs);
        assert_all_free(&pool);
    }
}

#[test]
fn threads_that_pass_buffers_on_keep_the_pool_correct() {
    let seed = seed();
    let pool = pool(64, 7);
    let shelf = Mutex::new(Vec::<(u64, PinnedBuf)>::new());
    thread::scope(|scope| {
        for id in 0..4_u64 {
            let (pool, shelf) = (&pool, &shelf);
            scope.spawn(move || {
                let mut random = seed.wrapping_add(id.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1;
                for round in 0..5_000_u64 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let taken = match random % 4 {
                        0 => pool.try_alloc(64).ok(),
                        1 => pool.alloc_timeout(64, Duration::from_micros(random % 50)).ok(),
                        2 => {
                            // A future that is dropped in any state.
                            let waker = Arc::<CountedWaker>::default();
                            let _ = poll(&mut pool.alloc_async(64), &waker);
                            None
                        }
                        _ => {
                            if let Some((mark, buf)) = shelf.lock().unwrap().pop() {
                                assert_eq!(
                                    buf[..],
                                    mark.to_le_bytes(),
                                    "another thread wrote to the buffer"
                                );
                            }
                            None
                        }
                    };
                    if let Some(mut buf) = taken {
                        let mark = id << 32 | round;
                        assert!(buf.is_empty());
                        buf.extend_from_slice(&mark.to_le_bytes());
                        shelf.lock().unwrap().push((mark, buf));
                    }
                }
            });
        }
    });
    drop(shelf);
    assert_all_free(&pool);
}
