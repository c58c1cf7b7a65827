//! Events for subscribers of `tracing`.

use std::{
    collections::BTreeSet,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use tracing::{
    Id, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Record},
    subscriber::with_default,
};

use super::{
    super::{
        budget::MemlockBudget,
        fake::Answer::{Note, Take},
        report::CloseReport,
        telemetry::{Cause, Event, Scope},
    },
    *,
};
use crate::{
    error::{CopyReason, OsError, Poison},
    id::SenderId,
    lock::{Mutex, lock},
};

/// Of Linux.
const ENOBUFS: i32 = 105;
const ECONNRESET: i32 = 104;

/// One event: its name and level, and its fields in order.
#[derive(Clone, Debug)]
struct Told {
    name: &'static str,
    level: tracing::Level,
    fields: Vec<(&'static str, String)>,
}

impl Told {
    fn has(&self, field: &str, value: &str) -> bool {
        self.fields.iter().any(|(name, told)| *name == field && told == value)
    }
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.fields.push((field.name(), format!("{value:?}")));
    }
}

/// A subscriber that keeps all events of the sender, and then does something.
struct Witness {
    told: Arc<Mutex<Vec<Told>>>,
    then: Box<dyn Fn() + Send + Sync>,
}

impl Subscriber for Witness {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "pinbuf::sender"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let metadata = event.metadata();
        let (name, level) = (metadata.name(), *metadata.level());
        let mut told = Told { name, level, fields: Vec::new() };
        event.record(&mut told);
        lock(&self.told).push(told);
        (self.then)();
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The events of `body`.
fn told(body: impl FnOnce()) -> Vec<Told> {
    told_and_then(|| {}, body)
}

/// The events of `body`; the subscriber does `then` at each of them.
fn told_and_then(then: impl Fn() + Send + Sync + 'static, body: impl FnOnce()) -> Vec<Told> {
    let told = Arc::new(Mutex::new(Vec::new()));
    let witness = Witness { told: Arc::clone(&told), then: Box::new(then) };
    with_default(witness, body);
    lock(&told).clone()
}

fn names(told: &[Told]) -> Vec<&'static str> {
    told.iter().map(|told| told.name).collect()
}

#[test]
fn the_guide_lists_every_event_with_its_level_and_fields() {
    let report = CloseReport {
        drained: true,
        aborted: false,
        unacked_bytes: Some(0),
        quarantined: 0,
        error: Some(OsError::from_raw(1)),
    };
    let events = [
        Event::Mode(Some(CopyReason::Route)),
        Event::Backpressure(Cause::Window, 1),
        Event::Quarantined { payloads: 1 },
        Event::Poisoned(Poison::Unread),
        Event::Failed(OsError::from_raw(1)),
        Event::Closed(report),
    ];
    let told =
        told(|| events.iter().for_each(|event| Scope::current().tell(SenderId::new(1), *event)));
    let row = |Told { name, level, fields, .. }: &Told| {
        assert_eq!((fields[0].0, fields[1].0), ("message", "sender"));
        let fields: Vec<_> = fields[2..].iter().map(|(name, _)| format!("`{name}`")).collect();
        format!("//! | `{name}` | {level} | {} |", fields.join(", "))
    };
    let told: BTreeSet<_> = told.iter().map(row).collect();
    let (page, source) =
        (include_str!("../../guide/telemetry.rs"), include_str!("../telemetry.rs"));
    // A row is "name | level | fields | when |".
    let listed: BTreeSet<_> = (page.lines().filter(|line| line.matches(" | ").count() == 4))
        .filter(|line| line.starts_with("//! | `"))
        .map(|line| format!("{} |", line.rsplit_once(" | ").unwrap().0))
        .collect();
    assert_eq!(listed, told);
    // The first use is the definition.
    assert_eq!(source.matches("event!(").count() - 1, told.len(), "an event has no sample here");
    for cause in Cause::ALL {
        assert!(page.contains(&format!("//! | `{}` |", cause.name())), "{cause:?} has no row");
    }
}

