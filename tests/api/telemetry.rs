//! Events for subscribers of `tracing`.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use pinbuf::Sender;
use tracing::{Level, info_span, subscriber::with_default};

use crate::common;

/// A writer for many lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_span_of_the_adoption_is_the_parent_of_all_events() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone());
    with_default(subscriber.finish(), || {
        let (near, far) = common::pair();
        let far = common::reader(far, Duration::ZERO);
        let span = info_span!("connection", peer = 7);
        let mut sender = span.in_scope(|| Sender::new(near)).unwrap();
        info_span!("another").in_scope(|| sender.send(&b"hello"[..])).unwrap();
        let report = info_span!("another").in_scope(|| sender.close(None));
        assert!(report.drained);
        assert_eq!(far.join().unwrap(), b"hello");
    });
    let lines = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let closed = "DEBUG connection{peer=7}: pinbuf::sender: the sender has ended sender=";
    assert!(lines.lines().count() == 1 && lines.contains(closed), "{lines}");
    assert!(lines.contains(" drained=true aborted=false "), "{lines}");
}
