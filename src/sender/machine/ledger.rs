//! The fates of all sends: tickets to fates.

use std::collections::BTreeMap;

use super::{super::report::Fate, cold::Lazy};
use crate::{error::OsError, id::Ticket};

/// The most sends that a ledger has room for.
const HISTORY: usize = 4096;

/// Sends forgotten at once when there is no room: single steps would cost each send more.
const FORGOTTEN_AT_ONCE: usize = 64;

/// Sends that a ledger has room for after its first ticket.
const MIN_HISTORY: usize = 16;

/// Twice the number of unreleased leases of a send, and 1 more if a part of the send went by copy.
/// One cache line has 64 sends. A sender goes through its whole history, and ten thousand senders
/// through all of theirs.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Open(u8);

impl Open {
    /// The value for a send with more to be kept.
    const APART: Self = Self(u8::MAX);

    #[inline(always)]
    fn new(leases: u32, copied: bool) -> Self {
        match u8::try_from(leases) {
            Ok(leases) if leases < Self::APART.leases() => Self(leases << 1 | u8::from(copied)),
            _ => Self::APART,
        }
    }

    #[inline(always)]
    fn leases(self) -> u8 {
        self.0 >> 1
    }

    fn copied(self) -> bool {
        self.0 & 1 != 0
    }

    /// One lease is released.
    #[inline(always)]
    fn released(&mut self, copied: bool) {
        debug_assert!(self.leases() > 0);
        self.0 = (self.0 - 2) | u8::from(copied);
    }
}

/// As [`Open`], of any number of leases.
struct Apart {
    leases: u32,
    copied: bool,
}

struct Truncation {
    accepted: usize,
    error: OsError,
}

/// Tickets to fates, for the sends of one sender.
///
/// Keeps unresolved sends, truncated sends, and at least the last 4000 sends. Any older send was
/// released, which its ticket alone can tell.
///
/// # Invariants
///
/// 1. `recent[sequence & mask]` is of the send `sequence` for each in `first..next`; its length is
///    0 or a power of two. `next` is at most `end`, which is `first` and that length. A place says
///    so if its send is in `apart`.
/// 2. `first` is a multiple of [`FORGOTTEN_AT_ONCE`].
#[derive(Default)]
pub(crate) struct Ledger {
    recent: Vec<Open>,
    first: u64,
    next: u64,
    end: u64,
    exceptions: Lazy<Exceptions>,
}

#[derive(Default)]
struct Exceptions {
    /// Unresolved sends that are older than `first`, or have more leases than a place counts.
    apart: BTreeMap<u64, Apart>,
    truncated: BTreeMap<u64, Truncation>,
}

impl Ledger {
    /// Opens the next ticket, for a send of `leases` leases. `copied`: a part went by copy.
    #[inline(always)]
    pub(crate) fn open(&mut self, leases: u32, copied: bool) -> u64 {
        if self.next == self.end {
            self.make_room();
        }
        let sequence = self.next;
        let place = self.place(sequence);
        let open = Open::new(leases, copied);
        self.recent[place] = open;
        if open == Open::APART {
            self.put_apart(sequence, leases, copied);
        }
        self.next += 1;
        sequence
    }

    #[cold]
    fn make_room(&mut self) {
        if self.recent.len() < HISTORY {
            self.grow();
        } else {
            self.forget();
        }
        self.end = self.first + self.recent.len() as u64;
    }

    fn grow(&mut self) {
        let mut recent = vec![Open::default(); (self.recent.len() * 2).max(MIN_HISTORY)];
        let mask = recent.len() - 1;
        for sequence in self.first..self.next {
            recent[sequence as usize & mask] = self.recent[self.place(sequence)];
        }
        self.recent = recent;
    }

