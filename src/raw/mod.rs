//! Private machinery of the pool.
//!
//! A [`RawPool`] owns one [`Region`](region::Region) cut into [`SizeClass`]es of equal slots. A
//! slot at home stands on its class's [`FreeList`](freelist::FreeList); one that is out is named
//! by a [`SlotRef`].

mod class;
mod freelist;
#[allow(unsafe_code)]
mod pool;
mod reclaim;
#[allow(unsafe_code)]
mod region;
mod replaced;
mod slot;
mod waiters;

#[cfg(test)]
pub(crate) use class::Home;
pub(crate) use class::SizeClass;
pub(crate) use pool::{Options, PoolHandle};
pub use pool::{RawPool, SlotRef};
pub use reclaim::Reclaim;
pub use region::RegionReport;
pub use replaced::Replaced;
pub use slot::{Slot, SlotState};
pub(crate) use waiters::{Joined, WaitTicket};
