//! Single orders of events, then random orders against a naive model.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

fn tracker(window: usize, first: u64) -> CompletionTracker<u64> {
    CompletionTracker::new(window, NotificationId(first))
}

fn send(tracker: &mut CompletionTracker<u64>, lease: u64) -> NotificationId {
    let key = tracker.insert(lease);
    let id = tracker.issue(&[key], 1).expect("room");
    assert_eq!(tracker.settle(key), None);
    id
}

fn release(tracker: &mut CompletionTracker<u64>, lo: u64, hi: u64) -> Result<Vec<u64>, UnknownIds> {
    let mut released = Vec::new();
    let Released { ids, bytes } =
        tracker
            .release(lo as u32, hi as u32, |lease: &mut Option<_>| released.extend(lease.take()))?;
    assert_eq!(bytes as u64, ids.count(), "each call in the tests has one byte");
    Ok(released)
}

#[test]
fn a_notification_releases_the_named_ids_only() {
    let mut tracker = tracker(8, 0);
    for lease in 0..4 {
        send(&mut tracker, lease);
    }
    assert_eq!(release(&mut tracker, 2, 3), Ok(vec![2, 3]));
    assert_eq!(tracker.oldest(), Some(NotificationId(0)));
    assert_eq!(release(&mut tracker, 0, 0), Ok(vec![0]));
    assert_eq!(release(&mut tracker, 1, 1), Ok(vec![1]));
    assert_eq!((tracker.outstanding(), tracker.leases()), (0, 0));
}

#[test]
fn a_lease_ends_with_its_last_id_in_any_order() {
    let mut tracker = tracker(8, 0);
    let key = tracker.insert(7);
    for _ in 0..3 {
        tracker.issue(&[key], 1).unwrap();
    }
    assert_eq!(release(&mut tracker, 2, 2), Ok(vec![]));
    assert_eq!(release(&mut tracker, 0, 0), Ok(vec![]));
    assert_eq!(tracker.settle(key), None);
    assert_eq!(release(&mut tracker, 1, 1), Ok(vec![7]));
}

#[test]
fn the_senders_hold_outlives_every_id() {
    let mut tracker = tracker(8, 0);
    let key = tracker.insert(7);
    tracker.issue(&[key], 1).unwrap();
    assert_eq!(release(&mut tracker, 0, 0), Ok(vec![]), "the sender still holds the lease");
    assert_eq!(tracker.settle(key), Some(7));
}

#[test]
fn a_partial_vectored_send_keeps_its_boundary_lease() {
    let mut tracker = tracker(8, 0);
    let keys: Vec<_> = (0..4).map(|lease| tracker.insert(lease)).collect();
    let first = tracker.issue(&keys, 1).unwrap();
    tracker.trim(first, 3);
    assert_eq!(tracker.settle(keys[0]), None);
    assert_eq!(tracker.settle(keys[1]), None);
    let rest = tracker.issue(&[keys[2]], 1).unwrap();
    assert_eq!(tracker.settle(keys[2]), None);
    tracker.issue(&[keys[3]], 1).unwrap();
    assert_eq!(tracker.settle(keys[3]), None);
    assert_eq!(release(&mut tracker, rest.0, rest.0 + 1), Ok(vec![3]));
    assert_eq!(release(&mut tracker, first.0, first.0), Ok(vec![0, 1, 2]));
}

#[test]
fn an_early_release_frees_nothing_unaccepted() {
    let mut tracker = tracker(8, 0);
    let keys: Vec<_> = (0..3).map(|lease| tracker.insert(lease)).collect();
    let id = tracker.issue(&keys, 1).unwrap();
    assert_eq!(release(&mut tracker, id.0, id.0), Ok(vec![]));
    tracker.trim(id, 1);
    assert_eq!(tracker.settle(keys[0]), Some(0));
    let id = tracker.issue(&keys[1..], 1).unwrap();
    assert_eq!(tracker.settle(keys[1]), None);
    assert_eq!(tracker.settle(keys[2]), None);
    assert_eq!(release(&mut tracker, id.0, id.0), Ok(vec![1, 2]));
}

