//! The unsent part of one send: its elements in order, and their cuts into calls.

use super::super::transport::{CallLimits, MIN_ZERO_COPY_ELEMENT, Transport};
use crate::{sys::socket::IoVec, tracker::LeaseKey};

/// The way of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Way {
    /// By copy: the kernel reads the memory during the call only.
    #[default]
    Copy,
    /// Without copy: the kernel reads the memory until the release of the call.
    ZeroCopy,
}

/// The elements of the outbox in one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cut {
    /// Index of the first element, and one past the last.
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) bytes: usize,
    /// The way of the elements if nothing stands against it.
    pub(super) way: Way,
    /// More of the same send follows, so that a small header need not travel alone.
    pub(super) more: bool,
}

/// Neighbours that go the same way.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Index of the element behind the last.
    end: usize,
    way: Way,
}

/// The elements of one send that the socket has not wholly accepted.
///
/// The elements lie in memory in the form of the system call, so cutting a call moves nothing.
#[derive(Default, Debug)]
pub(crate) struct Outbox {
    keys: Vec<LeaseKey>,
    /// The unsent part of each element.
    memory: Vec<IoVec>,
    runs: Vec<Run>,
    /// The first element that is not wholly accepted; the elements before it are settled.
    front: usize,
    /// One past the last element of the last cut, and the bytes of that element beyond the cut.
    last: usize,
    withheld: usize,
    /// A part of the front was accepted.
    is_cut: bool,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    #[inline]
    pub(crate) fn push(&mut self, key: LeaseKey, memory: IoVec) {
        self.keys.push(key);
        self.memory.push(memory);
    }

    /// Starts the send of the elements pushed. `without_copy` decides how so many neighbours of so
    /// many bytes in all go: on a stream runs of large and of small ones, of a datagram all.
    pub(super) fn start(
        &mut self,
        transport: Transport,
        without_copy: impl Fn(usize, usize) -> bool,
    ) {
        let large = |memory: &IoVec| memory.len() >= MIN_ZERO_COPY_ELEMENT;
        let goes_with = |left: &IoVec, right: &IoVec| {
            transport == Transport::Datagram || large(left) == large(right)
        };
        let mut end = 0;
        for run in self.memory.chunk_by(goes_with) {
            let bytes = run.iter().map(IoVec::len).sum();
            let way = if without_copy(run.len(), bytes) { Way::ZeroCopy } else { Way::Copy };
            end += run.len();
            match self.runs.last_mut() {
                Some(last) if last.way == way => last.end = end,
                _ => self.runs.push(Run { end, way }),
            }
        }
    }

    /// Takes the unsent part of a send of one element, with so many bytes accepted.
    pub(super) fn put_lone(&mut self, key: LeaseKey, memory: IoVec, way: Way, accepted: usize) {
        debug_assert!(self.keys.is_empty());
        self.push(key, memory.part(accepted, memory.len()));
        self.runs.push(Run { end: 1, way });
    }

    /// Cuts the next call: neighbours that go the same way, up to these limits. Empty elements in
    /// front go with it. `None` if nothing is left.
    ///
    /// The rest of an element sent in part without copy goes alone. So only the last lease of a run
    /// ever has further ids, as the tracker requires.
    pub(super) fn cut(&mut self, limits: CallLimits) -> Option<Cut> {
        self.put_back();
        let count = self.keys.len();
        if self.front == count {
            return None;
        }
        let empty = self.memory[self.front..].iter().take_while(|memory| memory.len() == 0);
        let first = self.front + empty.count();
        let run = self.runs.iter().find(|run| run.end > first);
        let Some(&Run { end, way }) = run else {
            return Some(Cut { first, last: first, bytes: 0, way: Way::Copy, more: false });
        };
        let alone = way == Way::ZeroCopy && self.is_cut;
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
        self.last = last;
        Some(Cut { first, last, bytes, way, more: self.withheld > 0 || last < count })
    }

    /// The memory of a call's elements.
    #[inline]
    pub(crate) fn memory(&self, cut: Cut) -> &[IoVec] {
        &self.memory[cut.first..cut.last]
    }

    /// The leases of a call's elements.
    pub(super) fn keys(&self, cut: Cut) -> &[LeaseKey] {
        &self.keys[cut.first..cut.last]
    }

    /// The leases of the elements that share the first `bytes` of a call.
    pub(super) fn covered(&self, cut: Cut, bytes: usize) -> &[LeaseKey] {
        let mut start = 0;
        let reached = |memory: &&IoVec| {
            let reached = start < bytes;
            start += memory.len();
            reached
        };
        &self.keys(cut)[..self.memory(cut).iter().take_while(reached).count()]
    }

