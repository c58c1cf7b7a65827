//! Ages of the calls in flight.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::cold::Lazy;
use crate::id::NotificationId;

/// When ids were issued, as marks.
///
/// The clock is not read for every call: the first call in flight is marked, and every reading of
/// the error queue, after 32 calls in a busy sender, marks the calls before.
#[derive(Default)]
pub(super) struct Ages {
    /// The first mark by itself: a sender that is hardly used has no more.
    first: Option<Mark>,
    later: Lazy<VecDeque<Mark>>,
}

/// All ids below were issued by then.
type Mark = (NotificationId, Instant);

impl Ages {
    /// Marks closer together than this are merged, except for the last.
    const APART: Duration = Duration::from_millis(10);
    const MAX_LATER: usize = 127;

    /// All ids below `next` are issued; the oldest in flight is `oldest`.
    pub(super) fn mark(&mut self, oldest: NotificationId, next: NotificationId, now: Instant) {
        self.forget_before(oldest);
        let Some(first) = self.first else {
            self.first = Some((next, now));
            return;
        };
        let last = self.later.get().and_then(VecDeque::back).unwrap_or(&first);
        if last.0 >= next {
            return;
        }
        let later = self.later.make();
        let before = later.len().checked_sub(2).map_or(first, |at| later[at]);
        if !later.is_empty() && now.duration_since(before.1) < Self::APART {
            later.pop_back();
        } else if later.len() == Self::MAX_LATER {
            // The marks of the oldest ids stay exact.
            let mut at = 0;
            later.retain(|_| {
                at += 1;
                at % 2 == 1
            });
        }
        later.push_back((next, now));
    }

    /// `id` is not issued after all, and will be later.
    pub(super) fn cancelled(&mut self, id: NotificationId) {
        let last = self.later.get_mut().and_then(VecDeque::back_mut).or(self.first.as_mut());
        if let Some((next, _)) = last.filter(|(next, _)| *next > id) {
            *next = id;
        }
    }

    fn forget_before(&mut self, oldest: NotificationId) {
        while self.first.is_some_and(|(next, _)| next <= oldest) {
            self.first = self.later.get_mut().and_then(VecDeque::pop_front);
        }
    }

    /// The latest time at which the oldest id of the last [`mark`](Self::mark) can have been issued.
    pub(super) fn latest(&self) -> Option<Instant> {
        self.first.map(|(_, at)| at)
    }
}