#[test]
fn a_cancelled_id_is_issued_again() {
    let mut tracker = tracker(8, 0);
    let key = tracker.insert(1);
    let id = tracker.issue(&[key], 1).unwrap();
    assert!(tracker.cancel(id));
    assert_eq!(tracker.issue(&[key], 1), Some(id));
    assert_eq!(release(&mut tracker, 0, 0), Ok(vec![]));
    assert!(!tracker.cancel(id), "a notification proved the id used");
    assert_eq!(tracker.next_id(), NotificationId(1));
}

#[test]
fn a_notification_with_an_unknown_id_releases_nothing() {
    let mut tracker = tracker(8, 0);
    for lease in 0..4 {
        send(&mut tracker, lease);
    }
    assert_eq!(release(&mut tracker, 1, 1), Ok(vec![1]));
    for (lo, hi) in [(0, 1), (1, 1), (1, 2), (3, 4), (4, 4), (3, 2)] {
        assert_eq!(release(&mut tracker, lo, hi), Err(UnknownIds), "{lo}..={hi}");
    }
    assert_eq!(release(&mut tracker, 2, 3), Ok(vec![2, 3]));
    assert_eq!(release(&mut tracker, 0, 0), Ok(vec![0]));
}

#[test]
fn a_straggler_does_not_grow_the_ring() {
    let mut tracker = tracker(16, u64::from(u32::MAX) - 5);
    let oldest = send(&mut tracker, 999);
    for lease in 0..100_000 {
        let id = send(&mut tracker, lease);
        assert_eq!(release(&mut tracker, id.0, id.0), Ok(vec![lease]));
    }
    assert_eq!(tracker.footprint(), (MIN_RING, 1));
    assert_eq!(tracker.oldest(), Some(oldest));
    assert_eq!(release(&mut tracker, oldest.0, oldest.0), Ok(vec![999]));
    assert_eq!(tracker.footprint(), (MIN_RING, 0));
}

#[test]
fn a_full_side_list_refuses_ids_until_a_straggler_is_released() {
    for (window, bound) in [(0, 1), (4, 4), (1 << 20, MAX_STRAGGLERS)] {
        let mut tracker = tracker(window, 0);
        let mut stuck = Vec::new();
        let refused = (0..20_000).find(|lease| {
            let key = tracker.insert(*lease);
            let Some(id) = tracker.issue(&[key], 1) else {
                assert_eq!(tracker.settle(key), Some(*lease));
                return true;
            };
            assert_eq!(tracker.settle(key), None);
            if lease % 16 == 0 {
                stuck.push(id);
            } else {
                release(&mut tracker, id.0, id.0).unwrap();
            }
            false
        });
        assert!(refused.is_some(), "the side list is bounded");
        assert_eq!(tracker.footprint(), (MIN_RING, bound));
        release(&mut tracker, stuck[0].0, stuck[0].0).unwrap();
        send(&mut tracker, 1);
    }
}

#[test]
fn the_table_reuses_entries_of_released_leases() {
    let mut tracker = tracker(8, 0);
    tracker.insert(0);
    for lease in 1..4 {
        let key = tracker.insert(lease);
        assert_eq!(key, LeaseKey(0));
        assert_eq!(tracker.settle(key), Some(lease));
    }
}

#[test]
fn release_all_keeps_leases_held_by_the_sender() {
    let mut tracker = tracker(4, 0);
    send(&mut tracker, 1);
    let key = tracker.insert(2);
    tracker.issue(&[key], 1).unwrap();
    let mut released = Vec::new();
    tracker.release_all(|lease: &mut Option<_>| released.extend(lease.take()));
    assert_eq!((released, tracker.leases()), (vec![1], 1));
    assert_eq!(tracker.settle(key), Some(2));
}

