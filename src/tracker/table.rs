//! Leases with several holds, under keys.

use std::mem;

use super::heir::Heir;

/// No entry.
pub(super) const NONE: u32 = u32::MAX;

/// Leases with the number of their holds, each linked to the next of its run.
pub(super) struct Table<T> {
    entries: Vec<Entry<T>>,
    /// Head of the list of vacant entries, linked by `link`.
    vacant: u32,
    len: usize,
}

struct Entry<T> {
    /// `None` in a vacant entry.
    lease: Option<T>,
    holds: u32,
    link: u32,
}

impl<T> Table<T> {
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), vacant: NONE, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// # Panics
    ///
    /// With 2^32 - 1 leases in the table.
    pub(super) fn insert(&mut self, lease: T, holds: u32) -> u32 {
        self.len += 1;
        let entry = Entry { lease: Some(lease), holds, link: NONE };
        let key = self.vacant;
        if let Some(place) = self.entries.get_mut(key as usize) {
            self.vacant = place.link;
            *place = entry;
            return key;
        }
        let key = u32::try_from(self.entries.len()).ok().filter(|key| *key != NONE);
        self.entries.push(entry);
        key.expect("fewer than 2^32 - 1 leases")
    }

    pub(super) fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        self.entries[key as usize].lease.as_mut()
    }

    pub(super) fn holds(&self, key: u32) -> u32 {
        self.entries[key as usize].holds
    }

    /// The next lease of the run.
    pub(super) fn link(&self, key: u32) -> u32 {
        self.entries[key as usize].link
    }

    /// Adds a hold, as a part of a run in front of `link`.
    pub(super) fn hold(&mut self, key: u32, link: u32) {
        let entry = &mut self.entries[key as usize];
        entry.holds += 1;
        entry.link = link;
    }

    /// Ends a run behind `key`. Returns the remaining run.
    pub(super) fn cut(&mut self, key: u32) -> u32 {
        mem::replace(&mut self.entries[key as usize].link, NONE)
    }

    /// Drops one hold. Returns the lease if the hold was the last.
    pub(super) fn drop_hold(&mut self, key: u32) -> Option<T> {
        let entry = &mut self.entries[key as usize];
        entry.holds = entry.holds.checked_sub(1).expect("a lease in the table has a hold");
        if entry.holds > 0 {
            return None;
        }
        entry.link = mem::replace(&mut self.vacant, key);
        self.len -= 1;
        entry.lease.take()
    }

    /// Drops one hold of each lease of the run that starts at `head`.
    #[inline(never)]
    pub(super) fn drop_holds(&mut self, head: u32, heir: &mut impl Heir<T>) {
        let mut key = head;
        while key != NONE {
            let link = self.link(key);
            let mut lease = self.drop_hold(key);
            if lease.is_some() {
                heir.take(&mut lease);
            }
            key = link;
        }
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().filter_map(|entry| entry.lease.as_mut())
    }
}
