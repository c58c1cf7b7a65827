//! What the sender has taken and the socket has not: the elements of one send, in order, and how
//! they are cut into system calls.

use std::ops::Range;

use super::transport::{CallLimits, Transport};
use crate::{id::Ticket, sys::socket::IoVec, tracker::LeaseKey};

/// Elements below this size always go by copy: a page reference costs more than they do.
const MIN_ZERO_COPY_ELEMENT: usize = 4096;

/// No datagram is longer: the kernel refuses it, and for that it need not count its pages.
const MAX_DATAGRAM_BYTES: usize = u16::MAX as usize;

/// Neighbours that go the same way.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Index of the element behind the last.
    end: usize,
    zero_copy: bool,
}

/// One system call to come; its elements are in [`Outbox::memory`] and [`Outbox::keys`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Call {
    pub(super) bytes: usize,
    pub(super) zero_copy: bool,
    /// More of the same send follows, so that a small header need not travel alone.
    pub(super) more: bool,
}

/// The elements of the one send that the socket has not wholly taken.
///
/// They lie as a system call wants them, so that cutting a call moves nothing.
#[derive(Default, Debug)]
pub(super) struct Outbox {
    keys: Vec<LeaseKey>,
    /// What is left of each element.
    memory: Vec<IoVec>,
    runs: Vec<Run>,
    /// The first element that is not wholly accepted; those before it are dealt with.
    front: usize,
    /// The elements of the call last cut.
    call: Range<usize>,
    /// What the call's last element has beyond the call.
    withheld: usize,
    /// Whether a part of the front went already.
    is_cut: bool,
    ticket: Option<Ticket>,
    accepted: usize,
}

impl Outbox {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The send whose elements these are, and how many of its bytes are accepted.
    pub(super) fn sending(&self) -> Option<(Ticket, usize)> {
        self.ticket.map(|ticket| (ticket, self.accepted))
    }

    #[inline]
    pub(super) fn push(&mut self, key: LeaseKey, memory: IoVec) {
        self.keys.push(key);
        self.memory.push(memory);
    }

    /// Starts the send of the elements pushed, deciding for each whether it goes without copy:
    /// a run of neighbours of at least 4 KiB does so when together they reach the threshold. A
    /// datagram goes one way as a whole: without copy if it is of that size on average.
    pub(super) fn start(
        &mut self,
        ticket: Ticket,
        threshold_bytes: Option<usize>,
        transport: Transport,
    ) {
        let count = self.keys.len();
        if count == 0 {
            return;
        }
        self.ticket = Some(ticket);
        let Some(threshold_bytes) = threshold_bytes else {
            return self.runs.push(Run { end: count, zero_copy: false });
        };
        if transport == Transport::Datagram {
            let fewest = threshold_bytes.max(count * MIN_ZERO_COPY_ELEMENT);
            let zero_copy = (fewest..=MAX_DATAGRAM_BYTES).contains(&ticket.len);
            return self.runs.push(Run { end: count, zero_copy });
        }
        let large = |memory: &IoVec| memory.len() >= MIN_ZERO_COPY_ELEMENT;
        let mut end = 0;
        for run in self.memory.chunk_by(|left, right| large(left) == large(right)) {
            let bytes: usize = run.iter().map(IoVec::len).sum();
            let zero_copy = large(&run[0]) && bytes >= threshold_bytes;
            end += run.len();
            match self.runs.last_mut() {
                Some(last) if last.zero_copy == zero_copy => last.end = end,
                _ => self.runs.push(Run { end, zero_copy }),
            }
        }
    }

