//! Counters and release times of senders over HTTP, in the text format of Prometheus.
//!
//! `cargo run --release -p metrics_exporter -- 127.0.0.1:9100`, then `curl http://127.0.0.1:9100/metrics`.
//!
//! Two connections over loopback are the load: one ends after 100 sends. A connection is split, and the
//! exporter reads the half that does not send: a blocked send delays no scrape.

#![allow(clippy::print_stdout, reason = "a program, not the library")]

use std::{
    env,
    error::Error,
    fmt,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use pinbuf::{
    Policy, Pool, Sender,
    sender::{ReapHalf, ReleaseTimes},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet, prometheus_text},
    metrics::MetricType::{self, Counter, Gauge, Histogram},
    registry::{Registry, Unit},
};

/// Upper bounds of the buckets, in microseconds: from loopback to a peer that hardly reads.
const BOUNDS_US: [u64; 7] = [10, 100, 500, 1_000, 10_000, 100_000, 1_000_000];

#[derive(Debug)]
struct Metrics {
    pool: Pool,
    /// The open senders, and the sums of closed senders: a counter never falls.
    senders: Mutex<(Vec<Arc<ReapHalf<OwnedFd>>>, Totals)>,
}

#[derive(Clone, Default, Debug)]
struct Totals {
    sent_bytes: [u64; 2],
    no_bufs: [u64; 2],
    times: ReleaseTimes,
}

impl Totals {
    fn add(&mut self, half: &ReapHalf<OwnedFd>) {
        let stats = half.stats();
        let add = |sums: &mut [u64; 2], more: [u64; 2]| (0..2).for_each(|at| sums[at] += more[at]);
        add(&mut self.sent_bytes, [stats.zero_copy_bytes, stats.copied_bytes]);
        add(&mut self.no_bufs, [stats.no_bufs_optmem, stats.no_bufs_memlock]);
        self.times += &half.release_times().unwrap_or_default();
    }
}

impl Metrics {
    /// Sends `count` buffers to a peer that reads.
    fn load(&self, count: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let socket = TcpStream::connect(listener.local_addr()?)?;
        let mut far = listener.accept()?.0;
        thread::spawn(move || io::copy(&mut far, &mut io::sink()));
        let sender = Sender::builder().policy(Policy::Prefer).release_times(true);
        let (mut send, reap) = sender.adopt(OwnedFd::from(socket))?.split();
        let reap = Arc::new(reap);
        self.senders.lock().unwrap().0.push(Arc::clone(&reap));
        for _ in 0..count {
            let mut buf = self.pool.alloc(1)?;
            buf.resize(buf.capacity(), 7);
            send.send(buf)?;
            thread::sleep(Duration::from_millis(1));
        }
        while reap.stats().in_flight_calls > 0 {
            thread::sleep(Duration::from_millis(1));
            reap.reap()?;
        }
        let (open, closed) = &mut *self.senders.lock().unwrap();
        open.retain(|other| !Arc::ptr_eq(other, &reap));
        closed.add(&reap);
        Ok(())
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (open, mut totals) = self.senders.lock().unwrap().clone();
        open.iter().for_each(|half| totals.add(half));
        let Totals { sent_bytes, no_bufs, times } = totals;
        let mut family = |name, help, kind: MetricType, label, values: &[(&str, u64)]| {
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            values.iter().try_for_each(|(value, number)| {
                let labels = [(label, *value)];
                let mut metric = metric.encode_family(&labels)?;
                match kind {
                    Counter => metric.encode_counter::<NoLabelSet, _, u64>(number, None),
                    _ => metric.encode_gauge(number),
                }
            })
        };
        let sent = [("zero_copy", sent_bytes[0]), ("copied", sent_bytes[1])];
        family("sent_bytes", "Bytes accepted by sockets", Counter, "way", &sent)?;
        let refused = [("optmem", no_bufs[0]), ("memlock", no_bufs[1])];
        family("no_bufs", "Calls refused by the kernel for memory", Counter, "limit", &refused)?;
        let stats = self.pool.stats();
        let slots = [("free", stats.free() as u64), ("in_flight", stats.in_flight() as u64)];
        family("pool_slots", "Slots of the pool", Gauge, "state", &slots)?;
        let mut below = 0;
        let buckets = BOUNDS_US.map(|bound| {
            let within = times.count_within(Duration::from_micros(bound));
            (bound as f64 / 1e6, within - std::mem::replace(&mut below, within))
        });
        let help = "Time from a zero-copy call to its release";
        let (sum, count) = (times.total().as_secs_f64(), times.count());
        encoder
            .encode_descriptor("release", help, Some(&Unit::Seconds), Histogram)?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// Answers any request with the metrics.
fn answer(mut client: TcpStream, registry: &Registry) -> io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    let lines = BufReader::new(client.try_clone()?).lines().map_while(Result::ok);
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let mut body = String::new();
    prometheus_text::encode(&mut body, registry).map_err(io::Error::other)?;
    let kind = prometheus_text::CONTENT_TYPE;
    write!(client, "HTTP/1.0 200 OK\r\nContent-Type: {kind}\r\n\r\n{body}")
}

fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(env::args().nth(1).unwrap_or("127.0.0.1:9100".to_owned()))?;
    let metrics = Arc::new(Metrics { pool: Pool::new(256 << 10, 64)?, senders: Mutex::default() });
    for count in [100, usize::MAX] {
        let metrics = Arc::clone(&metrics);
        thread::spawn(move || metrics.load(count));
    }
    let mut registry = Registry::with_prefix("pinbuf");
    registry.register_collector(Box::new(metrics));
    println!("listening on http://{}/metrics", listener.local_addr()?);
    for client in listener.incoming() {
        // A client that hangs up is no fault of the exporter.
        let _ = client.and_then(|client| answer(client, &registry));
    }
    Ok(())
}
