//! Ten thousand streams in one thread of tokio: wake-ups, processor time and memory.
//!
//! `cargo run --release --features tokio --example many_streams -- 10000`
//!
//! Each stream takes two descriptors. Where the limit (`ulimit -n`) is below 20,100 the streams are divided among
//! two processes or more, with a runtime of one thread each. The peers are in a process of their own. They read
//! nothing at first, so that all streams wait at once.

#![allow(clippy::print_stdout, reason = "a program, not the library")]

use std::{
    cell::Cell,
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    pin::Pin,
    process::{Child, ChildStdout, Command, Stdio},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use pinbuf::{Policy, Sender, tokio::Stream};
use tokio::{
    io::{AsyncReadExt, copy, sink},
    net::{TcpSocket, TcpStream},
    runtime::{Builder, Handle},
    task::{LocalSet, spawn_local},
    time::sleep,
};

static BUFFER: [u8; 64 << 10] = [7; 64 << 10];
/// Sends of each stream while its peer reads.
const SENDS: usize = 10;

fn main() -> io::Result<()> {
    let mut args = env::args().skip(1);
    let count = args.next().map_or(Ok(10_000), |count| count.parse());
    let count: usize = count.map_err(io::Error::other)?;
    let runtime = || Builder::new_current_thread().enable_all().build();
    match (args.next().as_deref(), args.next()) {
        (Some("peers"), _) => runtime()?.block_on(peers(count)),
        (Some("streams"), Some(address)) => {
            LocalSet::new().block_on(&runtime()?, streams(count, &address))
        }
        _ => run(count),
    }
}

/// Starts the processes, and has them measure at the same times.
fn run(count: usize) -> io::Result<()> {
    let processes = count.div_ceil((open_files()? - 100) / 2);
    println!("{count} streams in {processes} processes");
    let mut peers = Process::start(&[&count.to_string(), "peers"])?;
    let address = peers.line()?;
    let mut parts = Vec::new();
    for part in 0..processes {
        let count = count / processes + usize::from(part < count % processes);
        parts.push(Process::start(&[&count.to_string(), "streams", &address])?);
    }
    let pause = |parts: &mut Vec<Process>| {
        parts.iter_mut().try_for_each(Process::print_up_to_pause)?;
        parts.iter_mut().try_for_each(Process::go_on)
    };
    // All streams wait. Each process measures five seconds of this.
    pause(&mut parts)?;
    // Then the data flows.
    pause(&mut parts)?;
    peers.go_on()?;
    parts.iter_mut().try_for_each(Process::print_up_to_pause)?;
    let expected = (count * SENDS * BUFFER.len()).to_string();
    assert_eq!(peers.line()?, expected, "everything arrived");
    Ok(())
}

/// The limit of descriptors of a process.
fn open_files() -> io::Result<usize> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = limit.and_then(|limit| limit.split_whitespace().next()?.parse().ok());
    soft.ok_or_else(|| io::Error::other("no limit of open files"))
}

/// A process of this program.
struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
}

/// The line before a pause.
const PAUSE: &str = "pause";

