//! Two network namespaces, the road between them, and a peer at the far end.
//!
//! `PINBUF_TEST_DEVICES` names two joined devices, for use instead of a virtual pair with copies of
//! every packet. `PINBUF_TEST_NETEM` sets a course for `netem` on both.

use std::{
    fs,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    eventually,
    namespace::{leave, output, run},
    pattern, set_option,
};

const NEAR: &str = "10.77.0.1";
pub(crate) const FAR: &str = "10.77.0.2";

/// Values of `SO_PRIORITY` on a road with [two lanes](Road::part_lanes): their class ids.
pub(crate) const SLOW: i32 = 0x0001_0010;
pub(crate) const FAST: i32 = 0x0001_0020;

type Job = Box<dyn FnOnce() + Send>;

/// The namespace of this process, the namespace of a thread, and a device in each.
pub(crate) struct Road {
    near: String,
    far: String,
    /// Lent devices are returned at the end.
    lent: bool,
    jobs: mpsc::Sender<Job>,
}

/// The lent devices for use instead of a virtual pair, if any; they are then in this namespace.
pub(crate) fn lent_devices() -> Option<String> {
    std::env::var("PINBUF_TEST_DEVICES").ok()
}

impl Road {
    pub(crate) fn build() -> Result<Self, String> {
        let (jobs, work) = mpsc::channel::<Job>();
        let (say, hear) = mpsc::channel();
        thread::spawn(move || {
            // SAFETY: no pointers.
            let thread = unsafe { libc::gettid() };
            say.send(leave().map(|()| thread)).unwrap();
            work.into_iter().for_each(|job| job());
        });
        let thread = hear.recv().unwrap()?;
        let devices = lent_devices();
        let road = match devices.as_deref().and_then(|devices| devices.split_once(' ')) {
            Some((near, far)) => Self { near: near.into(), far: far.into(), lent: true, jobs },
            None => Self { near: "near".into(), far: "far".into(), lent: false, jobs },
        };
        let (near, far) = (road.near.clone(), road.far.clone());
        if !road.lent {
            run(&format!("ip link add {near} type veth peer name {far}"))?;
        }
        run(&format!("ip link set {far} netns {thread}"))?;
        run(&format!("ip address replace {NEAR}/24 dev {near}"))?;
        run(&format!("ip link set {near} up"))?;
        road.at_far_end(move || {
            run(&format!("ip address replace {FAR}/24 dev {far}"))?;
            run(&format!("ip link set {far} up"))
        })?;
        // Lent devices keep the limit of a former test, and `block` would drop such large packets.
        road.limit_packets(1500)?;
        if let Ok(course) = std::env::var("PINBUF_TEST_NETEM") {
            road.shape(&course)?;
        }
        // So that several messages are on their way before the peer's first answer.
        run(&format!("ip route replace 10.77.0.0/24 dev {near} src {NEAR} initcwnd 60"))?;
        // So that sends are accepted without a reader.
        let wmem = "4096 4194304 4194304";
        fs::write("/proc/sys/net/ipv4/tcp_wmem", wmem).map_err(|error| error.to_string())?;
        Ok(road)
    }

    /// Returns `true` if the devices copy every packet, like a virtual pair.
    pub(crate) fn copies(&self) -> bool {
        !self.lent
    }

    /// Sets a course for `netem`, in both directions.
    pub(crate) fn shape(&self, course: &str) -> Result<(), String> {
        self.shape_from(Side::Sender, course)?;
        self.shape_from(Side::Receiver, course)
    }

    /// As `shape`, for the packets of one side.
    pub(crate) fn shape_from(&self, side: Side, course: &str) -> Result<(), String> {
        let shape = |device: &str| format!("tc qdisc replace dev {device} root netem {course}");
        match side {
            Side::Sender => run(&shape(&self.near)),
            Side::Receiver => {
                let shape = shape(&self.far);
                self.at_far_end(move || run(&shape))
            }
        }
    }

