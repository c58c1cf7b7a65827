//! The program from the outside, also without zero copy.

#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_types, reason = "the library's sync shim is private to it")]
#![allow(dead_code, reason = "the tests of the migration use the rest")]

#[path = "../../migration_sender/tests/commands/lab.rs"]
mod lab;
#[path = "../../migration_sender/tests/commands/process.rs"]
mod process;

use std::{
    io::{self, Write},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::process::{Done, STUCK, program, run, start_with};

/// The program.
const PROGRAM: &str = env!("CARGO_BIN_EXE_pinbuf-doctor");

/// The status and the whole line of each check called `name`.
fn checks(json: &Value, name: &str) -> Vec<(String, String)> {
    let checks = json["checks"].as_array().unwrap().iter();
    let named = checks.filter(|check| check["name"] == name);
    named.map(|check| (check["status"].as_str().unwrap().to_owned(), check.to_string())).collect()
}

#[track_caller]
fn assert_check(json: &Value, name: &str, status: &str, says: &str) {
    let found = checks(json, name);
    let [(found_status, line)] = found.as_slice() else { panic!("{name}: {json:#}") };
    assert!(found_status == status && line.contains(says), "{name}: {line}");
}

fn doctor(args: &[&str]) -> Done {
    run(args)
}

/// Runs `doctor --json` after `prepare` in the new process; `None` if `prepare` failed.
fn doctor_after(
    args: &[&str],
    prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> Option<Done> {
    let args = [&["--json"], args].concat();
    let process = start_with(&args, |command| {
        // SAFETY: `pre_exec` allows calls that are safe between fork and exec: the given closures
        // only make system calls.
        unsafe { command.pre_exec(prepare) };
    });
    process.ok().map(|process| process.wait(STUCK))
}

fn skipped(test: &str, why: &str) {
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {why}");
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Moves to a new network namespace, with loopback down.
fn leave_network() -> io::Result<()> {
    // SAFETY: unshare(2) takes no pointers.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) }).map(drop)
}

#[test]
fn the_exit_code_follows_from_the_worst_line() {
    for peer in [&[][..], &["--peer", "tcp:127.0.0.1:4444"], &["--peer", "224.0.0.1"]] {
        let lax = doctor(&[&["--json"], peer].concat());
        let strict = doctor(&[&["--json", "--strict"], peer].concat());
        let any = |json: &Value, wanted: &[&str]| {
            let checks = json["checks"].as_array().unwrap().iter();
            checks.filter(|check| wanted.contains(&check["status"].as_str().unwrap())).count() > 0
        };
        let json = lax.json();
        lax.expect(if any(&json, &["fail"]) { 4 } else { 0 });
        assert_eq!(any(&json, &["fail"]), json["status"] == "fail");
        let json = strict.json();
        strict.expect(if any(&json, &["warn", "fail"]) { 4 } else { 0 });
        for check in json["checks"].as_array().unwrap() {
            assert_eq!(check["advice"].is_null(), check["status"] == "pass", "{check}");
        }
        assert_eq!(lax.stderr + &strict.stderr, "");
    }
}

#[test]
fn a_peer_on_this_machine_is_a_warning() {
    let done = doctor(&["--json", "--peer", "127.0.0.1"]);
    assert_check(&done.json(), "route", "warn", "lo (loopback, copies)");
    doctor(&["--strict", "--peer", "127.0.0.1"]).expect(4);
}

#[test]
fn an_impossible_peer_is_a_failure_with_a_reason() {
    let endless = "x".repeat(300);
    for (peer, says) in [
        ("224.0.0.1:4444", "no single peer"),
        ("0.0.0.0", "no single peer"),
        (&endless, "cannot resolve xxx"),
        ("", "cannot resolve"),
    ] {
        let done = doctor(&["--json", "--peer", peer]);
        done.expect(4);
        assert_check(&done.json(), "route", "fail", says);
    }
    let done = doctor(&["--peer", "224.0.0.1"]);
    done.expect(4);
    let lines: Vec<_> = done.stdout.lines().collect();
    assert!(lines.iter().any(|line| line.starts_with("FAIL    route: 224.0.0.1")), "{lines:?}");
    assert_eq!(lines[0].split_whitespace().nth(1), Some("kernel:"));
}

#[test]
#[cfg(target_endian = "little")]
fn a_kernel_without_zero_copy_is_a_failure() {
    let Ok(process) = start_with(&["--json"], lab::without_zerocopy) else {
        return skipped("a_kernel_without_zero_copy_is_a_failure", "no seccomp filter is possible");
    };
    let done = process.wait(STUCK);
    done.expect(4);
    let json = done.json();
    assert_check(&json, "zero copy over IPv4", "fail", "SO_ZEROCOPY is refused");
    assert_eq!(json["status"], "fail");
}

#[test]
#[cfg(target_endian = "little")]
fn a_filter_against_notifications_is_a_failure() {
    let Ok(process) = start_with(&["--json"], lab::without_reading) else {
        return skipped(
            "a_filter_against_notifications_is_a_failure",
            "no seccomp filter is possible",
        );
    };
    let done = process.wait(STUCK);
    done.expect(4);
    assert_check(&done.json(), "zero copy over IPv4", "fail", "cannot be read");
}

#[test]
fn a_missing_network_is_reported() {
    let peer = ["--peer", "192.0.2.7"];
    let Some(done) = doctor_after(&peer, leave_network) else {
        return skipped("a_missing_network_is_reported", "no user namespace is possible");
    };
    done.expect(4);
    let json = done.json();
    assert_check(&json, "interfaces", "warn", "lo (loopback, down, copies)");
    assert_check(&json, "interfaces", "warn", "ip link set lo up");
    assert_check(&json, "zero copy over IPv4", "unknown", "no connection over loopback");
    assert_check(&json, "isolation", "pass", "user namespace of its own");
    assert_check(&json, "route", "fail", "no route");
    assert_check(&json, "packet taps", "pass", "none");

    let done = doctor_after(&["--strict"], leave_network).unwrap();
    done.expect(4);
    doctor_after(&[], leave_network).unwrap().expect(0);
}

#[test]
fn the_doctor_reports_a_tap() {
    let open_tap = || {
        leave_network()?;
        let everything = libc::c_int::from((libc::ETH_P_ALL as u16).to_be());
        // SAFETY: socket(2) takes no pointers. The descriptor stays open across exec.
        check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, everything) }).map(drop)
    };
    let Some(done) = doctor_after(&[], open_tap) else {
        return skipped(
            "the_doctor_reports_a_tap",
            "no user namespace with packet sockets is possible",
        );
    };
    assert_check(&done.json(), "packet taps", "warn", "on all interfaces");
}

