//! Faults of a process: signals, shortages, panics in payloads, killed peers, a crowd of sockets in
//! every state.

mod crowd;
mod payloads;
mod peers;
mod shortage;
mod signals;
