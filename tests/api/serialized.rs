//! Counters and reports in the form of the feature `serde`.

use std::time::Duration;

use pinbuf::{
    Policy, Pool, Sender, error::OsError, probe::Environment, reaper, sender::CopyReason,
};
use serde_json::{Value, json, to_value};

use crate::common;

#[test]
fn the_counters_and_reports_of_a_send_have_the_names_of_their_fields() {
    let pool = Pool::new(4096, 2).unwrap();
    let (near, far) = common::pair();
    let far = common::reader(far, Duration::ZERO);
    let mut sender = Sender::builder().policy(Policy::Never).adopt(near).unwrap();
    let mut buf = pool.try_alloc(5).unwrap();
    buf.extend_from_slice(b"hello");
    let ticket = sender.send(buf).unwrap();
    let fate = to_value(sender.fate(ticket).unwrap()).unwrap();
    assert_eq!(fate, json!({ "Released": { "accepted": 5, "copied": true } }));
    assert_eq!(
        to_value(sender.capabilities()).unwrap(),
        json!({ "supported": false, "reason": "Policy" })
    );
    let stats = to_value(sender.stats()).unwrap();
    assert_eq!((&stats["copied_bytes"], &stats["route"]["mode"]), (&json!(5), &json!("Ignored")));

    let report = to_value(sender.close(Some(Duration::from_secs(60)))).unwrap();
    assert_eq!((&report["drained"], &report["error"]), (&json!(true), &Value::Null));
    assert_eq!(far.join().unwrap(), b"hello");

    let audit = to_value(pool.audit()).unwrap();
    assert_eq!(audit["stats"]["classes"][0]["free"], 2);
    assert_eq!(audit["mismatches"], json!([]));
    let region = to_value(pool.region()).unwrap();
    assert!(region["pages"].is_string() || region["pages"].is_object(), "{region}");
    assert!(to_value(reaper::stats()).unwrap()["owned"].is_u64());
}

#[cfg(feature = "histogram")]
#[test]
fn release_times_are_serialized_as_quantiles_in_nanoseconds() {
    let times = to_value(pinbuf::sender::ReleaseTimes::default()).unwrap();
    let names = ["count", "max_ns", "p50_ns", "p90_ns", "p999_ns", "p99_ns", "total_ns"];
    assert_eq!(times.as_object().unwrap().keys().collect::<Vec<_>>(), names);
    assert_eq!(times["p99_ns"], 0);
}

#[test]
fn an_error_number_is_the_number() {
    assert_eq!(to_value(OsError::from_raw(104)).unwrap(), 104);
    assert_eq!(
        to_value(CopyReason::Refused(OsError::from_raw(1))).unwrap(),
        json!({ "Refused": 1 })
    );
}

#[test]
fn the_state_of_the_machine_is_serialized_with_all_checks() {
    let environment = Environment::probe();
    assert!(to_value(&environment).unwrap()["kernel"]["major"].is_u64());
    let checks = to_value(environment.checks()).unwrap();
    assert_eq!((&checks[0]["name"], checks.as_array().unwrap().len()), (&json!("kernel"), 12));
}
