//! Trackers of the pages that a guest has written.

pub mod soft_dirty;
pub mod uffd;