    /// Cuts the next call: neighbours that go the same way, up to these limits. Empty elements in
    /// front go with it.
    ///
    /// The rest of an element of which a part went without copy goes alone, so that only the last
    /// lease of a run ever has further ids (what the tracker asks for).
    pub(super) fn next_call(&mut self, limits: CallLimits) -> Option<Call> {
        self.put_back();
        let count = self.keys.len();
        if self.front == count {
            return None;
        }
        let empty = self.memory[self.front..].iter().take_while(|memory| memory.len() == 0);
        let first = self.front + empty.count();
        let run = self.runs.iter().find(|run| run.end > first);
        let Some(&Run { end, zero_copy }) = run else {
            self.call = first..first;
            return Some(Call { bytes: 0, zero_copy: false, more: false });
        };
        let alone = zero_copy && self.is_cut && first == self.front;
        let most = if alone { 1 } else { limits.elements };
        let mut last = first;
        let mut bytes = 0;
        for memory in self.memory[first..end].iter_mut().take(most) {
            if bytes == limits.bytes {
                break;
            }
            last += 1;
            bytes += memory.len();
            if bytes > limits.bytes {
                self.withheld = bytes - limits.bytes;
                *memory = memory.part(0, memory.len() - self.withheld);
                bytes = limits.bytes;
            }
        }
        self.call = first..last;
        Some(Call { bytes, zero_copy, more: self.withheld > 0 || last < count })
    }

    /// The memory of the call last cut.
    #[inline]
    pub(super) fn memory(&self) -> &[IoVec] {
        &self.memory[self.call.clone()]
    }

    /// The leases of the call last cut.
    #[inline]
    pub(super) fn keys(&self) -> &[LeaseKey] {
        &self.keys[self.call.clone()]
    }

    /// Number of elements of which the first `bytes` of the call last cut cover a part.
    pub(super) fn covered(&self, bytes: usize) -> usize {
        let mut start = 0;
        let reached = |memory: &&IoVec| {
            let reached = start < bytes;
            start += memory.len();
            reached
        };
        self.memory().iter().take_while(reached).count()
    }

    /// Takes the `bytes` that were accepted of the call last cut off the front, and gives each
    /// element that is now wholly accepted to `on_accepted`.
    pub(super) fn advance(&mut self, mut bytes: usize, mut on_accepted: impl FnMut(LeaseKey)) {
        self.accepted += bytes;
        self.put_back();
        while let Some(memory) = self.memory.get_mut(self.front) {
            if bytes < memory.len() {
                self.is_cut |= bytes > 0;
                *memory = memory.part(bytes, memory.len());
                return;
            }
            bytes -= memory.len();
            self.is_cut = false;
            on_accepted(self.keys[self.front]);
            self.front += 1;
        }
        self.clear();
    }

    /// Takes out all elements that are not wholly accepted.
    pub(super) fn take(&mut self, on_taken: impl FnMut(LeaseKey)) {
        self.keys[self.front..].iter().copied().for_each(on_taken);
        self.clear();
    }

