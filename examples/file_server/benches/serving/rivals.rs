//! The least servers: a thread that opens the file, and sends it with a head in front.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    path::Path,
    thread,
};

use tokio::runtime::Runtime;

/// Sends a file to a socket.
type Send = fn(&File, &mut TcpStream, usize) -> io::Result<()>;

/// Answers each request on a thread of its own.
pub(crate) fn start(near: TcpStream, root: &Path, send: Send) -> Option<Runtime> {
    let root = root.to_owned();
    near.set_nodelay(true).expect("a stream");
    thread::spawn(move || answer_all(near, &root, send));
    None
}

/// Ends with the connection.
fn answer_all(mut near: TcpStream, root: &Path, send: Send) -> io::Result<()> {
    let mut head = [0; 4096];
    loop {
        let len = near.read(&mut head)?;
        let request = String::from_utf8_lossy(&head[..len]);
        let path = request.split(' ').nth(1).ok_or(io::ErrorKind::UnexpectedEof)?;
        let file = File::open(root.join(&path[1..]))?;
        let len = file.metadata()?.len() as usize;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n");
        write_more(&near, head.as_bytes())?;
        send(&file, &mut near, len)?;
    }
}

/// Writes bytes that share their packet with the next ones.
fn write_more(near: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: send(2) reads the bytes, alive during the call.
    let sent =
        unsafe { libc::send(near.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_MORE) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(crate) fn sendfile(file: &File, near: &mut TcpStream, len: usize) -> io::Result<()> {
    let mut left = len;
    while left > 0 {
        let (to, from) = (near.as_raw_fd(), file.as_raw_fd());
        // SAFETY: sendfile(2) moves the file's own position; no pointer is read.
        match unsafe { libc::sendfile(to, from, std::ptr::null_mut(), left) } {
            ..0 => return Err(io::Error::last_os_error()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            sent => left -= sent as usize,
        }
    }
    Ok(())
}

pub(crate) fn read_and_write(file: &File, near: &mut TcpStream, len: usize) -> io::Result<()> {
    let (mut left, mut file) = (len, file);
    let mut room = vec![0; 256 << 10];
    while left > 0 {
        let read = file.read(&mut room)?;
        near.write_all(&room[..read])?;
        left -= read;
    }
    Ok(())
}
