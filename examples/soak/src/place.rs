//! The network of a worker's sockets: this host, or a private network namespace.

use std::{
    io,
    net::IpAddr,
    process::Command,
    thread::{self, JoinHandle},
};

use crate::random::Random;

/// The loopback of the calling thread's namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// `true` if packets are lost, so that the end of a connection may be lost too.
    pub(crate) is_lossy: bool,
}

impl Place {
    /// Chooses a place, and takes the calling thread there. A namespace ends with its last thread
    /// and socket.
    pub(crate) fn enter(random: &mut Random) -> Self {
        let host = Self { is_lossy: false };
        let lossy = random.percent(40);
        // Drawn from the sequence in any case: the user's rights must not change later choices.
        let script = Self::loss(random);
        // SAFETY: geteuid(2) takes no pointers.
        if !lossy || unsafe { libc::geteuid() } != 0 {
            return host;
        }
        // SAFETY: unshare(2) takes no pointers; CLONE_NEWNET concerns the calling thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return host;
        }
        // Loopback is down until the script has raised it: without loopback no connection works.
        match run(&script) {
            Ok(()) => Self { is_lossy: true },
            Err(_) => {
                let _ = run("ip link set lo up");
                host
            }
        }
    }

    /// A script that raises loopback and makes it lose packets, sometimes through a queue or with
    /// little option memory.
    fn loss(random: &mut Random) -> String {
        let chain = random.pick(&["OUTPUT", "INPUT"]);
        let share = random.pick(&["0.01", "0.05", "0.20"]);
        let optmem = random.pick(&[500, 4096, 20_480, 131_072, 131_072]);
        let lose = |tables: &str| {
            format!(
                "{tables} -A {chain} -p tcp -m length --length 100:65535 \
                 -m statistic --mode random --probability {share} -j DROP"
            )
        };
        // A packet in a queue keeps its ids when the connection ends.
        let queue = match random.percent(40) {
            true => "tc qdisc add dev lo root tbf rate 100mbit burst 100kb limit 2mb",
            false => "true",
        };
        format!(
            "ip link set lo up && echo {optmem} > /proc/sys/net/core/optmem_max && {queue} && {} \
             && {}",
            lose("iptables-legacy"),
            lose("ip6tables-legacy"),
        )
    }

    /// Sometimes, in a private namespace, all peers vanish for a while, silently.
    pub(crate) fn vanish(self, random: &mut Random) -> Option<JoinHandle<io::Result<()>>> {
        let (vanishes, pause) = (random.percent(10), random.millis(50..=800));
        (self.is_lossy && vanishes).then(|| {
            thread::spawn(move || {
                let down = run("ip link set lo down");
                thread::sleep(pause);
                down.and(run("ip link set lo up"))
            })
        })
    }

    pub(crate) fn address(random: &mut Random) -> IpAddr {
        let v4 = IpAddr::from([127, 0, 0, 1]);
        random.pick(&[v4, v4, IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])])
    }
}

fn run(script: &str) -> io::Result<()> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh").args(["-c", script]).env("PATH", path).output()?;
    if output.status.success() { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
}