fn buf() -> Arc<[u8]> {
    Arc::from([1; 4096])
}

#[test]
fn ten_thousand_sends_are_told_to_no_subscriber() {
    let kernel = FakeKernel::new(Transport::Stream, Note(false));
    let sender = kernel.sender(config());
    let small = kernel.sender(Config::default());
    let told = told(|| {
        for _ in 0..10_000 {
            sender.try_send(buf()).unwrap();
            small.try_send(buf()).unwrap();
        }
        sender.step().unwrap();
    });
    assert_eq!(sender.stats().released_calls, 10_000);
    assert_eq!(small.stats().copied_calls, 10_000);
    assert_eq!(names(&told), [""; 0]);
}

#[test]
fn ten_thousand_refusals_are_told_fourteen_times() {
    let kernel = FakeKernel::new(Transport::Stream, Fail(EAGAIN));
    let sender = kernel.sender(config());
    let told = told(|| (0..10_000).for_each(|_| _ = sender.try_send(buf()).unwrap_err()));
    assert_eq!(names(&told), ["backpressure"; 14]);
    assert!(told[0].has("limit", "\"SO_SNDBUF\"") && told[0].has("times", "1"), "{told:?}");
    assert!(told[13].has("times", "8192"), "{told:?}");
}

#[test]
fn every_limit_is_told_by_its_name() {
    /// One buffer more than the limit lets in.
    fn limits(
        kernel: &FakeKernel,
        budget: Option<usize>,
        optmem_max: u32,
        config: Config,
    ) -> String {
        let sender = kernel.sender_of(Arc::new(MemlockBudget::new(budget)), optmem_max, config);
        let told = told(|| (0..2).for_each(|_| _ = sender.try_send(buf())));
        told.iter().map(|told| told.fields[2].1.trim_matches('"')).collect::<Vec<_>>().join(", ")
    }
    let refusing = || stream([Take, Fail(ENOBUFS), Take]);
    let narrow = Config { max_in_flight_sends: 1, ..config() };
    assert_eq!(limits(&stream([Fail(EAGAIN)]), None, 1 << 20, config()), "SO_SNDBUF");
    assert_eq!(limits(&stream([]), None, 1 << 20, narrow), "max_in_flight");
    assert_eq!(limits(&stream([]), Some(3 * 4096), 1 << 20, config()), "memlock budget");
    assert_eq!(limits(&refusing(), None, 832, config()), "net.core.optmem_max");
    assert_eq!(limits(&refusing(), None, 1 << 20, config()), "RLIMIT_MEMLOCK");
    let pool = Pool::builder().class(4096, 4).sender_quota(1).build().unwrap();
    let sender = stream([]).sender(config());
    let told = told(|| (0..2).for_each(|_| _ = sender.try_send(filled(&pool))));
    assert!(told[0].has("limit", "\"sender_quota\""), "{told:?}");
}

#[test]
fn a_change_of_the_way_is_told_with_its_reason() {
    let kernel = FakeKernel::new(Transport::Stream, Note(true));
    let sender = kernel.sender(Config { observe_route: true, ..config() });
    let send = || {
        sender.try_send(buf()).unwrap();
        sender.step().unwrap();
    };
    let left = told(|| (0..3).for_each(|_| send()));
    assert_eq!(names(&left), ["mode"]);
    assert!(left[0].has("zero_copy", "false"), "{left:?}");
    assert!(left[0].has("reason", &CopyReason::Route.to_string()), "{left:?}");
    let kernel = stream([Note(false)]);
    let sender = kernel.sender(Config { observe_route: true, ..config() });
    let tried = told(|| {
        sender.try_send(buf()).unwrap();
        sender.step().unwrap();
    });
    assert_eq!((names(&tried), tried[0].fields.len()), (vec!["mode"], 3), "{tried:?}");
    assert!(tried[0].has("zero_copy", "true"), "{tried:?}");
    let kernel = stream([Fail(95)]);
    let sender = kernel.sender(config());
    let refused = told(|| _ = sender.try_send(buf()).unwrap());
    let reason = CopyReason::Refused(OsError::from_raw(95)).to_string();
    assert!(refused[0].has("reason", &reason), "{refused:?}");
}

