//! The list of the magazines bound to a key.

use std::ptr::NonNull;

use super::magazine::{Items, Magazine};
use crate::{
    lock::{Mutex, MutexGuard, lock},
    sync::{AtomicU32, Ordering},
    sys::barrier,
};

/// The number of refused attempts to bind after a recall. A heavy barrier costs about as much as a
/// tenth of 1024 visits to the depot.
const HOLD_OFF: u32 = if cfg!(loom) { 0 } else { 1024 };

/// The magazines bound to one key, so that their items can be taken.
///
/// A thread that finds nothing elsewhere locks the list, [recalls](Self::recall) all magazines,
/// and looks again. While the lock is held no magazine can be bound.
///
/// # Invariants
///
/// 1. A magazine on the list is bound to the list's key. Its owner keeps its memory until the
///    magazine is off the list.
/// 2. A magazine is bound only by its owner, under the lock, if the owner's condition holds then.
///    A thread that ends the condition does so under the lock, after a recall. So the condition
///    holds while the lock is free and the list is not empty.
#[derive(Debug)]
pub(crate) struct BoundMagazines<K, T> {
    bound: Mutex<Bound<K, T>>,
    hold_off: AtomicU32,
}

/// The list itself: the value behind the lock.
#[derive(Debug)]
pub(crate) struct Bound<K, T> {
    magazines: Vec<NonNull<Magazine<K, T>>>,
    closed: bool,
}

// SAFETY: magazines are used through shared references only, and consist of atomics. The items'
// contents are not touched here.
unsafe impl<K, T> Send for Bound<K, T> {}

impl<K, T> Default for BoundMagazines<K, T> {
    fn default() -> Self {
        let bound = Bound { magazines: Vec::new(), closed: false };
        Self { bound: Mutex::new(bound), hold_off: AtomicU32::new(0) }
    }
}

impl<K, T> BoundMagazines<K, T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Bound<K, T>> {
        lock(&self.bound)
    }

    /// Binds the caller's own magazine to the list's `key`, unless it is bound already, with room
    /// for `limit` items. `false`: the magazine is bound to another key, or was recalled a short
    /// while ago, or the list is closed, or `may`, which is asked under the lock, returns `false`.
    ///
    /// # Safety
    ///
    /// The caller owns the magazine, and keeps its memory until the magazine is off the list: until
    /// [`unbind`](Bound::unbind) or until the owner has seen it unbound by a recall.
    pub(crate) unsafe fn bind(
        &self,
        key: NonNull<K>,
        magazine: &Magazine<K, T>,
        limit: u32,
        may: impl FnOnce() -> bool,
    ) -> bool {
        if magazine.is_bound_to(key) {
            return true;
        }
        if !magazine.is_unbound() || self.is_held_off() {
            return false;
        }
        let mut bound = self.lock();
        let may = !bound.closed && may();
        if may {
            magazine.bind(key, limit);
            bound.magazines.push(NonNull::from(magazine));
        }
        may
    }

    /// Returns `true`, and counts, if binding is still put off.
    fn is_held_off(&self) -> bool {
        // Relaxed, both: a hint. If two threads count one attempt together, no harm is done.
        let left = self.hold_off.load(Ordering::Relaxed);
        if left > 0 {
            self.hold_off.store(left - 1, Ordering::Relaxed);
        }
        left > 0
    }

    /// Takes the items of all magazines but `own`, unbinds these magazines, and gives the items to
    /// `each`. Returns `true` if there were such magazines. `bound` is this list, locked.
    pub(crate) fn recall(
        &self,
        bound: &mut Bound<K, T>,
        key: NonNull<K>,
        own: Option<&Magazine<K, T>>,
        mut each: impl FnMut(NonNull<T>),
    ) -> bool {
        let own = own.map(NonNull::from);
        let others = || bound.magazines().filter(|magazine| own != Some(NonNull::from(*magazine)));
        if others().next().is_none() {
            return false;
        }
        // Relaxed: a hint.
        self.hold_off.store(HOLD_OFF, Ordering::Relaxed);
        others().for_each(|magazine| magazine.begin_taking(key));
        barrier::heavy();
        others().for_each(|magazine| magazine.finish_taking(&mut each));
        bound.magazines.retain(|magazine| own == Some(*magazine));
        true
    }
}

impl<K, T> Bound<K, T> {
    /// The magazines on the list.
    pub(crate) fn magazines(&self) -> impl Iterator<Item = &Magazine<K, T>> {
        // SAFETY: the owner keeps the memory (invariant 1), and all threads use it by shared
        // reference.
        self.magazines.iter().map(|magazine| unsafe { magazine.as_ref() })
    }

    /// Refuses all further magazines.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Takes the caller's own magazine off the list and answers its items; none if a recall has
    /// taken it off before.
    pub(crate) fn unbind<'a>(
        &mut self,
        key: NonNull<K>,
        magazine: &'a Magazine<K, T>,
    ) -> impl Iterator<Item = NonNull<T>> + use<'a, K, T> {
        let own = NonNull::from(magazine);
        let at = self.magazines.iter().position(|bound| *bound == own);
        let removed = at.map(|at| self.magazines.swap_remove(at));
        removed.map(|_| magazine.unbind(key)).into_iter().flat_map(Items::iter)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::ptr;

    use super::*;

    #[test]
    fn a_recall_puts_binding_off_for_a_while_and_a_close_for_good() {
        // Addresses that nothing dereferences.
        let at = |address| NonNull::new(ptr::without_provenance_mut::<()>(address)).unwrap();
        let (key, item) = (at(16), at(32));
        let list = BoundMagazines::default();
        let magazine = Magazine::default();
        // SAFETY: the caller owns the magazine, which outlives the list's last use.
        let bind = |may| unsafe { list.bind(key, &magazine, 1, || may) };
        assert!(!bind(false), "the owner's condition does not hold");
        for _ in 0..2 {
            assert!(bind(true));
            assert!(bind(true), "it is bound already");
            assert_eq!(list.lock().magazines().count(), 1);
            assert!(magazine.push(key, item));
            let mut taken = Vec::new();
            assert!(list.recall(&mut list.lock(), key, None, |item| taken.push(item)));
            assert_eq!((taken, magazine.is_unbound()), (vec![item], true));
            assert_eq!((0..2 * HOLD_OFF).find(|_| bind(true)), Some(HOLD_OFF));
            assert_eq!(list.lock().unbind(key, &magazine).count(), 0);
        }
        list.lock().close();
        assert!(!bind(true));
    }
}
