//! What the sender has taken and the socket has not: the elements of one send, in order, and how
//! they are cut into system calls.

use std::collections::VecDeque;

use super::transport::{CallLimits, Transport};
use crate::{id::Ticket, sys::socket::IoVec, tracker::LeaseKey};

/// Elements below this size always go by copy: a page reference costs more than they do.
const MIN_ZERO_COPY_ELEMENT: usize = 4096;

/// No datagram is longer: the kernel refuses it, and for that it need not count its pages.
const MAX_DATAGRAM_BYTES: usize = u16::MAX as usize;

/// One payload of a send.
#[derive(Debug)]
struct Element {
    key: LeaseKey,
    memory: IoVec,
    sent: usize,
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
#[derive(Default, Debug)]
pub(super) struct Outbox {
    elements: VecDeque<Element>,
    /// Empty elements at the front, which go with the next call that is accepted.
    empty: Vec<LeaseKey>,
    ticket: Option<Ticket>,
    accepted: usize,
    memory: Vec<IoVec>,
    keys: Vec<LeaseKey>,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_empty() && self.empty.is_empty()
    }

    /// The send whose elements these are, and how many of its bytes are accepted.
    pub(super) fn sending(&self) -> Option<(Ticket, usize)> {
        self.ticket.map(|ticket| (ticket, self.accepted))
    }

    pub(super) fn push(&mut self, key: LeaseKey, memory: IoVec) {
        self.elements.push_back(Element { key, memory, sent: 0, zero_copy: false });
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
        self.ticket = (!self.is_empty()).then_some(ticket);
        self.accepted = 0;
        let Some(threshold_bytes) = threshold_bytes else { return };
        let elements = self.elements.make_contiguous();
        if transport == Transport::Datagram {
            let fewest = threshold_bytes.max(elements.len() * MIN_ZERO_COPY_ELEMENT);
            let large = (fewest..=MAX_DATAGRAM_BYTES).contains(&ticket.len);
            elements.iter_mut().for_each(|element| element.zero_copy = large);
            return;
        }
        let large = |element: &Element| element.memory.len() >= MIN_ZERO_COPY_ELEMENT;
        for run in elements.chunk_by_mut(|left, right| large(left) == large(right)) {
            let bytes: usize = run.iter().map(|element| element.memory.len()).sum();
            let zero_copy = large(&run[0]) && bytes >= threshold_bytes;
            run.iter_mut().for_each(|element| element.zero_copy = zero_copy);
        }
    }

    /// Cuts the next call: neighbours that go the same way, up to these limits.
    ///
    /// The rest of an element of which a part went without copy goes alone, so that only the last
    /// lease of a run ever has further ids (what the tracker asks for).
    pub(super) fn next_call(&mut self, limits: CallLimits) -> Option<Call> {
        self.memory.clear();
        self.keys.clear();
        let elements = self.elements.iter();
        let empty = elements.take_while(|element| element.memory.len() == 0).count();
        self.empty.extend(self.elements.drain(..empty).map(|element| element.key));
        let Some(front) = self.elements.front() else {
            let call = Call { bytes: 0, zero_copy: false, more: false };
            return (!self.empty.is_empty()).then_some(call);
        };
        let zero_copy = front.zero_copy;
        let mut bytes = 0;
        let mut whole = true;
        for element in self.elements.iter().take(limits.elements) {
            if element.zero_copy != zero_copy || bytes == limits.bytes {
                break;
            }
            let rest = element.memory.len() - element.sent;
            let part = rest.min(limits.bytes - bytes);
            self.memory.push(element.memory.part(element.sent, part));
            self.keys.push(element.key);
            bytes += part;
            whole = part == rest;
            if zero_copy && element.sent > 0 {
                break;
            }
        }
        let more = !whole || self.keys.len() < self.elements.len();
        Some(Call { bytes, zero_copy, more })
    }

    /// The memory of the call last cut.
    pub(super) fn memory(&self) -> &[IoVec] {
        &self.memory
    }

    /// The leases of the call last cut.
    pub(super) fn keys(&self) -> &[LeaseKey] {
        &self.keys
    }

    /// Number of elements of which the first `bytes` of the call last cut cover a part.
    pub(super) fn covered(&self, bytes: usize) -> usize {
        let mut start = 0;
        let reached = |memory: &&IoVec| {
            let reached = start < bytes;
            start += memory.len();
            reached
        };
        self.memory.iter().take_while(reached).count()
    }

    /// Takes `bytes` off the front and gives each element that is now wholly accepted to
    /// `on_accepted`.
    pub(super) fn advance(&mut self, mut bytes: usize, mut on_accepted: impl FnMut(LeaseKey)) {
        self.accepted += bytes;
        self.empty.drain(..).for_each(&mut on_accepted);
        while let Some(element) = self.elements.front_mut() {
            let part = bytes.min(element.memory.len() - element.sent);
            element.sent += part;
            bytes -= part;
            if element.sent < element.memory.len() {
                break;
            }
            on_accepted(element.key);
            self.elements.pop_front();
        }
        if self.elements.is_empty() {
            self.ticket = None;
        }
    }

    /// Takes out all elements that are not wholly accepted.
    pub(super) fn take(&mut self) -> impl Iterator<Item = LeaseKey> + '_ {
        self.ticket = None;
        self.empty.drain(..).chain(self.elements.drain(..).map(|element| element.key))
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
        assert_eq!(outbox.take().count(), 4, "refused: all come back");
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
