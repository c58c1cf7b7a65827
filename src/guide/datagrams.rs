//! Datagrams to many receivers: trains, losses, and the time at which they leave.
//!
//! ```
//! use pinbuf::{Pool, SendError, Sender, sender::Datagram};
//! use std::{net::{SocketAddr, UdpSocket}, time::Duration};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # if !cfg!(target_os = "linux") { return Ok(()); }
//! # let sockets = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?];
//! # let receivers: Vec<SocketAddr> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
//! const SIZE: u16 = 1200; // of each datagram
//! const TRAIN: usize = 50 * SIZE as usize;
//!
//! let pool = Pool::new(TRAIN, 16)?;
//! let mut sender = Sender::new(UdpSocket::bind("0.0.0.0:0")?)?;
//! for round in 0..4_u8 {
//!     let mut buf = pool.alloc(TRAIN)?; // waits for a release, if need be
//!     buf.resize(TRAIN, round);
//!     let frame = buf.freeze();
//!     for receiver in &receivers {
//!         let train = Datagram::to(*receiver).segment_size(SIZE);
//!         match sender.send_to(frame.clone(), train) {
//!             Ok(_) => {}
//!             // A queue of this host was full: lost, as a datagram may be on the way.
//!             Err(SendError::Dropped { .. }) => {}
//!             // Another receiver has no open port. The message is about an earlier train.
//!             Err(SendError::Os { .. }) => {}
//!             Err(error) => return Err(error.into()),
//!         }
//!     }
//! #   for socket in &sockets {
//! #       socket.set_read_timeout(Some(Duration::from_secs(30)))?;
//! #       let mut got = [0; 2000];
//! #       for _ in 0..50 {
//! #           assert_eq!(socket.recv(&mut got)?, 1200);
//! #           assert_eq!(got[0], round);
//! #       }
//! #   }
//! }
//! sender.drain(Some(Duration::from_secs(30)))?;
//! println!("{:?}", sender.stats().drops);
//! # Ok(())
//! # }
//! ```
//!
//! # Trains
//!
//! A datagram of 1,200 bytes gains nothing from zero copy: a call costs more than the copy. A *train* is up to
//! 64 KiB in one call, and the kernel or the network card cuts it
//! ([`segment_size`](crate::sender::Datagram::segment_size)). So a train pays twice: one call instead of fifty, and no copy.
//! 42 datagrams of 1,400 bytes cost a thirteenth of the processor time as a train, and half of that again without the
//! copy (`benches/README.md`, UDP to a device that drops everything).
//!
//! Fill a buffer with whole datagrams, one behind the other, each of the same size. Only the last one may be
//! shorter. Each datagram may have its own header, such as that of QUIC or RTP, since the kernel adds UDP's alone.
//!
//! # Losses
//!
//! | place | noticed as | counted in [`DropStats`](crate::sender::DropStats) |
//! |---|---|---|
//! | a full queue of this host | [`Dropped`](crate::SendError::Dropped) with `ENOBUFS`, with `IP_RECVERR` alone | `queue` |
//! | a filter of this host | [`Dropped`](crate::SendError::Dropped) with `EPERM` | `filter` |
//! | too long for the route | [`Invalid`](crate::SendError::Invalid), or `EMSGSIZE` | `too_long` |
//! | no route, or a closed port | [`Os`](crate::SendError::Os) with `ENETUNREACH`, `ECONNREFUSED` and the like | `unreachable` |
//! | a router or a host, by ICMP | [`next_event`](crate::Sender::next_event), with `IP_RECVERR` | `icmp` |
//! | the network, or the receiver's buffer | nothing | |
//!
//! *Released* says nothing about arrival. The buffer of a lost datagram is released as any other.
//!
//! # Source and interface
//!
//! On a host with several addresses an answer should come from the address of the question:
//! [`source`](crate::sender::Datagram::source). [`interface`](crate::sender::Datagram::interface) chooses the way out, for
//! instance to a group on one of several networks.
//!
//! # Pacing
//!
//! Trains in a burst overrun a receiver's buffer, or a switch. Of the two ways against that, both need the queue `fq` on
//! the interface, and say so where it is missing: [`pacing`](crate::pacing).
//!
//! - [`pacing::set_max_rate`](crate::pacing::set_max_rate): bytes a second for the socket, all receivers together; can
//!   only be lowered.
//! - [`Datagram::at`](crate::sender::Datagram::at): a time for each train. The program is far ahead of the wire, and sleeps
//!   seldom. A buffer is in flight until its time.
//!
//! Without `fq`, sleep between the trains.
//!
//! The repository's program `examples/datagrams` does both, for a stream that goes to many receivers.
