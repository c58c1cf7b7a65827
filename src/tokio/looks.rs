//! Looks for overdue notifications, by the timer of a runtime: one round a second and process.
//!
//! A notification that another user of the socket has read is no news. The option memory of the socket tells
//! of the loss, and a look at a sender asks for it. The streams of all runtimes take turns in one task. The task
//! runs while something is in flight for which a task waits, in the runtime of the stream that was first. The end
//! of that runtime wakes the tasks that wait, and the first that waits anew has another begin.

use std::{mem, time::Duration};

use ::tokio::{runtime::Handle, time};

use crate::{
    sync::{Arc, OnceLock},
    turns::{Member, Turns},
};

/// The time between rounds.
const EVERY: Duration = Duration::from_secs(1);

type Streams = Turns<dyn Member>;

fn streams() -> &'static Streams {
    static STREAMS: OnceLock<Streams> = OnceLock::new();
    STREAMS.get_or_init(Turns::default)
}

/// A task waits for a stream: has the stream looked at if something is in flight.
pub(super) fn have_looked_at<M: Member + 'static>(stream: &Arc<M>, runtime: &Handle) {
    if Turns::is_missing(&**stream) {
        let stream: Arc<dyn Member> = Arc::<M>::clone(stream);
        if streams().add(&stream) {
            runtime.spawn(make_rounds(Rounds));
        }
    }
}

async fn make_rounds(rounds: Rounds) {
    loop {
        time::sleep(EVERY).await;
        if !streams().round() {
            break;
        }
    }
    mem::forget(rounds);
}

/// The task that makes the rounds. A drop is the end of its runtime.
struct Rounds;

impl Drop for Rounds {
    fn drop(&mut self) {
        streams().abandon();
    }
}
