//! Runs the program and waits for its end.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;

/// A longer run is stuck. Debug builds on a busy machine need a part of it.
pub(crate) const STUCK: Duration = Duration::from_secs(120);
/// Starts a source slow enough to be disturbed.
pub(crate) fn start_slow(target: &str, more: &[&str]) -> Process {
    let mut args = vec!["send", target, "--memory=64M", "--rate-limit=4M"];
    args.extend(more);
    start(&args)
}

/// Starts a destination and returns its address in the form of `send`.
pub(crate) fn receive(address: &str, more: &[&str]) -> (Process, String) {
    let listen = format!("{address}:0");
    let mut args = vec!["receive", "--listen", &listen];
    args.extend(more);
    let mut process = start(&args);
    let line = process.until("listening on");
    let target = line.rsplit(' ').next().unwrap().to_string();
    (process, target)
}

/// A running program.
pub(crate) struct Process {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    lines: Receiver<String>,
    stderr: String,
}

/// The outcome of a run.
pub(crate) struct Done {
    pub(crate) status: Option<ExitStatus>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn run(args: &[&str]) -> Done {
    start(args).wait(STUCK)
}

pub(crate) fn start(args: &[&str]) -> Process {
    start_with(args, |_| ()).expect("the program starts")
}

pub(crate) fn start_with(args: &[&str], prepare: impl FnOnce(&mut Command)) -> io::Result<Process> {
    let mut command = Command::new(program());
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    prepare(&mut command);
    let mut child = command.spawn()?;
    let mut stdout = child.stdout.take().unwrap();
    let stdout = thread::spawn(move || {
        let mut text = String::new();
        let _ = stdout.read_to_string(&mut text);
        text
    });
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let (line, lines) = mpsc::channel();
    thread::spawn(move || {
        for text in stderr.lines().map_while(Result::ok) {
            let _ = line.send(text);
        }
    });
    Ok(Process { child, stdout: Some(stdout), lines, stderr: String::new() })
}

impl Process {
    /// Waits for a line of stderr with `text`.
    pub(crate) fn until(&mut self, text: &str) -> String {
        let until = Instant::now() + STUCK;
        loop {
            let line = self.lines.recv_timeout(until.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("no line `{text}` in:\n{}", self.stderr));
            self.stderr += &line;
            self.stderr.push('\n');
            if line.contains(text) {
                return line;
            }
        }
    }

    pub(crate) fn signal(&mut self, signal: libc::c_int) {
        let pid = self.child.id() as libc::pid_t;
        // SAFETY: `kill` takes plain numbers; the child has not been waited for, so the pid is
        // still valid.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// The number of sleeps of the main thread.
    #[cfg(target_os = "linux")]
    pub(crate) fn sleeps(&mut self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse().unwrap()
    }

    pub(crate) fn wait(mut self, patience: Duration) -> Done {
        let until = Instant::now() + patience;
        let mut status = None;
        while status.is_none() && Instant::now() < until {
            status = self.child.try_wait().unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        let stuck = status.is_none();
        if stuck {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let stdout = self.stdout.take().unwrap().join().unwrap();
        for line in self.lines.iter() {
            self.stderr += &line;
            self.stderr.push('\n');
        }
        let stderr = std::mem::take(&mut self.stderr);
        assert!(!stuck, "still running after {patience:?}:\n{stderr}");
        Done { status, stdout, stderr }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Done {
    #[track_caller]
    pub(crate) fn expect(&self, code: i32) {
        let got = self.status.and_then(|status| status.code());
        assert_eq!(got, Some(code), "{:?}\n{}{}", self.status, self.stdout, self.stderr);
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{e}:\n{}{}", self.stdout, self.stderr))
    }
}

/// The path of the program: beside the folder of this test's program, in cargo's layout or in a
/// copy of it, or where cargo built it.
pub(crate) fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let name = Path::new(crate::PROGRAM).file_name().unwrap();
    let beside = test.parent().and_then(Path::parent).map(|profile| profile.join(name));
    beside.filter(|path| path.exists()).unwrap_or_else(|| crate::PROGRAM.into())
}
