//! Buffers as byte buffers.

use std::{io::Write, thread};

use pinbuf::{__internals::Lease, PinnedBuf, Pool, pool::LocalPool};

use crate::common::{assert_all_free, pool};

#[test]
fn starts_empty_after_any_former_contents() {
    let pool = pool(64, 1);
    pool.try_alloc(64).unwrap().resize(64, 7);
    let mut buf = pool.try_alloc(64).unwrap();
    assert!(buf.is_empty());
    buf.resize(32, 0);
    assert_eq!(buf[..], [0; 32]);
}

#[test]
fn starts_empty_after_any_way_of_recycling() {
    let ways: [fn(PinnedBuf, &LocalPool<'_>); 5] = [
        |buf, _| drop(buf),
        |buf, local| local.recycle(buf),
        |buf, _| PinnedBuf::recycle_all(&mut vec![buf]),
        |buf, _| drop(buf.freeze()),
        |buf, _| drop([buf.freeze()].map(|buf| (buf.clone(), buf))),
    ];
    let pool = pool(64, 64);
    let local = pool.local(64).unwrap();
    for way in ways {
        let mut bufs: Vec<_> = (0..64).map(|_| pool.try_alloc(64).unwrap()).collect();
        bufs.iter_mut().for_each(|buf| buf.resize(64, 7));
        bufs.into_iter().for_each(|buf| way(buf, &local));
        let bufs: Vec<_> = (0..64).map(|_| pool.try_alloc(64).unwrap()).collect();
        assert!(bufs.iter().all(|buf| buf.is_empty()));
    }
}

#[test]
fn grows_and_shrinks_up_to_its_capacity() {
    let pool = pool(10, 1);
    let mut buf = pool.try_alloc(10).unwrap();
    buf.extend_from_slice(b"hello");
    buf.resize(7, b'!');
    assert_eq!(&buf[..], b"hello!!");
    buf.resize(5, b'?');
    buf.truncate(9);
    assert_eq!(&buf[..], b"hello");
    buf[0] = b'j';
    buf.truncate(2);
    assert_eq!(buf.as_ref(), b"je");
    assert_eq!(buf.spare_capacity_mut().len(), 8);
    buf.spare_capacity_mut()[0] = b't';
    // SAFETY: three bytes were written.
    unsafe { buf.set_len(3) };
    assert_eq!(buf.as_mut(), b"jet");
    assert_eq!(format!("{buf:?}"), "PinnedBuf { len: 3, capacity: 10, .. }");
    buf.clear();
    assert!(buf.is_empty());
}

#[test]
fn write_takes_the_bytes_that_fit() {
    let pool = pool(10, 1);
    let mut buf = pool.try_alloc(10).unwrap();
    assert_eq!(buf.write(b"0123456").unwrap(), 7);
    assert_eq!(buf.write(b"789abc").unwrap(), 3);
    assert_eq!(buf.write(b"d").unwrap(), 0);
    assert_eq!(&buf[..], b"0123456789");
    let error = buf.write_all(b"d").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WriteZero);
}

#[test]
#[should_panic(expected = "11 bytes do not fit into the 10 bytes left")]
fn extending_beyond_the_capacity_panics() {
    pool(10, 1).try_alloc(1).unwrap().extend_from_slice(&[0; 11]);
}

#[test]
#[should_panic(expected = "a length of 11 is above the capacity of 10")]
fn resizing_beyond_the_capacity_panics() {
    pool(10, 1).try_alloc(1).unwrap().resize(11, 0);
}

#[test]
fn zero_on_recycle_erases_all_contents() {
    let pool = Pool::builder().class(64, 1).zero_on_recycle(true).build().unwrap();
    let mut buf = pool.try_alloc(64).unwrap();
    buf.resize(64, 7);
    buf.truncate(1);
    drop(buf);
    let mut buf = pool.try_alloc(64).unwrap();
    // SAFETY: the pool zeroes slots on recycling, and mapped memory starts zeroed.
    unsafe { buf.set_len(64) };
    assert_eq!(buf[..], [0; 64]);
}

#[test]
fn a_drop_in_flight_quarantines_even_while_unwinding() {
    let pool = pool(64, 2);
    let mut buf = pool.try_alloc(1).unwrap();
    buf.begin_lease();
    drop(buf);
    let panicked = thread::scope(|scope| {
        let dropping = scope.spawn(|| {
            let mut buf = pool.try_alloc(1).unwrap();
            buf.begin_lease();
            panic!("on purpose, while a buffer is in flight");
        });
        dropping.join().is_err()
    });
    assert!(panicked);
    let stats = pool.stats();
    assert_eq!((stats.free(), stats.quarantined()), (0, 2));
    assert!(pool.audit().is_clean());
}

#[test]
fn a_buffer_from_a_lease_is_an_ordinary_buffer() {
    let pool = pool(64, 1);
    let mut buf = pool.try_alloc(1).unwrap();
    buf.extend_from_slice(b"abc");
    buf.begin_lease();
    assert_eq!(pool.stats().in_flight(), 1);
    buf.end_lease();
    assert_eq!(&buf[..], b"abc");
    drop(buf);
    assert_all_free(&pool);
}

#[cfg(feature = "bytes")]
#[test]
fn is_a_bytes_buf_mut() {
    use bytes::BufMut;

    let pool = pool(10, 1);
    let mut buf = pool.try_alloc(1).unwrap();
    buf.put_u32(0x6162_6364);
    buf.put_slice(b"ef");
    assert_eq!(buf.remaining_mut(), 4);
    buf.put(&b"ghij"[..]);
    assert!(!buf.has_remaining_mut());
    assert_eq!(&buf[..], b"abcdefghij");
}
