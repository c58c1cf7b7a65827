//! Identifiers: the kernel's notification ids and the caller's tickets.

use std::fmt;

/// The number the kernel gives to one `MSG_ZEROCOPY` send call, extended to 64 bits.
///
/// The kernel counts such calls per socket in a `u32`, starting at 0; the extension keeps ids
/// unique past the wrap. One id covers all bytes that one call accepted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NotificationId(pub u64);

impl fmt::Display for NotificationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id {}", self.0)
    }
}

/// A half-open run of notification ids, `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IdRange {
    /// The first id of the run.
    pub start: NotificationId,
    /// One past the last id of the run.
    pub end: NotificationId,
}

impl IdRange {
    /// Number of ids in the run.
    pub fn count(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Extends the inclusive range `lo..=hi` of a completion note to 64 bits.
    ///
    /// `base..next` are the ids that may be outstanding, with `base` the oldest of them. `lo`
    /// is read as its distance from `base`, so a range may wrap inside (`lo > hi` as numbers) and
    /// an old id may arrive after the wrap. `None` when any id of the range lies outside
    /// `base..next`: such a note is not about sends of ours.
    pub fn extend(lo: u32, hi: u32, base: NotificationId, next: NotificationId) -> Option<Self> {
        let live = next.0 - base.0;
        let offset = u64::from(lo.wrapping_sub(base.0 as u32));
        let count = u64::from(hi.wrapping_sub(lo)) + 1;
        if offset + count > live {
            return None;
        }
        let start = base.0 + offset;
        Some(Self { start: NotificationId(start), end: NotificationId(start + count) })
    }
}

/// Names one accepted send of one [`Sender`](crate::Sender), copied or not.
///
/// Tickets are handed out in send order and are not kernel ids: a send may take several
/// notification ids or none. A ticket also remembers the length of its send, in bytes, so that it
/// can be asked for its [`Fate`](crate::Fate) at any later time. Ask only the sender that gave it:
/// to another one it names another send, or none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket {
    pub(crate) sequence: u64,
    pub(crate) len: usize,
}

impl Ticket {
    /// The position of this send among the accepted sends of its sender, from 0.
    pub fn sequence(self) -> u64 {
        self.sequence
    }

    /// The length of the send in bytes.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether the send was empty.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extend(lo: u32, hi: u32, base: u64, next: u64) -> Option<(u64, u64)> {
        IdRange::extend(lo, hi, NotificationId(base), NotificationId(next))
            .map(|range| (range.start.0, range.end.0))
    }

    #[test]
    fn a_range_inside_the_outstanding_ids_extends() {
        assert_eq!(extend(3, 5, 2, 10), Some((3, 6)));
        assert_eq!(extend(2, 9, 2, 10), Some((2, 10)));
    }

    #[test]
    fn a_range_that_touches_anything_else_is_refused() {
        assert_eq!(extend(9, 10, 2, 10), None);
        assert_eq!(extend(1, 2, 2, 10), None);
        assert_eq!(extend(0, 0, 0, 0), None);
        assert_eq!(extend(5, 4, 2, 10), None, "lo > hi without a wrap covers nearly all ids");
    }

    #[test]
    fn a_range_may_wrap_inside() {
        let base = u64::from(u32::MAX) - 1;
        assert_eq!(extend(u32::MAX - 1, 1, base, base + 4), Some((base, base + 4)));
        assert_eq!(extend(0, 0, base, base + 4), Some((base + 2, base + 3)));
    }

    #[test]
    fn an_old_id_that_arrives_after_the_wrap_keeps_its_place() {
        let base = (7 << 32) - 2;
        assert_eq!(extend(u32::MAX - 1, u32::MAX - 1, base, base + 1000), Some((base, base + 1)));
    }
}