#[test]
fn no_issued_id_is_ambiguous_with_a_straggler() {
    let mut tracker = tracker(4, 0);
    let straggler = send(&mut tracker, 1);
    for _ in 0..MIN_RING {
        let id = send(&mut tracker, 2);
        release(&mut tracker, id.0, id.0).unwrap();
    }
    assert_eq!(tracker.footprint().1, 1, "the straggler is on the side list");
    // As after nearly 2^32 more calls, all released.
    let next = u64::from(u32::MAX) - 1;
    (tracker.ring_base, tracker.next) = (next, next);
    let last = send(&mut tracker, 3);
    let key = tracker.insert(4);
    assert_eq!(tracker.issue(&[key], 1), None);
    assert_eq!(release(&mut tracker, last.0, last.0), Ok(vec![3]));
    assert_eq!(tracker.issue(&[key], 1), None, "the straggler is as old as before");
    assert_eq!(release(&mut tracker, straggler.0, straggler.0), Ok(vec![1]));
    assert_eq!(tracker.issue(&[key], 1), Some(NotificationId(last.0 + 1)));
}

#[test]
fn a_full_ring_rejects_a_notification_of_the_next_id() {
    let mut tracker = tracker(8, 0);
    for lease in 0..FIRST_RING as u64 {
        send(&mut tracker, lease);
    }
    let next = tracker.next_id().0;
    assert_eq!(next - tracker.ring_base, tracker.footprint().0 as u64, "the ring is full");
    assert_eq!(release(&mut tracker, next, next), Err(UnknownIds));
    assert_eq!(release(&mut tracker, 0, next - 1), Ok(vec![0, 1]));
}

#[test]
fn the_alone_key_also_names_a_lease_in_the_table() {
    let mut tracker = tracker(8, 0);
    let key = tracker.insert(7);
    assert_eq!(key, ALONE);
    tracker.issue(&[key], 1).unwrap();
    tracker.issue(&[key], 1).unwrap();
    assert_eq!(tracker.table.len(), 1, "the second id moved the lease to the table");
    *tracker.get_mut(key) += 1;
    assert_eq!(release(&mut tracker, 0, 1), Ok(vec![]));
    assert_eq!(tracker.settle(key), Some(8));
}

#[test]
fn release_all_makes_cancel_and_trim_do_nothing() {
    let mut tracker = tracker(8, 0);
    let keys: Vec<_> = (0..2).map(|lease| tracker.insert(lease)).collect();
    let id = tracker.issue(&keys, 1).unwrap();
    tracker.release_all(|_: &mut Option<_>| unreachable!("the sender holds both leases"));
    tracker.trim(id, 1);
    assert!(!tracker.cancel(id));
    assert_eq!(tracker.next_id().0, id.0 + 1);
    assert_eq!((tracker.settle(keys[0]), tracker.settle(keys[1])), (Some(0), Some(1)));
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "assertion failed: run.len() == 1")]
fn a_covered_lease_is_issued_only_alone() {
    let mut tracker = tracker(8, 0);
    let keys: Vec<_> = (0..2).map(|lease| tracker.insert(lease)).collect();
    tracker.issue(&keys[..1], 1).unwrap();
    tracker.issue(&keys, 1);
}

#[test]
fn debug_output_tells_the_ids_in_flight() {
    let mut tracker = tracker(8, 5);
    send(&mut tracker, 1);
    assert_eq!(
        format!("{tracker:?}"),
        "CompletionTracker { oldest: Some(NotificationId(5)), next: 6, outstanding: 1, leases: 1, \
         stragglers: 0, .. }"
    );
}

/// A naive model of the bookkeeping.
#[derive(Default)]
struct Model {
    /// Leases and bytes of each id.
    outstanding: BTreeMap<u64, (Vec<u64>, u32)>,
    /// Leases held by the sender, with their keys, in order. A part of the first may be sent.
    unsettled: VecDeque<(u64, LeaseKey)>,
    part_sent: bool,
    entered: u64,
    next: u64,
}

