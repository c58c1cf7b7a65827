//! The program with receivers that are not ours.

#![allow(clippy::print_stderr, reason = "skips are for the reader of the output")]

use std::{
    env::temp_dir,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio, id},
};

/// A receiver in Python, which ends with the test.
struct Receiver {
    process: Child,
    output: BufReader<ChildStdout>,
    address: String,
    room: usize,
}

impl Receiver {
    fn start(host: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/receiver.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(host).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let first = line(&mut output);
        let (port, room) = first.split_once(' ').expect(&first);
        let address =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Self { process, output, address, room: room.parse().unwrap() }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

fn has_python(test: &str) -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED {test}: python3 is not installed");
    }
    found
}

fn input(name: &str, len: usize) -> PathBuf {
    let path = temp_dir().join(format!("pinbuf-datagrams-{}-{name}", id()));
    fs::write(&path, Vec::from_iter((0..len).map(|at| (at / 251 + at) as u8))).unwrap();
    path
}

fn datagrams(receivers: &[Receiver], options: &[&str], input: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_datagrams"));
    for receiver in receivers {
        command.args(["--to", &receiver.address]);
    }
    let Output { status, stdout, stderr } = command.args(options).arg(input).output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// The length of an input that the receivers hold unread: no load of the machine loses a datagram. A datagram
/// of 1,400 bytes takes less than 4 KiB there.
fn safe_len(receivers: &[Receiver]) -> usize {
    receivers.iter().map(|receiver| receiver.room).min().unwrap().min(16 << 20) / 4
}

#[test]
fn receivers_that_are_not_ours_get_the_whole_stream() {
    if !has_python("receivers_that_are_not_ours_get_the_whole_stream") {
        return;
    }
    for options in
        [&["--zerocopy", "prefer"][..], &["--zerocopy", "auto"], &["--zerocopy", "never"]]
    {
        let mut receivers = ["127.0.0.1", "127.0.0.2", "::1", "127.0.0.1"].map(Receiver::start);
        let len = safe_len(&receivers);
        let input = input("whole", len);
        let report = datagrams(&receivers, options, &input);
        let digest = report.split("sha256 ").nth(1).and_then(|rest| rest.lines().next());
        let digest = digest.expect(&report);
        for receiver in &mut receivers {
            assert_eq!(line(&mut receiver.output), format!("{len} {len} {digest}"), "{report}");
        }
        let Output { stdout, .. } = Command::new("sha256sum").arg(&input).output().unwrap();
        assert!(String::from_utf8(stdout).unwrap().starts_with(digest));
        assert!(report.contains(" 0 in flight, 0 quarantined; 0 mismatches"), "{report}");
        assert_eq!(report.contains("zero copy: 0 calls"), options.contains(&"never"), "{report}");
        fs::remove_file(input).unwrap();
    }
}

#[test]
fn a_receiver_that_is_gone_costs_the_others_nothing() {
    if !has_python("a_receiver_that_is_gone_costs_the_others_nothing") {
        return;
    }
    let mut receivers = [Receiver::start("127.0.0.1"), Receiver::start("127.0.0.1")];
    let len = safe_len(&receivers);
    let input = input("gone", len);
    receivers[0].process.kill().unwrap();
    receivers[0].process.wait().unwrap();
    let report = datagrams(&receivers, &[], &input);
    let last = line(&mut receivers[1].output);
    assert!(last.starts_with(&format!("{len} {len} ")), "{last}\n{report}");
    fs::remove_file(input).unwrap();
}
