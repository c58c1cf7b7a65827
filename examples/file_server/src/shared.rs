//! The state that all connections share.

use std::sync::{Arc, atomic::AtomicU64};

use tokio::sync::watch;

use crate::{pieces::Pieces, root::Root, settings::Settings, tls::Tls};

/// The part that all connections use.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) root: Root,
    pub(crate) pieces: Arc<Pieces>,
    pub(crate) tls: Option<Tls>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) requests: AtomicU64,
}

/// The life of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Running,
    /// Transfers finish, and connections end.
    Ending,
    /// The time for that is up.
    Aborting,
}
