//! Streams in tokio's runtimes.

#![cfg(target_os = "linux")]

#[path = "../common/calls.rs"]
mod calls;
mod cancel;
#[path = "../common/mod.rs"]
mod common;
mod many;
mod stream;
mod wakeups;

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pinbuf::{sender::SenderBuilder, tokio::Stream};
use tokio::runtime::{Builder, Runtime};

use common::{Buffers, pair_at, zero_copy};

const LEN: usize = 64 << 10;

/// The runtimes of a test: one thread, and three.
fn runtimes() -> [Runtime; 2] {
    let threads = Builder::new_multi_thread().worker_threads(3).enable_all().build();
    [one_thread(), threads.unwrap()]
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn stream_of(builder: SenderBuilder, buffers: Buffers) -> (Stream, std::net::TcpStream) {
    let (near, far) = pair_at("127.0.0.1:0", buffers);
    (Stream::adopt(builder, near).unwrap(), far)
}

fn stream(buffers: Buffers) -> (Stream, std::net::TcpStream) {
    stream_of(zero_copy(), buffers)
}

/// Waits without a limit, but not for ever.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("a wake-up was missed")
}

/// A future that counts its polls.
struct Counted<F> {
    future: Pin<Box<F>>,
    polls: usize,
}

fn counted<F: Future>(future: F) -> Counted<F> {
    Counted { future: Box::pin(future), polls: 0 }
}

impl<F: Future> Future for Counted<F> {
    type Output = (F::Output, usize);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.polls += 1;
        let polls = self.polls;
        self.future.as_mut().poll(cx).map(|output| (output, polls))
    }
}
