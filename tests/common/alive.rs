//! When a pool ends.

use std::sync::{Arc, Weak};

use pinbuf::{
    __internals::{Reclaim, raw},
    Pool,
};

/// Tells whether a pool's memory is still there, its handles being gone: the pool holds a weak
/// reference of whoever registered with it.
pub(crate) struct Alive(Arc<Nobody>);

struct Nobody;

impl Reclaim for Nobody {
    fn drive(&self) {}

    fn watch(self: Arc<Self>) -> bool {
        true
    }
}

impl Alive {
    pub(crate) fn probe(pool: &Pool) -> Self {
        let nobody = Arc::new(Nobody);
        let weak: Weak<Nobody> = Arc::downgrade(&nobody);
        raw(pool).register(weak);
        Self(nobody)
    }

    pub(crate) fn get(&self) -> bool {
        Arc::weak_count(&self.0) > 0
    }
}
