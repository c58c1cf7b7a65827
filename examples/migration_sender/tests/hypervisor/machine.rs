//! A QEMU of a test.

use std::{
    env, fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::Duration,
};

/// Generous: only a hang runs into it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const MAX_STATE: usize = 16 << 20;

/// A running QEMU without a disk. Its guest is the firmware, which looks for one in vain.
pub(crate) struct Machine {
    child: Child,
    pub(crate) socket: PathBuf,
    log: PathBuf,
}

impl Machine {
    /// Starts QEMU with further arguments, separated by blanks. `None`, with a word to the user,
    /// without QEMU.
    pub(crate) fn start(name: &str, arguments: &str) -> Option<Self> {
        Self::started(name, arguments, Stdio::null())
    }

    /// As `start`; the machine inherits `stdin`.
    pub(crate) fn started(name: &str, arguments: &str, stdin: Stdio) -> Option<Self> {
        Self::preloaded(name, arguments, stdin, None)
    }

    /// As `started`, with a library for `LD_PRELOAD`.
    pub(crate) fn preloaded(
        name: &str,
        arguments: &str,
        stdin: Stdio,
        library: Option<&Path>,
    ) -> Option<Self> {
        let place = env::temp_dir().join(format!("pinbuf-hypervisor-{}-{name}", process::id()));
        let (socket, log) = (place.with_extension("qmp"), place.with_extension("log"));
        let qemu = env::var("QEMU").unwrap_or("qemu-system-x86_64".into());
        let mut words = qemu.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or_default());
        if let Some(library) = library {
            command.env("LD_PRELOAD", library);
        }
        let child = command
            .args(words)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .args(arguments.split_whitespace())
            .stdin(stdin)
            .stderr(fs::File::create(&log).unwrap())
            .spawn();
        let Ok(child) = child else {
            println!("SKIPPED hypervisor::{name}: no QEMU; install qemu-system-x86");
            return None;
        };
        let mut machine = Self { child, socket, log };
        while UnixStream::connect(&machine.socket).is_err() {
            assert!(machine.child.try_wait().unwrap().is_none(), "{}", machine.log());
            thread::sleep(Duration::from_millis(5));
        }
        Some(machine)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Ends the machine as a crash does.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The standard error of QEMU.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.log);
    }
}

/// A file of memory, removed at the end.
pub(crate) struct MemoryFile(pub(crate) PathBuf);

impl MemoryFile {
    pub(crate) fn new(name: &str) -> Self {
        Self(PathBuf::from(format!("/dev/shm/pinbuf-hypervisor-{}-{name}", process::id())))
    }

    /// The arguments for a machine with `size` bytes of this memory, named `id`.
    pub(crate) fn arguments(&self, id: &str, size: &str) -> String {
        format!(
            "-m {size} -machine pc,memory-backend={id} \
             -object memory-backend-file,id={id},size={size},mem-path={},share=on",
            self.0.display()
        )
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
