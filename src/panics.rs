//! Panics of user code that is run for many: none takes anything from the others.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
};

use crate::sync::panicking;

/// The first panic, kept until everything is done.
#[derive(Default)]
#[must_use = "the panic is lost if nobody lets it go on"]
pub(crate) struct Panics(Option<Box<dyn Any + Send>>);

impl Panics {
    /// Runs `body`.
    pub(crate) fn catch(&mut self, body: impl FnOnce()) {
        // What `body` leaves half done is its own: it is the user's, or ends with the user's.
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(body)) {
            self.0.get_or_insert(panic);
        }
    }

    /// Gives each item to `body`, those behind one that panics too.
    pub(crate) fn catch_each<T>(
        &mut self,
        mut items: impl ExactSizeIterator<Item = T>,
        mut body: impl FnMut(T),
    ) {
        while items.len() > 0 {
            self.catch(|| items.by_ref().for_each(&mut body));
        }
    }

    /// Returns `true` if there was one.
    pub(crate) fn any(&self) -> bool {
        self.0.is_some()
    }

    /// Lets the first one go on, unless the thread is panicking already: that would abort.
    pub(crate) fn resume(self) {
        if let Some(panic) = self.0.filter(|_| !panicking()) {
            panic::resume_unwind(panic);
        }
    }
}
