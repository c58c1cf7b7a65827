//! What models have in place of waiting for the kernel.

use std::{io, os::fd::BorrowedFd, time::Duration};

use super::Ready;
use crate::sync::{Arc, Parker};

/// The wait of one thread for news of one socket. Clones are the same one, for who brings the news.
#[derive(Clone, Debug)]
pub struct EdgeWait(Arc<Parker>);

impl EdgeWait {
    /// For a socket that is modelled.
    pub fn modelled() -> Self {
        Self(Arc::new(Parker::new()))
    }

    /// Refuses: models have no descriptors.
    pub(crate) fn new(_fd: BorrowedFd<'_>, _writable: bool) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Ends the wait, or the next one.
    pub fn rouse(&self) -> io::Result<()> {
        self.0.unpark();
        Ok(())
    }

    /// Waits for news, however long: a model has no clock, and in it nobody is to be saved by a
    /// time that is up.
    pub fn wait(&self, _timeout: Option<Duration>) -> io::Result<Ready> {
        self.0.park(None);
        Ok(Ready { error: true, ..Ready::default() })
    }
}