    /// Forgets the oldest sends, except for unresolved sends, which are kept beside the history.
    fn forget(&mut self) {
        let start = self.place(self.first);
        let oldest = &self.recent[start..start + FORGOTTEN_AT_ONCE];
        // Usually all of them have resolved, and many are checked at once.
        if oldest.iter().fold(Open::default(), |all, open| Open(all.0 | open.0)).leases() > 0 {
            let late = (self.first..).zip(oldest).filter(|(_, open)| open.leases() > 0);
            // Sends in `apart` stay there.
            let late = late.filter(|(_, open)| **open != Open::APART).map(|(sequence, open)| {
                (sequence, Apart { leases: open.leases().into(), copied: open.copied() })
            });
            self.exceptions.make().apart.extend(late);
        }
        self.first += FORGOTTEN_AT_ONCE as u64;
    }

    #[cold]
    fn put_apart(&mut self, sequence: u64, leases: u32, copied: bool) {
        self.exceptions.make().apart.insert(sequence, Apart { leases, copied });
    }

    #[inline]
    fn place(&self, sequence: u64) -> usize {
        sequence as usize & (self.recent.len() - 1)
    }

    /// Takes back the last ticket opened: nothing of the send was accepted.
    pub(crate) fn retract(&mut self, ticket: Ticket) {
        debug_assert!(self.is_last(ticket));
        let sequence = self.sequence(ticket);
        self.next -= 1;
        if self.kept(sequence) == Some(Open::APART) {
            self.exceptions.make().apart.remove(&sequence);
        }
    }

    /// One lease of a send is released.
    #[inline]
    pub(crate) fn released(&mut self, sequence: u64, copied: bool) {
        let place = self.place(sequence);
        match &mut self.recent[place] {
            open if sequence >= self.first && *open != Open::APART => open.released(copied),
            _ => self.released_apart(sequence, copied),
        }
    }

    #[cold]
    fn released_apart(&mut self, sequence: u64, copied: bool) {
        let apart = &mut self.exceptions.make().apart;
        let send = apart.get_mut(&sequence).expect("an unresolved send is kept");
        send.leases -= 1;
        send.copied |= copied;
        let (leases, copied) = (send.leases, send.copied);
        if leases == 0 {
            apart.remove(&sequence);
            if sequence >= self.first {
                let place = self.place(sequence);
                self.recent[place] = Open::new(0, copied);
            }
        }
    }

    /// The connection failed after `accepted` bytes of the send.
    pub(crate) fn truncate(&mut self, ticket: Ticket, accepted: usize, error: OsError) {
        let sequence = self.sequence(ticket);
        self.exceptions.make().truncated.insert(sequence, Truncation { accepted, error });
    }

    /// The error that cut a send short, if any.
    pub(crate) fn truncation(&self, ticket: Ticket) -> Option<OsError> {
        self.truncated(self.sequence(ticket)).map(|truncation| truncation.error)
    }

    /// The error that cut the last send short, if any.
    pub(crate) fn last_truncation(&self) -> Option<OsError> {
        self.truncated(self.next.checked_sub(1)?).map(|truncation| truncation.error)
    }

    fn truncated(&self, sequence: u64) -> Option<&Truncation> {
        self.exceptions.get()?.truncated.get(&sequence)
    }

    /// The history's entry for a send, unless the send is older.
    fn kept(&self, sequence: u64) -> Option<Open> {
        (sequence >= self.first).then(|| self.recent[self.place(sequence)])
    }

    /// Returns `true` if the ticket is of the last send.
    pub(crate) fn is_last(&self, ticket: Ticket) -> bool {
        self.sequence(ticket) + 1 == self.next
    }

    /// Returns `true` if a send was made and has leases.
    pub(crate) fn is_open(&self, ticket: Ticket) -> bool {
        self.is_open_at(self.sequence(ticket))
    }

    pub(super) fn is_open_at(&self, sequence: u64) -> bool {
        let is_apart =
            || self.exceptions.get().is_some_and(|kept| kept.apart.contains_key(&sequence));
        sequence < self.next && self.kept(sequence).map_or_else(is_apart, |open| open.leases() > 0)
    }

    /// The position of the send of a ticket.
    pub(crate) fn sequence(&self, ticket: Ticket) -> u64 {
        ticket.sequence_up_to(self.next.wrapping_sub(1))
    }

