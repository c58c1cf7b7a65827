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

/// A running QEMU without a disk. Without a kernel its guest is the firmware.
pub(crate) struct Machine {
    child: Child,
    pub(crate) socket: PathBuf,
    log: PathBuf,
}

/// The command line of a machine.
#[derive(Default)]
pub(crate) struct Launch<'a> {
    /// The name of the test.
    pub(crate) name: &'a str,
    /// Arguments of QEMU, separated by blanks.
    pub(crate) arguments: &'a str,
    /// Further arguments, blanks included.
    pub(crate) more: &'a [&'a str],
    /// Inherited by the machine.
    pub(crate) stdin: Option<Stdio>,
    /// A library for `LD_PRELOAD`.
    pub(crate) library: Option<&'a Path>,
    /// The program [default: the variable `QEMU`, or the distribution's].
    pub(crate) qemu: Option<String>,
}

impl Launch<'_> {
    /// Starts QEMU. `None`, with a word to the user, without QEMU.
    pub(crate) fn start(self) -> Option<Machine> {
        let Self { name, arguments, more, stdin, library, qemu } = self;
        let place = env::temp_dir().join(format!("pinbuf-hypervisor-{}-{name}", process::id()));
        let (socket, log) = (place.with_extension("qmp"), place.with_extension("log"));
        let qemu = qemu.or(env::var("QEMU").ok()).unwrap_or("qemu-system-x86_64".into());
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
            .args(more)
            .stdin(stdin.unwrap_or_else(Stdio::null))
            .stderr(fs::File::create(&log).unwrap())
            .spawn();
        let Ok(child) = child else {
            println!("SKIPPED hypervisor::{name}: no QEMU; install qemu-system-x86");
            return None;
        };
        let mut machine = Machine { child, socket, log };
        while UnixStream::connect(&machine.socket).is_err() {
            assert!(machine.child.try_wait().unwrap().is_none(), "{}", machine.log());
            thread::sleep(Duration::from_millis(5));
        }
        Some(machine)
    }
}

impl Machine {
    /// Starts QEMU with further arguments, separated by blanks. `None`, with a word to the user,
    /// without QEMU.
    pub(crate) fn start(name: &str, arguments: &str) -> Option<Self> {
        Launch { name, arguments, ..Launch::default() }.start()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|end| end.is_none())
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
