//! The lifetime of a pool's memory.

use std::sync::{Arc, Weak};

use pinbuf::{
    __internals::{Reclaim, raw},
    Pool,
};

/// Tells whether a pool's memory still exists after its handles: the pool holds weak references to
/// registered senders.
pub(crate) struct Alive(Arc<Registered>);

struct Registered;

impl Reclaim for Registered {
    fn drive(&self) {}

    fn watch(self: Arc<Self>) -> bool {
        true
    }
}

impl Alive {
    pub(crate) fn probe(pool: &Pool) -> Self {
        let registered = Arc::new(Registered);
        let weak: Weak<Registered> = Arc::downgrade(&registered);
        raw(pool).register(weak);
        Self(registered)
    }

    pub(crate) fn get(&self) -> bool {
        Arc::weak_count(&self.0) > 0
    }
}