    /// The last element of the call last cut is whole again.
    fn put_back(&mut self) {
        if self.withheld > 0 {
            let last = &mut self.memory[self.call.end - 1];
            *last = IoVec::new(last.start(), last.len() + self.withheld);
            self.withheld = 0;
        }
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.memory.clear();
        self.runs.clear();
        (self.front, self.call, self.withheld) = (0, 0..0, 0);
        (self.is_cut, self.ticket, self.accepted) = (false, None, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sender::window::MemlockBudget;
    use crate::{id::NotificationId, tracker::CompletionTracker};

    /// An outbox of elements of these lengths, started at a threshold of 16 KiB.
    fn outbox(lens: &[usize], transport: Transport) -> Outbox {
        let mut tracker = CompletionTracker::new(16, NotificationId(0));
        let mut outbox = Outbox::default();
        for len in lens {
            outbox.push(tracker.insert(()), IoVec::new(std::ptr::null(), *len));
        }
        let ticket = Ticket { sequence: 0, len: lens.iter().sum() };
        outbox.start(ticket, Some(16384), transport);
        outbox
    }

    fn limits(bytes: usize) -> CallLimits {
        CallLimits { elements: 1024, bytes }
    }

    /// Sends everything in calls of at most `max_bytes`; per call: elements, bytes, zero copy, more.
    fn calls(lens: &[usize], max_bytes: usize) -> Vec<(usize, usize, bool, bool)> {
        all_calls(outbox(lens, Transport::Stream), limits(max_bytes))
    }

    fn all_calls(mut outbox: Outbox, limits: CallLimits) -> Vec<(usize, usize, bool, bool)> {
        let mut calls = Vec::new();
        while let Some(call) = outbox.next_call(limits) {
            calls.push((outbox.keys().len(), call.bytes, call.zero_copy, call.more));
            outbox.advance(call.bytes, |_| ());
        }
        calls
    }

    #[test]
    fn a_lone_buffer_goes_without_copy_from_the_threshold_on() {
        assert_eq!(calls(&[16383], 1 << 20), [(1, 16383, false, false)]);
        assert_eq!(calls(&[16384], 1 << 20), [(1, 16384, true, false)]);
    }

    #[test]
    fn a_header_goes_by_copy_before_a_run_of_pages_without() {
        let page = 4096;
        assert_eq!(
            calls(&[64, page, page, page, page, 64], 1 << 20),
            [(1, 64, false, true), (4, 4 * page, true, true), (1, 64, false, false)],
        );
        assert_eq!(calls(&[64, page, 64, page], 1 << 20), [(4, 2 * page + 128, false, false)]);
    }

    #[test]
    fn an_element_cut_by_the_call_limit_sends_its_rest_alone() {
        assert_eq!(
            calls(&[60_000, 60_000, 60_000], 100_000),
            [(2, 100_000, true, true), (1, 20_000, true, true), (1, 60_000, true, false)],
        );
    }

    #[test]
    fn empty_elements_are_accepted_with_what_precedes_them() {
        assert_eq!(calls(&[0, 0], 1 << 20), [(0, 0, false, false)]);
        assert_eq!(calls(&[100, 0], 1 << 20), [(2, 100, false, false)]);
        assert_eq!(calls(&[], 1 << 20), []);
    }

    #[test]
    fn empty_elements_in_front_wait_for_what_follows_them() {
        let mut outbox = outbox(&[0, 0, 20_000, 0], Transport::Stream);
        assert_eq!(outbox.next_call(limits(1 << 20)).unwrap().bytes, 20_000);
        assert!(!outbox.is_empty());
        let mut taken = 0;
        outbox.take(|_| taken += 1);
        assert_eq!(taken, 4, "refused: all come back");
        assert!(outbox.is_empty());
    }

    #[test]
    fn no_call_has_more_elements_than_the_kernel_takes() {
        let lens = vec![16384; 1500];
        assert_eq!(calls(&lens, usize::MAX).len(), 2);
    }

    #[test]
    fn a_datagram_is_one_call_and_goes_one_way() {
        let datagram = Transport::Datagram;
        let limits = datagram.call_limits(&MemlockBudget::new(Some(4096)));
        let calls = |lens: &[usize]| all_calls(outbox(lens, datagram), limits);
        assert_eq!(calls(&[16383]), [(1, 16383, false, false)]);
        assert_eq!(calls(&[16384]), [(1, 16384, true, false)]);
        assert_eq!(calls(&[64, 60_000, 64]), [(3, 60_128, true, false)]);
        assert_eq!(calls(&[1000; 60]), [(60, 60_000, false, false)]);
        assert_eq!(calls(&[0]), [(0, 0, false, false)]);
        assert_eq!(calls(&[4096; 15]), [(15, 61_440, true, false)]);
        assert_eq!(calls(&vec![4096; 2000]), [(2000, 4096 * 2000, false, false)]);
    }

    #[test]
    fn covered_counts_the_elements_touched() {
        let mut outbox = outbox(&[20_000, 20_000, 20_000], Transport::Stream);
        outbox.next_call(limits(1 << 20));
        let covered = [1, 20_000, 20_001, 60_000].map(|bytes| outbox.covered(bytes));
        assert_eq!(covered, [1, 1, 2, 3]);
    }
}
