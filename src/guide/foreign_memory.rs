//! Memory outside of pools: mapped files, statics, reference-counted bytes, guest memory.
//!
//! | memory | payload |
//! |---|---|
//! | a table of the program | `&'static [u8]` |
//! | bytes behind an `Arc` | `Arc<[u8]>` |
//! | `bytes::Bytes` | the same, with feature `bytes` |
//! | a mapping: a file, shared memory, a guest's | [`MappedSlice`](crate::MappedSlice) of a [`Mapping`](crate::Mapping); memmap2's types with feature `memmap2-0_9` |
//!
#![cfg_attr(feature = "memmap2-0_9", doc = "```")]
#![cfg_attr(not(feature = "memmap2-0_9"), doc = "```ignore")]
//! use memmap2::MmapRaw;
//! use pinbuf::{MappedSlice, Payload, SendError, Sender};
//! use std::{fs::File, sync::Arc, time::Duration};
//!
//! # use std::{io::{Read, Write}, net::{TcpListener, TcpStream}, thread};
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let socket = TcpStream::connect(listener.local_addr()?)?;
//! # let mut far = listener.accept()?.0;
//! # let peer = thread::spawn(move || { let mut got = Vec::new(); far.read_to_end(&mut got).map(|_| got) });
//! # let path = std::env::temp_dir().join(format!("pinbuf-guide-{}", std::process::id()));
//! # File::create(&path)?.write_all(&[7; 100_000])?;
//! # let file = File::options().read(true).write(true).open(&path)?;
//! # std::fs::remove_file(&path)?;
//! let mut sender = Sender::new(socket)?;
//!
//! // Mapped once, cut and sent any number of times.
//! let map = Arc::new(MmapRaw::map_raw(&file)?);
//! let whole = MappedSlice::new(map, 0..100_000)?;
//! let (head, body) = whole.split_at(30_000);
//!
//! // A header of the program and a part of the file as one send.
//! let mut parts = vec![Payload::from(&b"head"[..]), head.into()];
//! sender.send_vectored(&mut parts)?;
//!
//! match sender.send(body) {
//!     Ok(_) => {}
//!     Err(SendError::BadAddress(_)) => println!("the file was truncated meanwhile"),
//!     Err(error) => return Err(error.into()),
//! }
//! assert!(sender.close(Some(Duration::from_secs(30))).drained);
//! # assert_eq!(peer.join().unwrap()?.len(), 4 + 100_000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Changing memory
//!
//! A file or a guest can change while a send is in flight. The library hands the address to the
//! kernel and never reads the bytes, so no Rust reference exists and nothing is undefined. The peer
//! gets old bytes, new bytes or a mixture. A protocol for changing memory sends a page again after
//! a change, and the last time with the writer stopped: see `examples/migration_sender`.
//!
//! # Truncated files
//!
//! A file shrinking under a mapping raises no signal. The kernel refuses the send with
//! [`BadAddress`](crate::SendError::BadAddress), or the connection ends if a part was accepted
//! already.
//!
//! # Further owners
//!
//! [`MappedSlice::from_raw_parts`](crate::MappedSlice::from_raw_parts) takes an address and any
//! owner in an `Arc`. The owner is dropped after the last release. The function is `unsafe`,
//! because only the caller can promise: the memory stays mapped for as long as the owner lives.
