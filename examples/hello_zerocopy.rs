//! Sends 256 MiB from pool buffers over loopback, and shows their fate.
//!
//! `cargo run --release --example hello_zerocopy`

#![allow(clippy::print_stdout, reason = "a program, not the library")]

use std::{
    error::Error,
    io,
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use pinbuf::{Pool, Sender};

fn main() -> Result<(), Box<dyn Error>> {
    // The far end: counts bytes until the stream ends.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let peer = thread::spawn(move || io::copy(&mut listener.accept()?.0, &mut io::sink()));

    // 64 buffers of 256 KiB, on huge pages where the system has them.
    let pool = Pool::new(256 * 1024, 64)?;
    let mut sender = Sender::new(TcpStream::connect(address)?)?;
    println!("pool:   {}", pool.region());

    let start = Instant::now();
    for round in 0..1024_u32 {
        // Waits for a free buffer, and meanwhile reads this sender's notifications.
        let mut buf = pool.alloc(256 * 1024)?;
        buf.resize(256 * 1024, round as u8);
        // From here the buffer belongs to the kernel, until its release.
        sender.send(buf)?;
    }
    // Waits for the release of every buffer.
    sender.drain(Some(Duration::from_secs(10)))?;
    let time = start.elapsed();
    let stats = sender.stats();
    let report = sender.close(Some(Duration::from_secs(10)));

    // Over loopback the kernel copies, so that the default policy soon copies instead.
    println!("calls:  {} by copy", stats.copied_calls);
    println!(
        "        {} without, {} of them copied by the kernel",
        stats.zero_copy_calls, stats.deferred_copies
    );
    println!("closed: in order: {}, after {time:.2?}", report.drained);
    println!("peer:   {} bytes", peer.join().expect("the peer does not panic")?);
    println!("pool:   {}", pool.audit());
    Ok(())
}
