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
#[path = "serving/identity.rs"]
mod identity;
#[path = "serving/link.rs"]
mod link;
#[path = "serving/rivals.rs"]
mod rivals;

use std::{fs, net::TcpStream, path::PathBuf, thread, time::Duration};

use clap::Parser;
use common::namespace;
use file_server::{Server, Settings};
use harness::{Bench, Case, process_cpu, thread_cpu, wall};
use identity::Identity;
use link::Way;
use rustls::StreamOwned;
use tokio::runtime::Runtime;

const SENDFILE: &str = "loop of sendfile(2)";
const COPY: &str = "loop of read(2) and write(2)";
const TLS: &str = "loop of read(2) and rustls::StreamOwned";

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
    let place = Place::with_files(lens);
    let mut compare = |title: &str, unit, way, clock| {
        let mut table = bench.table(title, unit).rounds(11);
        for &len in lens {
            let name = match len >> 20 {
                0 => format!("{} KiB", len >> 10),
                mib => format!("{mib} MiB"),
            };
            let reference = if way == Way::TlsOverLoopback { TLS } else { SENDFILE };
            table.case(&name, reference, |case| {
                let work = Work { way, clock, len, files: (bytes / len).max(1) };
                enter(case, work, &place, &furnished);
            });
        }
    };
    let (cpu, time) = ("ms of CPU per GB", "ms per GB");
    compare("To a device that drops everything, not copied", cpu, Way::FakePeer, Clock::Cpu);
    compare("Over loopback, copied", cpu, Way::Loopback, Clock::Cpu);
    compare("Over loopback, time", time, Way::Loopback, Clock::Wall);
    compare("TLS 1.3 over loopback, copied", cpu, Way::TlsOverLoopback, Clock::Cpu);
    compare("TLS 1.3 over loopback, time", time, Way::TlsOverLoopback, Clock::Wall);
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

/// Downloads of a file.
#[derive(Clone, Copy)]
struct Work {
    way: Way,
    clock: Clock,
    len: usize,
    files: usize,
}

fn enter<'a>(
    case: &mut Case<'a>,
    Work { way, clock, len, files }: Work,
    place: &'a Place,
    furnished: &'a Result<(), String>,
) {
    type Start<'a> = Box<dyn FnOnce(TcpStream) -> Option<Runtime> + 'a>;
    let mut row = |name, start: Start<'a>| {
        case.row(name, move || {
            if way == Way::FakePeer {
                furnished.clone()?;
            }
            let (near, mut client) = way.connect(&place.identity);
            near.set_nodelay(true).expect("a stream");
            let runtime = start(near);
            let request = format!("GET /{len} HTTP/1.1\r\nHost: x\r\n\r\n");
            Ok(move |_| {
                let _running = &runtime;
                let taken = clock.measure(|| (0..files).for_each(|_| client.fetch(&request, len)));
                // Milliseconds per gigabyte.
                taken.as_secs_f64() * 1e12 / (files * len) as f64
            })
        });
    };
    let root = &place.root;
    if way == Way::TlsOverLoopback {
        row(
            TLS,
            Box::new(|near| {
                let near = StreamOwned::new(place.identity.server(), near);
                rivals::start(near, root, rivals::read_and_write);
                None
            }),
        );
    } else {
        row(
            SENDFILE,
            Box::new(|near| {
                rivals::start(near, root, rivals::sendfile);
                None
            }),
        );
        row(
            COPY,
            Box::new(|near| {
                rivals::start(near, root, rivals::read_and_write);
                None
            }),
        );
    }
    for (name, settings) in [
        ("file_server, files read, Prefer", "--cache=0 --zerocopy=prefer"),
        ("file_server, files cached, Prefer", "--cache=50 --zerocopy=prefer"),
        ("file_server, files read, Auto", "--cache=0 --zerocopy=auto"),
        ("file_server, files cached, Auto", "--cache=50 --zerocopy=auto"),
    ] {
        // Where nothing is copied, both policies are one.
        if way != Way::FakePeer || name.ends_with("Prefer") {
            row(name, Box::new(move |near| Some(serve(near, place, settings, way))));
        }
    }
}

/// Serves one connection in a runtime of its own.
fn serve(near: TcpStream, place: &Place, settings: &str, way: Way) -> Runtime {
    let runtime = Runtime::new().expect("threads");
    runtime.block_on(async {
        let root = place.root.display();
        let tls = match way {
            Way::TlsOverLoopback => {
                format!("--tls-cert={root}/certificate.pem --tls-key={root}/key.pem")
            }
            _ => String::new(),
        };
        let words = format!(
            "file_server {root} --listen=127.0.0.1:0 --memory=256 --idle-timeout=9999 --quiet {tls} {settings}"
        );
        let settings = Settings::parse_from(words.split_whitespace());
        let server = Server::bind(settings).await.expect("a server");
        let client = near.peer_addr().expect("connected");
        near.set_nonblocking(true).expect("a socket");
        let near = tokio::net::TcpStream::from_std(near).expect("a runtime");
        tokio::spawn(server.serve(near, client));
    });
    runtime
}

/// A folder with a certificate, and a file of each length, named by it.
struct Place {
    root: PathBuf,
    identity: Identity,
}

impl Place {
    fn with_files(lens: &[usize]) -> Self {
        let root = std::env::temp_dir().join(format!("pinbuf-serving-{}", std::process::id()));
        fs::create_dir_all(&root).expect("a folder");
        let place = Self { identity: Identity::new(&root), root };
        for len in lens {
            fs::write(place.root.join(len.to_string()), vec![7; *len]).expect("room for the files");
        }
        thread::sleep(SETTLED);
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}
