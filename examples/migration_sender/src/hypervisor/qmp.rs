//! A client of QMP, the machine protocol of QEMU, over a unix socket.
//!
//! The hypervisor sends lines of JSON:
//!
//! | line     | the client                                                              |
//! |----------|-------------------------------------------------------------------------|
//! | greeting | waits for it in [`Qmp::connect`], and leaves negotiation                 |
//! | answer   | compares its `id` with the command's                                     |
//! | event    | skips it                                                                |
//! | other    | ends the conversation: later answers could belong to earlier commands    |
//!
//! A guest cannot write to the socket, but a broken or foreign server can: a line has a longest
//! length, and every command a time limit.

use std::{
    fmt,
    io::{self, ErrorKind, Read, Write},
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    failure::{Code, Failure},
    sys,
};

/// The longest line. The longest answer of QEMU 10, the schema, has some 200 KB.
const MAX_LINE: usize = 4 << 20;

/// A connection to the monitor of a hypervisor.
#[derive(Debug)]
pub struct Qmp {
    path: PathBuf,
    socket: UnixStream,
    /// Bytes behind the last line.
    unread: Vec<u8>,
    /// The number of the last command.
    id: u64,
    timeout: Duration,
    version: Version,
    /// An answer is missing or makes no sense, so the next one has no certain command.
    broken: bool,
}

/// The version of QEMU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Version {
    pub major: u64,
    pub minor: u64,
}

impl Qmp {
    /// Connects to the socket of QEMU's `-qmp unix:PATH,server=on,wait=off`. Every command has to
    /// be answered within `timeout`.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, QmpError> {
        let socket = UnixStream::connect(path).map_err(|error| QmpError {
            path: path.into(),
            command: "connect".into(),
            cause: Cause::Io(error),
        })?;
        let version = Version::default();
        let (path, unread) = (path.into(), Vec::new());
        let mut qmp = Self { path, socket, unread, id: 0, timeout, version, broken: false };
        let greeting = qmp.line(Instant::now() + timeout);
        qmp.version = greeting
            .and_then(|line| {
                let version = &line["QMP"]["version"]["qemu"];
                match (version["major"].as_u64(), version["minor"].as_u64()) {
                    (Some(major), Some(minor)) => Ok(Version { major, minor }),
                    _ => Err(Cause::Malformed(excerpt(&line))),
                }
            })
            .map_err(|cause| qmp.error("greeting", cause))?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// The path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version in the greeting.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The process that made the listener. With a descriptor handed down by a manager, as in
    /// libvirt, the manager.
    pub fn peer_pid(&self) -> io::Result<i32> {
        sys::peer_pid(&self.socket)
    }

