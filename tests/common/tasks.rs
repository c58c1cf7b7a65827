//! Runtimes of tokio for tests, and futures that are counted, limited or dropped.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::runtime::{Builder, Runtime};

/// The runtimes of a test: one thread, and three.
pub(crate) fn runtimes() -> [Runtime; 2] {
    let threads = Builder::new_multi_thread().worker_threads(3).enable_all().build();
    [one_thread(), threads.unwrap()]
}

pub(crate) fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Waits without a limit, but not for ever.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("a wake-up was missed")
}

/// A future that counts its polls.
pub(crate) struct Counted<F> {
    future: Pin<Box<F>>,
    polls: usize,
}

pub(crate) fn counted<F: Future>(future: F) -> Counted<F> {
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

/// Polls a future so many times, and drops the future if it is still pending then.
pub(crate) async fn dropped_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        let poll = future.as_mut().poll(cx);
        left -= 1;
        match poll {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
