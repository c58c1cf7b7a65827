//! Panics of user code that runs for many buffers or tasks: every item gets its call.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
};

use crate::sync::panicking;

/// The first panic, kept until all items had their call.
#[derive(Default)]
#[must_use = "without `resume` the panic is lost"]
pub(crate) struct Panics(Option<Box<dyn Any + Send>>);

impl Panics {
    /// Runs `body`.
    pub(crate) fn catch(&mut self, body: impl FnOnce()) {
        // A panic can leave only the user's own data half changed.
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(body)) {
            self.0.get_or_insert(panic);
        }
    }

    /// Passes each item to `body`, even after a panic.
    pub(crate) fn catch_each<T>(
        &mut self,
        mut items: impl ExactSizeIterator<Item = T>,
        mut body: impl FnMut(T),
    ) {
        while items.len() > 0 {
            self.catch(|| items.by_ref().for_each(&mut body));
        }
    }

    /// Returns `true` if a call panicked.
    pub(crate) fn any(&self) -> bool {
        self.0.is_some()
    }

    /// Resumes the first panic, unless the thread already panics: a second panic would abort.
    pub(crate) fn resume(self) {
        if let Some(panic) = self.0.filter(|_| !panicking()) {
            panic::resume_unwind(panic);
        }
    }
}
