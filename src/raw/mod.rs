//! Private machinery of the pool.
//!
//! A [`RawPool`] owns one [`Region`](region::Region) cut into [`SizeClass`]es of equal slots. A
//! slot at home stands on its class's [`FreeList`](freelist::FreeList), the depot, or in a thread's
//! [`Magazine`](magazine::Magazine); one that is out is named by a [`SlotRef`].

mod class;
mod freelist;
mod local;
#[allow(unsafe_code)]
mod magazine;
#[allow(unsafe_code)]
mod pool;
#[allow(unsafe_code)]
mod rack;
mod reclaim;
#[allow(unsafe_code)]
mod record;
#[allow(unsafe_code)]
mod region;
mod replaced;
#[allow(unsafe_code)]
mod roster;
mod slot;
#[allow(unsafe_code)]
mod slotref;
mod waiters;

#[cfg(test)]
pub(crate) use class::Home;
pub(crate) use class::SizeClass;
pub(crate) use local::LocalMagazine;
pub use pool::RawPool;
pub(crate) use pool::{Options, PoolHandle};
pub use reclaim::Reclaim;
pub use region::RegionReport;
pub use replaced::Replaced;
pub use slot::{Slot, SlotState};
pub use slotref::SlotRef;
pub(crate) use waiters::{Joined, WaitTicket, wake_all};
