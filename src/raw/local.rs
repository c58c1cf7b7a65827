//! A magazine that a thread has at hand and need not look for.

use std::ptr;

use super::{class::SizeClass, magazine::Magazine, rack::Rack, slotref::SlotRef};
use crate::error::AllocError;

/// One magazine for one class, found without looking for it.
#[derive(Debug)]
pub(crate) struct LocalMagazine<'a> {
    class: &'a SizeClass,
    /// `None` if there is no memory for one, or no use.
    rack: Option<Rack>,
}

impl<'a> LocalMagazine<'a> {
    pub(crate) fn new(class: &'a SizeClass) -> Self {
        let rack = (class.magazine_limit() > 0).then(|| Rack::new(1).ok()).flatten();
        Self { class, rack }
    }

    /// The magazine, for slots of its class.
    #[inline]
    pub(super) fn magazine(&self, class: &SizeClass) -> Option<&Magazine> {
        self.rack.as_ref().filter(|_| ptr::eq(class, self.class)).map(Rack::first)
    }

    /// Hands out a free slot.
    #[inline]
    pub(crate) fn take(&self) -> Result<SlotRef, AllocError> {
        match self.rack.as_ref().and_then(|rack| rack.first().take(self.class)) {
            Some(record) => Ok(SlotRef::claim(record)),
            None => self.take_elsewhere(),
        }
    }

    #[cold]
    #[inline(never)]
    fn take_elsewhere(&self) -> Result<SlotRef, AllocError> {
        if self.class.is_forked() {
            return Err(AllocError::Forked);
        }
        let own = self.rack.as_ref().map(Rack::first).filter(|own| self.class.bind(own));
        self.class.take(own).map(SlotRef::claim).ok_or(AllocError::Exhausted)
    }
}
