//! Private machinery of the pool.
//!
//! ```text
//!   pool        RawPool and its handle                 slotref   SlotRef: one slot that is out
//!   threads     the magazines of a thread
//!   class       SizeClass and its Slots
//!   depot       free slots that all threads share      bound     the magazines bound to a class
//!   waiters, freelist                                  magazine  a stack of one thread
//!   head        PoolHead: identity, holds, region      state     the state word of a slot
//! ```
//!
//! A file imports only files below itself.

#[allow(unsafe_code)]
mod bound;
#[allow(unsafe_code)]
mod class;
mod depot;
mod freelist;
#[allow(unsafe_code)]
mod head;
#[allow(unsafe_code)]
mod magazine;
#[allow(unsafe_code)]
mod pool;
mod reclaim;
#[allow(unsafe_code)]
mod region;
mod replaced;
#[allow(unsafe_code)]
mod slotref;
mod state;
#[allow(unsafe_code)]
mod threads;
mod waiters;

pub(crate) use bound::BoundMagazines;
pub(crate) use class::SizeClass;
pub use head::PoolHead;
pub(crate) use magazine::Magazine;
pub use pool::RawPool;
pub(crate) use pool::{Options, PoolHandle};
pub use reclaim::Reclaim;
pub use region::RegionReport;
pub use replaced::Replaced;
pub use slotref::SlotRef;
pub use state::{SlotState, StateWord};
pub(crate) use threads::LocalMagazine;
pub(crate) use waiters::{Joined, WaitTicket, wake_all};