impl Model {
    fn held(&self, lease: u64) -> bool {
        self.unsettled.iter().any(|(held, _)| *held == lease)
            || self.outstanding.values().any(|(run, _)| run.contains(&lease))
    }

    fn leases(&self) -> BTreeSet<u64> {
        let covered = self.outstanding.values().flat_map(|(run, _)| run).copied();
        covered.chain(self.unsettled.iter().map(|(lease, _)| *lease)).collect()
    }

    /// The ids of a notification, if all are outstanding.
    fn named(&self, lo: u32, hi: u32) -> Option<Vec<u64>> {
        let wanted = u64::from(hi.wrapping_sub(lo)) + 1;
        let start = self.outstanding.keys().find(|id| **id as u32 == lo)?;
        let ids: Vec<_> = self.outstanding.range(start..).map(|(id, _)| *id).collect();
        let whole = ids.iter().zip(*start..).take_while(|(id, want)| *id == want).count();
        (whole as u64 >= wanted).then(|| ids[..wanted as usize].to_vec())
    }

    /// Removes the ids. Returns the leases that lose their last hold, each once.
    fn release(&mut self, ids: impl IntoIterator<Item = u64>) -> (Vec<u64>, usize) {
        let gone: Vec<_> = ids.into_iter().filter_map(|id| self.outstanding.remove(&id)).collect();
        let bytes = gone.iter().map(|(_, bytes)| *bytes as usize).sum();
        let leases: BTreeSet<_> = gone.into_iter().flat_map(|(run, _)| run).collect();
        (leases.into_iter().filter(|lease| !self.held(*lease)).collect(), bytes)
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A number of buffers is queued for sending.
    Enter(usize),
    /// A call for at most `run` of the queued buffers. The kernel accepts `whole` of them, and
    /// perhaps a part of the next. With `early`, the notification comes before the call returns.
    Call { run: usize, bytes: u32, whole: usize, part: bool, early: bool },
    /// A failed call, perhaps after its id was used and notified.
    Fail { run: usize, used: bool },
    /// The queued buffers are given up.
    Withdraw,
    /// A notification for a span of ids, most often outstanding ones.
    Notification { at: usize, len: u64 },
    /// The last valid notification again.
    Again,
    /// A notification for arbitrary ids.
    Forged { lo: u32, len: u32 },
    /// A notification of some ids and the next, still unused, id.
    Ahead { len: u64 },
    /// Everything is released.
    All,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (1..5_usize).prop_map(Step::Enter),
        40 => (1..5_usize, 0..9_u32, 0..5_usize, any::<bool>(), any::<bool>()).prop_map(
            |(run, bytes, whole, part, early)| Step::Call { run, bytes, whole, part, early },
        ),
        10 => (1..5_usize, any::<bool>()).prop_map(|(run, used)| Step::Fail { run, used }),
        2 => Just(Step::Withdraw),
        50 => (0..64_usize, 1..6_u64).prop_map(|(at, len)| Step::Notification { at, len }),
        5 => Just(Step::Again),
        10 => (any::<u32>(), 0..100_u32).prop_map(|(lo, len)| Step::Forged { lo, len }),
        5 => (0..4_u64).prop_map(|len| Step::Ahead { len }),
        1 => Just(Step::All),
    ]
}

/// Few calls are released, so the ring grows and stragglers pile up.
fn laggard_step() -> impl Strategy<Value = Step> {
    let call = Step::Call { run: 1, bytes: 1, whole: 1, part: false, early: false };
    prop_oneof![
        10 => Just(Step::Enter(1)),
        10 => Just(call),
        9 => (0..64_usize, 1..2_u64).prop_map(|(at, len)| Step::Notification { at: at + 1, len }),
        1 => step(),
    ]
}

