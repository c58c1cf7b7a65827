//! The surroundings of the runs: files, a corrupting relay, a kernel without zero copy.

use std::{
    ffi::CString,
    fs, io,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

/// A TCP relay with optional changes of bytes from the source to the destination.
pub(crate) struct Relay {
    pub(crate) target: String,
}

impl Relay {
    /// `change` gets the number of the connection, the position in its stream, and the byte.
    pub(crate) fn start(
        target: &str,
        change: impl Fn(usize, u64, &mut u8) + Send + Clone + 'static,
    ) -> Self {
        let to = target.strip_prefix("tcp:").unwrap().to_string();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = format!("tcp:{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for (channel, source) in listener.incoming().enumerate() {
                let source = source.unwrap();
                let destination = TcpStream::connect(&to).unwrap();
                let change = change.clone();
                let back = (destination.try_clone().unwrap(), source.try_clone().unwrap());
                thread::spawn(move || pass(source, destination, |p, b| change(channel, p, b)));
                thread::spawn(move || pass(back.0, back.1, |_, _| ()));
            }
        });
        Self { target }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, change: impl Fn(u64, &mut u8)) {
    let mut buf = vec![0; 64 << 10];
    let mut position = 0;
    while let Ok(n @ 1..) = from.read(&mut buf) {
        for byte in &mut buf[..n] {
            change(position, byte);
            position += 1;
        }
        if to.write_all(&buf[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Makes setsockopt(SOL_SOCKET, SO_ZEROCOPY) fail with EOPNOTSUPP in the child.
#[cfg(all(target_os = "linux", target_endian = "little"))]
pub(crate) fn without_zerocopy(command: &mut Command) {
    const SO_ZEROCOPY: u32 = 60;
    let arguments = [(1, libc::SOL_SOCKET as u32), (2, SO_ZEROCOPY)];
    refuse(command, libc::SYS_setsockopt, &arguments, libc::EOPNOTSUPP);
}

/// Hides the error queue from the child.
#[cfg(all(target_os = "linux", target_endian = "little"))]
pub(crate) fn without_notes(command: &mut Command) {
    refuse(command, libc::SYS_recvmmsg, &[], libc::EAGAIN);
}

/// Refuses all reads of the error queue in the child.
#[allow(dead_code, reason = "the doctor's test uses it")]
#[cfg(all(target_os = "linux", target_endian = "little"))]
pub(crate) fn without_reading(command: &mut Command) {
    refuse(command, libc::SYS_recvmmsg, &[], libc::EPERM);
}

/// Makes a system call fail in the child if the arguments named by position have these values.
#[cfg(all(target_os = "linux", target_endian = "little"))]
fn refuse(command: &mut Command, call: libc::c_long, arguments: &[(u32, u32)], errno: i32) {
    use libc::{
        BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
        SECCOMP_RET_ERRNO, sock_filter, sock_fprog,
    };
    let load = |at| sock_filter { code: (BPF_LD | BPF_W | BPF_ABS) as u16, jt: 0, jf: 0, k: at };
    let unless = |k, jf| sock_filter { code: (BPF_JMP | BPF_JEQ | BPF_K) as u16, jt: 0, jf, k };
    let answer = |k| sock_filter { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k };
    // Offsets into `struct seccomp_data`: the number, then the low halves of the arguments.
    let number = (0, call as u32);
    let arguments = arguments.iter().map(|(position, value)| (16 + 8 * position, *value));
    let tests: Vec<_> = [number].into_iter().chain(arguments).collect();
    let mut program = Vec::new();
    for (done, (offset, value)) in tests.iter().enumerate() {
        let to_the_last = 2 * (tests.len() - done - 1) + 1;
        program.extend([load(*offset), unless(*value, to_the_last as u8)]);
    }
    program.extend([answer(SECCOMP_RET_ERRNO | errno as u32), answer(SECCOMP_RET_ALLOW)]);
    let install = move || {
        let filter = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: takes plain numbers only; an unprivileged filter needs the call.
        let one = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        let mode = libc::SECCOMP_MODE_FILTER;
        // SAFETY: reads the program, alive during the call.
        let two = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter) };
        if one == 0 && two == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes two async-signal-safe calls and does not allocate.
    unsafe { command.pre_exec(install) };
}

/// Bytes without zero pages, and without two equal pages.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut words = Vec::with_capacity(len / 8 + 1);
    for _ in 0..=len / 8 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        words.push(state);
    }
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

/// A device node: a copy of `/dev/full` in `dir`, or else `/dev/full`, which only root could
/// replace.
pub(crate) fn device(dir: &TempDir) -> PathBuf {
    let node = dir.file("full");
    match make_node(&node, libc::S_IFCHR, libc::makedev(1, 7)) {
        Ok(()) => node,
        Err(_) => "/dev/full".into(),
    }
}

/// Makes a file of the kind `S_IFIFO`, `S_IFCHR` and their like.
pub(crate) fn make_node(path: &Path, kind: libc::mode_t, device: libc::dev_t) -> io::Result<()> {
    let path = CString::new(text(path)).unwrap();
    // SAFETY: mknod(2) reads a string with a final zero byte, alive during the call.
    match unsafe { libc::mknod(path.as_ptr(), kind | 0o600, device) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A directory, removed with its contents.
pub(crate) struct TempDir(pub(crate) PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("pinbuf-migration-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Asserts that exactly these files exist: no incomplete file is left.
    #[track_caller]
    pub(crate) fn assert_holds(&self, names: &[&str]) {
        assert_eq!(self.names(), names);
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
