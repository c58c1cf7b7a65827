//! A relay that knows the frames, and ends or stops the traffic at one of them.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use migration_sender::{
    signals::Stop,
    wire::{Header, PAGE, Run},
};

/// An event of the network at a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// All connections end before the frame.
    EndBefore,
    /// All connections end behind the frame.
    EndBehind,
    /// Nothing passes any more.
    Silence,
    /// The user cancels at the source.
    Cancel,
    /// A byte of the frame's payload changes.
    Change,
}

struct Shared {
    frame: &'static str,
    fate: Fate,
    stop: Arc<Stop>,
    sockets: Mutex<Vec<TcpStream>>,
    happened: Mutex<bool>,
}

/// Starts a relay to the address, and returns its own. `frame` is the name of a kind.
pub(crate) fn relay(
    to: SocketAddr,
    frame: &'static str,
    fate: Fate,
    stop: Arc<Stop>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let sockets = Mutex::default();
    let shared = Arc::new(Shared { frame, fate, stop, sockets, happened: Mutex::new(false) });
    thread::spawn(move || {
        for near in listener.incoming() {
            let (near, far) = (near.unwrap(), TcpStream::connect(to));
            let Ok(far) = far else { break };
            let clones = [&near, &far].map(|socket| socket.try_clone().unwrap());
            shared.sockets.lock().unwrap().extend(clones);
            let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
            for (from, to) in [(near, far), back] {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let mut to = to;
                    let _ = pass(from, &mut to, &shared);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    address
}

fn pass(mut from: TcpStream, to: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let mut head = [0; Header::SIZE];
        from.read_exact(&mut head)?;
        let header = Header::decode(&head)?;
        let len = match header {
            Header::Hello { bytes, .. }
            | Header::DeviceState { bytes }
            | Header::Goodbye { bytes, .. } => bytes as usize,
            Header::Pages { runs, bytes, .. } => runs as usize * Run::SIZE + bytes as usize,
            Header::Zeros { runs, .. } => runs as usize * Run::SIZE,
            Header::Digests { runs, bytes, .. } => {
                runs as usize * Run::SIZE + bytes as usize / PAGE * 16
            }
            _ => 0,
        };
        let mut payload = vec![0; len];
        from.read_exact(&mut payload)?;
        // Held over the end of all connections: nothing passes behind the event.
        let mut happened = shared.happened.lock().unwrap();
        if *happened && matches!(shared.fate, Fate::Silence | Fate::EndBefore | Fate::EndBehind) {
            continue;
        }
        let is_it = !*happened && header.name() == shared.frame;
        *happened |= is_it;
        if is_it && shared.fate == Fate::EndBefore {
            end(shared);
            return Ok(());
        }
        if is_it && shared.fate == Fate::Silence {
            continue;
        }
        if is_it && shared.fate == Fate::Cancel {
            shared.stop.request();
        }
        if is_it && shared.fate == Fate::Change {
            *payload.last_mut().unwrap() ^= 1;
        }
        to.write_all(&head)?;
        to.write_all(&payload)?;
        if is_it && shared.fate == Fate::EndBehind {
            // Read by the other end before the end of its connections: an orderly end of this
            // direction, and then all ends.
            end(shared);
            return Ok(());
        }
    }
}

/// Ends all connections in order: bytes under way arrive first.
fn end(shared: &Shared) {
    for socket in shared.sockets.lock().unwrap().iter() {
        let _ = socket.shutdown(Shutdown::Both);
    }
}