/// Near the points where a 32-bit counter wraps, and near its start.
fn first_id() -> impl Strategy<Value = u64> {
    (prop_oneof![Just(1_u64), Just(2), Just(1 << 20)], 0..80_u64)
        .prop_map(|(wraps, before)| (wraps << 32) - before)
        .boxed()
        .prop_union((0..3_u64).boxed())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256, failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn agrees_with_the_naive_model(
        first in first_id(),
        window in prop_oneof![Just(1_usize), Just(4), Just(64)],
        steps in prop_oneof![
            prop::collection::vec(step(), 1..200),
            prop::collection::vec(laggard_step(), 1..500),
        ],
    ) {
        let mut tracker = tracker(window, first);
        let mut model = Model { next: first, ..Model::default() };
        let mut last_note = None;
        for step in steps {
            match step {
                Step::Enter(count) => {
                    for lease in model.entered..model.entered + count as u64 {
                        let key = tracker.insert(lease);
                        prop_assert_eq!(*tracker.get_mut(key), lease);
                        model.unsettled.push_back((lease, key));
                    }
                    model.entered += count as u64;
                }
                Step::Call { run, bytes, whole, part, early } => {
                    let mut at_once = None;
                    if model.unsettled.is_empty() {
                        let lease = model.entered;
                        let key = if tracker.has_place() {
                            at_once = Some(tracker.insert_issued(|| lease, bytes));
                            ALONE
                        } else {
                            tracker.insert(lease)
                        };
                        prop_assert_eq!(*tracker.get_mut(key), lease);
                        model.unsettled.push_back((lease, key));
                        model.entered += 1;
                    }
                    // The unsent part of a buffer goes alone.
                    let run = if model.part_sent { 1 } else { run.min(model.unsettled.len()) };
                    let (names, keys): (Vec<_>, Vec<_>) =
                        model.unsettled.iter().take(run).copied().unzip();
                    let id = at_once.or_else(|| tracker.issue(&keys, bytes));
                    let Some(id) = id else {
                        let most = window.min(MAX_STRAGGLERS);
                        prop_assert_eq!(tracker.footprint().1, most, "only then");
                        continue;
                    };
                    prop_assert_eq!(id.0, model.next);
                    model.next += 1;
                    let whole = whole.min(run);
                    let covered = (whole + usize::from(part)).clamp(1, run);
                    model.outstanding.insert(id.0, (names[..covered].to_vec(), bytes));
                    if early {
                        // The sender still holds all leases of the run.
                        prop_assert_eq!(model.release([id.0]), (vec![], bytes as usize));
                        let got = tracker.release(id.0 as u32, id.0 as u32, |_: &mut Option<_>| unreachable!());
                        prop_assert_eq!(got.map(|released| released.bytes), Ok(bytes as usize));
                    }
                    tracker.trim(id, covered);
                    for (name, key) in model.unsettled.drain(..whole).collect::<Vec<_>>() {
                        let gone = tracker.settle(key);
                        prop_assert_eq!(gone, (!model.held(name)).then_some(name));
                    }
                    model.part_sent = covered > whole;
                }
                Step::Fail { run, used } => {
                    let run = if model.part_sent { 1 } else { run.min(model.unsettled.len()) };
                    let keys: Vec<_> =
                        model.unsettled.iter().take(run).map(|(_, key)| *key).collect();
                    if run == 0 { continue }
                    let Some(id) = tracker.issue(&keys, 7) else { continue };
                    if used {
                        let got = tracker.release(id.0 as u32, id.0 as u32, |_: &mut Option<_>| unreachable!());
                        prop_assert!(got.is_ok());
                        model.next += 1;
                    }
                    prop_assert_eq!(tracker.cancel(id), !used);
                }
                Step::Withdraw => {
                    model.part_sent = false;
                    for (name, key) in mem::take(&mut model.unsettled) {
                        let gone = tracker.settle(key);
                        prop_assert_eq!(gone, (!model.held(name)).then_some(name));
                    }
                }
                Step::Notification { at, len } => {
                    let Some(lo) = model.outstanding.keys().nth(at).copied() else { continue };
                    let ids = (lo as u32, (lo + len - 1) as u32);
                    if check_notification(&mut tracker, &mut model, ids)? {
                        last_note = Some(ids);
                    }
                }
                Step::Again => {
                    let Some(ids) = last_note else { continue };
                    prop_assert!(!check_notification(&mut tracker, &mut model, ids)?, "the ids are released");
                }
                Step::Forged { lo, len } => {
                    _ = check_notification(&mut tracker, &mut model, (lo, lo.wrapping_add(len)))?;
                }
                Step::Ahead { len } => {
                    let ids = (model.next.saturating_sub(len) as u32, model.next as u32);
                    prop_assert!(!check_notification(&mut tracker, &mut model, ids)?, "the last id is unused");
                }
                Step::All => {
                    let ids: Vec<_> = model.outstanding.keys().copied().collect();
                    let (want, _) = model.release(ids);
                    let mut got = Vec::new();
                    tracker.release_all(|lease: &mut Option<_>| got.extend(lease.take()));
                    got.sort_unstable();
                    prop_assert_eq!(got, want);
                }
            }
            prop_assert_eq!(tracker.next_id().0, model.next);
            prop_assert_eq!(tracker.outstanding(), model.outstanding.len());
            let oldest = tracker.oldest().map(|id| id.0);
            prop_assert_eq!(oldest, model.outstanding.keys().next().copied());
            prop_assert_eq!(tracker.is_idle(), model.outstanding.is_empty());
            check_places(&tracker)?;
            let (ring, stragglers) = tracker.footprint();
            prop_assert!(ring <= (4 * window).max(MIN_RING) && stragglers <= window);
            let leases: BTreeSet<_> = tracker.iter_mut().map(|lease| *lease).collect();
            prop_assert_eq!(&leases, &model.leases());
            prop_assert_eq!(tracker.leases(), leases.len());
        }
    }
}