    /// Runs a command and returns its answer.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.run(command, arguments, None)
    }

    /// Gives the hypervisor a descriptor, known to it as `name` from then on.
    pub fn getfd(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        self.run("getfd", json!({ "fdname": name }), Some(fd)).map(drop)
    }

    fn run(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let outcome = match self.broken {
            true => Err(Cause::Broken),
            false => self.converse(command, arguments, fd),
        };
        outcome.map_err(|cause| {
            self.broken |= !matches!(cause, Cause::Refused { .. });
            self.error(command, cause)
        })
    }

    fn converse(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, Cause> {
        let deadline = Instant::now() + self.timeout;
        self.id += 1;
        let command = json!({ "execute": command, "arguments": arguments, "id": self.id });
        let command = command.to_string();
        self.socket.set_write_timeout(Some(self.timeout))?;
        let sent = match fd {
            Some(fd) => sys::send_with_fd(&self.socket, command.as_bytes(), fd)?,
            None => 0,
        };
        self.socket.write_all(&command.as_bytes()[sent..])?;
        loop {
            let mut line = self.line(deadline)?;
            if line["event"].is_string() {
                continue;
            }
            // An error in the command's syntax is answered without a number.
            let is_ours =
                line["id"] == self.id || (line["id"].is_null() && line["error"].is_object());
            if is_ours && let Some(value) = line.get_mut("return") {
                return Ok(value.take());
            }
            let text = |name| line["error"][name].as_str().map(str::to_owned);
            return Err(match (is_ours, text("class"), text("desc")) {
                (true, Some(class), Some(desc)) => Cause::Refused { class, desc },
                _ => Cause::Malformed(excerpt(&line)),
            });
        }
    }

    /// The next line.
    fn line(&mut self, deadline: Instant) -> Result<Value, Cause> {
        let mut seen = 0;
        loop {
            if let Some(end) = self.unread[seen..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=seen + end).collect();
                return serde_json::from_slice(&line)
                    .map_err(|error| Cause::Malformed(error.to_string()));
            }
            seen = self.unread.len();
            if seen > MAX_LINE {
                return Err(Cause::Malformed(format!("a line of more than {MAX_LINE} bytes")));
            }
            self.read(deadline)?;
        }
    }

    fn read(&mut self, deadline: Instant) -> Result<(), Cause> {
        let mut bytes = [0; 16 << 10];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Cause::Silent(self.timeout));
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(&mut bytes) {
                Ok(0) => return Err(Cause::Closed),
                Ok(len) => {
                    self.unread.extend_from_slice(&bytes[..len]);
                    return Ok(());
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn error(&self, command: &str, cause: Cause) -> QmpError {
        QmpError { path: self.path.clone(), command: command.into(), cause }
    }
}

/// The beginning of an unexpected line, for a message.
fn excerpt(line: &Value) -> String {
    line.to_string().chars().take(200).collect()
}

/// A failed command of a monitor.
#[derive(Debug)]
pub struct QmpError {
    path: PathBuf,
    command: String,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Io(io::Error),
    Closed,
    Silent(Duration),
    Malformed(String),
    Broken,
    Refused { class: String, desc: String },
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl QmpError {
    /// The hypervisor's description, if it understood the command and refused.
    pub fn refusal(&self) -> Option<&str> {
        match &self.cause {
            Cause::Refused { desc, .. } => Some(desc),
            _ => None,
        }
    }

    /// Returns `true` if the hypervisor lacks the command.
    pub fn is_unknown_command(&self) -> bool {
        matches!(&self.cause, Cause::Refused { class, .. } if class == "CommandNotFound")
    }

    /// Returns `true` if the hypervisor closed the connection: it has ended or crashed.
    pub fn is_closed(&self) -> bool {
        matches!(self.cause, Cause::Closed)
    }
}

impl fmt::Display for QmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QMP {}: {}: ", self.path.display(), self.command)?;
        match &self.cause {
            Cause::Io(error) if self.command == "connect" => {
                write!(f, "{error}; start QEMU with -qmp unix:PATH,server=on,wait=off")
            }
            Cause::Io(error) => error.fmt(f),
            Cause::Closed => f.write_str("the hypervisor closed the connection: has it ended?"),
            Cause::Silent(timeout) if self.command == "greeting" => write!(
                f,
                "no greeting within {} s: a monitor serves one program at a time; \
                 start QEMU with a second -qmp, or end the other program",
                timeout.as_secs()
            ),
            Cause::Silent(timeout) => write!(f, "no answer within {} s", timeout.as_secs()),
            Cause::Malformed(what) => write!(f, "this is not QMP: {what}"),
            Cause::Broken => f.write_str("an earlier answer is missing, so no more are asked for"),
            Cause::Refused { class, desc } => write!(f, "{desc} ({class})"),
        }
    }
}

impl std::error::Error for QmpError {}

impl From<QmpError> for Failure {
    fn from(error: QmpError) -> Self {
        Self::new(Code::Io, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{BufRead, BufReader},
        os::{
            fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
            unix::{fs::MetadataExt, net::UnixListener},
        },
        process, thread,
    };

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}"#;
    const SOON: Duration = Duration::from_millis(200);
    const LATER: Duration = Duration::from_secs(60);

    /// A monitor that says the lines of `script`, one after every command; the first is the
    /// greeting. `#` stands for the number of the command.
    fn monitor<T>(name: &str, script: &[&str], test: impl FnOnce(&Path) -> T) -> T {
        let path = std::env::temp_dir().join(format!("pinbuf-qmp-{}-{name}", process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let outcome = thread::scope(|scope| {
            scope.spawn(move || {
                let (mut socket, _) = listener.accept().unwrap();
                let mut commands = BufReader::new(socket.try_clone().unwrap());
                let mut command = String::new();
                for line in script {
                    let id: Value = serde_json::from_str(&command).unwrap_or_default();
                    let _ = socket.write_all(line.replace('#', &id["id"].to_string()).as_bytes());
                    // A command has no end of line, so its end is its last brace.
                    command.clear();
                    while command.is_empty() || serde_json::from_str::<Value>(&command).is_err() {
                        let Ok(bytes) = commands.fill_buf() else { return };
                        if bytes.is_empty() {
                            return;
                        }
                        command.push_str(std::str::from_utf8(bytes).unwrap());
                        let len = bytes.len();
                        commands.consume(len);
                    }
                }
            });
            test(&path)
        });
        std::fs::remove_file(path).unwrap();
        outcome
    }

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| format!("{line}\r\n")).collect()
    }