    /// Runs a job in the far namespace.
    pub(crate) fn at_far_end<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (say, hear) = mpsc::channel();
        let job = move || say.send(job()).unwrap_or_else(|_| unreachable!("the caller waits"));
        self.jobs.send(Box::new(job)).unwrap();
        hear.recv().unwrap()
    }

    /// A connection over the road: the sending end, and the peer, which takes about `receive` bytes
    /// before it reads.
    pub(crate) fn connect(&self, receive: i32) -> (TcpStream, TcpStream) {
        let listener = self.listener();
        set_option(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, &receive);
        let address = listener.local_addr().unwrap();
        let mut near = None;
        eventually("a connection", || {
            near = TcpStream::connect(address).ok();
            near.is_some()
        });
        (near.unwrap(), listener.accept().unwrap().0)
    }

    /// A listening socket at the far end.
    pub(crate) fn listener(&self) -> TcpListener {
        self.at_far_end(|| TcpListener::bind((FAR, 0)).unwrap())
    }

    /// Loses `percent` of the packets of a side, before they leave or before they are received.
    pub(crate) fn lose(&self, side: Side, percent: u32) -> Result<(), String> {
        let rule = format!("{} -j DROP", dice(percent));
        self.at_chain(side, move |chain| run(&format!("iptables-legacy -I {chain} {rule}")))
    }

    /// The number of lost packets.
    pub(crate) fn lost(&self, side: Side) -> u64 {
        let list = |chain: &str| output(&format!("iptables-legacy -nvxL {chain}"));
        // Two lines of titles, then the rule: packets, bytes, ..
        let list = self.at_chain(side, list).unwrap();
        list.lines().nth(2).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Changes the rules for packets that a side is about to send or to receive.
    fn at_chain<T: Send + 'static>(
        &self,
        side: Side,
        job: impl FnOnce(&str) -> T + Send + 'static,
    ) -> T {
        match side {
            Side::Sender => job("OUTPUT"),
            Side::Receiver => self.at_far_end(move || job("INPUT")),
        }
    }

    /// Loses `percent` of the receiver's answers without data.
    pub(crate) fn lose_answers(&self, percent: u32) -> Result<(), String> {
        let rule = format!("-p tcp --tcp-flags ALL ACK {} -j DROP", dice(percent));
        run(&format!("iptables-legacy -I INPUT {rule}"))
    }

    /// Ends all losses.
    pub(crate) fn lose_nothing(&self) {
        run("iptables-legacy -F").unwrap();
        self.at_far_end(|| run("iptables-legacy -F")).unwrap();
    }

    /// Queues packets of the priority [`SLOW`] below TCP, at the given rate, and no others.
    pub(crate) fn part_lanes(&self, rate: &str) -> Result<(), String> {
        let near = &self.near;
        // Replaced, since the old slow lane would owe for earlier packets.
        let _ = run(&format!("tc qdisc del dev {near} root"));
        run(&format!("tc qdisc add dev {near} root handle 1: htb default 20"))?;
        run(&format!("tc class replace dev {near} parent 1: classid 1:10 htb rate {rate}"))?;
        run(&format!("tc class replace dev {near} parent 1: classid 1:20 htb rate 10gbit"))
    }

    /// Limits packets to `bytes`, their headers included.
    pub(crate) fn limit_packets(&self, bytes: usize) -> Result<(), String> {
        let limit = |device: &str| format!("ip link set {device} mtu {bytes}");
        run(&limit(&self.near))?;
        let far = limit(&self.far);
        self.at_far_end(move || run(&far))
    }

    /// The device at the near end.
    pub(crate) fn near_device(&self) -> &str {
        &self.near
    }

    /// The device at the far end.
    pub(crate) fn far_device(&self) -> &str {
        &self.far
    }

    /// Sets the queue of the near device.
    pub(crate) fn queue(&self, words: &str) -> Result<(), String> {
        run(&format!("tc qdisc replace dev {} root {words}", self.near))
    }

    /// Queues packets below TCP at the near device, from now on.
    pub(crate) fn block(&self) -> Result<(), String> {
        // About two packets a second.
        self.queue("tbf rate 24kbit burst 2kb limit 8mb")
    }

    /// Releases the queue within a second: not in one burst, since a device might lose a part of
    /// it.
    pub(crate) fn unblock(&self) {
        let near = &self.near;
        run(&format!("tc qdisc change dev {near} root tbf rate 8mbit burst 4kb limit 8mb"))
            .unwrap();
    }
}

impl Drop for Road {
    fn drop(&mut self) {
        let far = self.far.clone();
        if self.lent {
            let process = std::process::id();
            let _ = run(&format!("tc qdisc del dev {} root", self.near));
            let back = self.at_far_end(move || run(&format!("ip link set {far} netns {process}")));
            let _ = run("iptables-legacy -F");
            assert_eq!(back, Ok(()));
        }
    }
}

/// The kernel's dice, without a seed.
fn dice(percent: u32) -> String {
    format!("-m statistic --mode random --probability {}", f64::from(percent) / 100.0)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Sender,
    Receiver,
}

// The peer.

/// Reads, after a pause, until the stream ends or nothing comes for `patience`.
pub(crate) struct Peer {
    received: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<u8>>,
}

impl Peer {
    pub(crate) fn of(mut far: TcpStream, pause: Duration, patience: Duration) -> Self {
        let received = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&received);
        far.set_read_timeout(Some(patience)).unwrap();
        let thread = thread::spawn(move || {
            thread::sleep(pause);
            let mut got = Vec::new();
            let mut part = vec![0; 1 << 16];
            while let Ok(len @ 1..) = far.read(&mut part) {
                got.extend_from_slice(&part[..len]);
                count.store(got.len(), Ordering::Relaxed);
            }
            got
        });
        Self { received, thread }
    }

    pub(crate) fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn stream(self) -> Vec<u8> {
        self.thread.join().unwrap()
    }
}

/// Messages of `len` bytes with a byte that differs from their pattern, and the number of such
/// bytes.
pub(crate) fn wrong(stream: &[u8], len: usize) -> (usize, usize) {
    let differing = stream.chunks(len).enumerate().map(|(seed, message)| {
        message.iter().zip(&*pattern(len, seed)).filter(|(got, want)| got != want).count()
    });
    let differing: Vec<_> = differing.filter(|bytes| *bytes > 0).collect();
    (differing.len(), differing.iter().sum())
}

/// Prints a finding, for the reader of the output.
pub(crate) fn report(line: &str) {
    let _ = writeln!(io::stdout(), "MEASURED {line}");
}