#[test]
fn virtual_interfaces_are_told_apart() {
    const NAME: &str = "virtual_interfaces_are_told_apart";
    const SET_UP: &str = "ip link set lo up && ip link add v0 type veth peer name v1 &&
        ip address add 10.9.0.1/24 dev v0 && ip link set v0 up && ip link set v1 up &&
        ip link add b0 type bridge && ip link add l0 link v0 type macvlan || exit 77";
    let through = |args: &str| {
        let script = format!("{SET_UP}; exec \"$0\" --json {args}");
        let mut command = Command::new("unshare");
        command.args(["-Urn", "sh", "-c", &script]).arg(program()).stdin(Stdio::null());
        command.output().ok().filter(|output| output.status.code().is_some_and(|code| code < 77))
    };
    let Some(output) = through("--peer 10.9.0.2") else {
        return skipped(NAME, "no namespace with virtual interfaces is possible");
    };
    if !output.stdout.starts_with(b"{") {
        return skipped(NAME, "no user namespace is possible");
    }
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let json = serde_json::from_slice(&output.stdout).unwrap();
    assert_check(&json, "route", "warn", "10.9.0.2 by v0 (veth, copies)");
    for says in
        ["lo (loopback, copies)", "v1 (veth, copies)", "b0 (bridge, down)", "l0 (macvlan, down)"]
    {
        assert_check(&json, "interfaces", "warn", says);
    }
    assert_check(&json, "zero copy over IPv4", "pass", "works");
}
