//! Identifiers: the kernel's notification ids and the caller's tickets.

use std::fmt;

/// The number of one `MSG_ZEROCOPY` send call, assigned by the kernel and extended to 64 bits.
///
/// The kernel counts such calls per socket in a `u32`, starting at 0. The extension keeps ids
/// unique past the wrap. An id covers all bytes accepted by its call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NotificationId(pub u64);

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

    /// Extends the inclusive range `lo..=hi` of a notification to 64 bits.
    ///
    /// `base..next` are the ids that may be outstanding, and `base` is the oldest. The distance of
    /// `lo` from `base` decides, so a range may wrap inside (`lo > hi` as numbers) and an old id
    /// may arrive after the wrap. Returns `None` if any id of the range lies outside `base..next`:
    /// the notification is then not about sends of this sender.
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

/// Distinguishes a sender from every other sender of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SenderId(u64);

impl SenderId {
    /// Makes an identity of a number without another sender in the process.
    pub(crate) fn new(unique: u64) -> Self {
        Self(unique & FIELD)
    }

    #[cfg(feature = "tracing")]
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// Names one accepted send of one [`Sender`](crate::Sender), copied or not.
///
/// Tickets are issued in send order and are not kernel ids: a send may take several notification
/// ids or none. A ticket also contains the length of its send in bytes, and can be exchanged for
/// its [`Fate`](crate::Fate) at any later time.
///
/// Only the sender of a ticket answers for it, or its halves after a
/// [`split`](crate::Sender::split). Every other sender returns
/// [`WaitError::ForeignTicket`](crate::WaitError::ForeignTicket), even a sender made from the parts
/// of the first. Names of senders repeat after 2^40 senders of the process, and names of sends
/// after 2^40 sends of a sender: twelve days at a rate of one per microsecond.
///
/// # Examples
///
/// ```
/// # use std::net::{TcpListener, TcpStream};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let connect = || TcpStream::connect(listener.local_addr().unwrap());
/// let mut first = pinbuf::Sender::new(connect()?)?;
/// let second = pinbuf::Sender::new(connect()?)?;
/// let ticket = first.send(&b"hello"[..])?;
/// assert_eq!((ticket.sequence(), ticket.len()), (0, 5));
/// assert!(first.fate(ticket)?.is_some());
/// assert_eq!(second.fate(ticket), Err(pinbuf::WaitError::ForeignTicket));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// The sender, and the upper bits of the sequence number.
    high: u64,
    /// The lower bits of the sequence number, and the length.
    low: u64,
}

static_assertions::const_assert!(size_of::<Ticket>() == 16);

/// Bits of a ticket for the sender, and for the sequence number; the remaining bits are the length.
const FIELD_BITS: u32 = 40;
const FIELD: u64 = (1 << FIELD_BITS) - 1;
const LEN_BITS: u32 = 128 - 2 * FIELD_BITS;
const MAX_LEN: u64 = (1 << LEN_BITS) - 1;

/// The bits of a sequence number in a ticket.
fn short_sequence(sequence: u64) -> u64 {
    sequence & FIELD
}

impl Ticket {
    #[inline]
    pub(crate) fn new(sender: SenderId, sequence: u64, len: usize) -> Self {
        let sequence = short_sequence(sequence);
        // No address space has room for longer sends.
        let len = (len as u64).min(MAX_LEN);
        Self {
            high: sender.0 << (64 - FIELD_BITS) | sequence >> (64 - LEN_BITS),
            low: sequence << LEN_BITS | len,
        }
    }

    /// The position of the send among the accepted sends of its sender, from 0, modulo 2^40.
    pub fn sequence(self) -> u64 {
        (self.high << (64 - LEN_BITS) | self.low >> LEN_BITS) & FIELD
    }

    /// The full position of the send, if `last` is the position of its sender's last send.
    pub(crate) fn sequence_up_to(self, last: u64) -> u64 {
        last.wrapping_sub(last.wrapping_sub(self.sequence()) & FIELD)
    }

    /// Returns `true` if this sender gave the ticket.
    pub(crate) fn is_of(self, sender: SenderId) -> bool {
        self.high >> (64 - FIELD_BITS) == sender.0
    }

    /// The length of the send in bytes.
    pub fn len(self) -> usize {
        (self.low & MAX_LEN) as usize
    }

    /// Returns `true` if the send was empty.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("sender", &(self.high >> (64 - FIELD_BITS)))
            .field("sequence", &self.sequence())
            .field("len", &self.len())
            .finish()
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
    fn a_range_beyond_the_outstanding_ids_is_refused() {
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
    fn a_ticket_keeps_its_parts_at_every_limit() {
        let fields = [0, 1, 0xA5_5A5A_A5A5, FIELD - 1, FIELD];
        let lens = [0, 1, 0xA55A_5AA5, 1 << 20];
        for (sender, sequence) in fields.iter().flat_map(|one| fields.map(|other| (*one, other))) {
            for len in lens {
                let ticket = Ticket::new(SenderId::new(sender), sequence, len);
                assert_eq!((ticket.sequence(), ticket.len()), (sequence, len));
                for other in fields {
                    assert_eq!(ticket.is_of(SenderId::new(other)), other == sender);
                }
            }
        }
        assert_eq!(Ticket::new(SenderId::new(0), 0, usize::MAX).sequence(), 0);
        let ticket = Ticket::new(SenderId::new(7), 3, 5);
        assert_eq!(format!("{ticket:?}"), "Ticket { sender: 7, sequence: 3, len: 5 }");
    }

    #[test]
    fn a_recent_ticket_names_its_send_past_the_wrap() {
        for last in [0, 5, FIELD, FIELD + 1, FIELD + 5, 7 << 40] {
            for age in [0, 1, 5, 4096, FIELD].into_iter().filter(|age| *age <= last) {
                let ticket = Ticket::new(SenderId::new(1), last - age, 10);
                assert_eq!(ticket.sequence_up_to(last), last - age);
            }
        }
    }

    #[test]
    fn an_old_id_after_the_wrap_keeps_its_place() {
        let base = (7 << 32) - 2;
        assert_eq!(extend(u32::MAX - 1, u32::MAX - 1, base, base + 1000), Some((base, base + 1)));
    }
}