#[test]
fn a_poison_is_told_with_the_quarantined_payloads() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    let told = told(|| {
        (0..2).for_each(|_| _ = sender.try_send(buf()).unwrap());
        (0..2).for_each(|_| kernel.note(7, 7));
        (0..2).for_each(|_| _ = sender.step().unwrap());
    });
    assert_eq!(names(&told), ["poisoned", "quarantined"]);
    assert!(told[0].has("cause", &Poison::UnknownIds { lo: 7, hi: 7 }.to_string()), "{told:?}");
    assert!(told[1].has("payloads", "2"), "{told:?}");
}

#[test]
fn a_failure_and_the_end_are_told_once() {
    let kernel = stream([Fail(ECONNRESET), Fail(ECONNRESET)]);
    let sender = kernel.sender(config());
    let told = told(|| {
        (0..2).for_each(|_| _ = sender.try_send(buf()).unwrap_err());
        let _ = sender.close(None);
    });
    assert_eq!(names(&told), ["failed", "closed"]);
    let error = OsError::from_raw(ECONNRESET).to_string();
    assert!(told[0].has("error", &error), "{told:?}");
    assert!(told[1].has("drained", "false") && told[1].has("error", &error), "{told:?}");
}

#[test]
fn the_end_of_a_dropped_sender_is_told_with_its_report() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    let told = told(|| {
        sender.try_send(buf()).unwrap();
        Arc::clone(&sender).leave(true);
        kernel.release();
        sender.step().unwrap();
    });
    assert_eq!(names(&told), ["closed"]);
    assert!(told[0].has("drained", "true") && told[0].has("aborted", "false"), "{told:?}");
}

#[test]
fn an_end_that_another_look_finds_is_told() {
    let kernel = stream([]);
    let sender = kernel.sender(config());
    kernel.with(|state| state.is_over = true);
    let told = told(|| (0..2).for_each(|_| _ = sender.reap().unwrap()));
    assert_eq!(names(&told), ["failed"]);
}

#[test]
fn a_subscriber_may_use_the_sender() {
    promptly(|| {
        let kernel = stream([Fail(EAGAIN)]);
        let sender = kernel.sender(config());
        let inner = Arc::clone(&sender);
        let then = move || {
            assert_eq!(inner.stats().leases, 0, "a refused buffer is no lease");
            inner.try_send(buf()).unwrap();
            inner.step().unwrap();
        };
        let told = told_and_then(then, || _ = sender.try_send(buf()).unwrap_err());
        assert_eq!(names(&told), ["backpressure"]);
        assert_eq!(sender.stats().in_flight_calls, 1);
    });
}

#[test]
fn a_panic_of_a_subscriber_loses_nothing() {
    promptly(|| {
        let kernel = stream([]);
        let sender = kernel.sender(config());
        let pool = pool();
        sender.try_send(filled(&pool)).unwrap();
        let ticket = sender.try_send(buf()).unwrap();
        let woken = Arc::new(AtomicBool::new(false));
        let waker = Waker::from(Arc::new(Nosy(Arc::clone(&sender), Arc::clone(&woken))));
        assert!(sender.poll_fate(&mut Context::from_waker(&waker), ticket).is_pending());
        let told = told_and_then(
            || panic!("the subscriber's own"),
            || {
                kernel.release();
                kernel.note(9, 9);
                let step = catch_unwind(AssertUnwindSafe(|| sender.step()));
                assert!(step.is_err(), "the panic reaches the caller");
            },
        );
        assert_eq!(names(&told), ["poisoned", "quarantined"], "the second event is told too");
        assert!(woken.load(Ordering::Relaxed));
        assert_eq!(pool.stats().free(), 1);
        assert_eq!(sender.fate(ticket), Ok(Some(Fate::Quarantined)));
        sender.try_send(buf()).expect("the sender goes on by copy");
    });
}