impl Process {
    fn start(args: &[&str]) -> io::Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Ok(Self { child, lines })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Prints the lines of the process up to its next pause, or to its end.
    fn print_up_to_pause(&mut self) -> io::Result<()> {
        loop {
            match self.line()? {
                line if line == PAUSE => return Ok(()),
                line if !line.is_empty() => println!("process {}: {line}", self.child.id()),
                _ if self.child.wait()?.success() => return Ok(()),
                _ => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    fn go_on(&mut self) -> io::Result<()> {
        self.child.stdin.as_mut().expect("piped").write_all(b"!")
    }
}

/// Waits until the first process says to go on.
fn pause() -> io::Result<()> {
    println!("{PAUSE}");
    io::stdin().lock().read_exact(&mut [0])
}

/// Accepts, reads nothing until told, and then everything.
async fn peers(count: usize) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    // Before the connection: its start fixes the window.
    socket.set_recv_buffer_size(16 << 10)?;
    socket.bind("127.0.0.1:0".parse().expect("an address"))?;
    let listener = socket.listen(1024)?;
    println!("{}", listener.local_addr()?);
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() < count {
        sockets.push(listener.accept().await?.0);
    }
    io::stdin().lock().read_exact(&mut [0])?;
    let reads = sockets.into_iter().map(|mut socket: TcpStream| {
        tokio::spawn(async move { copy(&mut socket, &mut sink()).await })
    });
    let mut bytes = 0;
    for read in Vec::from_iter(reads) {
        bytes += read.await??;
    }
    println!("{bytes}");
    Ok(())
}

async fn streams(count: usize, address: &str) -> io::Result<()> {
    let before = Usage::now()?;
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = TcpStream::connect(address).await?;
        streams.push(Stream::adopt(Sender::builder().policy(Policy::Prefer), socket)?);
    }
    let idle = Usage::now()?;
    println!("{count} streams, {} bytes each", (idle.bytes - before.bytes) / count as u64);

    // The first send is accepted, the second is not, and a read waits too.
    let polls = Rc::new(Cell::new(0));
    let tasks = streams.into_iter().map(|stream| {
        spawn_local(Counted { future: Box::pin(exchange(stream)), polls: Rc::clone(&polls) })
    });
    let tasks = Vec::from_iter(tasks);
    loop {
        let before = (polls.get(), Usage::now()?.parks);
        sleep(Duration::from_secs(2)).await;
        // The pause itself parks the thread, and so do the looks for overdue notifications.
        if polls.get() == before.0 && (1..=8).contains(&(Usage::now()?.parks - before.1)) {
            break;
        }
    }
    pause()?;
    polls.set(0);
    let stalled = Usage::now()?;
    println!("waiting: {} bytes each", (stalled.bytes - before.bytes) / count as u64);
    sleep(Duration::from_secs(5)).await;
    Usage::now()?.print_since(&stalled, "five seconds while all peers stall", polls.get());

    pause()?;
    let flowing = Usage::now()?;
    for task in tasks {
        task.await??;
    }
    Usage::now()?.print_since(&flowing, "all data to all peers", polls.get());
    let (per, sends) = (polls.get() as f64 / (count * SENDS) as f64, count * SENDS);
    println!("  {sends} sends, {per:.2} polls of a task for each");
    Ok(())
}

async fn exchange(stream: Stream) -> io::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let reading = async { read.read(&mut [0]).await };
    let sending = async {
        for _ in 0..SENDS {
            write.send(&BUFFER).await?;
        }
        let report = write.close(None).await;
        if report.drained { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    tokio::try_join!(reading, sending).map(|_| ())
}

/// What this process has used.
struct Usage {
    /// Memory in use.
    bytes: u64,
    /// Processor time in hundredths of a second.
    ticks: u64,
    /// Waits of the runtime's thread, each ended by a wake-up.
    parks: u64,
}

impl Usage {
    fn now() -> io::Result<Self> {
        let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
        let memory = fs::read_to_string("/proc/self/statm")?;
        let pages = number(memory.split(' ').nth(1).unwrap_or_default())?;
        let stat = fs::read_to_string("/proc/self/stat")?;
        let fields = Vec::from_iter(stat.rsplit(')').next().unwrap_or_default().split(' '));
        // utime and stime, the fields 14 and 15 of proc(5).
        let ticks = number(fields[12])? + number(fields[13])?;
        let parks = Handle::current().metrics().worker_park_count(0);
        Ok(Self { bytes: pages * 4096, ticks, parks })
    }

    fn print_since(&self, before: &Self, what: &str, polls: u64) {
        let (ticks, parks) = (self.ticks - before.ticks, self.parks - before.parks);
        println!(
            "{what}: {polls} polls of tasks, {parks} wake-ups of the thread, {ticks}0 ms of CPU"
        );
    }
}

/// A task whose polls are counted.
struct Counted<F> {
    future: Pin<Box<F>>,
    polls: Rc<Cell<u64>>,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.polls.set(self.polls.get() + 1);
        self.future.as_mut().poll(cx)
    }
}
