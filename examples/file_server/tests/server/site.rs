//! A folder to serve, and the program that serves it.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use crate::{
    client::Client,
    common::{eventually, pattern},
};

/// A folder of its own for each test, which ends with it.
pub(crate) struct Site {
    pub(crate) root: PathBuf,
    place: PathBuf,
}

impl Site {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pinbuf-file-server-{}-{number}", std::process::id());
        // The links of the way there would count as outside.
        let place = std::env::temp_dir().canonicalize().unwrap().join(name);
        let root = place.join("root");
        fs::create_dir_all(&root).unwrap();
        Self { root, place }
    }

    /// A folder with `bytes` bytes in the file `data`.
    pub(crate) fn with_data(bytes: usize) -> Self {
        let site = Self::new();
        site.write("data", &pattern(bytes, 1));
        site
    }

    /// Writes a file that was changed an hour ago.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }

    /// A folder beside the root.
    pub(crate) fn outside(&self) -> &Path {
        &self.place
    }

    /// Starts the server, and waits until it listens.
    pub(crate) fn serve(&self, more: &str) -> Server {
        self.start(Command::new(program()), more)
    }

    /// As `serve`, with so many descriptors allowed.
    pub(crate) fn serve_with_descriptors(&self, most: u32, more: &str) -> Server {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\"")]).arg(program());
        self.start(shell, more)
    }

    fn start(&self, mut command: Command, more: &str) -> Server {
        command.arg(&self.root).args(["--listen", "127.0.0.1:0"]).args(more.split_whitespace());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = child.stdout.take().unwrap();
        let log = thread::spawn(move || {
            let mut text = String::new();
            log.read_to_string(&mut text).unwrap();
            text
        });
        let mut notes = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        notes.read_line(&mut line).unwrap();
        let url = line.strip_prefix("listening on ").expect(&line).trim().to_owned();
        Server { child, url, notes, log: Some(log) }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.place);
    }
}

/// The path of the program: beside the folder of this test's program, in cargo's layout or in a copy of it,
/// or where cargo built it.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let beside = test.parent().and_then(Path::parent).map(|folder| folder.join("file_server"));
    beside.filter(|path| path.exists()).unwrap_or_else(|| env!("CARGO_BIN_EXE_file_server").into())
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    /// With a slash at the end.
    pub(crate) url: String,
    notes: BufReader<std::process::ChildStderr>,
    log: Option<JoinHandle<String>>,
}

/// The last words of a server.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) notes: String,
    pub(crate) log: String,
}

impl Server {
    pub(crate) fn address(&self) -> &str {
        self.url.split('/').nth(2).unwrap()
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// Sends a signal to the program.
    pub(crate) fn signal(&self, name: &str) {
        let words = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &words]).status().unwrap().success());
    }

    /// Waits for the note that the end has begun.
    pub(crate) fn await_the_end(&mut self) {
        let mut line = String::new();
        self.notes.read_line(&mut line).unwrap();
        assert!(line.starts_with("ending"), "{line}");
    }

    /// A number of bytes from a file of the process in `/proc`.
    pub(crate) fn number(&self, file: &str, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Ends the server by a signal.
    pub(crate) fn end(self) -> Ended {
        self.signal("TERM");
        self.ended()
    }

    /// The words of a server that ends.
    pub(crate) fn ended(mut self) -> Ended {
        let mut code = None;
        eventually("the server has ended", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        let mut notes = String::new();
        self.notes.read_to_string(&mut notes).unwrap();
        let log = self.log.take().unwrap().join().unwrap();
        Ended { code: code.unwrap().code(), notes, log }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// Asserts an end in order, with all buffers free.
    #[track_caller]
    pub(crate) fn in_order(self) -> String {
        assert!(self.notes.contains("ended in order"), "{}\n{}", self.notes, self.log);
        self.all_free()
    }

    /// Asserts that all buffers are free, and returns the log.
    #[track_caller]
    pub(crate) fn all_free(self) -> String {
        // Of each pool.
        let free = "free, 0 owned, 0 in flight, 0 quarantined; 0 mismatches";
        let (pools, clean) = (self.notes.matches("buffers:"), self.notes.matches(free));
        let (pools, clean) = (pools.count(), clean.count());
        assert!(pools > 0 && pools == clean, "{}\n{}", self.notes, self.log);
        assert_eq!(self.code, Some(0), "{}", self.notes);
        self.log
    }
}

/// Runs `body` on several threads, for each number below `count`.
pub(crate) fn at_once(count: usize, body: impl Fn(usize) + Send + Sync + 'static) {
    let body = Arc::new(body);
    let threads = (0..count).map(|number| {
        let body = Arc::clone(&body);
        thread::spawn(move || body(number))
    });
    for thread in Vec::from_iter(threads) {
        thread.join().unwrap();
    }
}
