//! Which magazines belong to a class.

use std::ptr::{self, NonNull};

use super::{class::SizeClass, magazine::Magazine, record::Record};
use crate::{
    lock::{Mutex, MutexGuard, lock},
    sync::{AtomicU32, Ordering},
    sys::barrier,
};

/// How often a thread has to do without a magazine after slots were taken away from others: a
/// barrier costs about as much as a tenth of that.
const HOLD_OFF: u32 = if cfg!(loom) { 0 } else { 1024 };

/// The magazines bound to a class.
///
/// # Invariants
///
/// 1. A magazine on the roster belongs to the roster's class, and its owner keeps its memory until
///    it is off.
/// 2. While the lock is not held and a magazine is on the roster, the free list has no flags. Who
///    sets one holds the lock and has emptied the roster; who binds holds it and sees none.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    bound: Mutex<Bound>,
    hold_off: AtomicU32,
}

/// What the lock of a roster guards.
#[derive(Debug, Default)]
pub(crate) struct Bound {
    magazines: Vec<NonNull<Magazine>>,
    closed: bool,
}

// SAFETY: the magazines are used by shared reference, as their owners do, and are Sync.
unsafe impl Send for Bound {}

impl Roster {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Bound> {
        lock(&self.bound)
    }

    /// Binds the caller's own magazine to `class`, whose roster this is, unless it is bound
    /// already. `false`: it cannot or should not be now.
    pub(crate) fn bind(&self, class: &SizeClass, magazine: &Magazine) -> bool {
        if magazine.belongs_to(NonNull::from(class)) {
            return true;
        }
        if class.magazine_limit() == 0 || !magazine.is_unbound() || self.is_held_off() {
            return false;
        }
        let mut bound = self.lock();
        let may = !bound.closed && !class.free().has_waiters();
        if may {
            magazine.bind(class);
            bound.magazines.push(NonNull::from(magazine));
        }
        may
    }

    fn is_held_off(&self) -> bool {
        // Relaxed, both: a hint. That two threads may count one step together does no harm.
        let left = self.hold_off.load(Ordering::Relaxed);
        if left > 0 {
            self.hold_off.store(left - 1, Ordering::Relaxed);
        }
        left > 0
    }

    /// Puts off binding, since slots were taken away from magazines.
    fn hold_off(&self) {
        // Relaxed: a hint.
        self.hold_off.store(HOLD_OFF, Ordering::Relaxed);
    }

    /// Takes the slots of all magazines but `own` away, unbinds these, and gives the slots to
    /// `each`. Answers whether there were such magazines.
    pub(crate) fn recall<'a>(
        &self,
        bound: &mut Bound,
        class: &'a SizeClass,
        own: Option<&Magazine>,
        mut each: impl FnMut(&'a Record),
    ) -> bool {
        let is_own = |magazine: &Magazine| own.is_some_and(|own| ptr::eq(own, magazine));
        let others = || bound.magazines().filter(|magazine| !is_own(magazine));
        if others().next().is_none() {
            return false;
        }
        self.hold_off();
        others().for_each(|magazine| magazine.begin_taking(class));
        barrier::heavy();
        others().for_each(|magazine| magazine.take_all(class, &mut each));
        bound.magazines.retain(|magazine| own.map(NonNull::from) == Some(*magazine));
        true
    }
}

impl Bound {
    pub(crate) fn magazines(&self) -> impl Iterator<Item = &Magazine> {
        // SAFETY: the owner keeps the memory (invariant 1), and others use it by shared reference.
        self.magazines.iter().map(|magazine| unsafe { magazine.as_ref() })
    }

    /// No magazine is bound any more.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Takes `magazine`, whose owner the caller is, off the roster of `class` and answers the slots
    /// that were in it; none if it is not there any more.
    pub(crate) fn leave<'a>(
        &mut self,
        class: &'a SizeClass,
        magazine: &Magazine,
    ) -> impl Iterator<Item = &'a Record> {
        let own = NonNull::from(magazine);
        let at = self.magazines.iter().position(|bound| *bound == own);
        let left = at.map(|at| self.magazines.swap_remove(at));
        left.into_iter().flat_map(|_| magazine.unbind(class))
    }
}
