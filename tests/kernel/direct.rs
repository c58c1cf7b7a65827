//! Buffers in other interfaces of the kernel: `O_DIRECT`, and fixed buffers of `io_uring`.

use std::{
    env,
    fs::{self, File},
    io::{self, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    process,
};

use io_uring::{IoUring, opcode, types::Fd};
use pinbuf::{PinnedBuf, Pool};

use crate::common::{pattern, pool, skip};

const LEN: usize = 64 << 10;

/// A file of a test.
fn file(name: &str) -> PathBuf {
    let path = env::temp_dir().join(format!("{name}-{}", process::id()));
    File::create(&path).unwrap().write_all(&pattern(LEN, 1)).unwrap();
    path
}

#[test]
fn a_buffer_takes_direct_reads() {
    let path = file("pinbuf-direct");
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path);
    fs::remove_file(&path).unwrap();
    let mut direct = match direct {
        Ok(file) => file,
        Err(error) => return skip("a_buffer_takes_direct_reads", &error.to_string()),
    };
    let pool = pool(LEN, 2);
    for _ in 0..2 {
        let mut buf = pool.try_alloc(LEN).unwrap();
        assert_eq!(buf.read_from(&mut direct, LEN).unwrap(), LEN);
        assert_eq!(buf, pattern(LEN, 1));
        io::Seek::rewind(&mut direct).unwrap();
    }
}

/// Registers all buffers of a pool, and reads into one of them.
fn read_fixed(pool: &Pool, file: &File) -> io::Result<PinnedBuf> {
    let mut bufs = Vec::new();
    pool.try_alloc_many(LEN, 4, &mut bufs)?;
    let room = |buf: &mut PinnedBuf| libc::iovec {
        iov_base: buf.spare_capacity_mut().as_mut_ptr().cast(),
        iov_len: LEN,
    };
    let rooms: Vec<_> = bufs.iter_mut().map(room).collect();
    let mut ring = IoUring::new(2)?;
    // SAFETY: the buffers keep the ranges mapped for longer than the ring lives.
    unsafe { ring.submitter().register_buffers(&rooms) }?;
    let start = rooms[2].iov_base.cast();
    let read = opcode::ReadFixed::new(Fd(file.as_raw_fd()), start, LEN as u32, 2).build();
    // SAFETY: the range is of a registered buffer, which has no other user before the completion.
    unsafe { ring.submission().push(&read) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().expect("waited for").result();
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    let mut buf = bufs.swap_remove(2);
    // SAFETY: the kernel wrote so many bytes.
    unsafe { buf.set_len(result as usize) };
    Ok(buf)
}

#[test]
fn a_buffer_is_a_fixed_buffer_of_a_ring() {
    let path = file("pinbuf-fixed");
    let file = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    match read_fixed(&pool(LEN, 4), &file) {
        Ok(buf) => assert_eq!(buf, pattern(LEN, 1)),
        Err(error) => skip("a_buffer_is_a_fixed_buffer_of_a_ring", &error.to_string()),
    }
}