    /// The outcome of one command after the usual beginning.
    fn answered(name: &str, answer: &str, timeout: Duration) -> Result<Value, QmpError> {
        let script = lines(&[GREETING, r#"{"return": {}, "id": #}"#]);
        monitor(name, &[&script[0], &script[1], answer], |path| {
            let mut qmp = Qmp::connect(path, timeout)?;
            assert_eq!(qmp.version(), Version { major: 7, minor: 2 });
            let outcome = qmp.execute("query-status", json!({}));
            if outcome.as_ref().is_err_and(|error| error.refusal().is_none()) {
                let again = qmp.execute("query-status", json!({})).unwrap_err().to_string();
                assert!(again.contains("an earlier answer is missing"), "{again}");
            }
            outcome
        })
    }

    #[test]
    fn events_before_an_answer_are_skipped() {
        let answer = "{\"event\": \"STOP\", \"timestamp\": {}}\r\n{\"return\": {\"running\": true}, \
                      \"id\": #}\r\n";
        assert_eq!(answered("events", answer, LATER).unwrap(), json!({ "running": true }));
    }

    #[test]
    fn a_refusal_has_class_and_description_and_the_connection_goes_on() {
        let answer =
            "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no such\"}, \"id\": #}\n";
        let error = answered("refusal", answer, LATER).unwrap_err();
        assert_eq!(error.refusal(), Some("no such"));
        assert!(error.is_unknown_command() && !error.is_closed());
        assert!(error.to_string().ends_with("query-status: no such (CommandNotFound)"), "{error}");
    }

    #[test]
    fn odd_answers_end_the_conversation() {
        let deep = "[".repeat(100_000);
        for (number, answer) in [
            "nonsense\n",
            "{}\n",
            "[]\n",
            "7\n",
            "\n",
            "\u{0}\n",
            &deep,
            "{\"return\": {}}\n",
            "{\"return\": {}, \"id\": 77}\n",
            "{\"error\": {\"class\": \"A\"}, \"id\": #}\n",
            "{\"error\": {\"class\": \"A\", \"desc\": \"b\"}, \"id\": 77}\n",
            "{\"error\": 1, \"id\": #}\n",
        ]
        .into_iter()
        .enumerate()
        {
            let answer = format!("{answer}\n");
            let error = answered(&format!("odd-{number}"), &answer, LATER).unwrap_err();
            assert!(error.to_string().contains("this is not QMP"), "{answer}: {error}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit() {
        let error = answered("long", &"x".repeat(MAX_LINE + (64 << 10)), LATER).unwrap_err();
        assert!(error.to_string().contains("more than 4194304 bytes"), "{error}");
    }

    #[test]
    fn a_silent_monitor_runs_into_the_time_limit() {
        let error = answered("silent", "{\"return\"", SOON).unwrap_err();
        assert!(error.to_string().contains("no answer within"), "{error}");
        let error = monitor("no-greeting", &[""], |path| Qmp::connect(path, SOON)).unwrap_err();
        assert!(error.to_string().contains("one program at a time"), "{error}");
    }

    #[test]
    fn a_closed_connection_is_told_from_silence() {
        let error = monitor("closed", &[], |path| Qmp::connect(path, LATER)).unwrap_err();
        assert!(error.is_closed(), "{error}");
    }

    #[test]
    fn a_greeting_of_something_else_is_refused() {
        for (number, greeting) in ["SSH-2.0\r\n", "{\"QMP\": {}}\n"].iter().enumerate() {
            let name = format!("greeting-{number}");
            let error = monitor(&name, &[greeting], |path| Qmp::connect(path, LATER)).unwrap_err();
            assert!(error.to_string().contains("greeting: this is not QMP"), "{error}");
        }
        let error = Qmp::connect(Path::new("/nonexistent/qmp"), LATER).unwrap_err().to_string();
        assert!(error.contains("start QEMU with -qmp unix:PATH"), "{error}");
    }

    #[test]
    fn a_descriptor_arrives_with_its_command() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = File::open("/dev/zero").unwrap();
        let sent = sys::send_with_fd(&ours, b"getfd", file.as_fd()).unwrap();
        assert_eq!(sent, 5);
        let received = receive_fd(&theirs);
        assert_eq!(
            File::from(received).metadata().unwrap().rdev(),
            file.metadata().unwrap().rdev()
        );
        assert_eq!(sys::peer_pid(&ours).unwrap(), process::id() as i32);
    }

    fn receive_fd(socket: &UnixStream) -> OwnedFd {
        let (mut bytes, mut control) = ([0_u8; 64], [0_u64; 4]);
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: an all-zero `msghdr` is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: recvmsg(2) writes to the part and the control data, both alive and large enough.
        let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
        assert_eq!(len, 5);
        // SAFETY: the kernel has filled in one header of SCM_RIGHTS, at the start of `control`.
        let data = unsafe { libc::CMSG_DATA(control.as_ptr().cast()) };
        // SAFETY: four bytes of data follow the header.
        let fd = unsafe { data.cast::<i32>().read_unaligned() };
        // SAFETY: the kernel has just made this descriptor, and this is its only owner.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }
}