    /// Takes the accepted `bytes` of the last cut off the front, and gives each wholly accepted
    /// element to `on_accepted`. Returns `true` if nothing is left.
    pub(super) fn advance(
        &mut self,
        mut bytes: usize,
        mut on_accepted: impl FnMut(LeaseKey),
    ) -> bool {
        self.put_back();
        while let Some(memory) = self.memory.get_mut(self.front) {
            if bytes < memory.len() {
                self.is_cut |= bytes > 0;
                *memory = memory.part(bytes, memory.len());
                return false;
            }
            bytes -= memory.len();
            self.is_cut = false;
            on_accepted(self.keys[self.front]);
            self.front += 1;
        }
        self.clear();
        true
    }

    /// Takes out all elements that are not wholly accepted.
    pub(super) fn take(&mut self, on_taken: impl FnMut(LeaseKey)) {
        self.keys[self.front..].iter().copied().for_each(on_taken);
        self.clear();
    }

    /// The last element of the call last cut is whole again.
    fn put_back(&mut self) {
        if self.withheld > 0 {
            let last = &mut self.memory[self.last - 1];
            *last = IoVec::new(last.start(), last.len() + self.withheld);
            self.withheld = 0;
        }
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.memory.clear();
        self.runs.clear();
        (self.front, self.last, self.withheld, self.is_cut) = (0, 0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::NotificationId, sender::budget::MemlockBudget, tracker::CompletionTracker};

    /// An outbox of elements of these lengths, started at a threshold of 16 KiB.
    fn outbox(lens: &[usize], transport: Transport) -> Outbox {
        let mut tracker = CompletionTracker::new(16, NotificationId(0));
        let mut outbox = Outbox::default();
        for len in lens {
            outbox.push(tracker.insert(()), IoVec::new(std::ptr::null(), *len));
        }
        outbox.start(transport, |elements, bytes| {
            transport.goes_without_copy(16384, elements, bytes)
        });
        outbox
    }

    fn limits(bytes: usize) -> CallLimits {
        CallLimits { elements: 1024, bytes }
    }

    /// Sends everything in calls of at most `max_bytes`; per call: elements, bytes, zero copy,
    /// more.
    fn calls(lens: &[usize], max_bytes: usize) -> Vec<(usize, usize, bool, bool)> {
        all_calls(outbox(lens, Transport::Stream), limits(max_bytes))
    }

    fn all_calls(mut outbox: Outbox, limits: CallLimits) -> Vec<(usize, usize, bool, bool)> {
        let mut calls = Vec::new();
        while let Some(cut) = outbox.cut(limits) {
            let keys = outbox.keys(cut).len();
            calls.push((keys, cut.bytes, cut.way == Way::ZeroCopy, cut.more));
            outbox.advance(cut.bytes, |_| ());
        }
        calls
    }

    #[test]
    fn a_lone_buffer_above_the_threshold_is_not_copied() {
        assert_eq!(calls(&[16383], 1 << 20), [(1, 16383, false, false)]);
        assert_eq!(calls(&[16384], 1 << 20), [(1, 16384, true, false)]);
    }

    #[test]
    fn a_header_is_copied_before_a_run_of_pages() {
        let page = 4096;
        assert_eq!(
            calls(&[64, page, page, page, page, 64], 1 << 20),
            [(1, 64, false, true), (4, 4 * page, true, true), (1, 64, false, false)],
        );
        assert_eq!(calls(&[64, page, 64, page], 1 << 20), [(4, 2 * page + 128, false, false)]);
    }

    #[test]
    fn a_split_element_sends_its_unsent_part_alone() {
        assert_eq!(
            calls(&[60_000, 60_000, 60_000], 100_000),
            [(2, 100_000, true, true), (1, 20_000, true, true), (1, 60_000, true, false)],
        );
        assert_eq!(
            calls(&[60_000, 60_000, 30_000, 30_000], 100_000),
            [(2, 100_000, true, true), (1, 20_000, true, true), (2, 60_000, true, false)],
            "behind it neighbours go together again",
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
        assert_eq!(outbox.cut(limits(1 << 20)).unwrap().bytes, 20_000);
        let mut taken = 0;
        outbox.take(|_| taken += 1);
        assert_eq!(taken, 4, "refused: all come back");
        assert_eq!(outbox.cut(limits(1 << 20)), None);
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
        let cut = outbox.cut(limits(1 << 20)).unwrap();
        let covered = [1, 20_000, 20_001, 60_000].map(|bytes| outbox.covered(cut, bytes).len());
        assert_eq!(covered, [1, 1, 2, 3]);
    }
}