    /// The fate of a send, or `None` while the send has leases or was never made.
    pub(crate) fn fate(&self, ticket: Ticket) -> Option<Fate> {
        let sequence = self.sequence(ticket);
        if sequence >= self.next || self.is_open_at(sequence) {
            return None;
        }
        if let Some(truncation) = self.truncated(sequence) {
            let Truncation { accepted, error } = *truncation;
            return Some(Fate::Truncated { accepted, len: ticket.len(), error });
        }
        let copied = self.kept(sequence).map(Open::copied);
        Some(Fate::Released { accepted: ticket.len(), copied })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SenderId;

    fn ticket(sequence: u64) -> Ticket {
        Ticket::new(SenderId::new(1), sequence, 10)
    }

    fn released(copied: Option<bool>) -> Option<Fate> {
        Some(Fate::Released { accepted: 10, copied })
    }

    #[test]
    fn a_send_resolves_with_its_last_lease() {
        for copied in [[true, false], [false, true], [true, true]] {
            let mut ledger = Ledger::default();
            let sequence = ledger.open(2, false);
            ledger.released(sequence, copied[0]);
            assert_eq!(ledger.fate(ticket(sequence)), None);
            ledger.released(sequence, copied[1]);
            assert_eq!(ledger.fate(ticket(sequence)), released(Some(true)));
            assert_eq!(ledger.fate(ticket(sequence + 1)), None, "never made");
        }
    }

    #[test]
    fn a_straggler_and_a_truncated_send_outlive_the_history() {
        let mut ledger = Ledger::default();
        let straggler = ledger.open(1, false);
        let cut = ledger.open(1, false);
        let error = OsError::from_raw(104);
        ledger.truncate(ticket(cut), 3, error);
        ledger.released(cut, false);
        for _ in 0..3 * HISTORY {
            let sequence = ledger.open(1, false);
            ledger.released(sequence, false);
        }
        assert!(ledger.recent.len() <= HISTORY);
        assert_eq!(ledger.fate(ticket(straggler)), None);
        let truncated = Fate::Truncated { accepted: 3, len: 10, error };
        assert_eq!(ledger.fate(ticket(cut)), Some(truncated));
        assert_eq!(ledger.fate(ticket(cut + 1)), released(None));
        ledger.released(straggler, false);
        assert!(!ledger.is_open(ticket(straggler)));
        assert_eq!(ledger.fate(ticket(straggler)), released(None));
    }

    #[test]
    fn a_retracted_ticket_is_given_out_again() {
        let mut ledger = Ledger::default();
        for leases in [1, 1000, 1] {
            let first = ledger.open(leases, false);
            ledger.retract(ticket(first));
            assert!(ledger.exceptions.get().is_none_or(|kept| kept.apart.is_empty()));
            assert!(!ledger.is_open(ticket(first)));
            assert_eq!(ledger.open(0, false), first);
        }
    }

    #[test]
    fn the_last_4000_sends_keep_whether_they_were_copied() {
        let mut ledger = Ledger::default();
        for sequence in 0..5000 {
            assert_eq!(ledger.open(0, true), sequence);
            let oldest = sequence.saturating_sub(3999);
            assert_eq!(ledger.fate(ticket(oldest)), released(Some(true)));
        }
    }

    #[test]
    fn a_send_of_many_leases_resolves_with_the_last() {
        let counts = [125, 126, 127, 128, 255, 256, 1000];
        for (leases, later) in
            counts.into_iter().flat_map(|count| [(count, 0), (count, 2 * HISTORY)])
        {
            for copied in [false, true] {
                let mut ledger = Ledger::default();
                let many = ledger.open(leases, copied);
                for _ in 0..later {
                    let sequence = ledger.open(1, false);
                    ledger.released(sequence, false);
                }
                for _ in 0..leases {
                    assert!(ledger.is_open(ticket(many)), "{leases}");
                    assert_eq!(ledger.fate(ticket(many)), None);
                    ledger.released(many, false);
                }
                let copied = (later == 0).then_some(copied);
                assert_eq!(ledger.fate(ticket(many)), released(copied));
                assert!(ledger.exceptions.get().is_none_or(|kept| kept.apart.is_empty()));
            }
        }
    }
}
