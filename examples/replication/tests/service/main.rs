//! The service over loopback: in this process, and as programs.

#![cfg(target_os = "linux")]
#![allow(dead_code, reason = "the tests of the migration use the rest")]

mod client;
mod hostile;
#[path = "../../../migration_sender/tests/commands/process.rs"]
mod process;
mod programs;
mod stream;

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use clap::Parser;
use pinbuf::Pool;
use replication::{
    primary::{Config, Primary, Report},
    replica,
    source::Generator,
};
use tokio::{
    sync::Notify,
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout},
};

/// The program.
const PROGRAM: &str = env!("CARGO_BIN_EXE_replication");

/// A limit that only a hang reaches.
const STUCK: Duration = Duration::from_secs(120);

/// A folder for a test, empty at first.
struct Place(PathBuf);

impl Place {
    fn of(test: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("replication-{}-{test}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).into_os_string().into_string().unwrap()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.join(name)).unwrap()
    }

    /// Bytes of a file, also before there is a file.
    fn len(&self, name: &str) -> u64 {
        fs::metadata(self.0.join(name)).map_or(0, |file| file.len())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A primary in this process.
struct Service {
    address: SocketAddr,
    tail: Option<SocketAddr>,
    pool: Pool,
    stop: Arc<Notify>,
    run: JoinHandle<Report>,
}

impl Service {
    async fn start(place: &Place, words: &str, input: impl Read + Send + 'static) -> Self {
        let log = place.path("log");
        let args = ["primary", "--listen", "127.0.0.1:0", "--log", &log].into_iter();
        let primary = Primary::bind(Config::parse_from(args.chain(words.split_whitespace())));
        let primary = primary.await.unwrap();
        let (address, tail) = (primary.address().unwrap(), primary.tail_address().unwrap());
        let (pool, stop) = (primary.pool(), Arc::new(Notify::new()));
        let notified = Arc::clone(&stop);
        let run = tokio::spawn(async move { primary.run(input, &notified).await });
        Self { address, tail, pool, stop, run }
    }

    /// Starts a replica in this process.
    fn replica(&self, id: u32, output: &Path) -> JoinHandle<std::io::Result<u64>> {
        let (connect, output) = (self.address.to_string(), output.to_owned());
        let config = replica::Config { connect, id, output, sync: false, patience: 60 };
        spawn_blocking(move || replica::run(&config).map(|end| end.blocks))
    }

    /// Ends the stream, and the wait for the replicas.
    async fn stop(self) -> Report {
        eventually("the end", || {
            self.stop.notify_one();
            self.run.is_finished()
        })
        .await;
        self.report().await
    }

    /// Waits for the end.
    async fn report(self) -> Report {
        let report = within(self.run).await.unwrap();
        let free = || self.pool.stats().free() == self.pool.stats().classes[0].slots;
        eventually("every buffer is free", free).await;
        assert!(self.pool.audit().is_clean(), "{}", self.pool.audit());
        report
    }
}

/// The output of a future that is ready unless something hangs.
async fn within<F: Future>(future: F) -> F::Output {
    timeout(STUCK, future).await.expect("nothing hangs")
}

/// Waits for an action of another task, thread or process.
async fn eventually(event: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(STUCK, wait).await.unwrap_or_else(|_| panic!("never: {event}"));
}

/// The first `len` bytes of the generator.
fn generated(len: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    Generator::new(len).read_to_end(&mut bytes).unwrap();
    bytes
}

#[track_caller]
fn assert_same(got: &[u8], want: &[u8]) {
    let differs = got.iter().zip(want).position(|(got, want)| got != want);
    assert_eq!((got.len(), differs), (want.len(), None), "(length, first difference)");
}

/// Writes from a thread, since a pipe holds little. Gives the pipe back open.
fn write_all(
    mut pipe: std::io::PipeWriter,
    bytes: Vec<u8>,
) -> thread::JoinHandle<std::io::PipeWriter> {
    thread::spawn(move || {
        pipe.write_all(&bytes).unwrap();
        pipe
    })
}

fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