/// Checks invariants 1 and 2 of the tracker, and its limit.
fn check_places(tracker: &CompletionTracker<u64>) -> Result<(), TestCaseError> {
    let &CompletionTracker { ref ring, ref stragglers, ring_base, next, holes, .. } = tracker;
    let in_ring = ring_base..next;
    prop_assert!(next - ring_base <= ring.len() as u64);
    let vacant = in_ring.clone().filter(|id| tracker.place(*id).is_vacant()).count();
    prop_assert_eq!(vacant as u64, holes);
    prop_assert!(in_ring.is_empty() || !tracker.place(ring_base).is_vacant());
    prop_assert!(stragglers.is_sorted_by_key(|(id, _)| *id));
    prop_assert!(stragglers.iter().all(|(id, place)| *id < ring_base && !place.is_vacant()));
    if !ring.is_empty() {
        let end = ring_base + ring.len() as u64;
        prop_assert_eq!(tracker.limit, if stragglers.is_empty() { end } else { 0 });
    }
    Ok(())
}

/// Passes a notification to tracker and model. Returns `true` if both accepted it.
fn check_notification(
    tracker: &mut CompletionTracker<u64>,
    model: &mut Model,
    (lo, hi): (u32, u32),
) -> Result<bool, TestCaseError> {
    let mut got = Vec::new();
    let result = tracker.release(lo, hi, |lease: &mut Option<_>| got.extend(lease.take()));
    let Some(ids) = model.named(lo, hi) else {
        prop_assert_eq!(result, Err(UnknownIds));
        prop_assert_eq!(got, Vec::<u64>::new());
        return Ok(false);
    };
    let Released { ids: range, bytes } = result.expect("all ids are outstanding");
    prop_assert_eq!((range.start.0, range.count()), (ids[0], ids.len() as u64));
    got.sort_unstable();
    prop_assert_eq!((got, bytes), model.release(ids));
    Ok(true)
}
