//! The remains of a probe.

#![cfg(target_os = "linux")]

use std::fs;

use crate::common::process::alone;

#[test]
fn a_probe_leaves_no_descriptor_and_no_thread() {
    alone(|| {
        let count = |path: &str| fs::read_dir(path).unwrap().count();
        let all = || (count("/proc/self/fd"), count("/proc/self/task"));
        let before = all();
        for _ in 0..3 {
            let environment = pinbuf::probe::Environment::probe();
            assert_eq!(environment.checks().len(), 12);
            let _ = pinbuf::probe::Environment::route_to(([127, 0, 0, 1], 1).into());
        }
        assert_eq!(all(), before);
    });
}
