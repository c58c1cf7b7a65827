//! System calls. The only user of libc.

pub(crate) mod memory;
