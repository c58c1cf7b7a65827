//! A session over UDP.

use std::{
    io,
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use pinbuf::{Policy, SendError};

use crate::{
    journal::Checksums,
    payload::{Payloads, Stock},
    peer::End,
    place::Place,
    random::Random,
    settings,
    tally::{Tally, add},
    worker::Peer,
};

/// Bytes that fit into one datagram, less the headers.
const MAX_DATAGRAM: usize = 60_000;

/// Plays one session: datagrams may be lost, but arriving datagrams are intact.
pub(crate) fn play(
    random: &mut Random,
    stock: &Stock,
    tally: &Tally,
    peers: &mut Vec<Peer>,
) -> Result<(), String> {
    let cannot = |error: io::Error| format!("no datagram sockets: {error}");
    let (near, far) = pair(random).map_err(cannot)?;
    let (builder, _) = settings::sender(random);
    let mut sender =
        builder.policy(Policy::Prefer).adopt(near).map_err(|error| error.to_string())?;
    let checksums = Arc::new(Checksums::default());
    let over = Arc::new(AtomicBool::new(false));
    let receiving = {
        let (checksums, over) = (Arc::clone(&checksums), Arc::clone(&over));
        thread::spawn(move || receive(&far, &checksums, &over))
    };
    peers.push(Peer { receiving, must_be_whole: false });
    let mut payloads = Payloads::new(stock);
    let mut send = |random: &mut Random| -> Result<(), String> {
        let count = random.pick(&[1, 1, 2, 4]);
        let made = (0..count).filter_map(|_| payloads.make(random, MAX_DATAGRAM / count));
        let (mut bufs, pieces): (Vec<_>, Vec<_>) = made.unzip();
        checksums.promise(&pieces);
        let result = match random.percent(50) {
            true => sender.send_vectored(&mut bufs),
            false => sender.try_send_vectored(&mut bufs),
        };
        match result {
            Ok(_) => add(&tally.sends, 1),
            Err(SendError::WouldBlock(()) | SendError::Dropped { .. }) => {}
            Err(error) => return Err(format!("a datagram failed: {error} ({error:?})")),
        }
        while sender.next_returned().is_some() {}
        Ok(())
    };
    let sent = (0..random.within(1..=100)).try_for_each(|_| send(random));
    tally.count(&sender.stats());
    let closed = match random.within(0..=2) {
        0 => {
            drop(sender);
            Ok(())
        }
        1 => {
            let _ = sender.abort();
            Ok(())
        }
        _ => match sender.close(Some(Duration::from_secs(60))) {
            report if report.drained => Ok(()),
            report => Err(format!("datagrams are out for a minute: {report:?}")),
        },
    };
    // Relaxed: a flag on its own, without other data.
    over.store(true, Ordering::Relaxed);
    sent.and(closed)
}

fn pair(random: &mut Random) -> io::Result<(UdpSocket, UdpSocket)> {
    let host = Place::address(random);
    let (near, far) = (UdpSocket::bind((host, 0))?, UdpSocket::bind((host, 0))?);
    near.connect(far.local_addr()?)?;
    far.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok((near, far))
}

fn receive(
    far: &UdpSocket,
    checksums: &Checksums,
    over: &AtomicBool,
) -> Result<(u64, End), String> {
    let (mut bytes, mut count) = (0, 0);
    let mut room = vec![0; 1 << 16];
    loop {
        match far.recv(&mut room) {
            Ok(len) if checksums.knows(&room[..len]) => {
                (bytes, count) = (bytes + len as u64, count + 1);
            }
            Ok(len) => return Err(format!("datagram {count}, of {len} bytes, was never sent")),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if over.load(Ordering::Relaxed) => return Ok((bytes, End::Lost)),
            Err(_) => {}
        }
    }
}
