//! The program with clients that are not ours, and with clients that read nothing.

use std::{
    env::temp_dir,
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio, id},
    time::Duration,
};

use socket2::SockRef;

/// A process that ends with the test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn broadcast() -> Command {
    Command::new(env!("CARGO_BIN_EXE_broadcast"))
}

/// An input of `frames` frames of 64 KiB and a short one.
fn input(name: &str, frames: usize) -> PathBuf {
    let path = temp_dir().join(format!("pinbuf-broadcast-{}-{name}", id()));
    let bytes = Vec::from_iter((0..frames * 65536 + 77).map(|at| (at / 251 + at) as u8));
    fs::write(&path, bytes).unwrap();
    path
}

/// Starts the server; returns the rest of its output and its address.
fn serve(input: &Path, options: &[&str]) -> (Ending, BufReader<ChildStdout>, String) {
    let mut command = broadcast();
    command.arg("serve").args(options).arg(input).stdout(Stdio::piped());
    let mut server = Ending(command.spawn().unwrap());
    let mut output = BufReader::new(server.0.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").expect(&line).to_owned();
    (server, output, address)
}

/// The server's report, after a clean end.
fn report(mut server: Ending, mut output: BufReader<ChildStdout>) -> String {
    let mut report = String::new();
    output.read_to_string(&mut report).unwrap();
    assert!(server.0.wait().unwrap().success(), "{report}");
    assert!(report.contains(" 0 owned, 0 in flight, 0 quarantined; 0 mismatches"), "{report}");
    report
}

fn sha256(path: &Path) -> String {
    let Output { stdout, .. } = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(stdout).unwrap().split(' ').next().unwrap().to_owned()
}

fn found(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok()
}

#[test]
fn clients_that_are_not_ours_get_the_whole_stream() {
    if !found("curl") {
        eprintln!("SKIPPED clients_that_are_not_ours_get_the_whole_stream: curl is not installed");
        return;
    }
    let input = input("whole", 40);
    // The lag is longer than the stream, so that a slow machine loses no client.
    let (server, output, address) = serve(&input, &["--clients", "3"]);
    let files = ["a", "b", "c"].map(|name| input.with_extension(name));
    let mut clients = files.each_ref().map(|file| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--http0.9", &format!("http://{address}/"), "-o"]).arg(file);
        Ending(curl.spawn().unwrap())
    });
    for client in &mut clients {
        assert!(client.0.wait().unwrap().success());
    }
    let report = report(server, output);
    assert!(
        report.contains("41 frames") && report.contains("3 clients served to the end"),
        "{report}"
    );
    for file in &files {
        assert_eq!(sha256(file), sha256(&input));
        fs::remove_file(file).unwrap();
    }
    fs::remove_file(input).unwrap();
}

#[test]
fn clients_that_read_nothing_are_cut_off_and_stop_nobody() {
    // More than a socket holds.
    let input = input("stall", 320);
    let len = fs::metadata(&input).unwrap().len();
    for late in ["frames", "client"] {
        let options = ["--clients", "60", "--lag", "64", "--rate", "400", "--late", late];
        let (server, output, address) = serve(&input, &options);
        let load =
            broadcast().args(["load", &address, "--clients", "60", "--stall", "10"]).output();
        let load = String::from_utf8(load.unwrap().stdout).unwrap();
        let report = report(server, output);
        let number = |text: &str, before: &str| -> u64 {
            text.split(before)
                .next()
                .unwrap()
                .rsplit([' ', '\n'])
                .next()
                .unwrap()
                .parse()
                .expect(text)
        };
        assert_eq!(number(&report, " frames of"), 321, "{report}");
        let (whole, cut) = (number(&report, " clients served"), number(&report, " cut off"));
        // On a slow machine a client that reads can be late too.
        assert!(cut >= 10 && whole + cut == 60, "{report}");
        assert_eq!(
            (number(&load, " clients read"), number(&load, " were cut")),
            (whole, cut),
            "{load}"
        );
        let lost = number(&report, " frames lost");
        if whole > 0 && lost == 0 {
            assert!(load.contains(&format!("{len} to {len} bytes")), "{load}");
        }
        assert!(late == "frames" || lost == 0, "{report}");
    }
    fs::remove_file(input).unwrap();
}

#[test]
fn clients_that_are_reset_before_their_accept_end_nothing() {
    let input = input("reset", 3);
    let (server, output, address) = serve(&input, &["--clients", "1"]);
    let signal = |name: &str| {
        let process = server.0.id().to_string();
        assert!(Command::new("kill").args([name, &process]).status().unwrap().success());
    };
    signal("-STOP");
    for _ in 0..50 {
        let client = TcpStream::connect(&address).unwrap();
        // The close is a reset.
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    }
    signal("-CONT");
    let mut got = Vec::new();
    TcpStream::connect(&address).unwrap().read_to_end(&mut got).unwrap();
    assert!(got == fs::read(&input).unwrap(), "{} bytes", got.len());
    assert!(report(server, output).contains("1 clients served to the end"));
    fs::remove_file(input).unwrap();
}

#[test]
fn a_lag_that_is_no_power_of_two_is_refused() {
    let input = input("refused", 0);
    let Output { stderr, .. } =
        broadcast().args(["serve", "--lag", "3"]).arg(&input).output().unwrap();
    assert!(String::from_utf8_lossy(&stderr).contains("must be a power of two"));
    fs::remove_file(input).unwrap();
}
