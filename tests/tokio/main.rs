//! Streams in tokio's runtimes.

#![cfg(target_os = "linux")]

#[path = "../common/calls.rs"]
mod calls;
mod cancel;
#[path = "../common/mod.rs"]
mod common;
mod datagrams;
mod looks;
mod many;
mod stream;
#[path = "../common/tasks.rs"]
mod tasks;
mod wakeups;

use pinbuf::{sender::SenderBuilder, tokio::Stream};

use common::{Buffers, pair_at, zero_copy};
use tasks::{counted, dropped_after, one_thread, runtimes, soon};

const LEN: usize = 64 << 10;

fn stream_of(builder: SenderBuilder, buffers: Buffers) -> (Stream, std::net::TcpStream) {
    let (near, far) = pair_at("127.0.0.1:0", buffers);
    (Stream::adopt(builder, near).unwrap(), far)
}

fn stream(buffers: Buffers) -> (Stream, std::net::TcpStream) {
    stream_of(zero_copy(), buffers)
}
