//! The least servers: a thread that opens the file, and sends it with a head in front.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    path::Path,
    thread,
};

/// Answers each request on a thread of its own, by a function that sends a head and a file of a length.
pub(crate) fn start<S: Read + Write + Send + 'static>(
    near: S,
    root: &Path,
    send: fn(&mut S, &[u8], &File, usize) -> io::Result<()>,
) {
    let root = root.to_owned();
    thread::spawn(move || answer_all(near, &root, send));
}

/// Ends with the connection.
fn answer_all<S: Read>(
    mut near: S,
    root: &Path,
    send: fn(&mut S, &[u8], &File, usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut head = [0; 4096];
    loop {
        let len = near.read(&mut head)?;
        let request = String::from_utf8_lossy(&head[..len]);
        let path = request.split(' ').nth(1).ok_or(io::ErrorKind::UnexpectedEof)?;
        let file = File::open(root.join(&path[1..]))?;
        let len = file.metadata()?.len() as usize;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n");
        send(&mut near, head.as_bytes(), &file, len)?;
    }
}

pub(crate) fn sendfile(
    near: &mut TcpStream,
    head: &[u8],
    file: &File,
    mut left: usize,
) -> io::Result<()> {
    let (to, from) = (near.as_raw_fd(), file.as_raw_fd());
    // SAFETY: send(2) reads the bytes, alive during the call. They share their packet with the file.
    let sent = unsafe { libc::send(to, head.as_ptr().cast(), head.len(), libc::MSG_MORE) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    while left > 0 {
        // SAFETY: sendfile(2) moves the file's own position; no pointer is read.
        match unsafe { libc::sendfile(to, from, std::ptr::null_mut(), left) } {
            ..0 => return Err(io::Error::last_os_error()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            sent => left -= sent as usize,
        }
    }
    Ok(())
}

pub(crate) fn read_and_write<S: Write>(
    near: &mut S,
    head: &[u8],
    mut file: &File,
    mut left: usize,
) -> io::Result<()> {
    let mut room = vec![0; 256 << 10];
    room[..head.len()].copy_from_slice(head);
    let mut filled = head.len();
    while left > 0 {
        let read = file.read(&mut room[filled..])?;
        near.write_all(&room[..filled + read])?;
        (left, filled) = (left - read, 0);
    }
    near.flush()
}
