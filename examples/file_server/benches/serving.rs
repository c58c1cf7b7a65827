//! The file server against loops of sendfile(2), and of read(2) and write(2): the same files, one client, one
//! connection, all in this process.
//!
//! A contestant's CPU time is that of all threads except the client's.

#[path = "../../../tests/common/mod.rs"]
mod common;
#[path = "../../../tests/lab/fake_peer.rs"]
mod fake_peer;
#[path = "../../../benches/harness/mod.rs"]
mod harness;
#[path = "serving/link.rs"]
mod link;
#[path = "serving/rivals.rs"]
mod rivals;

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use clap::Parser;
use common::namespace;
use file_server::{Server, Settings};
use harness::{Bench, Case, process_cpu, thread_cpu, wall};
use link::Way;
use tokio::runtime::Runtime;

const SENDFILE: &str = "loop of sendfile(2)";
const COPY: &str = "loop of read(2) and write(2)";

const KIB: usize = 1 << 10;
/// The cache takes files whose last change is this long ago.
const SETTLED: Duration = Duration::from_millis(3500);

fn main() {
    // Congestion control and socket buffers are those of a namespace of its own.
    let furnished = namespace::enter().and_then(|()| fake_peer::furnish()).and_then(|()| {
        let chosen = fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno");
        chosen.map_err(|error| format!("reno: {error}"))
    });
    let mut bench = Bench::new("file_server");
    let lens = bench.size(&[64 * KIB, 1 << 20, 32 << 20][..], &[64 * KIB]);
    let bytes = bench.size(128 << 20, 1 << 20);
    let root = Root::with_files(lens);
    let mut compare = |title: &str, unit, way, clock| {
        let mut table = bench.table(title, unit).rounds(11);
        for &len in lens {
            let name = if len < 1 << 20 {
                format!("{} KiB", len >> 10)
            } else {
                format!("{} MiB", len >> 20)
            };
            table.case(&name, SENDFILE, |case| {
                enter(case, way, len, (clock, bytes), &root.0, &furnished);
            });
        }
    };
    compare(
        "To a device that drops everything, not copied",
        "ms of CPU per GB",
        Way::FakePeer,
        Clock::Cpu,
    );
    compare("Over loopback, copied", "ms of CPU per GB", Way::Loopback, Clock::Cpu);
    compare("Over loopback, time", "ms per GB", Way::Loopback, Clock::Wall);
    bench.finish();
}

/// The measured time.
#[derive(Clone, Copy)]
enum Clock {
    /// CPU time of all threads but the client's.
    Cpu,
    Wall,
}

impl Clock {
    fn measure(self, work: impl FnOnce()) -> Duration {
        let now = || match self {
            Self::Cpu => {
                // The time of another thread is exact when that thread sleeps.
                thread::sleep(Duration::from_millis(1));
                process_cpu() - thread_cpu()
            }
            Self::Wall => wall(),
        };
        let start = now();
        work();
        now().saturating_sub(start)
    }
}

fn enter<'a>(
    case: &mut Case<'a>,
    way: Way,
    len: usize,
    (clock, bytes): (Clock, usize),
    root: &'a Path,
    furnished: &'a Result<(), String>,
) {
    let ours = |settings: &'static str| move |near| serve(near, root, settings);
    let mut row = |name, start: Box<dyn FnOnce(TcpStream) -> Option<Runtime> + 'a>| {
        case.row(name, move || {
            if way == Way::FakePeer {
                furnished.clone()?;
            }
            let (near, mut client) = way.connect();
            let runtime = start(near);
            let request = format!("GET /{len} HTTP/1.1\r\nHost: x\r\n\r\n");
            Ok(move |_| {
                let _running = &runtime;
                let files = (bytes / len).max(1);
                let taken = clock.measure(|| (0..files).for_each(|_| client.fetch(&request, len)));
                // Milliseconds per gigabyte.
                taken.as_secs_f64() * 1e12 / (files * len) as f64
            })
        });
    };
    row(SENDFILE, Box::new(|near| rivals::start(near, root, rivals::sendfile)));
    row(COPY, Box::new(|near| rivals::start(near, root, rivals::read_and_write)));
    row("file_server, files read, Prefer", Box::new(ours("--cache=0 --zerocopy=prefer")));
    row("file_server, files cached, Prefer", Box::new(ours("--cache=50 --zerocopy=prefer")));
    if way == Way::Loopback {
        row("file_server, files read, Auto", Box::new(ours("--cache=0 --zerocopy=auto")));
        row("file_server, files cached, Auto", Box::new(ours("--cache=50 --zerocopy=auto")));
    }
}

/// Serves one connection in a runtime of its own.
fn serve(near: TcpStream, root: &Path, settings: &str) -> Option<Runtime> {
    let runtime = Runtime::new().expect("threads");
    runtime.block_on(async {
        let words = ["file_server", "--listen=127.0.0.1:0", "--memory=256", "--quiet"];
        let words = words.into_iter().chain(settings.split_whitespace());
        let root = root.to_str().expect("a name of ours");
        let server =
            Server::bind(Settings::parse_from(words.chain([root]))).await.expect("a server");
        let client = near.peer_addr().expect("connected");
        near.set_nonblocking(true).expect("a socket");
        let near = tokio::net::TcpStream::from_std(near).expect("a runtime");
        tokio::spawn(server.serve(near, client));
    });
    Some(runtime)
}

/// A folder with a file of each length, named by it.
struct Root(PathBuf);

impl Root {
    fn with_files(lens: &[usize]) -> Self {
        let root = std::env::temp_dir().join(format!("pinbuf-serving-{}", std::process::id()));
        fs::create_dir_all(&root).expect("a folder");
        let root = Self(root);
        for len in lens {
            fs::write(root.0.join(len.to_string()), vec![7; *len]).expect("room for the files");
        }
        thread::sleep(SETTLED);
        root
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
