//! The frames, and the clients that get them.

use std::{
    fs::File,
    io::{self, Read, stdin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use pinbuf::{Pool, SharedBuf, tokio::Stream};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::{broadcast, watch},
    task::{JoinSet, spawn_blocking},
    time::sleep,
};

use crate::{
    SPARE, Serve, at,
    client::{Client, End, Frame},
    usage::usage,
};

/// Slots of the pool that a client may have in flight: a slow one falls behind by whole frames, not by all
/// that its socket can hold.
const IN_FLIGHT: usize = 8;

/// The pause after a failed accept, for example for lack of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// The clients that are connected now.
type Clients = Arc<Mutex<Vec<Arc<Client>>>>;

#[derive(Default)]
struct Tally {
    whole: usize,
    late: usize,
    left: usize,
    lost: u64,
}

pub(crate) async fn serve(options: Serve) -> io::Result<()> {
    let input: Box<dyn Read + Send> = match &options.input {
        None => Box::new(stdin()),
        Some(path) => Box::new(at(&path.display().to_string(), File::open(path))?),
    };
    let pool = Pool::builder()
        .class(options.frame_bytes.get(), options.lag + SPARE)
        .sender_quota(IN_FLIGHT)
        .build()?;
    let listener = at(
        &format!("cannot listen on {}", options.listen),
        TcpListener::bind(options.listen).await,
    )?;
    println!("listening on {}", listener.local_addr()?);

    let clients = Clients::default();
    let (frames, _) = broadcast::channel(options.lag);
    // The publisher owns the sender: the end of the input ends the clients' streams.
    let subscriber = frames.downgrade();
    let (count, mut counted) = watch::channel(0);
    let mut publisher = {
        let (pool, clients) = (pool.clone(), Arc::clone(&clients));
        let publisher = Publisher { pool, clients, frames, lag: options.lag as u64 };
        let (period, least) = (Duration::from_secs(1) / options.rate.get(), options.clients);
        let first = async move { counted.wait_for(|count| *count >= least).await.is_ok() };
        let runtime = Handle::current();
        spawn_blocking(move || {
            if runtime.block_on(first) { publisher.publish(input, period) } else { Ok(0) }
        })
    };

    let mut tasks = JoinSet::new();
    let mut tally = Tally::default();
    let published = loop {
        tokio::select! {
            published = &mut publisher => break published??,
            Some(end) = tasks.join_next() => tally.add(end?),
            Some(socket) = accept(&listener) => {
                let Some(frames) = subscriber.upgrade() else { continue };
                if tasks.len() >= options.max_clients { continue }
                // A client that is gone already is that client's loss alone.
                let Ok(stream) = Stream::new(socket) else { continue };
                let (frames, clients) = (frames.subscribe(), Arc::clone(&clients));
                let client = Arc::new(Client::new());
                lock(&clients).push(Arc::clone(&client));
                let linger = Duration::from_secs(options.linger.into());
                tasks.spawn(async move {
                    let end = client.serve(stream, frames, options.late, linger).await;
                    lock(&clients).retain(|other| !Arc::ptr_eq(other, &client));
                    end
                });
                count.send_modify(|count| *count += 1);
            }
        }
    };
    drop(listener);
    while let Some(end) = tasks.join_next().await {
        tally.add(end?);
    }
    let Tally { whole, late, left, lost } = tally;
    let (cpu, memory) = usage()?;
    println!("{published} frames of {} bytes", options.frame_bytes);
    println!(
        "{whole} clients served to the end, {late} cut off, {left} left; {lost} frames lost on the way"
    );
    println!("pool: {}", pool.audit());
    println!("{cpu:?} of CPU, {} MiB of memory", memory >> 20);
    Ok(())
}

async fn accept(listener: &TcpListener) -> Option<TcpStream> {
    match listener.accept().await {
        Ok((socket, _)) => Some(socket),
        Err(_) => {
            sleep(PAUSE).await;
            None
        }
    }
}

impl Tally {
    fn add(&mut self, end: End) {
        match end {
            End::Whole { lost } => {
                self.whole += 1;
                self.lost += lost;
            }
            End::Late => self.late += 1,
            End::Left => self.left += 1,
        }
    }
}

struct Publisher {
    pool: Pool,
    clients: Clients,
    frames: broadcast::Sender<Frame>,
    lag: u64,
}

impl Publisher {
    /// Gives the input to all clients, a frame in each period, and returns the number of frames.
    fn publish(self, mut input: impl Read, period: Duration) -> io::Result<u64> {
        let mut due = Instant::now();
        let mut number = 0;
        while let Some(bytes) = at("cannot read the input", self.read(&mut input))? {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            due = due.max(Instant::now()) + period;
            // No client, no receiver: the stream goes on.
            let _ = self.frames.send(Frame { number, bytes });
            number += 1;
            let oldest = number.saturating_sub(self.lag);
            lock(&self.clients).iter().for_each(|client| client.cut_if_older(oldest));
        }
        Ok(number)
    }

    /// The next frame; the last one can be short.
    fn read(&self, input: &mut impl Read) -> io::Result<Option<SharedBuf>> {
        let mut buf = self.pool.alloc(self.pool.stats().classes[0].capacity)?;
        while buf.read_from(input, usize::MAX)? > 0 {}
        Ok(if buf.is_empty() { None } else { Some(buf.freeze()) })
    }
}

fn lock(clients: &Clients) -> MutexGuard<'_, Vec<Arc<Client>>> {
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}
